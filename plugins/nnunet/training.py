"""One training, of one configuration on one fold: a MONAI engine around nnU-Net's trainer."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from ignite.utils import manual_seed
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import TensorBoardStatsHandler
from nnunetv2.evaluation.evaluate_predictions import compute_metrics_on_folder
from nnunetv2.inference.export_prediction import export_prediction_from_logits

from plugins.errors import InputError
from plugins.files import write_json
from plugins.nnunet.checkpoints import FOLD_ANEW, newest_checkpoint
from plugins.nnunet.processes import InlineExecutor, pools_on
from plugins.nnunet.starts import begin_from
from plugins.nnunet.trainer import TrainerSettings, bare, make_trainer, nnUNetTrainer
from plugins.nnunet.workers import exit_with_parent
from plugins.nnunet.workspace import Workspace
from plugins.progress import FILE_NAME
from plugins.runtime import set_random_state
from plugins.segmentation import LABELS, SlidingWindow
from plugins.state import recall_state

DONE = "done.json"


class NnUNetEngine(SupervisedTrainer):
    """Runs nnU-Net's trainer as a MONAI trainer: any handler can be attached.

    Every iteration is nnU-Net's ``train_step``; nnU-Net's hooks run at the start and the end of every epoch. The output
    is ``{"loss": float}``; ``state.metrics`` holds ``val_loss``, ``pseudo_dice``, the mean over the structures, and
    that of each structure, ``pseudo_dice_VS`` and ``pseudo_dice_cochlea``.

    Args:
        trainer: after ``on_train_start``, which makes its data loaders.
        handlers: MONAI or ignite handlers.
    """

    def __init__(self, trainer: nnUNetTrainer, handlers: Sequence[Any] = ()):
        super().__init__(
            device=trainer.device,
            max_epochs=trainer.num_epochs,
            train_data_loader=trainer.dataloader_train,
            epoch_length=trainer.num_iterations_per_epoch,
            network=trainer.network,
            optimizer=trainer.optimizer,
            loss_function=trainer.loss,
            decollate=False,
        )
        self._trainer = trainer
        self._outputs: list[dict[str, Any]] = []
        self.state.epoch = trainer.current_epoch
        self.state.iteration = trainer.current_epoch * trainer.num_iterations_per_epoch
        self.add_event_handler(Events.EPOCH_STARTED, self._start_epoch)
        self.add_event_handler(Events.EPOCH_COMPLETED, self._end_epoch)
        for handler in handlers:
            handler.attach(self)

    def _start_epoch(self) -> None:
        self._outputs = []
        self._trainer.on_epoch_start()
        self._trainer.on_train_epoch_start()

    def _iteration(self, engine: SupervisedTrainer, batchdata: dict[str, Any]) -> dict[str, float]:
        self._outputs.append(self._trainer.train_step(batchdata))
        engine.state.output = {"loss": float(self._outputs[-1]["loss"])}
        engine.fire_event(IterationEvents.MODEL_COMPLETED)
        return dict(engine.state.output)

    def _end_epoch(self) -> None:
        trainer = self._trainer
        trainer.on_train_epoch_end(self._outputs)
        with torch.no_grad():
            trainer.on_validation_epoch_start()
            batches = range(trainer.num_val_iterations_per_epoch)
            trainer.on_validation_epoch_end([trainer.validation_step(next(trainer.dataloader_val)) for _ in batches])
        self.state.metrics["val_loss"] = float(trainer.logger.get_value("val_losses", step=-1))
        self.state.metrics["pseudo_dice"] = float(trainer.logger.get_value("mean_fg_dice", step=-1))
        dice = trainer.logger.get_value("dice_per_class_or_region", step=-1)
        structures = [name for name, label in LABELS.items() if label]
        self.state.metrics |= {f"pseudo_dice_{name}": float(each) for name, each in zip(structures, dice, strict=True)}
        trainer.on_epoch_end()
        if trainer.is_finished:
            self.terminate()


def _report(trainer: nnUNetTrainer, **shown: float) -> None:
    """Write ``progress.json`` of one training; numbers that are none are left out."""
    content = {
        "description": f"{trainer.configuration_name} fold {trainer.fold}",
        "done": trainer.current_epoch,
        "total": trainer.num_epochs,
        "shown": {key: round(value, 4) for key, value in shown.items() if np.isfinite(value)},
    }
    write_json(Path(trainer.output_folder) / FILE_NAME, content)


def is_done(workspace: Workspace, configuration: str, fold: int, max_epochs: int, patience: int | None) -> bool:
    """Whether a training has come to the end that ``max_epochs`` and ``patience`` give it, and been validated."""
    file = workspace.fold(configuration, fold) / DONE
    done = recall_state(file, dict[str, int], "The fold is validated again")
    return done is not None and {**done, "epochs": 0} == _done(0, max_epochs, patience)


def _done(epochs: int, max_epochs: int, patience: int | None) -> dict[str, int]:
    return {"epochs": epochs, "max_epochs": max_epochs, "early_stop_patience": patience or 0}


def train_fold(
    workspace: Workspace,
    configuration: str,
    fold: int,
    settings: TrainerSettings,
    window: SlidingWindow,
    save_probabilities: bool = True,
    tensorboard: bool = False,
) -> None:
    """Train one network from where it was left, then predict its validation scans; nothing if that is done.

    May run in a process of its own; it then ends with the process that started it. ``save_probabilities`` keeps what an
    ensemble of configurations needs.
    """
    exit_with_parent()
    if is_done(workspace, configuration, fold, settings.max_epochs, settings.early_stop_patience):
        return
    folder = workspace.fold(configuration, fold)
    if settings.num_threads is not None:
        torch.set_num_threads(settings.num_threads)
    manual_seed(settings.seed + fold)
    with workspace.active(settings.num_workers):
        trainer = make_trainer(workspace, configuration, fold, settings)
        for stale in folder.glob(".part-*"):
            stale.unlink()
        checkpoint = newest_checkpoint(folder)
        trainer.initialize()
        if checkpoint is not None:
            try:
                trainer.load_checkpoint(checkpoint)
            except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:
                raise InputError(f"{folder} holds no checkpoint of this training. {FOLD_ANEW}.") from error
            if trainer.current_epoch > settings.max_epochs:
                raise InputError(
                    f"{folder} holds a training of {trainer.current_epoch} epochs, but max_epochs is "
                    f"{settings.max_epochs}. Raise it, or choose another output_dir."
                )
        elif settings.init_weights is not None:
            begin_from(bare(trainer.network), Path(settings.init_weights), configuration, fold)
        _report(trainer)
        trainer.on_train_start()
        if not trainer.is_finished:
            engine = NnUNetEngine(trainer)
            state = engine.state
            engine.add_event_handler(
                Events.EPOCH_COMPLETED, lambda: _report(trainer, epoch=state.epoch, **state.output, **state.metrics)
            )
            if tensorboard:
                TensorBoardStatsHandler(
                    log_dir=str(folder / "events"), output_transform=lambda output: output["loss"]
                ).attach(engine)
            if checkpoint is not None:
                set_random_state(checkpoint["random_states"])
            engine.run()
        trainer.on_train_end()
        validate(trainer, window, save_probabilities)
    write_json(folder / DONE, _done(trainer.current_epoch, settings.max_epochs, settings.early_stop_patience))


def validate(trainer: nnUNetTrainer, window: SlidingWindow, save_probabilities: bool) -> None:
    """Predict and score the validation scans of a trained fold, as nnU-Net does, into its ``validation`` folder."""
    folder = Path(trainer.output_folder) / "validation"
    folder.mkdir(exist_ok=True)
    trainer.set_deep_supervision_enabled(False)
    network = trainer.network.eval()
    patch_size, mirror_axes = trainer.configuration_manager.patch_size, trainer.inference_allowed_mirroring_axes or ()
    _, cases = trainer.do_split()
    dataset = trainer.dataset_class(trainer.preprocessed_dataset_folder, cases)
    ending = trainer.dataset_json["file_ending"]
    for case in cases:
        data, _, _, properties = dataset.load_case(case)
        volume = torch.from_numpy(np.array(data[:])).to(trainer.device)
        with torch.autocast(trainer.device.type, enabled=trainer.device.type == "cuda"):
            logits = window(network, volume, patch_size, mirror_axes).cpu()
        export_prediction_from_logits(
            logits,
            properties,
            trainer.configuration_manager,
            trainer.plans_manager,
            trainer.dataset_json,
            str(folder / case),
            save_probabilities,
            torch.get_num_threads(),
        )
    with pools_on(InlineExecutor()):
        compute_metrics_on_folder(
            str(Path(trainer.preprocessed_dataset_folder_base) / "gt_segmentations"),
            str(folder),
            str(folder / "summary.json"),
            trainer.plans_manager.image_reader_writer_class(),
            ending,
            trainer.label_manager.foreground_labels,
            trainer.label_manager.ignore_label,
        )
