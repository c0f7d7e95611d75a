"""What is shown of a run, with and without a terminal."""

import io

import pytest
from rich.console import Console

from plugins.files import write_json
from plugins.workflow import display
from plugins.workflow.display import LineDisplay


@pytest.fixture
def clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: now[0])
    return now


def report(run_dir, done, description="slices"):
    state = {"description": description, "done": done, "total": 10, "shown": {"loss": 0.5}}
    write_json(run_dir / "b.partial" / "progress.json", state)


def test_plain_lines_tell_begin_progress_and_end(tmp_path, clock, capsys):
    lines = LineDisplay(["a", "b"], tmp_path)
    lines.finished("a", None)
    lines.update(["b"])
    report(tmp_path, 2)
    for clock[0], done in [(101.0, 2), (111.0, 4), (131.0, 4), (140.0, 6)]:
        report(tmp_path, done)
        lines.update(["b"])
    lines.finished("b", 131.6)
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] a ... already complete",
        "[2/2] b ... started",
        "[2/2] b ... 40% (4/10 slices), 1 min 30 s left",
        "[2/2] b ... done in 132 s",
    ]


def test_a_broken_progress_file_is_as_good_as_none(tmp_path, clock, capsys):
    (tmp_path / "b.partial").mkdir()
    (tmp_path / "b.partial" / "progress.json").write_text("{")
    LineDisplay(["b"], tmp_path).update(["b"])
    assert capsys.readouterr().out == "[1/1] b ... started\n"


def test_bars_show_every_running_step(tmp_path, monkeypatch):
    stream = io.StringIO()
    console = Console(file=stream, force_terminal=True, width=120)
    monkeypatch.setattr("rich.progress.get_console", lambda: console)
    monkeypatch.setattr("sys.stdout", console.file)
    monkeypatch.setattr(stream, "isatty", lambda: True, raising=False)
    with display.on_console(["a", "b"], tmp_path) as bars:
        for done, description in [(3, "preprocessing"), (1, "training")]:
            report(tmp_path, done, description)
            bars.update(["b"])
            bars._progress.refresh()
        bars.finished("b", 3.0)
    assert all(text in stream.getvalue() for text in ("stages", "b preprocessing", "b training", "loss 0.5"))
