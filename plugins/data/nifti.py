"""NIfTI files: where their voxels lie, and how they are read; for :mod:`plugins.data.scans` alone."""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from math import prod
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import voxel_sizes
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError
from numpy.typing import NDArray

from plugins.errors import InputError

SAME_SIZE = 5e-4  # share by which the voxel sizes of sform and pixdim may differ
MAX_SHEAR = 1e-3  # cosine between two axes
MAX_VOXELS = 2**30

_MM = {1: 1000.0, 3: 0.001}  # of a metre, of a micrometre; without a unit it is mm
_KINDS = {(348, b"n+1"): nib.Nifti1Image, (540, b"n+2"): nib.Nifti2Image}
_GZIP, _DEFLATE_RATIO = b"\x1f\x8b", 1032
_CHUNK_BYTES, _CHUNKS_BEHIND = 1 << 20, 16
_UNREADABLE = (
    ImageFileError, HeaderDataError, WrapStructError, EOFError, OSError, zlib.error, ValueError, KeyError, MemoryError,
)  # fmt: skip
_logger = logging.getLogger(__name__)
_quiet = logging.getLogger(f"{__name__}.header")  # what nibabel finds is raised, or mended
_quiet.disabled = True


@dataclass(frozen=True)
class Grid:
    """Where the voxels of a file lie.

    Attributes:
        path: of the file, or of the folder of a DICOM series.
        shape: three axes.
        affine: from voxel to the world (R, A, S) in mm, whatever the unit of the file.
        header: of the NIfTI file as it is; ``None`` for a DICOM series.
    """

    path: Path
    shape: tuple[int, int, int]
    affine: NDArray[np.float64]
    header: nib.Nifti1Header | None

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Mm per voxel along each axis."""
        x, y, z = voxel_sizes(self.affine)
        return float(x), float(y), float(z)

    @property
    def voxel_mm3(self) -> float:
        """Volume of a voxel."""
        return abs(float(np.linalg.det(self.affine[:3, :3])))

    def image(self, voxels: NDArray[Any], dtype: type) -> nib.Nifti1Image:
        """An image of other voxels on this grid, to be saved: geometry, unit and format are those of the file.

        Args:
            voxels: (X, Y, Z), or with further axes.
            dtype: stored.

        Raises:
            ValueError: if the voxels have another shape.
        """
        if voxels.shape[:3] != self.shape:
            raise ValueError(f"{self.path}: the result has shape {voxels.shape}, its scan {self.shape}")
        voxels = voxels.astype(dtype, copy=False)
        if self.header is None:
            image = nib.Nifti1Image(voxels, self.affine)
            image.header.set_xyzt_units("mm")
            return image
        header = self.header.copy()
        if voxels.ndim == 3:
            voxels = voxels.reshape(header.get_data_shape())
        header.set_data_dtype(dtype)
        header.set_slope_inter(1, 0)
        header["cal_min"] = header["cal_max"] = 0  # the window of the scan's intensities
        return type_of(header)(voxels, None, header)

    @property
    def is_plain(self) -> bool:
        """Whether readers that go by the name and take voxel sizes from pixdim see the same volume."""
        if self.header is None or not self.path.name.endswith((".nii", ".nii.gz")):
            return False
        if is_packed(self.path) != self.path.name.endswith(".gz"):
            return False
        sizes = np.array(self.header.get_zooms()[:3])
        return self.header.get_data_shape() == self.shape and np.allclose(sizes, self.spacing, rtol=1e-5, atol=0)


def new_image(voxels: NDArray[Any], affine: NDArray[np.float64], sform_code: int = 1) -> nib.Nifti1Image:
    """An image that no file was before; the affine leads to mm."""
    image = nib.Nifti1Image(voxels, affine)
    image.header.set_xyzt_units("mm")
    image.set_qform(affine, code=1)
    image.set_sform(affine, code=sform_code)
    return image


def is_packed(path: Path) -> bool:
    """Whether a file is packed by gzip, whatever its name."""
    with path.open("rb") as file:
        return file.read(2) == _GZIP


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, int]]:
    """The content of a file, unpacked if it is packed, and how many bytes that can be; failures become sentences."""
    if not path.exists():
        broken = "is a link to a file that does not exist" if path.is_symlink() else "does not exist"
        raise InputError(f"{path}: {broken}. Restore it or correct the path.")
    try:
        packed, size = is_packed(path), path.stat().st_size
        with (gzip.open if packed else open)(path, "rb") as file:
            yield file, size * (_DEFLATE_RATIO if packed else 1)
    except InputError:
        raise
    except _UNREADABLE as error:
        reason = " ".join(str(error).split()).rstrip(".") or type(error).__name__
        raise InputError(f"{path}: cannot be read as NIfTI ({reason}). Copy or export it again.") from error


def read_header(path: Path) -> Grid:
    """The grid of a file, of which its header alone is read."""
    with _opened(path) as (file, size):
        _, header, pixdim = _header(path, file, size)
        return _grid(path, header, pixdim)


def read_stored(path: Path, axes: int = 3) -> tuple[nib.Nifti1Image, Grid]:
    """An image with the voxels as they are stored, read to its end so that gzip compares its checksum, and its grid.

    Args:
        path: of any name.
        axes: of the image, 3 or 4; further ones of one are left to the caller.

    Raises:
        InputError: see :func:`plugins.data.read_scan`.
    """
    with _opened(path) as (file, size):
        head, header, pixdim = _header(path, file, size, axes)
        _grid(path, header, pixdim)
        content, end = BytesIO(), _end(header)
        content.write(head)
        while content.tell() < end and (chunk := file.read(min(_CHUNK_BYTES, end - content.tell()))):
            content.write(chunk)
        if content.tell() < end:
            raise ImageFileError(f"its header declares {end} bytes, it holds {content.tell()}")
        if sum(bool(file.read(_CHUNK_BYTES)) for _ in range(_CHUNKS_BEHIND)) == _CHUNKS_BEHIND:
            raise ImageFileError("it holds far more than its header declares")
        content.seek(0)
        image = type_of(header).from_stream(content)
        return image, _grid(path, image.header, pixdim)


def type_of(header: nib.Nifti1Header) -> Any:
    """The kind of image that a header belongs to."""
    return nib.Nifti2Image if isinstance(header, nib.Nifti2Header) else nib.Nifti1Image


def affine_of(header: nib.Nifti1Header) -> NDArray[np.float64]:
    """From voxel to the world in mm: by the sform, else the qform, else pixdim, in the unit of the header."""
    mm = _mm(header)
    return np.diag([mm, mm, mm, 1]) @ np.asarray(header.get_best_affine(), np.float64)


def _mm(header: nib.Nifti1Header) -> float:
    return _MM.get(int(header["xyzt_units"]) % 8, 1.0)


def _end(header: nib.Nifti1Header) -> int:
    """Bytes of a file without what may follow its voxels."""
    voxels = prod(int(size) for size in header.get_data_shape())
    return int(header.get_data_offset()) + voxels * header.get_data_dtype().itemsize


def _header(path: Path, file: Any, size: int, axes: int = 3) -> tuple[bytes, nib.Nifti1Header, NDArray[Any]]:
    """What was read, the header, and pixdim as it stands there: nibabel turns a zero into a one."""
    head = file.read(540)
    length = min(int.from_bytes(head[:4], order) for order in ("little", "big"))
    magic = head[4:7] if length == 540 else head[344:347]
    if magic == b"ni1":
        raise ImageFileError("one of a pair of .hdr and .img, which is not supported")
    if (length, magic) not in _KINDS:
        raise ImageFileError("another format")
    kind = _KINDS[length, magic].header_class
    header = kind(head[:length], check=False)
    pixdim = header["pixdim"][1:4].copy()
    header.check_fix(_quiet, logging.ERROR)
    shape = header.get_data_shape()
    _check_shape(path, shape, axes)
    if header.get_data_offset() < length:
        raise ImageFileError("its voxels would begin within its header")
    if _end(header) > size:
        raise ImageFileError(f"its header declares {_end(header):.3g} bytes, it holds {size:.3g} at most")
    return head, header, pixdim


def _grid(path: Path, header: nib.Nifti1Header, pixdim: NDArray[Any]) -> Grid:
    x, y, z = (int(size) for size in header.get_data_shape()[:3])
    if not np.all(np.isfinite(pixdim)) or np.any(pixdim == 0):
        numbers = ", ".join(f"{value:g}" for value in pixdim)
        raise InputError(f"{path}: the voxel spacing in its header is ({numbers}) mm. Correct the header.")
    affine = affine_of(header)
    columns = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.all(np.isfinite(affine)) or np.any(columns == 0):
        raise InputError(f"{path}: its affine cannot be inverted. Correct the sform or qform in the header.")
    cosines = (affine[:3, :3] / columns).T @ (affine[:3, :3] / columns)
    shear = float(np.abs(cosines - np.eye(3)).max())
    if shear > MAX_SHEAR:
        fault = "cannot be inverted" if abs(np.linalg.det(affine[:3, :3] / columns)) < 1e-6 else "is sheared"
        raise InputError(f"{path}: its affine {fault}. Resample it to a grid with right angles or correct its header.")
    sizes = _mm(header) * np.abs(pixdim)
    if header["sform_code"] > 0 and not np.allclose(columns, sizes, rtol=SAME_SIZE, atol=0):
        sform, sizes = (" x ".join(f"{n:.5g}" for n in each) for each in (columns, sizes))
        _warn_once(f"{path}: its sform has voxels of {sform} mm, its pixdim of {sizes} mm; the sform holds.")
    return Grid(path, (x, y, z), affine, header)


@lru_cache(maxsize=4096)
def _warn_once(sentence: str) -> None:
    _logger.warning(sentence)


def _check_shape(path: Path, shape: tuple[int, ...], axes: int) -> None:
    if len(shape) < axes or any(size != 1 for size in shape[axes:]):
        raise InputError(f"{path}: is {len(shape)}D ({shape}). Save each volume as a {axes}D file of its own.")
    if min(shape) < 1:
        raise InputError(f"{path}: has no voxels (shape {shape}). Export the scan again.")
    if prod(int(size) for size in shape) > MAX_VOXELS:
        numbers = " x ".join(str(size) for size in shape)
        raise InputError(f"{path}: has {numbers} voxels, more than can be held. Crop it or correct its header.")
