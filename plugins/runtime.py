"""What every run does first."""

from __future__ import annotations

import atexit
import ctypes
import inspect
import logging
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS
from monai.utils import set_determinism

import plugins
from plugins.errors import InputError, show_input_errors_as_sentences
from plugins.interrupts import obey
from plugins.options import COMPLETE, CommandLine, command_line, refuse_unknown, refuse_unknown_options
from plugins.preflight import building_fault, check_config, check_tracking
from plugins.shared_memory import shared_memory_fault

_logger = logging.getLogger(__name__)
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
KEPT_BYTES = 2**30
VENDORED = "VENDORED"  # in the code that an exported bundle brings: its version and hash


def keep_freed_memory() -> None:
    """Let glibc keep up to a GiB of freed memory instead of handing every large tensor back to the kernel.

    Fetching it anew costs more than much of what is computed with it; does nothing where there is no glibc.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):
            mallopt = ctypes.CDLL(None).mallopt
            mallopt(_M_MMAP_THRESHOLD, KEPT_BYTES)
            mallopt(_M_TRIM_THRESHOLD, KEPT_BYTES)


def join_processes() -> None:
    """Join the processes that ``torchrun`` has started, by NCCL or without GPUs by Gloo, until this one ends.

    Raises:
        InputError: if there is no ``torchrun``.
    """
    try:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    except ValueError as error:
        cure = "start with `torchrun --nproc_per_node <GPUs> -m monai.bundle run`, or leave out multi_gpu_train.json"
        raise InputError(f"this process belongs to no group of processes: {cure}.") from error
    atexit.register(_leave_processes)


def _leave_processes() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def start(seed: int | None = 0, num_threads: int | None = None) -> None:
    """Refuse what cannot be run, seed every random generator, and let input errors end in one sentence.

    Denormal floats count as 0 on the CPU: sharp attention rows are full of them, and they slow products several times.

    Args:
        seed: for Python, NumPy and torch; ``None`` leaves them unseeded.
        num_threads: torch's threads; ``None`` leaves torch's default.

    Raises:
        InputError: if the command line of ``monai.bundle run`` has an option that the config does not have, if the
            config is faulty, see :func:`plugins.preflight.check_config`, if what ``--tracking`` needs is missing, or if
            an exported bundle would run with other code than it brings.
    """
    show_input_errors_as_sentences()
    keep_freed_memory()
    refuse_unknown_options()
    given, workflow = command_line(), _running_workflow()
    if given is None and workflow is not None:
        _check_workflow(workflow)
    if given is not None:
        obey()
        meant = given.misread()
        if workflow is not None and meant:
            workflow.parser.update(meant)
            workflow.parser.parse(reset=True)
            seed, num_threads = meant.get("seed", seed), meant.get("num_threads", num_threads)
        _refuse_code_of_another_version(given.root)
        _warn_of_accidental_root(given)
        config = given.config()
        running = {"run", "training", "inference", "evaluate", *given.sections}

        def explain(error: BaseException) -> str:
            return shared_memory_fault(error) or building_fault(error, config, running)

        show_input_errors_as_sentences(given.place, explain)
        check_config(given.config(), given.base(), given.root)
        check_tracking(given.tracking)
    if seed is not None:
        set_determinism(seed=seed)
    torch.set_flush_denormal(True)
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def _running_workflow() -> ConfigWorkflow | None:
    """The workflow whose ``initialize`` is being run."""
    frame = inspect.currentframe()
    while frame is not None:
        caller = frame.f_locals.get("self")
        if isinstance(caller, ConfigWorkflow):
            return caller
        frame = frame.f_back
    return None


def _check_workflow(workflow: ConfigWorkflow) -> None:
    """The checks for a workflow that Python code made: it knows no config files, but what these could hold."""
    folder, config = Path(workflow.config_root_path).absolute(), _described(workflow.parser.get())
    files = [file for file in sorted(folder.glob("*.json")) if file.name in COMPLETE]
    known = {name for file in files for name in ConfigParser.load_config_file(file)}
    known |= {*DEFAULT_MLFLOW_SETTINGS["configs"]}  # which MONAI adds for its tracking
    refuse_unknown([workflow.run_id], config, "the config")
    strange = {name: value for name, value in config.items() if name not in known}
    config["device"] = "$None"  # its name will do for torch
    check_config(config, strange, folder.parent if folder.name == "configs" else folder)


def _described(value: Any) -> Any:
    """A config with an expression in place of each object that Python code has put into it."""
    if isinstance(value, Mapping):
        return {key: _described(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_described(each) for each in value]
    return value if value is None or isinstance(value, (str, int, float)) else "$None"


def _refuse_code_of_another_version(root: Path) -> None:
    """Refuse to run an exported bundle, which brings its own code, with a version that was imported from elsewhere."""
    mark, here = root / "plugins" / VENDORED, Path(plugins.__file__).parent
    version = mark.read_text(encoding="utf-8").split()[0] if mark.is_file() else plugins.__version__
    if version != plugins.__version__:
        fault = f"{root} brings version {version} of its code, but {plugins.__version__} was found in {here}"
        raise InputError(f"{fault}: start from another working directory, or in an environment without the latter.")


def _warn_of_accidental_root(given: CommandLine) -> None:
    """Tell of the default ``bundle_root``, the working directory, outside the bundle: two bundles would share it."""
    file = given.files[0]
    root, here = file.resolve().parents[1], Path.cwd()
    by_default = given.config().get("bundle_root") == "." and "bundle_root" not in given.options
    if by_default and file.with_name("metadata.json").is_file() and here != root:
        cure = f"add --bundle_root {root} to write into the bundle."
        _logger.warning("bundle_root is not given: models and results go below %s; %s", here, cure)
