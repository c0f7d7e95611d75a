"""Which views of the source scans are worth training on: those whose structures look as in hrT2."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import TypedDict

from plugins.data import check_same_grid, read_datalist, read_label, read_scan
from plugins.evaluation.labels import in_lps
from plugins.evaluation.translation import structure_contrast
from plugins.files import write_json


class View(TypedDict):
    """What ``views.json`` says of a view."""

    contrast: dict[str, float | None]
    error: float | None
    weight: float


Views = dict[str, View]
CONTRASTS = {"vs": (-0.2, 0.1), "cochlea": (0.15, 0.45)}
"""Of the structures to their rings in hrT2, as shares of the scan's .5-99.5 % range: what any reader of hrT2 knows."""


def contrast_error(contrast: Mapping[str, float | None], ranges: Mapping[str, tuple[float, float]]) -> float | None:
    """Mean distance of the structures' contrasts to their ranges; ``None`` where none is known.

    Example:
        >>> contrast_error({"vs": 0.2, "cochlea": 0.3}, {"vs": (-0.2, 0.1), "cochlea": (0.15, 0.45)})
        0.05
    """
    errors = [
        max(low - value, value - high, 0.0)
        for name, (low, high) in ranges.items()
        if (value := contrast.get(name)) is not None
    ]
    return float(np.round(np.mean(errors), 6)) if errors else None


def weigh_views(
    source: str, views: Mapping[str, str], output_dir: str, half: float = 0.03, out: float = 0.1
) -> dict[str, Any]:
    """Write ``views.json``: of each view its contrasts, their error and its weight in training.

    Args:
        source: datalist of the scans with labels.
        views: name to the folder of its volumes ``<case>.nii.gz``.
        output_dir: where the file goes.
        half: error from which a view weighs half.
        out: error from which a view is left out, unless it is the best.

    Returns:
        The content of the file.
    """
    rows: dict[str, Any] = {}
    for view, folder in views.items():
        found: dict[str, list[float]] = {name: [] for name in CONTRASTS}
        for scan in read_datalist(source):
            drawn = read_label(scan["label"])
            label, spacing = in_lps(drawn.voxels, drawn.affine)
            translated = read_scan(Path(folder, f"{scan['case']}.nii.gz"))
            check_same_grid(translated, drawn)
            volume = in_lps(translated.voxels, drawn.affine)[0]
            low, high = np.percentile(volume, (0.5, 99.5))
            contrast = structure_contrast((volume - low) / max(high - low, 1e-6), label, spacing)
            for name, value in contrast.items():
                if value is not None:
                    found[name].append(value)
        means = {name: float(np.mean(values)) if values else None for name, values in found.items()}
        error = contrast_error(means, CONTRASTS)
        weight = 1.0 if error is None or error < half else 0.5 if error < out else 0.0
        rows[view] = {"contrast": means, "error": error, "weight": weight}
    if rows and not any(row["weight"] for row in rows.values()):
        best = min(rows, key=lambda view: rows[view]["error"])
        rows[best]["weight"] = 1.0
    write_json(Path(output_dir, "views.json"), rows)
    return rows
