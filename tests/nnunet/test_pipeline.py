import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch
from nnunetv2.evaluation.find_best_configuration import find_best_configuration
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

from plugins.errors import InputError
from plugins.files import read_json, write_json
from plugins.nnunet import Ensemble, InlineExecutor, NnUNetTraining, SlidingWindow, predict_scans, workers
from plugins.nnunet.processes import pools_on

from .conftest import CHANGES, TINY, oblique, write_scan

BATCHED = SlidingWindow(batch_size=4)


def members_only(trained: NnUNetTraining, folder: Path, members: list[str], **changes: object) -> Path:
    """The trained networks as another model_dir that uses only some of them."""
    folder.mkdir()
    for member in members:
        (folder / member).symlink_to(trained.model_dir / member)
    selection = read_json(trained.model_dir / "selection.json")
    write_json(folder / "selection.json", {**selection, "members": members, **changes})
    return folder


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("codes", ["LPS", "PIR"])
def test_stock_nnunet_predicts_the_same_from_the_same_folder(
    trained: NnUNetTraining, tmp_path: Path, configuration: str, codes: str
):
    scan = write_scan(tmp_path, "a", 7, oblique(codes, degrees=5, spacing=(1.2, 1.0, 1.7)))["image"]
    stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    stock.initialize_from_trained_model_folder(str(trained.model_dir / configuration), None)
    image, properties = NibabelIOWithReorient().read_images([scan])
    expected = tmp_path / "stock.nii.gz"
    NibabelIOWithReorient().write_seg(stock.predict_single_npy_array(image, properties), str(expected), properties)
    model_dir = members_only(trained, tmp_path / "models", [configuration], keep_largest_component_of=[])
    ours, truth = Ensemble(model_dir)(scan), np.asarray(nib.load(expected).dataobj)
    assert np.array_equal(np.asarray(ours.dataobj), truth)
    batched = np.asarray(Ensemble(model_dir, BATCHED)(scan).dataobj)
    assert (batched != truth).mean() < 1e-3


def test_a_scan_is_labelled_alike_however_it_is_stored(trained: NnUNetTraining, tmp_path: Path):
    scan = nib.load(write_scan(tmp_path, "a", 8, oblique("RAS", degrees=10))["image"])
    ensemble = Ensemble(trained.model_dir, BATCHED)
    reference = np.asarray(ensemble(scan.get_filename()).dataobj)
    assert len(np.unique(reference)) > 1
    for codes in ("LPS", "PIR", "SAL", "IRP"):
        order = nib.orientations.axcodes2ornt(tuple(codes))
        stored = scan.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(scan.affine), order))
        nib.save(stored, tmp_path / f"{codes}.nii.gz")
        labels = ensemble(tmp_path / f"{codes}.nii.gz")
        assert labels.shape == stored.shape
        assert nib.aff2axcodes(labels.affine) == tuple(codes)
        voxels = np.argwhere(np.asarray(labels.dataobj) >= 0)
        world = nib.affines.apply_affine(stored.affine, voxels)
        x, y, z = np.rint(nib.affines.apply_affine(np.linalg.inv(scan.affine), world)).astype(int).T
        assert np.array_equal(np.asarray(labels.dataobj)[tuple(voxels.T)], reference[x, y, z])


def test_results_lie_on_the_grid_of_the_scan_and_are_kept(trained: NnUNetTraining, tmp_path: Path):
    affine = oblique("AIL")
    files = write_scan(tmp_path, "a", 9, affine)
    image = nib.load(files["image"])
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=1)
    nib.save(image, tmp_path / "coded.nii.gz")
    items = [{"case": "a", "image": str(tmp_path / "coded.nii.gz")}]
    (result,) = predict_scans(items, trained.model_dir, tmp_path / "out", BATCHED)
    labels, image = nib.load(result), nib.load(items[0]["image"])
    assert result.name == "a_Label.nii.gz"
    assert labels.get_data_dtype() == np.uint8
    assert labels.shape == image.shape
    assert np.array_equal(labels.affine, image.affine)
    assert [int(labels.header[key]) for key in ("sform_code", "qform_code")] == [2, 1]
    before = result.stat().st_mtime_ns
    predict_scans(items, trained.model_dir, tmp_path / "out", BATCHED)
    assert result.stat().st_mtime_ns == before


def test_one_bad_scan_does_not_cost_the_others(trained: NnUNetTraining, tmp_path: Path):
    (tmp_path / "bad.nii.gz").write_bytes(b"no scan")
    good = write_scan(tmp_path, "good", 1)
    items = [{"case": "bad", "image": str(tmp_path / "bad.nii.gz")}, {"case": "good", "image": good["image"]}]
    with pytest.raises(InputError, match=r"1 of 2 scans.*bad\.nii\.gz"):
        predict_scans(items, trained.model_dir, tmp_path / "out", BATCHED)
    assert [file.name for file in sorted((tmp_path / "out").glob("*.nii.gz"))] == ["good_Label.nii.gz"]


def test_probabilities_of_the_configurations_are_averaged(trained: NnUNetTraining, tmp_path: Path):
    scan = write_scan(tmp_path, "a", 3)["image"]
    both = members_only(trained, tmp_path / "m", ["2d", "3d_fullres"], keep_largest_component_of=[])
    image, properties = NibabelIOWithReorient().read_images([scan])
    total = 0
    for configuration in ("2d", "3d_fullres"):
        stock = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
        stock.initialize_from_trained_model_folder(str(trained.model_dir / configuration), None)
        total = total + stock.predict_single_npy_array(image, dict(properties), None, None, True)[1]
    expected = total.argmax(0)
    ours = np.asarray(Ensemble(both)(scan).dataobj)  # LPS: x and y of the canonical array are reversed
    assert np.array_equal(ours[::-1, ::-1].transpose(2, 1, 0), expected)


def test_selection_agrees_with_nnunet(trained: NnUNetTraining):
    selection = read_json(trained.model_dir / "selection.json")
    assert list(selection["cross_validation"]) == ["2d", "3d_fullres", "2d+3d_fullres"]
    source = next((trained.workspace.results / "ensembles").iterdir())
    assert (
        selection["dice_after_postprocessing"]["mean"]
        == read_json(source / "postprocessed" / "summary.json")["foreground_mean"]["Dice"]
    )
    models = [{"plans": "nnUNetPlans", "configuration": "2d", "trainer": "nnUNetTrainer"}]
    with trained.workspace.active(), pools_on(InlineExecutor()):
        found = find_best_configuration("Dataset001_VSCochlea", models, folds=(0, 1))
    (dice,) = found["all_results"].values()
    assert selection["cross_validation"]["2d"]["mean"] == pytest.approx(dice, abs=1e-6)


def test_a_finished_training_is_not_repeated(trained: NnUNetTraining, items):
    before = {file: file.stat().st_mtime_ns for file in trained.workspace.results.rglob("checkpoint*.pth")}
    assert len(before) == 4
    again = NnUNetTraining(
        items, trained.output_dir, trained.model_dir, members=["2d", "3d_fullres"], plan_changes=CHANGES, **TINY
    )
    assert again.run() == read_json(trained.model_dir / "selection.json")
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_the_models_name_no_file_of_this_machine(trained: NnUNetTraining):
    root = str(trained.output_dir)
    for file in trained.model_dir.rglob("*.json"):
        assert root not in file.read_text()
    for file in trained.model_dir.rglob("*.pth"):
        content = torch.load(file, weights_only=True)
        assert "optimizer_state" not in content
        assert content["trainer_name"] == "nnUNetTrainer"


def test_plans_of_an_earlier_round_are_used_unchanged(trained: NnUNetTraining, items, tmp_path: Path):
    settings = {**TINY, "max_epochs": 1, "iterations_per_epoch": 1, "configurations": ["2d"], "folds": [0]}
    later = NnUNetTraining(items[2:], tmp_path, tmp_path / "m", plans_from=trained.model_dir, **settings)
    later.run()
    first, second = (folder / "2d" / "plans.json" for folder in (trained.model_dir, later.model_dir))
    assert read_json(first) == read_json(second)
    shapes = []
    for model_dir in (trained.model_dir, later.model_dir):
        checkpoint = torch.load(model_dir / "2d" / "fold_0" / "checkpoint_final.pth", weights_only=True)
        shapes.append({key: value.shape for key, value in checkpoint["network_weights"].items()})
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"max_epoch": 3}, "max_epoch"),
        ({"configurations": ["4d"]}, "4d"),
        ({"folds": [2]}, "folds"),
        ({"members": ["3d_lowres"]}, "members"),
    ],
)
def test_unknown_keys_and_names_are_refused(items, tmp_path: Path, wrong: dict[str, object], words: str):
    with pytest.raises(InputError, match=words):
        NnUNetTraining(items, tmp_path, tmp_path / "m", **{"num_folds": 2, **wrong}).run()


def test_other_scans_in_the_same_folder_are_refused(trained: NnUNetTraining, items):
    with pytest.raises(InputError, match="other scans or plans"):
        NnUNetTraining(items[:-1], trained.output_dir, trained.model_dir, plan_changes=CHANGES, **TINY).run()


def test_torchvision_and_timm_are_never_imported(trained: NnUNetTraining):
    assert not {"torchvision", "timm"} & set(sys.modules)


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
def test_workers_end_with_a_killed_parent(tmp_path: Path):
    script = (
        "import json, os, sys, time\n"
        f"sys.path.insert(0, {str(Path(workers.__file__).parent)!r})\n"
        "from workers import process_pool\n"
        "if __name__ == '__main__':\n"
        "    pool = process_pool(1)\n"
        "    print(json.dumps(pool.submit(os.getpid).result()), flush=True)\n"
        "    time.sleep(600)\n"
    )
    (tmp_path / "parent.py").write_text(script)
    parent = subprocess.Popen([sys.executable, tmp_path / "parent.py"], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = json.loads(parent.stdout.readline())
    assert alive(worker)
    os.kill(parent.pid, signal.SIGKILL)
    parent.wait()
    for _ in range(100):
        if not alive(worker):
            break
        time.sleep(0.1)
    assert not alive(worker)
