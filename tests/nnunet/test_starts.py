"""Trainings that begin from the weights of another."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from plugins.errors import InputError
from plugins.files import read_json, write_json
from plugins.nnunet import NnUNetTraining
from plugins.nnunet.checkpoints import FINAL
from plugins.nnunet.starts import begin_from, check_start
from plugins.nnunet.trainer import make_trainer
from plugins.nnunet.training import train_fold
from plugins.segmentation import SlidingWindow

from .conftest import CHANGES, TINY
from .test_training import copy_of


def network(training: NnUNetTraining, configuration: str) -> torch.nn.Module:
    with training.workspace.active(num_workers=0):
        trainer = make_trainer(training.workspace, configuration, 0, training.settings)
        trainer.initialize()
    return trainer.network


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("fold", [0, 1])
def test_the_network_becomes_that_of_the_same_configuration_and_fold(
    trained: NnUNetTraining, configuration: str, fold: int
):
    ours = network(trained, configuration)
    begin_from(ours, trained.model_dir, configuration, fold)
    theirs = network(trained, configuration)
    file = trained.workspace.fold(configuration, fold) / FINAL
    theirs.load_state_dict(torch.load(file, weights_only=True)["network_weights"])
    patch = torch.randn(1, 1, *CHANGES[configuration]["patch_size"])
    assert torch.equal(ours(patch)[0], theirs(patch)[0])


def test_a_training_begins_there_and_no_resumed_one_begins_anew(trained: NnUNetTraining, tmp_path: Path):
    workspace = copy_of(trained.workspace, tmp_path / "begun")
    settings = dataclasses.replace(
        trained.settings, init_weights=str(trained.model_dir), initial_lr=0.0, weight_decay=0.0, max_epochs=1
    )
    train_fold(workspace, "2d", 1, settings, SlidingWindow())
    begun = torch.load(workspace.fold("2d", 1) / FINAL, weights_only=True)["network_weights"]
    earlier = torch.load(trained.workspace.fold("2d", 1) / FINAL, weights_only=True)["network_weights"]
    heads = [key for key in begun if not torch.equal(begun[key], earlier[key])]
    assert all("seg_layers" in key for key in heads)  # those of deep supervision, which no model holds

    further = dataclasses.replace(settings, initial_lr=0.01, max_epochs=2)
    train_fold(workspace, "2d", 1, further, SlidingWindow())
    moved = torch.load(workspace.fold("2d", 1) / FINAL, weights_only=True)["network_weights"]
    gone = dataclasses.replace(further, initial_lr=0.0, max_epochs=3)
    train_fold(workspace, "2d", 1, gone, SlidingWindow())
    resumed = torch.load(workspace.fold("2d", 1) / FINAL, weights_only=True)["network_weights"]
    assert any(not torch.equal(moved[key], begun[key]) for key in begun)
    assert all(torch.equal(moved[key], resumed[key]) for key in moved)


def test_weights_that_are_not_there_are_refused(trained: NnUNetTraining, tmp_path: Path):
    with pytest.raises(InputError, match=r"has no model\.json and model\.pt"):
        check_start(tmp_path, ["2d"], [0])
    with pytest.raises(InputError, match="but not 2d of fold 2"):
        check_start(trained.model_dir, ["2d"], [0, 2])
    write_json(tmp_path / "model.json", read_json(trained.model_dir / "model.json"))
    (tmp_path / "model.pt").write_bytes(b"PK")
    with pytest.raises(InputError, match=r"model\.pt is damaged"):
        begin_from(network(trained, "2d"), tmp_path, "2d", 0)


def test_weights_of_other_layers_are_refused_before_anything_is_preprocessed(
    trained: NnUNetTraining, items: list[dict[str, Any]], tmp_path: Path
):
    changes = {"2d": {**CHANGES["2d"], "features_per_stage": [4, 8, 16]}}
    settings = {**TINY, "init_weights": str(trained.model_dir)}
    other = NnUNetTraining(items, tmp_path, tmp_path / "models", ["2d"], plan_changes=changes, **settings)
    with pytest.raises(InputError, match="has other layers"):
        other.run()
    assert not list(other.workspace.preprocessed.glob("*/*.b2nd"))


@pytest.mark.parametrize("name", ["init_weights", "plans_from"])
def test_a_model_is_not_begun_from_where_the_training_would_replace_it(
    trained: NnUNetTraining, items: list[dict[str, Any]], tmp_path: Path, name: str
):
    before = (trained.model_dir / "model.pt").read_bytes()
    given: dict[str, Any] = {name: str(trained.model_dir.parent / "." / trained.model_dir.name)}
    again = NnUNetTraining(items, tmp_path, trained.model_dir, ["2d"], plan_changes=CHANGES, **TINY, **given)
    with pytest.raises(InputError, match=f"{name} is model_dir .* which this training replaces. Give another"):
        again.run()
    assert (trained.model_dir / "model.pt").read_bytes() == before
    assert not (tmp_path / "nnUNet_raw").exists()


def test_other_weights_to_begin_from_make_another_training(
    trained: NnUNetTraining, items: list[dict[str, Any]], tmp_path: Path
):
    earlier = tmp_path / "models"
    shutil.copytree(trained.model_dir, earlier)
    again = NnUNetTraining(
        items,
        trained.output_dir,
        trained.model_dir,
        members=["2d", "3d_fullres"],
        plan_changes=CHANGES,
        **TINY,
        init_weights=str(earlier),
    )
    with pytest.raises(InputError, match="holds a training of other"):
        again.run()
    before = again._settings()
    (earlier / "model.pt").touch()  # a time tells nothing
    assert again._settings() == before
    (earlier / "model.pt").write_bytes(b"others")
    assert again._settings() != before
