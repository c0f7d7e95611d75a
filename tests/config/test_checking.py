"""Faulty configs are refused before anything is built, in one sentence with the key and the nearest right name."""

import re
import runpy
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from plugins.config.building import building_fault
from plugins.config.checking import check_config
from plugins.config.command import read_configs
from plugins.config.values import check_component
from plugins.errors import InputError, find_input_error

ROOT = Path(__file__).parents[2] / "bundles"
CONFIGS = sorted(
    path
    for name in ("train", "inference", "evaluate", "compare", "study", "locator")
    for path in ROOT.glob(f"*/configs/{name}.json")
)
OVERLAYS = sorted(
    path
    for path in ROOT.glob("*/configs/*.json")
    if path not in CONFIGS and path.name not in ("metadata.json",) and path.parent.parent.name != "vs_cochlea_uda"
)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_the_bundles_own_configs_pass(path):
    check_config(read_configs([path]), read_configs([path]))


@pytest.mark.parametrize("overlay", OVERLAYS, ids=lambda path: f"{path.parents[1].name}/{path.stem}")
def test_the_bundles_overlays_pass(overlay):
    base = overlay.with_name("locator.json" if overlay.name.startswith("locator_") else "train.json")
    check_config(read_configs([base, overlay]), read_configs([base]))


@pytest.mark.parametrize("bundle", ["tanq_translation", "cyclegan_translation"])
def test_a_judge_of_translations_can_be_given_and_so_can_the_contrast(bundle):
    config = read_configs([ROOT / bundle / "configs" / "evaluate.json"])
    judge = {"_target_": "plugins.evaluation.SliceSegmenter", "path": "segmenter.ts"}
    check_config(config | {"segmenter": judge, "contrast": "T1"}, config)


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


SCHEDULER = {
    "_target_": "plugins.engines.constant_then_linear", "optimizer": "@optimizer", "max_epochs": "@max_epochs"
}  # fmt: skip


def faulty(**changes):
    parsed = {}
    for key, value in {**GOOD, **changes}.items():
        parsed[key] = value
    return parsed


def test_a_good_config_passes():
    check_config(GOOD, GOOD)
    check_config(faulty(learning_rate=1, max_epochs="$1 + 1", dataset_dir="."), GOOD)


FAULTS = {
    "a reference to nothing": (
        {"run": ["$@train::trainr"]},
        "run::0 refers to @train::trainr, which is not there. Did you mean 'train::trainer'",
    ),
    "a foreign class": (
        {"optimizer": {"_target_": "torch.optim.Adamm", "params": [], "lr": "@learning_rate"}},
        "optimizer: there is no torch.optim.Adamm. Did you mean 'torch.optim.Adam'",
    ),
    "a misspelt short name": (
        {"preprocessing": {"_target_": "Spacing_d", "keys": "image", "pixdim": "@spacing"}},
        "preprocessing: there is no Spacing_d. Did you mean 'Spacingd'",
    ),
    "a misspelt argument": (
        {"network_def": {"_target_": "torch.nn.Linear", "in_feature": 2, "out_features": 1}},
        "network_def: .*Did you mean 'in_features'",
    ),
    "a missing argument": ({"network_def": {"_target_": "torch.nn.Linear", "in_features": 2}}, "out_features"),
    "a class that is none": ({"network_def": {"_target_": "torch.nn.functional"}}, "torch.nn.functional is no class"),
    "a target that is no name": ({"network_def": {"_target_": 3}}, "_target_ is 3"),
    "a word for a number": ({"max_epochs": "many"}, "max_epochs is 'many'. Give a whole number, such as 3"),
    "half an epoch": ({"max_epochs": 2.5}, "max_epochs is 2.5. Give a whole number"),
    "a number for a switch": ({"amp": 1}, "amp is 1. Give True or False"),
    "a switch for a number": ({"learning_rate": True}, "learning_rate is True. Give a number"),
    "a number for a list": ({"spacing": 1.5}, "spacing is 1.5. Give a list"),
    "no epoch": ({"scheduler": SCHEDULER, "max_epochs": 0}, "max_epochs is 0. It must be more than 0"),
    "an infinite rate": ({"learning_rate": float("inf")}, "Give a finite number"),
    "a missing folder": ({"dataset_dir": "/nowhere/data"}, "dataset_dir is '/nowhere/data', which does not exist"),
    "a circle": (
        {"learning_rate": "@max_epochs", "max_epochs": "@learning_rate"},
        "learning_rate -> max_epochs refer to each other|max_epochs -> learning_rate refer to each other",
    ),
    "a misspelt name in an expression": ({"device": "$toch.device('cpu')"}, "there is no 'toch'. Did you mean 'torch'"),
    "a misspelt function in an expression": (
        {"device": "$torch.devise('cpu')"},
        "torch has no 'devise'. Did you mean 'device'",
    ),
    "half an expression": ({"max_epochs": "$2 *"}, "max_epochs is '\\$2 \\*', which is no Python"),
    "a misspelt _target_": (
        {"network_def": {"_targt_": "torch.nn.Linear", "in_features": 2, "out_features": 1}},
        "network_def has '_targt_'. Did you mean '_target_'",
    ),
    "a misspelt mode": (
        {"network_def": {"_target_": "torch.nn.Linear", "_mode_": "callabel"}},
        "network_def: _mode_ is 'callabel'. Did you mean 'callable'",
    ),
    "a name for a component": ({"network_def": "UNet"}, "network_def is 'UNet'. Give a dictionary with _target_"),
    "a foreign component's argument of another type": (
        {"preprocessing": {"_target_": "Spacingd", "keys": "image", "pixdim": "@spacing", "diagonal": "no"}},
        "preprocessing::diagonal is 'no'. Give True or False",
    ),
    "a misspelt argument among others": (
        {"preprocessing": {"_target_": "DataLoader", "dataset": [], "batch_sise": 2}},
        "DataLoader knows no 'batch_sise'. Did you mean 'batch_size'",
    ),
    "no epoch below": (
        {"scheduler": {**SCHEDULER, "max_epochs": 0}},
        "scheduler::max_epochs is 0. It must be more than 0",
    ),
    "a GPU that is not there": (
        {"device": f"cuda:{torch.cuda.device_count()}"},
        "device is 'cuda:.*. Give cpu or another",
    ),
    "a device that torch does not know, computed": ({"device": "$torch.device('gpu')"}, "which torch does not know"),
    "a foreign device": ({"device": "gpu"}, "device is 'gpu', which torch does not know. Give cpu, cuda"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_is_named_in_one_sentence(fault):
    changes, words = FAULTS[fault]
    with pytest.raises(InputError, match=words) as caught:
        check_config(faulty(**changes), GOOD)
    assert re.match(r"[a-z_]+(::\w+)*:? ", str(caught.value))
    assert "\n" not in str(caught.value)


def test_a_key_that_nothing_reads_is_named():
    base = faulty(learning_rte=0.2)
    with pytest.raises(InputError, match=r"^learning_rte has no effect, .* reads it\. Did you mean 'learning_rate'"):
        check_config(base, base)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train::learning_rate": 3}, "train::learning_rate has no effect, as nothing reads it"),
        ({"validate::handlerz": []}, "validate::handlerz has no effect, as nothing reads it"),
        ({"train::more": {"_target_": "SimpleInferer"}}, "train::more has no effect, as nothing reads it"),
    ],
)
def test_a_key_that_nothing_reads_is_named_in_sections_too(change, words):
    parser = ConfigParser(own(*TANQ)[0])
    parser.update(change)
    with pytest.raises(InputError, match=words):
        check_config(parser.get(), parser.get())


def own(bundle, name, *overlays):
    """One of the bundles' configs, as a function of overrides."""
    folder = ROOT / bundle / "configs"
    files = [folder / f"{name}.json", *(folder / overlay for overlay in overlays)]
    return read_configs(files), read_configs(files[:1])


TANQ, CYCLEGAN = ("tanq_translation", "train", "cpu.json"), ("cyclegan_translation", "inference")
NNUNET, DRIVER = ("vs_cochlea_seg", "train", "cpu.json"), ("vs_cochlea_uda", "train")
IMPOSSIBLE = {
    "an encoder norm": (
        TANQ,
        {"network_def::encoder_norm": "regional"},
        "encoder_norm is 'regional'. Did you mean 'region'",
    ),
    "an attention": (TANQ, {"attention_queries::attention": "locale"}, "attention is 'locale'. Did you mean 'local'"),
    "a region reduction": (
        TANQ,
        {"network_def::region_reduction": "anny"},
        "region_reduction is 'anny'. Did you mean 'any'",
    ),
    "an initialisation": (CYCLEGAN, {"network_def::init": "xavierr"}, "network_def::init is 'xavierr'"),
    "a loss": (
        TANQ,
        {"loss_weights": {"adversaril": 1.0}},
        "loss_weights has no 'adversaril'. Did you mean 'adversarial'",
    ),
    "a weight": (TANQ, {"loss_weights": {"adversarial": "1"}}, "loss_weights::adversarial is '1'. Give a number"),
    "one crop": (TANQ, {"crop_size": [256]}, "crop_size is \\[256\\]. Give a list of 2 \\(a whole number each\\)"),
    "two spacings": (TANQ, {"spacing": [0.4, 0.4]}, "spacing is .*. Give a list of 3"),
    "a text for a size": (CYCLEGAN, {"patch_size": [96, "96"]}, "patch_size::1 is '96'. Give a whole number"),
    "a loss for an optimizer": (
        TANQ,
        {"optimizer": {"_target_": "torch.nn.L1Loss"}},
        "is torch.nn.L1Loss. Give .*Optimizer",
    ),
    "a network without an encoder": (
        TANQ,
        {"network_def::_target_": "torch.nn.Identity"},
        "network_def is torch.nn.Identity, which has no 'regions'",
    ),
    "an argument of the trainer": (TANQ, {"train::trainer::ampp": True}, "no 'ampp'. Did you mean 'amp'"),
    "a configuration": (NNUNET, {"configurations": ["3d_fulres"]}, "Did you mean '3d_fullres'"),
    "a member": (NNUNET, {"members": {"VSS": ["2d"]}}, "members has no 'VSS'. Did you mean 'VS'"),
    "a planner": (NNUNET, {"planner": "ResEncS"}, "planner is 'ResEncS'. Did you mean 'ResEnc"),
    "a change of plan": (NNUNET, {"plan_changes::2d": {"n_stage": 4}}, "plan_changes::2d has no 'n_stage'"),
    "iterations of a configuration": (NNUNET, {"iterations_per_epoch": {"2": 9}}, "iterations_per_epoch has no '2'"),
    "an appearance": (
        NNUNET,
        {"augmentation": {"appearance": {"levels": {"VS": [0.7, 0.2]}}}},
        "augmentation::appearance::levels::VS is .*. Give two numbers in order",
    ),
    "half an appearance": (
        NNUNET,
        {"augmentation": {"appearance": {"levels": {"VS": [0.5]}}}},
        "augmentation::appearance::levels::VS is \\[0.5\\]. Give a list of 2 \\(a number each\\)",
    ),
    "an augmentation": (NNUNET, {"augmentation": {"curve": {}}}, "augmentation has no 'curve'. Did you mean 'curves'"),
    "a setting of an augmentation": (
        NNUNET,
        {"augmentation": {"curves": {"invert": 1}}},
        "augmentation::curves has no 'invert'. Did you mean 'inverted'",
    ),
    "a range of an augmentation": (
        NNUNET,
        {"augmentation": {"curves": {"inverted": 2}}},
        "augmentation::curves::inverted is 2. It must be at most 1",
    ),
    "a setting of nnU-Net's trainer": (
        NNUNET,
        {"train::trainer::initial_rl": 1},
        "no 'initial_rl'. Did you mean 'initial_lr'",
    ),
    "an executor": (DRIVER, {"executor::_target_": "concurrent.futures.ThreadPoolExecuter"}, "ThreadPoolExecutor'"),
    "a word for torch's rate": (TANQ, {"optimizer::lr": "fast"}, "optimizer::lr is 'fast'. Give a number"),
    "a number for a network": (TANQ, {"train::trainer::projector": 3}, "train::trainer::projector is 3. Give"),
    "a GPU by number": (TANQ, {"device": 0}, "device is 0. Give cpu, cuda or cuda:<number>"),
    "a number for a folder": (TANQ, {"dataset_dir": 5}, "dataset_dir is 5. Give a path"),
    "a switch for a folder": (TANQ, {"ckpt_dir": True}, "ckpt_dir is True. Give (text|a path)"),
    "no path at all": (TANQ, {"output_dir": ""}, "output_dir is ''. Give a path"),
    "a device that computes nothing": (TANQ, {"device": "meta"}, "device is 'meta', which computes nothing"),
    "a text for a function": (
        TANQ,
        {"validate::key_metric::quality::segmenter": "a/model.pt"},
        "segmenter is 'a/model.pt'. Give",
    ),
    "a number among handlers": (TANQ, {"train::handlers::0": 1}, "train::handlers::0 is 1. Give a handler"),
    "a loss among handlers": (
        TANQ,
        {"train::handlers::0": "@segmentation_loss"},
        "segmentation_loss is torch.nn.CrossEntropyLoss. Give a handler",
    ),
    "a block that is not there": (TANQ, {"feature_blocks": [0, 9]}, "feature_blocks is \\[0, 9\\] with num_res_blocks"),
    "a block twice": (TANQ, {"feature_blocks": [0, 0]}, "each once"),
    "a label without a class": (TANQ, {"network_def::seg_classes": 2}, "seg_classes is 2. Give 3"),
    "percentiles upside down": (TANQ, {"percentiles": [99, 1]}, "percentiles is \\[99, 1\\]. Give two in order"),
    "a patch that cannot be halved": (TANQ, {"patch_size": [90, 96]}, "patch_size is .*. Give multiples of 4"),
    "a fold that is not there": (NNUNET, {"folds": [7]}, "folds is \\[7\\]. Give numbers from 0 to 1"),
    "a fold twice": (NNUNET, {"folds": [0, 0]}, "each once"),
    "one fold": (NNUNET, {"num_folds": 1}, "num_folds is 1. It must be 2 or more"),
    "no configuration": (NNUNET, {"configurations": []}, "configurations is empty"),
    "a member that is not trained": (NNUNET, {"configurations": ["2d"], "members": ["3d_fullres"]}, "Choose from"),
    "too few stages": (
        NNUNET,
        {"plan_changes::2d::n_stages": 2},
        "plan_changes::2d::n_stages is 2. It must be 3 or more",
    ),
    "an even kernel": (
        NNUNET,
        {"plan_changes::2d::kernel_sizes": [[2, 2]] * 5},
        "plan_changes::2d::kernel_sizes is .*. Give odd numbers",
    ),
    "a kernel of another dimension": (NNUNET, {"plan_changes::2d::kernel_sizes": [[3, 3, 3]] * 5}, "Give 2 numbers"),
    "no channel": (
        NNUNET,
        {"plan_changes::2d::features_per_stage": [0, 8, 8, 8, 8]},
        "features_per_stage::0 is 0. It must be more than 0",
    ),
    "a negative spacing": (TANQ, {"spacing": [0.4, -0.4, 1.5]}, "spacing::1 is -0.4. It must be more than 0"),
    "a negative round": (DRIVER, {"rounds": -1}, "rounds is -1. It must be 0 or more"),
}


@pytest.mark.parametrize("fault", IMPOSSIBLE)
def test_values_are_checked_against_what_reads_them(fault):
    files, changes, words = IMPOSSIBLE[fault]
    config, base = own(*files)
    parser = ConfigParser(config)
    parser.update(changes)
    with pytest.raises(InputError, match=words) as caught:
        check_config(parser.get(), base)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("fault", IMPOSSIBLE)
def test_they_are_found_in_the_first_file_too(fault):
    files, changes, words = IMPOSSIBLE[fault]
    parser = ConfigParser(own(*files)[0])
    parser.update(changes)
    with pytest.raises(InputError, match=words):
        check_config(parser.get(), parser.get())


LEGITIMATE = {
    "a network of MONAI's": (
        CYCLEGAN,
        {
            "network_def": {
                "_target_": "UNet", "spatial_dims": 2, "in_channels": 1, "out_channels": 1, "channels": [4, 8],
                "strides": [2], "act": ["prelu", {"init": 0.2}],
            }
        },
    ),
    "a schedule of torch's": (
        TANQ,
        {"scheduler": {"_target_": "torch.optim.lr_scheduler.StepLR", "optimizer": "@optimizer", "step_size": 3}},
    ),
    "a device by name": (TANQ, {"device": "cpu"}),
    "new arguments": (TANQ, {"train::dataloader::pin_memory": True, "train::trainer::clip_norm": 1}),
    "a handler less": (TANQ, {"train::handlers::2::_disabled_": True}),
    "expressions": (TANQ, {"max_epochs": "$2 * 5", "crop_size": "$[96 for _ in range(2)]", "mine": "$lambda x: x"}),
    "a module of one's own": (TANQ, {"imports": ["$import os.path as places"], "mine": "$places.join('a', 'b')"}),
    "a spacing of the scan": (TANQ, {"spacing": [None, None, 1.5], "roi_size": None}),
    "one network": (NNUNET, {"configurations": ["2d"], "folds": 0, "batch_size": {"2d": 4}, "iterations_per_epoch": 9}),
    "an optimizer of torch's": (NNUNET, {"optimizer": {"_target_": "torch.optim.SGD", "_mode_": "callable"}}),
    "processes": (DRIVER, {"executor": {"_target_": "plugins.nnunet.process_pool", "max_workers": 2}}),
}  # fmt: skip


@pytest.mark.parametrize("change", LEGITIMATE)
def test_there_is_no_false_alarm(change):
    files, changes = LEGITIMATE[change]
    config, base = own(*files)
    parser = ConfigParser(config)
    parser.update(changes)
    check_config(parser.get(), base)


def test_a_file_in_place_of_a_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"output_dir is .*/file/out', but .*/file is a file. Give a folder"):
        check_config(faulty(output_dir=str(tmp_path / "file" / "out")), GOOD)


def test_paths_are_left_alone_where_they_are_to_come():
    check_config(faulty(dataset_dir="/nowhere/data"), GOOD, on_disk=False)


def test_components_may_lie_in_the_bundle(tmp_path):
    (tmp_path / "own_code.py").write_text("def make(size: int): ...")
    config = faulty(network_def={"_target_": "own_code.make", "size": 2})
    check_config(config, GOOD, tmp_path)
    assert "own_code" not in sys.modules
    with pytest.raises(InputError, match=r"network_def: there is no own_code\.make"):
        check_config(config, GOOD)
    with pytest.raises(InputError, match=r"network_def::size is 'two'\. Give a whole number"):
        check_config(faulty(network_def={"_target_": "own_code.make", "size": "two"}), GOOD, tmp_path)


def parsed(config, name):
    try:
        return ConfigParser(config).get_parsed_content(name)
    except Exception as error:
        return error


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (
            {"rate": {"_target_": "torch.nn.Dropout", "p": 2}, "run": ["$@rate"]},
            r"rate \(torch.nn.Dropout\) could not be built, ValueError: dropout probability .*. Correct it.",
        ),
        ({"size": "$int('two')", "run": ["$@size"]}, r"size \(\$int\('two'\)\) could not be built, ValueError"),
        (
            {"size": 2, "double": "$@size.too(@size)", "run": ["$@double"]},
            r"double \(\$@size\.too\(@size\)\) could not be built, AttributeError: .*'too'. Correct it\.",
        ),
        (
            {"loss": {"_target_": "PatchAdversarialLoss", "criterion": "l3"}, "run": ["$@loss"]},
            r"loss \(monai\..*Loss\) could not",
        ),
        ({"run": ["$1 / 0"]}, "^$"),
    ],
)
def test_what_cannot_be_built_is_told_in_one_sentence_and_what_fails_at_work_is_not(config, sentence):
    found = building_fault(parsed(config, "run"), config, {"run"})
    assert re.match(sentence, found)
    assert "\n" not in found
    assert building_fault(ZeroDivisionError("no"), config, {"run"}) == ""


@pytest.fixture
def run(monkeypatch, tmp_path):
    """``python -m monai.bundle run`` in this process. Gives the sentence it would end with."""

    def go(bundle, section, *options, overlays=("cpu.json",)):
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)
        folder = ROOT / bundle / "configs"
        files = [str(folder / name) for name in (f"{section}.json", *overlays)]
        folders = ["--bundle_root", str(tmp_path), "--logging_file", "False"]
        words = ["python", "run", "--config_file", str(files), *folders, *options]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(Exception) as caught:  # noqa: PT011 - MONAI wraps it
            runpy.run_module("monai.bundle", run_name="__main__", alter_sys=True)
        assert [*tmp_path.iterdir()] == []
        sys.excepthook(caught.type, caught.value, caught.tb)
        return str(find_input_error(caught.value))

    return go


@pytest.mark.parametrize(
    ("bundle", "options", "words"),
    [
        ("tanq_translation", ["--max_epoch", "5"], "train.json has no 'max_epoch'. Did you mean 'max_epochs'"),
        ("cyclegan_translation", ["--train#trainer#pool_sise", "5"], "Did you mean 'train::trainer::pool_size'"),
        ("tanq_translation", ["--percentiles", "[99, 1]"], "train.json: percentiles is [99, 1]. Give two in order"),
        ("tanq_translation", ["--patch_size", "[90, 96]"], "train.json: patch_size is [90, 96]. Give multiples of 4"),
        ("tanq_translation", ["--feature_blocks", "[0, 9]"], "train.json: feature_blocks is [0, 9]"),
        (
            "tanq_translation",
            ["--optimizer::betas", "[0.5, 1.5]"],
            "train.json: optimizer or d_optimizer (torch.optim.Adam) could not be built",
        ),
        ("tanq_translation", ["--class_weights", "[-1, 1, 1]"], "class_weights::0 is -1. It must be 0 or more"),
        ("tanq_translation", ["--learning_rate", "1e9"], "learning_rate is 1000000000.0. It must be at most 10"),
        ("vs_cochlea_seg", ["--initial_lr", "1e9"], "initial_lr is 1000000000.0. It must be at most 10"),
        ("vs_cochlea_seg", ["--devices", "[]"], "devices is empty. Name at least one"),
        ("tanq_translation", ["--train::handlers::0::_disabled_", "yes"], "_disabled_ is 'yes'. Give true or false"),
        ("tanq_translation", ["--seed", "null", "--roi_sise", "null"], "no 'roi_sise'. Did you mean 'roi_size'"),
        ("tanq_translation", ["--train::trainer::accumulation_steps", "4"], "no 'train::trainer::accumulation_steps'"),
        ("tanq_translation", ["--train::trainer::prepare_batch", "null"], "no 'train::trainer::prepare_batch'"),
        (
            "cyclegan_translation",
            ["--train::trainer::optim_set_to_none", "True"],
            "'train::trainer::optim_set_to_none'",
        ),
        ("cyclegan_translation", ["--train::trainer::inferer", "null"], "no 'train::trainer::inferer'"),
        ("vs_cochlea_seg", ["--members", "['3d']"], "train.json: members::0 is '3d'. Give one of '2d', '3d_fullres'"),
        ("vs_cochlea_uda", ["--round", "2"], "train.json has no 'round'. Did you mean 'rounds'"),
    ],
)
def test_a_run_ends_in_the_sentence_before_it_reads_a_scan(run, capsys, bundle, options, words):
    run(bundle, "train", *options)
    said = capsys.readouterr().err.splitlines()
    assert [line for line in said if line.startswith("error: ") and words in line] == said[-1:]


def test_the_sentence_names_the_overlay_that_holds_the_fault(run, capsys, tmp_path_factory):
    overlay = tmp_path_factory.mktemp("mine") / "mine.json"
    overlay.write_text('{"train#trainer#clip_norm": "high", "max_epochs": 2}')
    for option, said in (
        ((), "error: mine.json: train::trainer::clip_norm is 'high'. Give a number or null."),
        (("--max_epochs", "few"), "error: train.json: max_epochs is 'few'. Give a whole number."),
    ):
        run("tanq_translation", "train", *option, overlays=("cpu.json", str(overlay)))
        assert capsys.readouterr().err.splitlines()[-1] == said


def test_a_key_that_an_overlay_has_twice_is_refused(run, tmp_path_factory):
    overlay = tmp_path_factory.mktemp("mine") / "mine.json"
    overlay.write_text('{"max_epochs": 1, "loss_weights": {"segmentation": 1, "segmentation": 2}}')
    said = run("tanq_translation", "train", overlays=("cpu.json", str(overlay)))
    assert said == f"{overlay} has 'segmentation' twice. Remove one of them."


def test_processes_without_torchrun_are_refused(run):
    assert "torchrun" in run("tanq_translation", "train", overlays=("cpu.json", "multi_gpu_train.json"))


@pytest.mark.parametrize(
    ("node", "fault"),
    [
        ({"_target_": "torch.optim.Adam", "params": [], "lr": 1}, ""),
        ({"_target_": "torch.optim.Adam", "_mode_": "callable", "lr": 1}, ""),
        ({"_target_": "SimpleInferer", "_desc_": "text"}, ""),
        ({"_target_": "$@network.forward", "x": 1}, ""),
        ({"_target_": "plugins.errors.InputErrorr"}, "Did you mean 'plugins.errors.InputError'"),
        ({"_target_": "no.such.module.Thing"}, "there is no no.such.module.Thing"),
        ({"_target_": "torch.optim.Adamm", "_disabled_": True}, ""),
        ({"_target_": "torch.optim.Adam", "params": [], "betas": "fast"}, "betas is 'fast'. Give a list of 2"),
        ({"_target_": "DataLoader", "dataset": [], "pin_memory": True}, ""),
    ],
)
def test_the_component_check_sees(node, fault):
    with pytest.raises(InputError, match=re.escape(fault)) if fault else nullcontext():
        check_component(node)
