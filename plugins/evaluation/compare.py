"""Rounds of self-training side by side: the table and the paired t-test."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from plugins.evaluation.metrics import FAILURE, STRUCTURE_TITLES, STRUCTURES
from plugins.evaluation.statistics import paired_t_test

MEASURES = ("dice", "assd_mm")
UNKNOWN = "-"
NAMED = 5


def compare_rounds(rounds: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Paired t-tests of every round against the one before it, over the cases that both have.

    Args:
        rounds: name of the round to the content of its metrics file, in order.

    Returns:
        One entry per pair of rounds, structure and measure: ``before``, ``after``, ``structure``, ``measure`` and
        the fields of :func:`paired_t_test`.
    """
    tests = []
    for (before, first), (after, second) in pairwise(rounds.items()):
        for structure in STRUCTURES:
            for measure in MEASURES:
                pairs = [
                    (first["cases"][case][structure][measure], second["cases"][case][structure][measure])
                    for case in first["cases"]
                    if case in second["cases"]
                ]
                known = [(a, b) for a, b in pairs if a is not None and b is not None]
                test = paired_t_test([a for a, _ in known], [b for _, b in known])
                tests.append({"before": before, "after": after, "structure": structure, "measure": measure, **test})
    return tests


def table_rows(rounds: Mapping[str, Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Heads and cells of the results table: a row for every round and structure, and one for the mean of both."""
    rows = []
    for name, content in rounds.items():
        mean = content["mean"]
        for structure, title in STRUCTURE_TITLES.items():
            values = mean[structure]
            dice = _with_std(values["dice"], values["dice_std"])
            assd = _with_std(values["assd_mm"], values["assd_mm_std"], digits=3)
            first = structure == next(iter(STRUCTURE_TITLES))
            rows.append(
                [round_title(name) if first else "", title, dice, assd, f"{values['failures']}/{values['cases']}"]
            )
        rows.append(["", "mean", _number(mean["both"]["dice"]), _number(mean["both"]["assd_mm"], digits=3), ""])
    return ["", "structure", "Dice", "ASSD [mm]", "failures"], rows


def show_metrics(metrics: Mapping[str, Any], file: str) -> None:
    """Print the means of an evaluation and where all of it lies.

    Args:
        metrics: of label maps, as :func:`plugins.evaluation.evaluate_folder` gives them, or of translations.
        file: that holds them.
    """
    if "both" in metrics["mean"]:
        table = results_table({"": metrics}, title="mean ± standard deviation over cases")
    else:
        table = Table("measure", "mean over cases", box=box.SIMPLE)
        for name, value in metrics["mean"].items():
            table.add_row(Text(name), _number(value) if isinstance(value, (int, float, type(None))) else str(value))
    Console().print(table)
    if absent := metrics.get("not_compared"):
        named = f"{', '.join(absent[:NAMED])}{', ...' if len(absent) > NAMED else ''}"
        print(f"not compared, since one of the folders lacks them: {len(absent)} cases ({named})")
    print(f"metrics: {file}", flush=True)


def results_table(
    rounds: Mapping[str, Mapping[str, Any]],
    decisions: Mapping[str, str] | None = None,
    title: str = "hrT2 validation scans, mean ± standard deviation over cases",
) -> Table:
    """The results of all rounds as a table for the terminal; below it what a failure is, and the decisions.

    Args:
        rounds: name of the round to the content of its metrics file, in order.
        decisions: name of the round to a sentence on whether its model was accepted.
        title: above the table.
    """
    heads, rows = table_rows(rounds)
    # narrow enough for 80 columns
    table = Table(
        title=title,
        box=box.SIMPLE,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=Text("\n".join([FAILURE, *decision_lines(decisions)])),
        caption_justify="left",
    )
    for position, head in enumerate(heads):
        table.add_column(Text(head), justify="left" if position < 2 else "right", no_wrap=position > 0)
    for row in rows:
        table.add_row(*row, end_section=row[1] == "mean")
    return table


def decision_lines(decisions: Mapping[str, str] | None) -> list[str]:
    """A line for each round whose model was judged.

    Example:
        >>> decision_lines({"round_1": "refused, plausibility falls"})
        ['self-training, round 1: refused, plausibility falls']
    """
    return [f"{round_title(name)}: {sentence}" for name, sentence in (decisions or {}).items()]


def round_title(name: str) -> str:
    """What a round is called in tables and pictures.

    Example:
        >>> round_title("round_0"), round_title("round_2")
        ('before self-training', 'self-training, round 2')
    """
    number = name.removeprefix("round_")
    if not number:
        return ""
    return "before self-training" if number == "0" else f"self-training, round {number}"


def _number(value: float | None, digits: int = 4) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def _with_std(value: float | None, std: float | None, digits: int = 4) -> str:
    return _number(value, digits) if std is None else f"{_number(value, digits)} ± {std:.{digits}f}"
