"""Label maps read for comparison."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.typing import NDArray

from plugins.data import Scan, label_files, read_label
from plugins.errors import InputError

LABEL_ENDING = "_Label.nii.gz"


def in_lps(voxels: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """A volume with its axes in the order and direction L, P, S, so that the last one runs through axial slices.

    Returns:
        The volume and mm per voxel along each of its axes.
    """
    turn = ornt_transform(io_orientation(affine), axcodes2ornt("LPS"))
    x, y, z = voxel_sizes(affine @ inv_ornt_aff(turn, voxels.shape))
    return apply_orientation(voxels, turn), (float(x), float(y), float(z))


def labels_in(folder: str | os.PathLike[str] | None) -> dict[str, Path]:
    """The label maps ``<case>_Label.nii.gz`` of a folder, by case.

    Raises:
        InputError: if there is no such folder or no label map in it, or as :func:`plugins.data.label_files`.
    """
    if folder is None:
        raise InputError(f"label_dir is not set. Give the folder of the true label maps <case>{LABEL_ENDING}.")
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder} is no folder. Give the folder of the label maps <case>{LABEL_ENDING}.")
    found = label_files(folder)
    if not found:
        raise InputError(f"{folder} has no file <case>{LABEL_ENDING}. Give the folder of the label maps.")
    return found


def read_pair(pred_file: Path, truth_file: Path) -> tuple[Scan, Scan]:
    """Read a prediction and its reference, and make sure that equal indices mean equal places.

    Raises:
        InputError: see :func:`plugins.data.read_label`.
    """
    truth = read_label(truth_file)
    return read_label(pred_file, of=truth), truth
