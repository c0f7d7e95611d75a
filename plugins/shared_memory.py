"""What a small ``/dev/shm`` does to the processes that load scans, told in one sentence."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

PLACE = Path("/dev/shm")
SMALL = 2**30
_OF_TORCH = re.compile(
    r"DataLoader worker .* killed by signal: Bus error|unable to (open|allocate|resize) shared memory"
)
_OF_NNUNET = re.compile(r"background workers are no longer alive")


def shared_memory_fault(error: BaseException) -> str:
    """The sentence for an error that a full or small ``/dev/shm`` has caused; empty for any other.

    Args:
        error: of torch's or nnU-Net's loaders; those that it was raised from are looked at too.
    """
    link: BaseException | None = error
    while link is not None:
        text = str(link)
        if _OF_TORCH.search(text) or (_OF_NNUNET.search(text) and _free() < SMALL):
            break
        link = link.__cause__ or link.__context__
    if link is None:
        return ""
    room = f"{PLACE} has {_free() / 2**20:.0f} MiB left" if PLACE.is_dir() else "shared memory is full"
    cure = "Set num_workers to 0, or give more: `docker run --shm-size=8g`, or a larger /dev/shm"
    return f"the processes that load scans ran out of shared memory ({room}). {cure}."


def _free() -> int:
    return shutil.disk_usage(PLACE).free if PLACE.is_dir() else 0
