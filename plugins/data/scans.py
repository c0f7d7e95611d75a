"""The one reader of scans and label maps: place, units, values and labels by one rule each, for every part."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from nibabel.affines import apply_affine
from numpy.typing import NDArray
from torch import Tensor

from plugins.data.dicom import read_series
from plugins.data.nifti import Grid, read_header, read_stored
from plugins.errors import InputError

StrPath = str | os.PathLike[str]

PLACE_MM = 0.04
"""How far a label map may lie off its scan: a tenth of the finest voxel in CrossMoDA."""
ROUNDING = 0.01
LARGEST = 1e18  # whose square float32 still holds
VS, COCHLEA = 1, 2
LABEL_VALUES = (0, VS, COCHLEA)
STRUCTURES = {"VS": VS, "cochlea": COCHLEA}


@dataclass(frozen=True)
class Scan(Grid):
    """A scan, or a label map, in memory.

    Attributes:
        voxels: (X, Y, Z), float32; uint8 of a label map.
    """

    voxels: NDArray[Any]

    @property
    def grid(self) -> Grid:
        """Its place alone, so that the voxels can be forgotten."""
        return Grid(self.path, self.shape, self.affine, self.header)


def read_grid(path: StrPath) -> Grid:
    """Where the voxels of a scan lie; of a NIfTI file its header alone is read.

    Raises:
        InputError: see :func:`read_scan`.
    """
    return read_scan(path) if os.path.isdir(path) else read_header(Path(path))


def read_scan(path: StrPath) -> Scan:
    """Read a NIfTI file, whatever its name, or a folder with one DICOM series.

    The affine is nibabel's: the sform, else the qform, else pixdim; where sform and pixdim give other voxel sizes the
    sform holds, and a warning names both. Metres and micrometres of the header become mm. A fourth dimension of one is
    left out.

    Raises:
        InputError: if the file is missing, unreadable, cut off or corrupt, declares more than it holds or than can be
            held, is not 3D or empty, has a geometry that is sheared or cannot be inverted, or values that are not
            finite in float32.
    """
    path = Path(path)
    if path.is_dir():
        voxels, affine = read_series(path)
        x, y, z = voxels.shape
        return Scan(path, (x, y, z), affine, None, _finite(path, voxels))
    image, grid = read_stored(path)
    voxels = _finite(path, _values(path, image).reshape(grid.shape))
    return Scan(path, grid.shape, grid.affine, grid.header, voxels)


def read_label(path: StrPath, values: Sequence[int] = LABEL_VALUES, of: Grid | None = None) -> Scan:
    """Read a label map; values are rounded (some releases store 0.9999999997 for 1).

    Args:
        path: a NIfTI file.
        values: that it may hold.
        of: the grid that it must lie on, and whose affine it gets.

    Raises:
        InputError: see :func:`read_scan`; if a value is further than 0.01 from those known, if one that is not 0 would
            be rounded to 0, or as :func:`check_same_grid`.
    """
    path = Path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder where a label map is expected. Give a NIfTI file.")
    image, grid = read_stored(path)
    if of is not None:
        check_same_grid(grid, of)
    voxels = _values(path, image).reshape(grid.shape)
    _finite(path, voxels)
    rounded = np.rint(voxels)
    foreign = ~np.isin(rounded, values) | (np.abs(voxels - rounded) > ROUNDING) | ((rounded == 0) & (voxels != 0))
    if foreign.any():
        found = np.unique(voxels[foreign])
        shown = ", ".join(f"{value:g}" for value in found[:8]) + (", ..." if len(found) > 8 else "")
        allowed = ", ".join(str(value) for value in values)
        raise InputError(f"{path}: holds the label values {shown}, but only {allowed} are known. Relabel it.")
    affine = grid.affine if of is None else of.affine
    return Scan(path, grid.shape, affine, grid.header, rounded.astype(np.uint8))


def read_probabilities(path: StrPath, of: Grid) -> NDArray[np.float32]:
    """Read a NIfTI file with probabilities along its last axis, on the grid of a scan.

    Returns:
        (K, X, Y, Z).

    Raises:
        InputError: see :func:`read_scan` and :func:`check_same_grid`.
    """
    image, grid = read_stored(Path(path), axes=4)
    check_same_grid(grid, of)
    return np.moveaxis(_finite(grid.path, _values(grid.path, image)), -1, 0)


def read_slice(path: StrPath, index: int) -> Tensor:
    """One slice of an uncompressed file of our own, float32 :math:`(1, X, Y)`; the rest stays on disk."""
    pixels = nib.load(path).dataobj[..., index]
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))[None]


def check_same_grid(grid: Grid, of: Grid) -> None:
    """Make sure that equal indices mean equal places in two volumes.

    Raises:
        InputError: if the shapes differ, or a corner lies more than :data:`PLACE_MM` off.
    """
    if grid.shape != of.shape:
        raise InputError(
            f"{grid.path}: has shape {grid.shape}, but {of.path} has {of.shape}. "
            "Resample it to the scan or pair it with the right one."
        )
    corners = np.array([*product(*((0, size - 1) for size in of.shape))])
    apart = np.linalg.norm(apply_affine(grid.affine, corners) - apply_affine(of.affine, corners), axis=1).max()
    if apart > PLACE_MM:
        raise InputError(
            f"{grid.path}: its affine places it up to {apart:.3g} mm away from {of.path}. "
            "Resample it to the scan or correct its header."
        )


def _values(path: Path, image: nib.Nifti1Image) -> NDArray[Any]:
    values = np.asanyarray(image.dataobj)
    if values.dtype.kind not in "biuf":
        raise InputError(f"{path}: holds {values.dtype} values. Export it with one real number a voxel.")
    return values


def _finite(path: Path, values: NDArray[Any]) -> NDArray[np.float32]:
    with np.errstate(over="ignore"):
        voxels = np.asarray(values, dtype=np.float32)
    bad = np.count_nonzero(~(np.abs(voxels) <= LARGEST))
    if bad:
        fault = f"{bad} voxels are NaN or infinite, or beyond {LARGEST:g}, too large for float32"
        raise InputError(f"{path}: {fault}. Replace them or export the scan again.")
    return voxels
