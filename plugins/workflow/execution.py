"""One stage, from nothing or from where it stopped, to its complete folder."""

from __future__ import annotations

import json
import logging
import multiprocessing
import pydoc
import shutil
import sys
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from plugins.config.checking import check_config
from plugins.config.command import overridden, read_configs
from plugins.config.names import refuse_unknown_ids
from plugins.errors import InputError
from plugins.files import write_json
from plugins.locks import sole_owner
from plugins.state import StrPath
from plugins.workflow.memory import peak_of
from plugins.workflow.process import die_with_parent, run_command
from plugins.workflow.records import (
    LOCKS,
    LOG,
    OVERRIDES,
    RECORD,
    TRACKING,
    complete_folder,
    lost_results,
    read_record,
    recorded_fingerprint,
    results_in,
    working_folder,
    write_record,
)
from plugins.workflow.stage import Stage, fill_in, fingerprint
from plugins.workflow.tracking import Tracking

_logger = logging.getLogger(__name__)


def current_fingerprint(stage: Stage, run_dir: StrPath) -> str:
    """The stage's fingerprint, given the complete stages that it needs.

    Raises:
        RuntimeError: if a stage that it needs is not complete.
        InputError: as :func:`fingerprint`.
    """
    needed = {}
    for name in stage.needs:
        value = recorded_fingerprint(complete_folder(name, run_dir))
        if value is None:
            raise RuntimeError(f"stage {stage.name} needs {name}, which is not complete in {run_dir}")
        needed[name] = value
    return fingerprint(stage, needed)


def is_complete(stage: Stage, run_dir: StrPath) -> bool:
    """Whether the stage's results exist and are those of its settings; the stages that it needs must be complete.

    Raises:
        InputError: if its record is damaged.
    """
    folder = complete_folder(stage.name, run_dir)
    if recorded_fingerprint(folder) != current_fingerprint(stage, run_dir):
        return False
    lost = lost_results(folder)
    if lost:
        _logger.warning("%s is missing or was changed. The stage makes it again.", folder / lost[0])
    return not lost


def run_stage(stage: Stage, run_dir: StrPath, stop_file: Path | None = None, tracking: Tracking | None = None) -> float:
    """Bring one stage to its end.

    The work happens in ``<run>/<stage>.partial``. What an earlier attempt left there is continued if its fingerprint
    is the same, else removed. When all is done the folder becomes ``<run>/<stage>`` in one step and takes the place of
    what a stage with other settings left there. ``stage.json`` in it has ``fingerprint``, ``command``, ``seconds``
    (of work; attempts that were killed are not counted), ``peak_mib`` (of the process that the last attempt ran in,
    or ``None``) and ``results``. A complete stage that has lost some of these is continued without them.

    Args:
        stage: the stage; those it needs must be complete.
        run_dir: folder of the run.
        stop_file: as soon as this file exists the stage is stopped.
        tracking: where in MLflow the stage has its run.

    Returns:
        The seconds.

    Raises:
        InputError: if an input, a config file or an override is wrong, or the stage's process says so.
        CommandError: if the stage's process fails in another way.
        Stopped: if it was stopped.
    """
    if (parent := multiprocessing.parent_process()) is not None and parent.pid is not None:
        die_with_parent(parent.pid)
    run_dir = Path(run_dir).absolute()
    refuse_foreign_folder(stage.name, run_dir)
    check_overrides(stage)
    with sole_owner(run_dir / LOCKS / stage.name, "process"):
        return _run_alone(stage, run_dir, stop_file, tracking)


def _run_alone(stage: Stage, run_dir: Path, stop_file: Path | None, tracking: Tracking | None) -> float:
    partial, complete = working_folder(stage.name, run_dir), complete_folder(stage.name, run_dir)
    current = current_fingerprint(stage, run_dir)
    record = read_record(complete)
    if record is not None and record["fingerprint"] == current and not partial.exists():
        lost = lost_results(complete)
        if not lost:  # another process has made it meanwhile
            return record["seconds"]
        for name in lost:
            (complete / name).unlink(missing_ok=True)
        complete.rename(partial)
    continued = recorded_fingerprint(partial) == current
    if not continued:
        shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True, exist_ok=True)
    command = _command(stage, partial)
    if tracking is not None and stage.bundle is not None:
        command += ["--tracking", str(partial / TRACKING)]
    record = read_record(partial)
    before = 0.0 if record is None else record["seconds"]
    start = time.monotonic()
    write_record(partial, current, command, before)
    try:
        with nullcontext() if tracking is None else tracking.stage_run(stage.name, partial, continued):
            peak_mib = _work(stage, command, partial, run_dir, stop_file)
    finally:
        seconds = round(before + time.monotonic() - start, 3)
        write_record(partial, current, command, seconds)
    write_record(partial, current, command, seconds, results_in(partial), peak_mib)
    replace_folder(complete, partial)
    return seconds


def bundle_command(bundle: str, run_id: str, config_files: list[str]) -> list[str]:
    """``python -m monai.bundle run`` with this Python, for a bundle's root folder and config files in order."""
    files = ["--config_file", json.dumps(config_files), "--bundle_root", bundle]
    return [sys.executable, "-m", "monai.bundle", "run", run_id, *files]


def refuse_foreign_folder(name: str, run_dir: Path) -> None:
    """Refuse to work where the stage's folder was not made by a stage, or where its record is damaged.

    Raises:
        InputError: naming the folder, or the record.
    """
    for folder in (complete_folder(name, run_dir), working_folder(name, run_dir)):
        read_record(folder)
        if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / RECORD).is_file()):
            raise InputError(f"{folder} was not made by this workflow. Choose another runs_dir or run_name.")


def _command(stage: Stage, partial: Path) -> list[str]:
    if stage.bundle is None:
        return [str(stage.function)]
    files = [*map(str, stage.config_paths), str(partial / OVERRIDES)]
    return bundle_command(str(Path(stage.bundle).absolute()), stage.run_id, files)


def _work(stage: Stage, command: list[str], partial: Path, run_dir: Path, stop_file: Path | None) -> float | None:
    """Do the work of a stage and return its peak in MiB."""
    settings: dict[str, Any] = fill_in(stage.overrides, partial, run_dir)
    write_json(partial / OVERRIDES, settings)
    if stage.bundle is None:
        function = pydoc.locate(str(stage.function))
        if not callable(function):
            raise RuntimeError(f"stage {stage.name}: no function is called {stage.function}")
        return peak_of(lambda: function(**settings))
    return run_command(command, stage.bundle, partial / LOG, f"stage {stage.name}", stop_file)


def replace_folder(complete: Path, partial: Path) -> None:
    """Give a finished folder its final name; what had that name is removed."""
    old = complete.with_name(f"{complete.name}.old")
    if complete.exists():
        shutil.rmtree(old, ignore_errors=True)
        complete.rename(old)
    partial.rename(complete)
    shutil.rmtree(old, ignore_errors=True)


def check_overrides(stage: Stage) -> None:
    """Refuse overrides of a bundle that its config files do not have, or that it could not run with.

    Raises:
        InputError: naming the first unknown id and the nearest known one, a missing config file, or as
            :func:`plugins.config.checking.check_config`.
    """
    if stage.bundle is None:
        return
    for path in stage.config_paths:
        if not path.is_file():
            raise InputError(f"{path} is missing. Set bundles_dir to the folder of the bundles.")
    where = f"{Path(stage.bundle).name} ({', '.join(stage.config_files)})"
    config = read_configs(stage.config_paths)
    refuse_unknown_ids(config, stage.overrides, where)
    known = {name: value for name, value in stage.overrides.items() if value == fill_in(value, "", "")}
    try:
        check_config(overridden(config, known), read_configs(stage.config_paths[:1]), Path(stage.bundle), on_disk=False)
    except InputError as error:
        raise InputError(f"{where}: {error}") from error
