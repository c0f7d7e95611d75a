import math

import numpy as np
import pytest
import torch

from plugins.nnunet.appearance import TargetAppearance


def example(*size):
    torch.manual_seed(0)
    image, segmentation = torch.rand(1, *size), torch.zeros(1, *size)
    segmentation[(0, *[slice(2, 7)] * len(size))] = 1
    return {"image": image, "segmentation": segmentation}


@pytest.mark.parametrize("size", [(12, 14), (10, 12, 14)])
def test_the_mean_moves_to_the_quantile_and_nothing_far_changes(size):
    before = example(*size)
    after = TargetAppearance({"VS": [0.9, 0.9]}, probability=1)(**before)
    core = (0, *[slice(3, 6)] * len(size))
    others = before["image"][(before["segmentation"] != 1) & (before["image"] > before["image"].min())]
    shift = after["image"][core] - before["image"][core]
    expected = others.quantile(0.9) - before["image"][before["segmentation"] == 1].mean()
    torch.testing.assert_close(shift, expected.expand_as(shift), atol=0.01, rtol=0)
    changed = (after["image"] != before["image"])[0].nonzero()
    assert changed.min() >= 1
    assert changed.max() <= 7
    assert torch.equal(after["segmentation"], before["segmentation"])


def test_without_the_structure_or_the_chance_nothing_changes():
    before = example(12, 14)
    for augment in (TargetAppearance({"cochlea": [0, 1]}, 1), TargetAppearance({"VS": [0, 1]}, 0)):
        assert torch.equal(augment(**before)["image"], before["image"])


def test_every_quantile_of_the_range_is_drawn():
    augment = TargetAppearance({"VS": [0.2, 0.6]}, 0.5)
    drawn = [augment.get_parameters()["quantiles"].get(1) for _ in range(400)]
    found = [value for value in drawn if value is not None]
    assert 150 < len(found) < 250
    assert 0.2 <= min(found) < 0.22
    assert 0.58 < max(found) <= 0.6


def test_a_patch_without_anything_else_stays():
    before = {"image": torch.ones(1, 4, 4), "segmentation": torch.ones(1, 4, 4)}
    assert torch.equal(TargetAppearance({"VS": [0, 1]}, 1)(**before)["image"], before["image"])


@pytest.mark.parametrize("size", [(12, 14), (10, 12, 14)])
def test_texture_is_scaled_about_the_new_mean(size):
    before = example(*size)
    full, half = (
        TargetAppearance({"VS": [0.9, 0.9]}, 1, texture=[factor] * 2)(**before)["image"] for factor in (1.0, 0.5)
    )
    core = (0, *[slice(3, 6)] * len(size))
    mean = before["image"][before["segmentation"] == 1].mean()
    torch.testing.assert_close(full[core] - half[core], 0.5 * (before["image"][core] - mean))


@pytest.mark.parametrize("size", [(24, 26), (20, 24, 26)])
def test_cysts_are_bright_lie_in_the_vs_and_leave_the_rest(size):
    torch.manual_seed(0)
    image, segmentation = torch.rand(1, *size), torch.zeros(1, *size)
    segmentation[(0, *[slice(4, 16)] * len(size))] = 1
    before = {"image": image, "segmentation": segmentation}
    augment = TargetAppearance({"VS": [0.1, 0.1]}, 1, cysts=1)
    drawn = augment.get_parameters()
    without = augment.apply(before, **{**drawn, "cysts": None})["image"]
    with_cysts = augment.apply(before, **drawn)["image"]
    changed = with_cysts != without
    assert changed.any()
    assert not (changed & (segmentation != 1)).any()
    share = float(changed.sum() / (segmentation == 1).sum())
    assert 0.005 < share < 0.9
    assert (with_cysts >= without - 0.3)[changed].all()
    place, size_drawn, brightness = drawn["cysts"].tolist()[-1]  # nothing is drawn over the last one
    voxels = (segmentation[0] == 1).nonzero()
    centre = tuple(voxels[int(place * len(voxels))].tolist())
    others = image[0][(segmentation[0] != 1) & (image[0] > image[0].min())].sort().values
    fluid = others[min(int((0.9 + 0.1 * brightness) * len(others)), len(others) - 1)]
    assert float(with_cysts[(0, *centre)]) == pytest.approx(float(fluid), abs=1e-5)
    spread = np.asarray(voxels, dtype=np.float64).std(0) * 5**0.5 * (0.3 + 0.4 * size_drawn)
    for voxel in voxels.tolist():
        if math.dist(np.array(voxel) / spread, np.array(centre) / spread) <= 0.5:
            assert float(with_cysts[(0, *voxel)]) == pytest.approx(float(fluid), abs=1e-5)


def test_a_cochlea_gets_no_cysts_and_what_is_off_draws_nothing():
    cochlea = TargetAppearance({"cochlea": [0, 1]}, 1, cysts=1)
    assert cochlea.get_parameters()["cysts"] is None
    torch.manual_seed(5)
    TargetAppearance({"VS": [0, 1], "cochlea": [0, 1]}, 1).get_parameters()
    after = torch.rand(1)
    torch.manual_seed(5)
    torch.rand(2, 2)
    assert torch.equal(torch.rand(1), after)
