import json
import random
import runpy
import shutil
import signal
import sys
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism

import plugins
from plugins import runtime
from plugins.errors import InputError
from plugins.files import write_json

BUNDLE = Path(__file__).parents[1] / "bundles" / "tanq_translation"
RUN = ["/monai/bundle/__main__.py", "run", "--config_file", str(BUNDLE / "configs" / "evaluate.json")]


@pytest.mark.parametrize(
    ("cwd", "options", "told"),
    [
        (None, [], True), (None, ["--bundle_root", "."], False), (None, ["--bundle_root", str(BUNDLE)], False),
        (BUNDLE, [], False),
    ],
)  # fmt: skip
def test_a_run_says_when_the_working_directory_becomes_the_root_of_a_bundle_that_lies_elsewhere(
    tmp_path, monkeypatch, cwd, options, told, caplog
):
    monkeypatch.chdir(cwd or tmp_path)
    monkeypatch.setattr("sys.argv", [*RUN, *options])
    monkeypatch.setattr(runtime, "show_input_errors_as_sentences", lambda *arguments: None)
    runtime.start(seed=None)
    assert (f"Add --bundle_root {BUNDLE}" in caplog.text) == told


@pytest.mark.parametrize("version", [plugins.__version__, "9.9.9"])
def test_an_exported_bundle_does_not_run_with_another_version_of_the_code(tmp_path, monkeypatch, version):
    bundle = tmp_path / "bundle"
    shutil.copytree(BUNDLE, bundle)
    (bundle / "plugins").mkdir()
    (bundle / "plugins" / "VENDORED").write_text(f"{version} 0123\n")
    monkeypatch.setattr("sys.argv", [*RUN[:2], "--config_file", str(bundle / "configs" / "evaluate.json")])
    monkeypatch.setattr(runtime, "show_input_errors_as_sentences", lambda *arguments: None)
    refused = pytest.raises(InputError, match=rf"brings version 9.9.9 of its code, but {plugins.__version__} was found")
    with nullcontext() if version == plugins.__version__ else refused:
        runtime.start(seed=None)


START = {"_target_": "plugins.runtime.start", "seed": "@seed", "num_threads": "@num_threads"}


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("run#1", "run#1"), ("a b#2/it's#d", "a b#2/it's#d"), ("/data/a#b", "/data/a#b"),
        ("null", None), ("None", None),
    ],
)  # fmt: skip
def test_names_with_a_hash_and_null_reach_the_run_as_they_are_given(tmp_path, monkeypatch, capsys, given, meant):
    shown = "$print('seen', json.dumps([@output_dir, @seed, @beside::file]))"
    config = {
        "imports": ["$import json"],
        "output_dir": "out",
        "seed": 3,
        "num_threads": 1,
        "beside": {"file": "of a config#1"},
        "run": [shown],
    }
    write_json(tmp_path / "train.json", {**config, "initialize": [START]})
    command = ["-m", "run", "--config_file", str(tmp_path / "train.json")]
    monkeypatch.setattr("sys.argv", [*command, "--output_dir", given, "--seed", "null"])
    monkeypatch.setattr(runtime, "show_input_errors_as_sentences", lambda *arguments: None)
    monkeypatch.setattr(runtime, "obey", lambda: None)
    runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
    seen = [line for line in capsys.readouterr().out.splitlines() if line.startswith("seen")]
    assert seen == [f"seen {json.dumps([meant, None, 'of a config#1'])}"]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"misspelt": 1}, "misspelt has no effect, as nothing reads it"),
        ({"max_epoch": 3}, "max_epoch has no effect, as nothing reads it. Did you mean 'max_epochs'"),
        ({"train::trainer::max_epoch": 3}, "takes no 'max_epoch'. Did you mean 'max_epochs'"),
        ({"train::trainer::accumulation_steps": 4}, "takes no 'accumulation_steps'"),
        ({"run_id": "traning"}, "the config has no 'traning'. Did you mean 'training'"),
    ],
)
@pytest.mark.parametrize("bundle", ["tanq_translation", "cyclegan_translation"])
def test_a_misspelt_setting_is_refused_from_python_too(tmp_path, bundle, settings, words):
    root = BUNDLE.with_name(bundle)
    files = [str(root / "configs" / name) for name in ("train.json", "cpu.json")]
    with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
        ConfigWorkflow(files, workflow_type="train", bundle_root=str(tmp_path), **settings).initialize()
    assert words in str(caught.value.__cause__ or caught.value)


@pytest.mark.parametrize("name", ["train.json", "inference.json"])
def test_right_settings_pass_from_python(tmp_path, name):
    files = [str(BUNDLE / "configs" / each) for each in (name, "cpu.json")]
    workflow = ConfigWorkflow(files, workflow_type=name.removesuffix(".json"), bundle_root=str(tmp_path), seed=1)
    workflow.initialize()


def test_objects_from_python_pass(tmp_path):
    files = [str(BUNDLE / "configs" / name) for name in ("train.json", "cpu.json")]
    settings = {"device": torch.device("cpu"), "network": torch.nn.Identity(), "train::handlers": [object()]}
    ConfigWorkflow(files, workflow_type="train", bundle_root=str(tmp_path), **settings).initialize()


@pytest.fixture
def started(monkeypatch):
    """A start from Python; what it sets for the whole process is set back."""
    monkeypatch.setattr("sys.argv", ["python"])
    threads = torch.get_num_threads()
    torch.set_flush_denormal(False)
    yield runtime.start
    torch.set_num_threads(threads)
    torch.set_flush_denormal(False)


def test_denormal_numbers_count_as_zero_once_a_run_has_started(started):
    tiny = torch.full((8,), 1e-39)
    assert (tiny * 0.5).sum() > 0
    started(seed=None)
    assert (tiny * 0.5).sum() == 0


def draws():
    return random.random(), np.random.rand(), torch.rand(1).item()


def test_a_start_seeds_python_numpy_and_torch(started):
    started(5)
    first = draws()
    assert all(a != b for a, b in zip(first, draws(), strict=True))
    started(5)
    assert draws() == first
    started(6)
    assert all(a != b for a, b in zip(first, draws(), strict=True))


def test_a_start_without_a_seed_leaves_the_generators(started):
    set_determinism(5)
    expected = draws(), draws()
    set_determinism(5)
    first = draws()
    started(None)
    assert (first, draws()) == expected


def test_a_start_from_python_leaves_the_hooks_of_the_process_alone(started):
    known = sys.excepthook, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    started()
    assert known == (sys.excepthook, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))


def test_each_process_on_gpus_takes_its_own_for_all_that_names_none(monkeypatch):
    taken = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "set_device", taken.append)
    monkeypatch.setattr(torch.distributed, "get_node_local_rank", lambda otherwise: 1)
    monkeypatch.setattr(torch.distributed, "init_process_group", lambda backend: taken.append(backend))
    runtime.join_processes()
    assert taken == ["nccl", torch.device("cuda", 1)]
