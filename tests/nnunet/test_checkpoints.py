import random
from pathlib import Path

import numpy as np
import pytest
import torch

from plugins.errors import InputError
from plugins.nnunet.checkpoints import FINAL, LATEST, PREVIOUS, newest_checkpoint, write_checkpoint
from plugins.runtime import random_state, set_random_state


def draw() -> list[float]:
    return [random.random(), float(np.random.rand()), float(np.random.randn()), float(torch.rand(1))]


def test_random_generators_continue_from_a_checkpoint(tmp_path: Path):
    np.random.randn()  # leaves a spare normal number in the state
    write_checkpoint(tmp_path / LATEST, {"current_epoch": 1, "random_states": random_state()})
    expected = draw()
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    set_random_state(checkpoint["random_states"])
    assert draw() == expected


def test_an_interrupted_write_leaves_the_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write_checkpoint(tmp_path / LATEST, {"current_epoch": 1})

    def torn(content: object, file: Path) -> None:
        file.write_bytes(b"PK")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", torn)
    with pytest.raises(KeyboardInterrupt):
        write_checkpoint(tmp_path / LATEST, {"current_epoch": 2})
    assert newest_checkpoint(tmp_path) == {"current_epoch": 1}
    assert [file.name for file in tmp_path.iterdir()] == [LATEST]


def test_a_torn_checkpoint_falls_back_to_the_previous(tmp_path: Path):
    for epoch in (1, 2, 3):
        write_checkpoint(tmp_path / LATEST, {"current_epoch": epoch})
    content = (tmp_path / LATEST).read_bytes()
    (tmp_path / LATEST).write_bytes(content[: len(content) // 2])
    assert newest_checkpoint(tmp_path) == {"current_epoch": 2}
    (tmp_path / PREVIOUS).unlink()
    with pytest.raises(InputError, match=r"latest\.pth is damaged .*to train this fold anew"):
        newest_checkpoint(tmp_path)
    (tmp_path / LATEST).unlink()
    assert newest_checkpoint(tmp_path) is None


def test_a_finished_training_that_is_extended_resumes_behind_its_end(tmp_path: Path):
    write_checkpoint(tmp_path / FINAL, {"current_epoch": 8})
    write_checkpoint(tmp_path / LATEST, {"current_epoch": 12})
    assert newest_checkpoint(tmp_path) == {"current_epoch": 12}
