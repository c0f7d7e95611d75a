"""Which parts of a label map can be the one VS and the two cochleae: chosen by place and score, not by size alone.

Places are mm in the world of the affine (RAS: the first axis runs to the patient's right), never voxel indices.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from itertools import combinations
from typing import Any

import numpy as np
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, find_objects, generate_binary_structure, label
from scipy.spatial import cKDTree

from plugins.errors import InputError
from plugins.segmentation.model import LABELS

VS, COCHLEA = "VS", "cochlea"
TOUCHING = generate_binary_structure(3, 3)
LONE_COCHLEA = 0.5
"""What a cochlea without a second one counts, so that a pair with two weak parts does not beat a strong part."""

Labels = NDArray[Any]
Affine = NDArray[np.float64]


@dataclass(frozen=True)
class AnatomySettings:
    """Where VS and cochleae may lie, and what belongs together.

    Attributes:
        cochlea_distance_mm: least and largest distance of the two cochleae from left to right.
        level_mm: largest difference of their heights.
        front_mm: largest difference of their positions from back to front.
        vs_distance_mm: largest distance of the centres of the VS and of the nearer cochlea.
        vs_gap_mm: distance of the nearest voxels of both at which the score of a VS has fallen to 1/e.
        vs_volume_mm3: largest VS that counts in full.
        cochlea_volume_mm3: largest single cochlea that counts in full.
        fragment_mm: a fragment may lie so far from its structure, from voxel centre to voxel centre.
        fragment_share: and may be so large, as a share of what it belongs to.
        candidates: how many components, the best by size or probability, are looked at.
        lowest_probability: from which voxels may belong to a structure, see
            :func:`plugins.segmentation.sizes.grow_to_size`; 0.5 lets nothing grow.
        cochleae_mm3: volume of both cochleae together, to which a label map may grow; ``None`` lets nothing grow.
    """

    cochlea_distance_mm: Sequence[float] = (35.0, 85.0)
    level_mm: float = 15.0
    front_mm: float = 25.0
    vs_distance_mm: float = 30.0
    vs_gap_mm: float = 10.0
    vs_volume_mm3: float = 20000.0
    cochlea_volume_mm3: float = 250.0
    fragment_mm: float = 5.0
    fragment_share: float = 0.5
    candidates: int = 16
    lowest_probability: float = 0.5
    cochleae_mm3: float | None = None

    def __post_init__(self) -> None:
        low, high = self.cochlea_distance_mm
        others = [getattr(self, each.name) for each in fields(self) if each.name != "cochlea_distance_mm"]
        numbers = [low, high, *(number for number in others if number is not None)]
        if not all(math.isfinite(number) and number > 0 for number in numbers) or low >= high:
            raise ValueError(f"settings of the anatomy must be positive, and ranges in order: {self}")
        if self.lowest_probability > 0.5:
            raise ValueError(f"lowest_probability is {self.lowest_probability}, but 0.5 is the most")


DEFAULTS = AnatomySettings()


def read_settings(settings: Mapping[str, Any]) -> AnatomySettings:
    """Those of a config, the others by default.

    Raises:
        InputError: for a setting that does not exist or cannot be.
    """
    try:
        return AnatomySettings(**settings)
    except (TypeError, ValueError) as error:
        raise InputError(f"anatomy is {dict(settings)} ({error}). Give settings that exist, or null.") from error


@dataclass(frozen=True)
class Component:
    """A connected part of a structure, or one with its fragments.

    Attributes:
        structure: ``VS`` or ``cochlea``.
        numbers: of its parts in the numbered map.
        volume_mm3: of all voxels.
        mass_mm3: sum of the probabilities times the volume of a voxel; without probabilities the volume.
        centroid: mm in the world (right, anterior, superior).
        side: ``right`` or ``left`` of the midline.
        mean_probability: over its voxels; ``None`` where there are no probabilities.
    """

    structure: str
    numbers: tuple[int, ...]
    volume_mm3: float
    mass_mm3: float
    centroid: tuple[float, float, float]
    side: str
    mean_probability: float | None


@dataclass(frozen=True)
class Choice:
    """What was chosen of a label map.

    Attributes:
        labels: the label map with all else made background.
        vs: ``None`` where the map has no VS.
        cochleae: at most two, the right one first.
        components: how many components each structure had.
    """

    labels: Labels
    vs: Component | None
    cochleae: tuple[Component, ...]
    components: Mapping[str, int]


def find_components(
    labels: Labels, affine: Affine, probabilities: NDArray[Any] | None = None, midline_mm: float | None = None
) -> list[Component]:
    """All components of VS and cochlea, largest first; voxels that touch at a corner are connected.

    Args:
        labels: label map :math:`(X, Y, Z)`.
        affine: voxel to mm, (4, 4), of any orientation.
        probabilities: :math:`(3, X, Y, Z)`, background, VS, cochlea; what is not finite counts as 0.
        midline_mm: the midline's place from left to right; ``None`` is the centre of the volume.
    """
    midline = centre_mm(labels.shape, affine) if midline_mm is None else midline_mm
    found = [c for name in (VS, COCHLEA) for c in _numbered(name, labels, affine, probabilities, midline)[1]]
    return sorted(found, key=lambda component: -component.volume_mm3)


def centre_mm(shape: Sequence[int], affine: Affine) -> float:
    """Place of a volume's centre from left to right."""
    return float(apply_affine(affine, (np.array(shape) - 1) / 2)[0])


def choose_components(
    labels: Labels, affine: Affine, probabilities: NDArray[Any] | None = None, settings: AnatomySettings = DEFAULTS
) -> Labels:
    """A label map with one VS and two cochleae, one a side, and their fragments; all else is background.

    A structure that the map has is never removed as a whole. See :func:`choose`.

    Shape:
        - labels: :math:`(X, Y, Z)`.
        - probabilities: :math:`(3, X, Y, Z)`.
    """
    return choose(labels, affine, probabilities, settings).labels


def choose(
    labels: Labels, affine: Affine, probabilities: NDArray[Any] | None = None, settings: AnatomySettings = DEFAULTS
) -> Choice:
    """The parts that :func:`choose_components` keeps.

    The score of a part is its probability mass (its volume where there are no probabilities), less where it is larger
    than the structure can be. The cochleae are the pair, within the ranges of ``settings``, with the best sum of scores
    times :math:`e^{-(d/l)^2}` for each deviation d with its limit l; or the best part alone, if that scores twice as
    much. The VS is the part of best score, weighted alike by its gap to the nearer cochlea, of those near enough; where
    none is near, or no cochlea is found, of all.

    Args:
        labels: label map :math:`(X, Y, Z)`.
        affine: voxel to mm, (4, 4), of any orientation.
        probabilities: :math:`(3, X, Y, Z)`, background, VS, cochlea.
        settings: ranges and limits.
    """
    midline = centre_mm(labels.shape, affine)
    cochlea_map, cochlea_parts = _numbered(COCHLEA, labels, affine, probabilities, midline)
    cochleae = _pair(_candidates(cochlea_parts, cochlea_map, affine, settings), settings)
    if len(cochleae) == 2:
        midline = (cochleae[0].centroid[0] + cochleae[1].centroid[0]) / 2
    vs_map, vs_parts = _numbered(VS, labels, affine, probabilities, midline)
    kept_cochleae = np.isin(cochlea_map, [number for part in cochleae for number in part.numbers])
    vs = _nearest_vs(_candidates(vs_parts, vs_map, affine, settings), vs_map, cochleae, kept_cochleae, affine, settings)
    keep = kept_cochleae | np.isin(vs_map, vs.numbers if vs else ())
    structures = np.isin(labels, [LABELS[VS], LABELS[COCHLEA]])
    return Choice(
        labels=np.where(structures & ~keep, 0, labels).astype(labels.dtype),
        vs=vs,
        cochleae=cochleae,
        components={VS: len(vs_parts), COCHLEA: len(cochlea_parts)},
    )


def _numbered(
    structure: str, labels: Labels, affine: Affine, probabilities: NDArray[Any] | None, midline: float
) -> tuple[NDArray[np.int32], list[Component]]:
    numbered, count = label(labels == LABELS[structure], TOUCHING)
    where = np.nonzero(numbered)
    numbers = numbered[where] - 1
    sizes = np.bincount(numbers, minlength=count)
    voxel = abs(float(np.linalg.det(affine[:3, :3])))
    means = [np.bincount(numbers, axis, count) / np.maximum(sizes, 1) for axis in where]
    centroids = apply_affine(affine, np.stack(means, -1)) if count else np.zeros((0, 3))
    chances = None
    if probabilities is not None:
        values = np.nan_to_num(probabilities[LABELS[structure]][where].astype(np.float64), posinf=0, neginf=0)
        chances = np.bincount(numbers, values.clip(0, 1), count) / np.maximum(sizes, 1)
    known = chances is not None and bool(chances.sum() > 0)
    parts = []
    for number in range(count):
        volume, chance = voxel * int(sizes[number]), None if chances is None else float(chances[number])
        x, y, z = (float(value) for value in centroids[number])
        mass = volume * chance if known and chance is not None else volume
        side = "right" if x > midline else "left"
        parts.append(Component(structure, (number + 1,), volume, mass, (x, y, z), side, chance))
    return numbered, parts


def _candidates(
    parts: Sequence[Component], numbered: NDArray[np.int32], affine: Affine, settings: AnatomySettings
) -> list[Component]:
    """The best components, each with the small ones close to it."""
    boxes = find_objects(numbered)
    spacing = voxel_sizes(affine)
    reach = np.ceil(settings.fragment_mm / spacing).astype(int)
    found = []
    for core in sorted(parts, key=lambda part: -_score(part, settings))[: settings.candidates]:
        number = core.numbers[0]
        box = tuple(slice(max(0, s.start - r), s.stop + r) for s, r in zip(boxes[number - 1], reach, strict=True))
        near = distance_transform_edt(numbered[box] != number, sampling=spacing) <= settings.fragment_mm
        around = set(np.unique(numbered[box][near]).tolist()) - {0, number}
        largest = settings.fragment_share * core.volume_mm3
        found.append(_joined([core, *(parts[n - 1] for n in sorted(around) if parts[n - 1].volume_mm3 <= largest)]))
    return found


def _joined(parts: Sequence[Component]) -> Component:
    volumes = np.array([part.volume_mm3 for part in parts])
    x, y, z = np.average([part.centroid for part in parts], axis=0, weights=volumes)
    chances = [part.mean_probability for part in parts if part.mean_probability is not None]
    return replace(
        parts[0],
        numbers=tuple(number for part in parts for number in part.numbers),
        volume_mm3=float(volumes.sum()),
        mass_mm3=sum(part.mass_mm3 for part in parts),
        centroid=(float(x), float(y), float(z)),
        mean_probability=float(np.average(chances, weights=volumes)) if chances else None,
    )


def _score(part: Component, settings: AnatomySettings) -> float:
    largest = settings.vs_volume_mm3 if part.structure == VS else settings.cochlea_volume_mm3
    return part.mass_mm3 * min(1.0, largest / part.volume_mm3) ** 2


def _pair(candidates: Sequence[Component], settings: AnatomySettings) -> tuple[Component, ...]:
    if not candidates:
        return ()
    best: tuple[Component, ...] = (max(candidates, key=lambda part: _score(part, settings)),)
    best_score = LONE_COCHLEA * _score(best[0], settings)
    low, high = settings.cochlea_distance_mm
    for first, second in combinations(candidates, 2):
        across, front, level = np.abs(np.subtract(first.centroid, second.centroid))
        if low <= across <= high and front <= settings.front_mm and level <= settings.level_mm:
            off = (across - (low + high) / 2) / ((high - low) / 2)
            place = math.exp(-(off**2) - (front / settings.front_mm) ** 2 - (level / settings.level_mm) ** 2)
            score = place * (_score(first, settings) + _score(second, settings))
            if score > best_score:
                best, best_score = (first, second), score
    if len(best) < 2:
        return best
    left, right = sorted(best, key=lambda part: part.centroid[0])
    return replace(right, side="right"), replace(left, side="left")


def _nearest_vs(
    candidates: Sequence[Component],
    numbered: NDArray[np.int32],
    cochleae: Sequence[Component],
    cochlea_mask: NDArray[np.bool_],
    affine: Affine,
    settings: AnatomySettings,
) -> Component | None:
    if not candidates:
        return None
    if not cochleae:
        return max(candidates, key=lambda part: _score(part, settings))
    tree = cKDTree(apply_affine(affine, np.argwhere(cochlea_mask)))

    def weighted(part: Component) -> float:
        voxels = np.argwhere(np.isin(numbered, part.numbers))
        gap = float(tree.query(apply_affine(affine, voxels))[0].min())
        return _score(part, settings) * math.exp(-((gap / settings.vs_gap_mm) ** 2))

    near = [part for part in candidates if nearest_mm(part, cochleae) <= settings.vs_distance_mm]
    if near:
        return max(near, key=weighted)
    return max(candidates, key=lambda part: _score(part, settings))


def nearest_mm(part: Component, others: Sequence[Component]) -> float:
    """Distance of the centres of a part and of the nearest other one."""
    return min(math.dist(part.centroid, other.centroid) for other in others)
