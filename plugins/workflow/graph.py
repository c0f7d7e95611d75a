"""All stages of a run, or of several, in the order their needs allow, by any executor of ``concurrent.futures``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Executor, Future, wait
from contextlib import suppress
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

from plugins.interrupts import check
from plugins.state import StrPath
from plugins.workflow.display import shown
from plugins.workflow.execution import check_overrides, is_complete, refuse_foreign_folder, replace_folder, run_stage
from plugins.workflow.process import CommandError
from plugins.workflow.records import complete_folder, working_folder
from plugins.workflow.stage import Stage, fingerprint
from plugins.workflow.tracking import Tracking

STOP = ".stop"
UPDATE_SECONDS = 0.5

Finished = Callable[[str, float | None], None]


def check_stages(stages: Sequence[Stage], run_dir: StrPath) -> None:
    """Refuse stages that cannot work, before any is run.

    Raises:
        InputError: naming the first override that cannot work, or a foreign folder in the place of a stage.
    """
    for stage in stages:
        check_overrides(stage)
        refuse_foreign_folder(stage.name, Path(run_dir).absolute())


@dataclass(frozen=True)
class Job:
    """Stages of several runs that are the same: one is made, the others become links to its files.

    Attributes:
        stages: folder of a run to the stage in it, in the order of the runs.
        needs: fingerprints of the jobs whose results it reads.
    """

    stages: Mapping[Path, Stage]
    needs: frozenset[str]

    @property
    def owner(self) -> tuple[Path, Stage]:
        """The run that makes it, and the stage there."""
        return next(iter(self.stages.items()))

    def shared(self) -> bool:
        """Give every run what one of them has; ``False`` if none has it yet."""
        having = [run for run, stage in self.stages.items() if is_complete(stage, run)]
        for run, stage in self.stages.items() if having else ():
            if run not in having:
                _link(stage.name, having[0], run)
        return bool(having)


def jobs_of(runs: Mapping[Path, Sequence[Stage]]) -> dict[str, Job]:
    """The work of all runs, by fingerprint: whatever has the same fingerprint has the same results.

    Args:
        runs: folder of a run to its stages, in any order.
    """
    found: dict[str, dict[Path, Stage]] = {}
    needs: dict[str, frozenset[str]] = {}
    for run, stages in runs.items():
        by_name, marks = {stage.name: stage for stage in stages}, dict[str, str]()
        for name in TopologicalSorter({stage.name: stage.needs for stage in stages}).static_order():
            mark = marks[name] = fingerprint(by_name[name], marks)
            found.setdefault(mark, {})[run] = by_name[name]
            needs[mark] = frozenset(marks[each] for each in by_name[name].needs)
    return {mark: Job(stages, needs[mark]) for mark, stages in found.items()}


def run_stages(
    stages: Sequence[Stage],
    run_dir: StrPath,
    executor: Executor,
    tracking: Tracking | None = None,
    finished: Finished = lambda name, seconds: None,
) -> None:
    """:func:`run_together` for one run."""
    run_together({Path(run_dir): stages}, run_dir, executor, tracking, finished)


def run_together(
    runs: Mapping[Path, Sequence[Stage]],
    folder: StrPath,
    executor: Executor,
    tracking: Tracking | None = None,
    finished: Finished = lambda name, seconds: None,
) -> None:
    """Bring all stages of all runs to their end; those that are complete are not repeated.

    One failure, or Ctrl-C, stops every stage that is running; what they have done stays in their partial folders and is
    continued by the next call.

    Args:
        runs: folder of a run, which is the caller's alone, to its stages in any order.
        folder: that all runs lie in, or the one run itself.
        executor: runs stages whose needs are complete side by side, as many as it has workers. It is shut down
            after a failure.
        tracking: where in MLflow the stages have their runs.
        finished: called with the path below ``folder`` of every stage that is complete, and with its seconds, ``None``
            if it was complete already.

    Raises:
        InputError: as :func:`run_stage`.
        CommandError: as :func:`run_stage`, or if the executor lost the worker of a stage.
    """
    folder = Path(folder).absolute()
    runs = {Path(run).absolute(): stages for run, stages in runs.items()}
    jobs = jobs_of(runs)
    titles = {mark: _title(job, folder) for mark, job in jobs.items()}
    order = TopologicalSorter({mark: job.needs for mark, job in jobs.items()})
    names = [titles[mark] for mark in TopologicalSorter({m: job.needs for m, job in jobs.items()}).static_order()]
    order.prepare()
    folder.mkdir(parents=True, exist_ok=True)
    (folder / STOP).unlink(missing_ok=True)
    running: dict[Future[float], str] = {}
    with shown(names, folder, {run: [stage.name for stage in stages] for run, stages in runs.items()}) as display:

        def done(mark: str, seconds: float | None) -> None:
            display.finished(titles[mark], seconds)
            finished(titles[mark], seconds)
            order.done(mark)

        try:
            while order.is_active():
                for mark in order.get_ready():
                    if jobs[mark].shared():
                        done(mark, None)
                    else:
                        run, stage = jobs[mark].owner
                        running[executor.submit(run_stage, stage, run, folder / STOP, tracking)] = mark
                ended: set[Future[float]] = set()
                while running and not ended:
                    check()
                    ended, _ = wait(running, timeout=UPDATE_SECONDS, return_when=FIRST_COMPLETED)
                    for future in ended:
                        mark = running.pop(future)
                        seconds = _seconds(future, titles[mark])
                        jobs[mark].shared()
                        done(mark, seconds)
                    display.update([titles[mark] for future, mark in running.items() if future.running()])
        except BaseException:
            (folder / STOP).touch()
            executor.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            (folder / STOP).unlink(missing_ok=True)


def _title(job: Job, folder: Path) -> str:
    run, stage = job.owner
    return (run / stage.name).relative_to(folder).as_posix()


def _seconds(future: Future[float], title: str) -> float:
    try:
        return future.result()
    except BrokenExecutor as error:
        cure = "Look at memory and time limit, and give the same command again"
        raise CommandError(f"stage {title}: its worker was lost ({error}). {cure}.") from error


def _link(name: str, source: Path, run: Path) -> None:
    """Make a complete stage of one run one of another; its files are linked, or copied where links cannot be."""
    refuse_foreign_folder(name, run)
    partial = working_folder(name, run)
    shutil.rmtree(partial, ignore_errors=True)
    shutil.copytree(complete_folder(name, source), partial, copy_function=_link_file, symlinks=True)
    replace_folder(complete_folder(name, run), partial)


def _link_file(source: str, target: str) -> None:
    with suppress(OSError):
        os.link(source, target)
        return
    shutil.copy2(source, target)
