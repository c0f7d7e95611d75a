"""Dice, surface distances and surface Dice of one case.

A failure is a structure with a Dice below .5, or one that only one side has. The policy for structures that one side
lacks:

================== ===================== ====================================================
reference          prediction            counted as
================== ===================== ====================================================
present            present               all as defined; a failure if the Dice is below .5
present            empty                 a failure: Dice 0, ASSD 350 mm
empty              present               a failure: Dice 0, ASSD 350 mm
empty              empty                 nothing: all are ``None``
================== ===================== ====================================================

The second row is the CrossMoDA challenge's rule. The third has no rule there, since every scan of the challenge has
both structures; a distance to nothing is as undefined as a distance from nothing, hence the same penalty. The challenge
has Dice and ASSD only; the other distances get the same 350 mm, the surface Dice is 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from monai.metrics import compute_surface_dice, get_mask_edges
from numpy.typing import NDArray
from scipy.ndimage import find_objects
from scipy.spatial import KDTree

from plugins.runtime import denormals_kept

STRUCTURES = {"vs": 1, "cochlea": 2}
STRUCTURE_TITLES = {"vs": "VS", "cochlea": "cochlea"}
PENALTY_MM = 350.0
FAILURE_DICE = 0.5
FAILURE = f"a failure is a Dice below {FAILURE_DICE:g} or an empty mask"
TOLERANCE_MM = 1.0
PERCENTILE = 95

StructureMetrics = dict[str, float | bool | str | None]
CaseMetrics = dict[str, StructureMetrics]


@dataclass(frozen=True)
class Measure:
    """What is measured in every case and structure.

    Attributes:
        title: in tables.
        definition: in one sentence, for the files.
        worst: the value of a structure that was not found, by the challenge's rule.
        larger_is_better: as Dice, unlike a distance.
    """

    title: str
    definition: str
    worst: float = PENALTY_MM
    larger_is_better: bool = False


CASE_MEASURES = {
    "dice": Measure("Dice", "twice the common voxels over the voxels of both masks", 0.0, True),
    "assd_mm": Measure(
        "ASSD [mm]", "mean of the distances of all surface voxels of both masks, pooled, as in MedPy 0.5"
    ),
    "assd_medpy_0_4_mm": Measure(
        "ASSD (MedPy 0.4) [mm]", "mean of the two directed mean surface distances, as in MedPy 0.4"
    ),
    "hd95_mm": Measure(
        "HD95 [mm]", "the larger of the two directed 95th percentiles of surface distances, as in MONAI"
    ),
    "hd95_medpy_mm": Measure(
        "HD95 (MedPy) [mm]", "95th percentile of the distances of all surface voxels of both masks, pooled, as in MedPy"
    ),
    "nsd_1mm": Measure(
        "NSD at 1 mm",
        "share of both surfaces, by area, that is within 1 mm of the other, as in DeepMind's surface-distance",
        0.0,
        True,
    ),
}


def case_metrics(pred: NDArray[np.integer], truth: NDArray[np.integer], spacing: Sequence[float]) -> CaseMetrics:
    """All of :data:`CASE_MEASURES` for every structure of one case, in mm of the case's own grid.

    The surface voxels of ASSD and HD95 have a face on the outside or on the volume's border. The surface of the NSD
    runs between voxel centres, and its area follows from the eight voxels around each of its points.

    Args:
        pred: label map, 0 background, 1 VS, 2 cochlea.
        truth: label map of the same shape.
        spacing: mm per voxel along each axis.

    Shape:
        - pred, truth: :math:`(H, W, D)`, any integer dtype.

    Returns:
        ``vs`` and ``cochlea``, each with the measures, ``failure``, and ``empty``: ``prediction``, ``reference`` or
        ``both`` where these lack the structure, else ``None``. See the module's table for empty structures.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> truth = np.zeros((4, 5, 6), dtype=np.uint8)
        >>> truth[1:3, 1:3, 2] = 1
        >>> found = case_metrics(truth, truth, spacing=(0.4, 0.4, 1.5))["vs"]
        >>> found["dice"], found["assd_mm"], found["nsd_1mm"], found["failure"]
        (1.0, 0.0, 1.0, False)
    """
    if pred.shape != truth.shape:
        raise ValueError(f"prediction and reference differ in shape: {pred.shape} and {truth.shape}")
    with denormals_kept():
        return {name: _structure_metrics(pred == value, truth == value, spacing) for name, value in STRUCTURES.items()}


def not_found(empty: str = "prediction") -> StructureMetrics:
    """What a structure counts that one side lacks, by the challenge's rule.

    Args:
        empty: the side, ``prediction`` or ``reference``.
    """
    return {**{name: measure.worst for name, measure in CASE_MEASURES.items()}, "failure": True, "empty": empty}


def _structure_metrics(pred: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float]) -> StructureMetrics:
    if not pred.any() and not truth.any():
        return {**dict.fromkeys(CASE_MEASURES), "failure": False, "empty": "both"}
    if not pred.any() or not truth.any():
        return not_found("reference" if pred.any() else "prediction")
    mm = [float(size) for size in spacing]
    box = find_objects((pred | truth).astype(np.uint8))[0]  # what lies outside has no part in any measure
    pred, truth = pred[box], truth[box]
    y_pred, y = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (pred, truth))
    common, both = int(np.count_nonzero(pred & truth)), int(np.count_nonzero(pred)) + int(np.count_nonzero(truth))
    dice = 2 * common / both  # MONAI's is float32, so it would never tie with that of another tool
    nsd = compute_surface_dice(y_pred, y, [TOLERANCE_MM], include_background=True, spacing=mm, use_subvoxels=True)
    directed = surface_distances(pred, truth, mm)
    pooled = np.concatenate(directed)
    return {
        "dice": dice,
        "assd_mm": float(pooled.mean()),
        "assd_medpy_0_4_mm": float(np.mean([distances.mean() for distances in directed])),
        "hd95_mm": float(max(np.percentile(distances, PERCENTILE) for distances in directed)),
        "hd95_medpy_mm": float(np.percentile(pooled, PERCENTILE)),
        "nsd_1mm": float(nsd),
        "failure": dice < FAILURE_DICE,
        "empty": None,
    }


def surface_distances(
    pred: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """From each surface voxel of one mask to the nearest of the other, in mm.

    MONAI gives the surfaces. Its distances are float32, too coarse for an ASSD that is exact to 1e-6 mm; hence the
    tree.

    Args:
        pred: mask that is not empty.
        truth: mask of the same shape that is not empty.
        spacing: mm per voxel along each axis.

    Returns:
        From ``pred`` to ``truth``, and back.
    """
    here, there = (np.argwhere(edge) * np.asarray(spacing, dtype=np.float64) for edge in get_mask_edges(pred, truth))
    return KDTree(there).query(here)[0], KDTree(here).query(there)[0]
