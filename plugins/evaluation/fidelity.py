"""Translated volumes on disk: their quality, case by case, against true scans of the target where those exist."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plugins.data import Grid, check_same_grid, read_label, read_scan
from plugins.errors import InputError
from plugins.evaluation.labels import in_lps
from plugins.evaluation.metrics import STRUCTURES, case_metrics
from plugins.evaluation.translation import Segmenter, Volume, slice_jump, structure_contrast
from plugins.files import write_json
from plugins.progress import Progress

PERCENTILES = (0.1, 99.9)
Case = dict[str, float | None]


def evaluate_translations(
    data: Sequence[Mapping[str, Any]],
    pred_dir: str | os.PathLike[str],
    output_file: str | os.PathLike[str],
    truth_dir: str | os.PathLike[str] | None = None,
    segmenter: Segmenter | None = None,
) -> dict[str, Any]:
    """Measure every translation ``<case>.nii.gz`` and write the values as JSON.

    Args:
        data: source scans with labels, ``{"case", "image", "label"}``.
        pred_dir: their translations, in [0, 1].
        output_file: JSON ``{"cases": {case: values}, "mean": values}``; undefined values are ``null``.
        truth_dir: scans ``<case>_hrT2.nii.gz`` of the same patients on the same grids, scaled to [0, 1] by percentiles
            before they are compared; ``None`` leaves the errors out.
        segmenter: of target volumes in [0, 1], see :class:`plugins.evaluation.SliceSegmenter`; ``None`` leaves target
            preservation out.

    Returns:
        The content of the file. For ``vs`` and ``cochlea``: ``<name>_contrast``, ``<name>_contrast_error`` (absolute
        difference to the true scan's) and ``<name>_dice``; also ``mean_dice``, ``slice_jump`` and ``true_slice_jump``,
        both over the body in the true scan, or without one over that in the translation.

    Raises:
        InputError: if there is no scan with a label, or a translation or true scan is missing, unreadable or on
            another grid. Scans may be stored in any orientation.
    """
    labelled = [item for item in data if "label" in item]
    if not labelled:
        raise InputError(
            "no source scan has a label, and translations are judged at labelled structures. Give scans with labels."
        )
    cases = {}
    with Progress(len(labelled), "evaluating translations", os.path.dirname(output_file) or ".") as progress:
        for item in labelled:
            drawn, case = read_label(item["label"]), str(item["case"])
            label, spacing = in_lps(drawn.voxels, drawn.affine)
            translated = _read(Path(pred_dir, f"{case}.nii.gz"), drawn)
            true = None if truth_dir is None else _scaled(_read(Path(truth_dir, f"{case}_hrT2.nii.gz"), drawn))
            values: Case = {"slice_jump": slice_jump(translated, true)}
            contrast = structure_contrast(translated, label, spacing)
            values |= {f"{name}_contrast": value for name, value in contrast.items()}
            if true is not None:
                values["true_slice_jump"] = slice_jump(true)
                for name, value in structure_contrast(true, label, spacing).items():
                    values[f"{name}_contrast_error"] = _distance(contrast[name], value)
            if segmenter is not None:
                found = case_metrics(segmenter(translated), label, spacing)
                values |= {f"{name}_dice": _number(found[name]["dice"]) for name in STRUCTURES}
                values["mean_dice"] = _mean([values[f"{name}_dice"] for name in STRUCTURES])
            cases[case] = values
            progress.advance()
    names = next(iter(cases.values())).keys()
    content = {"cases": cases, "mean": {name: _mean([values[name] for values in cases.values()]) for name in names}}
    write_json(output_file, content)
    return content


def _read(path: Path, grid: Grid) -> Volume:
    """A volume on the grid of the label map, with axes L, P, S."""
    scan = read_scan(path)
    check_same_grid(scan, grid)
    return in_lps(scan.voxels, grid.affine)[0]


def _scaled(volume: Volume) -> Volume:
    low, high = np.percentile(volume, PERCENTILES)
    return np.clip((volume - low) / max(high - low, 1e-6), 0, 1)


def _distance(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else abs(a - b)


def _number(value: float | bool | str | None) -> float | None:
    return None if value is None else float(value)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
