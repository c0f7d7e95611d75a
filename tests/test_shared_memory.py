"""A full /dev/shm ends in one sentence."""

import shutil
from collections import namedtuple

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from plugins import shared_memory
from plugins.shared_memory import shared_memory_fault

Usage = namedtuple("Usage", "total used free")


class Deadly(Dataset):
    def __len__(self):
        return 2

    def __getitem__(self, index):
        import os
        import signal

        os.kill(os.getpid(), signal.SIGBUS)
        return torch.zeros(1)


@pytest.fixture
def small(monkeypatch, tmp_path):
    monkeypatch.setattr(shared_memory, "PLACE", tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2**26, 2**26 - 2**21, 2**21))
    return tmp_path


def test_a_worker_that_dies_of_a_bus_error_is_told_with_place_room_and_cure(small):
    with pytest.raises(RuntimeError) as caught:
        list(DataLoader(Deadly(), num_workers=1))
    sentence = shared_memory_fault(caught.value)
    assert sentence == (
        f"the processes that load scans ran out of shared memory ({small} has 2 MiB left). Set num_workers to 0, or "
        "give more: `docker run --shm-size=8g`, or a larger /dev/shm."
    )


def test_the_cause_may_lie_deep(small):
    error = ValueError("the engine stopped")
    error.__cause__ = RuntimeError("unable to allocate shared memory(shm) for file </torch_1>: Cannot allocate memory")
    assert "2 MiB left" in shared_memory_fault(error)


def test_workers_of_nnunet_that_die_are_told_so_only_where_memory_is_small(small, monkeypatch):
    error = RuntimeError("One or more background workers are no longer alive. Exiting.")
    assert "2 MiB left" in shared_memory_fault(error)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: Usage(2**36, 0, 2**36))
    assert shared_memory_fault(error) == ""


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError(""), OSError(28)]
)
def test_other_errors_are_left_alone(error):
    assert shared_memory_fault(error) == ""
