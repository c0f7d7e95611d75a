from __future__ import annotations

import pytest

from plugins.files import read_json
from plugins.progress import FILE_NAME, Progress


def test_the_file_is_there_before_the_first_step(tmp_path):
    with Progress(total=4, description="slices", folder=tmp_path):
        state = read_json(tmp_path / FILE_NAME)
    assert state == {"description": "slices", "done": 0, "total": 4, "seconds_left": None, "shown": {}}


def test_the_file_tells_what_was_done_and_shown_last(tmp_path):
    with Progress(total=4, description="slices", folder=tmp_path) as progress:
        progress.advance(loss=0.5, case="a")
        progress.advance(2, loss=0.25)
    state = read_json(tmp_path / FILE_NAME)
    assert state.pop("seconds_left") == 0
    assert state == {"description": "slices", "done": 3, "total": 4, "shown": {"loss": 0.25, "case": "a"}}


def test_the_time_left_is_estimated_from_the_steps_of_this_process(tmp_path, monkeypatch):
    clock = iter([100.0, 100.0])
    monkeypatch.setattr("plugins.progress.time.monotonic", lambda: next(clock, 110.0))
    with Progress(total=10, description="slices", folder=tmp_path, initial=4) as progress:
        progress.advance(2)
        assert progress.seconds_left == 20


def test_the_last_step_is_written_at_once(tmp_path):
    with Progress(total=2, description="slices", folder=tmp_path) as progress:
        progress.advance(2)
        assert read_json(tmp_path / FILE_NAME)["done"] == 2


def test_steps_of_an_earlier_process_count(tmp_path):
    with Progress(total=4, description="slices", folder=tmp_path, initial=3) as progress:
        progress.advance()
    assert read_json(tmp_path / FILE_NAME)["done"] == 4


def test_an_error_leaves_the_state_at_which_it_happened(tmp_path):
    def work():
        with Progress(total=4, description="slices", folder=tmp_path) as progress:
            progress.advance()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        work()
    assert read_json(tmp_path / FILE_NAME)["done"] == 1


def test_steps_within_a_second_of_each_other_cost_no_writes(tmp_path, monkeypatch):
    monkeypatch.setattr("plugins.progress.time.monotonic", lambda: 100.0)
    with Progress(total=4, description="slices", folder=tmp_path) as progress:
        progress.advance()
        assert read_json(tmp_path / FILE_NAME)["done"] == 0


def test_no_folder_no_file_and_no_bar_off_the_terminal(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with Progress(total=1, description="slices") as progress:
        progress.advance(loss=0.5)
    assert list(tmp_path.iterdir()) == []
    captured = capsys.readouterr()
    assert captured.out + captured.err == ""
