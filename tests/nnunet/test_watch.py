from pathlib import Path

from ignite.engine import Events

from plugins.files import read_json, write_json
from plugins.nnunet.watch import TrainingWatch
from plugins.nnunet.workspace import Workspace


class Record:
    def __init__(self):
        self.events = []

    def attach(self, engine):
        for event in (Events.STARTED, Events.EPOCH_COMPLETED, Events.COMPLETED):
            engine.add_event_handler(event, lambda e, event=event: self.note(e, event))

    def note(self, engine, event):
        self.events.append((event.name, engine.state.epoch, dict(engine.state.metrics)))


def test_handlers_hear_of_every_epoch_of_every_network(tmp_path: Path):
    workspace, jobs = Workspace(tmp_path / "nnunet"), [("2d", 0), ("2d", 1)]
    write_json(workspace.fold("2d", 0) / "progress.json", {"done": 1, "shown": {}})
    record = Record()
    with TrainingWatch(workspace, jobs, 3, None, tmp_path, [record]):
        write_json(workspace.fold("2d", 0) / "progress.json", {"done": 2, "shown": {"loss": 0.5}})
        write_json(workspace.fold("2d", 1) / "progress.json", {"done": 3, "shown": {"loss": 0.25}})
    names = [name for name, *_ in record.events]
    assert names == ["STARTED", "EPOCH_COMPLETED", "EPOCH_COMPLETED", "COMPLETED"]
    assert [epoch for _, epoch, _ in record.events] == [1, 2, 5, 5]
    assert record.events[-1][2] == {"2d_fold_0_loss": 0.5, "2d_fold_1_loss": 0.25}
    state = read_json(tmp_path / "progress.json")
    assert (state["done"], state["total"], state["shown"]["job"]) == (5, 6, "2d fold 1")


def test_a_training_that_stopped_early_counts_as_done(tmp_path: Path):
    workspace = Workspace(tmp_path / "nnunet")
    write_json(workspace.fold("2d", 0) / "progress.json", {"done": 2, "shown": {}})
    write_json(workspace.fold("2d", 0) / "done.json", {"epochs": 2, "max_epochs": 10, "early_stop_patience": 1})
    with TrainingWatch(workspace, [("2d", 0)], 10, 1, tmp_path):
        pass
    assert read_json(tmp_path / "progress.json")["done"] == 10
