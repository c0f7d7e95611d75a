"""A training for some minutes: epochs and schedules follow, and a stopped one ends like one that was not."""

import time

import ignite.distributed as idist
import pytest
import torch
from ignite.engine import Engine

from plugins.engines import Resume, TimeBudget, constant_then_linear
from plugins.errors import InputError
from plugins.files import read_json


class Clock:
    """Time that passes only in epochs."""

    def __init__(self, monkeypatch, seconds):
        self.now, self.seconds = 100.0, seconds
        monkeypatch.setattr(time, "monotonic", lambda: self.now)

    def step(self, engine, batch):
        self.now += self.seconds[min(engine.state.epoch, len(self.seconds)) - 1] / engine.state.epoch_length
        self.optimizer.step()
        self.rates.append(self.optimizer.param_groups[0]["lr"])


def training(clock, folder, minutes, stop_after=None, max_epochs=3):
    """A trainer with the handlers in the order of the configs; its rates are ``clock.rates``."""
    clock.optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    clock.rates = []
    scheduler = constant_then_linear(clock.optimizer, max_epochs)
    engine = Engine(clock.step)
    engine.state.device = "cpu"
    engine.state.rank = 0
    TimeBudget(minutes, folder / "budget.json", [scheduler]).attach(engine)
    engine.add_event_handler("EPOCH_COMPLETED", lambda: scheduler.step())
    Resume(folder / "resume.pt", {"optimizer": clock.optimizer, "scheduler": scheduler}).attach(engine)
    if stop_after:
        engine.add_event_handler("EPOCH_COMPLETED", lambda e: e.terminate() if e.state.epoch == stop_after else None)
    engine.run([0, 1], max_epochs=max_epochs)
    return engine


def test_the_second_epoch_says_how_many_fit_into_the_minutes(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, [30.0, 10.0])
    engine = training(clock, tmp_path, minutes=2.0)
    assert engine.state.epoch == engine.state.max_epochs == 2 + round((120 - 40) / 10)
    assert clock.now - 100 == pytest.approx(120)


def test_the_rates_are_those_of_a_training_of_that_many_epochs(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, [30.0, 10.0])
    training(clock, tmp_path, minutes=2.0)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, wanted = constant_then_linear(optimizer, max_epochs=10), []
    for _ in range(10):
        wanted += [optimizer.param_groups[0]["lr"]] * 2
        optimizer.step()
        scheduler.step()
    assert clock.rates == pytest.approx(wanted)


@pytest.mark.parametrize("stop_after", [1, 2, 5])
def test_a_stopped_training_keeps_the_number_once_it_is_set(tmp_path, monkeypatch, stop_after):
    clock = Clock(monkeypatch, [30.0, 10.0])
    training(clock, tmp_path, minutes=2.0, stop_after=stop_after)
    first = clock.rates
    if stop_after >= 2:
        clock.seconds = [1000.0]
    engine = training(clock, tmp_path, minutes=2.0)
    if stop_after >= 2:
        assert engine.state.epoch == 10
        assert len(first) + len(clock.rates) == 20
        assert clock.rates[-1] == pytest.approx(1 - 5 / 6)


def test_a_budget_shorter_than_two_epochs_ends_after_them(tmp_path, monkeypatch):
    assert training(Clock(monkeypatch, [600.0]), tmp_path, minutes=1.0).state.epoch == 2


def test_epochs_that_take_no_time_are_no_fault(tmp_path, monkeypatch):
    engine = training(Clock(monkeypatch, [0.0]), tmp_path, minutes=2.0, stop_after=2)
    assert engine.state.max_epochs == 2 + round(120 / 1e-6)


def test_the_first_minute_counts_from_the_start_of_the_training(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, [70.0, 10.0])
    clock.now = 1e6
    assert training(clock, tmp_path, minutes=1.5).state.epoch == 3
    assert clock.now == pytest.approx(1e6 + 90)


def test_until_the_number_is_known_the_rate_is_the_first(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, [30.0])
    training(clock, tmp_path, minutes=0.01)
    assert clock.rates == [1.0] * 4


def test_the_record_is_that_of_the_first_rank_alone(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, [30.0, 10.0])
    training(clock, tmp_path / "first", minutes=2.0)
    assert read_json(tmp_path / "first" / "budget.json") == {"max_minutes": 2.0, "max_epochs": 10}
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    assert training(clock, tmp_path / "second", minutes=2.0).state.epoch == 10
    assert not (tmp_path / "second" / "budget.json").exists()


def test_another_number_of_minutes_is_refused(tmp_path, monkeypatch):
    clock = Clock(monkeypatch, [30.0, 10.0])
    training(clock, tmp_path, minutes=2.0)
    with pytest.raises(InputError, match=r"of 2\.0 minutes, but max_minutes is 3\.0"):
        training(clock, tmp_path, minutes=3.0)


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("epochs", [1, 3])
def test_a_training_by_epochs_does_not_go_on_by_minutes(tmp_path, monkeypatch, epochs, older):
    clock = Clock(monkeypatch, [30.0, 10.0])
    training(clock, tmp_path, minutes=None, max_epochs=epochs)
    if older:
        content = torch.load(tmp_path / "resume.pt", weights_only=True)
        del content["max_minutes"]
        torch.save(content, tmp_path / "resume.pt")
        if epochs <= 2:  # as of a training by minutes that was stopped
            assert training(clock, tmp_path, minutes=2.0).state.epoch > 2
            return
    words = r"resume\.pt is of a training without max_minutes\. Leave it out, or set another ckpt_dir\."
    with pytest.raises(InputError, match=words):
        training(clock, tmp_path, minutes=2.0)


@pytest.mark.parametrize("stop_after", [1, None])
def test_a_training_by_minutes_does_not_go_on_by_epochs(tmp_path, monkeypatch, stop_after):
    clock = Clock(monkeypatch, [30.0, 10.0])
    training(clock, tmp_path, minutes=2.0, stop_after=stop_after)
    words = r"resume\.pt is of a training of 2\.0 minutes, but max_minutes is None\. Give the same"
    with pytest.raises(InputError, match=words):
        training(clock, tmp_path, minutes=None, max_epochs=20)


@pytest.mark.parametrize("minutes", [0, -1, float("nan"), float("inf")])
def test_minutes_must_be_a_positive_number(tmp_path, minutes):
    with pytest.raises(InputError, match="max_minutes"):
        TimeBudget(minutes, tmp_path / "budget.json", [])


def test_without_minutes_the_epochs_are_those_of_the_config(tmp_path, monkeypatch):
    assert training(Clock(monkeypatch, [600.0]), tmp_path, minutes=None).state.epoch == 3
    assert not (tmp_path / "budget.json").exists()
