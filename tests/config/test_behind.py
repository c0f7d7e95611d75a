"""The settings behind a node, as the running config holds them."""

import json
from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from plugins.config import settings_behind
from plugins.config.building import WITHOUT_EFFECT
from plugins.errors import InputError, find_input_error
from plugins.files import write_json
from plugins.state import write_weights
from plugins.store import TRAINING, check_weights, difference

ROOT = Path(__file__).parents[2] / "bundles"
TRANSLATORS = ("tanq_translation", "cyclegan_translation")


def config(**changes):
    nodes = {
        "rate": 0.1,
        "device": "cpu",
        "network": {"_target_": "torch.nn.Linear", "_desc_": "words", "in_features": 2, "out_features": 1},
        "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.to(@device).parameters()", "lr": "@rate"},
        "unrelated": 3,
    }
    return ConfigParser(nodes | changes)


def behind(parser, *ids, **arguments):
    parser["settings"] = {"_target_": "plugins.config.settings_behind", "ids": list(ids), **arguments}
    return parser.get_parsed_content("settings")


def test_all_that_a_node_refers_to_is_there_as_text():
    assert behind(config(), "optimizer") == {
        "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.to(@device).parameters()", "lr": "@rate"},
        "network": {"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 1},
        "rate": 0.1,
    }


def test_what_is_built_already_is_read_as_text_too():
    parser = config()
    assert isinstance(parser.get_parsed_content("optimizer"), torch.optim.SGD)
    assert behind(parser, "optimizer") == behind(config(), "optimizer")


def test_what_is_said_to_have_no_effect_is_left_out_with_all_behind_it():
    parser = config(rate="$2 * @unrelated")
    assert behind(parser, "optimizer", without=["rate", "network::in_features"]) == {
        "optimizer": {"_target_": "torch.optim.SGD", "params": "$@network.to(@device).parameters()", "lr": "@rate"},
        "network": {"_target_": "torch.nn.Linear", "out_features": 1},
    }


def test_an_object_from_python_is_its_class():
    assert behind(config(network=torch.nn.Linear(2, 1)), "network") == {"network": "Linear"}


def test_an_id_that_is_not_there_is_named():
    with pytest.raises(RuntimeError) as caught:
        behind(config(), "optimiser")
    assert "there is no 'optimiser'. Did you mean 'optimizer'?" in str(find_input_error(caught.value))


def test_outside_of_a_config_there_is_nothing_to_read():
    with pytest.raises(RuntimeError, match="no config is being built"):
        settings_behind(["optimizer"])


def read(bundle, name, **changes):
    parser = ConfigParser()
    parser.read_config(str(ROOT / bundle / "configs" / f"{name}.json"))
    parser.update({"device": "$torch.device('cpu')", **changes})
    return parser


def trained(bundle, **changes):
    return behind(read(bundle, "train", **changes), "train::trainer")


@pytest.mark.parametrize("bundle", TRANSLATORS)
def test_a_translators_record_knows_every_knob_that_its_training_depends_on(bundle):
    knobs = {name for name, value in read(bundle, "train").get().items() if not isinstance(value, (dict, str))}
    others = {"ema", "initialize", "max_minutes", "resume", "run", "val_interval", "val_scans"}
    assert knobs - WITHOUT_EFFECT - others - {*trained(bundle)} == set()


@pytest.mark.parametrize("bundle", TRANSLATORS)
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("learning_rate", 0.1),
        ("spacing", [1.0, 1.0, 1.5]),
        ("network_def::seg_classes", 5),
        ("discriminator_def::num_layers_d", 2),
        ("d_optimizer::lr", 0.1),
        ("optimizer::betas", [0.9, 0.999]),
        ("train::trainer::r1_weight", 1.0),
        ("train::dataset::roi_size", [8, 8]),
        ("adversarial_loss::criterion", "hinge"),
    ],
)
def test_another_setting_of_a_training_is_told_by_its_id(bundle, name, value):
    before, now = trained(bundle), trained(bundle, **{name: value})
    assert difference(before, before) == ""
    assert difference(before, now) == f"{name} {read(bundle, 'train')[name]!r}, not {value!r}"


@pytest.mark.parametrize("bundle", TRANSLATORS)
@pytest.mark.parametrize(
    "changes",
    [
        {"max_epochs": 3, "num_workers": 0, "amp": True, "output_dir": "o", "ckpt_dir": "c", "cache_dir": "a"},
        {"val_interval": 1, "val_scans": 1, "max_minutes": 5, "resume": False, "dataset_dir": "d", "num_threads": 1},
        {"device": "cuda", "train::handlers": []},
    ],
)
def test_what_changes_no_weights_is_no_setting(bundle, changes):
    assert trained(bundle, **changes) == trained(bundle)


@pytest.mark.parametrize(
    ("bundle", "changes", "words"),
    [
        ("tanq_translation", {}, ""),
        ("tanq_translation", {"crop_size": [64, 64], "patch_size": [64, 64], "seed": 5}, ""),
        ("cyclegan_translation", {"crop_size": [512, 128], "patch_size": [512, 128]}, ""),
        (
            "tanq_translation",
            {"crop_size": [512, 512]},
            "crop_size [256, 256] and patch_size [256, 256], not crop_size [512, 512] and patch_size [256, 256], whose "
            "pixels are of another size (set patch_size too)",
        ),
        (
            "cyclegan_translation",
            {"patch_size": [256, 128]},
            "crop_size [256, 256] and patch_size [256, 256], not crop_size [256, 256] and patch_size [256, 128], whose "
            "pixels are of another size (set patch_size too)",
        ),
        ("tanq_translation", {"percentiles": [0, 100]}, "percentiles [0.1, 99.9], not [0, 100]"),
        ("tanq_translation", {"network_def::decoder_norm": "region"}, "network_def::decoder_norm 'rain', not 'region'"),
        ("tanq_translation", {"channels": 8}, "channels 64, not 8"),
        ("cyclegan_translation", {}, ""),
        ("cyclegan_translation", {"num_res_blocks": 6}, "num_res_blocks 9, not 6"),
    ],
)
def test_inference_has_the_settings_of_the_training(tmp_path, bundle, changes, words):
    given = read(bundle, "inference", **changes).get_parsed_content("recorded")
    assert refusal(tmp_path, trained(bundle), given) == words


def refusal(folder, settings, given):
    """What the weights of a training were trained with, where they are not to be used with what is given."""
    write_json(folder / TRAINING, {"settings": settings, "data": ""})
    write_weights({}, folder / "model.pt")
    try:
        check_weights(folder / "model.pt", given)
    except InputError as error:
        return str(error).partition("was trained with ")[2].removesuffix(". Give the settings of the training.")
    return ""


def test_inference_has_the_pixels_of_a_training_on_smaller_slices(tmp_path):
    bundle = "tanq_translation"
    settings = trained(bundle, patch_size=[128, 128])
    words = "crop_size [256, 256] and patch_size [128, 128], not crop_size [256, 256] and patch_size [256, 256]"
    given = read(bundle, "inference").get_parsed_content("recorded")
    assert refusal(tmp_path, settings, given).startswith(words)
    for sizes in (
        {"patch_size": [128, 128]},
        {"crop_size": [512, 512]},
        {"crop_size": [64, 32], "patch_size": [32, 16]},
    ):
        given = read(bundle, "inference", **sizes).get_parsed_content("recorded")
        assert refusal(tmp_path, settings, given) == ""


BY_ID, IN_USE = "train::preprocessing::", "preprocessing::"


@pytest.mark.parametrize("bundle", TRANSLATORS)
@pytest.mark.parametrize(
    ("given", "used", "words"),
    [
        ({BY_ID + "percentiles": [5, 95]}, {}, "percentiles [5, 95], not [0.1, 99.9]"),
        ({BY_ID + "percentiles": [5, 95]}, {"percentiles": [5, 95]}, ""),
        ({BY_ID + "percentiles": [5, 95]}, {IN_USE + "percentiles": [5, 95]}, ""),
        ({BY_ID + "percentiles": [5, 95]}, {IN_USE + "percentiles": [4, 95]}, "percentiles [5, 95], not [4, 95]"),
        ({"percentiles": [5, 95]}, {IN_USE + "percentiles": [5, 95]}, ""),
        ({BY_ID + "spacing": None}, {}, "spacing None, not [0.41, 0.41, 1.5]"),
        ({BY_ID + "spacing": "$[0.4] * 3"}, {}, ""),
        ({BY_ID + "crop_size": [128, 128]}, {}, "crop_size [128, 128] and patch_size [256, 256], not crop_size [256"),
        ({BY_ID + "crop_size": [128, 128]}, {"patch_size": [512, 512]}, ""),
    ],
)
def test_a_preprocessing_that_was_given_by_its_id_counts_too(tmp_path, bundle, given, used, words):
    found = refusal(
        tmp_path, trained(bundle, **given), read(bundle, "inference", **used).get_parsed_content("recorded")
    )
    assert found.startswith(words)
    assert bool(found) == bool(words)


WHERE = {"output_dir": "o", "ckpt_dir": "c", "dataset_dir": "d", "device": "cuda", "num_workers": 3, "num_threads": 2}
SEGMENTATION = "vs_cochlea_seg"


@pytest.mark.parametrize(
    ("bundle", "changes", "made_anew"),
    [
        *((bundle, {"postprocessing::transforms::0::b_max": 255}, True) for bundle in TRANSLATORS),
        *((bundle, {"inferer::roi_size": [8, 8]}, True) for bundle in TRANSLATORS),
        *((bundle, {"sw_batch_size": 1}, True) for bundle in TRANSLATORS),
        *((bundle, {"percentiles": [0, 100]}, True) for bundle in TRANSLATORS),
        *((bundle, WHERE, False) for bundle in TRANSLATORS),
        (TRANSLATORS[1], {"weights_of": "generator_ts"}, True),
        (SEGMENTATION, {"preprocessing::transforms::5::nonzero": True}, True),
        (SEGMENTATION, {"postprocessing::transforms::4::_disabled_": True}, True),
        (SEGMENTATION, {"window::tile_step_size": 0.25}, True),
        (SEGMENTATION, {"test_time_mirroring": False}, True),
        (SEGMENTATION, {"folds": [0]}, True),
        (SEGMENTATION, {"locate": False}, True),
        (SEGMENTATION, {**WHERE, "model_dir": "m", "sw_batch_size": 1, "report": False}, False),
    ],
)
def test_an_output_is_made_from_all_that_changes_it(bundle, changes, made_anew):
    def made_from(**changes):
        parser = read(bundle, "inference", **changes)
        parser["settings"] = parser["scans"]["settings"]
        return parser.get_parsed_content("settings")

    assert (made_from(**changes) != made_from()) == made_anew


@pytest.mark.parametrize("name", ["save_probabilities", "save_dicom_seg", "sw_batch_size"])
def test_what_is_written_beside_a_label_map_makes_no_other_label_map(name):
    """Or probabilities of the same network would be taken for those of an older one, and removed."""
    config = ConfigParser.load_config_file(ROOT / "vs_cochlea_seg" / "configs" / "inference.json")
    config["what"] = config["scans"]["settings"]

    def settings(**given):
        return ConfigParser({**config, **given}).get_parsed_content("what")

    other = 7 if name == "sw_batch_size" else not config[name]
    assert settings(**{name: other}) == settings()
    assert settings(test_time_mirroring=False) != settings()


def test_a_size_that_only_an_expression_tells_is_not_compared(tmp_path):
    given = read("tanq_translation", "inference", crop_size="$[256] * 2").get_parsed_content("recorded")
    assert refusal(tmp_path, trained("tanq_translation"), given) == ""


@pytest.mark.parametrize("bundle", TRANSLATORS)
def test_a_record_that_names_classes_as_they_were_in_0_1_0_is_the_same_training(bundle):
    now = trained(bundle)
    before = json.loads(json.dumps(now).replace("plugins.networks.ContrastiveLoss", "plugins.losses.ContrastiveLoss"))
    before["network_def"]["fast_convolutions"] = "@fast_convolutions"
    assert before != now
    assert difference(before, now) == ""
    before["network_def"]["_target_"] = "plugins.networks.AnotherGenerator"
    assert "not 'plugins.networks.ResnetGenerator'" in difference(before, now)
