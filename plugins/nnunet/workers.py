"""Processes that never outlive the one that started them."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import threading
from concurrent.futures import ProcessPoolExecutor

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


def process_pool(max_workers: int) -> ProcessPoolExecutor:
    """A pool of freshly started processes that end with this one, even if it is killed."""
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(max_workers, mp_context=context, initializer=exit_with_parent)
