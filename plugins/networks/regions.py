"""Regions of an image: from a one-hot map to the short list of pixels that region-aware layers need."""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

Reduction = Literal["any", "nearest"]


class Regions(NamedTuple):
    r"""Which pixels belong to which target region, at one resolution.

    Targets are tiny, so their :math:`P` pixels are listed; every other pixel belongs to region 0, "others".

    Attributes:
        sample: :math:`(P,)`, index of the sample in the batch.
        position: :math:`(P,)`, flat index of the pixel in its sample.
        group: :math:`(P,)`, ``sample * (R - 1) + region - 1`` for target regions ``1 .. R - 1``.
        target_count: :math:`(N (R - 1),)`, pixels of each group, as floats.
        rest_count: :math:`(N,)`, pixels of "others" in each sample, as floats.
    """

    sample: Tensor
    position: Tensor
    group: Tensor
    target_count: Tensor
    rest_count: Tensor


def one_hot_regions(label: Tensor, num_classes: int = 3) -> Tensor:
    """One-hot regions of a label map; labels are rounded, never truncated.

    Args:
        label: :math:`(N, 1, ...)`, integers in any dtype.
        num_classes: number of labels, background included.

    Shape:
        - output: :math:`(N, num_classes, ...)`, bool.
    """
    rounded = torch.round(label.to(torch.float32)).to(torch.int64)
    return torch.cat([rounded == value for value in range(num_classes)], dim=1)


def _shrunk(masks: Tensor, size: list[int], reduction: str) -> Tensor:
    if reduction == "nearest":
        return F.interpolate(masks, size=size, mode="nearest")
    if torch.jit.is_scripting():  # type: ignore[attr-defined]
        return _pooled(masks, size)
    else:
        return _pooled_evenly(masks, size) if torch.compiler.is_exporting() else _pooled(masks, size)


def _pooled(masks: Tensor, size: list[int]) -> Tensor:
    return F.adaptive_max_pool3d(masks, size) if masks.dim() == 5 else F.adaptive_max_pool2d(masks, size)


def _pooled_evenly(masks: Tensor, size: list[int]) -> Tensor:
    """:func:`_pooled` where all blocks are equal: an exported program would freeze the sizes of adaptive pooling."""
    before = list(masks.shape[2:])
    block = [axis // blocks for axis, blocks in zip(before, size, strict=True)]
    if [length * blocks for length, blocks in zip(block, size, strict=True)] != before:
        return _pooled(masks, size)
    return F.max_pool3d(masks, block) if masks.dim() == 5 else F.max_pool2d(masks, block)


def list_regions(targets: Tensor, size: list[int], reduction: str = "any", min_pixels: int = 1) -> Regions:
    r"""List the pixels of the target regions at the resolution ``size``.

    Args:
        targets: :math:`(N, R - 1, ...)`, bool or 0/1, disjoint masks of the regions ``1 .. R - 1``.
        size: spatial size of the feature map the regions are for.
        reduction: how masks shrink: ``"nearest"`` samples one pixel a block; ``"any"`` keeps a pixel if any in its
            block is set, and where several regions claim one pixel the last region takes it.
        min_pixels: a region with fewer pixels in a sample is counted as "others" there.

    Raises:
        ValueError: if ``reduction`` is unknown.
    """
    if reduction != "any" and reduction != "nearest":
        raise ValueError("Reduction must be 'any' or 'nearest', not '" + reduction + "'.")
    masks = targets.to(torch.float32)
    if list(masks.shape[2:]) != list(size):
        masks = _shrunk(masks, size, reduction)
    num_samples, num_targets = masks.shape[0], masks.shape[1]
    masks = masks.flatten(2) > 0
    num_pixels = masks.shape[2]
    later = torch.zeros_like(masks[:, 0])
    disjoint: list[Tensor] = []
    for region in range(num_targets - 1, -1, -1):
        disjoint.append(masks[:, region] & ~later)
        later = later | masks[:, region]
    disjoint.reverse()
    masks = torch.stack(disjoint, dim=1)
    count = masks.sum(dim=2)
    masks = masks & (count >= min_pixels).unsqueeze(2)
    sample, region_index, position = torch.where(masks)
    target_count = masks.sum(dim=2).to(torch.float32)
    return Regions(
        sample=sample,
        position=position,
        group=sample * num_targets + region_index,
        target_count=target_count.reshape(num_samples * num_targets),
        rest_count=num_pixels - target_count.sum(dim=1),
    )


def over_batch(regions: Regions, num_pixels: int) -> Regions:
    """The regions of a batch as those of one sample, in which the samples lie one behind the other.

    Args:
        regions: of :math:`N` samples.
        num_pixels: of each sample.
    """
    num_samples = regions.rest_count.shape[0]
    num_targets = regions.target_count.shape[0] // num_samples
    return Regions(
        sample=torch.zeros_like(regions.sample),
        position=regions.sample * num_pixels + regions.position,
        group=regions.group % num_targets,
        target_count=regions.target_count.reshape(num_samples, num_targets).sum(dim=0),
        rest_count=regions.rest_count.sum(dim=0, keepdim=True),
    )
