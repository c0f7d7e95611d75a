"""The report of a folder of label maps without truth."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from plugins.data import read_label
from plugins.evaluation.labels import LABEL_ENDING
from plugins.report import facts
from plugins.report.cases import case_row, failed_row, general_statistics, lights_of, worst_first
from plugins.report.figures import CaseFigures
from plugins.report.page import write_page
from plugins.report.run import case_windows, pack_cases, shown_in
from plugins.report.volumes import PREDICTION, REFERENCE
from plugins.segmentation import SourceStatistics
from plugins.state import read_state

StrPath = str | os.PathLike[str]
FOLDER = "report"
TITLE = "Label maps without truth"


def write_inference_report(
    scans: Sequence[Mapping[str, Any]],
    pred_dir: StrPath,
    output_dir: StrPath | None = None,
    failed: Mapping[str, str] | None = None,
    statistics: StrPath | None = None,
    settings: Mapping[str, Any] | None = None,
    remarks: Mapping[str, str] | None = None,
) -> Path:
    """Write ``index.html`` and ``report.json`` about label maps that nobody has drawn a truth for.

    Args:
        scans: ``{"case", "image"}`` each.
        pred_dir: with ``<case>_Label.nii.gz``, and ``windows.json`` where windows were located.
        output_dir: of the page; ``None`` is ``<pred_dir>/report``.
        failed: case to the sentence why it has no label map.
        statistics: ``score.json`` of a run, whose ``statistics`` of labelled scans are then the limits; ``None``
            takes the package's own.
        settings: of the run, to be shown.
        remarks: case to a sentence that is to be told beside its label map.

    Returns:
        the page.

    Raises:
        InputError: if a label map or a file of the folder cannot be read.
    """
    output_dir = Path(pred_dir, FOLDER) if output_dir is None else Path(output_dir)
    limits = general_statistics()
    if statistics is not None:
        known = read_state(statistics, dict[str, Any], "Give score.json of a run")
        limits = SourceStatistics.from_json(known.get("statistics", {}))
    windows = case_windows(pred_dir)
    rows, files = [], {}
    for scan in scans:
        case, file = str(scan["case"]), Path(pred_dir, f"{scan['case']}{LABEL_ENDING}")
        sentence = (failed or {}).get(case)
        if sentence is not None or not file.is_file():
            rows.append(failed_row(case, sentence or "there is no label map"))
            continue
        row = case_row(case, read_label(file), limits, windows.get(case))
        if remark := (remarks or {}).get(case):
            row |= {"light": "amber" if row["light"] == "green" else row["light"], "reasons": [*row["reasons"], remark]}
        rows.append(row)
        files[case] = {"image": scan["image"], PREDICTION: file, REFERENCE: None, "maps": {PREDICTION: file}}
    rows = worst_first(rows)
    volumes = pack_cases(rows, files, windows)
    content = {
        **facts.head("inference", TITLE, Path(pred_dir).absolute().name),
        "stages": [],
        "settings": dict(settings or {}),
        "lights": lights_of(rows),
        "cases": rows,
        "statistics": limits.to_json(),
        "viewer": shown_in(volumes),
    }
    return write_page(content, {"cases": CaseFigures(files), "volumes": volumes}, output_dir)


class InferenceReport:
    """Writes the report of a segmentation.

    Args:
        scans: with ``all``, every scan, and ``refused``, case to a sentence why it could not be used; see
            :class:`plugins.segmentation.ScansToSegment`.
        output_dir: of the label maps; the report goes into its folder ``report``.
        settings: to be shown.
        enabled: whether it is wanted.
    """

    def __init__(
        self, scans: Any, output_dir: StrPath, settings: Mapping[str, Any] | None = None, enabled: bool = True
    ):
        self._scans, self._output_dir, self._settings, self._enabled = scans, output_dir, settings, enabled

    def write(self, failed: Mapping[str, str], remarks: Mapping[str, str]) -> None:
        """Write it now, also where no scan was left to do.

        Args:
            failed: case to a sentence, of the scans that failed since.
            remarks: as in :func:`write_inference_report`.
        """
        if self._enabled:
            failed = {**self._scans.refused, **failed}
            page = write_inference_report(
                self._scans.all, self._output_dir, failed=failed, settings=self._settings, remarks=remarks
            )
            print(f"report: {page}", flush=True)
