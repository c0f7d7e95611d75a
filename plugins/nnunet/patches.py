"""Small tools of the augmentations: soft masks, and curves through knots."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}
SAMPLE = 4096


def uniform(low: float, high: float) -> float:
    """A random number of the range; none is drawn where the range is one number."""
    return low if low == high else low + (high - low) * torch.rand(1).item()


def soft(inside: Tensor, dtype: torch.dtype) -> Tensor:
    """Weights of a mask: 1 well inside, fading over one voxel at the border, at least 1/2 inside.

    Shape:
        - inside: 2 or 3 axes, boolean; output: the same.
    """
    pool = POOL[inside.dim()]
    weight = pool(inside.to(dtype)[None, None], 3, stride=1, padding=1, count_include_pad=False)[0, 0]
    return torch.where(inside, weight.clamp_min(0.5), weight)


def around(inside: Tensor) -> tuple[slice, ...]:
    """The box of a mask that is not empty, with two voxels about it: nothing beyond has a weight in :func:`soft`."""
    places = inside.nonzero()
    ends = zip(places.amin(0).tolist(), places.amax(0).tolist(), strict=True)
    return tuple(slice(max(0, first - 2), last + 3) for first, last in ends)


def quantile(values: Tensor, at: float) -> Tensor:
    """The value at a share of the sorted values, without interpolation.

    Shape:
        - values: :math:`(N)`; output: one number.
    """
    position = min(int(at * values.numel()), values.numel() - 1)
    return values.new_tensor(np.partition(values.numpy(), position)[position])


def some(values: Tensor) -> Tensor:
    """The values, of many every n-th: enough to know their distribution.

    Shape:
        - values: any; output: :math:`(N)`.
    """
    return values.flatten()[:: max(1, values.numel() // SAMPLE)]


def through(values: Tensor, x: Tensor, y: Tensor, slope: float = 1.0) -> Tensor:
    """Values on the line through the knots ``(x, y)``, which goes on by ``slope`` beyond the last of either side.

    Shape:
        - values: any; x, y: :math:`(K)`, x in order; output: as values.
    """
    right = torch.searchsorted(x, values.contiguous()).clamp_(1, len(x) - 1)
    inner = values.clamp(x[0], x[-1])
    start, gradient = x[:-1], y.diff() / x.diff().clamp_min(torch.finfo(x.dtype).tiny)
    gradient = torch.where(x.diff() > 0, gradient, torch.zeros_like(gradient))
    left = right.sub_(1)
    return y[left] + gradient[left] * (inner - start[left]) + slope * (values - inner)


def with_statistics_of(image: Tensor, model: Tensor) -> Tensor:
    """``image`` moved and scaled to the mean and standard deviation of ``model``; a constant one becomes the mean."""
    spread = image.std(correction=0)
    scale = model.std(correction=0) / spread if spread > 0 else spread
    return (image - image.mean()) * scale + model.mean()
