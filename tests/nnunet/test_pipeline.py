import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue
from typing import Any

import highdicom
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from nnunetv2.evaluation.find_best_configuration import find_best_configuration
from nnunetv2.imageio.nibabel_reader_writer import NibabelIOWithReorient
from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor, predict_entry_point_modelfolder

from plugins.errors import InputError
from plugins.files import read_json, write_json
from plugins.locks import sole_owner
from plugins.nnunet import InlineExecutor, NnUNetTraining, pipeline, selection, workers
from plugins.nnunet.processes import pools_on
from plugins.segmentation import Locator, LocatorNetwork, SaveLocator, read_model
from plugins.store import content_of

from ..dicom_series import write_series
from ..interruptible import PATIENCE, start
from .conftest import CHANGES, TINY, oblique, segment, write_scan


def stock(folder: Path, scan: str, folds: tuple[int, ...] | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Label map and probabilities by nnU-Net, in its own axes; with sums in float32, where its own are float16."""
    predictor = nnUNetPredictor(device=torch.device("cpu"), allow_tqdm=False)
    predictor.initialize_from_trained_model_folder(str(folder), folds)
    image, properties = NibabelIOWithReorient().read_images([scan])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "half", torch.float32)
        labels, probabilities = predictor.predict_single_npy_array(image, properties, None, None, True)
    return labels, probabilities


def uses(trained: NnUNetTraining, folder: Path, members_of: dict[str, list[str]], **changes: Any) -> Path:
    """The trained networks with other members; all of them have both."""
    folder.mkdir()
    (folder / "model.pt").symlink_to(trained.model_dir / "model.pt")
    write_json(
        folder / "model.json", {**read_json(trained.model_dir / "model.json"), **changes, "members_of": members_of}
    )
    return folder


def only(trained: NnUNetTraining, folder: Path, member: str, **changes: Any) -> Path:
    """One configuration of the trained networks."""
    model = read_json(trained.model_dir / "model.json")
    folder.mkdir()
    kept = {"2d": "folds_2d", "3d_fullres": "folds_3d"}[member]
    weights = torch.load(trained.model_dir / "model.pt", weights_only=True)
    torch.save({key: value for key, value in weights.items() if key.startswith(kept)}, folder / "model.pt")
    members = {member: model["members"][member]}
    content = {**model, "members": members, "members_of": {"VS": [member], "cochlea": [member]}, **changes}
    write_json(folder / "model.json", content)
    return folder


def in_nnunet_axes(file: Path) -> np.ndarray:
    labels, _ = NibabelIOWithReorient().read_seg(str(file))
    return labels[0].astype(np.uint8)


def result_folder(trained: NnUNetTraining, configuration: str) -> Path:
    return trained.workspace.configuration(configuration)


@pytest.mark.parametrize("configuration", ["2d", "3d_fullres"])
@pytest.mark.parametrize("codes", ["LPS", "PIR"])
def test_the_bundle_predicts_what_nnunet_does(trained: NnUNetTraining, tmp_path: Path, configuration: str, codes: str):
    scan = write_scan(tmp_path, "a", 7, oblique(codes, degrees=5, spacing=(1.2, 1.0, 1.7)))["image"]
    expected, _ = stock(result_folder(trained, configuration), scan)
    model_dir = only(trained, tmp_path / "m", configuration, keep_largest_component_of=[])
    for batch_size in (1, 5):
        (file,) = segment(model_dir, {"a": scan}, tmp_path / f"{batch_size}", sw_batch_size=batch_size).values()
        labels = in_nnunet_axes(file)
        assert np.array_equal(labels, expected)
        assert len(np.unique(labels)) == 3


def test_probabilities_of_the_configurations_are_averaged(trained: NnUNetTraining, tmp_path: Path):
    scan = write_scan(tmp_path, "a", 3)["image"]
    both = ["2d", "3d_fullres"]
    model_dir = uses(trained, tmp_path / "m", {"VS": both, "cochlea": both}, keep_largest_component_of=[])
    (file,) = segment(model_dir, {"a": scan}, tmp_path / "out", save_probabilities=True).values()
    total = sum(stock(result_folder(trained, name), scan)[1] for name in both) / 2
    ours = np.asarray(nib.load(tmp_path / "out" / "a_Probabilities.nii.gz").dataobj)
    np.testing.assert_allclose(ours[::-1, ::-1].transpose(3, 2, 1, 0), total, atol=1e-5)
    assert np.array_equal(in_nnunet_axes(file), total.argmax(0))


def test_a_zero_border_is_left_out_as_nnunet_does(trained: NnUNetTraining, tmp_path: Path):
    file = write_scan(tmp_path, "a", 4)["image"]
    scan = nib.load(file)
    voxels = scan.get_fdata()
    voxels[:3], voxels[:, -2:], voxels[10, 10, 5] = 0, 0, 0
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), scan.affine), file)
    model_dir = only(trained, tmp_path / "m", "3d_fullres", keep_largest_component_of=[])
    (result,) = segment(model_dir, {"a": file}, tmp_path / "out", save_probabilities=True).values()
    expected, probabilities = stock(result_folder(trained, "3d_fullres"), file)
    assert np.array_equal(in_nnunet_axes(result), expected)
    ours = np.asarray(nib.load(tmp_path / "out" / "a_Probabilities.nii.gz").dataobj)
    assert np.all(ours[:3] == [1, 0, 0])
    np.testing.assert_allclose(ours.sum(-1), 1, atol=1e-5)
    np.testing.assert_allclose(ours[::-1, ::-1].transpose(3, 2, 1, 0), probabilities, atol=1e-5)


def test_structures_may_have_members_of_their_own(trained: NnUNetTraining, tmp_path: Path):
    scan = write_scan(tmp_path, "a", 5)["image"]
    sets = {"VS": ["2d"], "cochlea": ["3d_fullres"]}
    model_dir = uses(trained, tmp_path / "m", sets, keep_largest_component_of=[])
    (file,) = segment(model_dir, {"a": scan}, tmp_path / "out").values()
    two, three = (stock(result_folder(trained, name), scan)[1] for name in ("2d", "3d_fullres"))
    expected = np.stack([(two[0] + three[0]) / 2, two[1], three[2]]).argmax(0)
    assert np.array_equal(in_nnunet_axes(file), expected)


def test_some_of_the_folds_can_be_used(trained: NnUNetTraining, tmp_path: Path):
    scan = write_scan(tmp_path, "a", 6)["image"]
    model_dir = only(trained, tmp_path / "m", "2d", keep_largest_component_of=[])
    (file,) = segment(model_dir, {"a": scan}, tmp_path / "out", folds=[1]).values()
    assert np.array_equal(in_nnunet_axes(file), stock(result_folder(trained, "2d"), scan, (1,))[0])
    with pytest.raises(InputError, match=r"folds is \[2\]"):
        read_model(model_dir, [2])


def test_a_scan_is_labelled_alike_however_it_is_stored(trained: NnUNetTraining, tmp_path: Path):
    scan = nib.load(write_scan(tmp_path, "a", 8, oblique("RAS", degrees=10))["image"])
    files: dict[str, str | Path] = {"RAS": scan.get_filename()}
    for codes in ("LPS", "PIR", "SAL", "IRP"):
        order = nib.orientations.axcodes2ornt(tuple(codes))
        stored = scan.as_reoriented(nib.orientations.ornt_transform(nib.io_orientation(scan.affine), order))
        files[codes] = tmp_path / f"{codes}.nii.gz"
        nib.save(stored, files[codes])
    results = {codes: nib.load(file) for codes, file in segment(trained.model_dir, files, tmp_path / "out").items()}
    reference = np.asarray(results["RAS"].dataobj)
    assert len(np.unique(reference)) > 1
    for codes, labels in results.items():
        assert labels.shape == nib.load(files[codes]).shape
        assert nib.aff2axcodes(labels.affine) == tuple(codes)
        voxels = np.argwhere(np.asarray(labels.dataobj) >= 0)
        world = nib.affines.apply_affine(labels.affine, voxels)
        x, y, z = np.rint(nib.affines.apply_affine(np.linalg.inv(scan.affine), world)).astype(int).T
        assert np.array_equal(np.asarray(labels.dataobj)[tuple(voxels.T)], reference[x, y, z])


def test_results_lie_on_the_grid_of_the_scan_and_are_kept(trained: NnUNetTraining, tmp_path: Path):
    affine = oblique("AIL")
    files = write_scan(tmp_path, "a", 9, affine)
    image = nib.load(files["image"])
    image.set_sform(affine, code=2)
    image.set_qform(affine, code=1)
    nib.save(image, tmp_path / "coded.nii.gz")
    scans = {"a": tmp_path / "coded.nii.gz"}
    (result,) = segment(trained.model_dir, scans, tmp_path / "out").values()
    labels, image = nib.load(result), nib.load(scans["a"])
    assert result.name == "a_Label.nii.gz"
    assert labels.get_data_dtype() == np.uint8
    assert labels.shape == image.shape
    assert np.array_equal(labels.affine, image.affine)
    assert [int(labels.header[key]) for key in ("sform_code", "qform_code")] == [2, 1]
    before = result.stat().st_mtime_ns
    segment(trained.model_dir, scans, tmp_path / "out")
    assert result.stat().st_mtime_ns == before
    segment(trained.model_dir, scans, tmp_path / "out", test_time_mirroring=False)
    assert result.stat().st_mtime_ns > before


def test_a_label_map_of_another_scan_of_that_name_is_made_again(trained: NnUNetTraining, tmp_path: Path):
    for number, folder in enumerate(("first", "second")):
        (tmp_path / folder).mkdir()
        write_scan(tmp_path / folder, "a", 40 + number)
    maps = []
    for folder in ("second", "first"):
        os.utime(tmp_path / folder / "a_hrT2.nii.gz", (0, 0))  # older than any label map
        scans: dict[str, str | Path] = {"a": tmp_path / folder / "a_hrT2.nii.gz"}
        (file,) = segment(trained.model_dir, scans, tmp_path / "out").values()
        maps.append(np.asarray(nib.load(file).dataobj))
    assert not np.array_equal(*maps)


def test_a_series_gets_a_label_map_and_a_segmentation(trained: NnUNetTraining, tmp_path: Path):
    file = write_scan(tmp_path, "a", 41)["image"]
    image = nib.load(file)
    voxels = np.rint(image.get_fdata() * 4).clip(0).astype(np.uint16)
    nib.save(nib.Nifti1Image(voxels.astype(np.float32), image.affine), file)
    series = write_series(tmp_path / "a_series", voxels, image.affine)
    results = segment(trained.model_dir, {"a": file, "s": series}, tmp_path / "out")
    ours, expected = (nib.load(results[case]) for case in ("s", "a"))
    assert len(np.unique(np.asarray(ours.dataobj))) == 3
    places = [
        np.round(nib.affines.apply_affine(i.affine, np.argwhere(np.asarray(i.dataobj) == 1)), 2)
        for i in (ours, expected)
    ]
    assert {*map(tuple, places[0] + 0.0)} == {*map(tuple, places[1] + 0.0)}
    assert highdicom.seg.segread(tmp_path / "out" / "s_Label.dcm").segment_numbers == [1, 2]


def test_volumes_are_listed(trained: NnUNetTraining, tmp_path: Path):
    scans: dict[str, str | Path] = {case: write_scan(tmp_path, case, 20, oblique())["image"] for case in ("a", "b")}
    results = segment(trained.model_dir, scans, tmp_path / "out")
    labels = nib.load(results["a"])
    mm3 = {n: 1.0 * 1.1 * 2.0 * np.sum(np.asarray(labels.dataobj) == v) for n, v in (("VS", 1), ("cochlea", 2))}
    volumes = read_json(tmp_path / "out" / "volumes.json")
    assert volumes["unit"] == "mm3"
    assert volumes["cases"]["a"] == pytest.approx(mm3, abs=1e-3)
    head, *rows = (tmp_path / "out" / "volumes.csv").read_text().splitlines()
    assert head == "case,VS_mm3,cochlea_mm3"
    assert [row.split(",")[0] for row in rows] == ["a", "b"]


def test_one_bad_scan_does_not_cost_the_others(trained: NnUNetTraining, tmp_path: Path):
    (tmp_path / "bad.nii.gz").write_bytes(b"no scan")
    scans: dict[str, str | Path] = {"bad": tmp_path / "bad.nii.gz", "good": write_scan(tmp_path, "good", 1)["image"]}
    with pytest.raises(InputError, match=r"1 of 2 scans.*bad\.nii\.gz"):
        segment(trained.model_dir, scans, tmp_path / "out")
    assert [file.name for file in sorted((tmp_path / "out").glob("*.nii.gz"))] == ["good_Label.nii.gz"]
    assert list(read_json(tmp_path / "out" / "volumes.json")["cases"]) == ["good"]
    (tmp_path / "out" / "good_Label.nii.gz").write_bytes(b"damaged")
    with pytest.raises(InputError, match=r"bad\.nii\.gz.*good_Label\.nii\.gz"):
        segment(trained.model_dir, {"bad": tmp_path / "bad.nii.gz"}, tmp_path / "out")


def test_members_may_be_chosen_for_each_structure(trained: NnUNetTraining):
    dice = {"2d": {"VS": 0.8, "cochlea": 0.3, "mean": 0.55}, "3d_fullres": {"VS": 0.5, "cochlea": 0.4, "mean": 0.45}}
    order = ["2d", "3d_fullres"]
    assert selection._chosen(None, ["2d"], dice, order) == {"VS": ["2d"], "cochlea": ["3d_fullres"]}
    assert selection._chosen(None, ["2d"], None, order) == {"VS": ["2d"], "cochlea": ["2d"]}
    given = {"VS": ["3d_fullres"], "cochlea": ["3d_fullres", "2d"]}
    assert selection._chosen(given, ["2d"], dice, order) == {"VS": ["3d_fullres"], "cochlea": order}
    assert selection._chosen(order, ["2d"], None, order[::-1])["VS"] == order[::-1]


def test_structures_with_members_of_their_own_are_validated_together(trained: NnUNetTraining, items, tmp_path: Path):
    settings = {**TINY, "max_epochs": 1, "iterations_per_epoch": 3, "plan_changes": CHANGES}
    members = {"VS": ["2d"], "cochlea": ["3d_fullres", "2d"]}
    settings["configurations"] = ["3d_fullres", "2d"]
    training = NnUNetTraining(items[:8], tmp_path, tmp_path / "m", members=members, **settings)
    training.run()
    model = read_json(tmp_path / "m" / "model.json")
    assert model["members_of"] == members
    results = model["results"]
    assert set(results["dice_after_postprocessing"]) == {"VS", "cochlea", "mean"}
    assert len([*(training.workspace.results / "ensembles" / "by_structure").glob("*.nii.gz")]) == 8


@pytest.mark.parametrize("preset", ["ResEncM"])
def test_a_preset_with_residual_encoders_is_trained_and_predicts_what_nnunet_does(items, tmp_path: Path, preset: str):
    changes = {"2d": {**CHANGES["2d"], "n_conv_per_stage": 1}}
    settings = {**TINY, "configurations": ["2d"], "folds": [0], "max_epochs": 1, "iterations_per_epoch": 3}
    training = NnUNetTraining(items, tmp_path / "t", tmp_path / "m", planner=preset, plan_changes=changes, **settings)
    training.run()
    scan = write_scan(tmp_path, "a", 30)["image"]
    model = read_json(tmp_path / "m" / "model.json")
    assert model["members"]["2d"]["architecture"] == "ResidualEncoderUNet"
    write_json(tmp_path / "m" / "model.json", {**model, "keep_largest_component_of": []})
    (file,) = segment(tmp_path / "m", {"a": scan}, tmp_path / "out").values()
    assert np.array_equal(in_nnunet_axes(file), stock(result_folder(training, "2d"), scan)[0])


def test_nnunets_own_command_predicts_from_the_results(trained: NnUNetTraining, tmp_path: Path):
    (tmp_path / "in").mkdir()
    scan = write_scan(tmp_path, "a", 31)["image"]
    shutil.copyfile(scan, tmp_path / "in" / "a_0000.nii.gz")
    folder = result_folder(trained, "2d")
    arguments = [
        "-i",
        tmp_path / "in",
        "-o",
        tmp_path / "out",
        "-m",
        folder,
        "-device",
        "cpu",
        "-npp",
        "1",
        "-nps",
        "1",
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["nnUNetv2_predict_from_modelfolder", *map(str, arguments), "-f", "0", "1"])
        patch.setattr(torch, "set_num_threads", lambda number: None)
        predict_entry_point_modelfolder()
    model_dir = only(trained, tmp_path / "m", "2d", keep_largest_component_of=[])
    (ours,) = segment(model_dir, {"a": scan}, tmp_path / "ours").values()
    theirs = nib.load(tmp_path / "out" / "a.nii.gz")
    assert (np.asarray(nib.load(ours).dataobj) != np.asarray(theirs.dataobj)).mean() < 1e-3  # float16 sums


def test_selection_agrees_with_nnunet(trained: NnUNetTraining):
    results = read_json(trained.model_dir / "model.json")["results"]
    assert list(results["cross_validation"]) == ["2d", "3d_fullres", "2d+3d_fullres"]
    source = next((trained.workspace.results / "ensembles").iterdir())
    assert (
        results["dice_after_postprocessing"]["mean"]
        == read_json(source / "postprocessed" / "summary.json")["foreground_mean"]["Dice"]
    )
    models = [{"plans": "nnUNetPlans", "configuration": "2d", "trainer": "nnUNetTrainer"}]
    with trained.workspace.active(), pools_on(InlineExecutor()):
        found = find_best_configuration("Dataset001_VSCochlea", models, folds=(0, 1))
    (dice,) = found["all_results"].values()
    assert results["cross_validation"]["2d"]["mean"] == pytest.approx(dice, abs=1e-6)


def test_a_finished_training_is_not_repeated(trained: NnUNetTraining, items):
    before = {file: file.stat().st_mtime_ns for file in trained.workspace.results.rglob("checkpoint*.pth")}
    assert len(before) == 4
    again = NnUNetTraining(
        items, trained.output_dir, trained.model_dir, members=["2d", "3d_fullres"], plan_changes=CHANGES, **TINY
    )
    model = read_json(trained.model_dir / "model.json")
    assert {key: model[key] for key in again.run()} == again.run()
    assert {file: file.stat().st_mtime_ns for file in before} == before


def test_a_longer_training_gives_its_own_weights_even_if_the_scores_stay(
    items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    selection: dict[str, Any] = {"results": {}}
    longer = NnUNetTraining(items, tmp_path / "out", tmp_path / "models", **{**TINY, "max_epochs": 9})
    write_json(longer.model_dir / "model.json", selection)  # of the shorter one
    (longer.model_dir / "model.pt").touch()
    exported: list[Path] = []
    monkeypatch.setattr(pipeline, "select", lambda *args: selection)
    monkeypatch.setattr(pipeline, "export", lambda workspace, selection, folder: exported.append(folder))
    monkeypatch.setattr(pipeline, "drop_probabilities", lambda *args: None)
    for name in ("_prepare", "_train"):
        monkeypatch.setattr(NnUNetTraining, name, lambda *args: None)
    for _ in range(2):
        longer.run()
    assert exported == [longer.model_dir]


def written_locator(folder: Path, channels: tuple[int, ...] = (2, 2, 2, 2)) -> Path:
    engine = Engine(lambda engine, batch: None)
    SaveLocator(Locator(LocatorNetwork(channels)), folder).attach(engine)
    engine.run([0], max_epochs=1)
    return folder


def test_a_locator_is_that_of_the_training_from_its_beginning(trained: NnUNetTraining, items, tmp_path: Path):
    settings = {"members": ["2d", "3d_fullres"], "plan_changes": CHANGES, **TINY}
    with pytest.raises(InputError, match=r"holds no locator\.pt"):
        NnUNetTraining(items, trained.output_dir, tmp_path / "models", locator=tmp_path, **settings).run()
    locator, another = written_locator(tmp_path / "locator"), written_locator(tmp_path / "another", (2, 2, 2, 4))
    with pytest.raises(InputError, match=r"holds a training of .*another locator"):
        NnUNetTraining(items, trained.output_dir, tmp_path / "models", locator=locator, **settings).run()
    assert not (tmp_path / "models").exists()

    output = tmp_path / "output"
    shutil.copytree(trained.output_dir, output)
    begun = output / "nnunet" / "prepared.json"
    contents = [content_of(locator / name) for name in ("locator.pt", "locator.json")]
    write_json(begun, {**read_json(begun), "locator": contents})
    for given in (None, another):
        with pytest.raises(InputError, match=r"holds a training of .*another locator"):
            NnUNetTraining(items, output, tmp_path / "models", locator=given, **settings).run()


def test_the_locator_goes_along_with_the_model(trained: NnUNetTraining, items, tmp_path: Path):
    settings = {"members": ["2d", "3d_fullres"], "plan_changes": CHANGES, **TINY}
    models, output, locator = tmp_path / "models", tmp_path / "output", written_locator(tmp_path / "locator")
    shutil.copytree(trained.output_dir, output)
    begun = output / "nnunet" / "prepared.json"
    written = read_json(begun)
    del written["locator"]  # as earlier versions left it
    write_json(begun, written)
    for _ in range(2):  # also into a folder that has the model already
        NnUNetTraining(items, output, models, locator=locator, **settings).run()
        for name in ("locator.pt", "locator.json"):
            assert (models / name).read_bytes() == (locator / name).read_bytes()
        assert (models / "model.pt").is_file()
        locator_of_another = models / "locator.pt"
        with pytest.raises(InputError, match=r"locator\.pt would cut .*as locator_dir if it cut the scans"):
            NnUNetTraining(items, output, models, **settings).run()
        assert locator_of_another.read_bytes() == (locator / "locator.pt").read_bytes()
        NnUNetTraining(items, output, models, locator=models, **settings).run()
        locator_of_another.unlink()


def test_plans_that_changed_in_place_are_refused(trained: NnUNetTraining, items, tmp_path: Path):
    folder = tmp_path / "plans"
    folder.mkdir()
    for name in ("nnUNetPlans.json", "dataset_fingerprint.json"):
        shutil.copyfile(trained.model_dir / name, folder / name)
    settings = {**TINY, "plan_changes": None, "plans_from": folder}
    NnUNetTraining(items, tmp_path / "out", tmp_path / "models", **settings)._prepare()
    NnUNetTraining(items, tmp_path / "out", tmp_path / "models", **settings)._prepare()
    plans = read_json(folder / "nnUNetPlans.json")
    plans["configurations"]["2d"]["patch_size"] = [32, 32]
    write_json(folder / "nnUNetPlans.json", plans)
    with pytest.raises(InputError, match="holds a training of other scans, plans"):
        NnUNetTraining(items, tmp_path / "out", tmp_path / "models", **settings)._prepare()


def test_without_anatomy_none_stays_of_an_earlier_export(trained: NnUNetTraining, items, tmp_path: Path):
    settings = {"members": ["2d", "3d_fullres"], "plan_changes": CHANGES, **TINY}
    models, output = tmp_path / "models", tmp_path / "output"
    shutil.copytree(trained.output_dir, output)
    for anatomy in ({}, None):
        NnUNetTraining(items, output, models, anatomy=anatomy, **settings).run()
        assert (read_json(models / "model.json").get("anatomy") is None) == (anatomy is None)


def test_a_second_training_in_the_same_folder_waits_and_then_finds_all_done(
    trained: NnUNetTraining, monkeypatch: pytest.MonkeyPatch
):
    said: Queue[str] = Queue()
    monkeypatch.setattr("plugins.locks.print", lambda text, **_: said.put(text), raising=False)
    with sole_owner(trained.output_dir, "training"):
        second = threading.Thread(target=trained.run)
        second.start()
        assert said.get(timeout=PATIENCE).startswith("another training is at work")
        assert second.is_alive()
    second.join(timeout=PATIENCE)
    assert not second.is_alive()


def test_the_models_name_no_file_of_this_machine(trained: NnUNetTraining):
    root = str(trained.output_dir)
    for file in trained.model_dir.rglob("*.json"):
        assert root not in file.read_text()
    weights = torch.load(trained.model_dir / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in weights.values())


def test_plans_of_an_earlier_round_are_used_unchanged(trained: NnUNetTraining, items, tmp_path: Path):
    settings = {**TINY, "max_epochs": 1, "iterations_per_epoch": 1, "configurations": ["2d"], "folds": [0]}
    later = NnUNetTraining(items[2:], tmp_path, tmp_path / "m", plans_from=trained.model_dir, **settings)
    later.run()
    first, second = (folder / "nnUNetPlans.json" for folder in (trained.model_dir, later.model_dir))
    assert read_json(first) == read_json(second)
    shapes = []
    for model_dir in (trained.model_dir, later.model_dir):
        weights = torch.load(model_dir / "model.pt", weights_only=True)
        shapes.append({key: value.shape for key, value in weights.items() if key.startswith("folds_2d.fold_0")})
    assert shapes[0]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("wrong", "words"),
    [({"configurations": ["4d"]}, "4d"), ({"folds": [2]}, "folds"), ({"members": ["3d_lowres"]}, "members")],
)
def test_unknown_names_are_refused(items, tmp_path: Path, wrong: dict[str, object], words: str):
    with pytest.raises(InputError, match=words):
        NnUNetTraining(items, tmp_path, tmp_path / "m", **{"num_folds": 2, **wrong}).run()


@pytest.mark.parametrize("name", ["nnUNetPlans.json", "dataset_fingerprint.json"])
@pytest.mark.parametrize("content", ["{oops", "{}", "3"])
def test_broken_plans_of_an_earlier_round_are_refused(trained, items, tmp_path: Path, name: str, content: str):
    shutil.copytree(trained.model_dir, tmp_path / "old")
    (tmp_path / "old" / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name} is (no plan of nnU-Net's|damaged)"):
        NnUNetTraining(items, tmp_path, tmp_path / "m", plans_from=tmp_path / "old", **TINY).run()


def test_other_scans_in_the_same_folder_are_refused(trained: NnUNetTraining, items):
    with pytest.raises(InputError, match="other scans, plans, settings"):
        NnUNetTraining(items[:-1], trained.output_dir, trained.model_dir, plan_changes=CHANGES, **TINY).run()
    settings = {**TINY, "initial_lr": 0.02}
    with pytest.raises(InputError, match="other scans, plans, settings"):
        NnUNetTraining(items, trained.output_dir, trained.model_dir, plan_changes=CHANGES, **settings).run()


def test_the_first_failure_of_a_training_ends_all(items, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    started = []

    def fail(workspace: object, name: str, fold: int, *args: object, **kwargs: object) -> None:
        started.append((name, fold))
        raise RuntimeError("no memory")

    monkeypatch.setattr(pipeline, "train_fold", fail)
    with pytest.raises(RuntimeError, match="no memory"):
        NnUNetTraining(items, tmp_path, tmp_path / "m", plan_changes=CHANGES, **TINY).run()
    assert len(started) == 1


@pytest.mark.parametrize(("devices", "at_a_time"), [(["cpu", "meta"], 1), (None, 4)])
def test_each_device_trains_one_network_at_a_time(
    trained: NnUNetTraining, monkeypatch: pytest.MonkeyPatch, devices: list[str] | None, at_a_time: int
):
    together = threading.Barrier(at_a_time * len(devices or ["cpu"]))
    busy: Counter[str] = Counter()
    most: Counter[str] = Counter()
    lock = threading.Lock()

    def train(workspace: object, name: str, fold: int, settings: Any, *args: object, **kwargs: object) -> None:
        with lock:
            busy[settings.device] += 1
            most[settings.device] = max(most[settings.device], busy[settings.device])
        together.wait(PATIENCE)  # until as many are at work as shall be
        with lock:
            busy[settings.device] -= 1

    monkeypatch.setattr(pipeline, "train_fold", train)
    monkeypatch.setattr(pipeline, "is_done", lambda *args: False)
    jobs = [(name, fold) for fold in (0, 1) for name in ("2d", "3d_fullres")]
    with ThreadPoolExecutor(4) as executor:
        monkeypatch.setattr(trained, "executor", executor)
        monkeypatch.setattr(trained, "devices", devices)
        trained._train(jobs)
    assert set(most) == {*(devices or ["cpu"])}
    assert set(most.values()) == {at_a_time}


def test_nothing_needs_torchvision_or_timm(trained: NnUNetTraining, tmp_path: Path):
    scan = write_scan(tmp_path, "a", 3)["image"]
    script = f"""
import importlib, pkgutil, sys
sys.modules.update(torchvision=None, timm=None)
import plugins
for module in pkgutil.walk_packages(plugins.__path__, "plugins."):
    importlib.import_module(module.name)
from tests.nnunet.conftest import segment
from pathlib import Path
segment(Path({str(trained.model_dir)!r}), {{"a": {scan!r}}}, Path({str(tmp_path / "out")!r}))
"""
    subprocess.run([sys.executable, "-c", script], check=True, cwd=Path(__file__).parents[2])
    assert (tmp_path / "out" / "a_Label.nii.gz").is_file()


@pytest.mark.parametrize("end", ["failure", "ctrl-c"])
def test_a_failure_or_ctrl_c_ends_what_is_at_work_and_begins_nothing(tmp_path: Path, end: str):
    script = (
        "import sys, time\n"
        "from concurrent.futures import wait\n"
        "from pathlib import Path\n"
        "folder = Path(sys.argv[1])\n"
        "def job(index):\n"
        "    (folder / str(index)).touch()\n"
        "    time.sleep(600)\n"
        "if __name__ == '__main__':\n"
        "    from plugins.nnunet import NnUNetTraining, process_pool\n"
        "    class Training(NnUNetTraining):\n"
        "        def _check(self): ...\n"
        "        def _run(self):\n"
        "            jobs = [self.executor.submit(job, index) for index in range(4)]\n"
        "            while len(list(folder.glob('[0-9]'))) < 2: time.sleep(0.1)\n"
        "            print('at work', flush=True)\n"
        "            if sys.argv[2] == 'failure': raise RuntimeError('no memory')\n"
        "            wait(jobs)\n"
        "    Training([], folder, folder, executor=process_pool(2)).run()\n"
    )
    (tmp_path / "parent.py").write_text(script)
    command = [sys.executable, tmp_path / "parent.py", tmp_path, end]
    parent = start(command)
    assert parent.stdout is not None
    assert parent.stdout.readline() == "at work\n"
    if end == "ctrl-c":
        os.killpg(parent.pid, signal.SIGINT)
    _, said = parent.communicate(timeout=PATIENCE)
    assert {"failure": "no memory", "ctrl-c": "KeyboardInterrupt"}[end] in said
    assert sorted(path.name for path in tmp_path.glob("[0-9]")) == ["0", "1"]
    ended = threading.Event()
    for _ in range(100):
        try:
            os.killpg(parent.pid, 0)
        except ProcessLookupError:
            ended.set()
            break
        time.sleep(0.1)
    assert ended.is_set()


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
    os.kill(worker, 0)
    parent.kill()
    rest, _ = parent.communicate(timeout=PATIENCE)  # the pipe ends when nobody is left who could write to it
    assert rest == ""
