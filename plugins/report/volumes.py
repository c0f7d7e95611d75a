"""Volumes for the viewer: copies for display, cropped, coarser in value and small."""

from __future__ import annotations

import base64
import gzip
import os
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray

from plugins.data import Scan, Window, read_label, read_scan, voxel_box
from plugins.report.cases import IGNORED, STRUCTURES, WHOLE_SCAN

StrPath = str | os.PathLike[str]
Box = tuple[slice, slice, slice]

CASE_BYTES = 900_000
"""Of the image of one case, as base64; with 20 cases and all else a report stays below 30 MB."""
STEPS = ((128, 1), (64, 1), (32, 1), (64, 2), (32, 2), (32, 3), (16, 4))
"""Grey levels and every how many voxels in plane, tried in this order."""
PERCENTILES = (0.5, 99.5)
MARGIN_MM = 15.0
PREDICTION, REFERENCE, DIFFERENCE = "prediction", "reference", "difference"
ONLY_PREDICTED, ONLY_REFERENCE = 3, 4


def pack_case(
    image_file: StrPath, maps: Mapping[str, StrPath], window: Window | None = None, limit: int = CASE_BYTES
) -> dict[str, Any]:
    """An image and its label maps as gzipped NIfTI in base64.

    What is measured is measured on the files; these copies are for the eye alone.

    Args:
        image_file: the scan.
        maps: title to label map on the grid of the scan. With a :data:`PREDICTION` and a :data:`REFERENCE` there will
            be a :data:`DIFFERENCE`: structures where both agree, 3 what is only predicted, 4 what is only in the
            reference.
        window: what to show; ``None`` shows what lies around the label maps, or all.
        limit: bytes of the image; grey levels, then voxels are left out until it holds.

    Returns:
        ``image`` and ``maps`` (base64), ``levels``, ``step`` (every how many voxels in plane), ``shape``,
        and ``centre``, where to begin, in mm.
    """
    scan = read_scan(image_file)
    labels = _read(maps, scan)
    if {PREDICTION, REFERENCE} <= labels.keys():
        labels[DIFFERENCE] = _difference(labels[PREDICTION], labels[REFERENCE])
    return _pack(scan, labels, window, limit)


def pack_methods(
    image_file: StrPath,
    found: Mapping[str, StrPath],
    reference: StrPath | None,
    window: Window | None = None,
    limit: int = CASE_BYTES,
) -> dict[str, Any]:
    """:func:`pack_case` with the label maps of several methods.

    Args:
        image_file: the scan.
        found: method to its label map.
        reference: the true label map, if there is one.
        window: as in :func:`pack_case`.
        limit: as in :func:`pack_case`.

    Returns:
        as :func:`pack_case`, and ``methods``: method to its :data:`PREDICTION` and :data:`DIFFERENCE`.
    """
    scan = read_scan(image_file)
    shared = {} if reference is None else _read({REFERENCE: reference}, scan)
    labels: dict[Any, NDArray[Any]] = {**shared}
    for method, prediction in _read(found, scan).items():
        labels[method, PREDICTION] = prediction
        if shared:
            labels[method, DIFFERENCE] = _difference(prediction, shared[REFERENCE])
    packed = _pack(scan, labels, window, limit)
    maps = packed.pop("maps")
    methods = {
        method: {title: maps[method, title] for title in (PREDICTION, DIFFERENCE) if (method, title) in maps}
        for method in found
    }
    return {**packed, "maps": {title: maps[title] for title in shared}, "methods": methods}


def _read(maps: Mapping[str, StrPath], scan: Scan) -> dict[str, NDArray[Any]]:
    return {title: read_label(file, (0, 1, 2, IGNORED), of=scan).voxels for title, file in maps.items()}


def _pack(scan: Scan, labels: Mapping[Any, NDArray[Any]], window: Window | None, limit: int) -> dict[str, Any]:
    box = _box(scan, [*labels.values()], window)
    low, high = (float(value) for value in np.percentile(scan.voxels[box], PERCENTILES))
    for levels, step in STEPS:
        keep = _every(scan.affine, step)
        unit = np.clip((scan.voxels[box][keep] - low) / max(high - low, 1e-6), 0, 1)
        grey = np.round(unit * (levels - 1)) * (255 / (levels - 1))
        image = _nifti(grey, _affine(scan.affine, box, keep))
        if len(image) <= limit:
            break
    packed = {title: _nifti(volume[box][keep], _affine(scan.affine, box, keep)) for title, volume in labels.items()}
    order = [REFERENCE, PREDICTION, *labels]
    centre = _centre([labels[title] for title in order if title in labels], box)
    return {
        "image": image,
        "maps": packed,
        "levels": levels,
        "step": step,
        "shape": list(grey.shape),
        "centre": [round(float(mm), 2) for mm in apply_affine(scan.affine, centre)],
    }


def _difference(found: NDArray[Any], wanted: NDArray[Any]) -> NDArray[np.uint8]:
    structures = [*STRUCTURES.values()]
    both = np.where((found == wanted) & np.isin(found, structures), found, 0)
    only = np.where(np.isin(wanted, structures) & (found != wanted), ONLY_REFERENCE, 0)
    return np.where(np.isin(found, structures) & (found != wanted), ONLY_PREDICTED, both + only).astype(np.uint8)


def _box(scan: Scan, labels: Sequence[NDArray[Any]], window: Window | None) -> Box:
    shape = scan.voxels.shape
    if window is not None and window.found != WHOLE_SCAN:
        return voxel_box(window, shape, scan.affine)
    masks = [volume > 0 for volume in labels]
    places = np.argwhere(np.any(masks, axis=0)) if masks else np.empty((0, 3), int)
    if not len(places):
        return slice(0, shape[0]), slice(0, shape[1]), slice(0, shape[2])
    margin = np.ceil(MARGIN_MM / voxel_sizes(scan.affine)).astype(int)
    first = np.maximum(places.min(axis=0) - margin, 0)
    last = np.minimum(places.max(axis=0) + margin + 1, shape)
    x, y, z = (slice(int(a), int(b)) for a, b in zip(first, last, strict=True))
    return x, y, z


def _centre(labels: Sequence[NDArray[Any]], box: Box) -> NDArray[np.float64]:
    """The voxel of the first label map's VS, or of any structure, that is nearest to the middle of them."""
    for values in ([STRUCTURES["VS"]], [*STRUCTURES.values()]):
        for volume in labels:
            places = np.argwhere(np.isin(volume, values))
            if len(places):
                apart = np.linalg.norm(places - places.mean(axis=0), axis=1)
                return places[int(np.argmin(apart))].astype(np.float64)
    return np.asarray([(edge.start + edge.stop - 1) / 2 for edge in box])


def _every(affine: NDArray[np.float64], step: int) -> Box:
    """Every ``step``-th voxel of the two finer axes."""
    coarse = int(np.argmax(voxel_sizes(affine)))
    x, y, z = (slice(None, None, 1 if axis == coarse else step) for axis in range(3))
    return x, y, z


def _affine(affine: NDArray[np.float64], box: Box, keep: Box) -> NDArray[np.float64]:
    moved = affine.copy()
    moved[:3, 3] = affine[:3, :3] @ [edge.start for edge in box] + affine[:3, 3]
    moved[:3, :3] = affine[:3, :3] * [each.step for each in keep]
    return moved


def _nifti(voxels: NDArray[Any], affine: NDArray[np.float64]) -> str:
    image = nib.Nifti1Image(voxels.astype(np.uint8), affine)
    return base64.b64encode(gzip.compress(image.to_bytes(), mtime=0)).decode("ascii")
