"""How good segmentations of unlabelled scans are, as far as it shows without labels: agreement and plausibility."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from plugins.data import Grid, read_datalist, read_label, read_probabilities
from plugins.errors import InputError
from plugins.evaluation.labels import LABEL_ENDING
from plugins.segmentation import LABELS, AnatomySettings, Choice, SourceStatistics, choose
from plugins.segmentation.plausibility import judge
from plugins.state import read_state

STRUCTURES = {name: value for name, value in LABELS.items() if value}
PROBABILITIES_ENDING = "_Probabilities.nii.gz"

Voxels = NDArray[Any]


@dataclass(frozen=True)
class Rules:
    """What segmentations are judged by.

    Attributes:
        statistics: of the source's labels.
        anatomy: what is chosen of a label map.
    """

    statistics: SourceStatistics
    anatomy: AnatomySettings

    @classmethod
    def read(cls, statistics: str, anatomy: Mapping[str, Any] | None = None) -> Rules:
        """Of a JSON file.

        Args:
            statistics: datalist of scans with true labels, or :class:`SourceStatistics` as JSON.
            anatomy: settings of :class:`AnatomySettings` that differ from those of the statistics.

        Raises:
            InputError: if the file is neither, a label map cannot be read, or a setting does not exist.
        """
        content = read_state(statistics, dict[str, Any], "Give a datalist, or statistics of the source")
        if isinstance(content, Mapping) and "training" in content:
            labels = dict.fromkeys(str(item["label"]) for item in read_datalist(statistics) if "label" in item)
            found = SourceStatistics.measure((drawn.voxels, drawn.affine) for drawn in map(read_label, labels))
        else:
            found = SourceStatistics.from_json(content)
        known = found.settings()
        try:
            settings = AnatomySettings(**{**vars(known), **(anatomy or {})})
        except (TypeError, ValueError) as error:
            raise InputError(f"anatomy is {anatomy} ({error}). Give settings that exist.") from error
        return cls(found, settings)


@dataclass(frozen=True)
class Case:
    """One scan as an ensemble and its members see it.

    Attributes:
        labels: the ensemble's label map :math:`(X, Y, Z)` as it was predicted.
        affine: of it, voxel to mm, (4, 4).
        probabilities: :math:`(3, X, Y, Z)` or ``None``.
        choice: what was chosen of the ensemble's label map.
        members: what was chosen of each member's label map.
        row: what is written of it.
    """

    labels: Voxels
    affine: NDArray[np.float64]
    probabilities: Voxels | None
    choice: Choice
    members: Sequence[Voxels]
    row: dict[str, Any]


def pairwise_dice(masks: Sequence[Voxels]) -> float | None:
    """Mean Dice over all pairs of masks; a pair that is empty counts 0, since it agrees on nothing.

    Source: the label-free score of Zenk et al., Comparative benchmarking of failure detection methods in medical image
    segmentation, Medical Image Analysis 2025.

    Returns:
        ``None`` for fewer than two masks.
    """
    sizes = [int(np.count_nonzero(mask)) for mask in masks]
    dices = [
        2 * int(np.count_nonzero(first & second)) / max(1, size + other)
        for (first, size), (second, other) in combinations(zip(masks, sizes, strict=True), 2)
    ]
    return float(np.mean(dices)) if dices else None


def read_case(case: str, ensemble_dir: str, member_dirs: Sequence[str], rules: Rules) -> Case:
    """Read what ensemble and members found in one scan, and judge it.

    Members are compared after each has lost all but its one VS and two cochleae, as a model that is handed over has.

    Returns:
        a case whose row has ``agreement`` (mean pairwise Dice of the members, or ``None``) and ``confidence`` (mean
        probability, or ``None``) of each structure, ``plausibility`` of the label map as it was predicted,
        ``plausibility_chosen`` of what was chosen, ``complete`` (one VS, two cochleae and nothing else),
        ``volumes_mm3`` and ``reasons``.

    Raises:
        InputError: if a file is missing or cannot be read, or lies on another grid than the ensemble's label map.
    """
    predicted_map = read_label(Path(ensemble_dir, case + LABEL_ENDING))
    labels, affine = predicted_map.voxels, predicted_map.affine
    probabilities = _probabilities(Path(ensemble_dir, case + PROBABILITIES_ENDING), predicted_map)
    choice = choose(labels, affine, probabilities, rules.anatomy)
    members = []
    for folder in member_dirs:
        found = read_label(Path(folder, case + LABEL_ENDING), of=predicted_map)
        members.append(choose(found.voxels, affine, settings=rules.anatomy).labels)
    predicted = judge(labels, choice, rules.statistics)
    chosen = judge(choice.labels, choose(choice.labels, affine, settings=rules.anatomy), rules.statistics)
    cleaned = int(np.count_nonzero(labels != choice.labels))
    row = {
        "case": case,
        "agreement": {name: pairwise_dice([m == value for m in members]) for name, value in STRUCTURES.items()},
        "confidence": {name: _confidence(choice.labels == v, probabilities, v) for name, v in STRUCTURES.items()},
        "plausibility": predicted["score"],
        "plausibility_chosen": chosen["score"],
        "complete": choice.vs is not None and len(choice.cochleae) == 2 and cleaned == 0,
        "volumes_mm3": {
            name: round(predicted_map.voxel_mm3 * int(np.count_nonzero(choice.labels == value)), 3)
            for name, value in STRUCTURES.items()
        },
        "reasons": predicted["reasons"],
    }
    return Case(labels, affine, probabilities, choice, members, row)


def _probabilities(file: Path, grid: Grid) -> Voxels | None:
    if not file.is_file():
        return None
    found = read_probabilities(file, grid)
    if len(found) != len(LABELS):
        raise InputError(f"{file} has {len(found)} probabilities a voxel, not {len(LABELS)}. Predict it anew.")
    return found


def _confidence(mask: NDArray[np.bool_], probabilities: Voxels | None, value: int) -> float | None:
    if probabilities is None or not mask.any():
        return None
    return float(np.nan_to_num(probabilities[value][mask]).mean())


def mean_rows(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Means over scans: ``agreement`` of each structure, ``plausibility``, ``complete`` (share) and ``scans``."""
    agreement = {name: _mean([row["agreement"][name] for row in rows]) for name in STRUCTURES}
    return {
        "agreement": agreement,
        "plausibility": _mean([row["plausibility"] for row in rows]),
        "complete": _mean([float(row["complete"]) for row in rows]),
        "scans": len(rows),
    }


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None


def cases_of(datalist: str | os.PathLike[str]) -> list[str]:
    """The cases of a datalist, in its order.

    Raises:
        InputError: if it has none.
    """
    cases = [str(item["case"]) for item in read_datalist(datalist)]
    if not cases:
        raise InputError(f"{datalist}: lists no scan. Give the hrT2 scans to train on.")
    return cases
