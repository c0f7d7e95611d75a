"""How far the gate of the pseudo-labels is right, by truth that no training sees."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr
from typing_extensions import TypedDict

from plugins.data import read_datalist, read_grid, read_label
from plugins.data.scans import LABEL_VALUES
from plugins.evaluation.labels import LABEL_ENDING
from plugins.files import write_json
from plugins.state import StrPath, read_state
from plugins.workflow.gate import GATE, IGNORE
from plugins.workflow.records import REMAKE
from plugins.workflow.scoring import STRUCTURES
from plugins.workflow.windows import crop_to_windows

AUDITED, AUDIT = "audit", "audit.json"
"""The stage of a round, and its file."""


class JudgedScan(TypedDict):
    """One scan of ``gate.json``, as far as the audit reads it."""

    case: str
    kept: bool
    score: float


class JudgedScans(TypedDict):
    """``gate.json``, as far as the audit reads it; ``ensemble_dir`` holds the label maps that were judged."""

    cases: list[JudgedScan]
    ensemble_dir: str


def write_truth(files: Mapping[str, str], target: str, windows_dir: str | None, output_dir: str) -> None:
    """Write true label maps ``<case>_Label.nii.gz`` on the grids of the scans that pseudo-labels are made for.

    Args:
        files: case to true label map of the whole scan.
        target: datalist of the scans, which may be windows.
        windows_dir: with ``windows.json``; ``None`` for whole scans.
        output_dir: where they go.

    Raises:
        InputError: if a label map cannot be read, or does not lie on the grid of its scan.
    """
    crop_to_windows(files, LABEL_ENDING, windows_dir, output_dir)
    for scan in read_datalist(target):
        read_label(Path(output_dir, scan["case"] + LABEL_ENDING), of=read_grid(scan["image"]))


def audit_pseudo_labels(pseudo_labels: StrPath, truth_dir: StrPath, output_dir: StrPath) -> dict[str, Any]:
    """Compare what a gate kept and what it dropped with the truth, and write ``audit.json``.

    Args:
        pseudo_labels: folder of ``gate.json`` and of the label maps of the scans that were kept, 3 being ignored.
        truth_dir: true label maps ``<case>_Label.nii.gz`` on the grids of the pseudo-labels.
        output_dir: where the file goes.

    Returns:
        The content of the file. ``cases``: ``case``, ``kept``, ``score`` and the true Dice of the label map that was
        judged, by structure and as ``mean``. ``scans``: number and mean Dice of those that were kept and dropped.
        ``voxels``: by structure, Dice over all voxels of the kept scans that are trained on, and over those that are
        ignored. ``spearman``: rank correlation ``rho`` of score and mean Dice over all scans, ``p`` and ``n``. What is
        undefined is ``None``.

    Raises:
        InputError: if a file is missing, cannot be read, or lies on another grid.
    """
    gate = read_state(Path(pseudo_labels, GATE), JudgedScans, REMAKE)
    ensemble_dir = Path(pseudo_labels, gate["ensemble_dir"])
    rows, counts = [], {kind: {name: np.zeros(2, np.int64) for name in STRUCTURES} for kind in ("kept", "ignored")}
    for scan in gate["cases"]:
        name = scan["case"] + LABEL_ENDING
        truth = read_label(Path(truth_dir, name))
        judged = read_label(Path(ensemble_dir, name), of=truth).voxels
        everywhere = np.ones(judged.shape, bool)
        dice = {key: _dice(_overlap(judged, truth.voxels, value, everywhere)) for key, value in STRUCTURES.items()}
        known = [value for value in dice.values() if value is not None]
        rows.append({**scan, "dice": {**dice, "mean": float(np.mean(known)) if known else None}})
        if scan["kept"]:
            gated = read_label(Path(pseudo_labels, name), (*LABEL_VALUES, IGNORE), of=truth).voxels
            for kind, where in (("kept", gated != IGNORE), ("ignored", gated == IGNORE)):
                for key, value in STRUCTURES.items():
                    counts[kind][key] += _overlap(judged, truth.voxels, value, where)
    content = {
        "cases": rows,
        "scans": {kind: _scans([row for row in rows if row["kept"] == kept]) for kind, kept in _KINDS.items()},
        "voxels": {kind: {key: _dice(count) for key, count in by_name.items()} for kind, by_name in counts.items()},
        "spearman": _rank_correlation(rows),
    }
    write_json(Path(output_dir, AUDIT), content)
    return content


def audit_line(audit: Mapping[str, Any]) -> dict[str, Any]:
    """An ``audit.json`` as one line of a table: name of a column to its value, ``None`` where it is undefined."""
    line: dict[str, Any] = {}
    for kind in _KINDS:
        found = audit["scans"][kind]
        line |= {f"{kind}_scans": found["scans"], f"{kind}_scans_dice": found["dice"]}
    for kind, by_name in audit["voxels"].items():
        line |= {f"{kind}_voxels_{name.lower()}_dice": dice for name, dice in by_name.items()}
    return line | {f"spearman_{name}": value for name, value in audit["spearman"].items()}


_KINDS = {"kept": True, "dropped": False}


def _overlap(judged: NDArray[Any], truth: NDArray[Any], value: int, where: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Twice the voxels that both have, and the voxels of each added up."""
    first, second = (judged == value) & where, (truth == value) & where
    both = np.count_nonzero(first & second)
    return np.array([2 * both, np.count_nonzero(first) + np.count_nonzero(second)], np.int64)


def _dice(counts: NDArray[np.int64]) -> float | None:
    return float(counts[0] / counts[1]) if counts[1] else None


def _scans(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    known = [row["dice"]["mean"] for row in rows if row["dice"]["mean"] is not None]
    return {"scans": len(rows), "dice": float(np.mean(known)) if known else None}


def _rank_correlation(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    pairs = [(row["score"], row["dice"]["mean"]) for row in rows if row["dice"]["mean"] is not None]
    scores, dices = ([pair[at] for pair in pairs] for at in (0, 1))
    if len(pairs) < 3 or len({*scores}) < 2 or len({*dices}) < 2:
        return {"rho": None, "p": None, "n": len(pairs)}
    found = spearmanr(scores, dices)
    return {"rho": float(found.statistic), "p": float(found.pvalue), "n": len(pairs)}
