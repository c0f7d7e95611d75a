"""The page of a run that is still at work: stages, time left, losses, the latest translations."""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from plugins.files import read_json, whole_file
from plugins.progress import FILE_NAME
from plugins.report import facts
from plugins.report.figures import thinned, translation_figure
from plugins.report.page import PAGE, render_live
from plugins.report.run import curve_figures
from plugins.state import StrPath

LIVE_PAGE, FOLDER = "report.html", "report"
EVERY_SECONDS = 20.0
SHARE = 0.05  # of the time that pages may take
LATEST = 2
TRANSLATION = "_translation"
LOSS = "loss"
COMPARISON = "comparison of the methods"
_logger = logging.getLogger(__name__)


def publish(run_dir: StrPath) -> Path:
    """Put the report of a run or a study in the place of its live page, and return that."""
    page = Path(run_dir, LIVE_PAGE)
    with whole_file(page) as part:
        shutil.copyfile(Path(run_dir, FOLDER, PAGE), part)
    return page


class LivePage:
    """Keeps ``<run>/report.html`` up to date; at the end of a run it is a copy of its report.

    A study writes its report when all stages are complete, so its page is still that of one at work then.

    A page that cannot be made is a warning: the run goes on.

    Args:
        names: all stages in the order of work.
        run_dir: folder of the run, or of the study.
        runs: of a study, absolute folder of each run to the names of its stages; ``None`` is for one run.
        every: least seconds between two versions; more where a page takes long to make.

    Attributes:
        path: of the page.
    """

    def __init__(
        self,
        names: Sequence[str],
        run_dir: StrPath,
        runs: Mapping[Path, Collection[str]] | None = None,
        every: float = EVERY_SECONDS,
    ):
        self._names, self._run = list(names), Path(run_dir)
        self._runs = runs or {self._run: self._names}
        self._every, self._written, self._cost = every, -every, 0.0
        self._done: dict[str, float | None] = {}
        self._running: list[str] = []
        self._drawn: dict[str, list[dict[str, Any]]] = {}  # curves of complete stages
        self.path = self._run / LIVE_PAGE

    def update(self, running: Iterable[str]) -> None:
        """Write the page if the last one is old, or something else is running."""
        now, before = time.monotonic(), self._running
        self._running = list(running)
        if now - self._written >= max(self._every, self._cost / SHARE) or self._running != before:
            self._write("running")

    def finished(self, name: str, seconds: float | None) -> None:
        """Note that a stage is complete; ``None`` seconds if it was so already."""
        self._done[name] = seconds
        self._cost = 0.0  # this is news

    def close(self) -> None:
        """Put the report of a run in the page's place, or say that the run, or study, has stopped or is compared."""
        if len(self._done) < len(self._names):
            self._running = [name for name in self._running if name not in self._done]
            self._write("stopped")
        elif self._run not in self._runs:
            self._running = [COMPARISON]
            self._write("running")
        elif (self._run / FOLDER / PAGE).is_file():
            publish(self._run)

    def _write(self, state: str) -> None:
        self._written = time.monotonic()
        try:
            text = render_live(*self._content(state))
            with whole_file(self.path) as part:
                part.write_text(text, encoding="utf-8")
        except Exception as error:  # a picture of the run must not end the run
            _logger.warning(f"{self.path}: cannot be brought up to date ({error}).")
        self._cost = time.monotonic() - self._written

    def _content(self, state: str) -> tuple[dict[str, Any], dict[str, Any]]:
        running = [self._progress(name) for name in self._running]
        stages = [{"name": name, "state": self._state(name), "seconds": self._done.get(name)} for name in self._names]
        content = {
            "kind": "live",
            "title": "A run at work" if state == "running" else "A run that has stopped",
            "name": self._run.name,
            "state": state,
            "time": time.strftime("%Y-%m-%d %H:%M:%S"),
            "done": len(self._done),
            "total": len(self._names),
            "running": running,
            "stages": stages,
        }
        return content, {"curves": self._curves(), "translations": self._translations()}

    def _state(self, name: str) -> str:
        if name in self._done:
            return "complete" if self._done[name] is not None else "was complete already"
        return "running" if name in self._running else "waits"

    def _progress(self, name: str) -> dict[str, Any]:
        try:
            state = read_json(self._run / f"{name}.partial" / FILE_NAME)
        except (OSError, ValueError):
            state = {}
        return {
            "done": None,
            "total": None,
            "seconds_left": None,
            "description": "",
            "shown": {},
            **state,
            "name": name,
        }

    def _curves(self) -> list[dict[str, Any]]:
        """Of trainings that are done or running; those of a complete stage are drawn once."""
        found = []
        for name in [*self._done, *self._running]:
            figures = self._drawn.get(name)
            if figures is None:
                losses = self._losses(self._run / (name if name in self._done else f"{name}.partial"))
                figures = curve_figures({name: losses}, self._names.index(name)) if losses else []
            if name in self._done:
                self._drawn[name] = figures
            found += figures
        return found

    @staticmethod
    def _losses(folder: Path) -> dict[str, Any]:
        """The losses alone; a chart for each scalar comes with the report."""
        series = {key: thinned(points) for key, points in facts.losses_in(folder).items() if points}
        return {key: points for key, points in series.items() if LOSS in key.lower()}

    def _translations(self) -> list[dict[str, str]]:
        """The latest translated scans of any view."""
        files: dict[Path, tuple[str, dict[str, Any]]] = {}
        for name in [name for name in (*self._done, *self._running) if TRANSLATION in Path(name).name]:
            run = next(run for run in self._runs if (self._run / name).is_relative_to(run))
            scans = {scan["case"]: scan for scan in facts.source_in(run, self._runs[run])}
            folder = self._run / (name if name in self._done else f"{name}.partial")
            files |= {path: (name, scans[c]) for path in folder.glob("*.nii.gz") if (c := path.name[:-7]) in scans}
        latest = sorted(files, key=os.path.getmtime, reverse=True)[:LATEST]
        return [
            {"case": scan["case"], "picture": translation_figure(scan, {name: path})}
            for path, (name, scan) in ((path, files[path]) for path in latest)
        ]
