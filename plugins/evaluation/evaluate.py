"""A folder of predictions against a folder of references."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from plugins.errors import InputError
from plugins.evaluation.labels import labels_in, read_pair
from plugins.evaluation.metrics import PENALTY_MM, STRUCTURES, CaseMetrics, case_metrics
from plugins.files import write_json
from plugins.progress import Progress


def evaluate_folder(
    pred_dir: str | os.PathLike[str], label_dir: str | os.PathLike[str] | None, output_file: str | os.PathLike[str]
) -> dict[str, Any]:
    """Compare the files ``<case>_Label.nii.gz`` of two folders and write the metrics as JSON.

    Cases that only one of the folders has are not compared but named under ``not_compared``. The file has no NaN:
    what is undefined is ``null``.

    Args:
        pred_dir: predictions.
        label_dir: references, on the grids of the predictions.
        output_file: JSON with ``{"cases": {case: metrics}, "mean": ..., "not_compared": [...]}``; the metrics are those
            of :func:`case_metrics`, the means those of :func:`summarise`.

    Returns:
        The content of the file.

    Raises:
        InputError: if the folders have no case in common, or a pair cannot be compared.
    """
    preds, truths = labels_in(pred_dir), labels_in(label_dir)
    common = sorted(preds.keys() & truths.keys())
    if not common:
        raise InputError(f"{pred_dir} and {label_dir} have no case in common. Give references of the predicted cases.")
    cases = {}
    with Progress(total=len(common), description="cases", folder=os.path.dirname(output_file) or ".") as progress:
        for case in common:
            pred, truth = read_pair(preds[case], truths[case])
            cases[case] = case_metrics(pred.voxels, truth.voxels, truth.spacing)
            progress.advance()
    if os.path.samefile(pred_dir, label_dir or pred_dir):
        raise InputError(f"pred_dir and label_dir are both {pred_dir}. Give the references as label_dir.")
    content = {"cases": cases, "mean": summarise(cases), "not_compared": sorted(preds.keys() ^ truths.keys())}
    write_json(output_file, content)
    return content


def summarise(cases: Mapping[str, CaseMetrics]) -> dict[str, dict[str, float | int | None]]:
    """Means over cases.

    Returns:
        For ``vs`` and ``cochlea``: ``dice``, ``dice_std``, ``assd_mm``, ``assd_mm_std`` (sample standard deviations;
        empty masks enter with the challenge's penalty), ``assd_mm_found`` (mean over the cases where both sides have
        the structure), ``cases`` (how many count) and ``failures`` (a Dice below .5 or an empty mask). For ``both``:
        ``dice`` and ``assd_mm``, the means of the two structures' means.
    """
    mean = {name: _structure_summary([case[name] for case in cases.values()]) for name in STRUCTURES}
    mean["both"] = {key: _mean([mean[name][key] for name in STRUCTURES]) for key in ("dice", "assd_mm")}
    return mean


def _structure_summary(rows: list[dict[str, float | bool | None]]) -> dict[str, float | int | None]:
    dice, assd = ([row[key] for row in rows] for key in ("dice", "assd_mm"))
    return {
        "dice": _mean(dice),
        "dice_std": _std(dice),
        "assd_mm": _mean(assd),
        "assd_mm_std": _std(assd),
        "assd_mm_found": _mean([value for value in assd if value != PENALTY_MM]),
        "cases": sum(value is not None for value in dice),
        "failures": sum(bool(row["failure"]) for row in rows),
    }


def _mean(values: list[float | bool | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def _std(values: list[float | bool | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.std(known, ddof=1)) if len(known) > 1 else None
