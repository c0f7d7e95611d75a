"""Label maps read for comparison."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
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


def in_lps(voxels: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """A volume with its axes in the order and direction L, P, S, so that the last one runs through axial slices.

    Returns:
        The volume and mm per voxel along each of its axes.
    """
    turn = ornt_transform(io_orientation(affine), axcodes2ornt("LPS"))
    spacing = spacing_of(affine @ inv_ornt_aff(turn, voxels.shape))
    return apply_orientation(voxels, turn), spacing


def check_same_grid(
    file: str | os.PathLike[str], affine: NDArray[np.float64], other: NDArray[np.float64], shape: Any
) -> None:
    """Make sure that equal indices mean equal places in two volumes of one shape.

    Raises:
        InputError: if a corner of ``file`` lies more than half a voxel away from where the other grid has it.
    """
    corners = np.array([*np.ndindex(2, 2, 2)]) * (np.array(shape) - 1)
    shift = (affine - other) @ np.c_[corners, np.ones(8)].T
    if np.linalg.norm(shift[:3], axis=0).max() > 0.5 * min(spacing_of(other)):
        raise InputError(f"{file} lies more than half a voxel away from its reference: compare volumes of one grid.")


def labels_in(folder: str | os.PathLike[str] | None) -> dict[str, Path]:
    """The label maps ``<case>_Label.nii.gz`` of a folder, by case.

    Raises:
        InputError: if there is no such folder or no label map in it.
    """
    if folder is None:
        raise InputError(f"label_dir is not set: give the folder of the true label maps <case>{LABEL_ENDING}.")
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
    check_same_grid(pred_file, pred_affine, affine, truth.shape)
    return pred, truth, affine
