"""Dice and average symmetric surface distance of one case.

A failure is a structure with a Dice below .5, or one that only one side has. The policy for structures that one side
lacks:

================== ===================== ====================================================
reference          prediction            counted as
================== ===================== ====================================================
present            present               Dice and ASSD as defined; a failure if the Dice is below .5
present            empty                 a failure: Dice 0, ASSD 350 mm
empty              present               a failure: Dice 0, ASSD 350 mm
empty              empty                 nothing: both are ``None``
================== ===================== ====================================================

The second row is the CrossMoDA challenge's rule. The third has no rule there, since every scan of the challenge has
both structures; a distance to nothing is as undefined as a distance from nothing, hence the same penalty.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from monai.metrics import compute_average_surface_distance, compute_dice
from numpy.typing import NDArray

STRUCTURES = {"vs": 1, "cochlea": 2}
STRUCTURE_TITLES = {"vs": "VS", "cochlea": "cochlea"}
PENALTY_MM = 350.0
FAILURE_DICE = 0.5
FAILURE = f"a failure is a Dice below {FAILURE_DICE:g} or an empty mask"

StructureMetrics = dict[str, float | bool | None]
CaseMetrics = dict[str, StructureMetrics]


def case_metrics(pred: NDArray[np.integer], truth: NDArray[np.integer], spacing: Sequence[float]) -> CaseMetrics:
    """Dice and ASSD of every structure of one case.

    The ASSD pools the distances of all surface voxels of both sides before it averages, as MedPy 0.5 does (MedPy 0.4
    averages the two directed means). A surface voxel is one with a face on the outside or on the volume's border.

    Args:
        pred: label map, 0 background, 1 VS, 2 cochlea.
        truth: label map of the same shape.
        spacing: mm per voxel along each axis.

    Shape:
        - pred, truth: :math:`(H, W, D)`, any integer dtype.

    Returns:
        ``{"vs": {"dice", "assd_mm", "failure"}, "cochlea": {...}}``; see the module's table for empty structures.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> truth = np.zeros((4, 5, 6), dtype=np.uint8)
        >>> truth[1:3, 1:3, 2] = 1
        >>> case_metrics(truth, truth, spacing=(0.4, 0.4, 1.5))["vs"]
        {'dice': 1.0, 'assd_mm': 0.0, 'failure': False}
    """
    if pred.shape != truth.shape:
        raise ValueError(f"prediction and reference differ in shape: {pred.shape} and {truth.shape}")
    return {name: _structure_metrics(pred == value, truth == value, spacing) for name, value in STRUCTURES.items()}


def _structure_metrics(pred: NDArray[np.bool_], truth: NDArray[np.bool_], spacing: Sequence[float]) -> StructureMetrics:
    if not pred.any() and not truth.any():
        return {"dice": None, "assd_mm": None, "failure": False}
    if not pred.any() or not truth.any():
        return {"dice": 0.0, "assd_mm": PENALTY_MM, "failure": True}
    y_pred, y = (torch.from_numpy(np.ascontiguousarray(mask))[None, None] for mask in (pred, truth))
    dice = compute_dice(y_pred, y, include_background=True)
    assd = compute_average_surface_distance(
        y_pred, y, include_background=True, symmetric=True, spacing=[float(s) for s in spacing]
    )
    return {"dice": float(dice), "assd_mm": float(assd), "failure": float(dice) < FAILURE_DICE}
