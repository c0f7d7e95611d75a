"""The segmentation bundle's prediction against nnU-Net's own, by the same networks: label maps and CPU time.

python -m benchmarks.prediction path/to/training path/to/scans --output prediction.json

``path/to/training`` is the output_dir of a training of vs_cochlea_seg, whose ``nnunet/results`` nnU-Net predicts from.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.bundle import ConfigParser
from nnunetv2.ensembling.ensemble import ensemble_folders
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
from nnunetv2.postprocessing.remove_connected_components import remove_all_but_largest_component_from_segmentation

from plugins.data import scan_datalist
from plugins.files import read_json, write_json
from plugins.nnunet import InlineExecutor
from plugins.nnunet.processes import pools_on
from plugins.nnunet.workspace import Workspace
from plugins.runtime import keep_freed_memory
from plugins.segmentation import LABELS
from plugins.segmentation.model import DESCRIPTION, WEIGHTS

INFERENCE = Path(__file__).parents[1] / "bundles" / "vs_cochlea_seg" / "configs" / "inference.json"


def part_of(model_dir: Path, members: Sequence[str], folder: Path) -> Path:
    """The trained model with some of its members only."""
    folder.mkdir()
    model = read_json(model_dir / DESCRIPTION)
    axes = {name: f"folds_{len(model['members'][name]['patch_size'])}d" for name in members}
    weights = torch.load(model_dir / WEIGHTS, map_location="cpu", weights_only=True)
    kept = {key: value for key, value in weights.items() if key.split(".")[0] in axes.values()}
    torch.save(kept, folder / WEIGHTS)
    structures = [name for name, label in LABELS.items() if label]
    members_of = {name: [*members] for name in structures}
    content = {**model, "members": {name: model["members"][name] for name in members}, "members_of": members_of}
    write_json(folder / DESCRIPTION, content)
    return folder


def by_bundle(model_dir: Path, datalist: Path, output_dir: Path, folds: Sequence[int], batch_size: int) -> None:
    """The bundle's inference.json."""
    parser = ConfigParser()
    parser.read_config(str(INFERENCE))
    settings = {"model_dir": str(model_dir), "datalist": str(datalist), "output_dir": str(output_dir)}
    parser.update({**settings, "folds": list(folds), "sw_batch_size": batch_size, "device": "$torch.device('cpu')"})
    parser.get_parsed_content("run")


def by_nnunet(
    workspace: Workspace, members: Sequence[str], scans: Sequence[Path], output_dir: Path, folds: Sequence[int]
) -> None:
    """nnU-Net's predictor, its ensembling of folders and its post-processing."""
    folders = []
    for member in members:
        predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        predictor.initialize_from_trained_model_folder(str(workspace.configuration(member)), tuple(folds))
        folder = output_dir if len(members) == 1 else output_dir / member
        folder.mkdir(parents=True, exist_ok=True)
        names = [str(folder / scan.name.removesuffix(".nii.gz")) for scan in scans]
        predictor.predict_from_files_sequential([[str(scan)] for scan in scans], names, len(members) > 1)
        folders.append(folder)
    if len(members) > 1:
        for name in ("plans.json", "dataset.json"):
            for member, folder in zip(members, folders, strict=True):
                shutil.copyfile(workspace.configuration(member) / name, folder / name)
        with pools_on(InlineExecutor()):
            ensemble_folders([str(folder) for folder in folders], str(output_dir), num_processes=1)


def post_processed(file: Path, steps: Sequence[Sequence[int]]) -> np.ndarray[Any, Any]:
    """A label map of nnU-Net with the post-processing that the cross-validation has chosen."""
    labels = np.asarray(nib.load(file).dataobj)
    for step in steps:
        together = [*step] if len(step) == 1 else [tuple(step)]
        labels = remove_all_but_largest_component_from_segmentation(labels, together)
    return labels


def agreement(ours: np.ndarray[Any, Any], theirs: np.ndarray[Any, Any]) -> dict[str, float]:
    """Share of equal voxels, and Dice of each structure; 1 where both have none."""
    result = {"equal": float((ours == theirs).mean())}
    for name, value in LABELS.items():
        if value:
            a, b = ours == value, theirs == value
            result[name] = float(2 * (a & b).sum() / (a.sum() + b.sum())) if a.any() or b.any() else 1.0
    return result


def seconds(call: Callable[[], None]) -> float:
    """CPU time of a call."""
    start = time.process_time()
    call()
    return time.process_time() - start


def compare(training: Path, scans: Sequence[dict[str, str]], folder: Path, batch_size: int) -> dict[str, Any]:
    """Every member alone with one fold, and all members with all folds."""
    workspace, model = Workspace(training / "nnunet"), read_json(training / "models" / DESCRIPTION)
    datalist, results = folder / "scans.json", {}
    write_json(datalist, {"training": scans})
    every, folds = [*model["members"]], model["folds"]
    cases = [(f"{name}, fold {folds[0]}", [name], folds[:1]) for name in every]
    cases.append((f"{' + '.join(every)}, {len(folds)} folds", every, folds))
    first = folder / "first.json"
    write_json(first, {"training": scans[:1]})
    by_bundle(training / "models", first, folder / "warm-up", folds[:1], batch_size)  # imports what MONAI needs
    for title, members, used in cases:
        model_dir = part_of(training / "models", members, folder / f"model {title}")
        ours, theirs = folder / f"ours {title}", folder / f"nnunet {title}"
        files = [Path(scan["image"]) for scan in scans]
        nnunet = seconds(lambda theirs=theirs, m=members, f=files, u=used: by_nnunet(workspace, m, f, theirs, u))
        bundle = seconds(lambda m=model_dir, ours=ours, u=used: by_bundle(m, datalist, ours, u, batch_size))
        each = {}
        for scan, file in zip(scans, files, strict=True):
            label = np.asarray(nib.load(ours / f"{scan['case']}_Label.nii.gz").dataobj)
            expected = post_processed(theirs / file.name, model["keep_largest_component_of"])
            each[scan["case"]] = agreement(label, expected)
        worst = {key: min(case[key] for case in each.values()) for key in ("equal", "VS", "cochlea")}
        time_ = {"ratio_to_nnunet": bundle / nnunet, "bundle_cpu_seconds": bundle, "nnunet_cpu_seconds": nnunet}
        results[title] = {"worst": worst, **time_, "cases": each}
        print(title, json.dumps({"worst": worst, **time_}), flush=True)
    return results


def main() -> None:
    """Predict, compare and write JSON."""
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("training", type=Path)
    arguments.add_argument("scans", type=Path)
    arguments.add_argument("--count", type=int, default=5, help="scans to predict")
    arguments.add_argument("--sw_batch_size", type=int, default=8)
    arguments.add_argument("--output", type=Path, default=Path("prediction.json"))
    given = arguments.parse_args()
    os.environ["nnUNet_def_n_proc"] = "1"  # noqa: SIM112 - nnU-Net's own spelling
    torch.set_num_threads(1)
    keep_freed_memory()
    scans = scan_datalist(given.scans, "hrT2")[: given.count]
    with tempfile.TemporaryDirectory() as folder:
        write_json(given.output, compare(given.training, scans, Path(folder), given.sw_batch_size))


if __name__ == "__main__":
    main()
