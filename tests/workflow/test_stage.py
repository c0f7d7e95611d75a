"""Fingerprints: what changes them and what does not."""

import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from plugins.errors import InputError
from plugins.files import write_json
from plugins.workflow import Stage, fingerprint
from plugins.workflow.stage import fill_in


@pytest.fixture
def stage(tmp_path):
    config = {"text": "a", "device": "cpu", "num_workers": 4, "loader": {"num_workers": 4, "batch_size": 2}}
    write_json(tmp_path / "bundle" / "configs" / "train.json", config)
    (tmp_path / "scan.nii").write_bytes(b"scan")
    return Stage(
        name="training",
        needs=("dataset",),
        bundle=str(tmp_path / "bundle"),
        overrides={"output_dir": "{stage}", "text": "b", "device": "cpu", "num_threads": 1},
        inputs=(str(tmp_path / "scan.nii"),),
    )


def edit(stage, **changes):
    config = {"text": "a", "device": "cpu", "num_workers": 4, "loader": {"num_workers": 4, "batch_size": 2}}
    write_json(stage.config_paths[0], config | changes)


def test_results_depend_on_settings_inputs_needs_and_version(stage, monkeypatch):
    needed = {"dataset": "0"}
    marks = [fingerprint(stage, needed), fingerprint(stage, {"dataset": "1"})]
    marks.append(fingerprint(replace(stage, overrides={**stage.overrides, "text": "c"}), needed))
    marks.append(fingerprint(replace(stage, run_id="inference"), needed))
    edit(stage, loader={"num_workers": 4, "batch_size": 3})
    marks.append(fingerprint(stage, needed))
    edit(stage)
    os.utime(stage.inputs[0], ns=(1, 1))  # a time tells nothing
    assert fingerprint(stage, needed) == marks[0]
    Path(stage.inputs[0]).write_text("other content")
    marks.append(fingerprint(stage, needed))
    monkeypatch.setattr("plugins.__version__", "99")
    marks.append(fingerprint(stage, needed))
    assert len(set(marks)) == len(marks)


def test_results_do_not_depend_on_device_threads_workers_and_order(stage):
    needed = {"dataset": "0", "other": "1"}
    mark = fingerprint(stage, needed)
    edit(stage, device="cuda", num_workers=0, loader={"batch_size": 2, "num_workers": 0})
    overrides = {"loader::num_workers": 3, "num_threads": 8, "device": "cuda", "text": "b", "output_dir": "{stage}"}
    overrides |= {"devices": ["cuda:0", "cuda:1"], "executor::max_workers": 4}
    assert fingerprint(replace(stage, overrides=overrides), {"other": "2", "dataset": "0"}) == mark


def test_results_do_not_depend_on_where_things_lie(stage, tmp_path):
    mark = fingerprint(stage, {"dataset": "0"})
    shutil.copytree(tmp_path / "bundle", tmp_path / "elsewhere" / "bundle")
    assert fingerprint(replace(stage, bundle=str(tmp_path / "elsewhere" / "bundle")), {"dataset": "0"}) == mark


def test_missing_inputs_and_configs_are_named(stage, tmp_path):
    with pytest.raises(InputError, match=r"gone\.nii"):
        fingerprint(replace(stage, inputs=(str(tmp_path / "gone.nii"),)), {"dataset": "0"})
    with pytest.raises(InputError, match=r"gone\.json"):
        fingerprint(replace(stage, config_files=("gone.json",)), {"dataset": "0"})
    with pytest.raises(InputError, match="no JSON"):
        fingerprint(replace(stage, overrides={"text": object()}), {"dataset": "0"})


def test_folders_are_filled_in_at_any_depth_and_nowhere_else():
    value = {"a": ["{run}/x", {"b": "{stage}"}], "c": "{running}", "d": 3, "e": "{stage}s/x"}
    expected = {"a": ["R/x", {"b": "S"}], "c": "{running}", "d": 3, "e": "{stage}s/x"}
    assert fill_in(value, "S", "R") == expected


def test_a_stage_is_a_bundle_or_a_function():
    with pytest.raises(ValueError, match="either"):
        Stage(name="x")


def test_files_of_one_name_keep_their_order_and_others_need_none(tmp_path):
    for folder, name in (("target", "a"), ("validation", "a"), ("target", "b")):
        (tmp_path / folder).mkdir(exist_ok=True)
        (tmp_path / folder / name).write_text(folder + name)
    target, validation, other = (str(tmp_path / path) for path in ("target/a", "validation/a", "target/b"))
    mark = [fingerprint(Stage("dataset", function="f", inputs=files), {}) for files in (
        (target, validation, other), (other, target, validation), (validation, target, other))]  # fmt: skip
    assert mark[0] == mark[1] != mark[2]
