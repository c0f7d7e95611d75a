"""Faulty configs are refused before anything is built, in one sentence with the key and the nearest right name."""

from pathlib import Path

import pytest

from plugins.errors import InputError
from plugins.options import merged
from plugins.preflight import check_config, component_fault

ROOT = Path(__file__).parents[1] / "bundles"
CONFIGS = sorted(path for name in ("train", "inference", "evaluate") for path in ROOT.glob(f"*/configs/{name}.json"))
OVERLAYS = sorted(
    path
    for path in ROOT.glob("*/configs/*.json")
    if path not in CONFIGS and path.name not in ("metadata.json",) and path.parent.parent.name != "vs_cochlea_uda"
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_the_bundles_own_configs_pass(path):
    check_config(merged([path]), merged([path]), path.name)


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_the_bundles_overlays_pass(overlay):
    train = overlay.with_name("train.json")
    check_config(merged([train, overlay]), merged([train]), train.name)


GOOD = {
    "bundle_root": ".",
    "max_epochs": 3,
    "learning_rate": 0.1,
    "dataset_dir": None,
    "device": "cpu",
    "amp": False,
    "spacing": [1.0, 2.0],
    "network_def": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1},
    "optimizer": {"_target_": "torch.optim.Adam", "params": "$@network_def.parameters()", "lr": "@learning_rate"},
    "train": {"trainer": {"_target_": "dict", "max_epochs": "@max_epochs", "amp": "@amp", "optimizer": "@optimizer"}},
    "preprocessing": {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing"},
    "run": ["$@train::trainer", "$@preprocessing"],
}


def faulty(**changes):
    parsed = {}
    for key, value in {**GOOD, **changes}.items():
        parsed[key] = value
    return parsed


def test_a_good_config_passes():
    check_config(GOOD, GOOD, "train.json")
    check_config(faulty(learning_rate=1, max_epochs="$1 + 1", dataset_dir="."), GOOD, "train.json")


FAULTS = {
    "a reference to nothing": (
        {"run": ["$@train::trainr"]},
        "run::0 refers to @train::trainr, which is not there: did you mean 'train::trainer'",
    ),
    "a foreign class": (
        {"optimizer": {"_target_": "torch.optim.Adamm", "params": [], "lr": "@learning_rate"}},
        "optimizer: there is no torch.optim.Adamm: did you mean 'torch.optim.Adam'",
    ),
    "a misspelt short name": (
        {"preprocessing": {"_target_": "Spacing_d", "keys": "image", "pixdim": "@spacing"}},
        "preprocessing: there is no Spacing_d: did you mean 'Spacingd'",
    ),
    "a misspelt argument": (
        {"network_def": {"_target_": "torch.nn.Linear", "in_feature": 2, "out_features": 1}},
        "network_def: .*did you mean 'in_features'",
    ),
    "a missing argument": ({"network_def": {"_target_": "torch.nn.Linear", "in_features": 2}}, "out_features"),
    "a class that is none": ({"network_def": {"_target_": "torch.nn.functional"}}, "torch.nn.functional is no class"),
    "a target that is no name": ({"network_def": {"_target_": 3}}, "_target_ is 3"),
    "a word for a number": ({"max_epochs": "many"}, "max_epochs is 'many': give a whole number, such as 3"),
    "half an epoch": ({"max_epochs": 2.5}, "max_epochs is 2.5: give a whole number"),
    "a number for a switch": ({"amp": 1}, "amp is 1: give True or False"),
    "a switch for a number": ({"learning_rate": True}, "learning_rate is True: give a number"),
    "a number for a list": ({"spacing": 1.5}, "spacing is 1.5: give a list"),
    "no epoch": ({"max_epochs": 0}, "max_epochs is 0: it must be more than 0"),
    "a negative spacing": ({"spacing": [1.0, -2.0]}, "it must be more than 0"),
    "an infinite rate": ({"learning_rate": float("inf")}, "give a finite number"),
    "a missing folder": ({"dataset_dir": "/nowhere/data"}, "dataset_dir is '/nowhere/data', which does not exist"),
    "a foreign device": ({"device": "gpu"}, "device is 'gpu', which torch does not know: give cpu, cuda"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_sentence(fault):
    changes, words = FAULTS[fault]
    with pytest.raises(InputError, match=words) as caught:
        check_config(faulty(**changes), GOOD, "train.json")
    assert str(caught.value).startswith("train.json: ")
    assert "\n" not in str(caught.value)


def test_a_key_that_nothing_reads_is_named():
    base = faulty(learning_rte=0.2)
    with pytest.raises(InputError, match="nothing reads 'learning_rte': did you mean 'learning_rate'"):
        check_config(base, base, "train.json")


@pytest.mark.parametrize(
    ("node", "fault"),
    [
        ({"_target_": "torch.optim.Adam", "params": [], "lr": 1}, ""),
        ({"_target_": "torch.optim.Adam", "_mode_": "callable", "lr": 1}, ""),
        ({"_target_": "SimpleInferer", "_desc_": "text"}, ""),
        ({"_target_": "$@network.forward", "x": 1}, ""),
        ({"_target_": "plugins.errors.InputErrorr"}, "did you mean 'plugins.errors.InputError'"),
        ({"_target_": "no.such.module.Thing"}, "there is no no.such.module.Thing"),
    ],
)
def test_the_component_check_sees(node, fault):
    found = component_fault(node)
    assert fault in found
    assert bool(found) == bool(fault)
