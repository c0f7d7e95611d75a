"""DICOM series in, DICOM Segmentations out; needs the extra ``dicom``: itk, pydicom, highdicom."""

from __future__ import annotations

import os
import re
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from monai.data import ITKReader
from numpy.typing import NDArray

import plugins
from plugins.errors import InputError
from plugins.files import whole_file

StrPath = str | os.PathLike[str]

ALGORITHM = "tanq-bundles vs_cochlea_seg"
# label: name, SNOMED CT category and type as (code, meaning)
SEGMENTS = {
    1: ("vestibular schwannoma", ("49755003", "Morphologically Abnormal Structure"), ("108369006", "Neoplasm")),
    2: ("cochlea", ("91723000", "Anatomical Structure"), ("80169004", "Cochlear structure")),
}
_DEFERRED_BYTES = 1024
# what anonymisation likes to remove, and a Segmentation must repeat
_MAY_BE_EMPTY = (
    "StudyID", "AccessionNumber", "PatientSex", "PatientBirthDate", "PatientID", "PatientName", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
_PLACE = {"ImagePositionPatient": 3, "ImageOrientationPatient": 6}  # of a slice, and how many numbers each has
_SAME = (("SeriesInstanceUID", "series"), ("Rows", "heights"), ("Columns", "widths"), ("EchoNumbers", "echoes"))
EVEN_MM = 0.05  # how far a slice may lie from where even spacing would put it


def is_series(path: StrPath) -> bool:
    """Whether a scan is a DICOM series: a folder, not a file."""
    return os.path.isdir(path)


def needed(module: str, path: StrPath) -> Any:
    """A module of the extra.

    Raises:
        InputError: if it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        cure = "Install the extra, pip install 'tanq-bundles[dicom]', or convert the series to NIfTI"
        raise InputError(f"{path}: is a DICOM series, for which {module} is missing ({error}). {cure}.") from error


def is_dicom_folder(folder: Path) -> bool:
    """Whether a folder directly holds a DICOM file."""
    files = (path for path in sorted(folder.iterdir()) if not path.name.startswith("."))
    return any(looks_like_dicom(path) for path in files if not path.name.endswith("_Label.dcm"))


def looks_like_dicom(path: Path) -> bool:
    """Whether a file begins as DICOM does: with the mark behind its preamble, or without both by its first element."""
    try:
        with path.open("rb") as file:
            head = file.read(132)
    except OSError:  # a folder, or not to be read
        return False
    first, kind = head[:2] in (b"\x02\0", b"\x08\0"), head[4:6]
    return head[128:] == b"DICM" or (first and head[3:4] == b"\0" and (kind.isupper() or kind[1:] == b"\0"))


def headers(folder: StrPath) -> list[Any]:
    """The headers of the slices in a folder, from the first slice to the last along the normal of the image plane.

    Files that are no DICOM are left out, unless their name is that of a slice. So are Segmentations, and kinds of DICOM
    without pixels, such as contours.

    Raises:
        InputError: if there are slices of more than one series or echo, of different size or orientation, without a
            size, twice in the same place or unevenly spaced, if a file is empty or cut off, lacks its preamble, its
            place or its pixels, has the name of a slice but is none, or if there is no slice.
    """
    pydicom = needed("pydicom", folder)
    slices, others = [], []
    for path in sorted(Path(folder).iterdir()):
        if path.is_file() and pydicom.misc.is_dicom(path):
            header = _header(path)
            if _is_slice(header):
                _check_slice(header, path)
                slices.append((path, header))
        elif looks_like_dicom(path):
            raise InputError(f"{path}: is DICOM without its preamble. Export the series as DICOM files again.")
        elif not path.is_dir() and not path.name.startswith("."):
            others.append(path)
    _refuse_lost_slices(others, {".dcm", *(_kind_of_name(path) for path, _ in slices)})
    if not slices:
        raise InputError(f"{folder}: holds no DICOM slices with a place in the patient. Export the series again.")
    return _in_order(folder, [header for _, header in slices])


def _header(path: Path) -> Any:
    try:
        return needed("pydicom", path).dcmread(path, defer_size=_DEFERRED_BYTES)
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise InputError(f"{path}: cannot be read as DICOM ({reason}). Copy or export it again.") from error


def _is_slice(header: Any) -> bool:
    """By its pixels and by its kind, which a file says first, so that one that is cut off still counts."""
    if header.get("Modality") == "SEG":
        return False
    kind = header.file_meta.get("MediaStorageSOPClassUID")
    return "PixelData" in header or not kind or len(header) == 0 or "Image Storage" in kind.name


def _check_slice(header: Any, path: Path) -> None:
    absent = [name for name, count in _PLACE.items() if np.size(header.get(name)) != count]
    absent += [] if "PixelData" in header else ["PixelData"]
    if absent:
        cure = "Copy or export it again, or take it out of the folder if it is no slice of the series"
        raise InputError(f"{path}: is cut off or no slice, as it lacks {', '.join(absent)}. {cure}.")
    kind = str(header.get("PhotometricInterpretation") or "MONOCHROME2")
    if header.get("SamplesPerPixel", 1) != 1 or not kind.startswith("MONOCHROME"):
        raise InputError(f"{path}: holds colours ({kind}). Export the series with one number a pixel.")
    _check_pixels(header, path)


def _kind_of_name(path: Path) -> str:
    """What names of the slices of a series have in common: the ending or, without one, all but the digits."""
    return path.suffix.lower() if path.suffix[1:].isalpha() else re.sub(r"\d+", "0", path.name)


def _refuse_lost_slices(others: list[Path], kinds: set[str]) -> None:
    for path in others:
        if not path.exists():
            cure = "Fetch what it points to, or remove the link"
            raise InputError(f"{path}: is a link to a file that does not exist. {cure}.")
        if not path.stat().st_size or _kind_of_name(path) in kinds:
            what = "is no DICOM, though it is named like a slice" if path.stat().st_size else "is empty"
            raise InputError(f"{path}: {what}. Copy or export it again, or take it out of the folder.")


def _in_order(folder: StrPath, slices: list[Any]) -> list[Any]:
    for keyword, what in _SAME:
        values = {str(header.get(keyword)) for header in slices}
        if len(values) > 1:
            raise InputError(f"{folder}: holds slices of {len(values)} {what}. Give each series a folder of its own.")
    _check_pixel_sizes(folder, slices)
    orientations = np.array([header.ImageOrientationPatient for header in slices], dtype=float)
    if np.ptp(orientations, axis=0).max() > 1e-3:
        raise InputError(f"{folder}: its slices are not parallel. Export the series without scouts.")
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    places = [float(np.dot(normal, np.array(header.ImagePositionPatient, dtype=float))) for header in slices]
    positions = np.array([header.ImagePositionPatient for header in slices], dtype=float)
    within = positions - np.outer(places, normal)
    if np.ptp(within, axis=0).max() > EVEN_MM:
        raise InputError(f"{folder}: its slices are shifted against one another. Export it without gantry tilt.")
    order = np.argsort(places)
    steps = np.diff(np.array(places)[order])
    if len(slices) < 2 or steps.min() < EVEN_MM or np.ptp(steps) > EVEN_MM:
        gaps = f"{steps.min():.3g} to {steps.max():.3g} mm apart" if len(slices) > 1 else "only one"
        raise InputError(f"{folder}: its {len(slices)} slices are {gaps}. Export the whole series, every slice once.")
    return [slices[index] for index in order]


def _check_pixel_sizes(folder: StrPath, slices: list[Any]) -> None:
    sizes = np.zeros((len(slices), 2))
    for row, header in zip(sizes, slices, strict=True):
        found = header.get("PixelSpacing") or []
        row[:] = np.asarray(found, dtype=float) if len(found) == 2 else 0
    if not (np.isfinite(sizes) & (sizes > 0)).all():
        raise InputError(f"{folder}: a slice has no PixelSpacing, so its size is unknown. Export the series again.")
    echoes = np.array([float(header.get("EchoTime") or 0) for header in slices])
    for values, what in ((sizes, "pixel sizes"), (echoes[:, None], "echo times")):
        if np.ptp(values, axis=0).max() > 1e-3:
            raise InputError(f"{folder}: holds slices of several {what}. Give each series a folder of its own.")


def _check_pixels(header: Any, path: Path) -> None:
    """Refuse a file that holds fewer bytes than its pixels take; those of compressed ones are the decoder's matter."""
    pixels = header.get_item("PixelData") if "PixelData" in header else None
    if pixels is None or header.file_meta.TransferSyntaxUID.is_compressed:
        return
    absent = [name for name in ("Rows", "Columns", "SamplesPerPixel", "BitsAllocated") if name not in header]
    if absent:
        raise InputError(f"{path}: lacks {', '.join(absent)}. Export the series again.")
    needed_bytes = header.Rows * header.Columns * header.SamplesPerPixel * header.BitsAllocated // 8
    length = pixels.length if hasattr(pixels, "length") else len(pixels.value)
    if length < needed_bytes or path.stat().st_size < getattr(pixels, "value_tell", 0) + needed_bytes:
        raise InputError(f"{path}: is cut off, its pixels take {needed_bytes} bytes. Copy or export it again.")


def read_series(folder: StrPath) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Voxels (X, Y, Z) of a series, read by ITK, and the affine from voxel to RAS mm.

    Raises:
        InputError: as :func:`headers`, and if the slices cannot be decoded or hold no volume of finite numbers.
    """
    slices = headers(folder)
    itk = needed("itk", folder)
    # without the type it is that of the first slice, in which others lose their fractions
    reader = ITKReader(series_name=_series_name(itk, folder, slices), pixel_type=itk.F)
    try:
        voxels, meta = reader.get_data(reader.read(str(folder)))
    except Exception as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: cannot be read as a DICOM series ({reason}). Export it again.") from error
    count = len(slices)
    if voxels.ndim == 3 and voxels.shape[2] != count:
        cure = "Export it again as one series, of one sequence, thickness and date"
        raise InputError(f"{folder}: only {voxels.shape[2]} of its {count} slices belong together. {cure}.")
    if voxels.ndim != 3 or not np.isfinite(voxels).all():
        raise InputError(f"{folder}: is no volume of finite grey values ({voxels.shape}). Export it again.")
    return np.asarray(voxels, dtype=np.float32), np.asarray(meta["affine"], dtype=np.float64)


def _series_name(itk: Any, folder: StrPath, slices: list[Any]) -> str:
    """What ITK calls the series of the slices; others in the folder are Segmentations and contours."""
    finder = itk.GDCMSeriesFileNames.New()
    finder.SetUseSeriesDetails(True)
    finder.AddSeriesRestriction("0008|0021")  # the date, as the reader does
    finder.SetDirectory(str(folder))
    files = {os.path.basename(header.filename) for header in slices}
    names = [name for name in finder.GetSeriesUIDs() if os.path.basename(finder.GetFileNames(name)[0]) in files]
    return names[0] if names else ""


def write_segmentation(labels: NDArray[np.uint8], affine: NDArray[np.float64], folder: StrPath, file: StrPath) -> None:
    """Write a label map as a DICOM Segmentation of the series it was made from; the file appears whole or not at all.

    Args:
        labels: (X, Y, Z) with 1 VS and 2 cochlea, X along the rows' and Y along the columns' direction of the slices.
        affine: from voxel to RAS mm.
        folder: of the series.
        file: to write.

    Raises:
        ValueError: if a slice of the series lies outside the label map.
    """
    highdicom, coding = needed("highdicom", folder), needed("pydicom.sr.coding", folder)
    series = headers(folder)
    for header in series:
        for keyword in _MAY_BE_EMPTY:
            if keyword not in header:
                setattr(header, keyword, "")
    to_voxel = np.linalg.inv(affine)
    frames = []
    for header in series:
        position = np.array([*header.ImagePositionPatient, 1], dtype=float) * [-1, -1, 1, 1]
        x, y, z = (to_voxel @ position)[:3]
        index = round(z)
        if max(abs(x), abs(y), abs(z - index)) > 0.05 or not 0 <= index < labels.shape[2]:
            raise ValueError(f"{folder}: a slice lies at voxel ({x:.2f}, {y:.2f}, {z:.2f}) of the label map")
        frames.append(labels[:, :, index].T)
    algorithm = highdicom.AlgorithmIdentificationSequence(
        name=ALGORITHM, version=plugins.__version__, family=coding.Code("123109", "DCM", "Artificial Intelligence")
    )
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=coding.Code(category[0], "SCT", category[1]),
            segmented_property_type=coding.Code(kind[0], "SCT", kind[1]),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=algorithm,
        )
        for number, (name, category, kind) in SEGMENTS.items()
    ]
    segmentation = highdicom.seg.Segmentation(
        source_images=series,
        pixel_array=np.stack(frames),
        segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
        segment_descriptions=descriptions,
        series_instance_uid=highdicom.UID(),
        series_number=int(series[0].get("SeriesNumber") or 0) + 1000,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="tanq-bundles",
        manufacturer_model_name="vs_cochlea_seg",
        software_versions=plugins.__version__,
        device_serial_number="0",
        content_label="VS_COCHLEA",
    )
    with whole_file(file) as part:
        segmentation.save_as(part)
