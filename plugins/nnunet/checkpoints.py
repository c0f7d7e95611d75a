"""Checkpoints that hold everything, load without pickle, and of which a readable one always exists."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from plugins.errors import InputError
from plugins.files import whole_file
from plugins.state import read_tensors

FINAL = "checkpoint_final.pth"
LATEST = "checkpoint_latest.pth"
PREVIOUS = "checkpoint_previous.pth"
FOLD_ANEW = "Restore it, or remove its folder to train this fold anew"
_logger = logging.getLogger(__name__)


def write_checkpoint(path: Path, content: Mapping[str, Any]) -> None:
    """Write ``content``, whole or not at all; what ``checkpoint_latest`` replaces becomes ``checkpoint_previous``."""
    with whole_file(path) as part:
        torch.save(content, part)
        if path.name == LATEST and path.exists():
            path.replace(path.with_name(PREVIOUS))


def newest_checkpoint(folder: Path) -> dict[str, Any] | None:
    """The checkpoint in ``folder`` that has come furthest, of those that can be read; ``None`` if there are none.

    Raises:
        InputError: if there are some, but none can be read.
    """
    readable: list[dict[str, Any]] = []
    damaged: InputError | None = None
    for file in (folder / name for name in (FINAL, LATEST, PREVIOUS) if (folder / name).exists()):
        try:
            checkpoint = read_tensors(file, FOLD_ANEW)
            if not isinstance(checkpoint.get("current_epoch"), int):
                raise InputError(f"{file} is no checkpoint of this program. {FOLD_ANEW}.")
            readable.append(checkpoint)
        except InputError as error:
            _logger.warning("%s", error)
            damaged = error
    if damaged is not None and not readable:
        raise damaged
    return max(readable, key=lambda checkpoint: int(checkpoint["current_epoch"]), default=None)
