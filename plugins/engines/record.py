"""What a training was given, beside its weights."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
from ignite.engine import Engine, Events

import plugins
from plugins.errors import InputError
from plugins.files import write_json
from plugins.locks import hold
from plugins.state import SUM
from plugins.store import TRAINING, difference, digest_of, read_training

_logger = logging.getLogger(__name__)


class TrainingRecord:
    """Keeps ``training.json`` beside the weights, and refuses to go on with other data or settings than it tells of.

    The folder is held until the process ends. Place it before :class:`TimeBudget` and :class:`Resume`.

    Args:
        weights: e.g. ``models/model.pt``; :class:`SaveWeights` adds its SHA-256 to the record.
        settings: on which the weights depend, by name.
        data: lists of scans ``{"image", optional "label"}`` by name.
        resume: whether a training goes on from its checkpoint; one that begins anew makes a new record.
        name: of the record.
        state: patterns of the files beside the weights that belong to one training, such as ``best.pt*``. One that
            begins anew removes those of the one before, and the weights.

    Raises:
        InputError: when the engine starts, if the folder holds a training with other data or settings, or if another
            training is at work there.
    """

    def __init__(
        self,
        weights: str | os.PathLike[str],
        settings: Mapping[str, Any],
        data: Mapping[str, Sequence[Mapping[str, Any]]],
        resume: bool = True,
        name: str = TRAINING,
        state: Sequence[str] = (),
    ):
        self.weights, self.settings, self.data, self.resume = Path(weights), dict(settings), data, resume
        self.name, self.state = name, state

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if idist.get_rank() == 0:
            engine.add_event_handler(Events.STARTED, self._begin)

    def _begin(self, engine: Engine) -> None:
        folder = self.weights.parent
        hold(folder)
        scans = [scan for name in sorted(self.data) for scan in self.data[name]]
        content = digest_of([scan[key] for scan in scans for key in ("image", "label") if key in scan], None)
        record = {"version": plugins.__version__, "settings": self.settings, "data": content}
        before = read_training(folder, self.name) if self.resume else None
        if before is not None:
            other = difference(before["settings"], self.settings)
            if not other and before["data"] != content:
                other = "other scans"
            if other:
                fault = f"{folder} holds a training with {other}"
                raise InputError(f"{fault}. Set another ckpt_dir, give what it was begun with, or remove the folder.")
            return
        if self.resume and self.weights.exists():
            _logger.warning(f"{folder} holds weights without {self.name}: taken for a training with these settings.")
        if not self.resume and engine.state.epoch == 0:  # later, as in federated learning, the files are its own
            weights = [self.weights, self.weights.with_name(self.weights.name + SUM)]
            for old in [*weights, *(file for pattern in self.state for file in folder.glob(pattern))]:
                old.unlink(missing_ok=True)
        write_json(folder / self.name, record)
