"""One process at a time in a folder that is continued by whoever comes next."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from plugins.errors import InputError
from plugins.files import PART

LOCK = ".lock"


_held: dict[str, FileLock] = {}


def hold(folder: str | os.PathLike[str]) -> None:
    """Hold a folder until this process ends; what a killed run left there half written is removed.

    Raises:
        InputError: if another process holds it, or if nothing can be written there.
    """
    path = os.path.realpath(folder)
    lock = _held.setdefault(path, FileLock(os.path.join(path, LOCK)))
    if not lock.is_locked:
        try:
            _take(lock, Path(path))
        except Timeout:
            raise InputError(
                f"{folder}: another run is at work there. Wait for it, or choose another folder."
            ) from None
        for name in os.listdir(path):
            if PART.match(name):
                os.unlink(os.path.join(path, name))


@contextmanager
def sole_owner(folder: str | os.PathLike[str], what: str) -> Iterator[None]:
    """Hold a folder; wait, and say so, as long as another process holds it. The lock ends with its process.

    Args:
        folder: is created if missing.
        what: holds it, for the message: "training".

    Raises:
        InputError: if nothing can be written there.
    """
    folder = Path(folder)
    lock = FileLock(folder / LOCK)
    try:
        _take(lock, folder)
    except Timeout:
        print(f"another {what} is at work in {folder}: waiting for it to end", flush=True)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _take(lock: FileLock, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock.acquire(timeout=0)
    except Timeout:
        raise
    except OSError as error:
        fault = f"{folder}: nothing can be written there ({error.strerror})"
        raise InputError(f"{fault}. Choose another folder.") from error
