"""What every test starts from."""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from monai.utils import set_determinism


def pytest_collection_modifyitems(items):
    """Files with a slow test come first, so that no worker is left alone with one in the end."""
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in a test, whichever tests ran before it."""
    set_determinism(seed=0)
    yield
    set_determinism(seed=None)
