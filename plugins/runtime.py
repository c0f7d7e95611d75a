"""What every run does first; the state of all random generators."""

from __future__ import annotations

import atexit
import ctypes
import random
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.bundle import ConfigWorkflow
from monai.utils import set_determinism
from pydantic import NonNegativeInt, PositiveInt

import plugins
from plugins.config.building import building_fault, running
from plugins.config.checking import check_config, check_tracking, check_workflow
from plugins.config.command import command_line, refuse_unknown_options
from plugins.errors import InputError, show_input_errors_as_sentences
from plugins.interrupts import obey
from plugins.shared_memory import shared_memory_fault

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
        cure = "Start with `torchrun --nproc_per_node <GPUs> -m monai.bundle run`, or leave out multi_gpu_train.json"
        raise InputError(f"this process belongs to no group of processes. {cure}.") from error
    if torch.cuda.is_available():
        torch.cuda.set_device(own_device())  # what NCCL sends without a device of its own
    atexit.register(_leave_processes)


def _leave_processes() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def gpus(otherwise: Sequence[str] = ("cpu",)) -> list[str]:
    """Names of all CUDA devices of this machine; ``otherwise`` where there is none."""
    return [f"cuda:{index}" for index in range(torch.cuda.device_count())] or [*otherwise]


def own_device() -> torch.device:
    """The CUDA device of this one of the processes that ``torchrun`` has started; the CPU where there is none."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", torch.distributed.get_node_local_rank(0))


def own_share(batch_size: PositiveInt) -> int:
    """How much of a batch is for this one of the processes that ``torchrun`` has started.

    Raises:
        InputError: if a batch cannot be divided among them.
    """
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if batch_size % processes:
        raise InputError(f"batch_size is {batch_size}, but there are {processes} processes. Give a multiple of that.")
    return batch_size // processes


def start(seed: NonNegativeInt | None = 0, num_threads: PositiveInt | None = None) -> None:
    """Refuse what cannot be run, and seed every random generator; let input errors of a command end in one sentence.

    Denormal floats count as 0 on the CPU: sharp attention rows are full of them, and they slow products several times.

    Args:
        seed: for Python, NumPy and torch; ``None`` leaves them unseeded.
        num_threads: torch's threads; ``None`` leaves torch's default.

    Raises:
        InputError: if the command line of ``monai.bundle run`` has an option that the config does not have, if the
            config is faulty, see :func:`plugins.config.checking.check_config`, if what ``--tracking`` needs is missing,
            or if an exported bundle would run with other code than it brings.
    """
    given, workflow = command_line(), running(ConfigWorkflow)
    if given is not None:  # the process is ours
        show_input_errors_as_sentences()
    keep_freed_memory()
    refuse_unknown_options()
    if given is None and workflow is not None:
        check_workflow(workflow)
    if given is not None:
        obey()
        meant = given.misread()
        if workflow is not None and meant:
            workflow.parser.update(meant)
            workflow.parser.parse(reset=True)
            seed, num_threads = meant.get("seed", seed), meant.get("num_threads", num_threads)
        _refuse_code_of_another_version(given.root)
        given.warn_of_accidental_root()
        config = given.config()
        sections = {"run", "training", "inference", "evaluate", "compare", "study", *given.sections}

        def explain(error: BaseException) -> str:
            return shared_memory_fault(error) or building_fault(error, config, sections)

        show_input_errors_as_sentences(given.place, explain)
        check_config(given.config(), given.base(), given.root)
        check_tracking(given.tracking)
    if seed is not None:
        set_determinism(seed=seed)
    torch.set_flush_denormal(True)
    if num_threads is not None:
        torch.set_num_threads(num_threads)


def random_state() -> dict[str, Any]:
    """State of the generators of Python, NumPy and torch as tensors and plain numbers."""
    version, internal, gauss = random.getstate()
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [kind, torch.from_numpy(np.asarray(keys, dtype=np.int64)), position, has_gauss, cached],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def set_random_state(state: Mapping[str, Any]) -> None:
    """Set the generators to a state of :func:`random_state`; those of GPUs, if there are as many as there were."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    kind, keys, *rest = state["numpy"]
    np.random.set_state((kind, keys.cpu().numpy().astype(np.uint32), *rest))
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])


def _refuse_code_of_another_version(root: Path) -> None:
    """Refuse to run an exported bundle, which brings its own code, with a version that was imported from elsewhere."""
    mark, here = root / "plugins" / VENDORED, Path(plugins.__file__).parent
    version = mark.read_text(encoding="utf-8").split()[0] if mark.is_file() else plugins.__version__
    if version != plugins.__version__:
        fault = f"{root} brings version {version} of its code, but {plugins.__version__} was found in {here}"
        raise InputError(f"{fault}. Start from another working directory, or in an environment without the latter.")


@contextmanager
def denormals_kept() -> Iterator[None]:
    """Count denormal numbers within the block, whatever :func:`start` has set.

    SciPy's ``KDTree`` steps from a coordinate to the next number. From 0 that is a denormal. If it counts as 0, the
    tree never ends, and the process crashes.
    """
    flushed = bool(np.float64(5e-324) * np.float64(1.0) == 0.0)
    if flushed:
        torch.set_flush_denormal(False)
    try:
        yield
    finally:
        if flushed:
            torch.set_flush_denormal(True)
