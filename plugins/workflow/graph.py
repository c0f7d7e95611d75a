"""All stages of a run, in the order their needs allow, by any executor of ``concurrent.futures``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Executor, Future, wait
from graphlib import TopologicalSorter
from pathlib import Path

from plugins.interrupts import check
from plugins.state import StrPath
from plugins.workflow.display import LineDisplay, shown
from plugins.workflow.execution import check_overrides, is_complete, refuse_foreign_folder, run_stage
from plugins.workflow.stage import Stage
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


def run_stages(
    stages: Sequence[Stage],
    run_dir: StrPath,
    executor: Executor,
    tracking: Tracking | None = None,
    finished: Finished = lambda name, seconds: None,
) -> None:
    """Bring all stages to their end; those that are complete are not repeated.

    One failure, or Ctrl-C, stops every stage that is running; what they have done stays in their partial folders and is
    continued by the next call.

    Args:
        stages: the stages, in any order.
        run_dir: folder of the run, which is the caller's alone.
        executor: runs stages whose needs are complete side by side, as many as it has workers. It is shut down
            after a failure.
        tracking: where in MLflow the stages have their runs.
        finished: called with the name of every stage that is complete, and with its seconds, ``None`` if it was
            complete already.

    Raises:
        InputError: as :func:`run_stage`.
        CommandError: as :func:`run_stage`.
    """
    run_dir = Path(run_dir).absolute()
    by_name = {stage.name: stage for stage in stages}
    needs = {stage.name: stage.needs for stage in stages}
    order, names = TopologicalSorter(needs), [*TopologicalSorter(needs).static_order()]
    order.prepare()
    (run_dir / STOP).unlink(missing_ok=True)
    running: dict[Future[float], str] = {}
    with shown(names, run_dir) as display:

        def done(name: str, seconds: float | None) -> None:
            display.finished(name, seconds)
            finished(name, seconds)
            order.done(name)

        try:
            while order.is_active():
                for name in order.get_ready():
                    if is_complete(by_name[name], run_dir):
                        done(name, None)
                    else:
                        running[executor.submit(run_stage, by_name[name], run_dir, run_dir / STOP, tracking)] = name
                _collect(running, done, display)
        except BaseException:
            (run_dir / STOP).touch()
            executor.shutdown(wait=True, cancel_futures=True)
            raise
        finally:
            (run_dir / STOP).unlink(missing_ok=True)


def _collect(running: dict[Future[float], str], finished: Finished, display: LineDisplay) -> None:
    """Show what is running until something has finished, and tell of that."""
    done: set[Future[float]] = set()
    while running and not done:
        check()
        done, _ = wait(running, timeout=UPDATE_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            finished(running.pop(future), future.result())
        display.update([name for future, name in running.items() if future.running()])
