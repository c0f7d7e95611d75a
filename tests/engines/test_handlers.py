"""Handlers on an engine that counts: what is kept when, and what a continued run begins with."""

import logging
import random

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from torch import nn

from plugins.engines import (
    BeginFrom,
    MovingAverage,
    Resume,
    SaveBest,
    SaveWeights,
    ScanwiseEvaluator,
    ShowProgress,
    TrainingRecord,
)
from plugins.engines import handlers as module
from plugins.errors import InputError
from plugins.files import read_json
from plugins.runtime import random_state, set_random_state
from plugins.store import TRAINING


def counting(network=None):
    """An engine that adds 1 to the weights at each step."""

    def step(engine, batch):
        for parameter in network.parameters() if network else ():
            parameter.data += 1
        return {"loss": torch.tensor(engine.state.iteration + 0.123456), "other": 2.0}

    engine = Engine(step)
    engine.state.device, engine.state.rank = "cpu", 0
    return engine


def one_weight():
    network = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(network.weight)
    return network


@pytest.fixture
def process(monkeypatch):
    """Makes this process one of a group."""

    def become(rank, of=2):
        monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
        monkeypatch.setattr(torch.distributed, "get_rank", lambda: rank)
        monkeypatch.setattr(torch.distributed, "get_world_size", lambda: of)

    return become


def draws():
    return [random.random(), random.gauss(0, 1), *np.random.rand(2), np.random.randn(), *torch.rand(2).tolist()]


class TestRandomState:
    def test_all_three_generators_go_on_from_it_also_between_the_two_of_a_gaussian_pair(self):
        random.gauss(0, 1), np.random.randn()
        state = random_state()
        expected = draws()
        assert draws() != expected
        set_random_state(state)
        assert draws() == expected

    def test_it_is_made_of_tensors_and_plain_numbers(self, tmp_path):
        torch.save(random_state(), tmp_path / "state.pt")
        state = torch.load(tmp_path / "state.pt", weights_only=True)
        expected = draws()
        set_random_state(state)
        assert draws() == expected


class TestResume:
    @pytest.mark.parametrize(("interval", "kept"), [(1, [1, 2, 3, 4, 5]), (2, [0, 2, 2, 4, 5]), (9, [0, 0, 0, 0, 5])])
    def test_every_intervalth_epoch_and_the_last_are_kept(self, tmp_path, interval, kept):
        engine, path, found = counting(), tmp_path / "resume.pt", []
        Resume(path, {}, interval=interval).attach(engine)

        @engine.on(Events.EPOCH_COMPLETED)
        def look(_):
            found.append(torch.load(path, weights_only=True)["epoch"] if path.exists() else 0)

        engine.run([0, 0], max_epochs=5)
        assert found == kept

    def test_every_epoch_is_kept_by_default(self, tmp_path):
        assert Resume(tmp_path / "resume.pt", {}).interval == 1

    def test_a_continued_run_has_the_epoch_the_step_and_the_weights_of_the_stopped_one(self, tmp_path):
        seen = []
        for epochs in (2, 3):
            network = one_weight()
            engine = counting(network)
            Resume(tmp_path / "resume.pt", {"network": network}).attach(engine)
            engine.add_event_handler(
                Events.ITERATION_COMPLETED,
                lambda e, n=network: seen.append((e.state.epoch, e.state.iteration, n.weight.item())),
            )
            engine.run([0, 0, 0], max_epochs=epochs)
        assert seen == [((step + 2) // 3, step, step) for step in range(1, 10)]

    def test_a_run_of_as_many_epochs_as_were_done_is_accepted_and_one_of_fewer_refused(self, tmp_path):
        for epochs in (2, 2):
            engine = counting()
            Resume(tmp_path / "resume.pt", {}).attach(engine)
            engine.run([0], max_epochs=epochs)
        engine = counting()
        Resume(tmp_path / "resume.pt", {}).attach(engine)
        with pytest.raises(InputError, match="of a training of 2 epochs, but max_epochs is 1"):
            engine.run([0], max_epochs=1)

    def test_an_engine_that_is_run_once_more_keeps_the_weights_that_it_has(self, tmp_path):
        network = one_weight()
        engine = counting(network)
        Resume(tmp_path / "resume.pt", {"network": network}).attach(engine)
        engine.run([0], max_epochs=1)
        nn.init.constant_(network.weight, 10)
        engine.run([0], max_epochs=2)
        assert network.weight.item() == 11

    def test_attributes_of_the_engine_and_its_scaler_come_back(self, tmp_path):
        class Scaler:
            def __init__(self, value):
                self.value = value

            def state_dict(self):
                return {"value": self.value}

            def load_state_dict(self, state):
                self.value = state["value"]

        for values, epochs in (((3, 4), 1), ((0, 0), 2)):
            engine = counting()
            engine.pool, engine.scaler = Scaler(values[0]), Scaler(values[1])
            Resume(tmp_path / "resume.pt", {}, ["pool"]).attach(engine)
            engine.run([0], max_epochs=epochs)
        assert (engine.pool.value, engine.scaler.value) == (3, 4)

    @pytest.mark.parametrize("scaled_first", [False, True])
    def test_a_scaler_on_one_side_only_is_no_fault(self, tmp_path, scaled_first):
        for scaled, epochs in ((scaled_first, 1), (not scaled_first, 2)):
            engine = counting()
            engine.scaler = torch.amp.GradScaler("cpu", enabled=False) if scaled else None
            Resume(tmp_path / "resume.pt", {}).attach(engine)
            engine.run([0], max_epochs=epochs)
        assert engine.state.epoch == 2

    def test_a_second_rank_keeps_its_random_state_alone_in_its_own_file(self, tmp_path, process):
        process(rank=1)
        engine = counting()
        Resume(tmp_path / "resume.pt", {"network": one_weight()}).attach(engine)
        engine.run([0], max_epochs=1)
        assert [file.name for file in tmp_path.glob("*.pt")] == ["resume_rank1.pt"]
        assert set(torch.load(tmp_path / "resume_rank1.pt", weights_only=True)) == {"epoch", "iteration", "random"}

    def test_each_rank_goes_on_with_its_own_random_numbers(self, tmp_path, process):
        wanted = {}
        for epochs in (1, 2):
            for rank in (1, 0):  # else rank 1 would find the file of rank 0 in the first round
                process(rank)
                engine = counting()
                if epochs == 1:
                    torch.manual_seed(100 + rank)
                Resume(tmp_path / "resume.pt", {}).attach(engine)
                started = []
                engine.add_event_handler(
                    Events.STARTED, lambda _, started=started: started.append(torch.get_rng_state())
                )
                engine.run([0], max_epochs=epochs)
                wanted[epochs, rank] = started[0]
        for rank in (0, 1):
            assert torch.equal(wanted[2, rank], wanted[1, rank])
        assert not torch.equal(wanted[2, 0], wanted[2, 1])

    @staticmethod
    def run(path, epochs):
        engine = counting()
        Resume(path, {}).attach(engine)
        engine.run([0], max_epochs=epochs)

    def test_a_missing_file_of_a_rank_is_named(self, tmp_path, process):
        process(rank=0)
        self.run(tmp_path / "resume.pt", 1)
        process(rank=1)
        with pytest.raises(InputError, match=r"resume_rank1\.pt is missing"):
            self.run(tmp_path / "resume.pt", 2)

    @pytest.mark.parametrize(("before", "now"), [(2, 1), (1, 2), (4, 2)])
    def test_another_number_of_processes_is_refused(self, tmp_path, process, before, now):
        process(0, before)
        self.run(tmp_path / "resume.pt", 1)
        process(0, now)
        words = f"processes was {before}, not {now}. Go on with as many processes as before, or set another ckpt_dir"
        with pytest.raises(InputError, match=rf"resume\.pt is of a training whose number of {words}"):
            self.run(tmp_path / "resume.pt", 2)

    def test_a_checkpoint_of_before_that_tells_neither_processes_nor_minutes_is_gone_on_with(self, tmp_path, process):
        self.run(tmp_path / "resume.pt", 1)
        content = torch.load(tmp_path / "resume.pt", weights_only=True)
        assert content.pop("processes") == 1
        assert content.pop("max_minutes") is None
        torch.save(content, tmp_path / "resume.pt")
        process(0, 2)
        self.run(tmp_path / "resume.pt", 2)


class TestBeginFrom:
    @pytest.fixture
    def earlier(self, tmp_path):
        """The checkpoint of a training that has moved its weight from 0 to 4."""
        network, path = one_weight(), tmp_path / "earlier" / "resume.pt"
        optimizer = torch.optim.SGD(network.parameters(), lr=0.5)
        engine = counting(network)
        Resume(path, {"network": network, "optimizer": optimizer}).attach(engine)
        engine.run([0, 0], max_epochs=2)
        return path

    def begun(self, path, folder, epochs):
        network = one_weight()
        optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
        objects = {"network": network, "optimizer": optimizer}
        engine = counting(network)
        Resume(folder / "resume.pt", objects).attach(engine)
        BeginFrom(path, objects).attach(engine)
        engine.run([0, 0], max_epochs=epochs)
        return float(network.weight), optimizer.param_groups[0]["lr"]

    def test_networks_go_on_while_epochs_and_optimisers_are_new(self, earlier, tmp_path):
        assert self.begun(earlier, tmp_path, epochs=1) == (4 + 2, 1.0)

    def test_a_training_with_a_checkpoint_of_its_own_goes_on_from_that(self, earlier, tmp_path):
        self.begun(earlier, tmp_path, epochs=1)
        assert self.begun(earlier, tmp_path, epochs=2) == (4 + 2 + 2, 1.0)

    def test_a_missing_checkpoint_and_other_networks_are_named(self, earlier, tmp_path):
        with pytest.raises(InputError, match=r"nowhere\.pt"):
            self.begun(tmp_path / "nowhere.pt", tmp_path, epochs=1)
        for objects in ({"network": nn.Linear(2, 1)}, {"other": one_weight()}):
            engine = counting()
            BeginFrom(earlier, objects).attach(engine)
            with pytest.raises(InputError, match="is of other networks"):
                engine.run([0], max_epochs=1)


class TestMovingAverage:
    @pytest.mark.parametrize(("decay", "expected"), [(0.999, 0.001), (0.5, 0.5)])
    def test_it_ends_at_its_decay(self, decay, expected):
        assert MovingAverage(one_weight(), decay).momentum == pytest.approx(expected)
        assert MovingAverage(one_weight()).momentum == pytest.approx(0.001)

    def test_it_is_the_equation_step_by_step(self):
        network = one_weight()
        engine, average, expected, found = counting(network), MovingAverage(network, 0.3), 0.0, []
        average.attach(engine)
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda _: found.append(average.ema_model.weight.item()))
        engine.run([0] * 6, max_epochs=1)
        for n, value in enumerate(found, start=1):
            decay = min(0.3, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * n
            assert value == pytest.approx(expected, rel=1e-6)


class TestShowProgress:
    @pytest.fixture
    def bars(self, monkeypatch):
        made = []

        class Bar:
            def __init__(self, total, description, folder, initial):
                self.total, self.description, self.folder, self.initial = total, description, folder, initial
                self.steps, self.closed = [], 0
                made.append(self)

            def advance(self, steps, **shown):
                self.steps.append((steps, self.total, shown))

            def close(self):
                self.closed += 1

        monkeypatch.setattr(module, "Progress", Bar)
        return made

    def test_one_bar_counts_the_steps_of_all_epochs_and_shows_rounded_losses(self, bars):
        engine = counting()
        ShowProgress("training", "folder", ("loss", "missing")).attach(engine)
        engine.run([0, 0], max_epochs=2)
        (bar,) = bars
        assert (bar.total, bar.description, bar.folder, bar.initial, bar.closed) == (4, "training", "folder", 0, 1)
        assert bar.steps == [
            (1, 4, {"epoch": f"{(n + 1) // 2}/2", "loss": pytest.approx(n + 0.1235, abs=1e-9)}) for n in range(1, 5)
        ]

    def test_a_continued_run_begins_where_it_was_stopped(self, bars):
        engine = counting()
        ShowProgress("training").attach(engine)
        engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "epoch", 1))
        engine.add_event_handler(Events.STARTED, lambda e: setattr(e.state, "iteration", 2))
        engine.run([0, 0], max_epochs=3)
        assert bars[0].initial == 2
        assert len(bars[0].steps) == 4

    def test_a_number_of_epochs_that_changes_changes_the_total(self, bars):
        engine = counting()
        ShowProgress("training").attach(engine)
        engine.add_event_handler(Events.EPOCH_COMPLETED(once=1), lambda e: setattr(e.state, "max_epochs", 3))
        engine.run([0, 0], max_epochs=2)
        assert [total for _, total, _ in bars[0].steps] == [4, 4, 6, 6, 6, 6]

    def test_the_first_of_a_list_of_outputs_is_shown_and_other_outputs_are_not(self, bars):
        for output, expected in (([{"loss": 1.0}, {"loss": 2.0}], {"loss": 1.0}), (torch.zeros(1), {}), (None, {})):
            engine = Engine(lambda e, b, output=output: output)
            engine.state.rank = 0
            ShowProgress("training").attach(engine)
            engine.run([0], max_epochs=1)
            assert bars[-1].steps == [(1, 1, {"epoch": "1/1"} | expected)]

    def test_a_second_rank_shows_nothing_and_a_second_run_has_its_own_bar(self, bars):
        engine = counting()
        engine.state.rank = 1
        ShowProgress("training").attach(engine)
        engine.run([0], max_epochs=1)
        assert bars == []
        engine.state.rank = 0
        for _ in range(2):
            engine.run([0], max_epochs=engine.state.epoch + 1)
        assert [bar.closed for bar in bars] == [1, 1]


class TestSaving:
    @pytest.mark.parametrize("rank", [0, 1])
    def test_weights_are_written_by_the_first_rank_alone(self, tmp_path, rank):
        engine = counting()
        engine.state.rank = rank
        SaveWeights(tmp_path / "model.pt", one_weight()).attach(engine)
        engine.run([0], max_epochs=1)
        assert (tmp_path / "model.pt").exists() == (rank == 0)

    @staticmethod
    def evaluate(folder, epoch, best_epoch, rank=0, metrics=None):
        engine = counting()
        state = engine.state
        state.rank, state.best_metric, state.best_metric_epoch = rank, 0.5, -1
        state.metrics = metrics or {}
        SaveBest(folder / "best.pt", one_weight()).attach(engine)
        remembered = []
        engine.add_event_handler(
            Events.STARTED, lambda e: remembered.append((state.best_metric, state.best_metric_epoch))
        )
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda e: setattr(state, "best_metric_epoch", best_epoch))
        state.epoch = epoch - 1
        engine.run([0], max_epochs=epoch)
        return remembered[0]

    def test_only_the_best_epoch_of_the_first_rank_is_written_without_metrics_that_are_not_finite(self, tmp_path):
        self.evaluate(tmp_path, 3, best_epoch=2)
        self.evaluate(tmp_path, 3, best_epoch=3, rank=1)
        assert list(tmp_path.iterdir()) == []
        self.evaluate(tmp_path, 3, best_epoch=3, metrics={"dice": 0.5, "distance": float("inf"), "none": float("nan")})
        assert read_json(tmp_path / "best.json") == {"epoch": 3, "key_metric": 0.5, "metrics": {"dice": 0.5}}

    def test_a_record_of_an_earlier_epoch_is_remembered_and_one_of_the_same_or_a_later_is_not(self, tmp_path):
        self.evaluate(tmp_path, 3, best_epoch=3)
        (tmp_path / "best.json").write_text('{"epoch": 3, "key_metric": 0.75, "metrics": {}}')
        assert self.evaluate(tmp_path, 4, best_epoch=0) == (0.75, 3)
        assert self.evaluate(tmp_path, 3, best_epoch=0) == (0.5, -1)
        assert self.evaluate(tmp_path, 2, best_epoch=0) == (0.5, -1)


class TestScanwise:
    def test_a_scan_that_fails_or_could_not_be_read_is_noted_and_the_next_is_done(self, caplog):
        class Network(nn.Module):
            def forward(self, x):
                if x.sum() < 0:
                    raise InputError("the scan is empty. Leave it out.")
                return 2 * x

        batches = [
            {"case": ["a"], "image": torch.ones(1, 1), "label": torch.zeros(1, 1)},
            {"case": ["b"], "image": -torch.ones(1, 1), "label": torch.zeros(1, 1)},
            {"case": ["c"], "failed": ["c.nii.gz is damaged."]},
            {"case": ["d"], "image": 3 * torch.ones(1, 1), "label": torch.zeros(1, 1)},
        ]
        engine = ScanwiseEvaluator(device="cpu", val_data_loader=batches, network=Network(), decollate=False)
        assert engine.failed == {}
        outputs = []
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: outputs.append(e.state.output))
        with caplog.at_level(logging.ERROR):
            engine.run()
        assert engine.failed == {"b": "b: the scan is empty. Leave it out.", "c": "c.nii.gz is damaged."}
        assert [output.get("pred") for output in outputs] == [2, None, None, 6]
        assert outputs[1] == outputs[2] == {}
        words = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
        assert words == [f"left out: {sentence}" for sentence in engine.failed.values()]


class TestTrainingRecord:
    @staticmethod
    def begin(folder, data, resume=True):
        engine = counting()
        TrainingRecord(folder / "models" / "model.pt", {"rate": 1}, data, resume).attach(engine)
        engine.run([0], max_epochs=1)

    @pytest.fixture
    def scans(self, tmp_path):
        for name in "abc":
            (tmp_path / name).write_text(name)
        return {name: str(tmp_path / name) for name in "abc"}

    def test_lists_of_scans_count_in_the_order_of_their_names(self, tmp_path, scans):
        lists = {"source": [{"image": scans["a"], "label": scans["b"]}], "target": [{"image": scans["c"]}]}
        self.begin(tmp_path, lists)
        self.begin(tmp_path, dict(reversed(lists.items())))

    @pytest.mark.parametrize("changed", ["a", "b", "c"])
    def test_another_image_or_label_is_noticed(self, tmp_path, scans, changed):
        lists = {"source": [{"image": scans["a"], "label": scans["b"]}], "target": [{"image": scans["c"]}]}
        self.begin(tmp_path, lists)
        (tmp_path / changed).write_text("another")
        with pytest.raises(InputError, match="holds a training with other scans"):
            self.begin(tmp_path, lists)
        self.begin(tmp_path, lists, resume=False)
        self.begin(tmp_path, lists)

    @pytest.mark.parametrize(("weights", "resume"), [(True, True), (True, False), (False, True)])
    def test_weights_without_a_record_are_taken_over_with_a_warning(self, tmp_path, caplog, weights, resume):
        if weights:
            (tmp_path / "models").mkdir()
            (tmp_path / "models" / "model.pt").touch()
        with caplog.at_level(logging.WARNING):
            self.begin(tmp_path, {}, resume)
        assert ("holds weights without training.json" in caplog.text) == (weights and resume)
        assert read_json(tmp_path / "models" / TRAINING)["settings"] == {"rate": 1}

    def test_a_second_rank_writes_no_record(self, tmp_path, monkeypatch):
        monkeypatch.setattr(idist, "get_rank", lambda: 1)
        self.begin(tmp_path, {})
        assert not (tmp_path / "models").exists()
