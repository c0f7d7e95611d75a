"""The stages that are functions: the lists of scans, and the report."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plugins.data import check_scans, crossmoda_datalist, read_datalist
from plugins.evaluation import write_report
from plugins.files import write_json

SPLITS = {"source": "training_source", "target": "training_target", "validation": "validation"}
UNTRANSLATED = "ceT1"


def write_dataset_lists(dataset_dir: str, output_dir: str) -> None:
    """Check every scan of a data set, then write ``source.json``, ``target.json`` and ``validation.json``.

    The lists name the scans by absolute paths, so that the run folder may be moved.

    Raises:
        InputError: naming the first scan that cannot be used.
    """
    lists = {name: crossmoda_datalist(dataset_dir, split) for name, split in SPLITS.items()}
    check_scans([scan for scans in lists.values() for scan in scans])
    for name, scans in lists.items():
        write_json(Path(output_dir, f"{name}.json"), {"training": scans})


def write_training_list(
    source: str,
    views: Mapping[str, str | None],
    output_dir: str,
    run_dir: str,
    target: str | None = None,
    pseudo_labels: str | None = None,
) -> None:
    """Write ``datalist.json``: what the segmentation of one round is trained on.

    Args:
        source: datalist of the ceT1 scans with their labels.
        views: name of the view to the folder of its translations; ``None`` for the scans as they are.
        output_dir: where the list goes, below the run folder; files of the run are named relative to it.
        run_dir: the run folder.
        target: datalist of real hrT2 scans.
        pseudo_labels: folder of their label maps ``<case>_Label.nii.gz``.
    """
    items = []
    scans = read_datalist(source)
    for view, folder in views.items():
        for scan in scans:
            case = scan["case"]
            image = scan["image"] if folder is None else os.path.join(folder, f"{case}.nii.gz")
            item = {"case": f"{case}_{view}", "patient": case, "image": image, "label": scan["label"]}
            items.append({**item, "origin": "translated"})
    if target is not None and pseudo_labels is not None:
        for scan in read_datalist(target):
            case = scan["case"]
            label = os.path.join(pseudo_labels, f"{case}_Label.nii.gz")
            items.append({"case": case, "patient": case, "image": scan["image"], "label": label, "origin": "real"})
    write_json(Path(output_dir, "datalist.json"), {"training": [*_relative(items, output_dir, run_dir)]})


def write_run_report(
    validation: str,
    pred_dirs: Mapping[str, str],
    metrics_files: Mapping[str, str],
    output_dir: str,
    truth: Mapping[str, str],
    source: str,
    translations: Mapping[str, str],
) -> None:
    """:func:`plugins.evaluation.write_report` with datalist files in place of lists."""
    write_report(
        validation=read_datalist(validation),
        pred_dirs=pred_dirs,
        metrics_files=metrics_files,
        output_dir=output_dir,
        truth=truth,
        source=read_datalist(source),
        translations=translations,
    )


def _relative(items: Sequence[Mapping[str, Any]], folder: str, run_dir: str) -> Iterable[dict[str, Any]]:
    run = Path(run_dir).absolute()
    for item in items:
        paths = {key: Path(item[key]).absolute() for key in ("image", "label")}
        yield {
            **item,
            **{key: os.path.relpath(p, folder) if p.is_relative_to(run) else str(p) for key, p in paths.items()},
        }
