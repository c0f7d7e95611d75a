"""What the overlays make of the networks, losses and trainers: built from the bundles' own files."""

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser

from plugins.engines import DiscriminatorAugmentation
from plugins.files import write_json
from plugins.networks import RAIN, AttentionQueries, RandomQueries, RegionNorm, SiteCode, StyleCode
from plugins.nnunet.augmentation import make_augmentation
from plugins.nnunet.brightness import TargetBrightness

BUNDLES = Path(__file__).parents[1] / "bundles"


def config(bundle, *overlays, base="train.json"):
    folder = BUNDLES / bundle / "configs"
    parser = ConfigParser()
    parser.read_config([str(folder / name) for name in (base, *overlays)])
    parser.update({"bundle_root": str(folder.parent), "device": "$torch.device('cpu')"})
    return parser


def tanq(*overlays, **settings):
    return config("tanq_translation", "cpu.json", *overlays, **settings)


def regional(network):
    return {name: module for name, module in network.named_modules() if isinstance(module, RegionNorm)}


def millions(parser, *ids):
    return [round(sum(p.numel() for p in parser.get_parsed_content(name).parameters()) / 1e6, 3) for name in ids]


def test_full_size_networks_have_the_papers_parameters():
    assert millions(config("tanq_translation"), "network_def", "discriminator_def", "projector_def") == [
        8.219,
        2.763,
        0.56,
    ]
    cyclegan = config("cyclegan_translation")
    assert millions(cyclegan, "network_def", "generator_ts_def", "discriminator_def") == [11.366, 11.366, 2.763]


@pytest.mark.parametrize("order", [("cpu.json", "beyond.json"), ("beyond.json", "cpu.json")])
def test_overlays_of_the_driver_name_those_of_the_stages_in_their_own_order(order):
    assert config("vs_cochlea_uda", *order)["overlays"] == [*order]


def test_several_gpus_leave_the_settings_of_other_overlays(tmp_path):
    write_json(tmp_path / "own.json", {"settings::vs_cochlea_seg::max_epochs": 7})
    parser = config("vs_cochlea_uda", tmp_path / "own.json", "multi_gpu_train.json")
    assert {"max_epochs", "devices"} <= parser["settings::vs_cochlea_seg"].keys()


@pytest.mark.parametrize("overlay", ["cut.json", "qs_attn.json"])
def test_relatives_know_no_regions_and_no_seg_decoder(overlay):
    parser = tanq(overlay)
    network = parser.get_parsed_content("network_def")
    assert regional(network) == {}
    assert network.seg_decoder is None
    assert parser.get_parsed_content("segmentation_loss") is None


def test_queries_are_random_in_cut_and_attended_to_in_qs_attn():
    kinds = {
        name: [type(each) for each in tanq(name).get_parsed_content("contrastive_loss").selections]
        for name in ("cut.json", "qs_attn.json")
    }
    assert kinds == {"cut.json": [RandomQueries] * 5, "qs_attn.json": [RandomQueries] * 3 + [AttentionQueries] * 2}


def test_without_rain_only_equation_6_is_missing():
    with_rain, without = (
        regional(tanq(*names).get_parsed_content("network_def")) for names in ((), ("without_rain.json",))
    )
    assert {name: norm.num_regions for name, norm in with_rain.items()} == {
        n: m.num_regions for n, m in without.items()
    }
    assert sum(isinstance(norm, RAIN) for norm in with_rain.values()) == 2
    assert not any(isinstance(norm, RAIN) for norm in without.values())


def test_rn_on_both_makes_vs_a_region_everywhere():
    norms = regional(tanq("rn_both.json").get_parsed_content("network_def"))
    assert {norm.num_regions for norm in norms.values()} == {3}
    assert not any(isinstance(norm, RAIN) for norm in norms.values())


def test_without_seg_decoder_regions_stay():
    network = tanq("without_seg_decoder.json").get_parsed_content("network_def")
    assert network.seg_decoder is None
    assert len(regional(network)) > 0


def test_release_halves_contrast_weights_classes_and_takes_batch_statistics():
    parser = tanq("release.json")
    assert all(norm.over_batch for norm in regional(parser.get_parsed_content("network_def")).values())
    weights = parser.get_parsed_content("loss_weights")
    assert (weights["contrastive_source"], weights["contrastive_target"]) == (0.5, 0.5)
    assert parser.get_parsed_content("segmentation_loss").weight.tolist() == pytest.approx([0.1, 1.0, 1.0])
    assert tanq().get_parsed_content("segmentation_loss").weight is None


@pytest.mark.parametrize("bundle", ["tanq_translation", "cyclegan_translation"])
def test_the_moving_average_is_exported_and_resumed(bundle):
    parser = config(bundle, "cpu.json", "ema.json")
    average = parser.get_parsed_content("exported")
    assert average is parser.get_parsed_content("resumed")["ema"]
    assert average is not parser.get_parsed_content("network")
    plain = config(bundle, "cpu.json")
    assert plain.get_parsed_content("exported") is plain.get_parsed_content("network")


def test_cyclegan_gets_a_seg_decoder_in_one_generator():
    parser = config("cyclegan_translation", "cpu.json", "seg_decoder.json")
    assert parser.get_parsed_content("network_def").seg_decoder is not None
    assert parser.get_parsed_content("generator_ts_def").seg_decoder is None
    assert isinstance(parser.get_parsed_content("segmentation_loss"), torch.nn.CrossEntropyLoss)


@pytest.mark.parametrize(
    "overlay",
    ["cut.json", "qs_attn.json", "without_rain.json", "rn_both.json", "without_seg_decoder.json", "release.json"],
)
def test_weights_of_a_training_fit_the_inference_with_the_same_overlay(overlay):
    trained = tanq(overlay).get_parsed_content("network_def")
    tanq(overlay, base="inference.json").get_parsed_content("network_def").load_state_dict(trained.state_dict())


@pytest.mark.parametrize("bundle", ["tanq_translation", "cyclegan_translation"])
@pytest.mark.parametrize(("overlay", "kind"), [("site_code.json", SiteCode), ("style_code.json", StyleCode)])
def test_a_code_is_off_by_default_and_what_judges_the_target_sees_it(bundle, overlay, kind):
    assert config(bundle, "cpu.json").get_parsed_content("network_def").target_code is None
    parser = config(bundle, "cpu.json", overlay)
    network = parser.get_parsed_content("network_def")
    assert isinstance(network.target_code, kind)
    of_target = parser.get_parsed_content("discriminator_def")
    assert of_target(torch.zeros(1, 1 + network.target_code.channels, 32, 32))[-1].shape[:2] == (1, 1)
    used = config(bundle, "cpu.json", overlay, base="inference.json").get_parsed_content("network_def")
    used.load_state_dict(network.state_dict())
    if bundle == "cyclegan_translation":
        assert parser.get_parsed_content("discriminator_s_def")(torch.zeros(1, 1, 32, 32))[-1].shape[:2] == (1, 1)
        plain, own = (dict(each.get("discriminator_def")) for each in (config(bundle), parser))
        assert own == plain | {"in_channels": 1 + network.target_code.channels}
        assert parser.get("discriminator_s_def") == plain  # the other one stays as it was


def test_directions_of_cyclegan_share_an_encoder_if_asked_and_each_weight_is_trained_once():
    parser = config("cyclegan_translation", "cpu.json", "shared_encoder.json")
    forth, back = (parser.get_parsed_content(name) for name in ("network", "generator_ts"))
    assert forth.stem is back.stem
    assert forth.blocks is back.blocks
    assert forth.decoder is not back.decoder
    trained = [id(p) for group in parser.get_parsed_content("optimizer").param_groups for p in group["params"]]
    assert len(trained) == len({*trained})
    assert {*trained} == {id(p) for network in (forth, back) for p in network.parameters()}
    plain = config("cyclegan_translation", "cpu.json")
    assert plain.get_parsed_content("network").stem is not plain.get_parsed_content("generator_ts").stem


@pytest.mark.parametrize("bundle", ["tanq_translation", "cyclegan_translation"])
def test_stabilisers_are_off_in_the_papers_settings_and_each_has_its_overlay(bundle):
    def rates(*overlays, **changes):
        parser = config(bundle, "cpu.json", *overlays)
        parser.update(changes)
        return [parser.get_parsed_content(name).param_groups[0]["lr"] for name in ("optimizer", "d_optimizer")]

    trainer = "train::trainer::"
    plain = config(bundle, "cpu.json")
    knobs = ("r1_weight", "discriminator_augmentation", "region_balanced")
    assert [plain.get_parsed_content(trainer + name) for name in knobs] == [0.0, None, False]
    assert rates() == [0.0002, 0.0002]
    assert rates("two_speed.json") == [0.0002, 0.0004]
    assert rates("two_speed.json", learning_rate=0.001) == [0.001, 0.002]
    stable = config(bundle, "cpu.json", "stable.json")
    assert stable.get_parsed_content(trainer + "r1_weight") > 0
    assert isinstance(stable.get_parsed_content(trainer + "discriminator_augmentation"), DiscriminatorAugmentation)
    balanced = config(bundle, "cpu.json", "region_balanced.json")
    assert balanced.get_parsed_content(trainer + "region_balanced") is True


@pytest.mark.parametrize(
    ("overlay", "factors", "stretch"),
    [("tumour_brightness.json", {1: [0.5, 0.5]}, 0), ("local_ranges.json", {1: [1, 1], 2: [1, 1]}, 0.25)],
)
def test_brightness_is_off_by_default_and_each_of_its_kinds_has_an_overlay(overlay, factors, stretch):
    assert config("vs_cochlea_seg").get_parsed_content("augmentation") is None
    (made,) = make_augmentation(config("vs_cochlea_seg", overlay).get_parsed_content("augmentation"))
    assert isinstance(made, TargetBrightness)
    assert (made.factors, made.stretch) == (factors, stretch)
