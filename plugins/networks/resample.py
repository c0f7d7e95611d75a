"""Anti-aliased halving and doubling of feature maps."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class BlurDown(nn.Module):
    r"""Halve a feature map after blurring it with the binomial filter (1, 2, 1) / 4 along each axis.

    Source: Zhang, Making convolutional networks shift-invariant again, ICML 2019.

    Args:
        spatial_dims: 2 or 3.

    Shape:
        - x: :math:`(N, C, ...)`, at least 2 pixels along each axis.
        - output: each axis halved, rounded up.
    """

    kernel: Tensor

    def __init__(self, spatial_dims: int = 2):
        super().__init__()
        self.spatial_dims = spatial_dims
        row = torch.tensor([1.0, 2.0, 1.0]) / 4
        kernel = row
        for _ in range(spatial_dims - 1):
            kernel = kernel.unsqueeze(-1) * row
        self.register_buffer("kernel", kernel[None, None], persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Blur and subsample ``x``."""
        channels = x.shape[1]
        padded = F.pad(x, [1, 1] * self.spatial_dims, mode="reflect")
        kernel = self.kernel.to(x.dtype).expand([channels, 1] + [3] * self.spatial_dims)
        if self.spatial_dims == 3:
            return F.conv3d(padded, kernel, stride=2, groups=channels)
        return F.conv2d(padded, kernel, stride=2, groups=channels)


class BlurUp(nn.Module):
    r"""Double a feature map with the binomial filter (1, 3, 3, 1) / 4 along each axis.

    With replicated borders that filter is linear interpolation between pixel centres.

    Args:
        spatial_dims: 2 or 3.

    Shape:
        - x: :math:`(N, C, ...)`.
        - output: each axis doubled.
    """

    def __init__(self, spatial_dims: int = 2):
        super().__init__()
        self.mode = "trilinear" if spatial_dims == 3 else "bilinear"

    def forward(self, x: Tensor) -> Tensor:
        """Interpolate ``x``."""
        return F.interpolate(x, scale_factor=2.0, mode=self.mode, align_corners=False)
