"""What the driver shows of its stages: bars on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, Protocol

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from plugins.files import read_json
from plugins.progress import FILE_NAME
from plugins.report import LivePage
from plugins.workflow.records import working_folder

LINE_SECONDS = 30.0


class Display(Protocol):
    """What the driver tells of a run; every call is cheap."""

    def update(self, running: Iterable[str]) -> None:
        """Called about twice a second with the stages that are running."""

    def finished(self, name: str, seconds: float | None) -> None:
        """A stage is complete; ``None`` seconds if it was so already."""


@contextmanager
def shown(names: Sequence[str], run_dir: Path, runs: Mapping[Path, Collection[str]] | None = None) -> Iterator[Display]:
    """Bars if stdout is a terminal, else plain lines; and the page of the run.

    Args:
        names: all stages in the order of work.
        run_dir: folder of the run, in whose stages' folders ``progress.json`` is looked for.
        runs: of a study, as in :class:`plugins.report.LivePage`.
    """
    with closing(LivePage(names, run_dir, runs)) as page, on_console(names, run_dir) as console:
        yield Displays([console, page])


class Displays:
    """Several displays as one."""

    def __init__(self, displays: Sequence[Display]):
        self._displays = displays

    def update(self, running: Iterable[str]) -> None:
        """See :class:`Display`."""
        names = list(running)
        for display in self._displays:
            display.update(names)

    def finished(self, name: str, seconds: float | None) -> None:
        """See :class:`Display`."""
        for display in self._displays:
            display.finished(name, seconds)


@contextmanager
def on_console(names: Sequence[str], run_dir: Path) -> Iterator[LineDisplay]:
    """Bars if stdout is a terminal, else plain lines; see :func:`shown`."""
    if not sys.stdout.isatty():
        yield LineDisplay(names, run_dir)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    left = (TextColumn("left"), TimeRemainingColumn(), TextColumn("{task.fields[shown]}", style="dim"))
    with Progress(*columns, *left) as progress:
        yield TerminalDisplay(names, run_dir, progress, progress.add_task("stages", total=len(names), shown=""))


def read_progress(run_dir: Path, name: str) -> dict[str, Any] | None:
    """The content of a running stage's ``progress.json``, ``None`` as long as there is none."""
    try:
        state = read_json(working_folder(name, run_dir) / FILE_NAME)
    except (OSError, ValueError):
        return None
    return state if isinstance(state, dict) and {"done", "total"} <= state.keys() else None


def duration(seconds: float) -> str:
    """A duration in words.

    Example:
        >>> duration(7.4), duration(132), duration(7300)
        ('7 s', '2 min 12 s', '2 h 1 min')
    """
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 1:
        return f"{rest} s"
    hours, left = divmod(minutes, 60)
    return f"{hours} h {left} min" if hours else f"{minutes} min {rest} s"


class LineDisplay:
    """Plain lines: one when a stage begins, one when it ends, and its progress every half a minute."""

    def __init__(self, names: Sequence[str], run_dir: Path):
        self._names, self._run_dir = list(names), run_dir
        self._began: dict[tuple[str, str, float], tuple[float, float]] = {}
        self._shown: dict[str, float] = {}

    def update(self, running: Iterable[str]) -> None:
        """Print what has begun, and the progress of every stage whose last line is old."""
        now = time.monotonic()
        for name in running:
            if name not in self._shown:
                self._shown[name] = now
                self._print(name, "started")
            state = read_progress(self._run_dir, name)
            if state is None:
                continue
            step = (name, str(state.get("description")), state["total"])
            began, initial = self._began.setdefault(step, (now, state["done"]))
            if now - self._shown[name] >= LINE_SECONDS:
                self._shown[name] = now
                self._print(name, _progress_line(state, initial, now - began))

    def finished(self, name: str, seconds: float | None) -> None:
        """Print that a stage is complete."""
        self._print(name, "already complete" if seconds is None else f"done in {seconds:.0f} s")

    def _print(self, name: str, text: str) -> None:
        total = len(self._names)
        print(f"[{self._names.index(name) + 1:{len(str(total))}}/{total}] {name} ... {text}", flush=True)


def _progress_line(state: dict[str, Any], initial: float, seconds: float) -> str:
    done, total = state["done"], state["total"]
    line = f"{done / max(total, 1):.0%} ({done}/{total} {state.get('description', '')})".replace(" )", ")")
    if done > initial and seconds > 0:
        line += f", {duration((total - done) * seconds / (done - initial))} left"
    return line


class TerminalDisplay(LineDisplay):
    """A bar for the whole run, and one for every stage that is running and reports its progress.

    Args:
        names: all stages.
        run_dir: folder of the run.
        progress: shows the bars.
        whole: the bar of the run.
    """

    def __init__(self, names: Sequence[str], run_dir: Path, progress: Progress, whole: TaskID):
        super().__init__(names, run_dir)
        self._progress, self._whole = progress, whole
        self._tasks: dict[str, TaskID] = {}
        self._titles: dict[str, str] = {}

    def update(self, running: Iterable[str]) -> None:
        """Bring the bars up to date; a stage's bar appears with its first report, where its time left starts."""
        for name in running:
            state = read_progress(self._run_dir, name)
            if state is None:
                continue
            shown = " ".join(f"{key} {_short(value)}" for key, value in state.get("shown", {}).items())
            done, total = state["done"], state["total"]
            title = f"{name} {state.get('description', '')}".strip()
            if name in self._titles and self._titles[name] != title:
                self._progress.remove_task(self._tasks.pop(name))
            self._titles[name] = title
            if name not in self._tasks:
                self._tasks[name] = self._progress.add_task(title, completed=done, total=total, shown=shown)
            self._progress.update(self._tasks[name], completed=done, total=total, shown=shown)

    def finished(self, name: str, seconds: float | None) -> None:
        """Print the line of the stage and advance the bar of the run."""
        if name in self._tasks:
            self._progress.remove_task(self._tasks.pop(name))
        super().finished(name, seconds)
        self._progress.advance(self._whole)


def _short(value: float | str) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
