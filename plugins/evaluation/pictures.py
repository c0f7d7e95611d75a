"""Slices with contours, drawn without a display.

All pictures show axial slices in the radiologist's view: the patient's right on the left, anterior up.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from nibabel.affines import voxel_sizes
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation
from nibabel.processing import resample_from_to
from numpy.typing import NDArray

from plugins.data import LABEL_VALUES, read_grid, read_label, read_scan
from plugins.evaluation.metrics import STRUCTURE_TITLES, STRUCTURES
from plugins.files import whole_file

COLOURS = {"vs": "#ff5050", "cochlea": "#40e0ff"}
PATTERNS = {"vs": "solid", "cochlea": "dashed"}
PERCENTILES = (1.0, 99.5)
FIELD_MM = 60.0
IGNORED = 3  # in pseudo-labels
WHOLE = (slice(None), slice(None))
PANEL_INCHES = 2.6


def read_axial(
    path: str | os.PathLike[str], label: bool = False, on: str | os.PathLike[str] | None = None
) -> tuple[NDArray[Any], tuple[float, float, float]]:
    """Read a volume with its axes turned to the nearest of right, anterior, superior.

    Args:
        path: of a scan, or of a label map, which may hold what is ignored.
        label: whether it is one.
        on: volume on whose voxels it is shown, 0 where it does not reach; ``None`` takes its own.

    Returns:
        The volume :math:`(R, A, S)` and its spacing in mm.

    Raises:
        InputError: see :func:`plugins.data.read_scan`.
    """
    scan = read_label(path, (*LABEL_VALUES, IGNORED)) if label else read_scan(path)
    voxels, grid = scan.voxels, scan.grid if on is None else read_grid(on)
    if grid.shape != scan.shape or not np.allclose(grid.affine, scan.affine, atol=1e-4):
        image = nib.Nifti1Image(voxels, scan.affine)
        voxels = resample_from_to(image, (grid.shape, grid.affine), order=0 if label else 1).get_fdata(dtype=np.float32)
    turn = io_orientation(grid.affine)
    x, y, z = voxel_sizes(grid.affine @ inv_ornt_aff(turn, grid.shape))
    return apply_orientation(voxels, turn), (float(x), float(y), float(z))


def translation_picture(
    cases: Sequence[Mapping[str, Any]],
    translations: Mapping[str, str | os.PathLike[str]],
    output_file: str | os.PathLike[str],
    title: str = "",
) -> None:
    """Draw source slices beside their translations, all with the contours of the source's label map.

    Args:
        cases: scans with ``case``, ``image`` and ``label``; a row for each.
        translations: head of the column to the folder of the volumes ``<case>.nii.gz``.
        output_file: a PNG file.
        title: above the picture.
    """
    figure, axes = panels(len(cases), 1 + len(translations))
    for case, line in zip(cases, axes, strict=True):
        label = read_axial(case["label"], label=True)[0]
        index = slice_with_both(label)
        files = {"ceT1": case["image"]}
        files.update({head: os.path.join(folder, f"{case['case']}.nii.gz") for head, folder in translations.items()})
        for axis, (head, path) in zip(line, files.items(), strict=True):
            volume, spacing = read_axial(path)
            draw_slice(axis, volume, index, spacing)
            draw_contours(axis, label, index, spacing)
            axis.set_title(head, parse_math=False)
        line[0].set_ylabel(f"{case['case']}\nslice {index + 1}", fontsize=6, parse_math=False)
    _save(figure, output_file, title)


def rows_to_draw(maps: Sequence[NDArray[np.float32]]) -> dict[int, list[str]]:
    """Slices to draw, and the structures that each was chosen for."""
    rows: dict[int, list[str]] = {}
    for name, value in STRUCTURES.items():
        counts = next((count for volume in maps if (count := (volume == value).sum(axis=(0, 1))).any()), None)
        if counts is not None:
            rows.setdefault(int(np.argmax(counts)), []).append(STRUCTURE_TITLES[name])
    return rows


def slice_with_both(label: NDArray[np.float32]) -> int:
    """The slice in which the scarcer structure's share of itself is largest; without it, that with most foreground."""
    shares = [(label == value).sum(axis=(0, 1)) / max(1, (label == value).sum()) for value in STRUCTURES.values()]
    both = np.minimum(*shares)
    return int(np.argmax(both if both.any() else np.sum(shares, axis=0)))


def panels(rows: int, columns: int) -> tuple[Figure, NDArray[np.object_]]:
    """A figure and its axes, :math:`(rows, columns)`."""
    figure = Figure(figsize=(PANEL_INCHES * columns, PANEL_INCHES * rows + 0.6), dpi=110, layout="constrained")
    FigureCanvasAgg(figure)
    return figure, figure.subplots(rows, columns, squeeze=False)


def window_around(mask: NDArray[np.bool_], spacing: Sequence[float]) -> tuple[slice, slice]:
    """The square of ``FIELD_MM`` around the foreground, or the whole slice where there is none."""
    if not mask.any():
        return slice(None), slice(None)
    window = []
    for axis in (0, 1):
        places = np.flatnonzero(mask.any(axis=1 - axis))
        half = max(FIELD_MM / 2 / spacing[axis], (places[-1] - places[0]) / 2 + 3)
        middle = (places[0] + places[-1]) / 2
        window.append(slice(max(0, int(middle - half)), int(middle + half) + 1))
    return window[0], window[1]


def _frame(shape: Sequence[int], spacing: Sequence[float]) -> tuple[float, float, float, float]:
    return 0.0, shape[0] * spacing[0], 0.0, shape[1] * spacing[1]


def draw_slice(
    axis: Axes,
    volume: NDArray[np.floating[Any]],
    index: int,
    spacing: Sequence[float],
    window: tuple[slice, slice] = WHOLE,
    scale: tuple[float, float] | None = None,
) -> None:
    """Draw a slice between two intensities; ``None`` takes the slice's own percentiles."""
    low, high = np.nanpercentile(volume[:, :, index], PERCENTILES) if scale is None else scale
    piece = volume[:, :, index][window]
    axis.imshow(
        piece.T, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), origin="lower", extent=_frame(piece.shape, spacing)
    )
    axis.invert_xaxis()
    axis.set(xticks=[], yticks=[])


def draw_contours(
    axis: Axes, label: NDArray[np.float32], index: int, spacing: Sequence[float], window: tuple[slice, slice] = WHOLE
) -> None:
    """Draw the outlines of the structures in a slice."""
    piece = label[:, :, index][window]
    centres = [(np.arange(n) + 0.5) * s for n, s in zip(piece.shape, spacing, strict=False)]
    for name, value in STRUCTURES.items():
        if (piece == value).any() and min(piece.shape) > 1:
            style: dict[str, Any] = {"colors": COLOURS[name], "linestyles": PATTERNS[name], "linewidths": 1.0}
            axis.contour(*centres, (piece == value).T, levels=[0.5], **style)


def _save(figure: Figure, output_file: str | os.PathLike[str], title: str) -> None:
    if title:
        figure.suptitle(title, fontsize=9, parse_math=False)
    with whole_file(output_file) as part:
        figure.savefig(part)
