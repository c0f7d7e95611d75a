"""Initial weights of the translation networks."""

from __future__ import annotations

from typing import Literal

from torch import nn
from torch.nn.modules.conv import _ConvNd

Kind = Literal["xavier", "normal"]


def initialise(network: nn.Module, kind: Kind = "xavier", gain: float = 0.02) -> None:
    """Draw the weights of every convolution and linear layer anew and set their biases to 0, in place.

    Args:
        network: changed in place; normalisation layers keep their weights.
        kind: ``"xavier"`` (normal, scaled by fan; CUT and QS-Attn) or ``"normal"`` (CycleGAN).
        gain: Xavier's gain, or the standard deviation of the normal.

    Raises:
        ValueError: if ``kind`` is unknown.
    """
    if kind not in ("xavier", "normal"):
        raise ValueError(f"Initialisation must be 'xavier' or 'normal', not {kind!r}.")
    for module in network.modules():
        if isinstance(module, _ConvNd | nn.Linear):
            if kind == "xavier":
                nn.init.xavier_normal_(module.weight, gain=gain)
            else:
                nn.init.normal_(module.weight, std=gain)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
