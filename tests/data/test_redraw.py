"""A scan with known tissues, drawn again: modes, curves, partial volume, calibration, degenerate input."""

from __future__ import annotations

import json

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from plugins.data import calibration, redraw, tissue
from plugins.data.calibration import RegionStatistics, calibrate, read_statistics, ring
from plugins.data.scans import STRUCTURES
from plugins.data.tissue import TargetLevels, TissueModes
from plugins.errors import InputError

SPACING = (1.0, 1.0, 1.5)
LEVELS = TargetLevels(bone=0.03, low=0.2, high=0.3, fluid=0.9)
MODES = TissueModes(bone=0.02, fluid=0.1, low=0.3, high=0.4)


def head(seed=0, noise=0.004, shape=(48, 40, 5)):
    """Shares: bone .03, fluid .10, grey .32, white .42, fat 1; a tumour .8 with a cyst .2; a cochlea of 1/2 fluid."""
    random = np.random.default_rng(seed)
    volume, label = np.full(shape, 0.03), np.zeros(shape, np.uint8)
    volume[16:, :26], volume[30:, :26], volume[20:24, 2:24] = 0.32, 0.42, 0.1
    volume[:, -1:] = 1.0
    volume[16:22, 27:33], label[16:22, 27:33] = 0.8, 1
    volume[18:20, 29:31] = 0.2
    volume[6:8, 10:12], label[6:8, 10:12] = 0.065, 2
    volume[6:8, 20:22] = 0.065  # labyrinth without a label
    return volume + noise * random.standard_normal(shape), label


def drawn_from(volume, label, variation=None):
    values = tissue.denoise(tissue.shares(volume))
    return redraw.redraw_shares(values, label, SPACING, tissue.tissue_modes(values), LEVELS, variation)


def measured_statistics(volume, label):
    shares = tissue.shares(volume).astype(float)
    found = {}
    for name, value in STRUCTURES.items():
        regions = [shares[label == value], shares[ring(label == value, label > 0, SPACING)]]
        found[name] = RegionStatistics(*(number for each in regions for number in (each.mean(), each.std())))
    return found


def test_shares_are_of_the_inner_99_percent():
    values = np.arange(1001.0).reshape(7, 11, 13)
    assert_allclose(tissue.shares(values), (values - 5) / 990, atol=1e-6)


@pytest.mark.parametrize("value", [0, 7])
def test_shares_of_a_constant_scan_are_zero(value):
    assert not tissue.shares(np.full((3, 4, 2), value)).any()


def test_noise_is_that_of_the_dark_part():
    random = np.random.default_rng(1)
    volume = 0.02 * random.standard_normal((64, 60, 4))
    volume[40:] = 1 + 0.3 * random.standard_normal((24, 60, 4))
    assert tissue.noise_of(volume) == pytest.approx(0.02, rel=0.15)


def test_noise_is_not_of_the_background_that_was_cut_out():
    random = np.random.default_rng(1)
    volume = np.zeros((64, 60, 4))
    volume[20:, 5:50] = 0.5 + 0.02 * random.standard_normal((44, 45, 4))
    assert tissue.noise_of(volume) == pytest.approx(0.02, rel=0.4)


def test_denoising_leaves_a_scan_without_noise_and_quiets_one_with_it():
    clean, _ = head(noise=0)
    clean[:] = np.where(clean > 0.2, 0.5, 0.0)
    noisy = clean + 0.02 * np.random.default_rng(2).standard_normal(clean.shape)
    assert np.abs(tissue.denoise(noisy) - clean).mean() < 0.7 * np.abs(noisy - clean).mean()
    assert_array_equal(tissue.denoise(np.ones((5, 6, 2))), np.ones((5, 6, 2)))


def test_modes_are_found_where_they_were_put():
    modes = tissue.tissue_modes(head()[0])
    assert_allclose([modes.bone, modes.fluid], [0.03, 0.1], atol=0.01)
    assert 0.3 < modes.low < 0.34
    assert 0.4 < modes.high < 0.44


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_an_erased_background_is_not_taken_for_bone(share):
    values = head()[0].ravel()
    erased = np.zeros(int(len(values) * share / (1 - share)), values.dtype)
    modes, expected = tissue.tissue_modes(np.concatenate([values, erased])), tissue.tissue_modes(values)
    assert_allclose([modes.bone, modes.fluid, modes.low], [expected.bone, expected.fluid, expected.low], atol=0.005)


def test_fluid_without_a_peak_of_its_own_is_a_shoulder():
    random = np.random.default_rng(0)
    bone = 0.03 + 0.004 * random.standard_normal(50_000)
    slope = 0.04 + random.exponential(0.03, 4_000)  # falls from bone on, no minimum before fluid
    fluid, brain = 0.08 + 0.006 * random.standard_normal(700), 0.35 + 0.03 * random.standard_normal(20_000)
    modes = tissue.tissue_modes(np.concatenate([bone, slope, fluid, brain]))
    assert modes.fluid == pytest.approx(0.08, abs=0.015)


def test_a_scan_without_fluid_says_so_and_keeps_an_order(caplog):
    volume = np.full((20, 20, 2), 0.03)
    volume[10:] = 0.4
    modes = tissue.tissue_modes(volume, "case_1")
    assert 0.03 < modes.fluid < modes.low <= 0.4 < modes.high + 1e-3
    assert "case_1" in caplog.text
    assert "fluid" in caplog.text


@pytest.mark.parametrize("value", [-3.0, 0.0, 0.1, 0.4, 1.0, 9.0])
def test_modes_of_anything_are_in_order(value):
    modes = tissue.tissue_modes(np.full((4, 3, 2), value))
    assert modes.bone < modes.fluid < modes.low < modes.high


def test_levels_are_the_median_over_scans_and_survive_json():
    dark, bright = (np.concatenate([np.full(60, 0.02), np.full(36, t), np.full(4, 0.95)]) for t in (0.2, 0.4))
    scans = [np.concatenate([scan, np.zeros(2), np.ones(2)]) for scan in (dark, dark, bright)]
    levels = TargetLevels.measured(scans)
    assert_allclose([levels.bone, levels.low, levels.high, levels.fluid], [0.02, 0.2, 0.2, 0.95], atol=0.01)
    assert TargetLevels.from_record(json.loads(json.dumps(levels.record()))) == levels


def test_levels_need_a_scan():
    with pytest.raises(InputError, match="no hrT2 scan"):
        TargetLevels.measured([])


@pytest.mark.parametrize("record", [{"bone": 1}, {**LEVELS.record(), "air": 0}, {**LEVELS.record(), "low": "x"}, 3])
def test_levels_of_another_record_are_refused(record):
    with pytest.raises(InputError, match="Give bone, low, high and fluid"):
        TargetLevels.from_record(record)


def test_the_curve_draws_each_mode_as_its_level():
    knots, drawn = redraw.curve_knots(MODES, LEVELS)
    at = [MODES.bone, MODES.fluid, MODES.low, MODES.high]
    assert_allclose(np.interp(at, knots, drawn), [0.03, 0.81, 0.3, 0.2])
    assert (np.diff(knots) > 0).all()


def test_a_dark_cochlea_lifts_all_fluid_in_bone_and_a_bright_one_nothing():
    knots, drawn = redraw.curve_knots(MODES, LEVELS)
    lifted = redraw.fluid_knots(knots, drawn, 0.045)
    assert np.interp(0.045, *lifted) == pytest.approx(0.03 + 0.5 * (0.81 - 0.03))
    assert_allclose(np.interp(knots, *lifted), drawn)
    for cochlea in (None, 0.021, 0.08, 0.2):
        assert redraw.fluid_knots(knots, drawn, cochlea)[0] is knots


def test_partial_volume_is_the_naive_interpolation_between_neighbours():
    values = np.random.default_rng(3).random((6, 5, 3)).astype(np.float32)

    def curve(x):
        return np.sin(7 * np.asarray(x, np.float64))

    expected = np.empty(values.shape)
    for x, y, z in np.ndindex(values.shape):
        near = [
            float(values[i, j, z])
            for i in range(max(0, x - 1), min(6, x + 2))
            for j in range(max(0, y - 1), min(5, y + 2))
        ]
        low, high, v = min(near), max(near), float(values[x, y, z])
        weight = min(max((high - low - 0.05) / 0.1, 0), 1)
        mixed = curve(low) + (v - low) / max(high - low, 1e-3) * (curve(high) - curve(low))
        expected[x, y, z] = weight * mixed + (1 - weight) * curve(v)
    assert_allclose(redraw.partial_volume(values, curve, SPACING), expected, atol=1e-5)


def test_there_is_no_bright_rim_between_bone_and_tissue():
    values = np.full((9, 9, 2), MODES.bone, np.float32)
    values[5:], values[4] = 0.35, 0.1  # the edge has the brightness of fluid
    knots, drawn = redraw.curve_knots(MODES, LEVELS)
    drawn_scan = redraw.partial_volume(values, lambda x: np.interp(x, knots, drawn), SPACING)
    assert np.interp(0.1, knots, drawn) > 0.8
    assert drawn_scan.max() < 0.31


def test_a_finer_grid_has_wider_edges():
    values = np.zeros((9, 9, 1), np.float32)
    values[6:] = 0.5
    fine = redraw.partial_volume(values, np.square, (0.4, 0.4, 1.5))
    values[4] = values[5] = 0.25
    assert redraw.partial_volume(values, np.square, (0.4, 0.4, 1.5))[4, 4, 0] == pytest.approx(0.125)
    assert fine[0, 0, 0] == 0


def test_every_tissue_is_drawn_as_in_hrt2_and_unlabelled_labyrinth_as_the_cochlea():
    volume, label = head()
    drawn = drawn_from(volume, label)
    assert drawn.dtype == np.float32
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    assert drawn[2:5, 2:30].mean() < 0.12
    assert drawn[21:23, 5:20].mean() > 0.7
    assert 0.25 < drawn[26:28, 5:20].mean() < 0.35
    assert 0.15 < drawn[36:44, 5:20].mean() < 0.25
    cochlea, labyrinth = drawn[6:8, 10:12].mean(), drawn[6:8, 20:22].mean()
    assert cochlea > 0.25
    assert labyrinth == pytest.approx(cochlea, abs=0.1)
    assert drawn[label == 1].mean() < 0.5
    assert drawn[18:20, 29:31].mean() > drawn[16, 28:32].mean() + 0.1


def test_the_tumour_alone_decides_whether_it_has_its_own_curve():
    volume, label = head(noise=0)
    values, modes = tissue.shares(volume), MODES
    with_tumour = redraw.redraw_shares(values, label, SPACING, modes, LEVELS)
    without = redraw.redraw_shares(values, np.where(label == 1, 0, label), SPACING, modes, LEVELS)
    far = ~(redraw.soft(label == 1) > 0)
    assert_array_equal(with_tumour[far], without[far])
    assert np.abs(with_tumour - without)[label == 1].max() > 0.05


def test_variation_is_random_but_repeatable():
    volume, label = head()
    first, again, other = (drawn_from(volume, label, np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.02
    assert first.min() >= 0
    assert first.max() <= 1


@pytest.mark.parametrize("shape", [(12, 10, 1), (12, 10, 2), (3, 2, 2), (1, 1, 1)])
@pytest.mark.parametrize("labels", ["none", "all", "some"])
@pytest.mark.parametrize("kind", ["constant", "zero", "random", "two values"])
def test_degenerate_scans_are_drawn(shape, labels, kind):
    random = np.random.default_rng(0)
    volume = {
        "constant": np.full(shape, 5.0),
        "zero": np.zeros(shape),
        "random": random.random(shape),
        "two values": random.integers(0, 2, shape),
    }[kind]
    label = {"none": np.zeros(shape), "all": np.ones(shape), "some": random.integers(0, 3, shape)}[labels]
    drawn = drawn_from(volume, label)
    assert drawn.shape == shape
    assert np.isfinite(drawn).all()
    assert drawn.min() >= 0
    assert drawn.max() <= 1
    calibrated = calibrate(volume, label, SPACING, LEVELS)
    assert calibrated.shape == shape
    assert np.isfinite(calibrated).all()


def test_cysts_are_the_dark_part_of_the_tumour():
    volume, label = head(noise=0)
    cysts = redraw.cystic(tissue.shares(volume), label)
    assert cysts.sum() == 2 * 2 * 5
    assert cysts[18:20, 29:31].all()
    assert not redraw.cystic(tissue.shares(volume), np.zeros_like(label)).any()


def test_calibration_moves_mean_and_spread_and_leaves_the_rest():
    random = np.random.default_rng(5)
    volume, label = 100 + 300 * random.random((40, 38, 3)), np.zeros((40, 38, 3), np.uint8)
    label[5:29, 5:29] = 1
    volume[label == 1] += 40
    low, high = np.percentile(volume, [0.5, 99.5])
    drawn = calibrate(volume, label, SPACING, LEVELS, {"VS": RegionStatistics(0.3, 0.1)})
    inner = np.zeros(label.shape, bool)
    inner[8:26, 8:26] = True
    inside = (volume[label == 1] - low) / (high - low)
    expected = 0.3 + 0.1 / inside.std() * ((volume[inner] - low) / (high - low) - inside.mean())
    assert_allclose((drawn[inner] - low) / (high - low), expected, atol=1e-4)
    assert_allclose(drawn[33:], volume[33:], rtol=1e-5)


def test_calibration_by_its_own_statistics_changes_nothing():
    volume, label = head()
    same = calibrate(volume, label, SPACING, LEVELS, measured_statistics(volume, label))
    assert_allclose(same, volume, atol=1e-5)


def test_the_ring_is_calibrated_too_and_has_no_label():
    volume, label = head(noise=0)
    around = calibration.ring(label == 2, label > 0, SPACING)
    assert around.sum() == (2 * 4 + 2 * 4 + 4) * 5  # a 2 x 2 square under a diamond of two voxels
    assert not (around & (label > 0)).any()
    before = measured_statistics(volume, label)["cochlea"]
    drawn = calibrate(volume, label, SPACING, LEVELS, {"cochlea": RegionStatistics(ring_mean=before.ring_mean + 0.2)})
    after = measured_statistics(drawn, label)["cochlea"]
    assert 0.1 < after.ring_mean - before.ring_mean < 0.2


def test_by_default_a_cochlea_stands_out_and_cysts_are_fluid():
    volume, label = head()
    low, high = np.percentile(volume, [0.5, 99.5])
    cysts = redraw.cystic(tissue.shares(volume), label)
    drawn = (calibrate(volume, label, SPACING, LEVELS, cysts=cysts) - low) / (high - low)
    around = calibration.ring(label == 2, label > 0, SPACING)
    assert 0.15 < drawn[label == 2].mean() - drawn[around].mean() < 0.35
    assert drawn[cysts].mean() > 0.5
    assert drawn[(label == 1) & ~cysts].mean() < 0.5


@pytest.mark.parametrize("record", [{"nerve": {}}, {"VS": {"median": 1}}, {"VS": {"mean": "x"}}, {"VS": 3}])
def test_statistics_of_another_record_are_refused(record):
    with pytest.raises(InputError, match="VS"):
        read_statistics(record)
