"""From a scan on disk to a stack of axial slices that a translator takes, and nothing that cannot be undone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Compose,
    Crop,
    Cropd,
    EnsureChannelFirstd,
    LoadImaged,
    Orientationd,
    Resized,
    ResizeWithPadOrCropd,
    ScaleIntensityRangePercentilesd,
    Spacingd,
)
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt

from plugins.config.ranges import Pair, Triple
from plugins.config.signatures import refused_by
from plugins.data.scans import LABEL_VALUES, Scan, read_label, read_scan
from plugins.errors import InputError

AIR = -1.0
MARGIN = 8


def as_tensor(scan: Scan) -> MetaTensor:
    """The voxels, float32 :math:`(X, Y, Z)`, with the affine and what MONAI's transforms ask of the meta data."""
    affine = torch.from_numpy(np.array(scan.affine))
    meta = {
        "filename_or_obj": str(scan.path),
        "spatial_shape": np.array(scan.shape),
        "original_affine": np.array(scan.affine),
        "original_channel_dim": "no_channel",
        "space": "RAS",
    }
    return MetaTensor(torch.from_numpy(np.ascontiguousarray(scan.voxels, np.float32)), affine=affine, meta=meta)


class LoadScand(LoadImaged):
    """Read scans by :func:`plugins.data.read_scan`, and what lies under ``label`` by :func:`plugins.data.read_label`.

    MONAI's own readers take the qform where pixdim and sform differ, and know no units. A label map must lie on the
    scan that is read before it, and gets its affine.

    Args:
        keys: of files or folders of DICOM series, scans first; they become float32 tensors :math:`(X, Y, Z)`.
        allow_missing_keys: leave out keys that an item does not have.
        label_values: that a label map may hold.

    Raises:
        InputError: while transforming, as the two functions.
    """

    def __init__(
        self, keys: str | Sequence[str], allow_missing_keys: bool = False, label_values: Sequence[int] = LABEL_VALUES
    ):
        super().__init__(keys, allow_missing_keys=allow_missing_keys)
        self._label_values = label_values

    def __call__(self, data: Mapping[Any, Any], reader: Any = None) -> dict[Any, Any]:
        """Return ``data`` with the files read; ``reader`` is not used."""
        item, grid = dict(data), None
        for key in self.key_iterator(item):
            scan: Scan = read_label(item[key], self._label_values, grid) if key == "label" else read_scan(item[key])
            grid = grid or scan.grid
            item[key] = as_tensor(scan)
        return item


class FollowingCropd(Cropd):
    """Crop the first two axes to a size, where the scan is larger; not blindly around its middle.

    The crop of an item with a ``window`` (a place in the world of the affine, mm R, A, S, see
    :attr:`plugins.data.Window.centre`) is centred there. Otherwise it is centred in the scan, as long as the label's
    foreground lies inside with its margin, and else shifted from there no further than that takes; a crop that is too
    small for the margin has the foreground in its middle. A crop never leaves the scan. A label that would be cut is
    refused; not so one with a true ``pseudo``, as a stray voxel that a model predicted must not stop a training.

    Args:
        keys: of image and label, :math:`(1, H, W, Z)` on one grid.
        size: voxels along the first two axes.
        margin: voxels around the foreground.

    Raises:
        InputError: while transforming, if foreground would be cut; names the crop size that would hold it.
    """

    def __init__(self, keys: Sequence[str], size: Sequence[int], margin: int = MARGIN):
        super().__init__(keys, Crop(), allow_missing_keys=True)
        self._size, self._margin = tuple(size), margin

    def __call__(self, data: Mapping[Any, Any], lazy: bool | None = None) -> dict[Any, Any]:
        """Return ``data`` with image and label cropped alike."""
        item = dict(data)
        shape = item["image"].shape[1:3]
        starts = [length // 2 - size // 2 for length, size in zip(shape, self._size, strict=True)]
        label = item.get("label")
        foreground: NDArray[np.bool_] = np.zeros((0, 0, 0), np.bool_) if label is None else np.asarray(label[0] > 0)
        seen = bool(foreground.any())
        bounds = [_bounds(np.asarray(foreground.any((1 - axis, 2)))) if seen else None for axis in range(2)]
        if item.get("window") is not None:
            affine = np.asarray(item["image"].affine, np.float64)
            centre = apply_affine(np.linalg.inv(affine), np.asarray(item["window"], np.float64))
            starts = [round(float(at) + 0.5 - size / 2) for at, size in zip(centre, self._size, strict=False)]
        else:
            follow = zip(starts, bounds, self._size, strict=True)
            starts = [start if found is None else self._shifted(start, found, size) for start, found, size in follow]
        starts = [max(0, min(at, have - size)) for at, have, size in zip(starts, shape, self._size, strict=True)]
        box = tuple(slice(start, start + size) for start, size in zip(starts, self._size, strict=True))
        if seen and not item.get("pseudo"):
            _check_label_inside(label, foreground, box, bounds)
        for key in self.key_iterator(item):
            item[key] = self.cropper(item[key], box, lazy=lazy)
        return item

    def _shifted(self, start: int, found: tuple[int, int], size: int) -> int:
        """The start nearest to ``start`` of a crop that holds what was found, with its margin if that fits."""
        low, end = found
        lowest, highest = end + self._margin - size, low - self._margin
        return (low + end - size) // 2 if lowest > highest else max(lowest, min(start, highest))


def _bounds(line: NDArray[np.bool_]) -> tuple[int, int]:
    """First place that is set, and the one behind the last."""
    places = np.flatnonzero(line)
    return int(places[0]), int(places[-1]) + 1


def _check_label_inside(
    label: Any, foreground: NDArray[np.bool_], box: Sequence[slice], bounds: Sequence[tuple[int, int] | None]
) -> None:
    lost = int(foreground.sum() - foreground[tuple(box)].sum())
    if lost:
        size = [edge.stop - edge.start for edge in box]
        spans = [0 if each is None else each[1] - each[0] for each in bounds]
        needed = [max(have, 2 * -(-span // 2)) for have, span in zip(size, spans, strict=True)]
        file = label.meta["filename_or_obj"]
        cure = f"Set crop_size to {needed} or more" if needed != size else "Move the window"
        raise InputError(f"{file}: {lost} labelled voxels lie outside the crop. {cure}.")


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
        raise InputError(f"percentiles is {list(percentiles)}. Give two in order, from 0 to 100.")
    if any(length % divisor for length in patch_size):
        raise InputError(f"patch_size is {list(patch_size)}. Give multiples of {divisor}.")


@refused_by(check_slices)
def translation_transforms(
    spacing: Triple[PositiveFloat | None] | None = (0.41, 0.41, 1.5),
    crop_size: Pair[PositiveInt] = (256, 256),
    patch_size: Pair[PositiveInt] = (256, 256),
    percentiles: Pair[float] = (0.1, 99.9),
    with_label: bool = False,
    divisor: int = 1,
) -> Compose:
    """Load a scan, scale it to [-1, 1], resample it, and crop and resize its axial slices.

    Items are ``{"image", optional "label"}`` with file names, and maybe a ``window``, see :class:`FollowingCropd`. Both
    become float32 tensors ``(1, H, W, Z)`` in LPS order, so the last axis runs through the axial slices, and the slices
    of all scans look the same way. Images are interpolated linearly and padded with air (-1); labels are rounded on
    reading and resampled to the nearest voxel. MONAI's ``Invertd`` returns to the file's own shape and affine. The
    result's ``settings`` hold these arguments.

    Args:
        spacing: of the resampled volume in mm, along L, P and S; ``None`` in a place (or for all) keeps the scan's own.
        crop_size: voxels in-plane of the crop (or padding), after resampling; see :class:`FollowingCropd` for where.
        patch_size: pixels of the slices, to which the crop is resized.
        percentiles: of the whole volume, which become -1 and 1; what lies beyond is clipped.
        with_label: give items without a label one of zeros.
        divisor: of ``patch_size``: 4 for a network that halves its maps twice.

    Raises:
        InputError: if percentiles are not in order or a patch cannot be divided; while transforming, see
            :class:`FollowingCropd`.
    """
    both: dict[str, Any] = {"keys": ["image", "label"], "allow_missing_keys": True}
    check_slices(percentiles, patch_size, divisor)
    low, high = percentiles
    pixdim = [-1 if length is None else length for length in spacing or (None, None, None)]
    crop, patch = (*crop_size, -1), (*patch_size, -1)
    transforms = Compose(
        [
            LoadScand(**both),
            EnsureChannelFirstd(**both),
            Orientationd(**both, axcodes="LPS", labels=None),
            ScaleIntensityRangePercentilesd("image", lower=low, upper=high, b_min=AIR, b_max=1, clip=True),
            Spacingd(**both, pixdim=pixdim, mode=["bilinear", "nearest"]),
            FollowingCropd(both["keys"], crop_size),
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
        "crop": "follows the label",
        "patch_size": list(patch_size),
        "percentiles": list(percentiles),
    }
    return transforms


def prepared_transforms() -> Compose:
    """Load what :meth:`plugins.data.UnpairedSlices.scans` lists: float32 tensors ``(1, H, W, Z)`` with their affine."""
    both: dict[str, Any] = {"keys": ["image", "label"], "allow_missing_keys": True}
    return Compose([LoadScand(**both), EnsureChannelFirstd(**both)])
