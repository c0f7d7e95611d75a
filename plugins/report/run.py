"""The report of a run: one page with every scan, worst first, and its numbers as JSON."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from rich.console import Console

from plugins.data import Window, read_label, read_windows
from plugins.data.windows import WINDOWS
from plugins.errors import InputError
from plugins.evaluation.compare import compare_rounds, decision_lines, results_table, round_title
from plugins.evaluation.labels import LABEL_ENDING
from plugins.files import whole_file, write_json
from plugins.report import facts, pseudo, tables
from plugins.report.cases import IGNORED, case_row, general_statistics, lights_of, worst_first
from plugins.report.figures import LINES, CaseFigures, curves, thinned, translation_figure
from plugins.report.page import write_page
from plugins.report.positions import run_positions, shares_table
from plugins.report.views import bin_centres, regions_of
from plugins.report.volumes import PREDICTION, REFERENCE, pack_case
from plugins.segmentation import SourceStatistics
from plugins.state import read_state

StrPath = str | os.PathLike[str]
Scans = Sequence[Mapping[str, Any]]
Files = Mapping[str, StrPath]
Stages = Collection[str] | None

TITLE = "Segmentation of hrT2 without hrT2 labels"
TRANSLATED_CASES, COMPARED_SCANS, VIEWED_CASES = 4, 8, 20
REAL = "real hrT2"
SCORE = "score.json"
CURE = "Remove its folder, and give the command again to make it anew"


def write_report(
    validation: Scans,
    pred_dirs: Files,
    metrics_files: Files,
    output_dir: StrPath,
    truth: Files | None = None,
    source: Scans = (),
    translations: Files | None = None,
    decisions: Mapping[str, str] | None = None,
    target: Scans = (),
    run_dir: StrPath | None = None,
    handed_over: str | None = None,
    stages: Stages = None,
) -> dict[str, Any]:
    """Write ``index.html``, ``report.json``, ``metrics.json`` and ``table.txt`` into a folder.

    The page needs no other file.

    Args:
        validation: the hrT2 scans, ``{"case", "image"}`` each; a row and a picture for each.
        pred_dirs: round (``round_0``, ...) to the folder of its label maps ``<case>_Label.nii.gz``.
        metrics_files: round to the file that :func:`plugins.evaluation.evaluate_folder` wrote; empty where there are
            no references.
        output_dir: the folder.
        truth: case to reference label map.
        source: ceT1 scans with label maps; the first few are shown beside their translations.
        translations: head of the column to the folder of the translated volumes.
        decisions: round to a sentence on whether its model was accepted.
        target: the hrT2 scans that pseudo-labels were made of.
        run_dir: folder of the run, for its stages, losses, scores and pseudo-labels.
        handed_over: the round whose label maps are judged; ``None`` is the last.
        stages: names of the run's stages; ``None`` shows all that lie in its folder.

    Returns:
        The content of ``metrics.json``: round to metrics, and ``paired_t_test``.
    """
    truth, translations = truth or {}, translations or {}
    rounds = {name: read_state(path, dict[str, Any], "Evaluate again") for name, path in metrics_files.items()}
    tests = compare_rounds(rounds)
    metrics: dict[str, Any] = {**rounds, "paired_t_test": tests}
    write_json(Path(output_dir, "metrics.json"), metrics)
    _write_table(Path(output_dir, "table.txt"), rounds, decisions)

    run = None if run_dir is None else Path(run_dir)
    final = handed_over or [*pred_dirs][-1]
    scores = {} if run is None else _scores(run, final, stages)
    statistics = _statistics(scores, source)
    windows = case_windows(pred_dirs[final])
    rows, files = [], {}
    for scan in validation:
        case = scan["case"]
        found = Path(pred_dirs[final], case + LABEL_ENDING)
        measured = rounds.get(final, {}).get("cases", {}).get(case)
        row = case_row(case, read_label(found), statistics, windows.get(case), measured)
        paths = {"image": scan["image"], PREDICTION: found, REFERENCE: truth.get(case)}
        rows.append({**row, "files": {name: path and _from(run, path) for name, path in paths.items()}})
        maps = {"reference": truth[case]} if case in truth else {}
        maps |= {round_title(name): Path(folder, case + LABEL_ENDING) for name, folder in pred_dirs.items()}
        files[case] = {**paths, "maps": maps}
    rows = worst_first(rows)
    target_rows = [] if run is None else worst_first(_target_rows(run, target, final, scores, statistics, stages))
    judged = scores.get("cases", [])
    losses = {} if run is None else _losses(run, stages)
    views = _views(source, translations, target, run, final, stages)
    changes = [] if run is None else pseudo.rounds_of(run, [scan["case"] for scan in target], [*pred_dirs], stages)
    intervals = tables.intervals_of(rounds)
    folders = {view: _from(run, folder) for view, folder in translations.items()}
    positions, drawn = run_positions(run, source, stages, folders) if run is not None else ([], [])
    made = [] if run is None else facts.stages_in(run, stages)
    content: dict[str, Any] = {
        **facts.head("run", TITLE, "" if run is None else run.name),
        "stages": made,
        "other_versions": facts.other_versions(made),
        "handed_over": round_title(final),
        "model": final,
        "decisions": [*decision_lines(decisions)],
        "metrics": rounds,
        "intervals": intervals,
        "paired_t_test": tests,
        "tables": _tables(intervals, tests),
        "lights": lights_of(rows),
        "cases": rows,
        "target_lights": lights_of(target_rows),
        "target_cases": target_rows,
        "target_made_by": "" if run is None else round_title(_target_folder(run, final, stages)[1]),
        "judged_without_labels": judged,
        "statistics": statistics.to_json(),
        "translations": folders,
        "views": views,
        "pseudo_labels": changes,
        "pseudo_tables": [{"round": round_title(each["round"]), **pseudo.pseudo_table(each)} for each in changes],
        "audit_tables": pseudo.audit_tables({round_title(each["round"]): each["audit"] for each in changes}),
        "positions": positions,
        "position_tables": [shares_table(positions)] if positions else [],
        "losses": losses,
    }
    volumes = pack_cases(rows, files, windows)
    content["viewer"] = shown_in(volumes)
    media = {
        "cases": CaseFigures(files),
        "translations": _translations(source, translations),
        "positions": drawn,
        "curves": curve_figures(losses),
        "histograms": histogram_figures(views),
        "volumes": volumes,
    }
    write_page(content, media, output_dir)
    return metrics


def pack_cases(
    rows: Sequence[Mapping[str, Any]], files: Mapping[str, Mapping[str, Any]], windows: Mapping[str, Window]
) -> list[dict[str, Any]]:
    """What the viewer shows: the worst :data:`VIEWED_CASES` cases, in the order of the rows.

    Args:
        rows: of the table.
        files: case to ``image``, ``prediction`` and ``reference``, the last may be ``None``.
        windows: case to what its segmentation saw.
    """
    packed = []
    for row in islice((row for row in rows if row["case"] in files), VIEWED_CASES):
        each = files[row["case"]]
        maps = {name: each[name] for name in (PREDICTION, REFERENCE) if each[name] is not None}
        packed.append({"case": row["case"], **pack_case(each["image"], maps, windows.get(row["case"]))})
    return packed


def shown_in(volumes: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The numbers of what :func:`pack_cases` gave."""
    return [{key: each[key] for key in ("case", "levels", "step", "shape", "centre")} for each in volumes]


def curve_figures(losses: Mapping[str, Mapping[str, Any]], first_number: int = 0) -> list[dict[str, Any]]:
    """For each training ``stage`` and ``figures``: ``title``, ``svg`` and ``alt`` of each scalar.

    The trainings are numbered in the page, from ``first_number`` on.
    """
    found = []
    for number, (stage, series) in enumerate(losses.items(), first_number):
        figures: list[dict[str, str]] = []
        for title, points in series.items():
            svg = curves(f"curve{number}-{len(figures)}", {title: points}, "step")
            first, last = (tables.number(value) for _, value in (points[0], points[-1]))
            alt = f"{title} of {stage}: {first} at first, {last} in the end"
            figures.append({"title": title, "svg": svg, "alt": alt})
        found.append({"stage": stage, "figures": figures})
    return found


def histogram_figures(views: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Charts for each region, translations against real scans; in none are there more lines than patterns."""
    found: list[dict[str, str]] = []
    regions = dict.fromkeys(region for view in views.values() for region in view["histograms"])
    translated, most = [name for name in views if name != REAL], len(LINES) - 1
    groups = [translated[first : first + most] for first in range(0, len(translated), most)]
    for region in regions:
        for group in groups:
            densities = {name: view["histograms"].get(region) for name, view in views.items() if name in (*group, REAL)}
            series = {
                name: [*zip(bin_centres(), density, strict=True)] for name, density in densities.items() if density
            }
            if series:
                svg = curves(f"histogram{len(found)}", series, "intensity, 0.1st to 99.9th percentile", "density")
                alt = f"Histograms of the intensities of {region}: {', '.join(series)}"
                found.append({"title": region, "svg": svg, "alt": alt})
    return found


def _write_table(path: Path, rounds: Mapping[str, Any], decisions: Mapping[str, str] | None) -> None:
    with whole_file(path) as part, part.open("w", encoding="utf-8") as file:
        console = Console(file=file, width=100)
        if rounds:
            console.print(results_table(rounds, decisions))
        else:
            console.print("\n".join(["no reference label maps, no metrics", *decision_lines(decisions)]), markup=False)


def _tables(intervals: Mapping[str, Any], tests: Sequence[Mapping[str, Any]]) -> list[tables.Table]:
    return [*([tables.results_table(intervals)] if intervals else []), *([tables.tests_table(tests)] if tests else [])]


def _scores(run: Path, final: str, stages: Stages) -> dict[str, Any]:
    """What is known of the target scans without labels; empty where no gate asked for it."""
    file = run / final / "score" / SCORE
    known = file.is_file() and _belongs(f"{final}/score", stages)
    return read_state(file, dict[str, Any], CURE) if known else {}


def _belongs(name: str, stages: Stages) -> bool:
    """Whether a stage is one of the run's; ``None`` takes all that lie in its folder."""
    return stages is None or name in stages


def _from(run: Path | None, path: StrPath) -> str:
    """A path as seen from the run's folder, which may be moved; absolute where it lies elsewhere."""
    full = Path(os.path.abspath(path))
    if run is None or not full.is_relative_to(run.absolute()):
        return str(full)
    return full.relative_to(run.absolute()).as_posix()


def _statistics(scores: Mapping[str, Any], source: Scans) -> SourceStatistics:
    if "statistics" in scores:
        return SourceStatistics.from_json(scores["statistics"])
    labels = (read_label(scan["label"]) for scan in source if "label" in scan)
    try:
        return SourceStatistics.measure((each.voxels, each.affine) for each in labels)
    except InputError:
        return general_statistics()


def case_windows(folder: StrPath) -> dict[str, Window]:
    """What the segmentation saw of each case; empty where it saw whole scans."""
    return read_windows(folder) if Path(folder, WINDOWS).is_file() else {}


def _target_rows(
    run: Path, target: Scans, final: str, scores: Mapping[str, Any], statistics: SourceStatistics, stages: Stages
) -> list[dict[str, Any]]:
    """A row for each scan without labels that the run has segmented, by the model that is handed over."""
    scored = {row["case"]: row for row in scores.get("cases", [])}
    folder = _target_folder(run, final, stages)[0]
    rows = []
    for scan in target:
        file = folder / f"{scan['case']}{LABEL_ENDING}"
        if file.is_file():
            found, row = read_label(file, (0, 1, 2, IGNORED)), scored.get(scan["case"], {})
            judged = {"score": row["plausibility"], "reasons": row["reasons"]} if row else None
            rows.append(case_row(scan["case"], found, statistics, agreement=row.get("agreement"), judged=judged))
    return rows


def _target_folder(run: Path, final: str, stages: Stages) -> tuple[Path, str]:
    """Label maps of the scans without labels, and whose they are; without a gate the last round's has none."""
    if (run / final / "target").is_dir() and _belongs(f"{final}/target", stages):
        return run / final / "target", final
    number = int(final.removeprefix("round_") or 0)
    return run / final / "pseudo_labels", f"round_{max(number - 1, 0)}"


def _losses(run: Path, stages: Stages) -> dict[str, Any]:
    """Stage to scalar to points, for every stage that wrote events."""
    names = [stage["name"] for stage in facts.stages_in(run, stages) if stage["complete"]]
    series = {name: facts.losses_in(run / name) for name in names}
    return {
        stage: {name: [*thinned(points)] for name, points in found.items() if points}
        for stage, found in series.items()
        if found
    }


def _translations(source: Scans, translations: Files) -> list[dict[str, str]]:
    return [
        {
            "case": scan["case"],
            "picture": translation_figure(
                scan, {head: Path(folder, f"{scan['case']}.nii.gz") for head, folder in translations.items()}
            ),
        }
        for scan in source[:TRANSLATED_CASES]
        if translations
    ]


def _views(
    source: Scans, translations: Files, target: Scans, run: Path | None, final: str, stages: Stages
) -> dict[str, Any]:
    """Regions of translations, with the source's labels, and of real scans, with the labels that the run found."""
    views = {
        head: regions_of([(Path(folder, f"{s['case']}.nii.gz"), s["label"]) for s in source[:COMPARED_SCANS]])
        for head, folder in translations.items()
    }
    if run is not None and views:
        folder, _ = _target_folder(run, final, stages)
        pairs = [(scan["image"], folder / f"{scan['case']}{LABEL_ENDING}") for scan in target]
        known = [pair for pair in pairs if pair[1].is_file()][:COMPARED_SCANS]
        if known:
            views[REAL] = regions_of(known)
    return views
