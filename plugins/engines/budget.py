"""Minutes instead of epochs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path

import ignite.distributed as idist
from ignite.engine import Engine, Events
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import TypedDict

from plugins.engines.schedules import linear_factor
from plugins.errors import InputError
from plugins.files import write_json
from plugins.state import read_state

MEASURED = 2
"""Epochs before the number of epochs is set; the second one is timed, for the first one warms up."""
UNKNOWN = 10**9
"""Epochs for which the rate stays at its start until the number is known."""


class Budget(TypedDict):
    """``budget.json``, or however the file is called: the minutes that were given, the epochs that fit into them."""

    max_minutes: float
    max_epochs: int


class TimeBudget:
    """Trains for about so many minutes: ``max_epochs`` and the schedules follow from the time that an epoch takes.

    The number is set once, after the second epoch, and written beside the checkpoint, so that a training that was
    stopped ends with the weights of one that was not. In a process group rank 0 reads and writes the file. Place it
    before the handlers of the schedules and before :class:`Resume`.

    Args:
        minutes: from the start of the first epoch to the end of the last; ``None`` leaves all as it is.
        path: where the number goes, e.g. ``models/budget.json``.
        schedulers: of :func:`constant_then_linear`.

    Raises:
        InputError: if ``minutes`` is not above 0, or if the file cannot be read or is of another number of minutes.
    """

    def __init__(self, minutes: float | None, path: str | os.PathLike[str], schedulers: Sequence[LambdaLR]):
        if minutes is not None and not 0 < minutes < float("inf"):
            raise InputError(f"max_minutes is {minutes}. Give a number above 0, or null.")
        self.minutes, self.path, self.schedulers = minutes, Path(path), list(schedulers)
        self._started = self._epoch_started = 0.0
        self._known = False

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        if self.minutes is None:
            return
        engine.add_event_handler(Events.STARTED, self._begin)
        engine.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._decide)

    def _begin(self, engine: Engine) -> None:
        self._started = time.monotonic()
        engine.state.max_minutes = self.minutes  # for the checkpoint
        own = self._recorded() if idist.get_rank() == 0 and self.path.is_file() else 0
        epochs = int(idist.broadcast(float(own), src=0))  # another rank could see the file of an older training
        self._known = epochs > 0
        if self._known:
            self._set(engine, epochs)
        else:
            self._set(engine, UNKNOWN)
            engine.state.max_epochs = MEASURED

    def _recorded(self) -> int:
        record = read_state(self.path, Budget, "Restore it, remove the folder to begin anew, or set another ckpt_dir")
        minutes, epochs = record["max_minutes"], record["max_epochs"]
        if minutes != self.minutes:
            raise InputError(
                f"{self.path} is of a training of {minutes} minutes, but max_minutes is {self.minutes}. Set another "
                "ckpt_dir."
            )
        return epochs

    def _start_epoch(self, engine: Engine) -> None:
        self._epoch_started = time.monotonic()

    def _decide(self, engine: Engine) -> None:
        if self._known or engine.state.epoch < MEASURED:
            return
        now = time.monotonic()
        left = (self.minutes or 0) * 60 - (now - self._started)
        further = max(0, round(left / max(now - self._epoch_started, 1e-6)))
        epochs = int(idist.broadcast(float(engine.state.epoch + further), src=0))
        if idist.get_rank() == 0:
            write_json(self.path, {"max_minutes": self.minutes, "max_epochs": epochs})
        self._known = True
        self._set(engine, epochs)

    def _set(self, engine: Engine, epochs: int) -> None:
        engine.state.max_epochs = epochs
        for scheduler in self.schedulers:
            scheduler.lr_lambdas = [linear_factor(epochs)] * len(scheduler.lr_lambdas)
