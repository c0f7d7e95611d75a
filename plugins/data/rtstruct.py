"""Contours of a DICOM RT Structure Set as a label map of their scan; needs the extra ``dicom``."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from plugins.data.dicom import needed
from plugins.data.names import shown
from plugins.errors import InputError

StrPath = str | os.PathLike[str]
Contours = list[NDArray[np.float64]]

CONTOUR_NAMES = {1: ("VS", "TV", "AN"), 2: ("cochlea", "cochlea_c", "cochlea_d")}
"""Label: the names that VS-SEG gives to the contours of it; capitals do not matter."""

MAX_TILT = 0.5
"""Slices from the lowest to the highest point of a contour."""
MAX_OFFSET = 0.25
"""Slices from any contour to the nearest slice."""
_logger = logging.getLogger(__name__)


def read_contours(path: StrPath) -> list[tuple[str, Contours]]:
    """The closed contours of every structure.

    Args:
        path: of the RT Structure Set.

    Returns:
        Name, which several structures may share, and contours of points (N, 3) in RAS mm.

    Raises:
        InputError: if the file cannot be read or is no RT Structure Set.
    """
    pydicom = needed("pydicom", path)
    try:
        content = pydicom.dcmread(path)
        if content.get("Modality") != "RTSTRUCT":
            raise InputError(f"{path}: is no RT Structure Set. Name the file of modality RTSTRUCT.")
        names = {int(roi.ROINumber): str(roi.ROIName).strip() for roi in content.StructureSetROISequence}
        found: dict[int, Contours] = {}
        for roi in content.ROIContourSequence:
            points = found.setdefault(int(roi.ReferencedROINumber), [])
            points += [_points(contour) for contour in roi.get("ContourSequence") or [] if _is_closed(contour)]
        return [(names[number], contours) for number, contours in found.items()]
    except InputError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read as an RT Structure Set ({reason}). Export it again.") from error


def referenced_series(content: Any) -> str:
    """``SeriesInstanceUID`` of the series that a structure set was drawn on; empty if it does not say."""
    for frame in content.get("ReferencedFrameOfReferenceSequence") or []:
        for study in frame.get("RTReferencedStudySequence") or []:
            for series in study.get("RTReferencedSeriesSequence") or []:
                return str(series.SeriesInstanceUID)
    return ""


def draw_labels(
    path: StrPath, shape: Sequence[int], affine: NDArray[np.float64], names: Mapping[int, Sequence[str]] = CONTOUR_NAMES
) -> tuple[NDArray[np.uint8], list[str]]:
    """Fill contours on the grid of a scan: a voxel belongs to a structure if its centre lies within the contour.

    A contour of a structure within another one of it in the same slice is a hole; others are united. Structures of one
    label are united too. Where labels overlap, the higher one stays. A warning names slices that a structure skips.

    Args:
        path: of the RT Structure Set.
        shape: (X, Y, Z) of the scan; the contours lie in the planes of X and Y.
        affine: from voxel to RAS mm.
        names: label: names of the structures that become it.

    Returns:
        Labels (X, Y, Z), and the names of the structures that are in no list.

    Raises:
        InputError: if the file is none, or if the contours lie outside the scan, not in its slices or in few of them.
    """
    contours = read_contours(path)
    label_of = {name.casefold(): label for label, several in names.items() for name in several}
    labels = np.zeros(shape, dtype=np.uint8)
    for name, drawn in sorted(contours, key=lambda each: label_of.get(each[0].casefold(), 0)):
        label = label_of.get(name.casefold())
        if label and drawn:
            labels[_filled(path, name, drawn, labels.shape, np.linalg.inv(affine))] = label
    return labels, sorted({name for name, _ in contours if name.casefold() not in label_of})


def _filled(
    path: StrPath, name: str, contours: Contours, shape: tuple[int, ...], to_voxel: NDArray[np.floating[Any]]
) -> NDArray[np.bool_]:
    filled = np.zeros(shape, dtype=bool)
    voxels = [apply_affine(to_voxel, contour) for contour in contours]
    heights = np.array([float(contour[:, 2].mean()) for contour in voxels])
    tilt = max(float(np.ptp(contour[:, 2])) for contour in voxels)
    indices = np.rint(heights).astype(int)
    if tilt > MAX_TILT or np.abs(heights - indices).max() > MAX_OFFSET:
        raise InputError(f"{path}: the contours of {name} do not lie in the slices of the scan. Name the scan of them.")
    used = np.unique(indices)
    steps = np.diff(used)
    if len(steps) > 1 and steps.min() > 1:
        cure = "Name the scan they were drawn on, or draw every slice"
        raise InputError(f"{path}: the contours of {name} are {steps.min()} slices of the scan apart. {cure}.")
    for contour, index in zip(voxels, indices, strict=True):
        beyond = (contour[:, :2] < -0.5) | (contour[:, :2] > np.array(shape[:2]) - 0.5)
        if beyond.any() or not 0 <= index < shape[2]:
            raise InputError(f"{path}: the contours of {name} reach beyond the scan. Name the scan they were drawn on.")
    for index in used:
        drawn = [contour[:, :2] for contour, at in zip(voxels, indices, strict=True) if at == index]
        filled[:, :, index] = _united([polygon2mask(shape[:2], contour) for contour in drawn])
    if not filled.any():
        raise InputError(f"{path}: the contours of {name} hold no voxel of the scan. Name the scan they were drawn on.")
    skipped = sorted({*range(used[0], used[-1])} - {*used.tolist()})
    if skipped:
        slices = f"{shown([*map(str, skipped)])}, counted from 0"
        _logger.warning(
            f"{path}: {name} has no contour on some slices between others ({slices}). Draw what is missing."
        )
    return filled


def _united(masks: list[NDArray[np.bool_]]) -> NDArray[np.bool_]:
    """What contours of a slice enclose: one within another is a hole, one within a hole is not; others add up."""
    united = np.zeros_like(masks[0])
    depths: list[tuple[NDArray[np.bool_], int]] = []
    for mask in sorted(masks, key=np.count_nonzero, reverse=True):
        if any(np.array_equal(mask, other) for other, _ in depths):  # drawn twice
            continue
        depth = 1 + max((depth for other, depth in depths if not (mask & ~other).any()), default=-1)
        united[mask] = depth % 2 == 0
        depths.append((mask, depth))
    return united


def _is_closed(contour: Any) -> bool:
    return str(contour.ContourGeometricType).startswith("CLOSED") and len(contour.ContourData) >= 9


def _points(contour: Any) -> NDArray[np.float64]:
    lps = np.array(contour.ContourData, dtype=float).reshape(-1, 3)
    if not np.isfinite(lps).all():
        raise ValueError("a point of a contour is not finite")
    return lps * (-1, -1, 1)


def is_structure_set(path: Path) -> bool:
    """Whether a file is a DICOM file of modality RTSTRUCT."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        if file.read(132)[128:] != b"DICM":
            return False
    header = needed("pydicom", path).dcmread(path, stop_before_pixels=True, specific_tags=["Modality"])
    return bool(header.get("Modality") == "RTSTRUCT")
