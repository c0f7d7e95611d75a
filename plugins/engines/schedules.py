"""Learning-rate schedules."""

from __future__ import annotations

from collections.abc import Callable

from pydantic import PositiveInt
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from plugins.config.ranges import Share


def constant_then_linear(optimizer: Optimizer, max_epochs: PositiveInt, constant_fraction: Share = 0.5) -> LambdaLR:
    """The initial rate for the first part of the epochs, then linearly towards 0, reached one epoch after the last.

    It stays 0 behind that.

    Source: Kang et al., Scientific Reports 14:27883 (2024), "Implementation details".

    Args:
        optimizer: whose rate is set, once an epoch.
        max_epochs: epochs in all.
        constant_fraction: part of the epochs at the initial rate.
    """
    return LambdaLR(optimizer, linear_factor(max_epochs, constant_fraction))


def linear_factor(max_epochs: int, constant_fraction: float = 0.5) -> Callable[[int], float]:
    """Epochs that are over to the share of the initial rate, see :func:`constant_then_linear`."""
    constant = int(max_epochs * constant_fraction)

    def factor(epoch: int) -> float:
        return max(0.0, 1.0 - max(0, epoch + 1 - constant) / (max_epochs - constant + 1))

    return factor
