"""PatchGAN with strides or with anti-aliased subsampling."""

from __future__ import annotations

from typing import Any

from monai.networks.nets.patchgan_discriminator import PatchDiscriminator as MonaiPatchDiscriminator
from pydantic import PositiveInt
from torch import Tensor

from plugins.networks.initialisation import Kind, initialise
from plugins.networks.resample import BlurDown


class PatchDiscriminator(MonaiPatchDiscriminator):
    """MONAI's 70x70 PatchGAN; optionally each strided convolution becomes a dense one followed by a blurred halving.

    Args:
        spatial_dims: 2 or 3.
        in_channels: channels of the image.
        channels: width of the first layer.
        num_layers_d: layers between the first and the last.
        norm: normalisation of the layers between; any name of MONAI's factory.
        anti_aliased: subsample behind a blur.
        init: see :func:`plugins.networks.initialise`.

    Shape:
        - x: :math:`(N, C, ...)`.
        - output: list of feature maps; the last holds the logits of the patches.

    Attributes:
        logit_stride: pixels from a logit to the next.
    """

    def __init__(
        self,
        spatial_dims: int = 2,
        in_channels: int = 1,
        channels: PositiveInt = 64,
        num_layers_d: PositiveInt = 3,
        norm: str = "instance",
        anti_aliased: bool = True,
        init: Kind = "xavier",
    ):
        super().__init__(
            spatial_dims=spatial_dims,
            in_channels=in_channels,
            channels=channels,
            num_layers_d=num_layers_d,
            norm=norm,
            bias=True,
        )
        self.logit_stride = 2**num_layers_d
        if anti_aliased:
            for block in self.children():
                convolution: Any = block.conv
                if max(convolution.stride) > 1:
                    convolution.stride = (1,) * spatial_dims
                    block.add_module("halve", BlurDown(spatial_dims))
        initialise(self, init)

    def logits(self, x: Tensor) -> Tensor:
        """Logits of the patches alone."""
        out: Tensor = self(x)[-1]
        return out
