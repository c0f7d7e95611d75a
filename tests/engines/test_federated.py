"""The translators as clients of federated learning, by MONAI's own client."""

import shutil
from pathlib import Path

import pytest
import torch
from monai.fl.client import MonaiAlgo
from monai.fl.utils.exchange_object import ExchangeObject

from plugins.data import write_phantom

BUNDLES = Path(__file__).parents[2] / "bundles"
SMALL = {
    "seed": 0, "num_workers": 0, "batch_size": 2, "slices_per_epoch": 4, "val_scans": 2, "device": "cpu",
    "spacing": [2.2, 2.2, 1.5], "crop_size": [48, 48], "patch_size": [48, 48], "roi_size": [32, 32],
    "channels": 4, "num_res_blocks": 2, "discriminator_channels": 4,
}  # fmt: skip
FEW_QUERIES = {f"{kind}_queries::num_queries": 16 for kind in ("random", "attention")}


@pytest.fixture(scope="module")
def phantom(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("data"), num_source=2, num_target=2, num_validation=1)


@pytest.mark.parametrize(
    ("bundle", "own"), [("tanq_translation", {"feature_blocks": [0, 1]} | FEW_QUERIES), ("cyclegan_translation", {})]
)
def test_every_round_trains_the_weights_that_the_server_sends(phantom, tmp_path, monkeypatch, bundle, own):
    shutil.copytree(BUNDLES / bundle / "configs", tmp_path / bundle / "configs")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    given = {**SMALL, **own, "dataset_dir": str(phantom)}
    client = MonaiAlgo(
        str(tmp_path / bundle),
        send_weight_diff=False,
        train_kwargs={**given, "learning_rate": 1e-9},
        eval_kwargs=dict(given),
    )
    client.initialize()
    sent = {name: value.clone() for name, value in client.get_weights().weights.items()}
    for _ in range(2):
        sent = {name: value + 0.01 for name, value in sent.items()}
        client.train(ExchangeObject(weights=sent))
        returned = client.get_weights()
        assert returned.statistics["num_executed_iterations"] == 2
        assert all(torch.allclose(returned.weights[name], sent[name], atol=1e-6) for name in sent)
        assert any(not torch.equal(returned.weights[name], sent[name]) for name in sent)
    metrics = client.evaluate(ExchangeObject(weights=returned.weights)).metrics
    assert metrics["quality"] == pytest.approx(
        -(metrics["vs_contrast_error"] + metrics["cochlea_contrast_error"]) / 2, abs=1e-6
    )
    assert (tmp_path / bundle / "models" / "model.pt").is_file()
    assert list((tmp_path / "elsewhere").iterdir()) == []
    client.finalize()
