"""Each scan as a row: a traffic light, why, and a score by which the worst comes first."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from plugins.data import Scan, Window, voxel_box
from plugins.segmentation import LABELS, AnatomySettings, SourceStatistics, choose
from plugins.segmentation.plausibility import judge

Light = Literal["red", "amber", "green"]
LIGHTS: dict[Light, str] = {"red": "failed", "amber": "look at it", "green": "fine"}
STRUCTURES = {name: value for name, value in LABELS.items() if value}
MEASURED = {"VS": "vs", "cochlea": "cochlea"}
"""Label to its name in metrics files."""
SMALLEST_MM3 = 20.0
LOW, STRONG = 0.5, 0.8
"""Plausibility or agreement below the first is a failure; agreement below the second is worth a look."""
WHOLE_SCAN = "whole scan"
IGNORED = 3


def general_statistics() -> SourceStatistics:
    """Limits where no labelled scan is known: those of :class:`plugins.segmentation.AnatomySettings`."""
    known = AnatomySettings()
    return SourceStatistics(
        volume_mm3={"VS": (SMALLEST_MM3, known.vs_volume_mm3), "cochlea": (SMALLEST_MM3, known.cochlea_volume_mm3)},
        components={"VS": (1, 1), "cochlea": (2, 2)},
        vs_cochlea_mm=(1.0, known.vs_distance_mm),
        cochlea_cochlea_mm=known.cochlea_distance_mm,
        scans=0,
        volume_factor=1.0,
        distance_factor=1.0,
    )


def failed_row(case: str, sentence: str) -> dict[str, Any]:
    """The row of a scan that could not be segmented."""
    return {"case": case, "light": "red", "reasons": [sentence], "score": 0.0, "scored_by": "nothing: no label map"}


def case_row(
    case: str,
    found: Scan,
    statistics: SourceStatistics,
    window: Window | None = None,
    metrics: Mapping[str, Any] | None = None,
    agreement: Mapping[str, float | None] | None = None,
    judged: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Judge one label map.

    Args:
        case: name of the scan.
        found: its label map; values other than those of structures count as background.
        statistics: what labelled scans look like.
        window: what the segmentation saw of the scan; ``None`` if it was all of it, or is not known.
        metrics: the case in a metrics file, where there is truth.
        agreement: structure to mean pairwise Dice of the ensemble's members, where it is known.
        judged: ``score`` and ``reasons`` of :func:`plugins.segmentation.plausibility.judge`, where it is judged
            already, as by probabilities; ``None`` judges it by the statistics.

    Returns:
        ``case``, ``light``, ``reasons``, ``score``, ``scored_by``, ``plausibility``, ``volumes_mm3``, ``agreement``
        and ``metrics``. The score is the mean Dice, or without truth plausibility times mean agreement.
    """
    labels = np.where(np.isin(found.voxels, [*STRUCTURES.values()]), found.voxels, 0)
    if judged is None:
        judged = judge(labels, choose(labels, found.affine, settings=statistics.settings()), statistics)
    volumes = {
        name: round(found.voxel_mm3 * int(np.count_nonzero(labels == value)), 3) for name, value in STRUCTURES.items()
    }
    agreed = {name: value for name, value in (agreement or {}).items() if value is not None}
    red, amber = _by_truth(metrics or {})
    empty = [f"empty: no {name} was found" for name, volume in volumes.items() if volume == 0]
    red += empty
    told = [f"implausible: {reason}" for reason in judged["reasons"] if not (empty and reason.startswith("no "))]
    (red if judged["score"] < LOW else amber).extend(told)
    for name, value in agreed.items():
        if value < STRONG:
            (red if value < LOW else amber).append(f"members disagree: agreement on the {name} is {value:.2f}")
    amber += _off_window(found, labels, window)
    label_free = judged["score"] * (float(np.mean([*agreed.values()])) if agreed else 1.0)
    dices = [row["dice"] for row in (metrics or {}).values() if row["dice"] is not None]
    return {
        "case": case,
        "light": "red" if red else "amber" if amber else "green",
        "reasons": red + amber,
        "score": float(np.mean(dices)) if dices else label_free,
        "scored_by": "mean Dice" if dices else "plausibility x agreement" if agreed else "plausibility",
        "plausibility": judged["score"],
        "volumes_mm3": volumes,
        "agreement": agreed,
        "metrics": dict(metrics or {}),
    }


def worst_first(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows by light, then by score, then by name."""
    order = list(LIGHTS)
    return sorted(rows, key=lambda row: (order.index(row["light"]), row["score"], row["case"]))


def lights_of(rows: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many rows have each light."""
    return {light: sum(row["light"] == light for row in rows) for light in LIGHTS}


def _by_truth(metrics: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    red: list[str] = []
    amber: list[str] = []
    for name, key in MEASURED.items():
        dice = metrics.get(key, {}).get("dice")
        if dice is not None and dice < STRONG:
            (red if metrics[key]["failure"] else amber).append(f"against the truth: Dice of the {name} is {dice:.2f}")
    return red, amber


def _off_window(found: Scan, labels: NDArray[Any], window: Window | None) -> list[str]:
    """Whether the segmentation may have seen too little of the scan."""
    if window is not None and window.found == WHOLE_SCAN:
        return ["off the window: the inner ears were not located, the whole scan was taken"]
    shape = found.voxels.shape
    box = [slice(0, size) for size in shape] if window is None else voxel_box(window, shape, found.affine)
    reasons = []
    for name, value in STRUCTURES.items():
        places = np.argwhere(labels == value)
        if len(places):
            ends = zip(box, places.min(axis=0), places.max(axis=0), strict=True)
            if any(first <= edge.start or last >= edge.stop - 1 for edge, first, last in ends):
                reasons.append(f"off the window: the {name} reaches its border")
    return reasons
