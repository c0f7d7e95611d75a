"""Augmentation beyond nnU-Net's: other brightnesses of VS and cochlea than translation gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor
from torch.nn import functional as F

from plugins.errors import InputError
from plugins.segmentation import LABELS

POOL = {2: F.avg_pool2d, 3: F.avg_pool3d}


class TargetAppearance(BasicTransform):
    """Shifts the brightness of a structure so that its mean becomes a random quantile of the patch.

    Translation does not always hit the brightness that a structure has in real scans; a segmentation that has seen many
    knows it by place and shape. Texture stays; the shift fades out over one voxel at the border.

    Source: the idea is that of the winners of CrossMoDA 2022 who dimmed tumours and brightened cochleas.

    Args:
        levels: structure to the range of quantiles, e.g. ``{"VS": [0.3, 0.8], "cochlea": [0.8, 1.0]}``.
        probability: of a shift, for each structure and patch.

    Raises:
        InputError: for an unknown structure, or a range that does not lie in [0, 1].

    Shape:
        - image: :math:`(C, ...)`, one channel or more, 2 or 3 axes.
        - segmentation: :math:`(1, ...)`.
    """

    def __init__(self, levels: Mapping[Any, Sequence[float]], probability: float = 0.5):
        super().__init__()
        for name, bounds in levels.items():
            if name not in LABELS or not LABELS[name]:
                raise InputError(f"appearance has no {name!r}: name VS or cochlea.")
            if len(bounds) != 2 or not 0 <= bounds[0] <= bounds[1] <= 1:
                raise InputError(f"appearance of {name} is {list(bounds)}: give two quantiles in order, from 0 to 1.")
        self.levels, self.probability = {LABELS[name]: tuple(bounds) for name, bounds in levels.items()}, probability

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Quantile of each structure that is to be shifted."""
        draws = torch.rand(len(self.levels), 2).tolist()
        return {
            "quantiles": {
                label: low + (high - low) * at
                for (label, (low, high)), (chance, at) in zip(self.levels.items(), draws, strict=True)
                if chance < self.probability
            }
        }

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Shift the image; the segmentation stays."""
        image, segmentation = data_dict["image"], data_dict["segmentation"][0]
        for label, quantile in params["quantiles"].items():
            inside = segmentation == label
            if inside.any():
                image = torch.stack([_shifted(channel, inside, quantile) for channel in image])
        return {**data_dict, "image": image}


def _shifted(image: Tensor, inside: Tensor, quantile: float) -> Tensor:
    """``image`` with the mean of ``inside`` moved to a quantile of its other non-air pixels."""
    others = image[~inside & (image > image.min())]
    if others.numel() == 0:
        return image
    position = min(int(quantile * others.numel()), others.numel() - 1)
    shift = others.sort().values[position] - image[inside].mean()
    weight = POOL[image.dim()](inside.to(image.dtype)[None, None], 3, stride=1, padding=1, count_include_pad=False)[
        0, 0
    ]
    return image + shift * torch.where(inside, weight.clamp_min(0.5), weight)
