"""What every test starts from."""

from __future__ import annotations

import os

os.environ.setdefault("MPLBACKEND", "Agg")

import pytest
import torch
from monai.utils import set_determinism


@pytest.fixture(autouse=True, scope="session")
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seeded():
    """The same random numbers in a test, whichever tests ran before it."""
    set_determinism(seed=0)
    yield
    set_determinism(seed=None)
