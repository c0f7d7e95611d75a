"""nnU-Net's resampling: cubic for images, linear for logits, and slices apart from one another where they are thick."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import zoom
from torch import Tensor
from torch.nn.functional import interpolate

ANISOTROPY = 3.0


def resampled_shape(shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> list[int]:
    """Voxels of a volume at another spacing, one at least.

    Example:
        >>> resampled_shape([80, 100], [1.5, 0.5], [1.5, 0.41])
        [80, 122]
    """
    return [max(1, round(old / new * extent)) for old, new, extent in zip(spacing, target, shape, strict=True)]


def slice_axis(spacing: Sequence[float], target: Sequence[float]) -> int | None:
    """The axis along which voxels are more than three times as long as across, before or after; none if there are two.

    Example:
        >>> slice_axis([1.5, 0.41, 0.41], [1.0, 1.0, 1.0]), slice_axis([1.0, 1.0, 1.0], [1.5, 0.6, 0.6])
        (0, None)
    """
    for mm in (spacing, target):
        if max(mm) / min(mm) > ANISOTROPY:
            longest = [axis for axis, length in enumerate(mm) if length == max(mm)]
            return longest[0] if len(longest) == 1 else None
    return None


def resample_image(image: Tensor, shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Tensor:
    """Cubic splines, within the range of the image; along a slice axis the nearest slice.

    Args:
        image: :math:`(C, D, H, W)`.
        shape: of the result, three numbers.
        spacing: mm of a voxel along each axis.
        target: mm of a voxel of the result.

    Returns:
        float32, :math:`(C, *shape)`.
    """
    if tuple(image.shape[1:]) == tuple(shape):
        return image
    axis = slice_axis(spacing, target)
    channels = [_cubic(channel, shape, axis) for channel in image.double().cpu().numpy()]
    return torch.from_numpy(np.stack(channels).astype(np.float32)).to(image.device)


def _cubic(volume: NDArray[np.float64], shape: Sequence[int], axis: int | None) -> NDArray[np.float64]:
    if axis is None:
        return _zoomed(volume, shape)
    within = [extent for number, extent in enumerate(shape) if number != axis]
    slices = np.stack([_zoomed(each, within) for each in np.moveaxis(volume, axis, 0)], axis=axis)
    return slices.take(_nearest(volume.shape[axis], shape[axis]), axis=axis)


def _zoomed(array: NDArray[np.float64], shape: Sequence[int]) -> NDArray[np.float64]:
    factors = [1 / (old / new) for old, new in zip(array.shape, shape, strict=True)]
    return np.clip(zoom(array, factors, order=3, mode="nearest", grid_mode=True), array.min(), array.max())


def _nearest(old: int, new: int) -> NDArray[np.int64]:
    """For every new index the old one whose centre is nearest."""
    centres = (old / new) * (np.arange(new) + 0.5) - 0.5
    return np.clip(np.floor(centres + 0.5), 0, old - 1).astype(np.int64)


def resample_logits(logits: Tensor, shape: Sequence[int], spacing: Sequence[float], target: Sequence[float]) -> Tensor:
    """Linear interpolation, along a slice axis the nearest slice; one channel at a time, to bound memory.

    Arguments are those of :func:`resample_image`; from :math:`(K, D, H, W)` to :math:`(K, *shape)`.
    """
    if tuple(logits.shape[1:]) == tuple(shape):
        return logits
    axis = slice_axis(spacing, target)
    result = logits.new_empty((len(logits), *shape))
    for channel, out in zip(logits, result, strict=True):
        if axis is None:
            out.copy_(interpolate(channel[None, None], tuple(shape), mode="trilinear")[0, 0])
        else:
            within = [extent for number, extent in enumerate(shape) if number != axis]
            slices = interpolate(channel.movedim(axis, 0)[:, None], within, mode="bilinear")[:, 0]
            index = torch.from_numpy(_nearest(channel.shape[axis], shape[axis])).to(logits.device)
            out.copy_(slices[index].movedim(0, axis))
    return result
