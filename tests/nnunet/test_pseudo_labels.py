"""Voxels to ignore and scans that weigh less: what pseudo-labels need."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunetv2.training.dataloading.data_loader import nnUNetDataLoader

from plugins.errors import InputError
from plugins.files import read_json, write_json
from plugins.nnunet import NnUNetTraining
from plugins.nnunet.dataset import check_items, write_dataset
from plugins.nnunet.selection import describe
from plugins.nnunet.trainer import StockModule, WeightedLoader, make_trainer
from plugins.nnunet.training import train_fold
from plugins.nnunet.workspace import PLANS, WEIGHTS, Workspace
from plugins.segmentation import LABELS, SlidingWindow, read_model

from .conftest import CHANGES, TINY, write_scan
from .test_training import copy_of


def with_ignored(item: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The item with voxels to ignore about its VS."""
    label = nib.load(item["label"])
    values = np.rint(label.get_fdata())
    near = np.zeros(values.shape, bool)
    for axis in range(3):
        for step in (-1, 1):
            near |= np.roll(values == 1, step, axis)
    values[near & (values == 0)] = 3
    file = folder / f"{item['case']}_Label.nii.gz"
    nib.save(nib.Nifti1Image(values, label.affine), file)
    return {**item, "label": str(file)}


@pytest.fixture(scope="module")
def pseudo(items: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> NnUNetTraining:
    """A finished training with a real scan that has voxels to ignore and weighs half."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("pseudo")
    chosen = [
        {**with_ignored(item, folder), "weight": 0.5} if item["case"] == "r0" else item
        for item in items
        if item["case"] != "r1"
    ]
    settings = {**TINY, "max_epochs": 2, "iterations_per_epoch": 2}
    training = NnUNetTraining(
        chosen, folder, folder / "models", configurations=["2d"], plan_changes={"2d": CHANGES["2d"]}, **settings
    )
    training.run()
    return training


def naive_loss(logits: torch.Tensor, target: torch.Tensor, batch_dice: bool) -> float:
    """Cross-entropy less the soft Dice of VS and cochlea, over the voxels not ignored, one after the other."""
    total, count = 0.0, 0
    groups = [range(len(logits))] if batch_dice else [[each] for each in range(len(logits))]
    dice = []
    for group in groups:
        meet, size, drawn = ({label: 0.0 for label in (1, 2)} for _ in range(3))
        for sample in group:
            flat = logits[sample].double().flatten(1).T.tolist()
            for scores, label in zip(flat, target[sample, 0].flatten().tolist(), strict=True):
                if label == 3:
                    continue
                peak = max(scores)
                exponents = [float(np.exp(score - peak)) for score in scores]
                shares = [each / sum(exponents) for each in exponents]
                total -= float(np.log(shares[int(label)]))
                count += 1
                for known in (1, 2):
                    meet[known] += shares[known] * (label == known)
                    size[known] += shares[known]
                    drawn[known] += label == known
        dice += [(2 * meet[k] + 1e-5) / max(size[k] + drawn[k] + 1e-5, 1e-8) for k in (1, 2)]
    return total / count - float(np.mean(dice))


def test_the_loss_is_that_over_the_other_voxels(pseudo: NnUNetTraining):
    with pseudo.workspace.active(num_workers=0):
        trainer = make_trainer(pseudo.workspace, "2d", 0, pseudo.settings)
        trainer.initialize()
    torch.manual_seed(0)
    logits, target = torch.randn(2, 3, 7, 8), torch.randint(0, 4, (2, 1, 7, 8)).float()
    loss = trainer.loss.loss  # that of one level of deep supervision
    found = float(loss(logits, target))
    assert found == pytest.approx(naive_loss(logits, target, batch_dice=True), abs=1e-5)
    logits.requires_grad_()
    loss(logits, target).backward()
    gradient = logits.grad.abs().sum(1, keepdim=True)
    assert not gradient[target == 3].any()
    assert gradient[target != 3].all()


def test_nnunet_is_told_only_where_there_is_something_to_ignore(pseudo: NnUNetTraining, trained: NnUNetTraining):
    for workspace, labels in ((pseudo.workspace, {**LABELS, "ignore": 3}), (trained.workspace, LABELS)):
        assert read_json(workspace.preprocessed / "dataset.json")["labels"] == labels
    assert LABELS == {"background": 0, "VS": 1, "cochlea": 2}


def test_what_is_ignored_is_no_class_and_no_foreground(pseudo: NnUNetTraining):
    with pseudo.workspace.active(num_workers=0):
        trainer = make_trainer(pseudo.workspace, "2d", 0, pseudo.settings)
        trainer.initialize()
        trainer.on_train_start()
    assert trainer.label_manager.num_segmentation_heads == 3
    assert trainer.label_manager.foreground_labels == [1, 2]
    dataset = trainer.dataloader_train.data_loader._data
    properties = dataset.load_case("r0")[3]
    assert set(properties["class_locations"]) == {1, 2, (-1, 0, 1, 2)}
    _, segmentation, *_ = dataset.load_case("r0")
    segmentation = np.asarray(segmentation[:])
    assert (segmentation == 3).any()
    for place in properties["class_locations"][(-1, 0, 1, 2)]:
        assert segmentation[tuple(place)] != 3
    for label in (1, 2):
        assert {int(segmentation[tuple(place)]) for place in properties["class_locations"][label]} == {label}
    batch = next(trainer.dataloader_train)
    assert {int(value) for target in batch["target"] for value in target.unique()} <= {0, 1, 2, 3}


def test_plans_scores_and_model_are_those_of_three_classes(pseudo: NnUNetTraining, trained: NnUNetTraining):
    plans = [read_json(each.workspace.preprocessed / f"{PLANS}.json") for each in (pseudo, trained)]
    assert plans[0]["configurations"]["2d"] == plans[1]["configurations"]["2d"]
    summary = read_json(pseudo.workspace.fold("2d", 0) / "validation" / "summary.json")
    assert set(summary["mean"]) == {"1", "2"}
    model = read_model(pseudo.model_dir)
    assert model.members["2d"] == read_model(trained.model_dir).members["2d"]
    weights = torch.load(pseudo.model_dir / "model.pt", weights_only=True)
    assert {len(value) for key, value in weights.items() if "head" in key} == {3}
    assert describe(pseudo.workspace, read_json(pseudo.workspace.root / "selection.json")).folds == [0, 1]


def test_scores_leave_out_what_is_ignored(items: list[dict[str, Any]], pseudo: NnUNetTraining, tmp_path: Path):
    workspace = copy_of(pseudo.workspace, tmp_path / "scores")
    (workspace.root / "preprocessed").unlink()
    (workspace.root / "preprocessed").mkdir()
    workspace.preprocessed.mkdir()
    for file in pseudo.workspace.preprocessed.iterdir():
        (workspace.preprocessed / file.name).symlink_to(file)
    splits = [{"train": ["p0_a", "p1_a"], "val": ["r0"]}]
    (workspace.preprocessed / "splits_final.json").unlink()
    write_json(workspace.preprocessed / "splits_final.json", splits)
    train_fold(workspace, "2d", 0, pseudo.settings, SlidingWindow(), save_probabilities=False)
    scores = read_json(workspace.fold("2d", 0) / "validation" / "summary.json")["metric_per_case"][0]["metrics"]
    truth = np.asarray(nib.load(workspace.labels / "r0.nii.gz").dataobj)
    drawn = np.asarray(nib.load(workspace.fold("2d", 0) / "validation" / "r0.nii.gz").dataobj)
    for label in (1, 2):
        counts = [scores[str(label)][name] for name in ("TP", "FP", "FN", "TN")]
        known = truth != 3
        pairs = [(True, True), (False, True), (True, False), (False, False)]
        assert counts == [int((((truth == label) == t) & ((drawn == label) == d) & known).sum()) for t, d in pairs]


def test_a_translated_scan_must_not_ignore(tmp_path: Path):
    scan = {"case": "a", "patient": "a", **write_scan(tmp_path, "a", 0)}
    marked = with_ignored(scan, tmp_path)
    write_dataset([{**marked, "origin": "real"}], Workspace(tmp_path / "real"))
    with pytest.raises(InputError, match="a_Label"):
        write_dataset([{**marked, "origin": "translated"}], Workspace(tmp_path / "translated"))
    training = NnUNetTraining([{**marked, "origin": "translated"}], tmp_path / "run", tmp_path / "models", **TINY)
    with pytest.raises(InputError, match="label values 3"):
        training.run()


def test_scans_are_drawn_by_their_weights(pseudo: NnUNetTraining):
    with pseudo.workspace.active(num_workers=0):
        trainer = make_trainer(pseudo.workspace, "2d", 0, pseudo.settings)
        trainer.initialize()
        trainer.on_train_start()
    assert StockModule.nnUNetDataLoader is nnUNetDataLoader
    loader = trainer.dataloader_train.data_loader
    assert isinstance(loader, WeightedLoader)
    assert len(loader.indices) == 5  # two patients with two views, and the real scan
    np.random.seed(0)
    drawn = [case for _ in range(4000) for case in loader.get_indices()]
    counts = {case: drawn.count(case) / len(drawn) for case in loader.indices}
    for case, share in counts.items():
        assert share == pytest.approx((0.5 if case == "r0" else 1) / 4.5, abs=0.012), case
    assert trainer.dataloader_val.data_loader.sampling_probabilities is None


def test_equal_weights_are_none(trained: NnUNetTraining):
    weights = read_json(trained.workspace.preprocessed / WEIGHTS)
    assert set(weights.values()) == {1.0}
    for each in (None, dict.fromkeys(weights, 0.5)):
        with trained.workspace.active(num_workers=0):
            trainer = make_trainer(trained.workspace, "2d", 0, trained.settings)
            trainer.weights = each
            trainer.initialize()
            trainer.on_train_start()
        assert trainer.dataloader_train.data_loader.sampling_probabilities is None


@pytest.mark.parametrize("weight", ["half", 0, -1, "nan", "inf", None])
def test_a_weight_that_is_none_is_refused(items: list[dict[str, Any]], weight: Any):
    with pytest.raises(InputError, match="weight of p0_a"):
        check_items([{**items[0], "weight": weight}])
