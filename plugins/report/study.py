"""The report of a study: methods side by side, each with one run or one for every seed."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plugins.errors import InputError
from plugins.report import facts, paper, pseudo, tables
from plugins.report.cases import LIGHTS, lights_of, worst_first
from plugins.report.figures import CaseFigures
from plugins.report.live import FOLDER, publish
from plugins.report.page import NUMBERS, write_page
from plugins.report.positions import shares_table
from plugins.report.run import REAL, case_windows, curve_figures, histogram_figures, shown_in
from plugins.report.volumes import PREDICTION, REFERENCE, pack_methods
from plugins.state import read_state

StrPath = str | os.PathLike[str]
Runs = Mapping[str, Mapping[int, StrPath]]
TITLE = "Methods side by side"
RESULTS = "results"
RED, AMBER, GREEN = LIGHTS
SHOWN_CASES = 12
"""The worst of all have pictures and volumes; the others would make the page too large."""
SEED_KEYS = ("method", "seed", "structure", "dice", "assd_mm", "failures")


@dataclass(frozen=True)
class Run:
    """One complete run of a study.

    Attributes:
        method: its title.
        seed: of the run.
        folder: of the run.
        numbers: its ``report.json``.
    """

    method: str
    seed: int
    folder: Path
    numbers: Mapping[str, Any]

    @property
    def rows(self) -> dict[str, Mapping[str, Any]]:
        """Case to its row in the run's report."""
        return {row["case"]: row for row in self.numbers["cases"]}


def write_study_report(
    runs: Runs, output_dir: StrPath, comparison: Mapping[str, Any] | None = None, seeds: Sequence[Sequence[Any]] = ()
) -> Path:
    """Write the page of several complete runs, and the figures of the paper from them.

    The folder gets ``report.html``, ``report/report.json`` (the numbers of the page), and in ``results`` ``fig3.png``
    (segmentations method by method), ``fig4.png`` (translations) and ``fig5.png`` (positions of the contrastive loss).
    A figure that the runs have nothing for is left out.

    The score of a case is its mean over methods and seeds. Its light is red if most of them failed, and amber if one
    did or found something unusual. Pictures show the label maps of each method's first seed.

    Args:
        runs: method to seed to the folder of a run, with its report.
        output_dir: the folder.
        comparison: what :func:`plugins.evaluation.compare_methods` found; ``None`` shows the runs' own results.
        seeds: method, seed, structure, mean Dice, mean ASSD in mm and failures, of every seed.

    Returns:
        the page.

    Raises:
        InputError: if there is no run, or one has no report.
    """
    if not any(runs.values()):
        raise InputError("a study needs runs. Give the folders of complete runs.")
    known = [
        Run(method, seed, Path(folder), _numbers(Path(folder)))
        for method, each in runs.items()
        for seed, folder in each.items()
    ]
    rows = worst_first(_case(case, known) for case in dict.fromkeys(case for run in known for case in run.rows))
    first = [run for run in known if run.seed == next(iter(runs[run.method]))]
    files = {row["case"]: found for row in rows[:SHOWN_CASES] if (found := _files(row["case"], first)) is not None}
    stages = {run.method: [stage["name"] for stage in run.numbers["stages"]] for run in first}
    given = {run.method: run.numbers.get("translations", {}) for run in first}  # earlier versions did not tell
    translators = paper.translators_in({run.method: run.folder for run in first}, stages, given)
    source = facts.source_in(first[0].folder, stages[first[0].method])
    positions = paper.positions_of(translators, source)
    shown = [{"view": each.title, **found} for each, found, _ in positions]
    views = _views(first, translators)
    losses = _losses(first)
    volumes = _volumes(files, first)
    results = _own_results(first) if comparison is None else _intervals(comparison)
    content = {
        **facts.head("study", TITLE, Path(output_dir).absolute().name),
        "stages": [
            {**stage, "name": f"{run.method}, seed {run.seed}: {stage['name']}"}
            for run in known
            for stage in run.numbers["stages"]
        ],
        "other_versions": facts.other_versions(stage for run in known for stage in run.numbers["stages"]),
        "methods": [*runs],
        "intervals": results,
        "comparison": dict(comparison or {}),
        "seeds": [dict(zip(SEED_KEYS, line, strict=True)) for line in seeds],
        "tables": _tables(results, comparison, seeds, known, rows),
        "lights": lights_of(rows),
        "cases": rows,
        "translators": [each.numbers() for each in translators],
        "translator_tables": [paper.translators_table(translators)] if translators else [],
        "views": views,
        "positions": shown,
        "position_tables": [shares_table(shown)] if shown else [],
        "pseudo_tables": _pseudo_tables(known),
        "audit_tables": pseudo.audit_tables(_audits(known)),
        "losses": losses,
        "viewer": shown_in(volumes),
    }
    figures = {
        "fig3": paper.segmentations(_worst_and_median(rows, files), files),
        "fig4": paper.translations(translators, source),
        "fig5": paper.positions(positions),
    }
    media = {
        "cases": CaseFigures(files),
        "translations": [
            {"case": scan["case"], "picture": picture}
            for scan in source[: paper.TRANSLATED]
            if (picture := paper.translation_picture(translators, scan))
        ],
        "positions": paper.position_pictures(positions),
        "curves": curve_figures(losses),
        "histograms": histogram_figures(views),
        "volumes": volumes,
    }
    paper.write_figures(figures, Path(output_dir, RESULTS))
    write_page(content, media, Path(output_dir, FOLDER))
    return publish(output_dir)


def _numbers(run: Path) -> dict[str, Any]:
    file = run / FOLDER / NUMBERS
    content = read_state(file, dict[str, Any], "Complete the run, or remove its report and give its command again")
    if content.get("kind") != "run":
        raise InputError(f"{file} is not the report of a run. Give the folder of a run.")
    if "model" not in content:
        raise InputError(f"{file} is of an earlier version. Remove {file.parent} and give the run's command again.")
    return content


def _case(case: str, runs: Sequence[Run]) -> dict[str, Any]:
    """The row of a case: the light, the mean score, and what each run says of it."""
    found = {_title(run, runs): run.rows[case] for run in runs if case in run.rows}
    scores = {name: row["score"] for name, row in found.items()}
    failed = [name for name, row in found.items() if row["light"] == RED]
    worst, best = min(scores, key=lambda name: scores[name]), max(scores, key=lambda name: scores[name])
    summary = f"failed in {len(failed)} of {len(found)} runs: worst with '{worst}' (score {scores[worst]:.2f})"
    return {
        "case": case,
        "light": _light(row["light"] for row in found.values()),
        "reasons": [
            *([f"{summary}, best with '{best}' ({scores[best]:.2f})"] if failed else []),
            *(f"{name}: {reason}" for name, row in found.items() for reason in row["reasons"]),
        ],
        "score": float(np.mean([*scores.values()])),
        "scored_by": f"mean over {len(found)} of {next(iter(found.values()))['scored_by']}",
        "failed": failed,
        "runs": scores,
    }


def _light(of_runs: Iterable[str]) -> str:
    """Of a case: floors fail everywhere, so one run that failed does not make it red."""
    lights = list(of_runs)
    if 2 * lights.count(RED) > len(lights):
        return RED
    return GREEN if set(lights) == {GREEN} else AMBER


def _title(run: Run, runs: Sequence[Run]) -> str:
    """The method, with the seed where it has several."""
    return run.method if sum(each.method == run.method for each in runs) == 1 else f"{run.method}, seed {run.seed}"


def _files(case: str, runs: Sequence[Run]) -> dict[str, Any] | None:
    """Scan, reference and each method's label map; ``None`` where a file is gone."""
    found = {
        run.method: {name: path and os.path.join(run.folder, path) for name, path in files.items()}
        for run in runs
        if (files := run.rows.get(case, {}).get("files"))
    }
    paths = [path for each in found.values() for path in each.values() if path is not None]
    if not found or not all(os.path.exists(path) for path in paths):
        return None
    first = next(iter(found.values()))
    predictions = {method: each[PREDICTION] for method, each in found.items()}
    reference = {} if first[REFERENCE] is None else {REFERENCE: first[REFERENCE]}
    return {
        "image": first["image"],
        REFERENCE: first[REFERENCE],
        "predictions": predictions,
        "maps": reference | predictions,
    }


def _volumes(files: Mapping[str, Mapping[str, Any]], runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What the viewer shows of each case: the scan once, and every method's label map."""
    packed = []
    for case, each in files.items():
        folder = Path(next(iter(each["predictions"].values()))).parent
        window = case_windows(folder).get(case)
        packed.append({"case": case, **pack_methods(each["image"], each["predictions"], each[REFERENCE], window)})
    return packed


def _worst_and_median(rows: Sequence[Mapping[str, Any]], files: Mapping[str, Any]) -> dict[str, str]:
    """What Fig. 3 shows: ``worst`` and ``median`` to a case."""
    drawn = [row["case"] for row in rows if row["case"] in files]
    if len(drawn) < 2:
        return dict(zip(["only"], drawn, strict=False))
    return {"worst": drawn[0], "median": drawn[len(drawn) // 2]}


def _own_results(runs: Sequence[Run]) -> dict[str, Any]:
    """The intervals of what each run hands over."""
    return {run.method: run.numbers["intervals"][run.numbers["model"]] for run in runs if run.numbers["intervals"]}


def _intervals(comparison: Mapping[str, Any]) -> dict[str, Any]:
    """Those of a comparison, in the form of :func:`plugins.report.tables.intervals_of`."""
    found: dict[str, Any] = {}
    for row in comparison["intervals"]:
        mean = comparison["methods"][row["method"]]["mean"][row["structure"]]
        low, high = row["interval"] or (None, None)
        counts = {"failures": mean["failures"], "cases": mean["cases"]}
        structure = found.setdefault(row["method"], {}).setdefault(row["structure"], counts)
        structure[row["measure"]] = {"mean": row["mean"], "low": low, "high": high, "n": row.get("n", mean["cases"])}
    return found


def _tables(
    results: Mapping[str, Any],
    comparison: Mapping[str, Any] | None,
    seeds: Sequence[Sequence[Any]],
    runs: Sequence[Run],
    rows: Sequence[Mapping[str, Any]],
) -> list[tables.Table]:
    found = [tables.results_table(results, {name: name for name in results})] if results else []
    if comparison is not None:
        found += [tables.ranks_table(comparison), tables.pairs_table(comparison)]
    if seeds:
        found.append(tables.seeds_table(seeds))
    titles = [_title(run, runs) for run in runs]
    pairs = zip(titles, runs, strict=True)
    lights = [[name, *(str(run.numbers["lights"][light]) for light in LIGHTS)] for name, run in pairs]
    return [
        *found,
        tables.table("Traffic lights of each run.", ["", *LIGHTS.values()], lights),
        _scores_table(rows, titles),
    ]


def _scores_table(rows: Sequence[Mapping[str, Any]], titles: Sequence[str]) -> tables.Table:
    """Cases by runs; what there is more of goes down the page."""
    heads = ["case", *titles]
    lines = [[row["case"], *(tables.number(row["runs"].get(name), 3) for name in titles)] for row in rows]
    if len(titles) > len(rows):
        heads, *lines = (list(line) for line in zip(heads, *lines, strict=True))
        heads[0] = "run"
    return tables.table("Score of each case in each run, the worst case first.", heads, lines)


def _views(runs: Sequence[Run], translators: Sequence[paper.Translator]) -> dict[str, Any]:
    """Histograms and contrast of each translator once, and those of real scans."""
    numbers = {run.folder: run.numbers["views"] for run in runs}
    found = {each.title: numbers[each.run][each.view] for each in translators if each.view in numbers.get(each.run, {})}
    real = next((views[REAL] for views in numbers.values() if REAL in views), None)
    return found if real is None else {**found, REAL: real}


def _losses(runs: Sequence[Run]) -> dict[str, Any]:
    """Stage to loss to points of each translator once; those of segmentations are in the pages of the runs."""
    found: dict[str, Any] = {}
    seen: set[str] = set()
    for run in runs:
        marks = {stage["name"]: stage["fingerprint"] for stage in run.numbers["stages"]}
        for stage in [name for name in run.numbers["losses"] if name.endswith("_training")]:
            series = run.numbers["losses"][stage]
            losses = {name: points for name, points in series.items() if "loss" in name.lower()}
            if losses and marks.get(stage, stage) not in seen:
                seen.add(marks.get(stage, stage))
                found[f"{run.method}: {stage}"] = losses
    return found


def _audits(runs: Sequence[Run]) -> dict[str, Any]:
    return {
        f"{_title(run, runs)}, {content['round'].replace('_', ' ')}": content.get("audit")
        for run in runs
        for content in run.numbers["pseudo_labels"]
    }


def _pseudo_tables(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """What became of the pseudo-labels of each run, round by round."""
    rows = []
    for run in runs:
        for content in run.numbers["pseudo_labels"]:
            changes = [
                value for case in content["cases"] for value in case["dice_to_before"].values() if value is not None
            ]
            change = tables.number(float(np.mean(changes)), 3) if changes else tables.UNKNOWN
            kept = f"{content['kept']} of {len(content['cases'])}"
            rows.append([_title(run, runs), content["round"].replace("_", " "), kept, change])
    heads = ["run", "round", "scans trained on", "mean Dice to the round before"]
    return [{"round": "All runs", **tables.table("Pseudo-labels of each round.", heads, rows)}] if rows else []
