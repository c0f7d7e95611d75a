"""How well a label map agrees with what labelled scans look like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any

import numpy as np

from plugins.errors import InputError
from plugins.segmentation.anatomy import (
    COCHLEA,
    DEFAULTS,
    VS,
    Affine,
    AnatomySettings,
    Choice,
    Labels,
    choose,
    nearest_mm,
)
from plugins.segmentation.model import LABELS

Range = Sequence[float]


@dataclass(frozen=True)
class SourceStatistics:
    """Ranges of labelled scans, as they were measured, and how far others may leave them.

    Attributes:
        volume_mm3: of the VS and of a single cochlea, least and largest.
        components: number of connected parts of each structure, least and largest.
        vs_cochlea_mm: of the centres of the VS and of the nearer cochlea.
        cochlea_cochlea_mm: of the centres of the cochleae.
        scans: how many were measured.
        volume_factor: by which volumes may be smaller or larger than any that was measured.
        distance_factor: by which distances may be so; the VS may always be nearer to the cochlea.
        more_components: how many parts more there may be.
    """

    volume_mm3: Mapping[str, Range]
    components: Mapping[str, Range]
    vs_cochlea_mm: Range
    cochlea_cochlea_mm: Range
    scans: int
    volume_factor: float = 2.0
    distance_factor: float = 1.25
    more_components: int = 1

    @classmethod
    def measure(
        cls, scans: Iterable[tuple[Labels, Affine]], settings: AnatomySettings = DEFAULTS, **margins: Any
    ) -> SourceStatistics:
        """Of true label maps and their affines.

        Args:
            scans: label maps :math:`(X, Y, Z)` with their affines (4, 4).
            settings: what belongs together.
            margins: ``volume_factor``, ``distance_factor`` or ``more_components``.

        Raises:
            InputError: if no scan has a VS and two cochleae.
        """
        choices = [choose(labels, affine, settings=settings) for labels, affine in scans]
        whole = [choice for choice in choices if choice.vs and len(choice.cochleae) == 2]
        if not whole:
            raise InputError("no label map of the source has a VS and two cochleae. Give true label maps.")
        volumes = {
            VS: [choice.vs.volume_mm3 for choice in whole if choice.vs],
            COCHLEA: [part.volume_mm3 for choice in whole for part in choice.cochleae],
        }
        near = [nearest_mm(choice.vs, choice.cochleae) for choice in whole if choice.vs]
        apart = [nearest_mm(choice.cochleae[0], choice.cochleae[1:]) for choice in whole]
        return cls(
            volume_mm3={name: _range(values) for name, values in volumes.items()},
            components={name: _range([choice.components[name] for choice in whole]) for name in volumes},
            vs_cochlea_mm=_range(near),
            cochlea_cochlea_mm=_range(apart),
            scans=len(whole),
            **margins,
        )

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> SourceStatistics:
        """From what :meth:`to_json` gave.

        Raises:
            InputError: if ``content`` is something else.
        """
        try:
            found = cls(**content)
            ranges = [*found.volume_mm3.values(), *found.components.values()]
            ranges += [found.vs_cochlea_mm, found.cochlea_cochlea_mm]
            if set(found.volume_mm3) != {VS, COCHLEA} or set(found.components) != {VS, COCHLEA}:
                raise ValueError("a structure is missing")
            if not all(0 < float(low) <= float(high) for low, high in ranges):
                raise ValueError("a range is not in order")
            if min(found.volume_factor, found.distance_factor, 1 + found.more_components) < 1:
                raise ValueError("a margin is too small")
        except (TypeError, ValueError, AttributeError) as error:
            raise InputError(f"these are no statistics of labels ({error}). Measure them on the source.") from error
        return found

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, lists and mappings."""
        return asdict(self)

    def settings(self, base: AnatomySettings = DEFAULTS) -> AnatomySettings:
        """``base`` with the sizes and the distance of the cochleae of the source."""
        low, high = self.cochlea_cochlea_mm
        return replace(
            base,
            vs_volume_mm3=self.volume_mm3[VS][1],
            cochlea_volume_mm3=self.volume_mm3[COCHLEA][1],
            cochlea_distance_mm=(low / self.distance_factor, high * self.distance_factor),
        )


def _told(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def _range(values: Sequence[float]) -> list[float]:
    return [min(values), max(values)]


def plausibility(
    labels: Labels, affine: Affine, statistics: SourceStatistics, settings: AnatomySettings = DEFAULTS
) -> dict[str, Any]:
    """Whether a label map could be that of a scan: one VS and two cochleae of the source's sizes and distances.

    Args:
        labels: label map :math:`(X, Y, Z)`.
        affine: voxel to mm, (4, 4).
        statistics: of the source.
        settings: what belongs together.

    Returns:
        ``{"score", "reasons"}``. The score, from 0 to 1, is the product over all checks: 0 without a VS or a cochlea,
        .5 with one cochlea, the ratio to the nearest bound for a volume, distance or number out of range, and for each
        structure the share of its voxels that :func:`choose` keeps. There is a sentence for each that is not 1.
    """
    return judge(labels, choose(labels, affine, settings=settings), statistics)


def judge(labels: Labels, choice: Choice, statistics: SourceStatistics) -> dict[str, Any]:
    """:func:`plausibility` of a label map with what was chosen of it."""
    checks: list[tuple[float, str]] = []

    def check(value: float, bounds: Range, factor: float, what: str, unit: str) -> None:
        low, high = bounds[0] / factor, bounds[1] * factor
        ratio = 1.0 if low <= value <= high else value / low if value < low else high / value
        checks.append((ratio, f"{what} is {_told(value)}{unit}, not {_told(low)} to {_told(high)}"))

    volumes, volume_factor = statistics.volume_mm3, statistics.volume_factor
    distance_factor = statistics.distance_factor
    if choice.vs is None:
        checks.append((0.0, "no VS"))
    else:
        check(choice.vs.volume_mm3, volumes[VS], volume_factor, "the volume of the VS", " mm3")
    if len(choice.cochleae) < 2:
        checks.append((0.5 * len(choice.cochleae), "one cochlea" if choice.cochleae else "no cochlea"))
    for part in choice.cochleae:
        check(part.volume_mm3, volumes[COCHLEA], volume_factor, f"the volume of the {part.side} cochlea", " mm3")
    for right, left in pairwise(choice.cochleae):
        apart = nearest_mm(right, [left])
        check(apart, statistics.cochlea_cochlea_mm, distance_factor, "the distance of the cochleae", " mm")
    if choice.vs is not None and choice.cochleae:
        near, most = nearest_mm(choice.vs, choice.cochleae), statistics.vs_cochlea_mm[1]
        check(near, (0, most), distance_factor, "the distance of the VS to the nearer cochlea", " mm")
    for name, count in choice.components.items():
        most = statistics.components[name][1] + statistics.more_components
        check(count, (0, most), 1, f"the number of parts of the {name}", "")
        voxels = int(np.count_nonzero(labels == LABELS[name]))
        kept = int(np.count_nonzero(choice.labels == LABELS[name]))
        if kept < voxels:
            checks.append((kept / voxels, f"{1 - kept / voxels:.0%} of the {name} lies elsewhere"))
    return {
        "score": float(np.prod([ratio for ratio, _ in checks])),
        "reasons": [reason for ratio, reason in checks if ratio < 1],
    }
