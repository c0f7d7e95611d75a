"""Ctrl-C is never lost, and never told as something else.

Python swallows a ``KeyboardInterrupt`` that is raised in a callback, in a ``__del__`` or while a process is forked.
Libraries turn one that is raised in an import into an error of their own.
"""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

SENTENCE = "Stopped. To go on, give the same command again."
STATUS = 128 + signal.SIGINT
LATER = 0.02  # seconds; what is raised before the callback is left would be swallowed too
_asked = threading.Event()


def obey() -> None:
    """From now on Ctrl-C ends this process; does nothing where somebody else handles it, or beside the main thread."""
    if _is_free():
        _asked.clear()
        signal.signal(signal.SIGINT, _interrupt)
        sys.unraisablehook = _raise_again


@contextmanager
def obeyed() -> Iterator[None]:
    """:func:`obey` within the block only, for work in a process that is not ours."""
    if not _is_free():
        yield
        return
    hook = sys.unraisablehook
    obey()
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        sys.unraisablehook = hook


def _is_free() -> bool:
    ours = threading.current_thread() is threading.main_thread()
    return ours and signal.getsignal(signal.SIGINT) is signal.default_int_handler


def asked() -> bool:
    """Whether Ctrl-C was pressed."""
    return _asked.is_set()


def check() -> None:
    """Stop here if Ctrl-C was pressed and what it raised was swallowed on the way.

    Raises:
        KeyboardInterrupt: if so, in the main thread.
    """
    if _asked.is_set() and threading.current_thread() is threading.main_thread():
        raise KeyboardInterrupt


def end() -> None:
    """Say that the run was stopped, and let the process end with the status of Ctrl-C when all else is done."""
    print(SENTENCE, file=sys.stderr)
    atexit.register(_leave)


def _interrupt(number: int, frame: FrameType | None) -> None:
    _asked.set()
    raise KeyboardInterrupt


def _raise_again(unraisable: Any) -> None:
    if issubclass(unraisable.exc_type, KeyboardInterrupt):
        later = threading.Timer(LATER, signal.pthread_kill, (threading.main_thread().ident, signal.SIGINT))
        later.daemon = True
        later.start()
    else:
        sys.__unraisablehook__(unraisable)


def _leave() -> None:
    """End with the status of Ctrl-C: the exception that ends the program is another one."""
    for child in multiprocessing.active_children():
        child.terminate()
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(STATUS)
