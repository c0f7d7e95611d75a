"""A data set as the segmentation sees it: what lies in one window of each scan."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from plugins.data import Window, read_datalist, read_grid, read_label, window_of_labels, write_windowed_dataset
from plugins.errors import InputError
from plugins.segmentation.locator import WEIGHTS, StrPath, locate_scans, read_locator


def write_windows(
    source: StrPath,
    target: StrPath,
    validation: StrPath,
    locator_dir: StrPath,
    output_dir: StrPath,
    margin: float = 5.0,
    jitter: float = 0.0,
    seed: int = 0,
    device: str = "cpu",
) -> None:
    """Write the windows of a data set, see :func:`plugins.data.write_windowed_dataset`.

    Windows of source scans follow their labels, all others the locator; all have the locator's size.

    Args:
        source: datalist of scans with labels.
        target: datalist of scans; their labels, if any, are not read.
        validation: likewise.
        locator_dir: with a locator.
        output_dir: receives the data set.
        margin: mm that a window keeps around a label.
        jitter: mm by which windows of labels are moved at most, at random along each axis.
        seed: of that, together with the name of the case.
        device: on which the locator runs.

    Raises:
        InputError: if there is no locator, or a list cannot be used.
    """
    scans = {
        part: read_datalist(file) for part, file in (("source", source), ("target", target), ("validation", validation))
    }
    locator = read_locator(locator_dir)
    if locator is None:
        raise InputError(f"{locator_dir}: holds no {WEIGHTS}. Train the locator first.")
    windows, without = {}, [*scans["target"], *scans["validation"]]
    for scan in scans["source"]:
        window = _of_label(scan, locator.window_size, margin, jitter, seed)
        if window is None:
            without.append(scan)
        else:
            windows[scan["case"]] = window
    write_windowed_dataset(scans, windows | locate_scans(without, locator_dir, device), output_dir)


def _of_label(
    scan: Mapping[str, Any], size: tuple[float, float, float], margin: float, jitter: float, seed: int
) -> Window | None:
    """The window of a scan's label; ``None`` if it has none, or one without a structure."""
    if "label" not in scan:
        return None
    drawn = read_label(scan["label"], of=read_grid(scan["image"]))
    generator = np.random.default_rng([seed, zlib.crc32(str(scan["case"]).encode())])
    shift = generator.uniform(-jitter, jitter, 3)
    if not drawn.voxels.any():
        return None
    return window_of_labels(drawn.voxels, drawn.affine, size, margin, shift.tolist())
