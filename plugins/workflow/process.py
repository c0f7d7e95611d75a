"""A command in a process of its own that never outlives this one."""

from __future__ import annotations

import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from plugins.errors import InputError
from plugins.workflow.memory import ChildPeak, high_water_mib

POLL_SECONDS = 0.05
GRACE_SECONDS = 10.0
TAIL_LINES = 15
ERROR_PREFIX = "error: "

_EXCEPTION = re.compile(r"[\w.]+(Error|Exception)\b")
_PR_SET_PDEATHSIG = 1
# loaded here, because the time between fork and exec is too late for it
_LIBC = ctypes.CDLL(None, use_errno=True) if sys.platform == "linux" else None


class CommandError(RuntimeError):
    """A command failed; the message says how, names its log and repeats the log's end."""


class Stopped(Exception):  # noqa: N818 - no error
    """The command was ended because the run is being stopped."""


def die_with_parent(parent: int) -> None:
    """Have the kernel kill this process as soon as its parent is gone; does nothing except on Linux.

    Args:
        parent: process id of the parent, which may be gone already.
    """
    if _LIBC is not None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        if os.getppid() != parent:
            os._exit(1)


def run_command(
    command: Sequence[str], cwd: str | os.PathLike[str], log: Path | None, what: str, stop_file: Path | None = None
) -> float | None:
    """Run a command to its end; it never outlives this process.

    Args:
        command: program and arguments.
        cwd: the directory it runs in.
        log: the command, its stdout and its stderr are appended to this file; ``None`` leaves them on the console.
        what: what is being run, for messages.
        stop_file: as soon as this file exists the command is ended.

    Returns:
        The most memory that it held at once, in MiB, see :class:`plugins.workflow.memory.ChildPeak`.

    Raises:
        InputError: if the command failed and said ``error: <sentence>`` in the end; the sentence is the message.
        CommandError: if it failed in another way.
        Stopped: if it was ended because of ``stop_file``.
    """
    if log is None:
        code, peak_mib = _run(command, cwd, None, stop_file)
        if code != 0:
            raise CommandError(f"{what} failed ({_ending(code)})")
        return peak_mib
    with log.open("ab") as file:
        file.write(f"$ {' '.join(command)}\n".encode())
        file.flush()
        start = file.tell()
        code, peak_mib = _run(command, cwd, file, stop_file)
    if code != 0:
        _fail(code, log, start, what)
    return peak_mib


def _run(
    command: Sequence[str], cwd: str | os.PathLike[str], output: IO[bytes] | None, stop_file: Path | None
) -> tuple[int, float | None]:
    parent = os.getpid()
    process = subprocess.Popen(
        command,
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=output and subprocess.STDOUT,
        start_new_session=True,
        preexec_fn=(lambda: die_with_parent(parent)) if _LIBC is not None else None,
    )
    try:
        return _wait(process, stop_file)
    except BaseException:
        _end(process)
        raise


def _wait(process: subprocess.Popen[bytes], stop_file: Path | None) -> tuple[int, float | None]:
    peak = ChildPeak(process, high_water_mib())
    while (code := peak.poll()) is None:
        if stop_file is not None and stop_file.exists():
            raise Stopped
        time.sleep(POLL_SECONDS)
    return code, peak.mib


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the command and every process that it started in its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        _signal_group(process, number)
        try:
            process.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            continue
        break
    _signal_group(process, signal.SIGKILL)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    if sys.platform == "win32":
        process.kill()
        return
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)


def _fail(code: int, log: Path, start: int, what: str) -> None:
    with log.open("rb") as file:
        file.seek(start)
        lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    for line in reversed(lines[-TAIL_LINES:]):
        if line.startswith(ERROR_PREFIX):
            raise InputError(line.removeprefix(ERROR_PREFIX))
    # the first of a chain of exceptions is the cause, and MONAI's chains are longer than the log's end shown here
    causes = [line for line in lines if _EXCEPTION.match(line)][:1]
    head = ": ".join([f"{what} failed ({_ending(code)})", *causes])
    raise CommandError("\n".join([f"{head}; {log} ends with:", *lines[-TAIL_LINES:]]))


def _ending(code: int) -> str:
    return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
