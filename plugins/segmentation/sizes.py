"""The size that cochleae are known to have says from which probability on a voxel belongs to a structure."""

from __future__ import annotations

from typing import Any

import numpy as np
from nibabel.affines import from_matvec, voxel_sizes
from numpy.typing import NDArray
from scipy.ndimage import binary_propagation

from plugins.segmentation.anatomy import COCHLEA, TOUCHING, Affine, AnatomySettings, Labels, choose_components
from plugins.segmentation.model import LABELS

USUAL, STEP = 0.5, 0.05


def grow_to_size(
    labels: Labels, probabilities: NDArray[Any], affine: Affine, settings: AnatomySettings
) -> NDArray[np.uint8]:
    """Lower the probability from which a voxel belongs to VS or cochlea, until the cochleae have their known volume.

    A network that meets another kind of scan than it has learnt draws structures too small. Cochleae differ little from
    patient to patient, so their volume tells how far the probability has to fall, by steps of 0.05 from 0.5; that of
    the VS falls with it. Structures grow from what is already labelled; one that the map lacks begins with its best
    component above ``lowest_probability``.

    Args:
        labels: label map :math:`(X, Y, Z)` after :func:`choose_components`.
        probabilities: :math:`(3, X, Y, Z)`, background, VS, cochlea.
        affine: voxel to mm, (4, 4).
        settings: ``cochleae_mm3`` and ``lowest_probability``; without the first the label map is returned as it is.
    """
    goal, lowest = settings.cochleae_mm3, settings.lowest_probability
    chances = np.nan_to_num(probabilities[1:].astype(np.float32), posinf=0, neginf=0)
    likely = np.where(labels > 0, labels, 1 + chances.argmax(0)).astype(np.uint8)
    chance = np.where(labels > 0, 1.0, chances.max(0))
    if goal is None or lowest >= USUAL or not (chance >= lowest).any():
        return labels.astype(np.uint8)
    box = tuple(slice(axis.min(), axis.max() + 1) for axis in np.nonzero(chance >= lowest))
    likely, chance, seeds = likely[box], chance[box], labels[box].astype(np.uint8)
    corner = from_matvec(np.eye(3), [side.start for side in box])
    seeds = _completed(seeds, likely, chance, lowest, affine @ corner, settings)
    voxel = float(np.prod(voxel_sizes(affine)))
    steps = int(np.ceil((USUAL - lowest) / STEP - 1e-9))
    grown = seeds
    for probability in [max(lowest, USUAL - STEP * step) for step in range(steps + 1)]:
        grown = np.zeros_like(seeds)
        for value in LABELS.values():
            if value:
                mask = (likely == value) & ((chance >= probability) | (seeds == value))
                grown[binary_propagation(seeds == value, TOUCHING, mask)] = value
        if voxel * np.count_nonzero(grown == LABELS[COCHLEA]) >= goal:
            break
    result = np.zeros(labels.shape, np.uint8)
    result[box] = grown
    return result


def _completed(
    seeds: NDArray[np.uint8],
    likely: NDArray[np.uint8],
    chance: NDArray[Any],
    lowest: float,
    affine: Affine,
    settings: AnatomySettings,
) -> NDArray[np.uint8]:
    """The seeds, and of each structure that they lack the component that would be chosen of all voxels in question."""
    lacking = [value for value in LABELS.values() if value and not (seeds == value).any()]
    if not lacking:
        return seeds
    doubtful = np.where(chance >= lowest, likely, 0).astype(np.uint8)
    weights = np.stack([1 - chance, *(np.where(likely == value, chance, 0) for value in (1, 2))])
    found = choose_components(doubtful, affine, weights, settings)
    return np.where(np.isin(found, lacking) & (seeds == 0), found, seeds).astype(np.uint8)
