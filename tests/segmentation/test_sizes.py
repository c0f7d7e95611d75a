"""Label maps grow until the cochleae have the volume that they are known to have."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from scipy.ndimage import label

from plugins.segmentation import AnatomySettings, PlausibleComponentsd
from plugins.segmentation.sizes import grow_to_size

AFFINE = np.diag([1.0, 1.0, 1.5, 1.0])
SHAPE = (90, 40, 20)
CENTRES = {"right": (15, 20, 10), "left": (75, 20, 10), "VS": (27, 22, 10)}


def soft_head(peak=0.9, width=4.0, without=()):
    """Probabilities that fall from the middle of each structure, and their argmax."""
    grid = np.stack(np.meshgrid(*map(np.arange, SHAPE), indexing="ij"), -1) * [1, 1, 1.5]
    chances = np.zeros((3, *SHAPE))
    for name, centre in CENTRES.items():
        if name not in without:
            distance = np.linalg.norm(grid - np.multiply(centre, [1, 1, 1.5]), axis=-1)
            value = 1 if name == "VS" else 2
            chances[value] = np.maximum(chances[value], peak * np.exp(-((distance / width) ** 2)))
    chances[1:] /= np.maximum(1, chances[1:].sum(0))
    chances[0] = 1 - chances[1:].sum(0)
    return chances, chances.argmax(0).astype(np.uint8)


def naive(labels, chances, goal, lowest):
    """What ``grow_to_size`` does where every structure is already there: component by component, without a box."""
    for probability in np.arange(0.5, lowest - 1e-9, -0.05):
        grown = np.zeros_like(labels)
        for value in (1, 2):
            rivals = (chances[value] >= chances[3 - value]) & (chances[value] >= probability) & (labels == 0)
            numbered, count = label(rivals | (labels == value), np.ones((3, 3, 3)))
            for number in range(1, count + 1):
                if (labels[numbered == number] == value).any():
                    grown[numbered == number] = value
        if 1.5 * (grown == 2).sum() >= goal:
            break
    return grown


@pytest.mark.parametrize("goal", [1.0, 200.0, 400.0, 1e9])
def test_growth_is_that_of_a_naive_search(goal):
    chances, labels = soft_head()
    grown = grow_to_size(labels, chances, AFFINE, AnatomySettings(lowest_probability=0.1, cochleae_mm3=goal))
    np.testing.assert_array_equal(grown, naive(labels, chances, goal, 0.1))


def test_cochleae_of_the_known_size_stay_and_so_does_the_vs():
    chances, labels = soft_head()
    goal = 1.5 * np.count_nonzero(labels == 2)
    settings = AnatomySettings(lowest_probability=0.05, cochleae_mm3=goal)
    np.testing.assert_array_equal(grow_to_size(labels, chances, AFFINE, settings), labels)


def test_small_cochleae_grow_to_their_size_and_no_further_than_one_step():
    chances, labels = soft_head()
    sizes = [
        1.5 * np.count_nonzero(grow_to_size(labels, chances, AFFINE, settings) == 2)
        for settings in (AnatomySettings(lowest_probability=low, cochleae_mm3=500.0) for low in (0.5, 0.3, 0.05))
    ]
    assert sizes[0] < sizes[1] <= sizes[2]
    assert 500 <= sizes[2] < 700


def test_nothing_far_from_a_label_is_added():
    chances, labels = soft_head()
    chances[2, 45, 5, 10], chances[0, 45, 5, 10] = 0.45, 0.55
    grown = grow_to_size(labels, chances, AFFINE, AnatomySettings(lowest_probability=0.05, cochleae_mm3=1e9))
    assert grown[45, 5, 10] == 0


@pytest.mark.parametrize("lost", ["VS", "right"])
def test_a_structure_below_one_half_is_found_where_it_is_likeliest(lost):
    chances, labels = soft_head()
    value = 1 if lost == "VS" else 2
    chances[value] *= 0.4
    chances[0] = 1 - chances[1:].sum(0)
    labels = chances.argmax(0).astype(np.uint8)
    assert not (labels == value).any()
    grown = grow_to_size(labels, chances, AFFINE, AnatomySettings(lowest_probability=0.05, cochleae_mm3=300.0))
    assert grown[CENTRES[lost]] == value


def test_an_empty_map_stays_empty_where_nothing_is_likely():
    chances, _ = soft_head(peak=0.01)
    empty = np.zeros(SHAPE, np.uint8)
    grown = grow_to_size(empty, chances, AFFINE, AnatomySettings(lowest_probability=0.05, cochleae_mm3=300.0))
    assert not grown.any()


@pytest.mark.parametrize("settings", [AnatomySettings(), AnatomySettings(lowest_probability=0.05)])
def test_without_a_known_size_nothing_grows(settings):
    chances, labels = soft_head()
    np.testing.assert_array_equal(grow_to_size(labels, chances, AFFINE, settings), labels)
    np.testing.assert_array_equal(
        grow_to_size(labels, chances, AFFINE, replace(settings, lowest_probability=0.5, cochleae_mm3=1e6)), labels
    )


def test_the_transform_grows_only_with_probabilities():
    chances, labels = soft_head()
    item = {"pred": MetaTensor(torch.from_numpy(labels)[None], affine=torch.from_numpy(AFFINE))}
    grow = PlausibleComponentsd("pred", {"lowest_probability": 0.05, "cochleae_mm3": 500.0})
    assert int((grow(item)["pred"] == 2).sum()) == np.count_nonzero(labels == 2)
    assert 1.5 * int((grow({**item, "probabilities": torch.from_numpy(chances)})["pred"] == 2).sum()) >= 500


def test_a_probability_above_one_half_is_refused():
    with pytest.raises(ValueError, match="lowest_probability"):
        AnatomySettings(lowest_probability=0.7)
