"""The driver on a small phantom, with bundles whose work is a few lines of this file."""

import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser

from plugins.data import heldout_labels, read_datalist, write_phantom
from plugins.errors import InputError
from plugins.evaluation import evaluate_folder
from plugins.files import read_json, write_json
from plugins.locks import sole_owner
from plugins.segmentation import Locator, LocatorNetwork
from plugins.workflow import RunInference, UdaWorkflow, run_folder, run_stage
from plugins.workflow.driver import _on_truth
from plugins.workflow.segment import final_model
from plugins.workflow.stage import fingerprint
from plugins.workflow.tracking import DriverRun

from ..interruptible import PATIENCE

COMMON = {"bundle_root": ".", "output_dir": None, "device": "cpu", "seed": 0, "num_threads": None, "channels": 64}
NETWORK = {"_target_": "plugins.networks.PatchDiscriminator", "channels": "@channels"}
CONFIGS = {
    "tanq_translation": {
        "train": {
            "dataset_dir": None,
            "ckpt_dir": None,
            "max_epochs": 400,
            "max_minutes": None,
            "resume": True,
            "foreground_probability": None,
            "train": {"dataset": {"data": {"label_dir": None}}, "handlers": []},
        },
        "inference": {"datalist": None, "ckpt_dir": None},
    },
    "vs_cochlea_seg": {
        "train": {
            "datalist": None,
            "model_dir": None,
            "plans_from": None,
            "max_epochs": 1000,
            "locator_dir": None,
            "init_weights": None,
            "num_folds": 2,
            "folds": None,
        },
        "locator": {"datalist": None, "ckpt_dir": None, "window_size": None},
        "inference": {"datalist": None, "model_dir": None, "folds": None, "locate": True, "save_probabilities": False},
        "evaluate": {"pred_dir": None, "label_dir": None},
    },
}
CONFIGS["cyclegan_translation"] = CONFIGS["tanq_translation"]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("data") / "small", num_source=2, num_target=2, num_validation=2)


@pytest.fixture
def bundles(tmp_path):
    for bundle, configs in CONFIGS.items():
        for name, config in configs.items():
            read = {"run": [f"@{key}" for key in COMMON | config], "network_def": NETWORK}
            write_json(tmp_path / "bundles" / bundle / "configs" / f"{name}.json", COMMON | config | read)
        write_json(tmp_path / "bundles" / bundle / "configs" / "cpu.json", {"max_epochs": 2, "channels": 8})
    return tmp_path / "bundles"


def bundle_seed(settings):
    """A second fold that sees things a little differently."""
    return int((settings.get("folds") or [0])[0])


def write_locator(folder, size):
    """A locator that has learnt nothing and finds nothing."""
    folder.mkdir(parents=True)
    locator = Locator(LocatorNetwork([4, 4, 4, 4]), window_size=size, threshold=1.0)
    write_json(folder / "locator.json", locator.description())
    torch.save(locator.network.state_dict(), folder / "locator.pt")


@pytest.fixture
def work(dataset, monkeypatch):
    """What a process of a bundle would leave behind; the names of the stages that ran."""
    ran = []

    def run_command(command, cwd, log, what, stop_file):
        settings = read_json(log.parent / "overrides.json")
        bundle, run_id, folder = Path(cwd).name, command[4], Path(settings["output_dir"])
        ran.append((what.removeprefix("stage "), settings))
        if what == "stage locator":
            write_locator(Path(settings["ckpt_dir"]), settings["window_size"])
        elif run_id == "training":
            write_json(Path(settings.get("model_dir") or settings["ckpt_dir"]) / "model.json", 1)
        elif run_id == "evaluate":
            evaluate_folder(settings["pred_dir"], settings["label_dir"], folder / "metrics.json")
        else:
            for scan in read_datalist(settings["datalist"]):
                if bundle == "vs_cochlea_seg":
                    image = nib.load(scan["image"])
                    label = np.zeros(image.shape, dtype=np.uint8)
                    label[5:9, 5:9, 5:9] = 1
                    label[5 : 9 + bundle_seed(settings), 15:18, 5:9] = 2
                    nib.save(nib.Nifti1Image(label, image.affine), folder / f"{scan['case']}_Label.nii.gz")
                else:
                    shutil.copy(scan["image"], folder / f"{scan['case']}.nii.gz")

    monkeypatch.setattr("plugins.workflow.execution.run_command", run_command)
    return ran


def workflow(bundles, dataset, tmp_path, **settings):
    place = {name: settings.pop(name, value) for name, value in (("runs_dir", tmp_path / "runs"), ("run_suffix", ""))}
    settings = {"dataset_dir": dataset, **settings}
    folder = run_folder(place["runs_dir"], settings.pop("run_name", None), place["run_suffix"], settings["dataset_dir"])
    return UdaWorkflow(tmp_path / "uda", bundles, ThreadPoolExecutor(2), folder, **settings)


def test_a_run_goes_from_the_data_to_the_report_once(bundles, dataset, tmp_path, work, capsys):
    workflow(bundles, dataset, tmp_path).run()
    run = tmp_path / "runs" / "small"
    names = [name for name, _ in work]
    for view in ("tanq", "cyclegan"):
        assert names.index(f"{view}_training") < names.index(f"{view}_translation") < 4
    assert names[4] == "round_0/segmentation"
    assert names.index("round_1/pseudo_labels") < names.index("round_1/segmentation")
    assert set(names) == {
        "tanq_training",
        "cyclegan_training",
        "tanq_translation",
        "cyclegan_translation",
        *(f"round_{r}/{kind}" for r in (0, 1) for kind in ("segmentation", "validation", "evaluation")),
        "round_1/pseudo_labels",
    }
    assert len(names) == len(set(names))
    metrics = read_json(run / "report" / "metrics.json")
    assert set(metrics) == {"round_0", "round_1", "paired_t_test"}
    assert len(metrics["round_1"]["cases"]) == 2
    assert "before self-training" in capsys.readouterr().out
    assert final_model(run) == run / "round_1" / "segmentation" / "models"

    first = read_datalist(run / "round_0" / "datalist" / "datalist.json")
    second = read_datalist(run / "round_1" / "datalist" / "datalist.json")
    assert [item["origin"] for item in first] == ["translated"] * 4
    assert [item["origin"] for item in second] == ["translated"] * 4 + ["real"] * 2
    assert {item["case"] for item in first} == {
        f"{i['patient']}_{view}" for i in first for view in ("tanq", "cyclegan")
    }
    assert all(str(run) in item["image"] for item in first)
    assert all("pseudo_labels" in item["label"] for item in second[4:])
    settings = dict(work)
    assert settings["round_1/segmentation"]["plans_from"] == str(run / "round_0" / "segmentation" / "models")
    assert "plans_from" not in settings["round_0/segmentation"]

    work.clear()
    workflow(bundles, dataset, tmp_path).run()
    assert work == []
    assert "before self-training" in capsys.readouterr().out


def test_more_rounds_and_other_settings_repeat_only_what_depends_on_them(bundles, dataset, tmp_path, work):
    workflow(bundles, dataset, tmp_path, rounds=0).run()
    work.clear()
    workflow(bundles, dataset, tmp_path, rounds=1).run()
    assert {name.split("/")[0] for name, _ in work} == {"round_1"}
    work.clear()
    workflow(bundles, dataset, tmp_path, rounds=0, settings={"cyclegan_translation": {"max_epochs": 7}}).run()
    names = [name for name, _ in work]
    assert names[:2] == ["cyclegan_training", "cyclegan_translation"]
    assert not any("tanq" in name for name in names)


def test_a_scan_that_is_moved_to_another_split_is_listed_there(bundles, dataset, tmp_path):
    data, run = tmp_path / "moved", tmp_path / "runs" / "moved"
    shutil.copytree(dataset, data)

    def list_scans():
        stage = next(s for s in workflow(bundles, data, tmp_path).adaptation().stages() if s.name == "dataset")
        run_stage(stage, run)
        return {
            name: {s["case"] for s in read_datalist(run / f"dataset/{name}.json")} for name in ("target", "validation")
        }

    before = list_scans()
    scan = next(data.rglob("training_target/*_hrT2.nii.gz"))
    scan.rename(next(data.rglob("validation/*_hrT2.nii.gz")).with_name(scan.name))
    case = scan.name.removesuffix("_hrT2.nii.gz")
    assert list_scans() == {"target": before["target"] - {case}, "validation": before["validation"] | {case}}


def test_what_mlflow_shows_tells_runs_apart_that_results_tell_apart(bundles, dataset, tmp_path):
    def shown(data=dataset, **settings):
        driver = workflow(bundles, data, tmp_path, **settings)
        return driver._parameters(driver.adaptation())

    other = tmp_path / "elsewhere" / dataset.name
    shutil.copytree(dataset, other)
    assert shown() != shown(interaction_epochs=2)
    assert shown() != shown(other)


def test_overlays_and_settings_reach_every_config_that_has_them(bundles, dataset, tmp_path):
    adaptation = workflow(
        bundles, dataset, tmp_path, overlays=["cpu.json"], max_epochs=5, settings={"tanq_translation": {"channels": 4}}
    ).adaptation()
    stages = {stage.name: stage for stage in adaptation.stages()}
    assert stages["tanq_training"].config_files == ("train.json", "cpu.json")
    assert stages["tanq_training"].overrides["max_epochs"] == 5
    assert stages["tanq_translation"].config_files == ("inference.json",)
    assert stages["tanq_translation"].overrides["channels"] == 4
    assert stages["cyclegan_translation"].overrides["channels"] == 8
    assert "max_epochs" not in stages["cyclegan_translation"].overrides


@pytest.mark.parametrize(("gpus", "of_cyclegan", "of_segmentation"), [
    (0, "cpu", ["cpu"]), (1, "cuda:0", ["cuda:0"]), (3, "cuda:2", ["cuda:0", "cuda:1", "cuda:2"]),
])  # fmt: skip
def test_the_multi_gpu_overlay_gives_independent_trainings_their_own_gpus(
    dataset, tmp_path, monkeypatch, gpus, of_cyclegan, of_segmentation
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    root = Path(__file__).parents[2] / "bundles" / "vs_cochlea_uda"
    parser = ConfigParser()
    parser.read_config([str(root / "configs" / name) for name in ("train.json", "multi_gpu_train.json")])
    parser.update({"bundle_root": str(root), "dataset_dir": str(dataset), "runs_dir": str(tmp_path)})
    parser.update({"settings::vs_cochlea_seg::num_folds": 2})
    driver = parser.get_parsed_content("train::trainer")
    stages = {stage.name: stage for stage in driver.checked()[1]}
    assert driver.executor._max_workers == 2
    for name in ("cyclegan_training", "cyclegan_translation"):
        assert stages[name].overrides["device"] == f"$torch.device('{of_cyclegan}')"
    assert stages["tanq_training"].overrides["device"] == f"$torch.device('{'cuda' if gpus else 'cpu'}')"
    assert stages["round_0/segmentation"].overrides["devices"] == of_segmentation
    assert fingerprint(stages["cyclegan_training"], {"windows": ""})


def test_a_second_driver_waits_and_touches_neither_stages_nor_tracking(bundles, dataset, tmp_path, work, monkeypatch):
    tracked = []
    enter = DriverRun.__enter__
    monkeypatch.setattr(DriverRun, "__enter__", lambda self: tracked.append(self) or enter(self))
    first = workflow(bundles, dataset, tmp_path, rounds=0)
    said = Queue()
    monkeypatch.setattr("plugins.locks.print", lambda text, **_: said.put(text), raising=False)
    with sole_owner(first.run_dir, "driver"):
        second = threading.Thread(target=first.run)
        second.start()
        assert said.get(timeout=PATIENCE).startswith("another driver is at work")
        assert second.is_alive()
        assert (tracked, work) == ([], [])
    second.join()
    assert len(tracked) == 1
    assert (first.run_dir / "report").is_dir()


def test_inference_takes_the_weights_that_a_bundle_brings(bundles, dataset, tmp_path, monkeypatch):
    given = {}

    def run_command(command, cwd, log, what):
        given.update(read_json(command[command.index("--config_file") + 1].split('"')[3]))
        given["scans"] = read_datalist(given["datalist"])

    monkeypatch.setattr("plugins.workflow.segment.run_command", run_command)
    monkeypatch.chdir(dataset.parent)
    scan = str(next(dataset.rglob("*_hrT2.nii.gz")).relative_to(dataset.parent))
    settings = {
        "output_dir": tmp_path / "out",
        "scans": [{"case": "a", "image": scan}],
        "ckpt_dir": tmp_path / "models",
    }
    inference = RunInference(tmp_path / "uda", bundles, None, **settings)
    with pytest.raises(InputError, match=r"holds no model\. Give the folder of a run"):
        inference.run()
    write_json(tmp_path / "models" / "model.json", 1)
    inference.run()
    assert given["model_dir"] == str(tmp_path / "models")
    assert given["scans"] == [{"case": "a", "image": str(dataset.parent / scan)}]


def test_other_scans_are_segmented_with_the_settings_of_the_run(bundles, dataset, tmp_path, work, monkeypatch):
    own = workflow(bundles, dataset, tmp_path, rounds=0, settings={"vs_cochlea_seg": {"channels": 4}}, num_threads=1)
    own.run()
    given = {}

    def run_command(command, cwd, log, what):
        given.update(read_json(command[command.index("--config_file") + 1].split('"')[3]))

    monkeypatch.setattr("plugins.workflow.segment.run_command", run_command)
    place = {"output_dir": tmp_path / "out", "scans": [], "device": "meta", "seed": 5}
    RunInference(tmp_path / "uda", bundles, own.run_dir, **place).run()
    assert given.pop("datalist").endswith("datalist.json")
    assert given == {
        "channels": 4,
        "model_dir": str(own.run_dir / "round_0" / "segmentation" / "models"),
        "output_dir": str(tmp_path / "out"),
        "device": "$torch.device('meta')",
        "seed": 5,
    }
    with pytest.raises(InputError, match=r"run_dir is .*small and ckpt_dir is .*models\. Give one of them"):
        RunInference(tmp_path / "uda", bundles, own.run_dir, **place, ckpt_dir=tmp_path / "models").run()
    (own.run_dir / "round_0" / "validation" / "overrides.json").unlink()
    with pytest.raises(InputError, match=r"overrides.json is missing"):
        RunInference(tmp_path / "uda", bundles, own.run_dir, **place).run()


def test_untranslated_scans_need_no_translator(bundles, dataset, tmp_path, work):
    workflow(bundles, dataset, tmp_path, views=["ceT1"], rounds=0, run_suffix="_source_only").run()
    run = tmp_path / "runs" / "small_source_only"
    assert [name.split("/")[0] for name, _ in work] == ["round_0"] * 3
    items = read_datalist(run / "round_0" / "datalist" / "datalist.json")
    assert all(item["image"].endswith("_ceT1.nii.gz") for item in items)
    assert 'id="translations"' not in (run / "report" / "index.html").read_text()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"views": ["tank"]}, "views has no 'tank'. Did you mean 'tanq'"),
        ({"views": []}, "at least one view"),
        ({"settings": {"tanq_translaton": {}}}, "Did you mean 'tanq_translation'"),
        ({"settings": {"tanq_translation": {"max_epoch": 1}}}, "Did you mean 'max_epochs'"),
        (
            {"settings": {"vs_cochlea_seg": {"max_epochs": "many"}}},
            r"vs_cochlea_seg \(train.json\): max_epochs is 'many'",
        ),
        ({"settings": {"cyclegan_translation": {"channels": 0}}}, "channels is 0. It must be more than 0"),
        ({"settings": {"tanq_translation": 3}}, "dictionary of dictionaries"),
        ({"overlays": ["cpus.json"]}, "Did you mean 'cpu.json'"),
        ({"rounds": -1}, "rounds"),
        ({"gate": {"min_vot": 0.6}}, "gate, the thresholds of the pseudo-labels, is .*min_vot"),
        ({"gate": {"min_vote": 6}}, "min_vote must be from 0 to 1"),
        ({"gate": {"top_share": None}}, "gate, the thresholds"),
        ({"gate": 0.5}, "gate, the thresholds of the pseudo-labels, is 0.5"),
        ({"gate": "x"}, "is 'x'"),
        ({"views": ["labelled_hrT2"], "rounds": 1}, "a bound without self-training, but rounds is 1. Set rounds to 0"),
        ({"run_name": "a/b"}, "plain folder name"),
        ({"run_name": ".."}, "plain folder name"),
        ({"dataset_dir": "nowhere"}, "nowhere"),
    ],
)
def test_wrong_settings_are_refused_before_anything_is_made(bundles, dataset, tmp_path, work, settings, message):
    with pytest.raises(InputError, match=message):
        workflow(bundles, dataset, tmp_path, **settings).run()
    assert work == []
    assert not (tmp_path / "runs").exists()


def crops(bundles, size, spacing):
    file = bundles / "tanq_translation" / "configs" / "train.json"
    config = read_json(file)
    run = [*config["run"], "@crop_size", "@spacing"]
    write_json(file, {**config, "crop_size": size, "spacing": spacing, "run": run})


def test_a_crop_that_would_cut_a_label_is_refused_before_anything_is_made(bundles, dataset, tmp_path, work):
    crops(bundles, [256, 20], [0.41, 0.41, 1.5])
    words = r"tanq_translation: crop_size is \[256, 20\], but the structures of .* need \[\d+, \d+\] voxels"
    with pytest.raises(InputError, match=words):
        workflow(bundles, dataset, tmp_path).run()
    assert work == []


@pytest.mark.parametrize("spacing", [None, [None, None, 1.5], [0.41, 0.41, 1.5], "$[0.4] * 3"])
def test_a_crop_that_holds_all_labels_passes(bundles, dataset, tmp_path, work, spacing):
    crops(bundles, [256, 256], spacing)
    workflow(bundles, dataset, tmp_path, rounds=0, views="tanq").run()
    assert work != []


@pytest.mark.parametrize(
    ("name", "split", "place"),
    [
        ("truth_dir", "validation", "heldout/training_target_labels"),
        ("target_truth_dir", "target", "heldout/validation_labels"),
        ("source_truth_dir", "source", "crossmoda2022_training/training_target"),
    ],
)
def test_a_folder_with_the_truth_of_other_scans_is_refused(bundles, dataset, tmp_path, work, name, split, place):
    with pytest.raises(InputError, match=f"{place} has nothing of a {split} scan. Give another {name}"):
        workflow(bundles, dataset, tmp_path, **{name: dataset / place}).run()
    assert work == []


def test_runs_do_not_land_in_the_data_set(bundles, dataset, tmp_path):
    with pytest.raises(InputError, match="overlap"):
        workflow(bundles, dataset, tmp_path, runs_dir=dataset.parent).run()


def test_a_bad_scan_is_refused_before_any_training(bundles, dataset, tmp_path, work):
    data = tmp_path / "data"
    shutil.copytree(dataset, data)
    scan = next(data.glob("crossmoda2022_training/training_target/*_hrT2.nii.gz"))
    scan.write_bytes(scan.read_bytes()[:2000])
    with pytest.raises(InputError, match=scan.name):
        workflow(bundles, data, tmp_path).run()
    assert work == []


def test_without_references_the_run_ends_with_label_maps(bundles, dataset, tmp_path, work, capsys):
    data = tmp_path / "data"
    shutil.copytree(dataset, data, ignore=shutil.ignore_patterns("heldout"))
    workflow(bundles, data, tmp_path, rounds=0).run()
    out = capsys.readouterr().out
    assert "no reference label maps" in out
    assert len(list((tmp_path / "runs" / "data" / "round_0" / "validation").glob("*_Label.nii.gz"))) == 2
    work.clear()
    truth = tmp_path / "truth"
    truth.mkdir()
    for path in heldout_labels(dataset, "validation").values():
        shutil.copy(path, truth)
    workflow(bundles, data, tmp_path, rounds=0, truth_dir=truth).run()
    assert [name for name, _ in work] == ["round_0/evaluation"]
    assert "validation scans have a reference label map" not in capsys.readouterr().out
    next(truth.iterdir()).unlink()
    workflow(bundles, data, tmp_path, rounds=0, truth_dir=truth).run()
    assert "1 of 2 validation scans have a reference label map; metrics are of these" in capsys.readouterr().out


def test_too_few_references_of_target_scans_for_an_audit_are_told(bundles, dataset, tmp_path):
    data, truth = tmp_path / "data", tmp_path / "truth"
    shutil.copytree(dataset, data, ignore=shutil.ignore_patterns("heldout"))
    truth.mkdir()
    for path in heldout_labels(dataset, "training_target").values():
        shutil.copy(path, truth)
    settings = {"rounds": 1, "gate": {}, "target_truth_dir": truth}

    def planned(**changes):
        plan = workflow(bundles, data, tmp_path, **{**settings, **changes}).adaptation()
        return _on_truth(plan), any(stage.name.endswith("/audit") for stage in plan.stages())

    assert planned() == ([], True)
    next(truth.iterdir()).unlink()
    told = "1 of 2 target scans have a reference label map, so pseudo-labels are not audited"
    assert planned() == ([told], False)
    assert planned(gate=None) == ([], False)


BEYOND = {
    "window": [40.0, 40.0, 20.0],
    "views": ["redrawn", "tanq"],
    "translate": "redrawn",
    "weigh_views": True,
    "gate": {"min_agreement": 0.0, "min_plausibility": 0.0},
    "continue_rounds": True,
}


def test_everything_but_the_last_segmentation_works_on_windows(bundles, dataset, tmp_path, work):
    workflow(bundles, dataset, tmp_path, **BEYOND).run()
    run, settings = tmp_path / "runs" / "small", dict(work)
    windows = read_json(run / "windows" / "windows.json")
    shapes = {}
    for item in read_datalist(run / "windows" / "source.json"):
        assert nib.load(item["image"]).shape == nib.load(item["label"]).shape
        shapes[item["case"]] = nib.load(item["image"]).shape
        whole = next(dataset.rglob(f"{item['case']}_Label.nii.gz"))
        assert (nib.load(item["label"]).get_fdata() > 0).sum() == (nib.load(whole).get_fdata() > 0).sum()
        assert windows[item["case"]]["found"] == "label"
    assert settings["locator"]["window_size"] == BEYOND["window"]
    assert settings["tanq_training"]["dataset_dir"].endswith("redrawn_dataset")
    items = read_datalist(run / "round_1" / "datalist" / "datalist.json")
    for item in items:
        assert nib.load(item["image"]).shape == nib.load(item["label"]).shape
        if item["origin"] == "translated":
            assert nib.load(item["image"]).shape == shapes[item["patient"]]
    for stage in ("round_0/target", "round_0/target_fold_1", "round_1/target"):
        assert settings[stage]["locate"] is False
        assert "windows" in settings[stage]["datalist"]
    assert "locate" not in settings["round_0/validation"]
    assert "dataset" in settings["round_0/validation"]["datalist"]
    assert settings["round_0/segmentation"]["locator_dir"] == str(run / "locator" / "models")
    assert settings["round_0/target_fold_1"]["folds"] == [1]
    check_audit(run, dataset)


def check_audit(run, dataset):
    """The audit compares what was judged with the whole truth of each scan, as its window shows it."""
    audit, gate = read_json(run / "round_1/audit/audit.json"), read_json(run / "round_1/pseudo_labels/gate.json")
    assert [row["case"] for row in audit["cases"]] == [row["case"] for row in gate["cases"]]
    for row in audit["cases"]:
        name = f"{row['case']}_Label.nii.gz"
        whole = next((dataset / "heldout").rglob(name))
        found, truth, all_truth = (
            np.asarray(nib.load(file).dataobj) == 1
            for file in (run / "round_0" / "target" / name, run / "target_truth" / name, whole)
        )
        assert truth.shape == found.shape
        assert truth.sum() == all_truth.sum() > 0
        assert row["dice"]["VS"] == pytest.approx(2 * (found & truth).sum() / (found.sum() + truth.sum()))


def test_a_gated_round_goes_on_from_weights_and_hands_over_what_was_accepted(bundles, dataset, tmp_path, work, capsys):
    workflow(bundles, dataset, tmp_path, **BEYOND).run()
    run, settings = tmp_path / "runs" / "small", dict(work)
    assert settings["round_1/segmentation"]["init_weights"] == str(run / "round_0" / "segmentation" / "models")
    gate = read_json(run / "round_1" / "pseudo_labels" / "gate.json")
    kept = {row["case"]: row["weight"] for row in gate["cases"] if row["kept"]}
    real = [i for i in read_datalist(run / "round_1" / "datalist" / "datalist.json") if i["origin"] == "real"]
    assert {item["case"]: item.get("weight", 1.0) for item in real} == kept
    decision = read_json(run / "round_1" / "acceptance" / "accepted.json")
    assert decision["model"] == "round_1"
    assert final_model(run) == run / "round_1" / "segmentation" / "models"
    assert "accepted, nothing falls" in " ".join(capsys.readouterr().out.split())

    work.clear()
    workflow(bundles, dataset, tmp_path, **BEYOND).run()
    assert work == []


def test_the_model_of_a_run_is_that_of_its_report_whatever_else_lies_there(bundles, dataset, tmp_path, work):
    run = tmp_path / "runs" / "small"
    with pytest.raises(InputError, match=r"has no report of a complete run\. Complete the run by its command, or give"):
        final_model(run)
    workflow(bundles, dataset, tmp_path).run()
    report = read_json(run / "report" / "report.json")
    assert (report["model"], report["target_made_by"]) == ("round_1", "before self-training")
    assert len(report["target_cases"]) == 2
    assert report["views"]["real hrT2"]["histograms"]
    settings = {stage["name"]: stage["settings"] for stage in report["stages"]}
    assert settings["round_1/pseudo_labels"]["output_dir"].endswith("round_1/pseudo_labels.partial")
    workflow(bundles, dataset, tmp_path, rounds=0).run()
    assert (run / "round_1" / "segmentation" / "stage.json").is_file()
    assert final_model(run) == run / "round_0" / "segmentation" / "models"
    report = read_json(run / "report" / "report.json")
    assert "round_0/segmentation" in {stage["name"] for stage in report["stages"]}
    assert not [stage["name"] for stage in report["stages"] if stage["name"].startswith("round_1/")]
    record = run / "round_0" / "segmentation" / "stage.json"
    write_json(run / "round_0" / "segmentation.partial" / "stage.json", {**read_json(record), "fingerprint": "1" * 64})
    assert final_model(run) == record.parent / "models"
    write_json(record, {**read_json(record), "fingerprint": "0" * 64})
    with pytest.raises(InputError, match=r"round_0/segmentation is not the one that the report is of\. Complete"):
        final_model(run)


def test_the_second_round_takes_the_labels_of_the_accepted_model(bundles, dataset, tmp_path, work):
    adaptation = workflow(bundles, dataset, tmp_path, **BEYOND, rounds=2).adaptation()
    stage = {stage.name: stage for stage in adaptation.stages()}["round_2/pseudo_labels"]
    assert set(stage.overrides["models"]) == {"round_0", "round_1"}
    assert stage.overrides["accepted"] == "{run}/round_1/acceptance/accepted.json"
    assert "round_1/acceptance" in stage.needs


@pytest.mark.parametrize("window", [None, [40.0, 40.0, 20.0]])
def test_the_bounds_train_on_the_truth_in_the_same_window(bundles, dataset, tmp_path, work, window):
    bounds = {"true_hrT2": "translated", "labelled_hrT2": "real"}
    for view, origin in bounds.items():
        workflow(bundles, dataset, tmp_path, views=[view], rounds=0, window=window, run_suffix=view).run()
        items = read_datalist(tmp_path / "runs" / f"small{view}" / "round_0" / "datalist" / "datalist.json")
        assert [item["origin"] for item in items] == [origin] * 2
        for item in items:
            assert nib.load(item["image"]).shape == nib.load(item["label"]).shape
            assert (nib.load(item["label"]).get_fdata() > 0).any()


@pytest.mark.parametrize(("settings", "message"), [
    ({"views": ["labelled_hrT2", "tanq"]}, "Give it alone"),
    ({"translate": "redrwan"}, "Did you mean 'redrawn'"),
    ({"views": ["ceT1"], "calibrated": True}, "calibrated is true, but views is .*Name a translator among them"),
    ({"rounds": 0, "last_round_on_target": True}, "last_round_on_target is true, but rounds is 0"),
    ({"views": ["cyclegan"], "interaction": True}, "interaction is true, but views is .*Name 'tanq' among them"),
    ({"rounds": 0, "interaction": True}, "interaction is true, but rounds is 0. Set rounds to 1 or more"),
    (
        {"last_round_on_target": True, "rounds": 1, "gate": {"keep_share": 0.5},
         "settings": {"vs_cochlea_seg": {"num_folds": 2}}},
        "num_folds is 2, but the last round may have 1 of 2 target scans only. Set keep_share of the gate to 1 or more",
    ),
    ({"last_round_on_target": True, "interaction": True}, "rounds is 1. Set rounds to 2 or more"),
    ({"settings": {"tanq_translation": {"resume": False}}, "interaction": True}, "With interaction it must be true"),
    ({"settings": {"tanq_translation": {"channels": object()}}}, "::channels holds an object .* overlays"),
])  # fmt: skip
def test_views_that_do_not_go_together_are_refused(bundles, dataset, tmp_path, work, settings, message):
    with pytest.raises(InputError, match=message):
        workflow(bundles, dataset, tmp_path, **settings).run()


def test_a_bound_without_truth_is_refused(bundles, dataset, tmp_path, work):
    data = tmp_path / "data"
    shutil.copytree(dataset, data, ignore=shutil.ignore_patterns("heldout"))
    with pytest.raises(InputError, match="no truth for it"):
        workflow(bundles, data, tmp_path, views=["true_hrT2"]).run()


@pytest.mark.parametrize("given", [{"num_threads": 4}, {"seed": 7}, {"device": "cuda:1"}])
def test_what_is_given_to_the_driver_wins_over_the_overlays_in_every_stage(bundles, dataset, tmp_path, given):
    overlay = {"num_threads": 1, "seed": 1, "device": "$torch.device('cpu')", "channels": 8}
    for bundle in CONFIGS:
        write_json(bundles / bundle / "configs" / "cpu.json", overlay)
    stages = workflow(bundles, dataset, tmp_path, **BEYOND, overlays=["cpu.json"], **given).adaptation().stages()
    ours = [stage for stage in stages if stage.bundle]
    assert {stage.run_id for stage in ours} == {"training", "inference", "evaluate"}
    ((name, value),) = given.items()
    for stage in ours:
        assert str(value) in str(stage.overrides[name]), stage.name


def test_every_stage_gets_the_seed_of_the_run_and_functions_that_draw_too(bundles, dataset, tmp_path):
    stages = workflow(bundles, dataset, tmp_path, **BEYOND, seed=7).adaptation().stages()
    drawing = {"windows", "redrawn", "redrawn_dataset"}
    assert drawing < {stage.name for stage in stages}
    seeded = {stage.name: stage.overrides["seed"] for stage in stages if "seed" in stage.overrides}
    assert {stage.name for stage in stages if stage.bundle} | drawing <= seeded.keys()
    assert set(seeded.values()) == {7}


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"vs_cochlea_seg": {"num_folds": 50}}, "num_folds is 50, but there are 2 patients. Give at most 2"),
        ({"vs_cochlea_seg": {"output_dir": "x"}}, "settings::vs_cochlea_seg::output_dir is given by the driver itself"),
        ({"vs_cochlea_seg": {"datalist": "x"}}, "settings::vs_cochlea_seg::datalist is given by the driver itself"),
        ({"tanq_translation": {"dataset_dir": "x"}}, "settings::tanq_translation::dataset_dir is given by the driver"),
    ],
)
def test_settings_that_no_stage_could_follow_are_refused_at_the_start(
    bundles, dataset, tmp_path, work, settings, words
):
    with pytest.raises(InputError, match=words):
        workflow(bundles, dataset, tmp_path, settings=settings).run()
    assert work == []


def test_the_last_round_may_train_on_real_scans_alone(bundles, dataset, tmp_path, work):
    settings = {"views": ["tanq"], "rounds": 2, "last_round_on_target": True}
    workflow(bundles, dataset, tmp_path, **settings).run()
    run = tmp_path / "runs" / "small"
    lists = [read_datalist(run / f"round_{number}" / "datalist" / "datalist.json") for number in range(3)]
    assert [[item["origin"] for item in items] for items in lists] == [
        ["translated"] * 2,
        ["translated"] * 2 + ["real"] * 2,
        ["real"] * 2,
    ]
    assert lists[2] == [
        {**item, "label": item["label"].replace("round_1", "round_2")} for item in lists[1] if item["origin"] == "real"
    ]
    work.clear()
    workflow(bundles, dataset, tmp_path, **{**settings, "last_round_on_target": False}).run()
    assert {name.split("/")[0] for name, _ in work} == {"round_2"}


@pytest.mark.parametrize("gate", [None, {"keep_share": 1.0}])
def test_the_last_round_on_real_scans_waits_for_no_view(bundles, dataset, tmp_path, gate):
    settings = {**BEYOND, "gate": gate, "last_round_on_target": True}
    stages = {s.name: s for s in workflow(bundles, dataset, tmp_path, **settings).adaptation().stages()}
    last, first = stages["round_1/datalist"], stages["round_0/datalist"]
    assert last.needs == ("windows", "round_1/pseudo_labels")
    assert last.overrides["views"] == {}
    assert "weights" not in last.overrides
    assert {"redrawn", "tanq_translation", "view_weights"} <= {*first.needs}


INTERACTING = {**BEYOND, "views": ["redrawn", "tanq", "cyclegan"], "interaction": True, "rounds": 2}


def planned(bundles, dataset, tmp_path, **settings):
    stages = workflow(bundles, dataset, tmp_path, **settings).adaptation().stages()
    return {stage.name: stage for stage in stages}


def test_tanq_is_trained_on_with_each_rounds_pseudo_labels_and_its_new_images_are_learnt_from(
    bundles, dataset, tmp_path
):
    stages = planned(bundles, dataset, tmp_path, **INTERACTING)
    before = "tanq_training"
    for name in ("round_1", "round_2"):
        assert stages[f"{name}/regions"].needs == (f"{name}/pseudo_labels",)
        training = stages[f"{name}/tanq_training"]
        assert training.needs == ("redrawn_dataset", f"{name}/regions", before)
        assert training.overrides["train::dataset::data::label_dir"] == f"{{run}}/{name}/regions"
        (handler,) = training.overrides["+train::handlers"]
        assert handler["path"] == f"{{run}}/{before}/models/resume.pt"
        translation = stages[f"{name}/tanq_translation"]
        assert translation.needs == ("redrawn_dataset", f"{name}/tanq_training")
        assert translation.overrides["ckpt_dir"] == f"{{run}}/{name}/tanq_training/models"
        views = {"redrawn": "redrawn", "tanq": f"{name}/tanq_translation", "cyclegan": "cyclegan_translation"}
        views = {view: f"{{run}}/{folder}" for view, folder in views.items()}
        for reader in (f"{name}/view_weights", f"{name}/datalist"):
            assert stages[reader].overrides["views"] == views
            assert f"{name}/tanq_translation" in stages[reader].needs
        assert stages[f"{name}/datalist"].overrides["weights"] == f"{{run}}/{name}/view_weights/views.json"
        before = f"{name}/tanq_training"
    assert not [name for name in stages if "/cyclegan" in name]
    off = planned(bundles, dataset, tmp_path, **{**INTERACTING, "interaction": False})
    new = {"regions", "tanq_training", "tanq_translation", "view_weights"}
    assert stages.keys() - off.keys() == {f"round_{number}/{stage}" for number in (1, 2) for stage in new}
    first = [name for name in off if not name.startswith(("round_1", "round_2", "report"))]
    assert [stages[name] for name in first] == [off[name] for name in first]


def test_new_images_are_calibrated_and_a_last_round_without_views_needs_none(bundles, dataset, tmp_path):
    settings = {**INTERACTING, "gate": {"keep_share": 1.0}, "calibrated": True, "last_round_on_target": True}
    stages = planned(bundles, dataset, tmp_path, **settings)
    assert stages["round_1/tanq_calibrated"].needs == ("windows", "round_1/tanq_translation")
    assert stages["round_1/datalist"].overrides["views"]["tanq"] == "{run}/round_1/tanq_calibrated"
    assert not [name for name in stages if name.startswith("round_2/tanq") or name == "round_2/regions"]
    assert stages["report"].overrides["translations"]["tanq"] == "{run}/round_1/tanq_calibrated"


@pytest.mark.parametrize(
    ("settings", "epochs", "share", "minutes"),
    [
        ({}, 40, 0.5, None),
        ({"interaction_epochs": 7}, 7, 0.5, None),
        ({"max_epochs": 3}, 3, 0.5, None),
        ({"overlays": ["cpu.json"]}, 2, 0.5, None),
        ({"settings": {"tanq_translation": {"foreground_probability": 0.9, "max_minutes": 60}}}, 40, 0.9, None),
    ],
)
def test_tanq_is_trained_on_for_few_epochs_on_slices_with_targets(
    bundles, dataset, tmp_path, settings, epochs, share, minutes
):
    given = planned(bundles, dataset, tmp_path, **INTERACTING, **settings)["round_1/tanq_training"].overrides
    assert given["max_epochs"] == epochs
    assert given["foreground_probability"] == share
    assert given.get("max_minutes") == minutes


def test_a_run_with_interaction_goes_in_order_and_takes_its_pseudo_labels_as_regions(bundles, dataset, tmp_path, work):
    settings = {"views": ["tanq"], "gate": {**BEYOND["gate"], "near_mm": 5.0}, "interaction": True}
    workflow(bundles, dataset, tmp_path, **settings).run()
    run, names = tmp_path / "runs" / "small", [name for name, _ in work]
    order = ["tanq_training", "round_0/target", "round_1/tanq_training", "round_1/tanq_translation"]
    assert [name for name in names if name in order] == order
    assert names.index("round_1/tanq_translation") < names.index("round_1/segmentation")
    gated, regions = (sorted((run / "round_1" / each).glob("*_Label.nii.gz")) for each in ("pseudo_labels", "regions"))
    assert [file.name for file in gated] == [file.name for file in regions] != []
    for before, after in zip(gated, regions, strict=True):
        a, b = (np.asarray(nib.load(file).dataobj) for file in (before, after))
        assert np.array_equal(b, np.where(a == 3, 0, a))
        assert b.any()
    items = read_datalist(run / "round_1" / "datalist" / "datalist.json")
    images = [item["image"] for item in items if item["origin"] == "translated"]
    assert images
    assert all("round_1/tanq_translation" in image for image in images)


def needed_by(stages, name):
    """The names of all stages that a stage waits for, however far."""
    by_name, found, todo = {stage.name: stage for stage in stages}, set(), [name]
    while todo:
        new = {*by_name[todo.pop()].needs} - found
        found |= new
        todo += new
    return found


def is_audit(name):
    return name == "target_truth" or name.endswith("/audit")


def test_nothing_but_audits_and_the_report_depends_on_the_truth_of_the_targets(bundles, dataset, tmp_path):
    stages = workflow(bundles, dataset, tmp_path, **BEYOND, rounds=2).adaptation().stages()
    audits = {stage.name for stage in stages if is_audit(stage.name)}
    assert audits == {"target_truth", "round_1/audit", "round_2/audit"}
    for stage in stages:
        if stage.name not in audits | {"report"}:
            assert not needed_by(stages, stage.name) & audits
            assert "heldout/training_target" not in str(stage)
    assert needed_by(stages, "report") >= audits


def test_without_truth_or_gate_nothing_is_audited_and_all_other_stages_are_the_same(bundles, dataset, tmp_path):
    data = tmp_path / "data" / "small"
    shutil.copytree(dataset, data, ignore=shutil.ignore_patterns("heldout"))
    truth = {"truth_dir": dataset / "heldout" / "validation_labels"}
    marks = []
    for folder in (dataset, data):
        stages = workflow(bundles, folder, tmp_path, **BEYOND, **truth).adaptation().stages()
        marks.append({stage.name: stage.needs for stage in stages})
    with_truth, without = marks
    assert {name for name in with_truth if is_audit(name)}
    with_truth["report"] = tuple(name for name in with_truth["report"] if not is_audit(name))
    assert without == {name: needs for name, needs in with_truth.items() if not is_audit(name)}
    stages = workflow(bundles, dataset, tmp_path, **{**BEYOND, "gate": None}).adaptation().stages()
    assert not [stage.name for stage in stages if is_audit(stage.name)]
