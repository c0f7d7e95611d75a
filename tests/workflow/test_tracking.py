"""The driver's run in MLflow and the runs of its stages, for executors of threads and of processes."""

import os
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor

import pytest
from mlflow import MlflowClient
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from monai.handlers import MLFlowHandler

from plugins.files import read_json, write_json
from plugins.workflow import Stage, run_stages
from plugins.workflow.tracking import DriverRun

TRAINING = """
from ignite.engine import Engine

class Training:
    def __init__(self, train_handlers):
        self.engine = Engine(lambda engine, batch: [{"loss": float(batch)}])
        for handler in train_handlers:
            handler.attach(self.engine)

    def run(self):
        self.engine.run([3, 2], max_epochs=1)
"""
MEANS = {"vs": {"dice": 0.75, "assd_mm": 1.5, "failures": 0}, "cochlea": {"dice": None, "assd_mm": None}}


def writing(name, needs=(), **content):
    overrides = {"path": "{stage}/metrics.json", "content": content}
    return Stage(name=name, needs=needs, function="plugins.files.write_json", overrides=overrides)


@pytest.fixture
def training(tmp_path):
    """A stage that trains in a process of its own."""
    config = {
        "bundle_root": ".",
        "output_dir": None,
        "train": {"handlers": [], "trainer": {"_target_": "trainings.Training", "train_handlers": "@train::handlers"}},
        "run": ["$@train::trainer.run()"],
        "training": "%run",
    }
    write_json(tmp_path / "bundle" / "configs" / "train.json", config)
    (tmp_path / "bundle" / "trainings.py").write_text(TRAINING)
    return Stage(name="tanq_training", bundle=str(tmp_path / "bundle"), overrides={"output_dir": "{stage}"})


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return tmp_path_factory.mktemp("store") / "mlruns.db"


@pytest.fixture
def drive(tmp_path, store):
    """Runs stages as the driver does; gives its run and the runs below it by name."""
    run_dir, uri = tmp_path / "run", f"sqlite:///{store}"
    client = MlflowClient(uri)

    def drive(stages, executor=ThreadPoolExecutor, **parameters):
        handler = MLFlowHandler(tracking_uri=uri, experiment_name=tmp_path.name, close_on_complete=True)
        try:
            with (
                executor(1) as pool,
                DriverRun([handler], run_dir, parameters, rounds=1, settings=DEFAULT_MLFLOW_SETTINGS) as tracked,
            ):
                run_stages(stages, run_dir, pool, tracked.stages, tracked.finished)
        except FileNotFoundError as error:
            print(error)
        parent = client.get_run(read_json(run_dir / "mlflow.json")["run_id"])
        children = client.search_runs(
            [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
        )
        names = [child.info.run_name for child in children]
        assert len(names) == len(set(names))
        return client, parent, {child.info.run_name: child for child in children}

    return drive


def statuses(children):
    return {name: child.info.status for name, child in children.items()}


def test_stages_are_nested_runs_and_rounds_are_steps(training, drive):
    evaluations = [writing(f"round_{number}/evaluation", mean=MEANS) for number in (0, 1)]
    client, parent, children = drive([training, *evaluations], views="tanq")
    assert (parent.info.run_name, parent.info.status) == ("run", "FINISHED")
    assert parent.data.params == {"views": "tanq"}
    assert statuses(children) == dict.fromkeys(
        ("tanq_training", "round_0/evaluation", "round_1/evaluation"), "FINISHED"
    )
    assert children["tanq_training"].data.metrics["train_loss"] == 2
    dice = client.get_metric_history(parent.info.run_id, "vs_dice")
    assert [(metric.step, metric.value) for metric in dice] == [(0, 0.75), (1, 0.75)]
    assert set(parent.data.metrics) == {
        *(f"seconds/{name}" for name in children), "vs_dice", "vs_assd_mm",
    }  # fmt: skip


def test_a_store_named_in_the_environment_is_the_stages_too_and_not_written_down(drive, store, tmp_path, monkeypatch):
    monkeypatch.chdir(store.parent)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{store.name}")
    _, _, children = drive([writing("a")])
    assert statuses(children) == {"a": "FINISHED"}
    assert os.environ["MLFLOW_TRACKING_URI"] == f"sqlite:///{store}"
    assert read_json(tmp_path / "run" / "a" / "tracking.json")["configs"]["tracking_uri"] is None


@pytest.mark.parametrize("executor", [ThreadPoolExecutor, ProcessPoolExecutor])
def test_a_stopped_run_goes_on_in_the_same_runs(drive, tmp_path, executor):
    missing = tmp_path / "missing.json"
    stages = [
        writing("a"),
        Stage(name="b", needs=("a",), function="plugins.files.read_json", overrides={"path": str(missing)}),
    ]
    _, failed, children = drive(stages, executor, rounds=1)
    assert failed.info.status == "FAILED"
    assert statuses(children) == {"a": "FINISHED", "b": "FAILED"}
    write_json(missing, 1)
    client, done, again = drive(stages, executor, rounds=1)
    assert (done.info.run_id, done.info.status) == (failed.info.run_id, "FINISHED")
    assert {name: run.info.run_id for name, run in again.items()} == {n: r.info.run_id for n, r in children.items()}
    assert statuses(again) == {"a": "FINISHED", "b": "FINISHED"}
    assert len(client.get_metric_history(done.info.run_id, "seconds/a")) == 1


def test_other_settings_get_a_run_of_their_own(drive):
    _, first, _ = drive([writing("a")], rounds=1)
    _, second, children = drive([writing("a"), writing("b")], rounds=2)
    assert second.info.run_id != first.info.run_id
    assert first.info.run_name == second.info.run_name
    assert set(children) == {"b"}
    assert set(second.data.metrics) == {"seconds/a", "seconds/b"}
