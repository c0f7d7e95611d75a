"""Any number of methods side by side, on the same cases."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from plugins.config.ranges import NotEmpty
from plugins.errors import InputError
from plugins.evaluation.cases import (
    CaseTable,
    Methods,
    Missing,
    complete,
    read_methods,
    refuse_own_results,
    write_cases,
)
from plugins.evaluation.evaluate import DEFINITIONS, RULES, metrics_by_site
from plugins.evaluation.metrics import CASE_MEASURES, STRUCTURES
from plugins.evaluation.ranking import places_of, ranks_of_cases
from plugins.evaluation.statistics import FEWEST, bootstrap_interval, compare_pair, holm
from plugins.evaluation.tables import TABLES, write_tables
from plugins.files import write_json

StrPath = str | os.PathLike[str]
Values = dict[tuple[str, str], NDArray[np.float64]]

CASES, COMPARISON = "cases.csv", "comparison.json"
STATISTICS = {
    "rank": "mean over cases of the mean rank in all structures and measures; 1 is best, ties share their ranks",
    "interval": f"95 % bootstrap interval over {FEWEST} cases or more, BCa, with tails widened for few cases",
    "difference": "mean over cases of method minus against",
    "p": "two-sided paired t-test",
    "p_holm": "the same, corrected by Holm for all pairs of the same structure and measure",
    "p_wilcoxon": "two-sided signed-rank test of Wilcoxon",
    "p_wilcoxon_holm": "the same, corrected by Holm for all pairs of the same structure and measure",
    "smallest_difference": "true mean difference that the paired t-test (level 0.05) finds with 80 % power in n cases",
}


def compare_methods(
    methods: StrPath | Mapping[str, StrPath] | None,
    output_dir: StrPath,
    reference: str | Mapping[str, str] | None = None,
    missing: Missing = "refuse",
    measures: NotEmpty[str] = ("dice", "assd_mm"),
    resamples: PositiveInt = 9999,
    seed: NonNegativeInt | None = 0,
) -> dict[str, Any]:
    """Rank methods, test each pair, and write the results as data and as tables like those of the paper.

    The folder gets ``comparison.json`` (all of it), ``cases.csv``, ``ranks.csv``, ``pairs.csv`` and ``means.csv`` (the
    same as data, for figures), and the table as ``table.csv``, ``table.md`` and ``table.tex``.

    A structure that neither the reference nor a method has is compared in no method, and named under ``left_out``.
    Of a method with several seeds, each case counts once, by its mean over them; means by rules, deviations and
    failures are of the values of all seeds.

    Args:
        methods: a CSV with the column ``method``, or name to the ``metrics.json`` of an evaluation; see
            :func:`plugins.evaluation.cases.read_methods`.
        output_dir: the folder.
        reference: the method that all others are tested against, as in the paper; or method to the one that it is
            tested against; ``None`` tests all pairs.
        missing: what to do if a method lacks a case that another has: ``refuse`` it, or ``penalise`` it with Dice 0 and
            ASSD 350 mm; such rows are named under ``filled_in``.
        measures: names in :data:`plugins.evaluation.metrics.CASE_MEASURES` that are ranked and tested.
        resamples: of each bootstrap.
        seed: of the bootstrap.

    Returns:
        The content of ``comparison.json``.

    Raises:
        InputError: if there are fewer than two methods, they cannot be read or do not have the same cases, or if the
            reference or a measure is unknown.
    """
    if not methods:
        raise InputError("methods is not set. Give a CSV, or the name of each method with its metrics.json.")
    folder = Path(output_dir)
    given = [*methods.values()] if isinstance(methods, Mapping) else [methods]
    refuse_own_results(given, [folder / name for name in (CASES, COMPARISON, *TABLES)])
    table = read_methods(methods)
    rows, filled = complete(table.methods, missing)
    _check(rows, reference, measures)
    whole = _with_all_cases(table, rows)
    own = _values(rows, measures)
    values, left_out = _in_common(own, [*next(iter(rows.values()))])
    names, cases = list(rows), list(next(iter(rows.values())))
    per_case = ranks_of_cases(values)
    pairs = _pairs(names, values, reference, resamples, seed or 0)
    content = {
        "definitions": {**{name: DEFINITIONS[name] for name in measures}, **STATISTICS},
        "rules": RULES,
        "reference": dict(reference) if isinstance(reference, Mapping) else reference,
        "seeds": {name: [*seeds] for name, seeds in whole.seeds.items()},
        "measures": list(measures),
        "filled_in": filled,
        "left_out": left_out,
        "ranks": _ranks(names, per_case, resamples, seed or 0),
        "pairs": pairs,
        "intervals": _intervals(names, own, resamples, seed or 0),
        "methods": {name: _summary(whole, name) for name in names},
    }
    write_cases(folder / CASES, rows, table.sites, whole.seeds)
    ranks_by_case = {name: dict(zip(cases, line, strict=True)) for name, line in zip(names, per_case, strict=True)}
    write_tables(content, folder, ranks_by_case, table.sites)
    write_json(folder / COMPARISON, content)
    return content


def _with_all_cases(table: CaseTable, rows: Methods) -> CaseTable:
    """The table with what was filled in, in every seed."""
    seeds = {
        method: {
            seed: {
                case: {name: cases.get(case, {}).get(name) or row for name, row in structures.items()}
                for case, structures in rows[method].items()
            }
            for seed, cases in each.items()
        }
        for method, each in table.seeds.items()
    }
    return CaseTable(rows, table.sites, seeds)


def _summary(table: CaseTable, method: str) -> dict[str, Any]:
    content = metrics_by_site(*table.each(method))
    return {key: content[key] for key in ("mean", "sites", "failures")}


def _check(rows: Methods, reference: str | Mapping[str, str] | None, measures: Sequence[str]) -> None:
    if len(rows) < 2:
        raise InputError(f"methods holds {', '.join(rows)} alone. Give two or more, or evaluate it.")
    named = [*reference, *reference.values()] if isinstance(reference, Mapping) else [reference]
    for name in named:
        if name is not None and name not in rows:
            raise InputError(f"reference is {name!r}, which is no method. Set it to one of {', '.join(rows)}.")
    if isinstance(reference, Mapping) and all(name == other for name, other in reference.items()):
        raise InputError("reference tests no method against another. Name one, or leave reference out.")
    if twice := [name for name in measures if list(measures).count(name) > 1]:
        raise InputError(f"measures holds {twice[0]!r} twice. Name it once.")
    unknown = [name for name in measures if name not in CASE_MEASURES]
    if unknown:
        raise InputError(f"measures holds {unknown[0]!r}. Take them from {', '.join(CASE_MEASURES)}.")
    for method, cases in rows.items():
        for case, structures in cases.items():
            for row in structures.values():
                absent = [name for name in measures if row["dice"] is not None and row.get(name) is None]
                if absent:
                    what = f"{method} has no {absent[0]} in {case}"
                    raise InputError(f"methods: {what}. Evaluate it again, or leave {absent[0]} out of measures.")


def _values(rows: Methods, measures: Sequence[str]) -> Values:
    """Structure and measure to the values (methods, cases); NaN where a method has none."""
    return {
        (structure, measure): np.array(
            [[case[structure][measure] for case in cases.values()] for cases in rows.values()], dtype=np.float64
        )
        for structure in STRUCTURES
        for measure in measures
    }


def _in_common(own: Values, cases: Sequence[str]) -> tuple[Values, list[dict[str, str]]]:
    """The values of what every method has, NaN elsewhere; and the cases and structures that a method lacks."""
    undefined = {key: np.isnan(table).any(axis=0) for key, table in own.items()}
    left_out = {structure: np.flatnonzero(absent) for (structure, _), absent in undefined.items()}
    named = [{"case": cases[int(place)], "structure": name} for name, places in left_out.items() for place in places]
    return {key: np.where(undefined[key], np.nan, table) for key, table in own.items()}, named


def _pairs(
    names: Sequence[str], values: Values, reference: str | Mapping[str, str] | None, resamples: int, seed: int
) -> list[dict[str, Any]]:
    if reference is None:
        compared = list(combinations(names, 2))
    else:
        given = reference if isinstance(reference, Mapping) else dict.fromkeys(names, reference)
        compared = [(given[name], name) for name in names if name in given and given[name] != name]
    pairs = []
    for (structure, measure), table in values.items():
        known = dict(zip(names, table[:, ~np.isnan(table[0])], strict=True))
        family: list[dict[str, Any]] = [
            {
                "method": method,
                "against": against,
                "structure": structure,
                "measure": measure,
                **compare_pair(known[against].tolist(), known[method].tolist(), resamples, seed),
            }
            for method, against in compared
        ]
        for name in ("p", "p_wilcoxon"):
            for pair, corrected in zip(family, holm([pair[name] for pair in family]), strict=True):
                pair[f"{name}_holm"] = corrected
        pairs += family
    return pairs


def _ranks(names: Sequence[str], per_case: NDArray[np.float64], resamples: int, seed: int) -> list[dict[str, Any]]:
    """The methods from best to worst."""
    known = per_case[:, ~np.isnan(per_case[0])]
    if not known.size:
        raise InputError(
            "methods: no structure is in the reference of any case. Give the cases of scans that show one."
        )
    scores = known.mean(axis=1)
    ranks = [
        {
            "place": place,
            "method": name,
            "rank": float(score),
            "interval": bootstrap_interval(line, resamples=resamples, seed=seed),
        }
        for name, place, score, line in zip(names, places_of(scores), scores, known, strict=True)
    ]
    return sorted(ranks, key=lambda entry: entry["place"])


def _intervals(names: Sequence[str], values: Values, resamples: int, seed: int) -> list[dict[str, Any]]:
    """Of the mean of every method, structure and measure, over the cases where that method has it."""
    return [
        {
            "method": name,
            "structure": structure,
            "measure": measure,
            "mean": float(line.mean()) if line.size else None,
            "n": int(line.size),
            "interval": bootstrap_interval(line, resamples=resamples, seed=seed),
        }
        for (structure, measure), table in values.items()
        for name, line in zip(names, (values[~np.isnan(values)] for values in table), strict=True)
    ]
