"""What every scan must be before anything is computed from it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from plugins.data.nifti import Grid
from plugins.data.scans import LABEL_VALUES, read_grid, read_label, read_scan
from plugins.errors import InputError
from plugins.progress import Progress

VOXEL_MM = (0.01, 100.0)
MAX_EXTENT_MM = 2000.0
MAX_VOLUME_MM3 = 3e8  # a cube of 67 cm; at 0.41 x 0.41 x 1.5 mm it takes 5 GB
LEAST_RANGE = 1e-6


def check_scans(
    items: Sequence[Mapping[str, Any]], label_values: Sequence[int] = LABEL_VALUES, foreground: bool = False
) -> None:
    """Read every scan and label of a datalist completely, one at a time, and refuse what would fail or mislead later.

    Oblique and flipped scans are valid, and so is a label map without any structure. Label values are rounded, never
    truncated: 0.9999999997 is 1.

    Args:
        items: ``{"image", ...}`` and ``"label"`` where there is one; NIfTI files, or folders of DICOM series.
        label_values: the values that a label may hold once rounded.
        foreground: whether one label map at least must hold a structure.

    Raises:
        InputError: as :func:`check_scan`, or if there is no foreground where there must be.
    """
    found = False
    with Progress(total=len(items), description="checking scans") as progress:
        for item in items:
            found = check_scan(item, label_values) or found
            progress.advance()
    if foreground and not found:
        refuse_empty_labels(items)


def refuse_empty_labels(items: Sequence[Mapping[str, Any]]) -> NoReturn:
    """Tell that no label map of a list holds a structure.

    Raises:
        InputError: naming the first label map.
    """
    place = next((item["label"] for item in items if "label" in item), "the list of scans")
    raise InputError(f"{place}: neither this label map nor another one holds a structure. Label VS 1, cochleae 2.")


def check_scan(item: Mapping[str, Any], label_values: Sequence[int] = LABEL_VALUES) -> bool:
    """:func:`check_scans` for one scan.

    Returns:
        whether it has a label map that holds a structure.

    Raises:
        InputError: if :func:`plugins.data.read_scan` or :func:`plugins.data.read_label` refuses a file; if its voxels
            or the whole of them are of no size that a head can have; if all voxels are equal.
    """
    path = Path(item["image"])
    if not path.is_dir():
        _check_extent(read_grid(path))
    scan = read_scan(path)
    _check_extent(scan)
    low, high = float(scan.voxels.min()), float(scan.voxels.max())
    if scan.voxels.size > 1 and high - low < LEAST_RANGE:
        fault = f"every voxel is {low:g}" if low == high else f"its voxels differ by {high - low:.3g} only"
        raise InputError(f"{path}: {fault}. Export the scan again or leave it out.")
    if "label" not in item:
        return False
    grid = scan.grid
    del scan
    return bool(read_label(item["label"], label_values, grid).voxels.any())


def _check_extent(grid: Grid) -> None:
    extent = np.multiply(grid.shape, grid.spacing)
    low, high = VOXEL_MM
    if not low <= min(grid.spacing) <= max(grid.spacing) <= high:
        sizes = " x ".join(f"{length:.5g}" for length in grid.spacing)
        raise InputError(f"{grid.path}: has voxels of {sizes} mm. Correct the voxel sizes or the units in its header.")
    if max(extent) > MAX_EXTENT_MM or np.prod(extent) > MAX_VOLUME_MM3:
        sizes = " x ".join(f"{length:.5g}" for length in extent)
        raise InputError(f"{grid.path}: spans {sizes} mm, larger than any head. Crop it or correct its header.")
