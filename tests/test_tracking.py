"""MONAI's switch ``--tracking mlflow`` on the bundles' own configs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient
from monai.bundle import ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from monai.handlers import MLFlowHandler
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from plugins import runtime
from plugins.config.command import tracking_settings
from plugins.data import write_phantom
from plugins.errors import InputError
from plugins.files import write_json

BUNDLES = Path(__file__).parents[1] / "bundles"
TINY = {
    "device": "cpu", "channels": 4, "num_res_blocks": 2, "discriminator_channels": 4,
    "discriminator_def::num_layers_d": 1, "max_epochs": 1, "val_interval": 1, "val_scans": 1, "slices_per_epoch": 2,
}  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("data") / "small", num_source=1, num_target=1, num_validation=1)


def workflow(bundle, **settings):
    root = BUNDLES / bundle
    files = [str(root / "configs" / name) for name in ("train.json", "cpu.json")]
    return ConfigWorkflow(files, logging_file=False, tracking="mlflow", bundle_root=str(root), **settings)


def runs(store):
    """The runs in a store by name, and the client."""
    client = MlflowClient(f"sqlite:///{store}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "monai_experiment"]
    return client, client.search_runs([experiment.experiment_id])


@pytest.mark.parametrize(
    ("bundle", "sizes"), [("tanq_translation", {"feature_blocks": [0, 1]}), ("cyclegan_translation", {})]
)
def test_a_translator_logs_its_losses_to_mlflow_and_to_tensorboard(bundle, sizes, dataset, tmp_path):
    training = workflow(
        bundle, dataset_dir=str(dataset), output_dir=str(tmp_path), ckpt_dir=str(tmp_path / "models"), **TINY, **sizes
    )
    training.initialize()
    training.run()
    client, (run,) = runs(tmp_path / "mlruns.db")
    assert run.info.status == "FINISHED"
    assert "quality" in run.data.metrics
    logged = [metric.value for metric in client.get_metric_history(run.info.run_id, "train_loss")]
    events = [EventAccumulator(str(path)).Reload() for path in tmp_path.glob("events*")]
    (shown,) = [
        [scalar.value for scalar in each.Scalars("loss")] for each in events if "loss" in each.Tags()["scalars"]
    ]
    assert len(logged) == 1
    assert logged == pytest.approx(shown)


def test_the_driver_tracks_in_the_folder_of_its_run(dataset, tmp_path):
    driver = workflow("vs_cochlea_uda", dataset_dir=f"{dataset}/", runs_dir=str(tmp_path), run_suffix="_x")
    uda = driver.parser.get_parsed_content("train::trainer")
    (handler,) = uda.train_handlers
    assert isinstance(handler, MLFlowHandler)
    assert uda.run_dir == tmp_path / "small_x"
    assert handler.client.tracking_uri == f"sqlite:///{tmp_path}/small_x/mlruns.db"


def command(*options):
    config = BUNDLES / "tanq_translation" / "configs" / "train.json"
    return ["/x/monai/bundle/__main__.py", "run", "training", "--config_file", str(config), *options]


def test_without_mlflow_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    monkeypatch.setattr(sys, "argv", command("--tracking", "mlflow"))
    with pytest.raises(InputError, match=r"pip install 'tanq-bundles\[tracking\]'"):
        runtime.start(seed=None)
    monkeypatch.setattr(sys, "argv", command())
    runtime.start(seed=None)


def test_settings_are_those_of_the_users_file_and_options(monkeypatch, tmp_path):
    assert tracking_settings() == DEFAULT_MLFLOW_SETTINGS
    own = {"handlers_id": {}, "configs": {"experiment_name": "mine", "tracking_uri": "sqlite:///a.db"}}
    write_json(tmp_path / "own.json", own)
    monkeypatch.setattr(sys, "argv", command("--tracking", str(tmp_path / "own.json"), "--experiment_name", "other"))
    assert tracking_settings() == {"handlers_id": {}, "configs": {**own["configs"], "experiment_name": "other"}}
    runtime.start(seed=None)
