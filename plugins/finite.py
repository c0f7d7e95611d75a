"""NaN and infinity: a training that meets one stops, and nothing that holds one is kept or handed on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from plugins.config.names import nodes
from plugins.errors import InputError


def is_finite(value: Any) -> bool:
    """Whether a number or all of a tensor is neither NaN nor infinite; its sum tells, without a mask."""
    tensor = torch.as_tensor(value).detach()
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(tensor.sum().isfinite()) or bool(tensor.isfinite().all())  # a sum of large numbers may overflow


def refuse_diverged(total: Any, losses: Mapping[str, Any], step: str) -> None:
    """Stop a training at its first loss that is not finite, before the weights follow it.

    Args:
        total: the loss that is minimised, a number or a tensor of one element.
        losses: its terms by name; looked at only if ``total`` is not finite.
        step: of the training, e.g. ``step 12``.

    Raises:
        InputError: naming step and loss.
    """
    if is_finite(total):
        return
    name, value = next((pair for pair in losses.items() if not is_finite(pair[1])), ("loss", total))
    raise InputError(
        f"{name} is {float(value):g} at {step}, so the training has diverged. Lower the learning rate or the weight of "
        "that loss; the last checkpoint is kept."
    )


def refuse_broken_weights(state: Any, of: str) -> None:
    """Refuse weights that are not finite, before they are written or used.

    Args:
        state: a state dictionary, however deep.
        of: what they belong to, for the message.

    Raises:
        InputError: naming the first such tensor.
    """
    for name, value in nodes(state):
        if isinstance(value, Tensor) and not is_finite(value):
            raise InputError(
                f"{of}: {name.replace('::', '.')} holds values that are not finite. Train again with a lower learning "
                "rate."
            )
