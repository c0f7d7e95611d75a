from itertools import combinations

import numpy as np
import pytest
import torch
from nnunetv2.inference.sliding_window_prediction import compute_gaussian, compute_steps_for_sliding_window
from scipy.ndimage import gaussian_filter

from plugins.segmentation import SlidingWindow
from plugins.segmentation.window import _gaussian, tile_starts


@pytest.mark.parametrize("step", [0.3, 0.5, 1.0])
def test_tiles_start_where_nnunet_puts_them(step):
    for extent in range(16, 90):
        assert [tile_starts(extent, 16, step)] == compute_steps_for_sliding_window((extent,), (16,), step)


@pytest.mark.parametrize("patch", [(8, 12), (6, 16, 20)])
def test_weights_are_those_of_nnunet(patch):
    theirs = compute_gaussian(patch, value_scaling_factor=10, device=torch.device("cpu"))
    assert torch.equal(_gaussian(patch), theirs.float())


class Edges(torch.nn.Module):
    """Logits that depend on the place in the patch, on mirroring and on every input voxel."""

    def __init__(self, axes):
        super().__init__()
        torch.manual_seed(0)
        self.conv = (torch.nn.Conv2d if axes == 2 else torch.nn.Conv3d)(1, 3, 3, padding=1).double()

    def forward(self, patch):
        return self.conv(patch.double()) * torch.linspace(0, 1, patch.shape[-1])


def naive(network, volume, patch, mirrors, step):
    """Tile by tile and mirror by mirror in float64."""
    patch = tuple(patch)
    grid = volume.shape[1:]
    sliced = len(patch) < 3
    low = [max(0, p - g) // 2 for p, g in zip(patch, grid[-len(patch) :], strict=True)]
    high = [max(0, p - g) - a for p, g, a in zip(patch, grid[-len(patch) :], low, strict=True)]
    padded = np.pad(volume.numpy(), [(0, 0)] * (4 - len(patch)) + [*zip(low, high, strict=True)])
    weight = np.zeros(patch)
    weight[tuple(p // 2 for p in patch)] = 1
    weight = gaussian_filter(weight, [p / 8 for p in patch], mode="constant")
    weight = (weight / weight.max() * 10).astype(np.float16).astype(np.float64)
    weight[weight == 0] = weight[weight > 0].min()
    total, weights = np.zeros((3, *padded.shape[1:])), np.zeros(padded.shape[1:])
    starts = [tile_starts(g, p, step) for g, p in zip(padded.shape[-len(patch) :], patch, strict=True)]
    corners = np.stack(np.meshgrid(*starts, indexing="ij"), -1).reshape(-1, len(patch))
    for first in range(padded.shape[1]) if sliced else [None]:
        for corner in corners:
            tile = tuple(slice(c, c + p) for c, p in zip(corner, patch, strict=True))
            tile = tile if first is None else (first, *tile)
            x, predictions = torch.from_numpy(padded[(slice(None), *tile)].copy()), []
            for count in range(len(mirrors) + 1):
                for axes in combinations([m + 1 for m in mirrors], count):
                    predictions.append(network(x.flip(axes)[None])[0].flip(axes).detach().numpy())
            total[(slice(None), *tile)] += np.mean(predictions, 0) * weight
            weights[tile] += weight
    inside = tuple(slice(a, a + g) for a, g in zip(low, grid[-len(patch) :], strict=True))
    return (total / weights)[(..., *inside)]


@pytest.mark.parametrize(
    ("patch", "mirrors", "grid"),
    [
        ((8, 8), (0, 1), (3, 13, 10)),
        ((8, 8), (), (2, 5, 20)),
        ((4, 8, 8), (0, 1, 2), (7, 11, 9)),
        ((4, 8, 8), (1,), (3, 8, 6)),
    ],
)
@pytest.mark.parametrize("batch_size", [1, 3])
def test_a_volume_is_the_weighted_mean_of_its_tiles_and_mirrors(patch, mirrors, grid, batch_size):
    network, volume = Edges(len(patch)), torch.randn(1, *grid)
    ours = SlidingWindow(batch_size=batch_size)(network, volume, patch, mirrors)
    assert ours.dtype == torch.float32
    np.testing.assert_allclose(ours.numpy(), naive(network, volume, patch, mirrors, 0.5), atol=2e-6)


def test_mirroring_and_weights_can_be_left_out():
    volume = torch.randn(1, 2, 12, 8)
    network = Edges(2)
    plain = SlidingWindow(mirroring=False, use_gaussian=False, tile_step_size=1)(network, volume, (12, 8), (0, 1))
    expected = network(volume.permute(1, 0, 2, 3)).permute(1, 0, 2, 3)
    torch.testing.assert_close(plain, expected.float())
