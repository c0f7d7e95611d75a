"""nnU-Net's own trainer with settings from outside, silent, and with exact and safe checkpoints."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.noise.gaussian_blur import GaussianBlurTransform
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader
from nnunetv2.training.lr_scheduler.polylr import PolyLRScheduler
from nnunetv2.training.nnUNetTrainer import nnUNetTrainer as StockModule
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as StockTrainer
from nnunetv2.utilities.json_export import recursive_fix_for_json_export
from pydantic import NonNegativeInt, PositiveInt

from plugins.config.ranges import Rate, Share
from plugins.errors import InputError
from plugins.finite import refuse_broken_weights, refuse_diverged
from plugins.nnunet.augmentation import Augmentation, make_augmentation
from plugins.nnunet.checkpoints import FINAL, LATEST, PREVIOUS, write_checkpoint
from plugins.nnunet.workspace import ANEW, TRAINER, WEIGHTS, Workspace
from plugins.runtime import random_state
from plugins.state import read_state

Configuration = Literal["2d", "3d_fullres"]
_swapping = threading.Lock()


@dataclass(frozen=True)
class TrainerSettings:
    """Hyper-parameters of one training; the defaults are nnU-Net's.

    Attributes:
        max_epochs: of ``iterations_per_epoch`` training steps.
        iterations_per_epoch: training steps; a dictionary gives each configuration its own.
        val_iterations_per_epoch: patches batches for the pseudo Dice.
        initial_lr: decays as ``(1 - epoch / max_epochs) ** 0.9``.
        weight_decay: of the optimizer.
        optimizer: called with parameters, ``lr`` and ``weight_decay``; ``None`` is nnU-Net's SGD, momentum 0.99.
        oversample_foreground: share of a batch that is centred on foreground.
        augmentation: in front of nnU-Net's own, see :func:`plugins.nnunet.augmentation.make_augmentation`; ``None`` is
            nnU-Net's alone.
        mirroring: augment by mirroring; without it nothing is mirrored in prediction either.
        early_stop_patience: epochs without a better moving average of the pseudo Dice after which a training ends;
            ``None`` trains to ``max_epochs``.
        init_weights: ``model_dir`` of an earlier training, whose networks of the same configuration and fold begin this
            one; ``None`` begins with random weights.
        save_every: epochs between checkpoints.
        num_workers: augmentation processes, 0 for none; ``None`` is nnU-Net's choice. Only 0 is reproducible.
        num_threads: torch's threads of one training.
        seed: of weights and sampling; the fold is added.
        device: torch device.
    """

    max_epochs: PositiveInt = 1000
    iterations_per_epoch: PositiveInt | Mapping[Configuration, PositiveInt] = 250
    val_iterations_per_epoch: PositiveInt = 50
    initial_lr: Rate = 1e-2
    weight_decay: float = 3e-5
    optimizer: Callable[..., torch.optim.Optimizer] | None = None
    oversample_foreground: Share = 0.33
    augmentation: Augmentation | None = None
    mirroring: bool = True
    early_stop_patience: PositiveInt | None = None
    init_weights: str | None = None
    save_every: PositiveInt = 1
    num_workers: NonNegativeInt | None = None
    num_threads: PositiveInt | None = None
    seed: NonNegativeInt = 0
    device: str = "cuda"

    def iterations_of(self, configuration: Any) -> int:
        """Training steps an epoch of a configuration.

        Raises:
            InputError: if a dictionary of them lacks it.
        """
        if isinstance(self.iterations_per_epoch, int):
            return self.iterations_per_epoch
        if configuration not in self.iterations_per_epoch:
            given = ", ".join(self.iterations_per_epoch)
            raise InputError(f"iterations_per_epoch has {given} but not {configuration}. Add it, or give one number.")
        return self.iterations_per_epoch[configuration]


class nnUNetTrainer(StockTrainer):  # noqa: N801 - nnU-Net's name
    """nnU-Net's trainer under nnU-Net's name, which checkpoints carry, so that stock nnU-Net can use them.

    It differs in what does not touch the optimisation: messages go to the log file only, no picture is drawn each
    epoch, the blur does not choose its algorithm by a stopwatch, and checkpoints are exact, atomic and free of pickled
    objects.
    """

    mirroring = True
    make_optimizer: Callable[..., torch.optim.Optimizer] | None = None
    augmentation: Sequence[BasicTransform] = ()
    weights: Mapping[str, float] | None = None
    patience: int | None = None

    def apply(self, settings: TrainerSettings) -> None:
        """Take hyper-parameters; must come before ``initialize``, whose scheduler reads them."""
        self.num_epochs = settings.max_epochs
        self.num_iterations_per_epoch = settings.iterations_of(self.configuration_name)
        self.num_val_iterations_per_epoch = settings.val_iterations_per_epoch
        self.initial_lr = settings.initial_lr
        self.make_optimizer = settings.optimizer
        self.weight_decay = settings.weight_decay
        self.oversample_foreground_percent = settings.oversample_foreground
        self.save_every = settings.save_every
        self.patience = settings.early_stop_patience
        self.mirroring = settings.mirroring
        self.augmentation = make_augmentation(settings.augmentation)
        self.logger.plot_progress_png = lambda folder: None

    def print_to_log_file(self, *args: Any, also_print_to_console: bool = True, add_timestamp: bool = True) -> None:
        """Write to the log file only."""
        super().print_to_log_file(*args, also_print_to_console=False, add_timestamp=add_timestamp)

    def plot_network_architecture(self) -> None:
        """Not wanted."""

    def _save_debug_information(self) -> None:
        """Not wanted: it records this machine."""

    def configure_rotation_dummyDA_mirroring_and_inital_patch_size(self) -> tuple[Any, ...]:  # noqa: N802
        """nnU-Net's choice, without mirroring if that is switched off."""
        *others, mirror_axes = super().configure_rotation_dummyDA_mirroring_and_inital_patch_size()
        if not self.mirroring:
            self.inference_allowed_mirroring_axes = mirror_axes = None
        return (*others, mirror_axes)

    def get_training_transforms(self, *args: Any, **kwargs: Any) -> Any:
        """nnU-Net's augmentation, behind that of the settings; the blur always convolves."""
        transforms = StockTrainer.get_training_transforms(*args, **kwargs)
        for transform in transforms.transforms:
            blur = getattr(transform, "transform", transform)
            if isinstance(blur, GaussianBlurTransform):
                blur.benchmark = False
        transforms.transforms[:0] = self.augmentation
        return transforms

    def get_tr_and_val_datasets(self) -> tuple[Any, Any]:
        """nnU-Net's; the training scans know their weights where these differ."""
        training, validation = super().get_tr_and_val_datasets()
        weights = np.array([(self.weights or {}).get(case, 1.0) for case in training.identifiers])
        if len(weights) and weights.min() < weights.max():
            training.probabilities = weights / weights.sum()
        return training, validation

    def get_dataloaders(self) -> tuple[Any, Any]:
        """nnU-Net's, which draw scans by their weights."""
        with _swapping:  # nnU-Net names no class that could be replaced
            StockModule.nnUNetDataLoader = WeightedLoader
            try:
                loaders: tuple[Any, Any] = super().get_dataloaders()
            finally:
                StockModule.nnUNetDataLoader = nnUNetDataLoader
        return loaders

    def configure_optimizers(self) -> tuple[Any, Any]:
        """nnU-Net's, or the optimizer of the settings with nnU-Net's schedule."""
        if self.make_optimizer is None:
            optimizer, scheduler = super().configure_optimizers()
            return optimizer, scheduler
        optimizer = self.make_optimizer(self.network.parameters(), lr=self.initial_lr, weight_decay=self.weight_decay)
        return optimizer, PolyLRScheduler(optimizer, self.initial_lr, self.num_epochs)

    def train_step(self, batch: dict[str, Any]) -> dict[str, Any]:
        """nnU-Net's; the training ends at the first loss that is not finite."""
        result: dict[str, Any] = super().train_step(batch)
        refuse_diverged(
            result["loss"], {}, f"epoch {self.current_epoch + 1} of {self.configuration_name}, fold {self.fold}"
        )
        return result

    def save_checkpoint(self, filename: str) -> None:
        """Write the whole state; ``checkpoint_best`` is not kept, nothing reads it."""
        path = Path(filename)
        if path.name not in (FINAL, LATEST):
            return
        refuse_broken_weights(bare(self.network).state_dict(), f"{path} is not written")
        averages = self.logger.get_value("ema_fg_dice", step=None)
        content = {
            "network_weights": bare(self.network).state_dict(),
            "optimizer_state": self.optimizer.state_dict(),
            "grad_scaler_state": None if self.grad_scaler is None else self.grad_scaler.state_dict(),
            "logging": self.logger.get_checkpoint(),
            # nnU-Net updates its best score after the checkpoint of the epoch
            "_best_ema": float(np.nanmax([-1.0 if self._best_ema is None else self._best_ema, *averages[-1:]])),
            "current_epoch": self.current_epoch + 1,
            "init_args": {"configuration": self.configuration_name, "fold": self.fold},
            "trainer_name": TRAINER,
            "inference_allowed_mirroring_axes": self.inference_allowed_mirroring_axes,
            "random_states": random_state(),
        }
        write_checkpoint(path, content)

    def load_checkpoint(self, checkpoint: Mapping[str, Any]) -> None:
        """Take the whole state of a checkpoint but that of the random generators; comes after ``initialize``."""
        bare(self.network).load_state_dict(checkpoint["network_weights"])
        self.optimizer.load_state_dict(checkpoint["optimizer_state"])
        if self.grad_scaler is not None and checkpoint["grad_scaler_state"] is not None:
            self.grad_scaler.load_state_dict(checkpoint["grad_scaler_state"])
        self.logger.load_checkpoint(checkpoint["logging"])
        self._best_ema = checkpoint["_best_ema"]
        self.current_epoch = checkpoint["current_epoch"]
        self.inference_allowed_mirroring_axes = checkpoint["inference_allowed_mirroring_axes"]

    @property
    def is_finished(self) -> bool:
        """Whether the last epoch is done, or the pseudo Dice has not become better for as long as is allowed."""
        averages = np.nan_to_num([-1.0, *self.logger.get_value("ema_fg_dice", step=None)])
        stalled = self.patience is not None and len(averages) - 1 - int(averages.argmax()) >= self.patience
        return self.current_epoch >= self.num_epochs or stalled

    def on_epoch_end(self) -> None:
        """nnU-Net's; the log holds plain numbers, so that a checkpoint loads without pickle."""
        recursive_fix_for_json_export(self.logger.get_checkpoint())
        super().on_epoch_end()

    def on_train_end(self) -> None:
        """Write the final checkpoint and drop the others."""
        super().on_train_end()
        (Path(self.output_folder) / PREVIOUS).unlink(missing_ok=True)


class WeightedLoader(nnUNetDataLoader):
    """nnU-Net's loader; if its data set has ``probabilities``, scans are drawn by them, if not, evenly as ever."""

    def __init__(self, data: Any, *args: Any, **kwargs: Any):
        super().__init__(data, *args, **kwargs | {"sampling_probabilities": getattr(data, "probabilities", None)})


def bare(network: torch.nn.Module) -> torch.nn.Module:
    """The module inside a compiled one."""
    inner: torch.nn.Module = getattr(network, "_orig_mod", network)
    return inner


def make_trainer(workspace: Workspace, configuration: str, fold: int, settings: TrainerSettings) -> nnUNetTrainer:
    """A trainer that is not initialized yet; must run inside ``workspace.active``."""
    plans = workspace.plans().plans | {"continue_training": False}
    dataset = read_state(workspace.preprocessed / "dataset.json", dict[str, Any], ANEW)
    trainer = nnUNetTrainer(plans, configuration, fold, dataset, torch.device(settings.device))
    trainer.apply(settings)
    trainer.weights = read_state(workspace.preprocessed / WEIGHTS, dict[str, float], ANEW)
    return trainer
