"""The real driver with the real bundles, from the phantom to the table, on tiny networks."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from plugins.data import heldout_labels, read_datalist, write_phantom
from plugins.files import read_json, write_json

ROOT = Path(__file__).parents[1] / "bundles"
TINY = {
    "tanq_translation/configs/tiny": {
        "max_epochs": 1, "slices_per_epoch": 4, "channels": 4, "num_res_blocks": 2, "feature_blocks": [0, 1],
        "random_queries::num_queries": 16, "attention_queries::num_queries": 16, "discriminator_channels": 4,
        "val_scans": 1, "val_interval": 1,
    },
    "vs_cochlea_seg/configs/locator_tiny": {"max_epochs": 1, "iterations_per_epoch": 10},
    "vs_cochlea_seg/configs/tiny": {
        "max_epochs": 1, "iterations_per_epoch": 30, "val_iterations_per_epoch": 1, "folds": [0],
    },
    "vs_cochlea_uda/configs/tiny": {
        "overlays": ["cpu.json", "beyond.json", "tiny.json"], "views": ["redrawn", "tanq"], "gate": None, "rounds": 1,
    },
}  # fmt: skip


def run(bundles, dataset, output, *settings):
    files = [f"{bundles}/vs_cochlea_uda/configs/{name}.json" for name in ("train", "cpu", "beyond", "tiny")]
    command = [sys.executable, "-m", "monai.bundle", "run", "training", "--config_file", str(files)]
    command += [
        "--bundle_root",
        f"{bundles}/vs_cochlea_uda",
        "--dataset_dir",
        str(dataset),
        "--output_dir",
        str(output),
    ]
    environment = os.environ | {"COLUMNS": "120"}
    return subprocess.run([*command, *settings], capture_output=True, text=True, env=environment)


@pytest.mark.slow
def test_the_real_driver_goes_from_the_phantom_to_the_table_and_repeats_nothing(tmp_path):
    bundles, output = tmp_path / "bundles", tmp_path / "run"
    shutil.copytree(ROOT, bundles, ignore=shutil.ignore_patterns("models", "eval", "runs"))
    for name, content in TINY.items():
        write_json(bundles / f"{name}.json", content)
    dataset = Path(write_phantom(tmp_path / "phantom", num_source=2, num_target=2, num_validation=2))
    first = run(bundles, dataset, output)
    assert first.returncode == 0, first.stdout[-3000:] + first.stderr[-3000:]
    assert all(words in first.stdout for words in ("before self-training", "self-training, round 1", "failures"))

    lists = {name: read_datalist(output / "windows" / f"{name}.json") for name in ("source", "target")}
    for scan in lists["source"]:
        translated = nib.load(output / "tanq_translation" / f"{scan['case']}.nii.gz")
        original = nib.load(scan["image"])
        assert translated.shape == original.shape
        assert np.allclose(translated.affine, original.affine)
        assert translated.get_data_dtype() == np.float32
        assert not np.allclose(translated.get_fdata(), original.get_fdata())
    training = read_datalist(output / "round_1" / "datalist" / "datalist.json")
    views = {f"{scan['case']}_{view}" for scan in lists["source"] for view in ("redrawn", "tanq")}
    assert {item["case"] for item in training if item["origin"] == "translated"} <= views
    assert {item["case"] for item in training if item["origin"] == "real"} == {each["case"] for each in lists["target"]}
    weights = [
        torch.load(output / name / "segmentation" / "models" / "model.pt", weights_only=True)
        for name in ("round_0", "round_1")
    ]
    assert weights[0].keys() == weights[1].keys()
    assert any(not torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    metrics, truth = read_json(output / "report" / "metrics.json"), heldout_labels(dataset, "validation")
    for number in ("round_0", "round_1"):
        for scan in read_datalist(output / "dataset" / "validation.json"):
            labels, image = (
                nib.load(output / number / "validation" / f"{scan['case']}_Label.nii.gz"),
                nib.load(scan["image"]),
            )
            assert labels.shape == image.shape
            assert np.allclose(labels.affine, image.affine)
            found, wanted = np.asarray(labels.dataobj) == 1, np.rint(nib.load(truth[scan["case"]]).get_fdata()) == 1
            dice = 2 * (found & wanted).sum() / (found.sum() + wanted.sum())
            assert metrics[number]["cases"][scan["case"]]["vs"]["dice"] == pytest.approx(dice, abs=1e-6)

    again = run(bundles, dataset, output)
    assert again.returncode == 0, again.stderr[-3000:]
    lines = [line for line in again.stdout.splitlines() if line.startswith("[")]
    assert lines
    assert all(line.endswith("already complete") for line in lines), lines
    assert read_json(output / "report" / "metrics.json") == metrics
