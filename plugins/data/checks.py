"""What every scan must be before anything is computed from it."""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.filebasedimages import ImageFileError
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from plugins.data.dicom import read_series
from plugins.errors import InputError
from plugins.progress import Progress

MAX_MISPLACEMENT_MM = 0.01
MAX_ROUNDING = 0.1

_CHUNK_BYTES = 1 << 20
_UNREADABLE = (ImageFileError, HeaderDataError, EOFError, OSError, zlib.error, ValueError)


def check_scans(items: Sequence[Mapping[str, Any]], label_values: Sequence[int] = (0, 1, 2)) -> None:
    """Read every scan and label of a datalist completely, one at a time, and refuse what would fail or mislead later.

    Oblique and flipped scans are valid, and so is a label map without any structure. Label values are rounded, never
    truncated: 0.9999999997 is 1.

    Args:
        items: ``{"image", ...}`` and ``"label"`` where there is one; paths of NIfTI files of shape (X, Y, Z).
        label_values: the values that a label may hold once rounded.

    Raises:
        InputError: if a file is missing, unreadable, cut off or corrupt, not 3D, empty, or without voxels; if it has
            values that are not finite, or a geometry that cannot be inverted; if an image is constant; if a label has
            another shape or another place than its image, or holds foreign values.
    """
    with Progress(total=len(items), description="checking scans") as progress:
        for item in items:
            check_scan(item, label_values)
            progress.advance()


def check_scan(item: Mapping[str, Any], label_values: Sequence[int] = (0, 1, 2)) -> None:
    """:func:`check_scans` for one scan; a folder is taken for a DICOM series."""
    image_path = Path(item["image"])
    image, image_affine = read_series(image_path) if image_path.is_dir() else _read(image_path)
    if image.min() == image.max():
        raise InputError(f"{image_path}: every voxel is {image.flat[0]:g}; export the scan again or leave it out.")
    shape = image.shape
    del image
    if "label" not in item:
        return
    label_path = Path(item["label"])
    label, label_affine = _read(label_path)
    if label.shape != shape:
        raise InputError(
            f"{label_path}: has shape {label.shape}, but its scan {image_path.name} has {shape}; "
            "resample the label to the scan or pair it with the right one."
        )
    misplacement = _misplacement_mm(image_affine, label_affine, shape)
    if misplacement > MAX_MISPLACEMENT_MM:
        raise InputError(
            f"{label_path}: its affine places it up to {misplacement:.3g} mm away from its scan {image_path.name}; "
            "resample the label to the scan or correct its header."
        )
    _check_values(label_path, label, label_values)


def _read(path: Path) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Voxels of shape (X, Y, Z), scaled as the header says, and the affine from voxel to world mm."""
    if not path.is_file():
        raise InputError(f"{path}: does not exist; restore it or correct the path.")
    try:
        _read_to_the_end(path)
        scan = nib.load(path)
        if not isinstance(scan, nib.Nifti1Image):
            raise ImageFileError("another format")
        _check_geometry(path, scan.shape, scan.affine, _stored_spacing(path, type(scan.header)))
        voxels = np.asarray(scan.dataobj)
    except InputError:
        raise
    except _UNREADABLE as error:
        raise InputError(f"{path}: cannot be read as NIfTI ({_one_line(error)}); copy or export it again.") from error
    if voxels.dtype.kind not in "biuf":
        raise InputError(f"{path}: holds {voxels.dtype} values; export it with one real number a voxel.")
    bad = np.count_nonzero(~np.isfinite(voxels))
    if bad:
        raise InputError(f"{path}: {bad} voxels are NaN or infinite; replace them or export the scan again.")
    return voxels, scan.affine


def _read_to_the_end(path: Path) -> None:
    """Let gzip compare its checksum, which nibabel never reaches."""
    if path.suffix == ".gz":
        with gzip.open(path) as file:
            while file.read(_CHUNK_BYTES):
                pass


def _stored_spacing(path: Path, header_type: Any) -> NDArray[np.floating[Any]]:
    """The spacing as it stands in the file: nibabel turns a zero into a one when it loads."""
    with ImageOpener(os.fspath(path)) as file:
        spacing: NDArray[np.floating[Any]] = header_type.from_fileobj(file, check=False)["pixdim"][1:4]
    return spacing


def _check_geometry(
    path: Path, shape: tuple[int, ...], affine: NDArray[np.float64], spacing: NDArray[np.floating[Any]]
) -> None:
    if len(shape) == 4 and shape[3] == 1:
        raise InputError(
            f"{path}: is 4D with a last dimension of one ({shape}); save it as 3D, without that dimension."
        )
    if len(shape) != 3:
        raise InputError(f"{path}: is {len(shape)}D ({shape}); save each volume as a 3D file of its own.")
    if 0 in shape:
        raise InputError(f"{path}: has no voxels (shape {shape}); export the scan again.")
    if not np.all(np.isfinite(spacing)) or np.any(spacing == 0):
        numbers = ", ".join(f"{value:g}" for value in spacing)
        raise InputError(f"{path}: the voxel spacing in its header is ({numbers}) mm; correct the header.")
    columns = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(np.isfinite(affine)) or np.any(columns == 0) or _flatness(affine, columns) < 1e-6:
        raise InputError(f"{path}: its affine cannot be inverted; correct the sform or qform in the header.")


def _flatness(affine: NDArray[np.float64], columns: NDArray[np.float64]) -> float:
    return float(abs(np.linalg.det(affine[:3, :3] / columns)))


def _misplacement_mm(a: NDArray[np.float64], b: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """How far apart two affines put a corner of the volume, at most."""
    corners = np.array([[*corner, 1] for corner in product(*((0, size - 1) for size in shape))])
    return float(np.linalg.norm(corners @ (a - b)[:3].T, axis=1).max())


def _check_values(path: Path, label: NDArray[Any], label_values: Sequence[int]) -> None:
    rounded = np.rint(label)
    foreign = ~np.isin(rounded, label_values) | (np.abs(label - rounded) > MAX_ROUNDING)
    if foreign.any():
        values = np.unique(label[foreign])
        shown = ", ".join(f"{value:g}" for value in values[:8]) + (", ..." if len(values) > 8 else "")
        allowed = ", ".join(str(value) for value in label_values)
        raise InputError(f"{path}: holds the label values {shown}; only {allowed} are known, so relabel it.")


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split()).rstrip(".") or type(error).__name__
