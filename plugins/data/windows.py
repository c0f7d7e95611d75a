"""One physical window for everything that a segmentation sees: pure slicing, from the scan's own grid and back to it.

A window is a box around a centre. Its edges run along the scan's own voxel axes; its size is told along the axes of the
patient, L, P and S, that these come nearest to, so that the same window is the same box in a scan of any orientation.
Places are millimetres of the world that the affine of a NIfTI file leads to (R, A, S).
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import nibabel as nib
import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from nibabel.orientations import io_orientation
from numpy.typing import ArrayLike, NDArray

from plugins.config.ranges import Triple
from plugins.data.crossmoda import PLACES
from plugins.data.nifti import read_stored
from plugins.data.scans import COCHLEA, check_same_grid, read_grid
from plugins.errors import InputError
from plugins.files import whole_file, write_json
from plugins.state import read_state

StrPath = str | os.PathLike[str]
Box = tuple[slice, slice, slice]
Found = Literal["label", "locator", "whole scan"]
Size = Triple[float]
T = TypeVar("T")

WINDOW_MM = (105.0, 70.0, 60.0)
"""Along L, P, S: both inner ears and a large tumour, and 10 mm to spare on every side."""

WINDOWS = "windows.json"
DIGITS = 9
"""Of the mm of a window: far finer than what :func:`voxel_box` takes for rounding."""
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Window:
    """A box of a physical size around a place.

    Attributes:
        centre: mm in the world of the affine (R, A, S).
        size: mm along L, P, S.
        found: by a ``label``, by the ``locator``, or not at all: the ``whole scan``.
        score: of the locator, from 0 to 1.
    """

    centre: tuple[float, float, float]
    size: tuple[float, float, float]
    found: Found = "label"
    score: float | None = None

    def record(self, box: Box) -> dict[str, Any]:
        """JSON of the window and of the voxels ``[first, last + 1]`` along each axis that it is in one scan."""
        return {**asdict(self), "box": [[edge.start, edge.stop] for edge in box]}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Window:
        """The window of a :meth:`record`."""
        x, y, z = record["centre"]
        left, posterior, superior = record["size"]
        return cls((x, y, z), (left, posterior, superior), record["found"], record.get("score"))


def check_window_size(size: Sequence[float]) -> None:
    """Refuse a window without an extent.

    Raises:
        InputError: naming the size.
    """
    if not all(length > 0 for length in size):
        raise InputError(f"the size of a window is {list(size)}. Give three lengths in mm, along L, P, S.")


def patient_axes(affine: ArrayLike) -> NDArray[np.intp]:
    """For each voxel axis the axis of the patient that it runs along: 0 for L-R, 1 for P-A, 2 for S-I."""
    return io_orientation(np.asarray(affine, np.float64))[:, 0].astype(np.intp)


def voxel_box(window: Window, shape: Sequence[int], affine: ArrayLike) -> Box:
    """The voxels of a window in one scan: those whose centres it holds, but none that the scan does not have.

    Args:
        window: in the world of ``affine``.
        shape: of the scan, three axes.
        affine: from its voxels to the world in mm; may be flipped, permuted or oblique.

    Returns:
        a slice an axis; not empty, as a window beside the scan takes its nearest plane.
    """
    affine = np.asarray(affine, np.float64)
    centre = apply_affine(np.linalg.inv(affine), window.centre)
    half = np.asarray(window.size)[patient_axes(affine)] / voxel_sizes(affine) / 2
    # to a millionth of a voxel, so that an affine's rounding does not decide on a plane
    first = np.ceil(np.round(centre - half, 6)).astype(int)
    last = np.floor(np.round(centre + half, 6)).astype(int) + 1  # both ends count, so that a mirrored scan agrees
    end = np.asarray(shape[:3])
    first = np.clip(first, 0, end - 1)
    x, y, z = map(slice, first.tolist(), np.clip(last, first + 1, end).tolist())
    return x, y, z


def whole_scan(shape: Sequence[int], affine: ArrayLike, score: float | None = None) -> Window:
    """The window that is all of a scan: what is left where nothing was located."""
    return _window_of([-0.5] * 3, np.asarray(shape[:3]) - 0.5, np.asarray(affine, np.float64), "whole scan", score)


def window_of_labels(
    labels: NDArray[Any], affine: ArrayLike, size: Size = WINDOW_MM, margin: float = 5.0, jitter: Size = (0.0, 0.0, 0.0)
) -> Window:
    """The window of a label map.

    Its centre is the middle of the box around the cochleae, of both sides together, or, where none is labelled, of the
    box around all foreground. It is then shifted by ``jitter``, and from there no further than it takes to hold all
    foreground with its margin. Where it is too small for that, it grows along that axis, and a warning says so.

    Args:
        labels: rounded label map, three axes.
        affine: of the label map.
        size: mm along L, P, S.
        margin: mm around the foreground.
        jitter: mm along L, P, S, as when a locator does not find the exact place.

    Raises:
        InputError: if there is no foreground.
    """
    check_window_size(size)
    affine = np.asarray(affine, np.float64)
    foreground = _bounds(labels > 0)
    if foreground is None:
        raise InputError("a label map without foreground has no window. Leave the scan out or label it.")
    seen = _bounds(labels == COCHLEA)
    low, high = foreground if seen is None else seen
    axes, spacing = patient_axes(affine), voxel_sizes(affine)
    wanted = np.asarray(size, np.float64)[axes] / spacing
    gap = margin / spacing
    grown = np.maximum(wanted, foreground[1] - foreground[0] + 1 + 2 * gap)
    if (grown > wanted + 1e-6).any():
        mm = np.empty(3)
        mm[axes] = np.ceil(grown * spacing)
        _logger.warning(f"a window of {list(size)} mm is too small for a label: it is {mm.tolist()} mm here.")
        grown = np.where(grown > wanted + 1e-6, mm[axes] / spacing, wanted)
    signs = np.sign(affine[axes, np.arange(3)]) * np.array([-1, -1, 1])[axes]  # of L, P, S along the voxel axes
    centre = (low + high) / 2 + signs * np.asarray(jitter, np.float64)[axes] / spacing
    centre = np.clip(centre, foreground[1] + 0.5 + gap - grown / 2, foreground[0] - 0.5 - gap + grown / 2)
    return _window_of(centre - grown / 2, centre + grown / 2, affine, "label", None)


def write_crop(source: StrPath, window: Window | Box, target: StrPath) -> None:
    """Write the part of a NIfTI file in a window, whole or not at all: the same voxels, as stored, at the same place.

    Args:
        source: the NIfTI file.
        window: or the voxels of it, if they are those of another file on the same grid.
        target: to write.

    Raises:
        InputError: see :func:`plugins.data.read_scan`, and for a DICOM series.
    """
    if Path(source).is_dir():
        raise InputError(f"{source}: is a DICOM series. Convert the scans of a data set to NIfTI first.")
    image, grid = read_stored(Path(source))
    box = voxel_box(window, grid.shape, grid.affine) if isinstance(window, Window) else window
    with whole_file(target) as part:
        nib.save(_cropped(image, box), part)


def write_windowed_dataset(
    scans: Mapping[str, Sequence[Mapping[str, Any]]], windows: Mapping[str, Window], output_dir: StrPath
) -> None:
    """Write what lies in the windows of a data set as another one in CrossMoDA's layout of 2022.

    Beside it ``windows.json`` says of every case where its window lies and how it was found; it is written last. Files
    are written whole or not at all.

    Args:
        scans: ``source``, ``target`` and ``validation`` to their scans, NIfTI files; only labels of the source are
            written, as only these are part of the layout.
        windows: of every case.
        output_dir: created if missing.

    Raises:
        InputError: if a case occurs twice, a scan is no NIfTI file, or a label does not lie on its scan.
        KeyError: if a case has no window.
    """
    cases = [scan["case"] for items in scans.values() for scan in items]
    twice = sorted({case for case in cases if cases.count(case) > 1})
    if twice:
        raise InputError(f"{', '.join(twice)} occurs twice in the data set. Remove or rename a scan.")
    records = {}
    for part, items in scans.items():
        place, contrast, _ = PLACES[part if part == "validation" else f"training_{part}"]
        folder = Path(output_dir, place)
        for scan in items:
            case, window = scan["case"], windows[scan["case"]]
            write_crop(scan["image"], window, folder / f"{case}_{contrast}.nii.gz")
            grid = read_grid(scan["image"])
            box = voxel_box(window, grid.shape, grid.affine)
            if part == "source" and "label" in scan:
                check_same_grid(read_grid(scan["label"]), grid)
                write_crop(scan["label"], box, folder / f"{case}_Label.nii.gz")
            records[case] = window.record(box)
    write_json(Path(output_dir) / WINDOWS, records)


def read_windows(folder: StrPath) -> dict[str, Window]:
    """The windows in ``<folder>/windows.json``, by case.

    Raises:
        InputError: if the file is missing or is no such record.
    """
    return _read_records(folder, Window.from_record)


def read_boxes(folder: StrPath) -> dict[str, Box]:
    """The voxels of these windows in their scans, by case; otherwise as :func:`read_windows`."""
    return _read_records(folder, _box_of)


def _box_of(record: Mapping[str, Any]) -> Box:
    x, y, z = (slice(int(first), int(end)) for first, end in record["box"])
    return x, y, z


def _read_records(folder: StrPath, form: Callable[[Mapping[str, Any]], T]) -> dict[str, T]:
    file = Path(folder) / WINDOWS
    cure = f"Remove {folder}, and give the command again"
    records = read_state(file, dict[str, dict[str, Any]], cure)
    try:
        return {case: form(record) for case, record in records.items()}
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise InputError(f"{file} holds no windows ({type(error).__name__}). {cure}.") from error


def _cropped(image: nib.Nifti1Image, box: Box) -> nib.Nifti1Image:
    """An image that is written with the voxels as they were stored; in memory they are not yet scaled."""
    stored = image.dataobj
    raw, slope, inter = np.asanyarray(stored), 1.0, 0.0
    if nib.is_proxy(stored):
        raw, slope, inter = stored.get_unscaled(), stored.slope, stored.inter
    moved = np.array(image.affine, np.float64)
    moved[:3, 3] = apply_affine(moved, [edge.start for edge in box])
    header = image.header.copy()
    header.set_data_dtype(raw.dtype)
    cropped = type(image)(np.ascontiguousarray(raw[box]), None, header)
    for kind in ("sform", "qform"):
        code = int(image.header[f"{kind}_code"])
        if code:
            place = np.array(getattr(image, f"get_{kind}")(), np.float64)
            place[:3, 3] = apply_affine(place, [edge.start for edge in box])
            getattr(cropped, f"set_{kind}")(place, code)
    if not (image.header["sform_code"] or image.header["qform_code"]):
        cropped.set_sform(moved, 2)
    cropped.header.set_slope_inter(slope, inter)
    return cropped


def _bounds(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]] | None:
    """First and last index along each axis; ``None`` where nothing is set."""
    places = np.argwhere(mask)
    return (places.min(0), places.max(0)) if len(places) else None


def _window_of(first: ArrayLike, last: ArrayLike, affine: NDArray[np.float64], found: Found, score: Any) -> Window:
    """The window between two corners, voxel coordinates of its edges."""
    first, last = np.asarray(first, np.float64), np.asarray(last, np.float64)
    x, y, z = (round(float(each), DIGITS) for each in apply_affine(affine, (first + last) / 2))
    size = np.empty(3)
    size[patient_axes(affine)] = (last - first) * voxel_sizes(affine)
    left, posterior, superior = (round(float(each), DIGITS) for each in size)
    return Window((x, y, z), (left, posterior, superior), found, score)
