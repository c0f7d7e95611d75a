"""The report of a study: several runs side by side, method by method."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from plugins.errors import InputError
from plugins.report import facts, tables
from plugins.report.cases import LIGHTS, lights_of, worst_first
from plugins.report.figures import case_figure
from plugins.report.page import NUMBERS, write_page
from plugins.state import read_state

StrPath = str | os.PathLike[str]
TITLE = "Runs side by side"
DRAWN_CASES = 20


def write_study_report(runs: Mapping[str, StrPath], output_dir: StrPath) -> Path:
    """Write ``index.html`` and ``report.json`` about several complete runs.

    A case is as bad as its worst run. Its picture shows the label maps of all runs, if the files are still there.

    Args:
        runs: name to the folder of a run, with its report.
        output_dir: of the page.

    Returns:
        the page.

    Raises:
        InputError: if there is no run, or one has no report of this version.
    """
    if not runs:
        raise InputError("a study needs runs. Give the folders of complete runs.")
    known = {name: _numbers(Path(folder)) for name, folder in runs.items()}
    results = {
        name: next(reversed(content["intervals"].values())) for name, content in known.items() if content["intervals"]
    }
    cases: dict[str, dict[str, Any]] = {}
    for name, content in known.items():
        for row in content["cases"]:
            cases.setdefault(row["case"], {})[name] = row
    rows = worst_first(_worst(case, by_run) for case, by_run in cases.items())
    shown = {name: name for name in results}
    content = {
        **facts.head("study", TITLE, Path(output_dir).absolute().name),
        "stages": [
            {**stage, "name": f"{name}: {stage['name']}"} for name, each in known.items() for stage in each["stages"]
        ],
        "intervals": results,
        "tables": [
            *([tables.results_table(results, shown)] if results else []),
            tables.table("Traffic lights of each run.", ["", *LIGHTS.values()], _lights(known)),
            tables.table("Score of each case in each run.", ["case", *known], _scores(rows, [*known])),
        ],
        "lights": lights_of(rows),
        "cases": rows,
    }
    media = {"cases": {row["case"]: picture for row in rows[:DRAWN_CASES] if (picture := _picture(row)) is not None}}
    return write_page(content, media, output_dir)


def _numbers(run: Path) -> dict[str, Any]:
    file = run / "report" / NUMBERS
    content = read_state(file, dict[str, Any], "Complete the run, or remove its report and give its command again")
    if content.get("kind") != "run":
        raise InputError(f"{file} is not the report of a run. Give the folder of a run.")
    return content


def _worst(case: str, by_run: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    order = list(LIGHTS)
    worst = min(by_run.values(), key=lambda row: (order.index(row["light"]), row["score"]))
    reasons = [f"{name}: {reason}" for name, row in by_run.items() for reason in row["reasons"]]
    return {
        **worst,
        "case": case,
        "reasons": reasons,
        "runs": {name: row["score"] for name, row in by_run.items()},
        "by_run": {name: row.get("files") for name, row in by_run.items()},
    }


def _lights(known: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    return [[name, *(str(content["lights"][light]) for light in LIGHTS)] for name, content in known.items()]


def _scores(rows: list[dict[str, Any]], runs: list[str]) -> list[list[str]]:
    return [[row["case"], *(tables.number(row["runs"].get(run), 3) for run in runs)] for row in rows]


def _picture(row: Mapping[str, Any]) -> str | None:
    """The scan with the label map of each run; ``None`` where a file is gone."""
    files = {name: each for name, each in row["by_run"].items() if each}
    paths = [path for each in files.values() for path in each.values() if path is not None]
    if not files or not all(os.path.exists(path) for path in paths):
        return None
    first = next(iter(files.values()))
    maps = {} if first["reference"] is None else {"reference": first["reference"]}
    return case_figure(first["image"], maps | {name: each["prediction"] for name, each in files.items()})
