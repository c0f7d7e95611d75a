"""A folder of predictions against a folder of references, or a table of what others measured."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plugins.data.crossmoda import site_of
from plugins.errors import InputError
from plugins.evaluation.cases import complete, one_method, read_cases, refuse_own_results, write_cases
from plugins.evaluation.labels import labels_in, read_pair
from plugins.evaluation.metrics import (
    CASE_MEASURES,
    FAILURE,
    PENALTY_MM,
    STRUCTURES,
    CaseMetrics,
    StructureMetrics,
    case_metrics,
)
from plugins.files import write_json
from plugins.progress import Progress

StrPath = str | os.PathLike[str]

DEFINITIONS = {name: measure.definition for name, measure in CASE_MEASURES.items()}
RULES = {
    "challenge": f"a structure that only one side has counts with Dice 0, ASSD and HD95 {PENALTY_MM:g} mm, NSD 0",
    "plain": "a structure that only one side has counts with Dice 0 and NSD 0, and has no ASSD and no HD95",
    "without_failures": f"failures are left out; {FAILURE}",
}


def evaluate_segmentation(
    output_file: StrPath,
    pred_dir: StrPath | None = None,
    label_dir: StrPath | None = None,
    cases_file: StrPath | None = None,
    method: str | None = None,
) -> dict[str, Any]:
    """:func:`evaluate_cases` where there is a table of cases, else :func:`evaluate_folder`.

    Raises:
        InputError: if there is neither, or both.
    """
    if cases_file is not None and pred_dir is not None:
        raise InputError(f"pred_dir is {pred_dir} and cases_file is {cases_file}. Give one of them.")
    if cases_file is not None:
        return evaluate_cases(cases_file, output_file, method)
    if pred_dir is None:
        raise InputError(
            "pred_dir and cases_file are not set. Give a folder of label maps, or a table of their values."
        )
    return evaluate_folder(pred_dir, label_dir, output_file)


def evaluate_folder(pred_dir: StrPath, label_dir: StrPath | None, output_file: StrPath) -> dict[str, Any]:
    """Compare the files ``<case>_Label.nii.gz`` of two folders and write the metrics as JSON, and per case as CSV.

    Cases that only one of the folders has are not compared but named under ``not_compared``. The file has no NaN:
    what is undefined is ``null``.

    Args:
        pred_dir: predictions.
        label_dir: references, on the grids of the predictions.
        output_file: JSON. ``cases`` holds what :func:`case_metrics` gives; ``mean``, and by site ``sites``, what
            :func:`summarise` does; ``failures`` names the cases and structures that failed; ``definitions`` and
            ``rules`` say in words what the numbers are. The CSV beside it has a row for every case and structure.

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
    sites = {case: site_of(case) for case in cases}
    content = {**metrics_by_site(cases, sites), "not_compared": sorted(preds.keys() ^ truths.keys())}
    _write(output_file, content, cases, sites)
    return content


def evaluate_cases(cases_file: StrPath, output_file: StrPath, method: str | None = None) -> dict[str, Any]:
    """Evaluate a CSV of per-case values, as :func:`evaluate_folder` does label maps.

    Args:
        cases_file: see :func:`plugins.evaluation.cases.read_cases`.
        output_file: see :func:`evaluate_folder`.
        method: which one, where the table holds several.

    Returns:
        The content of the file.

    Raises:
        InputError: if the table cannot be read, or does not tell which method is meant.
    """
    refuse_own_results([cases_file], [output_file, _table_beside(output_file)])
    table = read_cases(cases_file)
    name = one_method(table, method, str(cases_file))
    if seeds := table.seeds.get(name):
        raise InputError(
            f"{cases_file} has the seeds {', '.join(seeds)}. Leave the rows of one seed, or compare methods."
        )
    cases = complete({name: table.methods[name]})[0][name]
    content = {**metrics_by_site(cases, table.sites), "not_compared": []}
    _write(output_file, content, cases, table.sites)
    return content


def metrics_by_site(cases: Mapping[str, CaseMetrics], sites: Mapping[str, str]) -> dict[str, Any]:
    """All that an evaluation says of its cases.

    Args:
        cases: case to its metrics.
        sites: case to its site.

    Returns:
        ``definitions``, ``rules``, ``cases``, ``mean``, ``sites`` and ``failures`` of :func:`evaluate_folder`.
    """
    found = {site: [case for case in cases if sites[case] == site] for site in sorted({sites[case] for case in cases})}
    return {
        "definitions": DEFINITIONS,
        "rules": RULES,
        "cases": dict(cases),
        "mean": summarise(cases),
        "sites": {
            site: {"cases": names, "mean": summarise({case: cases[case] for case in names})}
            for site, names in found.items()
        },
        "failures": [
            {"case": case, "site": sites[case], "structure": name, **metrics[name]}
            for case, metrics in cases.items()
            for name in STRUCTURES
            if metrics[name]["failure"]
        ],
    }


def summarise(cases: Mapping[str, CaseMetrics]) -> dict[str, dict[str, Any]]:
    """Means over cases, by each of :data:`RULES`.

    Returns:
        For ``vs`` and ``cochlea``, by the challenge's rule: each measure's mean, and its sample standard deviation as
        ``<measure>_std``; ``assd_mm_found`` (mean over the cases where both sides have the structure); ``cases`` (how
        many count), ``failures`` and ``empty`` (where one side lacks the structure). The same means, deviations and
        ``cases`` lie in ``plain`` and ``without_failures``. For ``both``: ``dice`` and ``assd_mm``, the means of the
        two structures' means; their ``_std`` over the cases' means of both structures.
    """
    mean = {name: _structure_summary([case[name] for case in cases.values()]) for name in STRUCTURES}
    both: dict[str, Any] = {key: _mean([mean[name][key] for name in STRUCTURES]) for key in ("dice", "assd_mm")}
    for key in ("dice", "assd_mm"):
        pairs = [[case[name][key] for name in STRUCTURES] for case in cases.values()]
        both[f"{key}_std"] = _std([_mean(pair) for pair in pairs if None not in pair])
    return {**mean, "both": both}


def is_found(row: Mapping[str, Any]) -> bool:
    """Whether both sides have the structure: no distance in a head is the penalty."""
    return row["assd_mm"] is not None and row["assd_mm"] != PENALTY_MM


def _structure_summary(rows: Sequence[StructureMetrics]) -> dict[str, Any]:
    plain = [_plain(row) for row in rows]
    kept = [row for row in rows if not row["failure"] and row["dice"] is not None]
    counted = [row for row in rows if row["dice"] is not None]
    return {
        **_means(rows),
        "assd_mm_found": _means(plain)["assd_mm"],
        "cases": len(counted),
        "failures": sum(bool(row["failure"]) for row in rows),
        "empty": sum(not is_found(row) for row in counted),
        "plain": {**_means(plain), "cases": len(counted)},
        "without_failures": {**_means(kept), "cases": len(kept)},
    }


def _plain(row: StructureMetrics) -> StructureMetrics:
    """A row without the distances of a structure that was not found."""
    lasting = [name for name, measure in CASE_MEASURES.items() if measure.worst == 0]
    return row if is_found(row) else {name: row.get(name) for name in lasting}


def _means(rows: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    """Mean and standard deviation of every measure; ``None`` for one that the rows do not have."""
    means: dict[str, float | None] = {}
    for name in CASE_MEASURES:
        values = [row.get(name) for row in rows]
        means |= {name: _mean(values), f"{name}_std": _std(values)}
    return means


def _mean(values: Iterable[Any]) -> float | None:
    return _of_known(values, np.mean, least=1)


def _std(values: Iterable[Any]) -> float | None:
    return _of_known(values, lambda known: np.std(known, ddof=1), least=2)


def _of_known(values: Iterable[Any], function: Callable[[list[float]], Any], least: int) -> float | None:
    known = [float(value) for value in values if value is not None]
    return float(function(known)) if len(known) >= least else None


def _write(
    output_file: StrPath, content: dict[str, Any], cases: Mapping[str, CaseMetrics], sites: Mapping[str, str]
) -> None:
    write_cases(_table_beside(output_file), {"": cases}, sites)
    write_json(output_file, content)


def _table_beside(output_file: StrPath) -> str:
    return os.path.splitext(output_file)[0] + ".csv"
