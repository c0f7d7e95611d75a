"""The epochs of several trainings at once, in whatever process each of them runs."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ignite.engine import Engine, Events
from typing_extensions import TypedDict

from plugins.nnunet.training import is_done
from plugins.nnunet.workspace import Workspace
from plugins.progress import FILE_NAME, Progress
from plugins.state import recall_state

_logger = logging.getLogger(__name__)


class Shown(TypedDict):
    """``progress.json``: epochs that are done, and the latest values."""

    done: int
    shown: dict[str, float]


class TrainingWatch:
    """Looks at the ``progress.json`` of every training once a second: a bar on terminals, a line an epoch elsewhere.

    Args:
        workspace: in which the trainings run.
        jobs: configuration and fold of each.
        max_epochs: of each.
        patience: likewise, see :class:`plugins.nnunet.trainer.TrainerSettings`.
        output_dir: gets one ``progress.json`` of all.
        handlers: ignite or MONAI handlers of epochs, such as MLflow's; ``state.metrics`` holds the latest values of
            every network, and ``state.epoch`` counts the epochs of all.
    """

    def __init__(
        self,
        workspace: Workspace,
        jobs: Sequence[tuple[str, int]],
        max_epochs: int,
        patience: int | None,
        output_dir: Path,
        handlers: Sequence[Any] = (),
    ):
        self._workspace, self._jobs, self._max_epochs, self._output_dir = workspace, jobs, max_epochs, output_dir
        self._patience = patience
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._seen: dict[tuple[str, int], int] = {}
        self._engine = Engine(lambda engine, batch: None)
        for handler in handlers:
            handler.attach(self._engine)

    def __enter__(self) -> TrainingWatch:
        self._seen = {job: self._state(job)["done"] for job in self._jobs}
        total = len(self._jobs) * self._max_epochs
        self._progress = Progress(total, "training", self._output_dir, initial=sum(self._seen.values()))
        self._engine.state.max_epochs, self._engine.state.epoch = total, sum(self._seen.values())
        self._engine.fire_event(Events.STARTED)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._stop.set()
        self._thread.join()
        self._progress.close()
        if error is None:
            self._engine.fire_event(Events.COMPLETED)

    def _state(self, job: tuple[str, int]) -> Shown:
        file = self._workspace.fold(*job) / FILE_NAME
        state = recall_state(file, Shown, "It is shown as 0") or {"done": 0, "shown": {}}
        if is_done(self._workspace, *job, self._max_epochs, self._patience):  # maybe stopped early
            state["done"] = self._max_epochs
        return state

    def _watch(self) -> None:
        while True:
            last = self._stop.wait(1)
            for job in self._jobs:
                state = self._state(job)
                if state["done"] != self._seen[job]:
                    steps, self._seen[job] = state["done"] - self._seen[job], state["done"]
                    self._progress.advance(steps, job=" fold ".join(map(str, job)), **state["shown"])
                    self._tell(job, steps, state["shown"])
            if last:
                return

    def _tell(self, job: tuple[str, int], steps: int, shown: dict[str, float]) -> None:
        """Let the handlers know, and where there is no bar, whoever reads the log."""
        self._engine.state.metrics |= {f"{job[0]}_fold_{job[1]}_{key}": value for key, value in shown.items()}
        self._engine.state.epoch += steps
        self._engine.fire_event(Events.EPOCH_COMPLETED)
        if sys.stderr.isatty():
            return
        values = ", ".join(f"{key} {value}" for key, value in shown.items())
        left = self._progress.seconds_left
        estimate = "" if left is None else f"; {left // 60} min {left % 60} s left for all networks"
        _logger.info(f"{job[0]} fold {job[1]}: {values}{estimate}")
