"""The stages that are functions: the lists of scans, and the report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plugins.data import check_scans, read_datalist
from plugins.files import write_json
from plugins.report import write_report
from plugins.state import read_state
from plugins.workflow.gate import Decision, Gate, decisions_in
from plugins.workflow.records import REMAKE
from plugins.workflow.views import Views

SPLITS = {"source": "training_source", "target": "training_target", "validation": "validation"}
UNTRANSLATED = "ceT1"


def write_dataset_lists(scans: Mapping[str, Sequence[Mapping[str, str]]], output_dir: str) -> None:
    """Check every scan of a data set, then write its lists, ``source.json``, ``target.json`` and ``validation.json``.

    Args:
        scans: those of each list, by absolute paths, so that the run folder may be moved.
        output_dir: where the lists go.

    Raises:
        InputError: naming the first scan that cannot be used.
    """
    check_scans([scan for each in scans.values() for scan in each], foreground=True)
    for name, each in scans.items():
        write_json(Path(output_dir, f"{name}.json"), {"training": each})


def write_training_list(
    source: str,
    views: Mapping[str, str | None],
    output_dir: str,
    run_dir: str,
    target: str | None = None,
    pseudo_labels: str | None = None,
    weights: str | None = None,
    gate: str | None = None,
) -> None:
    """Write ``datalist.json``: what the segmentation of one round is trained on.

    Args:
        source: datalist of the ceT1 scans with their labels.
        views: name of the view to the folder of its translations; ``None`` for the scans as they are.
        output_dir: where the list goes, below the run folder; files of the run are named relative to it.
        run_dir: the run folder.
        target: datalist of real hrT2 scans.
        pseudo_labels: folder of their label maps ``<case>_Label.nii.gz``; scans without one are left out.
        weights: ``views.json`` of :func:`plugins.workflow.views.weigh_views`; a view of weight 0 is left out.
        gate: ``gate.json`` of the pseudo-labels, with the weight of each scan.
    """
    items: list[dict[str, Any]] = []
    scans = read_datalist(source)
    known = {} if weights is None else read_state(weights, Views, REMAKE)
    view_weights = {name: row["weight"] for name, row in known.items()}
    for view, folder in views.items():
        weight = view_weights.get(view, 1.0)
        if weight == 0:
            continue
        for scan in scans:
            case = scan["case"]
            image = scan["image"] if folder is None else os.path.join(folder, f"{case}.nii.gz")
            item = {"case": f"{case}_{view}", "patient": case, "image": image, "label": scan["label"]}
            items.append({**item, "origin": "translated", **({"weight": weight} if weight != 1 else {})})
    if target is not None and pseudo_labels is not None:
        verdicts = {} if gate is None else {row["case"]: row for row in read_state(gate, Gate, REMAKE)["cases"]}
        for scan in read_datalist(target):
            case = scan["case"]
            label = os.path.join(pseudo_labels, f"{case}_Label.nii.gz")
            if gate is not None and not verdicts[case]["kept"]:
                continue
            item = {"case": case, "patient": case, "image": scan["image"], "label": label, "origin": "real"}
            weight = verdicts[case]["weight"] if gate is not None else 1.0
            items.append({**item, **({"weight": weight} if weight != 1 else {})})
    write_json(Path(output_dir, "datalist.json"), {"training": [*_relative(items, output_dir, run_dir)]})


def write_view_list(scans: str, folder: str, output_dir: str, run_dir: str) -> None:
    """Write ``datalist.json``: scans without labels, as a view ``<folder>/<case>.nii.gz`` shows them.

    Args:
        scans: datalist of the scans.
        folder: of the view.
        output_dir: where the list goes, below the run folder; files of the run are named relative to it.
        run_dir: the run folder.
    """
    items = [{"case": scan["case"], "image": Path(folder, f"{scan['case']}.nii.gz")} for scan in read_datalist(scans)]
    write_json(Path(output_dir, "datalist.json"), {"training": [*_relative(items, output_dir, run_dir)]})


def write_run_report(
    validation: str,
    pred_dirs: Mapping[str, str],
    metrics_files: Mapping[str, str],
    output_dir: str,
    truth: Mapping[str, str],
    source: str,
    translations: Mapping[str, str],
    target: str,
    run_dir: str,
    stages: Sequence[str],
    accepted_files: Mapping[str, str] | None = None,
) -> None:
    """:func:`plugins.report.write_report` with datalist files in place of lists, and files of decisions."""
    last = [*(accepted_files or {}).values()][-1:]
    write_report(
        validation=read_datalist(validation),
        pred_dirs=pred_dirs,
        metrics_files=metrics_files,
        output_dir=output_dir,
        truth=truth,
        source=read_datalist(source),
        translations=translations,
        decisions=decisions_in(accepted_files or {}),
        target=read_datalist(target),
        run_dir=run_dir,
        stages=stages,
        handed_over=next((read_state(file, Decision, REMAKE)["model"] for file in last), None),
    )


def _relative(items: Sequence[Mapping[str, Any]], folder: str, run_dir: str) -> Iterable[dict[str, Any]]:
    run = Path(run_dir).absolute()
    for item in items:
        paths = {key: Path(item[key]).absolute() for key in ("image", "label") if key in item}
        yield {
            **item,
            **{key: os.path.relpath(p, folder) if p.is_relative_to(run) else str(p) for key, p in paths.items()},
        }
