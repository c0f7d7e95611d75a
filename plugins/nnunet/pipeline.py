"""The whole of a segmentation training, from a list of scans to a folder of chosen networks."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any, get_args

import torch
from pydantic import Field, PositiveFloat, PositiveInt

from plugins.config.names import refuse_unknown
from plugins.config.ranges import NotEmpty, Triple
from plugins.config.signatures import passes_on, refused_by
from plugins.data import check_scans
from plugins.errors import InputError
from plugins.files import write_json
from plugins.interrupts import obeyed
from plugins.locks import sole_owner
from plugins.nnunet.augmentation import Augmentation, make_augmentation
from plugins.nnunet.dataset import (
    Item,
    check_extents,
    check_items,
    check_splits,
    cochleae_volume,
    label_values,
    make_splits,
    write_dataset,
)
from plugins.nnunet.planning import (
    FINGERPRINT,
    PlanChanges,
    Planner,
    adopt_plans,
    check_changes,
    make_plans,
    preprocess,
)
from plugins.nnunet.processes import InlineExecutor, pools_on
from plugins.nnunet.selection import ChosenMembers, check_members, drop_probabilities, export, select
from plugins.nnunet.starts import check_start, compare_start
from plugins.nnunet.trainer import Configuration, TrainerSettings
from plugins.nnunet.training import is_done, train_fold
from plugins.nnunet.watch import TrainingWatch
from plugins.nnunet.workers import ended_with, process_pool
from plugins.nnunet.workspace import ANEW, PLANS, Workspace
from plugins.segmentation import SlidingWindow
from plugins.segmentation.anatomy import read_settings
from plugins.segmentation.locator import DESCRIPTION as LOCATOR_DESCRIPTION
from plugins.segmentation.locator import WEIGHTS as LOCATOR
from plugins.segmentation.locator import check_locator, copy_locator, is_copied
from plugins.segmentation.model import DESCRIPTION, WEIGHTS
from plugins.state import read_state, recall_state
from plugins.store import content_of

SELECTION = "selection.json"
OF_PLANNING = "planner, batch_size, patch_size, target_spacing, gpu_memory_gb and plan_changes"
"""What makes plans, and so has no effect where those of an earlier training are used."""
_logger = logging.getLogger(__name__)


def check_choices(
    configurations: Sequence[Configuration],
    num_folds: int,
    folds: Sequence[int] | int | None,
    members: ChosenMembers | None,
    plan_changes: Mapping[Configuration, PlanChanges] | None,
    augmentation: Augmentation | None = None,
) -> None:
    """Refuse folds, members and plans that do not go with each other, and augmentation that is none.

    Raises:
        InputError: naming them.
    """
    refuse_unknown(configurations, get_args(Configuration), "configurations")
    check_members(members, configurations)
    chosen = _listed(folds, num_folds)
    if not chosen or not set(chosen) <= set(range(num_folds)) or len(set(chosen)) < len(chosen):
        raise InputError(f"folds is {chosen}. Give numbers from 0 to {num_folds - 1}, each once.")
    for name, changes in (plan_changes or {}).items():
        check_changes(name, changes)
    make_augmentation(augmentation)


def _listed(folds: Sequence[int] | int | None, num_folds: int) -> list[int]:
    return list(range(num_folds)) if folds is None else [folds] if isinstance(folds, int) else list(folds)


@refused_by(check_choices)
@passes_on(TrainerSettings)
class NnUNetTraining:
    """Plans, preprocesses, trains every configuration on every fold, selects, and writes ``model_dir``.

    Every step is skipped when complete; a killed run is continued by the same call, each network from its last
    checkpoint, to exactly the weights of a run that was not killed (on the CPU with ``num_workers`` 0).

    Args:
        items: dictionaries with ``case``, ``patient``, ``image``, ``label`` and ``origin``, ``translated`` or ``real``.
            A real scan's label map may hold 3: voxels that neither loss nor scores see. ``weight``, 1 unless given,
            is how often a scan is drawn in training, in proportion to others: the expected loss weighs it so.
        output_dir: keeps all state, in ``nnunet``, ``progress.json``, and ``splits.json`` for the record.
        model_dir: what prediction needs; written last.
        configurations: of nnU-Net: ``2d``, ``3d_fullres``.
        num_folds: of the cross-validation, by patient.
        folds: those to train; ``None`` for all.
        members: configurations to predict with, for all structures or for each; ``None`` lets the cross-validation
            choose.
        select_per_structure: let the cross-validation choose for VS and cochlea apart.
        planner: ``default``, or one of nnU-Net's presets ``ResEncM``, ``ResEncL``, ``ResEncXL``.
        batch_size: of all configurations, or of each; ``None`` leaves the planner's.
        patch_size: per configuration, (S, A, R) order; ``None`` leaves the planner's.
        target_spacing: mm, in (S, A, R) order; ``None`` leaves the planner's.
        gpu_memory_gb: the memory nnU-Net plans for; ``None`` leaves the planner's own.
        plan_changes: per configuration: ``batch_size``, ``patch_size``, ``n_stages``, ``n_conv_per_stage``,
            ``features_per_stage``, ``kernel_sizes``, ``strides``.
        plans_from: ``model_dir`` of an earlier training whose plans are used unchanged, with none of the six above.
        locator: folder of the locator that cut the scans' windows; its files go into ``model_dir`` too, so that
            inference cuts the same. ``None`` for whole scans; ``model_dir`` may hold no locator then.
        anatomy: settings of :class:`plugins.segmentation.AnatomySettings`, ``{}`` for its defaults: a label map keeps
            one VS and two cochleae, chosen by place and score. ``cochleae_mm3`` is by default the median of the
            labels. ``None`` leaves all that to nnU-Net's largest component.
        window: how validation scans are predicted.
        executor: runs jobs, one network each; ``None`` runs them one after the other here or, if there are several
            devices, in as many processes. It is shut down after a failure.
        tensorboard: write losses for TensorBoard.
        devices: each trains one network at a time; ``None`` trains all on ``device``, as many at a time as the executor
            has workers.
        train_handlers: told of every epoch of every network, see :class:`plugins.nnunet.watch.TrainingWatch`.
        settings: see :class:`TrainerSettings`: ``max_epochs``, ``initial_lr``, ``device``, ``seed`` and others.

    Raises:
        InputError: for a list, a key or a folder that cannot be used.
    """

    def __init__(
        self,
        items: Sequence[Item],
        output_dir: str | Path,
        model_dir: str | Path,
        configurations: NotEmpty[Configuration] = ("2d", "3d_fullres"),
        num_folds: Annotated[int, Field(ge=2)] = 5,
        folds: Sequence[int] | int | None = None,
        members: ChosenMembers | None = None,
        select_per_structure: bool = False,
        planner: Planner = "default",
        batch_size: PositiveInt | Mapping[Configuration, PositiveInt] | None = None,
        patch_size: Mapping[Configuration, Sequence[PositiveInt]] | None = None,
        target_spacing: Triple[PositiveFloat] | None = None,
        gpu_memory_gb: PositiveFloat | None = None,
        plan_changes: Mapping[Configuration, PlanChanges] | None = None,
        plans_from: str | Path | None = None,
        locator: str | Path | None = None,
        anatomy: Mapping[str, Any] | None = None,
        window: SlidingWindow | None = None,
        executor: Executor | None = None,
        tensorboard: bool = True,
        devices: NotEmpty[str] | None = None,
        train_handlers: Sequence[Any] = (),
        **settings: Any,
    ):
        device = torch.device(settings.pop("device", TrainerSettings.device))
        self.settings = TrainerSettings(device=str(device), **settings)
        self.items = [{key: str(value) for key, value in item.items()} for item in items]
        self.output_dir, self.model_dir = Path(output_dir).absolute(), Path(model_dir)
        self.workspace = Workspace(self.output_dir / "nnunet")
        self.configurations, self.num_folds = list(configurations), num_folds
        self.folds = _listed(folds, num_folds)
        self.members, self.select_per_structure = members, select_per_structure
        self.plan: dict[str, Any] = {
            "planner": planner,
            "batch_size": batch_size,
            "patch_size": patch_size,
            "target_spacing": target_spacing,
            "gpu_memory_gb": gpu_memory_gb,
            "changes": plan_changes or {},
        }
        self.plans_from = None if plans_from is None else Path(plans_from)
        self.locator = None if locator is None else Path(locator)
        self.anatomy = anatomy
        if anatomy is not None:
            read_settings(anatomy)
        self.window = window or SlidingWindow()
        self.tensorboard, self.train_handlers = tensorboard, list(train_handlers)
        self.devices = None if devices is None else [str(torch.device(each)) for each in devices]
        several = len(self.devices or ())
        self.executor: Executor = executor or (process_pool(several) if several > 1 else InlineExecutor())

    def run(self) -> dict[str, Any]:
        """Do what is left to do; wait while another process does it.

        Returns:
            what the cross-validation has chosen, see :func:`plugins.nnunet.selection.select`.
        """
        self._check()
        with obeyed(), sole_owner(self.output_dir, "training"), ended_with(self.executor):
            return self._run()

    def _run(self) -> dict[str, Any]:
        self._prepare()
        marker = self.workspace.root / SELECTION
        request = {
            "folds": self.folds,
            "max_epochs": self.settings.max_epochs,
            "early_stop_patience": self.settings.early_stop_patience,
            "members": self.members,
            "select_per_structure": self.select_per_structure,
        }
        chosen = recall_state(marker, dict[str, Any], "The folds are validated and selected again")
        anew = chosen is None or chosen.get("request") != request
        if chosen is None or anew:
            self._train([(name, fold) for fold in self.folds for name in self.configurations])
            with self.workspace.active():
                selection = select(
                    self.workspace,
                    self.configurations,
                    self.folds,
                    self.executor,
                    self.members,
                    self.select_per_structure,
                )
            chosen = {**selection, "request": request}
        selection = {key: value for key, value in chosen.items() if key != "request"}
        selection.setdefault("anatomy", None)
        if self.anatomy is not None:
            known = {"cochleae_mm3": cochleae_volume(self.items), **self.anatomy}
            selection |= {"anatomy": known, "keep_largest_component_of": []}
        if self.locator and not is_copied(self.locator, self.model_dir):
            copy_locator(self.locator, self.model_dir)
        if anew or not self._is_exported(selection):
            with self.workspace.active():
                export(self.workspace, selection, self.model_dir)
        write_json(marker, chosen)
        drop_probabilities(self.workspace, self.configurations)
        return selection

    def _is_exported(self, selection: Mapping[str, Any]) -> bool:
        description = self.model_dir / DESCRIPTION
        if not (description.is_file() and (self.model_dir / WEIGHTS).is_file()):
            return False
        exported = recall_state(description, dict[str, Any], "It is written again")
        return exported is not None and all(exported.get(key) == value for key, value in selection.items())

    def _check(self) -> None:
        check_items(self.items)
        if self.locator is not None:
            check_locator(self.locator)
        elif (self.model_dir / LOCATOR).exists():
            fault = f"{self.model_dir / LOCATOR} would cut windows in inference, but locator_dir is null"
            cure = f"Give {self.model_dir} as locator_dir if it cut the scans, or another model_dir"
            raise InputError(f"{fault}. {cure}.")
        settings = self.settings
        for name, folder in (("init_weights", settings.init_weights), ("plans_from", self.plans_from)):
            if folder is not None and Path(folder).resolve() == self.model_dir.resolve():
                raise InputError(
                    f"{name} is model_dir ({folder}), which this training replaces. Give another model_dir."
                )
        check_choices(
            self.configurations, self.num_folds, self.folds, self.members, self.plan["changes"], settings.augmentation
        )
        if settings.init_weights is not None:
            check_start(Path(settings.init_weights), self.configurations, self.folds)
        for name in self.configurations:
            self.settings.iterations_of(name)

    def _prepare(self) -> None:
        """Dataset, plans, splits and preprocessed scans."""
        marker = self.workspace.root / "prepared.json"
        wanted = {
            "items": [
                {**item, "contents": [content_of(item["image"]), content_of(item["label"])]} for item in self.items
            ],
            "configurations": self.configurations,
            "num_folds": self.num_folds,
            "seed": self.settings.seed,
            "plan": self.plan,
            "plans_from": str(self.plans_from),
            "plans_content": _contents(self.plans_from, (f"{PLANS}.json", FINGERPRINT)),
            "locator": _contents(self.locator, (LOCATOR, LOCATOR_DESCRIPTION)),
            "settings": self._settings(),
        }
        wanted = json.loads(json.dumps(wanted))
        if not marker.exists():
            if any(self.workspace.results.rglob("checkpoint_*")):
                raise InputError(f"{marker} is missing, but trained networks are there. {ANEW}.")
            for origin in dict.fromkeys(item["origin"] for item in self.items):
                check_scans([item for item in self.items if item["origin"] == origin], label_values(origin))
            with self.workspace.active(num_workers=1), pools_on(self.executor):  # with 0 workers the planner crashes
                write_dataset(self.items, self.workspace)
                if self.plans_from is None:
                    make_plans(self.workspace, self.configurations, **self.plan)
                else:
                    adopt_plans(self.plans_from, self.workspace)
                    _logger.info(f"the plans are those in {self.plans_from}; {OF_PLANNING} have no effect")
                check_extents(self.items, self.workspace.plans().plans)
            splits = make_splits(self.items, self.num_folds, self.settings.seed)
            write_json(self.workspace.preprocessed / "splits_final.json", splits)
            write_json(marker, wanted)
        elif not _is_of(read_state(marker, dict[str, Any], ANEW), wanted):
            raise InputError(
                f"{self.output_dir} holds a training of other scans, plans, settings or another locator. "
                "Choose another output_dir."
            )
        if self.settings.init_weights is not None:
            compare_start(self.workspace, Path(self.settings.init_weights), self.configurations, self.folds[0])
        folds = check_splits(
            self.items, read_state(self.workspace.preprocessed / "splits_final.json", list[dict[str, list[str]]], ANEW)
        )
        write_json(self.output_dir / "splits.json", {"folds": folds})
        for fold in folds:
            sides = [f"{fold[side]['views']} views of {fold[side]['patients']} patients" for side in ("train", "val")]
            _logger.info(f"fold {fold['fold']}: trained on {sides[0]}, validated on {sides[1]}")
        with self.workspace.active():
            preprocess(self.workspace, self.configurations, self.executor, self.output_dir)

    def _settings(self) -> dict[str, str]:
        """What the weights depend on, but for how long is trained and on what machine."""
        values = {field.name: repr(getattr(self.settings, field.name)) for field in fields(self.settings)}
        for name in ("max_epochs", "early_stop_patience", "save_every", "num_workers", "num_threads", "device"):
            del values[name]
        if self.settings.init_weights is not None:
            values["init_content"] = content_of(Path(self.settings.init_weights) / WEIGHTS)
        return {**values, "window": repr(replace(self.window, batch_size=1))}

    def _train(self, jobs: Sequence[tuple[Configuration, int]]) -> None:
        probabilities = len(self.configurations) > 1
        length = (self.settings.max_epochs, self.settings.early_stop_patience)
        with TrainingWatch(self.workspace, jobs, *length, self.output_dir, self.train_handlers):
            free = [*(self.devices or [self.settings.device] * len(jobs))]
            running: dict[Future[None], str] = {}
            for name, fold in jobs:
                if is_done(self.workspace, name, fold, *length):
                    continue
                device = free.pop(0)
                future = self.executor.submit(
                    train_fold,
                    self.workspace,
                    name,
                    fold,
                    replace(self.settings, device=device),
                    self.window,
                    save_probabilities=probabilities,
                    tensorboard=self.tensorboard,
                )
                running[future] = device
                if not free or future.done():
                    free += _freed(running)
            while running:
                _freed(running)


def _contents(folder: Path | None, names: Sequence[str]) -> list[str] | None:
    """Digests of the contents of those files that a folder has; ``None`` without a folder."""
    return None if folder is None else [content_of(folder / name) for name in names if (folder / name).is_file()]


def _is_of(begun: Mapping[str, Any], wanted: Mapping[str, Any]) -> bool:
    """Whether a training was begun with what is wanted, as far as its version noted it."""
    return begun == {key: value for key, value in wanted.items() if key in begun}


def _freed(running: dict[Future[None], str]) -> list[str]:
    """Devices of the next trainings to end; if one fails, those that have not begun are cancelled."""
    done, waiting = wait(running, return_when=FIRST_COMPLETED)
    for future in done:
        if future.exception():
            for other in waiting:
                other.cancel()
        future.result()
    return [running.pop(future) for future in done]
