"""Augmentation beyond nnU-Net's: structures dimmed or brightened by a factor, and stretched from a local range."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor

from plugins.nnunet.patches import around, quantile, soft, uniform
from plugins.segmentation import LABELS


class TargetBrightness(BasicTransform):
    r"""Multiplies the brightness of a structure by a factor, after stretching it from a range of its neighbourhood.

    .. math::
        y = d + f \left( s(x) - d \right), \qquad
        s(x) = l + (h - l) \operatorname{clip}\left( \frac{x - a}{b - a}, 0, 1 \right)

    :math:`d` is the darkest value of the patch. A factor of z-scored values would have no meaning, as their zero is the
    mean of the scan; the darkest value is air, where the scanner measures nothing, so :math:`f` acts as a factor of the
    signal. :math:`l` and :math:`h` are the extremes of the box of the structure with two voxels about it, :math:`a` and
    :math:`b` random quantiles of that box. The change fades out over one voxel at the border of the structure.

    Source: the idea is that of participants of CrossMoDA 2021 and 2022 who halved the signal of tumours (factor .5) or
    changed the local contrast of the structures.

    Args:
        factors: structure to the range of :math:`f`, e.g. ``{"VS": [0.5, 0.5]}``.
        probability: of a change, for each structure and patch.
        stretch: :math:`a` is a quantile from 0 to this share, :math:`b` one from 1 down to 1 minus this share; 0 leaves
            the range as it is.

    Shape:
        - image: :math:`(C, ...)`, one channel or more, 2 or 3 axes.
        - segmentation: :math:`(1, ...)`; unchanged.
    """

    def __init__(self, factors: Mapping[Any, Sequence[float]], probability: float = 0.5, stretch: float = 0.0):
        super().__init__()
        self.factors = {LABELS[name]: bounds for name, bounds in factors.items()}
        self.probability, self.stretch = probability, stretch

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Factor and the two quantiles of each structure that is to be changed."""
        chances = torch.rand(len(self.factors)).tolist()
        return {
            "changes": {
                label: (uniform(*bounds), uniform(0, self.stretch), 1 - uniform(0, self.stretch))
                for (label, bounds), chance in zip(self.factors.items(), chances, strict=True)
                if chance < self.probability
            }
        }

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Change the image, not the segmentation."""
        image, segmentation = data_dict["image"], data_dict["segmentation"][0]
        for label, change in params["changes"].items():
            inside = segmentation == label
            if inside.any():
                image = torch.stack([_changed(channel, inside, *change) for channel in image])
        return {**data_dict, "image": image}


def _changed(image: Tensor, inside: Tensor, factor: float, first: float, last: float) -> Tensor:
    """``image`` with the voxels of ``inside`` stretched from two quantiles of their box and multiplied."""
    box, darkest = around(inside), image.min()
    region = image[box]
    stretched = region
    if first > 0 or last < 1:
        values = region.flatten()
        low, high = quantile(values, first), quantile(values, last)
        if high > low:
            stretched = torch.lerp(values.min(), values.max(), ((region - low) / (high - low)).clamp(0, 1))
    image = image.clone()
    image[box] = torch.lerp(region, darkest + factor * (stretched - darkest), soft(inside[box], image.dtype))
    return image
