import numpy as np
import pytest
import torch
from nnunetv2.preprocessing.resampling.default_resampling import (
    compute_new_shape,
    determine_do_sep_z_and_axis,
    resample_data_or_seg_to_shape,
)

from plugins.segmentation.resample import resample_image, resample_logits, resampled_shape, slice_axis

SPACINGS = [
    pytest.param((1.7, 1.0, 1.2), (2.0, 1.1, 1.0), id="nearly the same along all axes"),
    pytest.param((1.5, 0.41, 0.41), (1.0, 0.5, 0.5), id="thick slices become thin"),
    pytest.param((1.0, 0.5, 0.5), (1.5, 0.41, 0.41), id="thin slices become thick"),
    pytest.param((1.5, 0.5, 0.5), (1.5, 0.41, 0.41), id="in-plane only"),
    pytest.param((0.41, 1.5, 0.41), (0.5, 1.1, 0.5), id="slices along the second axis"),
    pytest.param((0.41, 0.41, 1.5), (0.5, 0.5, 1.0), id="slices along the third axis"),
    pytest.param((0.3, 1.2, 1.2), (0.5, 1.0, 1.0), id="two long axes"),
]


@pytest.mark.parametrize(("spacing", "target"), SPACINGS)
def test_a_volume_is_resampled_as_nnunet_does(spacing, target):
    volume = np.random.default_rng(0).normal(size=(2, 9, 21, 17)).astype(np.float32)
    shape = resampled_shape(volume.shape[1:], spacing, target)
    assert shape == compute_new_shape(volume.shape[1:], spacing, target).tolist()
    separate, axis = determine_do_sep_z_and_axis(None, spacing, target)
    assert slice_axis(spacing, target) == (axis if separate else None)
    options = {"is_seg": False, "order_z": 0, "force_separate_z": None}
    cubic = resample_data_or_seg_to_shape(volume, shape, spacing, target, order=3, **options)
    assert np.array_equal(resample_image(torch.from_numpy(volume), shape, spacing, target).numpy(), cubic)
    linear = resample_data_or_seg_to_shape(volume, shape, spacing, target, order=1, **options)
    ours = resample_logits(torch.from_numpy(volume), shape, spacing, target).numpy()
    np.testing.assert_allclose(ours, linear, atol=2e-5)


def test_a_volume_of_the_right_shape_stays():
    volume = torch.randn(1, 4, 5, 6)
    assert resample_image(volume, (4, 5, 6), (1, 1, 1), (1, 1, 1)) is volume
    assert resample_logits(volume, (4, 5, 6), (1, 1, 1), (1, 1, 1)) is volume


@pytest.mark.parametrize("resample", [resample_image, resample_logits])
def test_a_constant_stays_constant_and_nothing_overshoots(resample):
    flat = resample(torch.full((1, 3, 8, 8), 2.5), (5, 11, 7), (3, 1, 1), (2, 0.7, 1.1))
    torch.testing.assert_close(flat, torch.full((1, 5, 11, 7), 2.5))
    step = torch.zeros(1, 3, 8, 8)
    step[..., 4:] = 1
    result = resample(step, (3, 13, 13), (4, 1, 1), (4, 0.6, 0.6))
    assert result.min() >= 0
    assert result.max() <= 1
