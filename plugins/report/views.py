"""Translations against real hrT2: histograms of each region and contrast of each structure."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from plugins.data import read_label, read_scan
from plugins.evaluation import structure_contrast
from plugins.evaluation.metrics import STRUCTURE_TITLES, STRUCTURES

StrPath = str | os.PathLike[str]

BINS = 40
SHELL_MM = 3.0
PERCENTILES = (0.1, 99.9)
AROUND = "3 mm around them"


def regions_of(scans: Sequence[tuple[StrPath, StrPath]]) -> dict[str, Any]:
    """Histograms and contrast over some scans, in units of each scan's 0.1st to 99.9th percentile.

    Args:
        scans: image and label map each; 3 in a label map is to be ignored.

    Returns:
        ``scans`` (how many), ``histograms`` (region to density of :data:`BINS` bins from 0 to 1; ``None`` where no
        scan has the region) and ``contrast`` (structure to mean over scans of
        :func:`plugins.evaluation.structure_contrast`, or ``None``).
    """
    counts: dict[str, NDArray[np.int64]] = {}
    contrasts: dict[str, list[float]] = {name: [] for name in STRUCTURES}
    for image_file, label_file in scans:
        scan = read_scan(image_file)
        label = read_label(label_file, (0, 1, 2, 3), of=scan).voxels
        low, high = (float(value) for value in np.percentile(scan.voxels, PERCENTILES))
        unit = np.clip((scan.voxels - low) / max(high - low, 1e-6), 0, 1)
        for name, mask in _regions(label, scan.spacing).items():
            counts[name] = counts.get(name, 0) + np.histogram(unit[mask], BINS, (0, 1))[0]
        for name, value in structure_contrast(unit, np.where(label == 3, 0, label), scan.spacing).items():
            if value is not None:
                contrasts[name].append(value)
    return {
        "scans": len(scans),
        "histograms": {name: _density(count) for name, count in counts.items()},
        "contrast": {name: float(np.mean(values)) if values else None for name, values in contrasts.items()},
    }


def bin_centres() -> list[float]:
    """Where the bins of a histogram lie."""
    return [(index + 0.5) / BINS for index in range(BINS)]


def _regions(label: NDArray[Any], spacing: Sequence[float]) -> Mapping[str, NDArray[np.bool_]]:
    found = {STRUCTURE_TITLES[name]: label == value for name, value in STRUCTURES.items()}
    structures = np.isin(label, [*STRUCTURES.values()])
    if structures.any():
        near = distance_transform_edt(~structures, sampling=spacing) <= SHELL_MM
        found[AROUND] = near & (label == 0)
    return found


def _density(count: NDArray[np.int64]) -> list[float] | None:
    return (count * BINS / count.sum()).round(6).tolist() if count.sum() else None
