"""What a scan says of its own contrast: shares of its range, noise, and the modes of bone, fluid and tissue.

Volumes have the axes L, P, S, shape (X, Y, Z); neighbourhoods lie in the axial plane. Brightness is a share of the
scan's own range: 0 is its .5 % quantile, 1 its 99.5 % quantile.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import ndimage
from skimage.restoration import denoise_nl_means

from plugins.errors import InputError

Volume = NDArray[np.float32]

RANGE = (0.5, 99.5)
_DARK, _TISSUE = 0.12, (0.22, 0.62)
"""Where bone and air end, and where soft tissue lies, as shares of the range of a head in ceT1."""

_TARGET_TISSUE, _TARGET_FLUID = (0.12, 0.55), 98.0
_STEP = 0.0001
_SMOOTH, _BEND = 2.5, 0.005
"""Bins that a histogram is smoothed over, and the bend of a shoulder, per square of a bin."""

_ERASED = 0.02
"""Share of a scan from which voxels of the lowest value are a background that was set, not measured."""

_PATCH, _SEARCH, _STRENGTH = 3, 4, 0.8
_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TissueModes:
    """Where bone and air, cerebrospinal fluid and soft tissue lie in a ceT1 scan, as shares of its range, in order.

    Attributes:
        bone: of bone and air.
        fluid: of cerebrospinal fluid.
        low: lower quartile of soft tissue, near grey matter.
        high: upper quartile of soft tissue, near white matter.
    """

    bone: float
    fluid: float
    low: float
    high: float


@dataclass(frozen=True)
class TargetLevels:
    """How bright hrT2 draws each tissue, as shares of a scan's range.

    Attributes:
        bone: of bone and air.
        low: lower quartile of soft tissue, near white matter.
        high: upper quartile of soft tissue, near grey matter.
        fluid: of cerebrospinal fluid.
    """

    bone: float
    low: float
    high: float
    fluid: float

    @classmethod
    def measured(cls, volumes: Iterable[ArrayLike]) -> TargetLevels:
        """The median over unlabelled hrT2 scans, or windows of them.

        Args:
            volumes: arrays of any shape, in any unit; read one after another.

        Raises:
            InputError: if there is none.
        """
        found = [_levels(shares(volume)) for volume in volumes]
        if not found:
            raise InputError("there is no hrT2 scan to measure the levels of. Check the list of target scans.")
        bone, low, high, fluid = np.maximum.accumulate(np.median(found, axis=0)).round(6).tolist()
        return cls(bone, low, high, fluid)

    def record(self) -> dict[str, float]:
        """JSON of the levels."""
        return asdict(self)

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> TargetLevels:
        """The levels of a :meth:`record`.

        Raises:
            InputError: if one is missing, unknown or no number.
        """
        try:
            return cls(**{name: float(value) for name, value in record.items()})
        except (AttributeError, TypeError, ValueError) as error:
            raise InputError(f"levels are {record!r}. Give bone, low, high and fluid as numbers.") from error


def range_of(values: NDArray[Any]) -> tuple[Any, Any]:
    """The lower end and the width of a scan's range: 1 where the scan is constant."""
    low, high = np.percentile(values, RANGE)
    if not high > low:
        low, high = values.min(), values.max()
    return low, high - low if high > low else 1.0


def shares(volume: ArrayLike) -> Volume:
    """Brightness as a share of the scan's range; all zeros where the scan is constant."""
    values = np.asarray(volume, np.float32)
    low, width = range_of(values)
    return ((values - low) / width).astype(np.float32)


def noise_of(volume: ArrayLike) -> float:
    r"""Standard deviation of white noise, from the dark part of each slice, where there are few edges.

    A voxel minus the mean of its four neighbours has :math:`\sqrt{5/4}` of the noise; the median of its size is robust
    (times 1.4826 for a normal distribution). Voxels that equal their neighbours are background that was cut out,
    and those beside them its edge.

    Shape: (X, Y, Z); the noise is in the units of the volume.
    """
    values = np.asarray(volume, np.float32)
    kernel = np.zeros((3, 3, 1), np.float32)
    kernel[[0, 2, 1, 1], [1, 1, 0, 2]] = 0.25
    residual = values - ndimage.convolve(values, kernel, mode="reflect")
    drawn = residual != 0
    if not drawn.any():
        return 0.0
    whole = ndimage.binary_erosion(drawn, np.ones((3, 3, 1)), border_value=1)
    drawn = whole if whole.any() else drawn
    around = np.where(drawn, ndimage.uniform_filter(values, (5, 5, 1)), np.inf)  # hardly depends on the voxel's noise
    bounds = [np.percentile(plane[m], 30) if m.any() else 0 for plane, m in zip(around.T, drawn.T, strict=True)]
    dark = drawn & (around <= np.asarray(bounds, np.float32))
    return float(1.4826 * np.median(np.abs(residual[dark])) / np.sqrt(1.25))


def denoise(volume: ArrayLike) -> Volume:
    """Non-local means, slice by slice (Buades et al., CVPR 2005; scikit-image): edges and thin structures stay.

    Shape: (X, Y, Z) in and out.
    """
    values = np.asarray(volume, np.float32)
    noise = noise_of(values)
    if noise == 0:
        return values
    settings = {"patch_size": _PATCH, "patch_distance": _SEARCH, "h": _STRENGTH * noise, "sigma": noise}
    slices = [denoise_nl_means(plane, fast_mode=True, **settings) for plane in np.moveaxis(values, 2, 0)]
    return np.stack(slices, axis=2).astype(np.float32)


def tissue_modes(volume: ArrayLike, name: str = "a scan") -> TissueModes:
    """Find bone, fluid and tissue in the histogram of a ceT1 scan.

    Bone and air are the highest mode of the dark voxels. Fluid is rarer and need not have a peak: it is the shoulder
    where the logarithm of the histogram bends down most, between the foot of bone and half of soft tissue. Where one
    is not found, it is set by the others, and the log says so. A background of one value, where a face or the air was
    erased, counts for nothing.

    Args:
        volume: denoised shares, :func:`shares` and :func:`denoise`; any shape.
        name: of the scan, for the log.
    """
    values = _without_background(np.asarray(volume, np.float32).ravel())
    counts, centres = _histogram(values, 240, (-0.05, 0.65))
    bone = _dark_mode(counts, centres, 1.5)
    low, high = _soft_tissue(values, bone, name)
    shoulder = _shoulder(counts, centres, bone, low / 2)
    if shoulder is not None:
        fluid = shoulder
    else:
        fluid = bone + 0.175 * (low - bone)
        _logger.warning(f"{name}: its histogram has no shoulder of cerebrospinal fluid; it is set by bone and tissue.")
    ordered = np.array([bone, fluid, low, high])
    for at in range(1, 4):
        ordered[at] = max(ordered[at], ordered[at - 1] + _STEP)
    return TissueModes(*ordered.round(6).tolist())


def _without_background(values: Volume) -> Volume:
    """The voxels that were not set to the lowest value, where so many have exactly that one and others are dark too."""
    rest = values[values > values.min() + 1e-6] if values.size else values
    erased = len(values) - len(rest) > _ERASED * len(values)
    return rest if erased and np.count_nonzero(rest < _DARK) > _ERASED * len(values) else values


def _shoulder(counts: NDArray[Any], centres: NDArray[Any], low: float, high: float) -> float | None:
    """Where the logarithm of a histogram bends down most, after it has bent up most; ``None`` if it does not."""
    bend = ndimage.gaussian_filter1d(np.log1p(counts), _SMOOTH, order=2)
    between = np.flatnonzero((centres > low) & (centres < high))
    if len(between) == 0:
        return None
    foot = between[np.argmax(bend[between])]
    after = between[between > foot]
    if len(after) == 0 or bend[after].min() >= -_BEND:
        return None
    return float(centres[after[np.argmin(bend[after])]])


def _soft_tissue(values: Volume, bone: float, name: str) -> tuple[float, float]:
    """Quartiles of soft tissue."""
    tissue = values[(values > _TISSUE[0]) & (values < _TISSUE[1])]
    if len(tissue) < 0.02 * len(values):
        _logger.warning(f"{name}: little of it is as bright as soft tissue; the rest above bone is taken for it.")
        tissue = values[values > bone + 0.05]
    if len(tissue) == 0:
        return _TISSUE[0], _TISSUE[1]
    low, high = np.percentile(tissue, [25, 75])
    return float(low), float(high)


def _levels(values: Volume) -> tuple[float, float, float, float]:
    counts, centres = _histogram(values, 200, (-0.05, 1.0))
    bone = _dark_mode(counts, centres, 2.0)
    tissue = values[(values > _TARGET_TISSUE[0]) & (values < _TARGET_TISSUE[1])]
    low, high = np.percentile(tissue, [25, 75]) if tissue.size else (0.25, 0.35)
    return bone, float(low), float(high), float(np.percentile(values, _TARGET_FLUID))


def _histogram(values: Volume, bins: int, ends: tuple[float, float]) -> tuple[NDArray[Any], NDArray[Any]]:
    counts, edges = np.histogram(values, bins=bins, range=ends)
    return counts.astype(np.float64), (edges[1:] + edges[:-1]) / 2


def _dark_mode(counts: NDArray[Any], centres: NDArray[Any], width: float) -> float:
    """The highest mode of the dark voxels; 0 where there are none."""
    dark = np.where(centres < _DARK, ndimage.gaussian_filter1d(counts, width), 0)
    return float(centres[np.argmax(dark)]) if dark.any() else 0.0
