"""Augmentation beyond nnU-Net's: other brightnesses of VS and cochlea than translation gave them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from torch import Tensor

from plugins.nnunet.patches import around, quantile, soft, uniform
from plugins.segmentation import LABELS

MAX_CYSTS = 3
CYST_SIZE = (0.3, 0.7)
FLUID = (0.9, 1.0)


class TargetAppearance(BasicTransform):
    """Shifts the brightness of a structure so that its mean becomes a random quantile of the patch.

    Translation does not always hit the brightness that a structure has in real scans; a segmentation that has seen many
    knows it by place and shape. The change fades out over one voxel at the border.

    Source: the idea is that of the winners of CrossMoDA 2022 who dimmed tumours and brightened cochleas.

    Args:
        levels: structure to the range of quantiles, e.g. ``{"VS": [0.3, 0.8], "cochlea": [0.8, 1.0]}``.
        probability: of a shift, for each structure and patch.
        texture: range of the factor of the deviations from the structure's mean; ``[1, 1]`` leaves them.
        cysts: probability of one to three bright blobs in a VS that is shifted: ellipsoids of 0.3 to 0.7 of its extent,
            as bright as the quantiles .9 to 1 of the patch.

    Shape:
        - image: :math:`(C, ...)`, one channel or more, 2 or 3 axes.
        - segmentation: :math:`(1, ...)`.
    """

    def __init__(
        self,
        levels: Mapping[Any, Sequence[float]],
        probability: float = 0.5,
        texture: Sequence[float] = (1.0, 1.0),
        cysts: float = 0.0,
    ):
        super().__init__()
        self.levels = {LABELS[name]: bounds for name, bounds in levels.items()}
        self.probability, self.texture, self.cysts = probability, texture, cysts

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Quantile and factor of the texture of each structure that is to be shifted; the cysts of a VS."""
        draws = torch.rand(len(self.levels), 2).tolist()
        quantiles = {
            label: low + (high - low) * at
            for (label, (low, high)), (chance, at) in zip(self.levels.items(), draws, strict=True)
            if chance < self.probability
        }
        cysts = None
        if self.cysts > 0 and LABELS["VS"] in quantiles and torch.rand(1).item() < self.cysts:
            count = int(torch.randint(1, MAX_CYSTS + 1, (1,)))
            cysts = torch.rand(count, 3)  # place, size, brightness
        return {
            "quantiles": quantiles,
            "texture": {label: uniform(*self.texture) for label in quantiles},
            "cysts": cysts,
        }

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Shift the image, not the segmentation."""
        image, segmentation = data_dict["image"], data_dict["segmentation"][0]
        for label, at in params["quantiles"].items():
            inside = segmentation == label
            if inside.any():
                cysts = params["cysts"] if label == LABELS["VS"] else None
                channels = [_changed(channel, inside, at, params["texture"][label], cysts) for channel in image]
                image = torch.stack(channels)
        return {**data_dict, "image": image}


def _changed(image: Tensor, inside: Tensor, at: float, texture: float, cysts: Tensor | None) -> Tensor:
    """``image`` with the mean of ``inside`` moved to a quantile of its other non-air pixels."""
    others = image[~inside & (image > image.min())]
    if others.numel() == 0:
        return image
    mean = image[inside].mean()
    box = around(inside)
    region, inside = image[box], inside[box]
    change = (texture - 1) * (region - mean) + (quantile(others, at) - mean)
    weight = soft(inside, image.dtype)
    changed = region + weight * change
    for place, size, brightness in () if cysts is None else cysts.tolist():
        blob = _ellipsoid(inside, place, CYST_SIZE[0] + (CYST_SIZE[1] - CYST_SIZE[0]) * size)
        fluid = quantile(others, FLUID[0] + (FLUID[1] - FLUID[0]) * brightness)
        changed = torch.lerp(changed, fluid, blob)
    image = image.clone()
    image[box] = changed
    return image


def _ellipsoid(inside: Tensor, place: float, size: float) -> Tensor:
    """Weights of a blob about a voxel of a mask: 1 up to half of its radius, falling to 0 at the radius.

    A uniform ellipsoid has a standard deviation of its semi-axis over the root of 5.
    """
    voxels = inside.nonzero().to(torch.float32)
    semi_axes = (size * 5**0.5 * voxels.std(0, correction=0)).clamp_min(1)
    centre = voxels[int(place * len(voxels))]
    distance = ((voxels - centre) / semi_axes).square().sum(1).sqrt()
    blob = torch.zeros(inside.shape)
    blob[inside] = (2 - 2 * distance).clamp(0, 1)
    return blob
