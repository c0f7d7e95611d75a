"""A finished translation, calibrated: VS, cochlea and their rings moved to the brightness that hrT2 gives them.

Volumes have the axes L, P, S, shape (X, Y, Z).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage

from plugins.data.redraw import soft
from plugins.data.scans import STRUCTURES
from plugins.data.tissue import TargetLevels, Volume, range_of
from plugins.errors import InputError

RING_MM = 2.2
"""Width of a ring: about two voxels of the coarsest grids, at least one."""

_COCHLEA, _COCHLEA_SPREAD, _COCHLEA_RING = 0.42, 0.12, 0.12
"""Shares of fluid, by partial volume, in the voxels of a cochlea, their spread, and in its ring of bone."""

_TUMOUR_SPREAD = 0.3
_MAX_GAIN = 4.0


@dataclass(frozen=True)
class RegionStatistics:
    """Mean and spread (standard deviation) of a structure and of its ring, as shares of a scan's range.

    What is ``None`` stays as the translation has it.
    """

    mean: float | None = None
    spread: float | None = None
    ring_mean: float | None = None
    ring_spread: float | None = None

    def record(self) -> dict[str, float | None]:
        """JSON of the statistics."""
        return asdict(self)


def default_statistics(levels: TargetLevels) -> dict[str, RegionStatistics]:
    """What is known without any target label.

    A cochlea is fluid in bone; at the resolution of a scan, less than half of what its voxels hold is fluid. A tumour
    is near soft tissue, with a wide spread.
    """
    contrast, tissue = levels.fluid - levels.bone, (levels.low + levels.high) / 2
    return {
        "VS": RegionStatistics(tissue, _TUMOUR_SPREAD * tissue, None, None),
        "cochlea": RegionStatistics(
            levels.bone + _COCHLEA * contrast, _COCHLEA_SPREAD * contrast, levels.bone + _COCHLEA_RING * contrast, None
        ),
    }


def read_statistics(record: Mapping[str, Any]) -> dict[str, RegionStatistics]:
    """Statistics from JSON: ``{"VS": {"mean": .3, "spread": .1}, "cochlea": {...}}``.

    Raises:
        InputError: for an unknown structure or statistic, or what is no number.
    """
    found = {}
    for name, values in record.items():
        if name not in STRUCTURES:
            raise InputError(f"statistics name {name!r}. Name VS or cochlea.")
        try:
            found[name] = RegionStatistics(**{k: None if v is None else float(v) for k, v in values.items()})
        except (AttributeError, TypeError, ValueError) as error:
            keys = "mean, spread, ring_mean and ring_spread"
            raise InputError(f"statistics of {name} are {values!r}. Give {keys} as numbers.") from error
    return found


def calibrate(
    translation: ArrayLike,
    label: ArrayLike,
    spacing: Sequence[float],
    levels: TargetLevels,
    statistics: Mapping[str, RegionStatistics] | None = None,
    cysts: NDArray[np.bool_] | None = None,
) -> Volume:
    """Move mean and spread of VS, cochlea and their rings, each by an affine map that fades over the border.

    The rest of the translation keeps its values.

    Args:
        translation: :math:`(X, Y, Z)` along L, P, S, in any unit.
        label: rounded label map of the same shape.
        spacing: mm of the three axes.
        levels: of hrT2, for the defaults and the cysts.
        statistics: of ``VS`` and ``cochlea``; a structure that is left out is not moved; ``None`` is
            :func:`default_statistics`.
        cysts: voxels of VS that become fluid, see :func:`plugins.data.redraw.cystic`.

    Returns:
        float32 in the unit of the translation, :math:`(X, Y, Z)`.
    """
    values = np.asarray(translation, np.float64)
    low, scale = range_of(values)
    values = (values - low) / scale
    wanted = default_statistics(levels) if statistics is None else statistics
    total, weights = np.zeros_like(values), np.zeros_like(values)
    fluid = np.zeros(values.shape, bool) if cysts is None else np.asarray(cysts, bool)
    for name, inside in _structures(label).items():
        if name in wanted:
            region = wanted[name]
            around = ring(inside, np.asarray(label) > 0, spacing)
            for part, mean, spread in (
                (inside & ~fluid, region.mean, region.spread),
                (around, region.ring_mean, region.ring_spread),
            ):
                if part.any() and (mean is not None or spread is not None):
                    weight = soft(part)
                    total += weight * _change(values, part, mean, spread)
                    weights += weight
    calibrated = values + total / np.maximum(weights, 1)
    if fluid.any():
        weight = soft(fluid)
        calibrated = calibrated * (1 - weight) + levels.fluid * weight
    return np.asarray(low + scale * calibrated, np.float32)


def ring(inside: NDArray[np.bool_], labelled: NDArray[np.bool_], spacing: Sequence[float]) -> NDArray[np.bool_]:
    """The voxels about a structure, in the plane, that have no label: two voxels wide in the coarsest grids."""
    reach = [max(1, round(RING_MM / step)) for step in spacing[:2]]
    x, y = np.ogrid[-reach[0] : reach[0] + 1, -reach[1] : reach[1] + 1]
    diamond = (np.abs(x) / reach[0] + np.abs(y) / reach[1] <= 1)[..., None]
    return np.asarray(ndimage.binary_dilation(inside, diamond) & ~labelled)


def _structures(label: ArrayLike) -> dict[str, NDArray[np.bool_]]:
    masks = {name: np.asarray(label) == value for name, value in STRUCTURES.items()}
    return {name: mask for name, mask in masks.items() if mask.any()}


def _change(
    values: NDArray[np.float64], part: NDArray[np.bool_], mean: float | None, spread: float | None
) -> NDArray[np.float64]:
    """What an affine map adds to give the part this mean and spread; noise is not raised more than fourfold.

    Beyond the part's own range, as in voxels that its border fades into, as much is added as at the ends of the range.
    """
    now, width = values[part].mean(), values[part].std()
    values = np.clip(values, values[part].min(), values[part].max())
    gain = 1.0 if spread is None or width == 0 else min(spread / width, _MAX_GAIN)
    return np.asarray((now if mean is None else mean) - now + (gain - 1) * (values - now))
