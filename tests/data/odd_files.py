"""Odd files: those that must be read, each with where its voxels lie, and those that must be refused."""

from __future__ import annotations

import gzip
import hashlib
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.affines import from_matvec

SHAPE, SPACING, ORIGIN = (22, 18, 14), (1.0, 1.2, 1.5), (-9.0, 12.0, 5.0)
TURN = np.linalg.svd([[0.94, -0.30, 0.12], [0.32, 0.93, -0.15], [-0.07, 0.18, 0.98]])
OBLIQUE, AXIAL = TURN[0] @ TURN[2], np.eye(3)
DIM, DATATYPE, PIXDIM, OFFSET, SLOPE, QUATERNION, SROW = 40, 70, 80, 108, 112, 256, 280  # bytes of a header


def placed(directions: Any = AXIAL, spacing: Any = SPACING, origin: Any = ORIGIN) -> Any:
    return from_matvec(np.asarray(directions) @ np.diag(spacing), origin)


def box(shape: Any) -> tuple[slice, ...]:
    """The voxels that are bright: not in the middle, of another size along each axis, one at least."""
    starts = [int(0.55 * n) for n in shape]
    return tuple(slice(low, max(low + 1, int(0.8 * n))) for low, n in zip(starts, shape, strict=True))


def voxels(shape: Any = SHAPE, low: float = 100, high: float = 900, dtype: Any = np.int16) -> Any:
    """Tissue with a bright box."""
    values = low + 0.02 * (high - low) * np.random.default_rng(0).integers(-2, 3, shape)
    values[box(shape)] = high
    return values.astype(dtype)


@dataclass
class Odd:
    """A file to be read.

    Attributes:
        path: as it is given.
        affine: where its voxels lie, in mm.
        shape: of its volume.
        case: that it must get.
    """

    path: Path
    affine: Any
    shape: tuple[int, ...]
    case: str


class Maker:
    """Writes one odd file into a folder, named after the case."""

    def __init__(self, folder: Path, case: str):
        self.folder, self.case = folder, case

    def done(self, path: Path, affine: Any, shape: Any = SHAPE) -> Odd:
        return Odd(path, np.asarray(affine, float), tuple(shape[:3]), self.case)

    def save(
        self,
        values: Any = None,
        affine: Any = None,
        edit: Callable[[Any], Any] | None = None,
        ending: str = "_hrT2.nii.gz",
        kind: Any = nib.Nifti1Image,
        scale: float = 1,
        mm: Any = None,
    ) -> Odd:
        """Write voxels; ``edit`` changes the image before, ``scale`` is the length of a mm in the unit of the file."""
        values = voxels() if values is None else values
        mm = placed() if mm is None and affine is None else affine if mm is None else mm
        stored = np.diag([scale, scale, scale, 1]) @ (mm if affine is None else affine)
        image = kind(values, stored)
        if edit is not None:
            edit(image)
        path = self.folder / f"{self.case}{ending}"
        nib.save(image, path)
        return self.done(path, mm, values.shape)

    def patched(self, offset: int, content: Any, values: Any = None, affine: Any = None) -> Odd:
        """Write an uncompressed file and change some of its bytes."""
        odd = self.save(values, affine, ending="_hrT2.nii")
        data = bytearray(odd.path.read_bytes())
        content = content if isinstance(content, bytes) else np.asarray(content).tobytes()
        data[offset : offset + len(content)] = content
        odd.path.write_bytes(data)
        return odd

    def repacked(self, change: Callable[[bytes], bytes], ending: str = "_hrT2.nii.gz") -> Odd:
        odd = self.save(ending=ending)
        odd.path.write_bytes(change(odd.path.read_bytes()))
        return odd

    def linked(self, target: str) -> Odd:
        odd = self.save(ending="_hrT2.nii.gz")
        store = self.folder / ".store" / (target or hashlib.sha256(odd.path.read_bytes()).hexdigest())
        store.parent.mkdir(exist_ok=True)
        odd.path.rename(store)
        odd.path.symlink_to(os.path.relpath(store, odd.path.parent))
        return odd


def codes(sform: int, qform: int) -> Callable[[Any], None]:
    def edit(image: Any) -> None:
        affine = image.affine.copy()
        image.set_sform(affine if sform else None, sform)
        image.set_qform(affine if qform else None, qform)

    return edit


def header(**values: Any) -> Callable[[Any], None]:
    def edit(image: Any) -> None:
        for key, value in values.items():
            image.header[key] = value

    return edit


def pixdim(factors: Any) -> Callable[[Any], None]:
    def edit(image: Any) -> None:
        image.header["pixdim"][1:4] *= factors

    return edit


def qform_elsewhere(image: Any) -> None:
    image.set_sform(image.affine, 1)
    image.set_qform(placed(OBLIQUE, SPACING, (80, 80, 80)), 1)


def scaled(image: Any) -> None:
    image.header.set_slope_inter(0.5, 10)


def extended(image: Any) -> None:
    image.header.extensions.append(nib.nifti1.Nifti1Extension("comment", b"a note " * 20))


def big_endian(kind: Any) -> Callable[..., Any]:
    def make(values: Any, affine: Any) -> Any:
        return kind(values.astype(values.dtype.newbyteorder(">")), affine, kind.header_class(endianness=">"))

    return make


def pixdim_only(m: Maker) -> Odd:
    odd = m.save(affine=placed(), edit=codes(0, 0))
    return m.done(odd.path, nib.load(odd.path).header.get_base_affine())


def two_members(content: bytes) -> bytes:
    plain = gzip.decompress(content)
    return gzip.compress(plain[:500]) + gzip.compress(plain[500:])


def series(m: Maker) -> Odd:
    from ..dicom_series import write_series

    affine = placed(np.diag([-1.0, -1, 1]) @ OBLIQUE)
    return m.done(write_series(m.folder / m.case, voxels(dtype=np.uint16), affine), affine)


GOOD: dict[str, Callable[[Maker], Odd]] = {
    "plain": lambda m: m.save(),
    "uncompressed": lambda m: m.save(ending="_hrT2.nii"),
    "ending in capitals": lambda m: m.save(ending="_hrT2.NII.GZ"),
    "contrast in small letters": lambda m: m.save(ending="_hrt2.nii.gz"),
    "name with  spaces": lambda m: m.save(),
    "Müller-Lüdenscheidt 東京 №1": lambda m: m.save(),
    "$x_1$ #2 %20?": lambda m: m.save(),
    "n" * 190: lambda m: m.save(),
    "link": lambda m: m.linked("scan.nii.gz"),
    "link to content without a name": lambda m: m.linked(""),
    "packed under another name": lambda m: m.repacked(gzip.compress, "_hrT2.nii"),
    "not packed as named": lambda m: m.repacked(gzip.decompress),
    "two gzip members": lambda m: m.repacked(two_members),
    "zeros behind gzip": lambda m: m.repacked(lambda content: content + bytes(512)),
    "bytes behind the voxels": lambda m: m.repacked(lambda content: content + b"end" * 99, "_hrT2.nii"),
    "NIfTI-2": lambda m: m.save(kind=nib.Nifti2Image),
    "big-endian": lambda m: m.save(kind=big_endian(nib.Nifti1Image)),
    "big-endian NIfTI-2": lambda m: m.save(kind=big_endian(nib.Nifti2Image)),
    "header extension": lambda m: m.save(edit=extended),
    "negative pixdim": lambda m: m.patched(PIXDIM, -np.float32(SPACING)),
    "sform only": lambda m: m.save(affine=placed(OBLIQUE), edit=codes(2, 0)),
    "qform only": lambda m: m.save(affine=placed(OBLIQUE), edit=codes(0, 1)),
    "mirrored qform only": lambda m: m.save(affine=placed(OBLIQUE @ np.diag([-1, 1, 1])), edit=codes(0, 1)),
    "pixdim only": pixdim_only,
    "qform elsewhere": lambda m: m.save(edit=qform_elsewhere),
    "pixdim of one": lambda m: m.save(edit=header(pixdim=np.ones(8))),
    "pixdim a thousandth off": lambda m: m.save(edit=pixdim([1.001, 1, 1])),
    "pixdim a hundredth off": lambda m: m.save(edit=pixdim([1, 0.99, 1])),
    "pixdim twice": lambda m: m.save(edit=pixdim([1, 1, 2])),
    "pixdim tenfold": lambda m: m.save(edit=pixdim([10, 10, 10])),
    "pixdim a tenth": lambda m: m.save(edit=pixdim([0.1, 0.1, 0.1])),
    "flipped": lambda m: m.save(affine=placed(np.diag([-1, 1, 1]))),
    "LPS": lambda m: m.save(affine=placed(np.diag([-1, -1, 1]))),
    "upside down": lambda m: m.save(affine=placed(np.diag([-1, 1, -1]))),
    "sagittal": lambda m: m.save(affine=placed([[0, 0, 1], [-1, 0, 0], [0, -1, 0]])),
    "coronal": lambda m: m.save(affine=placed([[-1, 0, 0], [0, 0, 1], [0, 1, 0]])),
    "oblique": lambda m: m.save(affine=placed(OBLIQUE)),
    "rotated by 45 degrees": lambda m: m.save(
        affine=placed([[0.5**0.5, -(0.5**0.5), 0], [0.5**0.5, 0.5**0.5, 0], [0, 0, 1]])
    ),
    "micrometres": lambda m: m.save(edit=lambda i: i.header.set_xyzt_units("micron"), scale=1000),
    "metres": lambda m: m.save(edit=lambda i: i.header.set_xyzt_units("meter", "sec"), scale=0.001),
    "oblique in metres": lambda m: m.save(
        mm=placed(OBLIQUE), edit=lambda i: i.header.set_xyzt_units("meter"), scale=0.001
    ),
    "millimetres and seconds": lambda m: m.save(edit=lambda i: i.header.set_xyzt_units("mm", "sec")),
    "no unit": lambda m: m.save(edit=header(xyzt_units=0)),
    "scaled int16": lambda m: m.save(edit=scaled),
    "slope of NaN": lambda m: m.patched(SLOPE, np.full(2, np.nan, np.float32)),
    "display window": lambda m: m.save(edit=header(cal_max=500, cal_min=100)),
    "uint8": lambda m: m.save(voxels(low=20, high=200, dtype=np.uint8)),
    "uint16": lambda m: m.save(voxels(low=20000, high=60000, dtype=np.uint16)),
    "int32": lambda m: m.save(voxels(low=1e5, high=1e6, dtype=np.int32)),
    "float32": lambda m: m.save(voxels(dtype=np.float32)),
    "float64": lambda m: m.save(voxels(dtype=np.float64)),
    "large values": lambda m: m.save(voxels(low=1e9, high=9e9, dtype=np.float32)),
    "small values": lambda m: m.save(voxels(low=1e-4, high=9e-4, dtype=np.float32)),
    "negative values": lambda m: m.save(voxels(low=-900, high=-100)),
    "two values": lambda m: m.save(1 + (voxels() == 900).astype(np.uint8)),
    "4D with one volume": lambda m: m.save(voxels()[..., None]),
    "5D with one volume": lambda m: m.save(voxels()[..., None, None]),
    "one slice": lambda m: m.save(voxels((22, 18, 1))),
    "one slice of 0.5 mm": lambda m: m.save(voxels((22, 18, 1)), placed(spacing=(1.0, 1.2, 0.5))),
    "one slice of 0.05 mm": lambda m: m.save(voxels((22, 18, 1)), placed(spacing=(1.0, 1.2, 0.05))),
    "one sagittal slice": lambda m: m.save(voxels((1, 18, 14)), placed(spacing=(0.3, 1.2, 1.5))),
    "one oblique slice": lambda m: m.save(voxels((22, 1, 14)), placed(OBLIQUE)),
    "two thin slices": lambda m: m.save(voxels((22, 18, 2)), placed(spacing=(1.0, 1.2, 0.2))),
    "one line of voxels": lambda m: m.save(voxels((22, 1, 1))),
    "one voxel": lambda m: m.save(np.full((1, 1, 1), 7, np.int16)),
    "thick slices": lambda m: m.save(voxels((22, 18, 6)), placed(spacing=(1.0, 1.2, 10))),
    "fine voxels": lambda m: m.save(affine=placed(spacing=(0.08, 0.1, 0.12))),
    "DICOM series": series,
}


def cut(length: int, ending: str) -> Callable[[Maker], Odd]:
    return lambda m: m.repacked(lambda content: content[:length], ending)


def sheared(share: float) -> Any:
    affine = placed()
    affine[0, 1] += share * SPACING[1]
    return affine


def flat(columns: Any) -> bytes:
    rows = placed()[:3].astype(np.float32)
    rows[:, :3] = columns
    return rows.tobytes()


def value(number: float) -> Callable[[Maker], Odd]:
    def make(m: Maker) -> Odd:
        values = voxels(dtype=np.float64)
        values[3, 2, 1] = number
        return m.save(values)

    return make


def sizes(*dims: int) -> bytes:
    return np.array([len(dims), *dims, *[1] * (7 - len(dims))], np.int16).tobytes()


def bomb(m: Maker) -> Odd:
    """Its header declares 8 voxels; 64 MB of zeros follow."""
    return m.repacked(lambda content: gzip.compress(gzip.decompress(content) + bytes(1 << 26), 1))


def declared_bomb(m: Maker) -> Odd:
    odd = m.patched(DIM, sizes(4000, 4000, 4000))
    odd.path.write_bytes(gzip.compress(odd.path.read_bytes() + bytes(1 << 24)))
    return odd


def dangling(m: Maker) -> Odd:
    path = m.folder / f"{m.case}_hrT2.nii.gz"
    path.symlink_to("nowhere.nii.gz")
    return m.done(path, placed())


def written(content: bytes, ending: str = "_hrT2.nii.gz") -> Callable[[Maker], Odd]:
    def make(m: Maker) -> Odd:
        path = m.folder / f"{m.case}{ending}"
        path.write_bytes(content)
        return m.done(path, placed())

    return make


def empty_folder(m: Maker) -> Odd:
    (m.folder / m.case).mkdir()
    return m.done(m.folder / m.case, placed())


def folder_of(content: bytes) -> Callable[[Maker], Odd]:
    def make(m: Maker) -> Odd:
        (m.folder / m.case).mkdir()
        (m.folder / m.case / "notes.txt").write_bytes(content)
        return m.done(m.folder / m.case, placed())

    return make


def faulty_series(**values: Any) -> Callable[[Maker], Odd]:
    def make(m: Maker) -> Odd:
        from ..dicom_series import slices

        odd = series(m)
        for number, slice_ in enumerate(slices(odd.path)):
            if number % 2:
                for key, new in values.items():
                    setattr(slice_, key, new)
                slice_.save_as(slice_.filename)
        return odd

    return make


def pair(m: Maker) -> Odd:
    path = m.folder / f"{m.case}_hrT2.hdr"
    nib.save(nib.Nifti1Pair(voxels(), placed()), path)
    return m.done(path.rename(m.folder / f"{m.case}_hrT2.nii"), placed())


BAD: dict[str, tuple[Callable[[Maker], Odd], str]] = {
    "missing": (lambda m: m.done(m.folder / "gone_hrT2.nii.gz", placed()), "does not exist"),
    "dangling link": (dangling, "link to a file that does not exist"),
    "empty file": (written(b""), "cannot be read as NIfTI"),
    "text": (written(b"hello " * 200, "_hrT2.nii"), "cannot be read as NIfTI"),
    "text under a packed name": (written(b"hello " * 200), "cannot be read as NIfTI"),
    "packed text": (written(gzip.compress(b"hello " * 200)), "cannot be read as NIfTI"),
    "pointer of git": (written(b"version https://git-lfs.github.com/spec/v1\n"), "cannot be read as NIfTI"),
    "NRRD": (written(b"NRRD0004\ntype: short\n" + bytes(500)), "cannot be read as NIfTI"),
    "header of a pair": (pair, "a pair of .hdr and .img"),
    "cut within the header": (cut(200, "_hrT2.nii"), "cannot be read as NIfTI"),
    "cut behind the header": (cut(352, "_hrT2.nii"), "declares"),
    "cut within the voxels": (cut(3000, "_hrT2.nii"), "declares"),
    "without its last byte": (cut(-1, "_hrT2.nii"), "declares"),
    "packed and cut": (cut(900, "_hrT2.nii.gz"), "cannot be read as NIfTI"),
    "packed without its last byte": (cut(-1, "_hrT2.nii.gz"), "cannot be read as NIfTI"),
    "wrong checksum": (lambda m: m.repacked(lambda c: c[:-6] + bytes([c[-6] ^ 255]) + c[-5:]), "cannot be read"),
    "32767 voxels a side": (lambda m: m.patched(DIM, sizes(32767, 32767, 32767)), "more than can be held"),
    "500 voxels a side": (lambda m: m.patched(DIM, sizes(500, 500, 500)), "declares"),
    "negative size": (lambda m: m.patched(DIM, sizes(22, -18, 14)), "."),
    "nine dimensions": (lambda m: m.patched(DIM, np.int16(9)), "cannot be read|Save each volume"),
    "voxels beyond the file": (lambda m: m.patched(OFFSET, np.float32(1e9)), "declares"),
    "voxels within the header": (lambda m: m.patched(OFFSET, np.float32(0)), "within its header"),
    "gzip bomb": (bomb, "far more than its header declares"),
    "gzip bomb that says so": (declared_bomb, "more than can be held"),
    "unknown data type": (lambda m: m.patched(DATATYPE, np.int16(77)), "cannot be read as NIfTI"),
    "slope of infinity": (lambda m: m.patched(SLOPE, np.float32([1, np.inf])), "."),
    "colours": (lambda m: m.save(np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])), "one real number"),
    "complex": (lambda m: m.save(voxels(dtype=np.complex64)), "one real number"),
    "NaN": (value(np.nan), "1 voxels are NaN"),
    "infinity": (value(np.inf), "1 voxels are NaN or infinite"),
    "minus infinity": (value(-np.inf), "1 voxels are NaN or infinite"),
    "beyond float32": (value(1e300), "too large for float32"),
    "lowest float32": (value(float(np.finfo(np.float32).min)), "too large for float32"),
    "square beyond float32": (value(1e20), "too large for float32"),
    "constant": (lambda m: m.save(np.full(SHAPE, 4, np.int16)), "every voxel is 4"),
    "constant in float32": (lambda m: m.save(voxels(low=1e-60, high=9e-60, dtype=np.float64)), "every voxel is 0"),
    "almost constant": (lambda m: m.save(voxels(low=1e-9, high=9e-9, dtype=np.float32)), "differ by"),
    "2D": (lambda m: m.save(voxels()[:, :, 0]), "is 2D"),
    "two volumes": (lambda m: m.save(np.stack([voxels()] * 2, -1)), "is 4D"),
    "three components": (lambda m: m.save(np.stack([voxels()] * 3, -1)[:, :, :, None]), "is 5D"),
    "no slices": (lambda m: m.save(np.zeros((22, 18, 0), np.int16)), "has no voxels"),
    "zero column": (lambda m: m.patched(SROW, flat([[1, 0, 0], [0, 0, 0], [0, 0, 1]])), "cannot be inverted"),
    "parallel columns": (lambda m: m.patched(SROW, flat([[1, 1, 0], [0, 0, 0], [0, 0, 1]])), "cannot be inverted"),
    "NaN in the affine": (lambda m: m.patched(SROW, flat(np.diag([1, 1, np.nan]))), "cannot be inverted"),
    "infinite affine": (lambda m: m.patched(SROW, flat(np.diag([1, np.inf, 1]))), "cannot be inverted"),
    "no origin": (lambda m: m.patched(SROW + 12, np.float32(np.nan)), "cannot be inverted"),
    "sheared by a hundredth": (lambda m: m.save(affine=sheared(0.01)), "sheared"),
    "sheared by a tenth": (lambda m: m.save(affine=sheared(0.1)), "sheared"),
    "pixdim of zero": (lambda m: m.patched(PIXDIM, np.float32(0)), "spacing"),
    "pixdim of NaN": (lambda m: m.patched(PIXDIM, np.float32(np.nan)), "spacing"),
    "voxels of a metre": (lambda m: m.save(affine=placed(spacing=(1000, 1000, 1000))), "units"),
    "micrometres without the unit": (lambda m: m.save(affine=placed(spacing=(1000, 1200, 1500))), "units"),
    "metres without the unit": (lambda m: m.save(affine=placed(spacing=(0.001, 0.0012, 0.0015))), "units"),
    "a line of 20 metres": (lambda m: m.save(voxels((20000, 1, 1))), "larger than any head"),
    "a room": (lambda m: m.save(affine=placed(spacing=(80, 80, 80))), "larger than any head"),
    "empty folder": (empty_folder, "holds no DICOM slices"),
    "folder of notes": (folder_of(b"hello"), "holds no DICOM slices"),
    "DICOM without pixel sizes": (faulty_series(PixelSpacing=None), "no PixelSpacing"),
    "DICOM with two echoes": (faulty_series(EchoTime="90"), "several echo times"),
    "DICOM with uneven slices": (faulty_series(ImagePositionPatient=[1, 2, 3]), "."),
    "DICOM of two series": (faulty_series(SeriesInstanceUID="1.2.3"), "2 series"),
}
