"""Handlers: exact resume, weights for export, progress."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.handlers import EMAHandler
from monai.transforms import Randomizable
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from typing_extensions import TypedDict

from plugins.errors import InputError
from plugins.files import write_json
from plugins.finite import refuse_broken_weights
from plugins.progress import Progress
from plugins.runtime import random_state, set_random_state
from plugins.state import read_state, read_tensors, write_tensors, write_weights

AS_MANY = "Go on with as many processes as before"
ANEW = "Restore it, remove the folder to begin anew, or set another ckpt_dir"


class BestRecord(TypedDict):
    """``best.json``: what :class:`SaveBest` says of ``best.pt``."""

    epoch: int
    key_metric: float
    metrics: dict[str, float]


def save_weights(network: nn.Module, path: str | os.PathLike[str]) -> None:
    """Write the ``state_dict`` of a network as a plain tensor dictionary, whole or not at all, with its SHA-256.

    Raises:
        InputError: if weights are not finite.
    """
    weights = {name: value.cpu() for name, value in network.state_dict().items()}
    refuse_broken_weights(weights, f"{path} is not written")
    write_weights(weights, path)


class Resume:
    """Saves everything a training needs at the end of an epoch, and continues from it when the training starts again.

    Together with data whose order follows from seed and epoch, a continued training ends with the weights of the one
    that was never stopped. Place it behind the handlers that change state at the end of an epoch. In a process group
    rank 0 writes the file; each rank keeps its random state in a file of its own, so there must be as many as before. A
    trainer that is run once more, as in the rounds of federated learning, goes on from the weights that it has.

    Args:
        path: checkpoint, a tensor dictionary that loads with ``weights_only=True``.
        objects: what has ``state_dict`` and ``load_state_dict``, by name.
        attributes: names of trainer attributes to keep as well, e.g. image pools.
        interval: epochs between two checkpoints; the last epoch is always kept.

    Raises:
        InputError: when the engine starts, if the file cannot be read, or is of a training of other networks, of
            another number of processes, of more epochs, or with other minutes (see :class:`TimeBudget`).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        objects: Mapping[str, Any],
        attributes: tuple[str, ...] | list[str] = (),
        interval: int = 1,
    ):
        self.path, self.objects, self.attributes, self.interval = Path(path), dict(objects), attributes, interval

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._load)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _all(self, engine: Engine) -> dict[str, Any]:
        return self.objects | {name: getattr(engine, name) for name in self.attributes}

    def _rank_path(self) -> Path:
        rank = _rank_and_processes()[0]
        return self.path if rank == 0 else self.path.with_name(f"{self.path.stem}_rank{rank}{self.path.suffix}")

    def _save(self, engine: Engine) -> None:
        state = engine.state
        if state.epoch % self.interval and state.epoch != state.max_epochs:
            return
        content: dict[str, Any] = {"epoch": state.epoch, "iteration": state.iteration, "random": random_state()}
        if self._rank_path() == self.path:
            content["objects"] = {name: each.state_dict() for name, each in self._all(engine).items()}
            scaler = getattr(engine, "scaler", None)
            content["scaler"] = scaler.state_dict() if scaler is not None else None
            content["processes"] = _rank_and_processes()[1]
            content["max_minutes"] = getattr(state, "max_minutes", None)
            refuse_broken_weights(content["objects"], f"epoch {state.epoch} of the training")
        write_tensors(content, self._rank_path())

    def _load(self, engine: Engine) -> None:
        if engine.state.epoch > 0 or not self.path.exists():
            return
        content = read_tensors(self.path, ANEW, engine.state.device)
        try:
            fault = _other_length(content, engine) or _other_processes(content)
        except (LookupError, TypeError) as error:
            raise InputError(f"{self.path} is no checkpoint of this program. {ANEW}.") from error
        if fault:
            raise InputError(f"{self.path} is of a training {fault}, or set another ckpt_dir.")
        try:
            for name, each in self._all(engine).items():
                each.load_state_dict(content["objects"][name])
        except (KeyError, RuntimeError, ValueError) as error:
            raise InputError(
                f"{self.path} belongs to a training with other networks. Remove it, or set another ckpt_dir."
            ) from error
        for each in self.objects.values():
            if isinstance(each, LambdaLR):  # of a training that is made longer: the rates of its new schedule
                for group, base, factor in zip(
                    each.optimizer.param_groups, each.base_lrs, each.lr_lambdas, strict=True
                ):
                    group["lr"] = base * factor(each.last_epoch)
        if content["scaler"] is not None and getattr(engine, "scaler", None) is not None:
            engine.scaler.load_state_dict(content["scaler"])
        own = self._rank_path()
        if not own.exists():
            raise InputError(f"{own} is missing. {AS_MANY}, or set another ckpt_dir.")
        own_random = content if own == self.path else read_tensors(own, ANEW)
        set_random_state(own_random["random"])
        engine.state.epoch, engine.state.iteration = content["epoch"], content["iteration"]


def _other_length(content: Mapping[str, Any], engine: Engine) -> str:
    """How a checkpoint is of more epochs or of other minutes, with a cure; older checkpoints do not tell minutes."""
    epoch, most = content["epoch"], engine.state.max_epochs or 0
    minutes = getattr(engine.state, "max_minutes", None)
    before = content.get("max_minutes", minutes if epoch <= most else None)
    if minutes is not None and before is None:
        return "without max_minutes. Leave it out"
    if minutes != before:
        return f"of {before} minutes, but max_minutes is {minutes}. Give the same"
    return f"of {epoch} epochs, but max_epochs is {most}. Raise it" if epoch > most else ""


def _other_processes(content: Mapping[str, Any]) -> str:
    """How a checkpoint is of another number of processes, with a cure; older checkpoints do not tell."""
    before, now = content.get("processes"), _rank_and_processes()[1]
    return "" if before in (None, now) else f"whose number of processes was {before}, not {now}. {AS_MANY}"


def _rank_and_processes() -> tuple[int, int]:
    joined = torch.distributed.is_initialized()
    return (torch.distributed.get_rank(), torch.distributed.get_world_size()) if joined else (0, 1)


class SeedEpochs:
    """Seeds random transforms anew for each epoch, from seed and epoch alone.

    MONAI's loader without workers seeds them once, so that a continued training would repeat the draws of the first
    epochs. Loaders with workers draw their seeds from torch, whose state :class:`Resume` keeps.

    Args:
        transform: MONAI's, of the data set that is trained on.
        seed: of the training.
    """

    def __init__(self, transform: Randomizable, seed: int):
        self.transform, self.seed = transform, seed

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._seed)

    def _seed(self, engine: Engine) -> None:
        self.transform.set_random_state(
            int(np.random.SeedSequence([self.seed, engine.state.epoch]).generate_state(1)[0])
        )


class BeginFrom:
    """Begins a training with the networks of an earlier one; its optimisers and schedules are new.

    Place it behind :class:`Resume`: a training that goes on from a checkpoint of its own keeps what that held.

    Args:
        path: checkpoint that :class:`Resume` wrote in the earlier training.
        objects: as they were given to that, by name; what is no network is left alone.

    Raises:
        InputError: when the engine starts, if the file cannot be read, or is of other networks.
    """

    def __init__(self, path: str | os.PathLike[str], objects: Mapping[str, Any]):
        self.path = Path(path)
        self.networks = {name: each for name, each in objects.items() if isinstance(each, nn.Module)}

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._load)

    def _load(self, engine: Engine) -> None:
        if engine.state.epoch > 0:
            return
        content = read_tensors(self.path, "Restore it, or make it again with resume set to true", engine.state.device)
        try:
            for name, network in self.networks.items():
                network.load_state_dict(content["objects"][name])
        except (LookupError, TypeError, RuntimeError) as error:
            raise InputError(f"{self.path} is of other networks. Give the settings of its training.") from error


class MovingAverage(EMAHandler):
    r"""Ignite's moving average of weights with a decay that grows with the steps, so that short trainings have one too.

    .. math::
        \bar\theta_n = d_n \bar\theta_{n-1} + (1 - d_n) \theta_n,
        \qquad d_n = \min\left(d, \frac{1 + n}{10 + n}\right)

    :math:`n` is the trainer's iteration, so a continued training has the decay of one that was never stopped.

    Args:
        model: whose weights are averaged; ``ema_model`` holds the average.
        decay: :math:`d`.
    """

    def __init__(self, model: nn.Module, decay: float = 0.999):
        super().__init__(model, momentum=1 - decay)

    def attach(self, engine: Engine, name: str = "ema_momentum", **settings: Any) -> None:
        """Register with a trainer; the momentum of the last step is ``engine.state.<name>``."""

        def warm_up(engine: Engine) -> None:
            setattr(engine.state, name, max(self.momentum, 9 / (10 + engine.state.iteration)))

        engine.add_event_handler(settings.get("event", Events.ITERATION_COMPLETED), warm_up)
        super().attach(engine, name, **settings)


class SaveWeights:
    """Writes the weights of a network as a plain tensor dictionary when the training has ended.

    Args:
        path: e.g. ``models/model.pt``.
        network: whose ``state_dict`` is written.
    """

    def __init__(self, path: str | os.PathLike[str], network: nn.Module):
        self.path, self.network = path, network

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _save(self, engine: Engine) -> None:
        if engine.state.rank == 0:
            save_weights(self.network, self.path)


class SaveBest:
    """Writes the weights of a network whenever an evaluation gives the largest key metric so far.

    Beside the weights ``<name>.json`` holds the epoch, the key metric and all other metrics. A continued training goes
    on from there.

    Args:
        path: e.g. ``models/best.pt``.
        network: whose ``state_dict`` is written.
    """

    def __init__(self, path: str | os.PathLike[str], network: nn.Module):
        self.path, self.network = Path(path), network
        self._record = self.path.with_suffix(".json")

    def attach(self, engine: Engine) -> None:
        """Register with an evaluator."""
        engine.add_event_handler(Events.STARTED, self._remember)
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _remember(self, engine: Engine) -> None:
        state: Any = engine.state
        if state.best_metric_epoch == -1 and self._record.is_file():
            record = read_state(self._record, BestRecord, ANEW)
            if record["epoch"] < state.max_epochs:  # which MONAI sets to the training's epoch
                state.best_metric, state.best_metric_epoch = record["key_metric"], record["epoch"]

    def _save(self, engine: Engine) -> None:
        state: Any = engine.state
        if state.best_metric_epoch == state.epoch and state.rank == 0:
            save_weights(self.network, self.path)
            metrics = {name: value for name, value in state.metrics.items() if math.isfinite(value)}
            record = {"epoch": state.epoch, "key_metric": state.best_metric, "metrics": metrics}
            write_json(self._record, record)


class ShowProgress:
    """Shows iterations, time left and the latest losses; see :class:`plugins.progress.Progress`.

    Args:
        description: shown before the bar.
        folder: where ``progress.json`` goes.
        keys: entries of the trainer's output to show.
    """

    def __init__(self, description: str, folder: str | None = None, keys: tuple[str, ...] | list[str] = ("loss",)):
        self.description, self.folder, self.keys = description, folder, keys
        self._progress: Progress | None = None

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.EPOCH_STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _start(self, engine: Engine) -> None:
        state = engine.state
        if self._progress is None and state.rank == 0:
            self._progress = Progress(self._total(engine), self.description, self.folder, initial=state.iteration)

    def _total(self, engine: Engine) -> int:
        return int(engine.state.max_epochs * engine.state.epoch_length)

    def _advance(self, engine: Engine) -> None:
        if self._progress is not None:
            self._progress.total = self._total(engine)
            output = engine.state.output[0] if isinstance(engine.state.output, list) else engine.state.output
            output = output if isinstance(output, dict) else {}
            shown: dict[str, Any] = {key: round(float(output[key]), 4) for key in self.keys if key in output}
            self._progress.advance(1, epoch=f"{engine.state.epoch}/{engine.state.max_epochs}", **shown)

    def _close(self, engine: Engine) -> None:
        if self._progress is not None:
            self._progress.close()
            self._progress = None
