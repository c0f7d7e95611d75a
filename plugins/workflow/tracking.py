"""The driver's run in MLflow, and the runs of its stages below it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from ignite.engine import Engine, Events
from monai.handlers import MLFlowHandler

from plugins.evaluation.compare import MEASURES
from plugins.files import write_json
from plugins.state import read_state, recall_state
from plugins.workflow.plan import EVALUATION, METRICS
from plugins.workflow.process import Stopped
from plugins.workflow.records import REMAKE, TRACKING, complete_folder, read_record

if TYPE_CHECKING:  # an extra, and slow to import
    from mlflow import MlflowClient
    from mlflow.entities import Run

RUN_FILE, CONFIG_FILE = "mlflow.json", "tracked_config.json"
PARENT = "mlflow.parentRunId"
_SQLITE = "sqlite:///"


class StageHandler(MLFlowHandler):
    """MONAI's handler on a run that is there already.

    MONAI's own goes on with any unfinished run of its name, or of any name, that the experiment has.

    Args:
        run_id: of MLflow.
        **settings: of :class:`monai.handlers.MLFlowHandler`.
    """

    def __init__(self, run_id: str, **settings: Any):
        super().__init__(**settings)
        self._run_id = run_id

    def start(self, engine: Engine) -> None:
        """Find the run, and log what MONAI logs when a training starts."""
        self.cur_run = self.client.get_run(self._run_id)
        super().start(engine)


@dataclass(frozen=True)
class Tracking:
    """Where the runs of stages go; may be sent to other processes.

    Args:
        uri: of MLflow's store.
        experiment_id: of the experiment of all runs.
        parent: id of the driver's run.
        settings: for ``--tracking`` of the stages.
    """

    uri: str
    experiment_id: str
    parent: str
    settings: Mapping[str, Any]

    @contextmanager
    def stage_run(self, name: str, folder: Path, continued: bool) -> Iterator[None]:
        """Have a run of a stage in MLflow; it ends as FINISHED, FAILED, or KILLED if the stage is stopped.

        Args:
            name: of the stage.
            folder: gets ``tracking.json``, the stage's own settings for ``--tracking``.
            continued: go on with the stage's latest run, if there is any, instead of a new one.
        """
        from mlflow import MlflowClient

        client = MlflowClient(self.uri)
        run_id = self._open(client, name, continued)
        write_json(folder / TRACKING, self._settings_of(run_id, folder))
        try:
            yield
        except BaseException as error:
            client.set_terminated(run_id, _status(type(error)))
            raise
        client.set_terminated(run_id, "FINISHED")

    def _open(self, client: MlflowClient, name: str, continued: bool) -> str:
        of_stage = f"tags.`{PARENT}` = '{self.parent}' and attributes.run_name = '{name}'"
        earlier = client.search_runs([self.experiment_id], of_stage, order_by=["attributes.start_time DESC"])
        if continued and earlier:
            client.update_run(earlier[0].info.run_id, status="RUNNING")
            return str(earlier[0].info.run_id)
        for run in earlier:
            if run.info.status == "RUNNING":  # its driver was killed
                client.set_terminated(run.info.run_id, "KILLED")
        return str(client.create_run(self.experiment_id, run_name=name, tags={PARENT: self.parent}).info.run_id)

    def _settings_of(self, run_id: str, folder: Path) -> dict[str, Any]:
        configs = dict(self.settings["configs"])
        for name in self.settings["handlers_id"]:
            node = configs.get(name)
            if isinstance(node, Mapping) and str(node.get("_target_")).endswith(MLFlowHandler.__name__):
                configs[name] = {**node, "_target_": f"{__name__}.{StageHandler.__name__}", "run_id": run_id}
        if configs.get("save_execute_config", True):
            configs["save_execute_config"] = str(folder / CONFIG_FILE)
        return {**self.settings, "configs": configs}


@dataclass
class DriverRun:
    """Tells handlers of a run, as if it were a training whose epochs are the evaluated rounds; a context manager.

    ``state.epoch`` is the round, ``state.metrics`` holds ``vs_dice``, ``vs_assd_mm``, ``cochlea_dice`` and so on.

    With MONAI's ``MLFlowHandler`` among the handlers, the folder of the run remembers its run in MLflow. It is
    continued as long as the parameters are the same, else there will be another.

    Args:
        handlers: of ignite or MONAI.
        run_dir: folder of the run, by whose name it goes in MLflow.
        parameters: name to value.
        rounds: rounds of self-training.
        settings: of ``--tracking``, as the user gave them; the stages get them too.

    Attributes:
        stages: where the runs of the stages go; ``None`` before it is entered and without MLflow.
    """

    handlers: Sequence[Any]
    run_dir: Path
    parameters: Mapping[str, Any]
    rounds: int
    settings: Mapping[str, Any]
    stages: Tracking | None = field(default=None, init=False)

    def __enter__(self) -> DriverRun:
        self._parameters = {name: str(value) for name, value in self.parameters.items()}
        self._known: set[str] = set()
        self._engine = Engine(lambda engine, batch: None)
        self._engine.state.max_epochs = self.rounds + 1
        self._mlflow = next((each for each in self.handlers if isinstance(each, MLFlowHandler)), None)
        for handler in self.handlers:
            handler.attach(self._engine)
        if self._mlflow is not None:
            self._open(self._mlflow)
        self._engine.fire_event(Events.STARTED)
        self._disconnect()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self._engine.fire_event(Events.COMPLETED)
        elif self._mlflow is not None and self.stages is not None:
            self._mlflow.client.set_terminated(self.stages.parent, _status(kind))

    def finished(self, name: str, seconds: float | None) -> None:
        """A stage is complete; what the run in MLflow knows already is not told again.

        Args:
            name: of the stage.
            seconds: of work; ``None`` if it was complete already.
        """
        key = f"seconds/{name}"
        if seconds is None and key in self._known:
            return
        folder = complete_folder(name, self.run_dir)
        round_name, _, kind = name.partition("/")
        if kind == EVALUATION:
            self._engine.state.epoch = int(round_name.removeprefix("round_"))
            self._engine.state.metrics = _means(read_state(folder / METRICS, dict[str, Any], REMAKE)["mean"])
            self._engine.fire_event(Events.EPOCH_COMPLETED)
        if self._mlflow is not None and self.stages is not None:
            if seconds is None and (record := read_record(folder)) is not None:
                seconds = record["seconds"]
            self._mlflow.client.log_metric(self.stages.parent, key, seconds)
            self._disconnect()

    def _open(self, handler: MLFlowHandler) -> None:
        from mlflow.environment_variables import MLFLOW_TRACKING_URI

        handler._set_experiment()
        experiment = handler.experiment
        run = self._earlier(handler.client, experiment.experiment_id)
        if run is None:
            run = handler.client.create_run(experiment.experiment_id, run_name=self.run_dir.name)
            write_json(self.run_dir / RUN_FILE, {"run_id": run.info.run_id})
        else:
            handler.client.update_run(run.info.run_id, status="RUNNING")
            self._known = set(run.data.metrics)
        handler.cur_run = run
        handler.experiment_param = {**(handler.experiment_param or {}), **self._parameters}
        handler.default_tracking_params = []  # those of a training
        uri = _absolute(handler.client.tracking_uri)
        settings = {**self.settings, "configs": {**self.settings["configs"], "experiment_name": experiment.name}}
        settings["configs"]["tracking_uri"] = uri
        if MLFLOW_TRACKING_URI.is_set():  # comes first for MONAI and reaches the stages; it may hold a password
            MLFLOW_TRACKING_URI.set(uri)
            settings["configs"]["tracking_uri"] = None
        self.stages = Tracking(uri, experiment.experiment_id, run.info.run_id, settings)

    def _disconnect(self) -> None:
        """Leave no connection to SQLite open: a process that is forked for the next stage must not inherit it."""
        if self._mlflow is not None:
            self._mlflow._dispose_sqlite_store()

    def _earlier(self, client: MlflowClient, experiment_id: str) -> Run | None:
        from mlflow.exceptions import MlflowException

        file = self.run_dir / RUN_FILE
        known = recall_state(file, dict[str, str], "A new run is begun in MLflow")
        if known is None or "run_id" not in known:
            return None
        try:
            run = client.get_run(known["run_id"])
        except MlflowException:  # of another store
            return None
        params = {name: run.data.params.get(name) for name in self._parameters}
        usable = run.info.experiment_id == experiment_id and run.info.lifecycle_stage == "active"
        return run if usable and params == self._parameters else None


def _status(error: type[BaseException]) -> str:
    return "KILLED" if issubclass(error, (Stopped, KeyboardInterrupt)) else "FAILED"


def _means(structures: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    """``{"vs_dice": 0.8, ...}`` of what :func:`plugins.evaluation.evaluate.summarise` gives; no value, no entry."""
    return {
        f"{structure}_{measure}": means[measure]
        for structure, means in structures.items()
        for measure in MEASURES
        if means[measure] is not None
    }


def _absolute(uri: str) -> str:
    """A store in a file is found from any working directory."""
    return _SQLITE + os.path.abspath(uri.removeprefix(_SQLITE)) if uri.startswith(_SQLITE) else uri
