"""TANQ trained on with pseudo-labels, as the driver plans it, on the phantom with tiny networks."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from plugins.data import heldout_labels, write_phantom
from plugins.files import write_json
from plugins.workflow import UdaWorkflow
from plugins.workflow.gate import write_regions
from plugins.workflow.stage import fill_in

ROOT = Path(__file__).parents[2] / "bundles"
TINY = {
    "slices_per_epoch": 8, "channels": 4, "num_res_blocks": 2, "feature_blocks": [0, 1], "discriminator_channels": 4,
    "random_queries::num_queries": 16, "attention_queries::num_queries": 16, "val_interval": 9, "val_scans": 1,
}  # fmt: skip
LABELS = "train::dataset::data::label_dir"


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("data") / "small", num_source=2, num_target=2, num_validation=1)


@pytest.fixture(scope="module")
def run_dir(dataset, tmp_path_factory):
    """A run after the first training of TANQ and the pseudo-labels of round 1."""
    run = tmp_path_factory.mktemp("run")
    training(dataset, run, "tanq_training").run()
    for case, file in heldout_labels(dataset, "training_target").items():
        image = nib.load(file)
        labels = np.asarray(image.dataobj).astype(np.uint8)
        labels[:, :, ::3][labels[:, :, ::3] > 0] = 3
        (run / "gated").mkdir(exist_ok=True)
        nib.save(nib.Nifti1Image(labels, image.affine, image.header), run / "gated" / f"{case}_Label.nii.gz")
    write_regions(str(run / "gated"), str(run / "round_1" / "regions"))
    return run


def training(dataset, run, name, without=()):
    """The trainer of a stage, built from its config files and overrides."""
    settings = {"vs_cochlea_seg": {"num_folds": 2}, "tanq_translation": TINY}
    driver = UdaWorkflow(
        ROOT / "vs_cochlea_uda", None, ThreadPoolExecutor(1), run, dataset, views="tanq", interaction=True,
        max_epochs=1, overlays=["cpu.json"], settings=settings,
    )  # fmt: skip
    (stage,) = (stage for stage in driver.adaptation().stages() if stage.name == name)
    overrides = {key: value for key, value in stage.overrides.items() if key not in without}
    folder = run / (name if not without else f"{name}_without")
    write_json(folder / "overrides.json", fill_in(overrides, folder, run))
    parser = ConfigParser()
    parser.read_config([*map(str, stage.config_paths), str(folder / "overrides.json")])
    return parser.get_parsed_content("train::trainer")


def regions_of_targets(trainer):
    """What each step of a training gives its identity branch as label maps, and the weights that it begins with."""
    seen, first = [], {}
    regions = trainer.network.regions

    def remember(label, size):
        first.update(first or {name: value.clone() for name, value in trainer.network.state_dict().items()})
        seen.append(label.chunk(2)[1].clone())
        return regions(label, size)

    trainer.network.regions = remember
    trainer.run()
    return torch.cat(seen), first


def test_pseudo_labels_are_regions_of_the_identity_branch_and_choose_its_slices(dataset, run_dir):
    trainer = training(dataset, run_dir, "round_1/tanq_training")
    targets, first = regions_of_targets(trainer)
    holds = (targets > 0).flatten(1).any(1)
    assert set(targets.unique().tolist()) == {0, 1, 2}
    assert len(holds) == 8
    assert holds.sum() >= 3  # half of the slices are drawn for it; a window may miss the target

    before = torch.load(run_dir / "tanq_training" / "models" / "model.pt", weights_only=True)
    assert all(torch.equal(first[name], value) for name, value in before.items())
    after = torch.load(run_dir / "round_1" / "tanq_training" / "models" / "model.pt", weights_only=True)
    assert any(not torch.equal(after[name], value) for name, value in before.items())


def test_without_pseudo_labels_the_identity_branch_has_no_region(dataset, run_dir):
    targets, _ = regions_of_targets(training(dataset, run_dir, "round_1/tanq_training", without=[LABELS]))
    assert not targets.any()
