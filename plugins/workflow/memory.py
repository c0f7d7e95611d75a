"""The most memory that a process held at once, in MiB, as far as the kernel tells; ``None`` where it does not."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

if sys.platform != "win32":
    import resource

PER_MIB = 2**20 if sys.platform == "darwin" else 2**10
"""Units of ``ru_maxrss``: bytes on macOS, KiB on Linux."""
_lock = threading.Lock()
_at_work: list[object] = []


class ChildPeak:
    """The peak of a process that was just started, and of those of its own that it has waited for.

    It is that of the largest of them, not their sum. What a process holds when it starts another counts as the
    peak of that too (``getrusage(2)``: ``execve`` keeps it). Where nothing larger is told, the last value of
    ``VmHWM`` that was seen is the peak.

    Args:
        process: the process, to be waited for by :meth:`poll` alone.
        inherited: what its parent held in MiB when it started it, by :func:`high_water_mib`.

    Attributes:
        mib: what is known so far.
    """

    def __init__(self, process: subprocess.Popen[bytes], inherited: float | None):
        self._process, self._inherited = process, inherited
        self.mib: float | None = None

    def poll(self) -> int | None:
        """The exit code as ``Popen.poll`` gives it, ``None`` while the process runs."""
        if sys.platform == "win32":
            return self._process.poll()
        self.mib = high_water_mib(self._process.pid) or self.mib
        pid, status, usage = os.wait4(self._process.pid, os.WNOHANG)
        if pid == 0:
            return None
        told = usage.ru_maxrss / PER_MIB
        if self._inherited is None or told > self._inherited or self.mib is None:
            self.mib = told
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode


def peak_of(work: Callable[[], object]) -> float | None:
    """Call a function and return the peak of this process meanwhile; of several calls at once, since the first."""
    with _lock:
        if not _at_work:
            with suppress(OSError):
                Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # see proc(5): forget the peak so far
        _at_work.append(work)
    try:
        work()
    finally:
        with _lock:
            _at_work.remove(work)
    if (seen := high_water_mib()) is not None or sys.platform == "win32":
        return seen
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / PER_MIB


def high_water_mib(pid: int | str = "self") -> float | None:
    """``VmHWM`` of a running process, on Linux."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) / 2**10 for line in lines if line.startswith("VmHWM:")), None)
