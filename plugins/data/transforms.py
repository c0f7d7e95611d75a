"""From a scan on disk to a stack of axial slices that a translator takes, and nothing that cannot be undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Annotated, Any

import numpy as np
import torch
from monai.transforms import (
    AsDiscreted,
    CenterSpatialCrop,
    Compose,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    Resized,
    ResizeWithPadOrCropd,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)
from numpy.typing import NDArray

from plugins.errors import InputError
from plugins.signatures import Length, refused_by

AIR = -1.0


def check_label_inside_crop(item: Mapping[str, Any], crop_size: Sequence[int]) -> Mapping[str, Any]:
    """Refuse a label whose foreground the central in-plane crop would cut.

    Items with a true ``pseudo`` are exempt: a stray voxel that a model predicted must not stop a training.

    Raises:
        InputError: if foreground lies outside the crop; names the crop size that would hold it.
    """
    label = item.get("label")
    if label is None or item.get("pseudo"):
        return item
    lost = int((label > 0).sum() - (CenterSpatialCrop((*crop_size, -1))(label) > 0).sum())
    if lost:
        foreground: NDArray[np.bool_] = np.asarray(label[0] > 0)
        rows, columns = np.flatnonzero(foreground.any((1, 2))), np.flatnonzero(foreground.any((0, 2)))
        needed = [
            max(crop_size[0], _centred_size(rows, foreground.shape[0])),
            max(crop_size[1], _centred_size(columns, foreground.shape[1])),
        ]
        file = label.meta["filename_or_obj"]
        raise InputError(f"{file}: {lost} labelled voxels lie outside the crop; set crop_size to {needed} or more.")
    return item


def add_empty_label(item: Mapping[str, Any]) -> dict[str, Any]:
    """Give an item without a label one of zeros, of the image's shape and geometry."""
    return {"label": torch.zeros_like(item["image"]), **item}


def check_slices(percentiles: Sequence[float], patch_size: Sequence[int], divisor: int) -> None:
    """Refuse percentiles that are not in order, and a patch that cannot be divided.

    Raises:
        InputError: naming them.
    """
    low, high = percentiles
    if not 0 <= low < high <= 100:
        raise InputError(f"percentiles is {list(percentiles)}: give two in order, from 0 to 100.")
    if any(length % divisor for length in patch_size):
        raise InputError(f"patch_size is {list(patch_size)}: give multiples of {divisor}.")


@refused_by(check_slices)
def translation_transforms(
    spacing: Annotated[Sequence[float | None], Length(3)] | None = (0.41, 0.41, 1.5),
    crop_size: Annotated[Sequence[int], Length(2)] = (256, 256),
    patch_size: Annotated[Sequence[int], Length(2)] = (256, 256),
    percentiles: Annotated[Sequence[float], Length(2)] = (0.1, 99.9),
    with_label: bool = False,
    divisor: int = 1,
) -> Compose:
    """Load a scan, scale it to [-1, 1], resample it, and crop and resize its axial slices.

    Items are ``{"image", optional "label"}`` with file names. Both become float32 tensors ``(1, H, W, Z)`` in LPS
    order, so the last axis runs through the axial slices, and the slices of all scans look the same way. Images are
    interpolated linearly and padded with air (-1); labels are rounded on reading and resampled to the nearest voxel.
    MONAI's ``Invertd`` returns to the file's own shape and affine. The result's ``settings`` hold these arguments.

    Args:
        spacing: of the resampled volume in mm, along L, P and S; ``None`` in a place (or for all) keeps the scan's own.
        crop_size: voxels in-plane of the centred crop (or padding), after resampling.
        patch_size: pixels of the slices, to which the crop is resized.
        percentiles: of the whole volume, which become -1 and 1; what lies beyond is clipped.
        with_label: give items without a label one of zeros.
        divisor: of ``patch_size``: 4 for a network that halves its maps twice.

    Raises:
        InputError: if percentiles are not in order or a patch cannot be divided; while transforming, see
            :func:`check_label_inside_crop`.
    """
    both: dict[str, Any] = {"keys": ["image", "label"], "allow_missing_keys": True}
    check_slices(percentiles, patch_size, divisor)
    low, high = percentiles
    pixdim = [-1 if length is None else length for length in spacing or (None, None, None)]
    crop, patch = (*crop_size, -1), (*patch_size, -1)
    transforms = Compose(
        [
            LoadImaged(**both, reader="NibabelReader", dtype=np.float32),
            EnsureChannelFirstd(**both),
            AsDiscreted("label", rounding="torchrounding", allow_missing_keys=True),
            Orientationd(**both, axcodes="LPS", labels=None),
            ScaleIntensityRangePercentilesd("image", lower=low, upper=high, b_min=AIR, b_max=1, clip=True),
            Spacingd(**both, pixdim=pixdim, mode=["bilinear", "nearest"]),
            partial(check_label_inside_crop, crop_size=tuple(crop_size)),
            ResizeWithPadOrCropd("image", crop, value=AIR),
            ResizeWithPadOrCropd("label", crop, value=0, allow_missing_keys=True),
            # "nearest" would shift the labels by half a pixel against the images
            Resized(**both, spatial_size=patch, mode=["bilinear", "nearest-exact"], anti_aliasing=[True, False]),
            *([add_empty_label] if with_label else []),
        ]
    )
    transforms.settings = {  # by which prepared volumes are recognised
        "spacing": pixdim,
        "crop_size": list(crop_size),
        "patch_size": list(patch_size),
        "percentiles": list(percentiles),
    }
    return transforms


def prepared_transforms() -> Compose:
    """Load what :meth:`plugins.data.UnpairedSlices.scans` lists: float32 tensors ``(1, H, W, Z)`` with their affine."""
    both: dict[str, Any] = {"keys": ["image", "label"], "allow_missing_keys": True}
    return Compose([LoadImaged(**both, dtype=np.float32), EnsureChannelFirstd(**both)])


def _centred_size(places: NDArray[np.intp], length: int) -> int:
    """The smallest even size of a crop, centred in an axis of this length, that holds all ``places``."""
    centre = length // 2
    return int(2 * max(centre - places.min(), places.max() + 1 - centre))
