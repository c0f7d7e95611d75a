"""A ceT1 scan redrawn in the contrast of hrT2, in closed form.

Bone, cerebrospinal fluid and soft tissue are modes of the histogram of ceT1, and fluid in cochlea and labyrinth lies
between bone and fluid by partial volume. One curve therefore turns what is labelled and what is not bright alike. A
tumour enhances in ceT1 and has a curve of its own. Nothing is learnt, and no target label is used.

Volumes have the axes L, P, S, shape (X, Y, Z): see :func:`plugins.data.tissue.shares` for the units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from plugins.data.scans import COCHLEA, VS
from plugins.data.tissue import TargetLevels, TissueModes, Volume

Curve = Callable[[Volume], NDArray[Any]]

COCHLEA_FLUID = 0.5
"""Share of fluid in the voxels of a cochlea, by partial volume: what its mean is drawn as, if that is brighter."""

FLUID_SHARE = 0.9
"""Level of the fluid mode as a share of the fluid level: the level is a high quantile, the mode lies below it."""

EDGE_MM = 0.8
"""Reach of partial volume: a voxel, and more in scans that were interpolated to a finer grid."""

_EDGE = (0.05, 0.15)
_CYST = 0.6
_LIFT = COCHLEA_FLUID / 2.5  # nearer to bone, noise would rise too much
_FAT, _BRIGHT = (0.75, 0.4), (1.0, 0.55)
_SPREAD = np.array([0.3, 0.08, 0.2, 0.2, 0.4, 0.4])


def redraw_shares(
    values: Volume,
    label: ArrayLike,
    spacing: Sequence[float],
    modes: TissueModes,
    levels: TargetLevels,
    variation: np.random.Generator | None = None,
) -> Volume:
    """Draw a ceT1 scan as hrT2 would show it.

    Args:
        values: of ceT1 as denoised shares, :math:`(X, Y, Z)` along L, P, S.
        label: rounded label map of the same shape: 0 for the rest, 1 for VS, 2 for the cochlea.
        spacing: mm of the three axes.
        modes: of the scan, :func:`plugins.data.tissue.tissue_modes`.
        levels: of hrT2.
        variation: multiplies the levels by log-normal factors, so that one scan gives several views; ``None`` draws the
            levels as they are.

    Returns:
        the redrawn scan, float32 in [0, 1], :math:`(X, Y, Z)`.
    """
    inside = np.asarray(label) == COCHLEA
    cochlea = float(values[inside].mean()) if inside.any() else None
    factors = np.ones(6) if variation is None else np.exp(_SPREAD * variation.standard_normal(6))
    knots, drawn = curve_knots(modes, levels, factors)
    fluid = fluid_knots(knots, drawn, cochlea)
    redrawn = partial_volume(values, lambda x: np.interp(x, *fluid), spacing)
    inside = np.asarray(label) == VS
    if inside.any():
        x, y = tumour_knots(values[inside], modes, drawn)
        weight = soft(inside)
        redrawn = redrawn * (1 - weight) + np.interp(values, x, y) * weight
    return np.clip(redrawn, 0, 1).astype(np.float32)


def curve_knots(
    modes: TissueModes, levels: TargetLevels, factors: ArrayLike = 1.0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curve from ceT1 to hrT2: bone, fluid, grey and white matter, fat and what enhances.

    Grey matter is the darker one in ceT1 and the brighter one in hrT2.
    """
    top = max(_FAT[0], modes.high + 0.05)
    knots = np.array([modes.bone, modes.fluid, modes.low, modes.high, top, max(_BRIGHT[0], top + 0.05)])
    drawn = np.array([levels.bone, levels.fluid * FLUID_SHARE, levels.high, levels.low, _FAT[1], _BRIGHT[1]])
    return knots, drawn * np.asarray(factors)


def fluid_knots(
    knots: NDArray[np.float64], drawn: NDArray[np.float64], cochlea: float | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curve with a knot between bone and fluid, for all fluid in bone alike, labelled or not.

    Denoising darkens thin fluid. Where the mean of the cochlea would be drawn darker than its share of fluid, the curve
    rises to it there.

    Args:
        knots: of the curve, bone and fluid first.
        drawn: levels of the knots.
        cochlea: mean of its voxels, in the units of ``knots``; ``None`` leaves the curve.
    """
    if cochlea is None or not knots[0] + _LIFT * (knots[1] - knots[0]) < cochlea < knots[1]:
        return knots, drawn
    wanted = drawn[0] + COCHLEA_FLUID * (drawn[1] - drawn[0])
    if np.interp(cochlea, knots, drawn) >= wanted:
        return knots, drawn
    return np.insert(knots, 1, cochlea), np.insert(drawn, 1, wanted)


def tumour_knots(
    values: NDArray[Any], modes: TissueModes, drawn: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The curve of VS: what enhances comes near soft tissue, dark cystic parts become fluid.

    Args:
        values: shares of the tumour's voxels.
        modes: of the scan.
        drawn: levels of :func:`curve_knots`.
    """
    middle, top = np.percentile(values, [50, 98])
    fluid, tissue = drawn[1], (drawn[2] + drawn[3]) / 2
    x = np.array([modes.fluid, _CYST * middle, middle, top])
    for at in range(1, 4):
        x[at] = max(x[at], x[at - 1] + 1e-4)
    return x, np.array([fluid, (fluid + tissue) / 2, tissue, min(drawn[3], tissue)])


def partial_volume(values: Volume, curve: Curve, spacing: Sequence[float]) -> NDArray[Any]:
    """A curve that is not monotone, applied without false rims.

    Between bone and soft tissue a voxel passes through the brightness of fluid. Where the neighbourhood in the plane
    has a wide range, its least and its greatest value are mapped, and the voxel lies between them as it did before.

    Args:
        values: :math:`(X, Y, Z)`.
        curve: from shares to shares.
        spacing: mm of the three axes.
    """
    size = (*(2 * max(1, round(EDGE_MM / step)) + 1 for step in spacing[:2]), 1)
    low, high = ndimage.minimum_filter(values, size), ndimage.maximum_filter(values, size)
    width = high - low
    darkest = curve(low)
    mixed = darkest + (values - low) / np.maximum(width, 1e-3) * (curve(high) - darkest)
    weight = np.clip((width - _EDGE[0]) / (_EDGE[1] - _EDGE[0]), 0, 1)
    return np.asarray(weight * mixed + (1 - weight) * curve(values))


def soft(inside: NDArray[np.bool_]) -> Volume:
    """Weights of a mask: 1 well inside, fading over one voxel of the plane at the border, at least 1/2 inside."""
    weight = ndimage.gaussian_filter(inside.astype(np.float32), (0.5, 0.5, 0))
    return np.where(inside, np.maximum(weight, 0.5), np.minimum(weight, 0.5)).astype(np.float32)


def cystic(values: Volume, label: ArrayLike) -> NDArray[np.bool_]:
    """Voxels of VS that do not enhance: darker than 0.6 of the tumour's median in denoised ceT1."""
    inside = np.asarray(label) == VS
    return inside & (values < _CYST * np.median(values[inside])) if inside.any() else inside
