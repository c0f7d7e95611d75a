"""A comparison of methods as tables: in the shape of the paper's, and as data."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from plugins.evaluation.cases import write_csv
from plugins.evaluation.metrics import CASE_MEASURES, STRUCTURE_TITLES, STRUCTURES
from plugins.files import whole_file

DIGITS = 4
STARS = ((0.0001, "**"), (0.05, "*"))
NOTE = "Mean (± standard deviation) over {}. "
NOTE_STARS = "Paired t-test against {}, without correction for several tests: * p < 0.05, ** p < 0.0001."
TEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
}
NOTE_LEFT_OUT = "Ranks and tests leave out what a method and the reference both lack: {}."
DATA = ("mean", "std", "cases")
TABLES = ("table.csv", "table.md", "table.tex", "ranks.csv", "pairs.csv", "means.csv")


def write_tables(
    content: Mapping[str, Any],
    folder: str | os.PathLike[str],
    ranks: Mapping[str, Mapping[str, float]],
    sites: Mapping[str, str],
) -> None:
    """Write ``table.csv``, ``table.md`` and ``table.tex``, and the data ``ranks.csv``, ``pairs.csv``, ``means.csv``.

    Args:
        content: of :func:`plugins.evaluation.compare_methods`.
        folder: for the files.
        ranks: method to case to its rank.
        sites: case to its site.
    """
    folder = Path(folder)
    for name, text in (("csv", csv_table(content)), ("md", markdown_table(content)), ("tex", latex_table(content))):
        with whole_file(folder / f"table.{name}") as part:
            part.write_text(text, encoding="utf-8")
    lines = [(method, case, sites[case], _data(rank)) for method, line in ranks.items() for case, rank in line.items()]
    write_csv(folder / "ranks.csv", ("method", "case", "site", "rank"), lines)
    pairs = [{**pair, **_ends(pair["interval"])} for pair in content["pairs"]]
    heads = [name for name in pairs[0] if name != "interval"]
    write_csv(folder / "pairs.csv", heads, [[pair[head] for head in heads] for pair in pairs])
    write_csv(folder / "means.csv", ("method", "site", "rule", "structure", "measure", *DATA), _mean_rows(content))


def table_cells(content: Mapping[str, Any]) -> tuple[list[str], list[list[str]]]:
    """The results in the shape of Tables 1 and 2 of Kang et al. (2024): a row for every method.

    Returns:
        Heads, such as ``Dice VS``, ``Dice cochlea``, ``Dice mean``, ``ASSD [mm] VS``, and the cells, such as ``0.8550
        (±0.0731)*``. The mean is over the two structures, its deviation that of the cases' means; Dice alone has it.
        The stars tell of the paired t-test against the reference.
    """
    tests = {
        (pair["against"], pair["structure"], pair["measure"]): pair["p"]
        for pair in content["pairs"]
        if content["reference"] is not None
    }
    heads, rows = ["Method"], [[name] for name in content["methods"]]
    for measure in content["measures"]:
        for structure in [*STRUCTURES, "both"] if measure == "dice" else STRUCTURES:
            heads.append(f"{CASE_MEASURES[measure].title} {STRUCTURE_TITLES.get(structure, 'mean')}")
            for row, (name, about) in zip(rows, content["methods"].items(), strict=True):
                mean = about["mean"][structure]
                star = stars(tests.get((name, structure, measure)))
                row.append(_cell(mean[measure], mean[f"{measure}_std"]) + star)
    return heads, rows


def stars(p: float | None) -> str:
    """How the paper marks a p-value.

    Example:
        >>> stars(0.00009), stars(0.0001), stars(0.05)
        ('**', '*', '')
    """
    return next((mark for limit, mark in STARS if p is not None and p < limit), "")


def note(content: Mapping[str, Any]) -> str:
    """What stands below the table."""
    reference = content["reference"]
    names = dict.fromkeys(reference.values()) if isinstance(reference, Mapping) else [reference]
    tested = NOTE_STARS.format(" or ".join(map(str, names))) if reference is not None else ""
    over = NOTE.format("cases and seeds" if any(len(seeds) > 1 for seeds in content["seeds"].values()) else "cases")
    absent = ", ".join(f"{each['structure']} of {each['case']}" for each in content["left_out"])
    left_out = NOTE_LEFT_OUT.format(absent) if absent else ""
    return " ".join(f"{over}By the challenge's rule, {content['rules']['challenge']}. {tested} {left_out}".split())


def csv_table(content: Mapping[str, Any]) -> str:
    """:func:`table_cells` as CSV."""
    text = io.StringIO()
    heads, rows = table_cells(content)
    csv.writer(text).writerows([heads, *rows])
    return text.getvalue()


def markdown_table(content: Mapping[str, Any]) -> str:
    """:func:`table_cells` as Markdown, with a note below."""
    heads, rows = table_cells(content)
    lines = [heads, ["---", *[":---:"] * (len(heads) - 1)], *rows]
    text = "\n".join("| " + " | ".join(_in_markdown(cell) for cell in line) + " |" for line in lines)
    return f"{text}\n\n{_in_markdown(note(content))}\n"


def latex_table(content: Mapping[str, Any]) -> str:
    """:func:`table_cells` as a LaTeX ``tabular`` that needs no package, with a note below."""
    heads, rows = table_cells(content)
    groups = [(CASE_MEASURES[name], 3 if name == "dice" else 2) for name in content["measures"]]
    arrows = {True: r"$\uparrow$", False: r"$\downarrow$"}
    above = " & ".join(
        rf"\multicolumn{{{span}}}{{c}}{{{_in_tex(measure.title)} ({arrows[measure.larger_is_better]})}}"
        for measure, span in groups
    )
    below = [title for _, span in groups for title in (*STRUCTURE_TITLES.values(), "mean")[:span]]
    lines = [
        rf"\begin{{tabular}}{{l{'c' * (len(heads) - 1)}}}",
        r"\hline",
        rf" & {above} \\",
        " & ".join(map(_in_tex, ["Method", *below])) + r" \\",
        r"\hline",
        *[" & ".join(map(_in_tex, row)) + r" \\" for row in rows],
        r"\hline",
        r"\end{tabular}",
        "",
        _in_tex(note(content)),
    ]
    return "\n".join(lines) + "\n"


def show_comparison(comparison: Mapping[str, Any], folder: str) -> None:
    """Print the methods from best to worst, and where all of it lies.

    Args:
        comparison: of :func:`plugins.evaluation.compare_methods`.
        folder: that holds the files.
    """
    columns = [(structure, measure) for measure in comparison["measures"] for structure in STRUCTURES]
    # narrow enough for 80 columns
    table = Table(
        box=box.SIMPLE,
        show_edge=False,
        pad_edge=False,
        padding=(0, 1, 0, 0),
        caption=Text(f"Means by the challenge's rule: {comparison['rules']['challenge']}."),
    )
    table.caption_justify = "left"
    for head in ("", "method", "mean rank [95 %]", "failures"):
        table.add_column(head, justify="left" if head == "method" else "right", no_wrap=head != "method")
    for structure, measure in columns:
        table.add_column(Text(f"{STRUCTURE_TITLES[structure]}\n{CASE_MEASURES[measure].title}"), justify="right")
    for entry in comparison["ranks"]:
        about = comparison["methods"][entry["method"]]
        ends = "" if entry["interval"] is None else " [{:.2f}, {:.2f}]".format(*entry["interval"])
        means = [_cell(about["mean"][structure][measure], None) for structure, measure in columns]
        failed = f"{len(about['failures'])}/{sum(about['mean'][structure]['cases'] for structure in STRUCTURES)}"
        first = (str(entry["place"]), Text(entry["method"]), f"{entry['rank']:.2f}{ends}", failed)
        table.add_row(*first, *means)
    Console().print(table)
    print(f"comparison: {folder}", flush=True)


def _mean_rows(content: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    rows = []
    for method, about in content["methods"].items():
        means = {"all": about["mean"], **{site: each["mean"] for site, each in about["sites"].items()}}
        for site, mean in means.items():
            for structure in STRUCTURES:
                by_rule = {"challenge": mean[structure]} | {
                    rule: mean[structure][rule] for rule in ("plain", "without_failures")
                }
                rows += [
                    (method, site, rule, structure, measure, each[measure], each[f"{measure}_std"], each["cases"])
                    for rule, each in by_rule.items()
                    for measure in content["measures"]
                ]
    return rows


def _cell(mean: float | None, std: float | None) -> str:
    deviation = "" if std is None else f" (±{std:.{DIGITS}f})"
    return "-" if mean is None else f"{mean:.{DIGITS}f}{deviation}"


def _ends(interval: Sequence[float] | None) -> dict[str, float | None]:
    low, high = interval or (None, None)
    return {"interval_low": low, "interval_high": high}


def _data(value: float) -> float | None:
    return float(value) if value == value else None


def _in_markdown(text: str) -> str:
    return "".join("\\" + character if character in "\\|*_<`[" else character for character in text)


def _in_tex(text: str) -> str:
    return "".join(TEX.get(character, character) for character in text)
