"""Projector of contrastive features."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from plugins.networks.initialisation import Kind, initialise


class FeatureProjector(nn.Module):
    """A two-layer perceptron for each layer of features, followed by L2 normalisation.

    Source: Park et al., ECCV 2020, and Hu et al., CVPR 2022; sizes of Kang et al. (2024).

    Args:
        in_channels: channels of each layer's features.
        channels: dimensions of the projected vectors.
        init: see :func:`plugins.networks.initialise`.

    Shape:
        - vectors: a list of :math:`(N, Q, C_i)`.
        - output: a list of :math:`(N, Q, channels)`, unit vectors.
    """

    def __init__(self, in_channels: Sequence[int], channels: PositiveInt = 256, init: Kind = "xavier"):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Sequential(nn.Linear(width, channels), nn.ReLU(), nn.Linear(channels, channels)) for width in in_channels
        )
        initialise(self, init)

    def forward(self, vectors: list[Tensor]) -> list[Tensor]:
        """Project the vectors of all layers."""
        return [F.normalize(layer(v), dim=-1) for layer, v in zip(self.layers, vectors, strict=True)]
