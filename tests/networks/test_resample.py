import pytest
import torch
from torch.nn import functional as F

from plugins.networks import BlurDown, BlurUp


@pytest.mark.parametrize("shape", [(2, 3, 8, 10), (1, 2, 4, 6, 8)])
def test_halving_is_the_binomial_filter_at_even_pixels(shape):
    x = torch.randn(shape, dtype=torch.float64)
    y = BlurDown(len(shape) - 2).double()(x)
    padded = F.pad(x, [1, 1] * (len(shape) - 2), mode="reflect")
    for axis in range(2, len(shape)):
        size = x.shape[axis]
        left, middle, right = (padded.narrow(axis, start, size) for start in range(3))
        padded = ((left + 2 * middle + right) / 4).index_select(axis, torch.arange(0, size, 2))
    torch.testing.assert_close(y, padded)


def test_doubling_is_the_binomial_filter_of_four():
    x = torch.randn(1, 1, 5, 6, dtype=torch.float64)
    row = torch.tensor([1.0, 3.0, 3.0, 1.0], dtype=torch.float64) / 4
    padded = F.pad(x, [1, 1, 1, 1], mode="replicate")
    expected = F.conv_transpose2d(padded, (row[:, None] * row)[None, None], stride=2, padding=1)[..., 2:-2, 2:-2]
    torch.testing.assert_close(BlurUp()(x), expected)


def test_a_constant_stays_constant():
    x = torch.full((1, 2, 6, 6), 3.0)
    torch.testing.assert_close(BlurUp()(BlurDown()(x)), x)


def test_doubling_a_volume_is_doubling_one_axis_after_the_other():
    x = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64)
    expected = x
    for axis in range(2, 5):
        size = expected.shape[axis]
        low, high = (torch.arange(size) + step for step in (-1, 1))
        before, after = (expected.index_select(axis, at.clamp(0, size - 1)) for at in (low, high))
        pair = torch.stack([0.75 * expected + 0.25 * before, 0.75 * expected + 0.25 * after], dim=axis + 1)
        expected = pair.flatten(axis, axis + 1)
    torch.testing.assert_close(BlurUp(3)(x), expected)


@pytest.mark.parametrize("size", [(2, 2), (5, 7), (3, 4, 5)])
def test_halving_rounds_up_and_starts_at_the_first_pixel(size):
    y = BlurDown(len(size))(torch.zeros(1, 1, *size))
    assert list(y.shape[2:]) == [(axis + 1) // 2 for axis in size]
    impulse = torch.zeros(1, 1, *size)
    impulse[(0, 0, *[0] * len(size))] = 1
    assert BlurDown(len(size))(impulse)[(0, 0, *[0] * len(size))] == 0.5 ** len(size)


def test_resampling_adds_nothing_to_the_weights_of_a_network():
    assert BlurDown().state_dict() == BlurUp().state_dict() == {}
    assert BlurDown(3).kernel.shape == (1, 1, 3, 3, 3)
