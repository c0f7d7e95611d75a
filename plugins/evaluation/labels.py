"""Label maps read for comparison."""

from __future__ import annotations

import os
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from plugins.errors import InputError

LABEL_ENDING = "_Label.nii.gz"
VALUES = (0, 1, 2)


def read_label(path: str | os.PathLike[str]) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
    """Read a label map, rounding its values (some releases store 0.9999999997 for 1).

    Returns:
        The label map :math:`(H, W, D)` and its affine (4, 4), voxel to mm.

    Raises:
        InputError: if the file cannot be read, is not a volume, or holds a value other than 0, 1, 2.
    """
    try:
        image = nib.load(path)
        values = np.rint(np.asanyarray(image.dataobj))
    except Exception as error:
        raise InputError(f"{path} cannot be read as a label map ({error}): give a NIfTI file.") from error
    if values.ndim != 3:
        raise InputError(f"{path} has {values.ndim} dimensions where a label map has 3: give one volume.")
    if not np.isin(values, VALUES).all():
        found = sorted({float(v) for v in np.unique(values)} - set(VALUES))[:5]
        raise InputError(f"{path} holds the labels {found}: only 0 background, 1 VS and 2 cochlea are known.")
    return values.astype(np.uint8), np.asarray(image.affine, dtype=np.float64)


def spacing_of(affine: NDArray[np.float64]) -> tuple[float, float, float]:
    """Mm per voxel along each axis: the norms of the affine's columns, whatever its rotation."""
    x, y, z = np.linalg.norm(affine[:3, :3], axis=0)
    return float(x), float(y), float(z)


def labels_in(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The label maps ``<case>_Label.nii.gz`` of a folder, by case.

    Raises:
        InputError: if there is no such folder or no label map in it.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder: give the folder of the label maps <case>{LABEL_ENDING}.")
    paths = sorted(p for p in folder.glob(f"*{LABEL_ENDING}") if not p.name.startswith("."))
    if not paths:
        raise InputError(f"{folder} has no file <case>{LABEL_ENDING}: give the folder of the label maps.")
    return {p.name.removesuffix(LABEL_ENDING): p for p in paths}


def read_pair(pred_file: Path, truth_file: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8], NDArray[np.float64]]:
    """Read a prediction and its reference, and make sure that equal indices mean equal places.

    Returns:
        Prediction and reference, each :math:`(H, W, D)`, and the reference's affine.

    Raises:
        InputError: as :func:`read_label`, and if the two differ in shape or lie more than half a voxel apart.
    """
    pred, pred_affine = read_label(pred_file)
    truth, affine = read_label(truth_file)
    if pred.shape != truth.shape:
        raise InputError(
            f"{pred_file} has the shape {pred.shape} but {truth_file} has {truth.shape}: "
            "compare label maps of one grid."
        )
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(truth.shape) - 1)
    shift = (pred_affine - affine) @ np.c_[corners, np.ones(8)].T
    if np.linalg.norm(shift[:3], axis=0).max() > 0.5 * min(spacing_of(affine)):
        raise InputError(
            f"{pred_file} and {truth_file} lie more than half a voxel apart: compare label maps of one grid."
        )
    return pred, truth, affine
