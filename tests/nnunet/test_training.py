import dataclasses
import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.engines import SupervisedTrainer
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer as StockTrainer

from plugins.errors import InputError
from plugins.files import read_json
from plugins.nnunet import NnUNetEngine, NnUNetTraining, TrainerSettings, training
from plugins.nnunet.checkpoints import FINAL, newest_checkpoint
from plugins.nnunet.trainer import make_trainer, nnUNetTrainer
from plugins.nnunet.workspace import Workspace
from plugins.segmentation import SlidingWindow


def copy_of(workspace: Workspace, root: Path) -> Workspace:
    """The same prepared data, without results."""
    root.mkdir()
    for name in ("raw", "preprocessed"):
        (root / name).symlink_to(workspace.root / name)
    return Workspace(root)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_killed_training_ends_with_the_same_weights(
    trained: NnUNetTraining, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, configuration: str
):
    report = training._report

    def kill(trainer: nnUNetTrainer, **shown: float) -> None:
        report(trainer, **shown)
        if trainer.current_epoch == 2:
            raise KeyboardInterrupt

    workspace = copy_of(trained.workspace, tmp_path / "killed")
    arguments = (workspace, configuration, 1, trained.settings, SlidingWindow())
    with monkeypatch.context() as patch:
        patch.setattr(training, "_report", kill)
        with pytest.raises(KeyboardInterrupt):
            training.train_fold(*arguments)
    folder = workspace.fold(configuration, 1)
    assert not (folder / FINAL).exists()
    training.train_fold(*arguments)

    straight = newest_checkpoint(trained.workspace.fold(configuration, 1))
    resumed = newest_checkpoint(folder)
    assert straight is not None
    assert resumed is not None
    assert resumed["current_epoch"] == straight["current_epoch"] == 4
    assert all(weight.isfinite().all() for weight in straight["network_weights"].values())
    for key, weight in straight["network_weights"].items():
        assert torch.equal(weight, resumed["network_weights"][key]), key
    for key in ("train_losses", "val_losses", "mean_fg_dice", "ema_fg_dice", "lrs"):
        assert straight["logging"][key] == resumed["logging"][key], key


def test_the_engine_is_a_monai_trainer_whose_output_is_the_loss(trained: NnUNetTraining, tmp_path: Path):
    workspace = copy_of(trained.workspace, tmp_path / "engine")
    losses = []

    class Listener:
        def attach(self, engine: NnUNetEngine) -> None:
            engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: losses.append(e.state.output["loss"]))

    with workspace.active(num_workers=0):
        trainer = make_trainer(workspace, "2d", 0, trained.settings)
        trainer.initialize()
        trainer.on_train_start()
        engine = NnUNetEngine(trainer, [Listener()])
        assert isinstance(engine, SupervisedTrainer)
        engine.run()
    assert len(losses) == trained.settings.max_epochs * trained.settings.iterations_per_epoch
    assert engine.state.metrics["pseudo_dice"] == pytest.approx(trainer.logger.get_value("mean_fg_dice", -1))


def test_defaults_are_those_of_nnunet(trained: NnUNetTraining, tmp_path: Path):
    workspace = copy_of(trained.workspace, tmp_path / "defaults")
    with workspace.active(num_workers=0):
        ours = make_trainer(workspace, "2d", 0, TrainerSettings(device="cpu"))
        stock = StockTrainer(
            **{**ours.my_init_kwargs, "plans": {**ours.plans_manager.plans, "continue_training": False}}
        )
        names = [
            name for name, value in vars(stock).items() if isinstance(value, (int, float)) and name != "save_every"
        ]
        assert {name: getattr(ours, name) for name in names} == {name: getattr(stock, name) for name in names}
        for trainer in (ours, stock):
            trainer.initialize()
        assert ours.optimizer.state_dict() == stock.optimizer.state_dict()
        assert type(ours.optimizer) is type(stock.optimizer)
    assert "num_iterations_per_epoch" in names
    assert inspect.signature(ours.build_network_architecture) == inspect.signature(stock.build_network_architecture)


def test_progress_of_a_training_is_on_disk(trained: NnUNetTraining):
    state = read_json(trained.workspace.fold("2d", 0) / "progress.json")
    assert (state["done"], state["total"]) == (4, 4)
    assert {"epoch", "loss", "pseudo_dice", "pseudo_dice_VS", "pseudo_dice_cochlea"} <= set(state["shown"])
    splits = read_json(trained.output_dir / "splits.json")["folds"]
    assert [fold["val"]["patients"] for fold in splits] == [2, 2]


def test_a_training_that_stalls_ends_early_and_stays_ended(trained: NnUNetTraining, tmp_path: Path):
    workspace = copy_of(trained.workspace, tmp_path / "early")
    settings = dataclasses.replace(trained.settings, max_epochs=40, early_stop_patience=2, initial_lr=0.0)
    arguments = (workspace, "2d", 0, settings, SlidingWindow())
    training.train_fold(*arguments)
    checkpoint = newest_checkpoint(workspace.fold("2d", 0))
    assert checkpoint is not None
    averages = checkpoint["logging"]["ema_fg_dice"]
    best = averages.index(max(averages))
    assert len(averages) == checkpoint["current_epoch"] == best + 3 < 40
    (workspace.fold("2d", 0) / "done.json").unlink()  # as if killed while validating
    training.train_fold(*arguments)
    again = newest_checkpoint(workspace.fold("2d", 0))
    assert again is not None
    assert again["current_epoch"] == checkpoint["current_epoch"]
    for key, weight in checkpoint["network_weights"].items():
        assert torch.equal(weight, again["network_weights"][key]), key


def test_a_training_ends_where_it_is_told_to_and_says_how_far_it_came(trained: NnUNetTraining, tmp_path: Path):
    workspace = copy_of(trained.workspace, tmp_path / "lengths")
    folder = workspace.fold("2d", 0)

    def train(**length: Any) -> int:
        settings = dataclasses.replace(trained.settings, initial_lr=0.0, **length)
        training.train_fold(workspace, "2d", 0, settings, SlidingWindow())
        checkpoint = newest_checkpoint(folder)
        assert checkpoint is not None
        assert read_json(folder / "done.json")["epochs"] == checkpoint["current_epoch"]
        return int(checkpoint["current_epoch"])

    stopped = train(max_epochs=20, early_stop_patience=1)
    assert 1 < stopped < 20
    with pytest.raises(InputError, match=f"holds a training of {stopped} epochs, but max_epochs is 1. Raise it"):
        train(max_epochs=1)
    assert train(max_epochs=20, early_stop_patience=None) == 20


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
def test_a_training_that_diverges_ends_in_a_sentence_and_keeps_its_last_checkpoint(
    trained: NnUNetTraining, tmp_path: Path, configuration: str
):
    workspace = copy_of(trained.workspace, tmp_path / "diverged")
    steps = trained.settings.iterations_of(configuration)
    settings = dataclasses.replace(trained.settings, optimizer=Exploding.after(steps + 2))
    with pytest.raises(InputError, match=rf"^loss is .*at epoch 2 of {configuration}, fold 0, so .*Lower the learning"):
        training.train_fold(workspace, configuration, 0, settings, SlidingWindow())
    kept = newest_checkpoint(workspace.fold(configuration, 0))
    assert kept is not None
    assert kept["current_epoch"] == 1
    assert all(weight.isfinite().all() for weight in kept["network_weights"].values())


class Exploding(torch.optim.Adam):
    """Adam whose weights become infinite at one step."""

    @classmethod
    def after(cls, steps: int) -> Any:
        left = iter([False] * (steps - 1) + [True] + [False] * 999)

        def make(*args: Any, **settings: Any) -> torch.optim.Optimizer:
            optimizer = cls(*args, **settings)
            optimizer.explodes = left  # type: ignore[attr-defined]
            return optimizer

        return make

    def step(self, closure: Any = None) -> Any:
        if next(self.explodes):  # type: ignore[attr-defined]
            self.param_groups[0]["params"][0].data.fill_(float("inf"))
        return super().step(closure)


def test_each_configuration_may_have_its_own_iterations():
    settings = TrainerSettings(iterations_per_epoch={"2d": 200, "3d_fullres": 30})
    assert [settings.iterations_of(name) for name in ("2d", "3d_fullres")] == [200, 30]
    assert TrainerSettings(iterations_per_epoch=7).iterations_of("2d") == 7
    with pytest.raises(InputError, match="has 2d, 3d_fullres but not 3d_lowres"):
        settings.iterations_of("3d_lowres")
