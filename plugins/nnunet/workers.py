"""Processes that never outlive the one that started them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from contextlib import contextmanager

from pydantic import PositiveInt

_watching = threading.Event()


def exit_with_parent() -> None:
    """End this process as soon as the one that started it ends, however that happens; a main process stays."""
    parent = multiprocessing.parent_process()
    if parent is None or _watching.is_set():
        return
    _watching.set()

    def watch(sentinel: int) -> None:
        multiprocessing.connection.wait([sentinel])
        os._exit(1)

    threading.Thread(target=watch, args=(parent.sentinel,), daemon=True).start()


def process_pool(max_workers: PositiveInt) -> ProcessPoolExecutor:
    """A pool of freshly started processes that end with this one, even if it is killed; they leave Ctrl-C to it."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(max_workers, mp_context=context, initializer=_begin)


def _begin() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    exit_with_parent()


@contextmanager
def ended_with(executor: Executor) -> Iterator[None]:
    """After an error or Ctrl-C in the block, begin no job that waits and end the processes that are at work."""
    try:
        yield
    except BaseException:
        executor.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.terminate()
        raise
