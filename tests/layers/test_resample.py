import pytest
import torch
from torch.nn import functional as F

from plugins.layers import BlurDown, BlurUp


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
