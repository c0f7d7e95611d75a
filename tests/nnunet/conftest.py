"""A tiny training of both configurations, done once for all tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from plugins.errors import find_input_error
from plugins.files import write_json
from plugins.nnunet import NnUNetTraining

INFERENCE = Path(__file__).parents[2] / "bundles" / "vs_cochlea_seg" / "configs" / "inference.json"
SHAPE = (24, 20, 10)
CHANGES = {
    "2d": {
        "batch_size": 2,
        "patch_size": [16, 16],
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "n_conv_per_stage": 1,
    },
    "3d_fullres": {
        "batch_size": 2,
        "patch_size": [8, 16, 16],
        "n_stages": 3,
        "features_per_stage": [4, 8, 8],
        "n_conv_per_stage": 1,
    },
}
TINY: dict[str, Any] = {
    "num_folds": 2,
    "max_epochs": 4,
    "iterations_per_epoch": 6,
    "val_iterations_per_epoch": 1,
    "num_workers": 0,
    "num_threads": 1,
    "device": "cpu",
    "tensorboard": False,
    "oversample_foreground": 0.5,
    "optimizer": torch.optim.Adam,
    "initial_lr": 0.01,
}


def oblique(axis_codes: str = "RAS", degrees: float = 10, spacing: tuple[float, ...] = (1.0, 1.1, 2.0)) -> np.ndarray:
    """An affine whose axes point roughly along ``axis_codes``, turned about the first world axis."""
    axes = nib.orientations.inv_ornt_aff(nib.orientations.axcodes2ornt(tuple(axis_codes)), (1, 1, 1))
    c, s = np.cos(np.deg2rad(degrees)), np.sin(np.deg2rad(degrees))
    turn = np.eye(4)
    turn[1:3, 1:3] = [[c, -s], [s, c]]
    order = nib.orientations.axcodes2ornt(tuple(axis_codes))[:, 0].astype(int)
    affine = turn @ axes @ np.diag([*np.array(spacing)[order], 1])
    affine[:3, 3] = [-11, 7, 3]
    return affine


def write_scan(folder: Path, case: str, seed: int, affine: np.ndarray | None = None) -> dict[str, str]:
    """A noisy scan with a bright ball (VS) and a dark one (cochlea), LPS unless told; its label is a blurred float."""
    random = np.random.default_rng(seed)
    x, y, z = np.meshgrid(*map(np.arange, SHAPE), indexing="ij")
    cx, cy = random.uniform(8, 12), random.uniform(8, 12)
    label = np.zeros(SHAPE)
    label[(x - cx) ** 2 + (y - cy) ** 2 + 4 * (z - 5) ** 2 < 20] = 1
    label[(x - cx - 7) ** 2 + (y - cy) ** 2 + 4 * (z - 5) ** 2 < 9] = 2
    image = 100 + 200 * (label == 1) - 80 * (label == 2) + random.normal(0, 8, SHAPE)
    affine = np.diag([-1.0, -1.1, 2.0, 1]) if affine is None else affine
    paths = {"image": folder / f"{case}_hrT2.nii.gz", "label": folder / f"{case}_Label.nii.gz"}
    nib.save(nib.Nifti1Image(image.astype(np.float32), affine), paths["image"])
    nib.save(nib.Nifti1Image(label * (1 - 3e-10), affine), paths["label"])
    return {key: str(path) for key, path in paths.items()}


def scans(folder: Path) -> list[dict[str, Any]]:
    """Two views of each of four patients, and two real scans, one of them stored oblique with other axes."""
    folder.mkdir(parents=True, exist_ok=True)
    items = []
    for patient in range(4):
        for view in "ab":
            files = write_scan(folder, f"p{patient}_{view}", 10 * patient + ord(view))
            items.append({"case": f"p{patient}_{view}", "patient": f"p{patient}", "origin": "translated", **files})
    for number, affine in enumerate((None, oblique("PIR"))):
        files = write_scan(folder, f"r{number}", 100 + number, affine)
        items.append({"case": f"r{number}", "patient": f"r{number}", "origin": "real", **files})
    return items


def segment(model_dir: Path, scans: dict[str, str | Path], output_dir: Path, **overrides: Any) -> dict[str, Path]:
    """Run the bundle's own inference.json; gives the label map of every case."""
    output_dir.mkdir(parents=True, exist_ok=True)
    datalist = output_dir / "scans.json"
    write_json(datalist, {"training": [{"case": case, "image": str(image)} for case, image in scans.items()]})
    parser = ConfigParser()
    parser.read_config(str(INFERENCE))
    settings = {"datalist": str(datalist), "model_dir": str(model_dir), "output_dir": str(output_dir), **overrides}
    parser.update({"device": "$torch.device('cpu')", **settings})
    try:
        parser.get_parsed_content("run")
    except RuntimeError as error:  # MONAI's, around the cause
        raise find_input_error(error) or error from None
    return {case: output_dir / f"{case}_Label.nii.gz" for case in scans}


@pytest.fixture(scope="session")
def items(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    return scans(tmp_path_factory.mktemp("scans"))


@pytest.fixture(scope="session")
def trained(items: list[dict[str, Any]], tmp_path_factory: pytest.TempPathFactory) -> NnUNetTraining:
    """A finished training with both configurations as members."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("training")
    training = NnUNetTraining(
        items, folder, folder / "models", members=["2d", "3d_fullres"], plan_changes=CHANGES, **TINY
    )
    training.run()
    return training
