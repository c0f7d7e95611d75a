"""The layers of the published CycleGAN, from its paper's appendix, to measure against.

Source: Zhu et al., Unpaired image-to-image translation using cycle-consistent adversarial networks. ICCV (2017), 7.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn


def _normalised(conv: nn.Module, channels: int, *after: nn.Module) -> list[nn.Module]:
    return [conv, nn.InstanceNorm2d(channels), *after]


class _Block(nn.Module):
    """Two convolutions of kernel 3 with reflected borders, and the way around them."""

    def __init__(self, channels: int):
        super().__init__()
        convs = [nn.Conv2d(channels, channels, 3) for _ in range(2)]
        first = _normalised(convs[0], channels, nn.ReLU(inplace=True))
        self.layers = nn.Sequential(
            nn.ReflectionPad2d(1), *first, nn.ReflectionPad2d(1), *_normalised(convs[1], channels)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x)


class CycleGanGenerator(nn.Module):
    """c7s1-64, d128, d256, nine blocks R256, u128, u64, c7s1-1 and tanh, for one channel.

    Args:
        channels: of the first layer.
        blocks: residual ones.

    Shape:
        - x: :math:`(N, 1, H, W)`, sides a multiple of 4; output the same.
    """

    def __init__(self, channels: int = 64, blocks: int = 9):
        super().__init__()
        wide, widest = 2 * channels, 4 * channels
        up = {"stride": 2, "padding": 1, "output_padding": 1}
        self.encoder = nn.Sequential(
            nn.ReflectionPad2d(3),
            *_normalised(nn.Conv2d(1, channels, 7), channels, nn.ReLU(inplace=True)),
            *_normalised(nn.Conv2d(channels, wide, 3, 2, 1), wide, nn.ReLU(inplace=True)),
            *_normalised(nn.Conv2d(wide, widest, 3, 2, 1), widest, nn.ReLU(inplace=True)),
            *(_Block(widest) for _ in range(blocks)),
        )
        self.decoder = nn.Sequential(
            *_normalised(nn.ConvTranspose2d(widest, wide, 3, **up), wide, nn.ReLU(inplace=True)),
            *_normalised(nn.ConvTranspose2d(wide, channels, 3, **up), channels, nn.ReLU(inplace=True)),
            nn.ReflectionPad2d(3),
            nn.Conv2d(channels, 1, 7),
            nn.Tanh(),
        )

    def regions(self, condition: Tensor | None, size: list[int]) -> list[Any]:
        """None: there are no regions here."""
        return []

    def encode(self, x: Tensor, regions: list[Any]) -> tuple[Tensor, list[Tensor]]:
        """The deepest map, and no features."""
        return self.encoder(x), []

    def code_of(self, reals: Tensor, sites: Sequence[str] | None = None) -> None:
        """None: there is no code of a site here."""

    def decode(
        self, deepest: Tensor, regions: list[Any], x: Tensor | None = None, code: Tensor | None = None
    ) -> Tensor:
        """The translation of what :meth:`encode` gave."""
        translated: Tensor = self.decoder(deepest)
        return translated

    def forward(self, x: Tensor, condition: Tensor | None = None, code: Tensor | None = None) -> Tensor:
        """Translate ``x``; neither label map nor code is looked at."""
        return self.decode(self.encoder(x), [])
