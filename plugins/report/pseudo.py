"""What pseudo-labels said and changed, round by round."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plugins.data import read_label
from plugins.report.cases import IGNORED, STRUCTURES
from plugins.report.tables import Table, number, table
from plugins.state import read_state

StrPath = str | os.PathLike[str]
GATE, AUDITED, AUDIT, ENDING = "gate.json", "audit", "audit.json", "_Label.nii.gz"
CURE = "Remove its folder, and give the command again to make it anew"


def rounds_of(
    run_dir: StrPath, cases: Sequence[str], rounds: Sequence[str], stages: Collection[str] | None = None
) -> list[dict[str, Any]]:
    """For each round with pseudo-labels what was kept, and what differs from the pseudo-labels of the round before.

    Args:
        run_dir: folder of the run.
        cases: the scans that pseudo-labels were made of.
        rounds: names of the rounds.
        stages: names of the run's stages; ``None`` takes an audit that lies there, if it is of these pseudo-labels.

    Returns:
        ``round``, ``kept`` and ``cases``: for each scan ``case``, ``kept``, ``weight``, ``reasons``, ``ignored_voxels``
        (as the gate wrote them, else ``None``), ``volumes_mm3`` and ``dice_to_before`` of each structure. Also ``top``
        of the gate and ``audit`` of the round, as their files have them, else ``None``.
    """
    found: list[dict[str, Any]] = []
    before: dict[str, Path] = {}
    for name in rounds:
        folder = Path(run_dir, name, "pseudo_labels")
        if not folder.is_dir():
            continue
        gate, audit = _content(folder / GATE), _content(folder.parent / AUDITED / AUDIT)
        known = stages is None or f"{name}/{AUDITED}" in stages
        if not known or _judged(audit) != _judged(gate):  # the audit of an earlier run with other settings
            audit = {}
        verdicts = {row["case"]: row for row in gate.get("cases", [])}
        files = {case: folder / f"{case}{ENDING}" for case in cases}
        rows = [_row(case, file, before.get(case), verdicts.get(case)) for case, file in files.items()]
        kept = sum(row["kept"] for row in rows)
        found.append({"round": name, "kept": kept, "cases": rows, "top": gate.get("top"), "audit": audit or None})
        before = {case: file for case, file in files.items() if file.is_file()}
    return found


def pseudo_table(content: Mapping[str, Any]) -> Table:
    """One round of :func:`rounds_of`, the most changed scans first."""
    rows = []
    for row in sorted(content["cases"], key=_change):
        volumes = [number(row["volumes_mm3"].get(name)) for name in STRUCTURES]
        dices = [number(row["dice_to_before"].get(name), 3) for name in STRUCTURES]
        kept = f"trained on, weight {number(row['weight'])}" if row["kept"] else "left out"
        reasons = "; ".join(row["reasons"]) or "none"
        rows.append([row["case"], kept, *volumes, *dices, number(row["ignored_voxels"], 6), reasons])
    heads = [f"{name} [mm3]" for name in STRUCTURES] + [f"Dice to the round before, {name}" for name in STRUCTURES]
    caption = f"{content['kept']} of {len(rows)} scans are trained on. The scan that changed most comes first."
    for name, top in (content["top"] or {}).items():
        if top["voxels"] == 0:
            caption += f" Of the {name}, no voxel is left in the scans that are trained on."
            continue
        share, lowest = f"{top['kept']} of {top['voxels']} voxels", number(top["lowest_probability"])
        caption += f" Of the {name}, {share} are: those of probability {lowest} or more."
    return table(caption, ["scan", "pseudo-label", *heads, "ignored voxels", "doubts"], rows)


def audit_tables(audits: Mapping[str, Mapping[str, Any] | None]) -> list[Table]:
    """Of each title's audit the true Dice of what was trained on and of what was not; no table without any audit."""
    rows = []
    for title, audit in audits.items():
        if audit is None:
            continue
        scans, voxels, ranks = audit["scans"], audit["voxels"], audit["spearman"]
        for kind, (of_scans, of_voxels) in {"trained on": ("kept", "kept"), "left out": ("dropped", "ignored")}.items():
            found = scans[of_scans]
            dices = [number(voxels[of_voxels][name], 3) for name in STRUCTURES]
            order = f"{number(ranks['rho'], 2)} (p {number(ranks['p'], 2)}, {ranks['n']} scans)"
            rows.append([title, kind, str(found["scans"]), number(found["dice"], 3), *dices, order])
    heads = ["scans", "their mean Dice", *(f"Dice of voxels, {name}" for name in STRUCTURES), "order of the scores"]
    caption = (
        "The pseudo-labels against the truth, which no training has seen. Voxels left out are ignored in the scans "
        "that are trained on. Order is Spearman's correlation of the gate's score and the true Dice."
    )
    return [table(caption, ["round", "pseudo-labels", *heads], rows)] if rows else []


def _content(file: Path) -> dict[str, Any]:
    return read_state(file, dict[str, Any], CURE) if file.is_file() else {}


def _judged(content: Mapping[str, Any]) -> list[tuple[Any, ...]]:
    return [(row["case"], row["kept"], row.get("score")) for row in content.get("cases", [])]


def _change(row: Mapping[str, Any]) -> float:
    known = [value for value in row["dice_to_before"].values() if value is not None]
    return min(known, default=1.0)


def _row(case: str, file: Path, before: Path | None, verdict: Mapping[str, Any] | None) -> dict[str, Any]:
    told = verdict or {}
    row: dict[str, Any] = {
        "case": case,
        "kept": file.is_file(),
        "weight": told.get("weight", 1.0) if file.is_file() else 0.0,
        "reasons": list(told.get("reasons", [])),
        "ignored_voxels": told.get("ignored_voxels"),
        "volumes_mm3": {},
        "dice_to_before": {},
    }
    if file.is_file():
        labels = read_label(file, (0, 1, 2, IGNORED))
        other = None if before is None else read_label(before, (0, 1, 2, IGNORED), of=labels).voxels
        for name, value in STRUCTURES.items():
            here = labels.voxels == value
            size = int(np.count_nonzero(here))
            row["volumes_mm3"][name] = round(size * labels.voxel_mm3, 3)
            if other is not None:
                there = other == value
                both = size + int(np.count_nonzero(there))
                common = int(np.count_nonzero(here & there))
                row["dice_to_before"][name] = 2 * common / both if both else None
    return row
