"""What the paper publishes, and where it says so, against what each bundle's ``train.json`` really sets.

Sources: [K] Kang et al., Scientific Reports 14:27883 (2024); [C] Zhu et al., ICCV 2017 and [Q] Hu et al., CVPR 2022,
whose defaults [K] follows ("Implementation details"); [N] nnU-Net's defaults, as [K] follows them there.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from monai.bundle import ConfigParser

ROOT = Path(__file__).parents[1] / "bundles"
DETAILS = "K, Implementation details"
ADAM = [
    ("optimizer::_target_", "torch.optim.Adam", DETAILS),
    ("optimizer::lr", 2e-4, DETAILS),
    ("optimizer::betas", [0.5, 0.999], "C, Q"),
    ("d_optimizer::_target_", "torch.optim.Adam", DETAILS),
    ("d_optimizer::lr", 2e-4, DETAILS),
    ("d_optimizer::betas", [0.5, 0.999], "C, Q"),
    ("scheduler::_target_", "plugins.engines.constant_then_linear", DETAILS),
    ("d_scheduler::_target_", "plugins.engines.constant_then_linear", DETAILS),
    ("train::dataloader::batch_size", 4, DETAILS),
    ("adversarial_loss::criterion", "least_squares", "C, Q"),
    ("discriminator_def::_target_", "plugins.networks.PatchDiscriminator", "K, eq. (10); C"),
    ("discriminator_def::channels", 64, "C, Q"),
    ("discriminator_def::num_layers_d", 3, "C, Q: 70 x 70 patches"),
    ("network_def::channels", 64, "C, Q"),
    ("train::trainer::clip_norm", None, "not mentioned"),
    ("train::trainer::r1_weight", 0.0, "not mentioned"),
    ("train::trainer::discriminator_augmentation", None, "not mentioned"),
    ("train::trainer::region_balanced", False, "not mentioned"),
    ("ema", None, "not mentioned"),
    ("train::preprocessing::patch_size", [256, 256], "K, Data preprocessing"),
]
TANQ = [
    *ADAM,
    ("train::trainer::max_epochs", 400, DETAILS),
    ("scheduler::max_epochs", 400, DETAILS),
    ("d_scheduler::max_epochs", 400, DETAILS),
    ("network_def::num_res_blocks", 6, "K, Fig. 2"),
    ("network_def::encoder_norm", "region", "K, eq. (1)-(3)"),
    ("network_def::decoder_norm", "rain", "K, eq. (4)-(7)"),
    ("network_def::seg_classes", 3, "K, eq. (8)"),
    ("segmentation_loss::_target_", "torch.nn.CrossEntropyLoss", "K, eq. (8)"),
    ("contrastive_loss::temperature", 0.07, "Q"),
    ("random_queries::num_queries", 256, DETAILS),
    ("attention_queries::num_queries", 256, DETAILS),
    ("attention_queries::attention", "global", DETAILS),
    ("selections", ["@random_queries"] * 3 + ["@attention_queries"] * 2, DETAILS),
    ("projector_def::channels", 256, DETAILS),
    ("loss_weights::adversarial", 1.0, "K, eq. (10)"),
    ("loss_weights::contrastive_source", 1.0, "K, eq. (10)"),
    ("loss_weights::contrastive_target", 1.0, "K, eq. (10)"),
    ("loss_weights::segmentation", 1.0, "K, eq. (10)"),
]
CYCLEGAN = [
    *ADAM,
    ("train::trainer::max_epochs", 200, DETAILS),
    ("scheduler::max_epochs", 200, DETAILS),
    ("d_scheduler::max_epochs", 200, DETAILS),
    ("network_def::num_res_blocks", 9, "C"),
    ("generator_ts_def::num_res_blocks", 9, "C"),
    ("network_def::seg_classes", 0, "C"),
    ("train::trainer::pool_size", 50, "C"),
    ("loss_weights::adversarial_target", 1.0, "K, eq. (11); C"),
    ("loss_weights::adversarial_source", 1.0, "K, eq. (11); C"),
    ("loss_weights::cycle", 10.0, "K, eq. (12); C"),
    ("loss_weights::identity", 5.0, "C: 0.5 of the cycle's"),
]
SEGMENTATION = [
    ("train::trainer::batch_size", 8, DETAILS),
    ("train::trainer::max_epochs", 1000, DETAILS),
    ("train::trainer::initial_lr", 0.01, DETAILS),
    ("train::trainer::optimizer", None, "N: SGD, K, Implementation details"),
    ("train::trainer::configurations", ["2d", "3d_fullres"], DETAILS),
    ("train::trainer::num_folds", 5, DETAILS),
    ("train::trainer::members", None, "K: nnU-Net's selection"),
    ("train::trainer::iterations_per_epoch", 250, "N"),
    ("train::trainer::val_iterations_per_epoch", 50, "N"),
    ("train::trainer::oversample_foreground", 0.33, "N"),
    ("train::trainer::augmentation", None, "N"),
    ("train::trainer::mirroring", True, "N"),
    ("train::trainer::early_stop_patience", None, "N"),
    ("train::trainer::planner", "default", "N"),
    ("train::inferer::mirroring", True, "N"),
    ("train::inferer::tile_step_size", 0.5, "N"),
]
DRIVER = [
    ("train::trainer::views", ["tanq", "cyclegan"], "K, Multi-view"),
    ("train::trainer::rounds", 1, "K, Self-training"),
    ("train::trainer::translate", "ceT1", "K, Fig. 1"),
    ("train::trainer::calibrated", False, "not mentioned"),
    ("train::trainer::weigh_views", False, "not mentioned"),
    ("train::trainer::gate", None, "K: all pseudo-labels"),
    ("train::trainer::continue_rounds", False, "K, Self-training"),
    ("train::trainer::last_round_on_target", False, "K, Self-training"),
    ("train::trainer::interaction", False, "K: future work"),
    ("train::trainer::reverse_view", None, "K: future work"),
]
PUBLISHED = {
    "tanq_translation": TANQ,
    "cyclegan_translation": CYCLEGAN,
    "vs_cochlea_seg": SEGMENTATION,
    "vs_cochlea_uda": DRIVER,
}


def reached(parser: ConfigParser, key: str) -> Any:
    """What arrives at a key once its references are followed; an argument that is left out has its default."""
    value = parser.get(key, None)
    while isinstance(value, str) and value.startswith("@"):
        value = parser[value[1:]]
    return value


@pytest.mark.parametrize(
    ("bundle", "key", "published", "place"),
    [(bundle, *row) for bundle, rows in PUBLISHED.items() for row in rows],
    ids=[f"{bundle}-{row[0]}" for bundle, rows in PUBLISHED.items() for row in rows],
)
def test_train_json_has_the_published_setting(bundle, key, published, place):
    parser = ConfigParser()
    parser.read_config(ROOT / bundle / "configs" / "train.json")
    assert reached(parser, key) == published, place


@pytest.mark.parametrize("bundle", ["tanq_translation", "cyclegan_translation"])
def test_the_published_settings_arrive_in_the_objects_that_train(bundle):
    parser = ConfigParser()
    parser.read_config(ROOT / bundle / "configs" / "train.json")
    parser["device"] = torch.device("cpu")
    networks = ["network", "discriminator"]
    networks += ["projector"] if bundle == "tanq_translation" else ["generator_ts", "discriminator_s"]
    of_generators, of_discriminators = (parser.get_parsed_content(name) for name in ("optimizer", "d_optimizer"))
    for optimizer in (of_generators, of_discriminators):
        assert optimizer.defaults["lr"] == 2e-4
        assert tuple(optimizer.defaults["betas"]) == (0.5, 0.999)
    trained = {id(p) for each in (of_generators, of_discriminators) for g in each.param_groups for p in g["params"]}
    wanted = {id(p) for name in networks for p in parser.get_parsed_content(name).parameters()}
    assert trained == wanted
    on_discriminators = {id(p) for g in of_discriminators.param_groups for p in g["params"]}
    assert on_discriminators == {
        id(p) for name in networks if "discriminator" in name for p in parser.get_parsed_content(name).parameters()
    }
    weights = parser.get_parsed_content("loss_weights")
    terms = {"tanq_translation": TANQ, "cyclegan_translation": CYCLEGAN}[bundle]
    expected = {key.partition("::")[2]: value for key, value, _ in terms if key.startswith("loss_weights::")}
    assert {name: weights[name] for name in expected} == expected
