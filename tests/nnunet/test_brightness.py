import pytest
import torch

from plugins.nnunet.brightness import TargetBrightness

EVERY = {"VS": [0.5, 0.5]}
SIZES = [(12, 14), (10, 12, 14)]


def example(*size, channels=1):
    """z-scored noise with a tumour, whose darkest value is -2."""
    torch.manual_seed(0)
    image, segmentation = torch.rand(channels, *size) * 3 - 1.9, torch.zeros(1, *size)
    image[(slice(None), *[0] * len(size))] = -2
    segmentation[(0, *[slice(2, 7)] * len(size))] = 1
    return {"image": image, "segmentation": segmentation}


def core(size):
    """Where the tumour is all there is within a voxel."""
    return (slice(None), *[slice(3, 6)] * len(size))


@pytest.mark.parametrize("size", SIZES)
def test_a_factor_acts_on_what_lies_above_the_darkest_value_and_on_the_structure_alone(size):
    before = example(*size, channels=2)
    after = TargetBrightness(EVERY, probability=1)(**before)
    expected = -2 + 0.5 * (before["image"] + 2)
    torch.testing.assert_close(after["image"][core(size)], expected[core(size)])
    changed = (after["image"] != before["image"]).any(0)
    assert changed[core(size)[1:]].all()
    places = changed.nonzero()
    assert (int(places.min()), int(places.max())) == (1, 7)
    assert torch.equal(after["segmentation"], before["segmentation"])
    low, high = torch.minimum(before["image"], expected), torch.maximum(before["image"], expected)
    assert ((low - 1e-6 <= after["image"]) & (after["image"] <= high + 1e-6)).all()  # smooth: between both at the rim


def test_the_factor_is_that_of_the_signal_whatever_the_z_score():
    before = example(12, 14)
    raw = (before["image"] + 2) * 100  # the scanner's own numbers, air at 0
    dimmed = TargetBrightness(EVERY, probability=1)(**before)["image"]
    of_raw = TargetBrightness(EVERY, probability=1)(**{**before, "image": raw})["image"]
    torch.testing.assert_close((dimmed + 2) * 100, of_raw)
    torch.testing.assert_close(of_raw[core((12, 14))], 0.5 * raw[core((12, 14))])


@pytest.mark.parametrize("size", SIZES)
def test_stretched_from_a_local_range_as_counted_voxel_by_voxel(size):
    before = example(*size)
    augment = TargetBrightness({"VS": [1, 1]}, probability=1, stretch=0.3)
    after = augment.apply(before, changes={1: (0.8, 0.2, 0.9)})["image"]
    box = [before["image"][(0, *place)].item() for place in torch.cartesian_prod(*[torch.arange(0, 9)] * len(size))]
    ordered = sorted(box)
    a, b = (ordered[int(at * len(ordered))] for at in (0.2, 0.9))
    for place in torch.cartesian_prod(*[torch.arange(3, 6)] * len(size)):
        share = min(max((before["image"][(0, *place)].item() - a) / (b - a), 0), 1)
        stretched = ordered[0] + (ordered[-1] - ordered[0]) * share
        assert after[(0, *place)].item() == pytest.approx(-2 + 0.8 * (stretched + 2), abs=1e-5)


def test_nothing_changes_without_the_structure_the_chance_or_a_change():
    before = example(12, 14)
    for augment in (
        TargetBrightness({"cochlea": [0, 0]}, 1),
        TargetBrightness({"VS": [0, 0]}, 0),
        TargetBrightness({"VS": [1, 1]}, 1),
    ):
        torch.testing.assert_close(augment(**before)["image"], before["image"], rtol=0, atol=1e-6)


def test_a_patch_of_one_brightness_stays():
    before = {"image": torch.ones(1, 4, 4), "segmentation": torch.ones(1, 4, 4)}
    assert torch.equal(TargetBrightness(EVERY, 1, stretch=0.2)(**before)["image"], before["image"])


def test_every_factor_and_quantile_of_its_range_is_drawn():
    augment = TargetBrightness({"VS": [0.4, 0.8]}, 0.5, stretch=0.2)
    drawn = [augment.get_parameters()["changes"].get(1) for _ in range(400)]
    factors, first, last = zip(*[change for change in drawn if change], strict=True)
    assert 150 < len(factors) < 250
    for values, low, high in ((factors, 0.4, 0.8), (first, 0, 0.2), (last, 0.8, 1)):
        assert low <= min(values) < low + 0.03
        assert high - 0.03 < max(values) <= high
