"""Tables of a report: heads, rows of text, a caption."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from plugins.evaluation import bootstrap_interval
from plugins.evaluation.compare import MEASURES, round_title
from plugins.evaluation.metrics import CASE_MEASURES, FAILURE, STRUCTURE_TITLES
from plugins.evaluation.statistics import EQUAL, FEWEST

UNKNOWN = "-"
RESULTS = (
    f"Mean over cases [95 % interval, bootstrap over cases, from {FEWEST} cases on]. Here {FAILURE}. A structure "
    "missed, or found where there is none, counts with Dice 0 and ASSD 350 mm. ASSD pools the surfaces of both sides."
)

Table = dict[str, Any]


def table(caption: str, heads: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """A table as templates take it; the first column names the rows."""
    return {"caption": caption, "heads": [*heads], "rows": [[*row] for row in rows]}


def interval(values: Sequence[float]) -> dict[str, float | int | None]:
    """Mean with its bootstrap interval, see :func:`plugins.evaluation.bootstrap_interval`.

    Returns:
        ``mean``, ``low``, ``high`` and ``n``; the bounds are ``None`` for too few values or equal ones.

    Example:
        >>> interval([0.5, 0.5])
        {'mean': 0.5, 'low': None, 'high': None, 'n': 2}
    """
    mean = float(np.mean(values)) if values else None
    if not values or np.ptp(values) <= EQUAL:
        return {"mean": mean, "low": None, "high": None, "n": len(values)}
    low, high = bootstrap_interval(values) or (None, None)
    return {"mean": mean, "low": low, "high": high, "n": len(values)}


def intervals_of(rounds: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Round to structure to measure to :func:`interval`, and ``failures`` of each structure."""
    return {
        name: {
            structure: {
                **{
                    measure: interval(
                        [
                            case[structure][measure]
                            for case in content["cases"].values()
                            if case[structure][measure] is not None
                        ]
                    )
                    for measure in MEASURES
                },
                "failures": content["mean"][structure]["failures"],
                "cases": content["mean"][structure]["cases"],
            }
            for structure in STRUCTURE_TITLES
        }
        for name, content in rounds.items()
    }


def results_table(intervals: Mapping[str, Any], titles: Mapping[str, str] | None = None) -> Table:
    """The results of rounds or runs, a row for each and structure, a column for each measure that they have."""
    rows = []
    known = {measure for structures in intervals.values() for found in structures.values() for measure in found}
    measures = [measure for measure in CASE_MEASURES if measure in known]
    for name, structures in intervals.items():
        for structure, title in STRUCTURE_TITLES.items():
            found = structures[structure]
            values = [spread(found[measure]) for measure in measures]
            shown = (titles or {}).get(name) or round_title(name)
            rows.append([shown, title, *values, f"{found['failures']} of {found['cases']}"])
    return table(RESULTS, ["", "structure", *_titles(measures), "failures"], rows)


def tests_table(tests: Sequence[Mapping[str, Any]]) -> Table:
    """The paired t-tests between rounds."""
    rows = []
    for test in tests:
        compared = f"{round_title(test['after'])} against {round_title(test['before'])}"
        what = f"{CASE_MEASURES[test['measure']].title} {STRUCTURE_TITLES[test['structure']]}"
        rows.append([compared, what, str(test["n"]), *(number(test[key]) for key in ("difference", "t", "p"))])
    return table("Paired t-tests.", ["compared", "measure", "cases", "mean difference", "t", "p"], rows)


def ranks_table(comparison: Mapping[str, Any]) -> Table:
    """The methods from best to worst, of :func:`plugins.evaluation.compare_methods`."""
    rows = [
        [row["method"], str(row["place"]), spread({"mean": row["rank"], **_bounds(row["interval"])})]
        for row in comparison["ranks"]
    ]
    caption = "Ranks as in CrossMoDA: mean over cases, structures and measures [95 % interval]; 1 is best."
    return table(caption, ["method", "place", "mean rank"], rows)


def pairs_table(comparison: Mapping[str, Any]) -> Table:
    """The tests of a comparison."""
    rows = []
    for pair in comparison["pairs"]:
        what = f"{CASE_MEASURES[pair['measure']].title} {STRUCTURE_TITLES[pair['structure']]}"
        difference = spread({"mean": pair["difference"], **_bounds(pair["interval"])})
        tests = [number(pair[key], 3) for key in ("p", "p_holm", "p_wilcoxon_holm", "smallest_difference")]
        rows.append([f"{pair['method']} against {pair['against']}", what, str(pair["n"]), difference, *tests])
    caption = "Paired tests on the means over seeds: difference [95 % interval], t-test, the same and Wilcoxon by Holm."
    heads = ["compared", "measure", "cases", "mean difference", "p", "p, Holm", "p Wilcoxon, Holm", "smallest to show"]
    return table(caption, heads, rows)


def seeds_table(lines: Sequence[Sequence[Any]]) -> Table:
    """Each seed apart: method, seed, structure, mean Dice, mean ASSD and failures."""
    rows = [
        [method, str(seed), STRUCTURE_TITLES[structure], number(dice, 3), number(assd, 3), str(failures)]
        for method, seed, structure, dice, assd, failures in lines
    ]
    return table("Means of each seed.", ["method", "seed", "structure", *_titles(MEASURES), "failures"], rows)


def _titles(measures: Sequence[str]) -> list[str]:
    return [CASE_MEASURES[measure].title for measure in measures]


def _bounds(found: Sequence[float] | None) -> dict[str, float | None]:
    low, high = found or (None, None)
    return {"low": low, "high": high}


def number(value: float | None, digits: int = 4) -> str:
    """A number in few digits, a large one without decimals; ``-`` for ``None``.

    Example:
        >>> number(152100.4), number(1.23456)
        ('152100', '1.235')
    """
    if value is None:
        return UNKNOWN
    return f"{value:.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def spread(found: Mapping[str, Any]) -> str:
    """A mean with its interval.

    Example:
        >>> spread({"mean": 0.81234, "low": 0.7, "high": 0.9})
        '0.812 [0.700, 0.900]'
    """
    if found["mean"] is None:
        return UNKNOWN
    bounds = "" if found["low"] is None else f" [{found['low']:.3f}, {found['high']:.3f}]"
    return f"{found['mean']:.3f}{bounds}"
