from __future__ import annotations

import math
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import nibabel as nib
import numpy as np
import pytest

from plugins.errors import InputError
from plugins.files import read_json, whole_file, write_json


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_writer_that_succeeds_replaces_the_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")
    with whole_file(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert names(tmp_path) == ["a.txt"]


def test_a_file_is_on_the_disk_before_it_takes_its_name(tmp_path, monkeypatch):
    done = []
    real_fsync, real_replace = os.fsync, Path.replace
    monkeypatch.setattr(
        os, "fsync", lambda number: done.append(("fsync", os.fstat(number).st_ino)) or real_fsync(number)
    )
    monkeypatch.setattr(
        Path, "replace", lambda part, path: done.append(("rename", part.stat().st_ino)) or real_replace(part, path)
    )
    write_json(tmp_path / "a.json", [1, 2])
    number = (tmp_path / "a.json").stat().st_ino
    assert done == [("fsync", number), ("rename", number)]


def test_a_writer_that_fails_leaves_the_old_file_untouched(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write():
        with whole_file(path) as part:
            part.write_text("half of the n")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write()
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_writer_that_fails_makes_no_file(tmp_path):
    with pytest.raises(OSError, match="disk full"), whole_file(tmp_path / "a.txt"):
        raise OSError("disk full")
    assert names(tmp_path) == []


def test_a_writer_that_writes_nothing_is_noticed(tmp_path):
    with pytest.raises(FileNotFoundError), whole_file(tmp_path / "a.txt"):
        pass


def test_missing_folders_are_made(tmp_path):
    with whole_file(tmp_path / "b" / "c" / "a.txt") as part:
        part.write_text("new")
    assert (tmp_path / "b" / "c" / "a.txt").read_text() == "new"


def test_writers_that_look_at_the_ending_still_work(tmp_path):
    path = tmp_path / "a.nii.gz"
    voxels = np.arange(2 * 3 * 4, dtype=np.float32).reshape(2, 3, 4)
    with whole_file(path) as part:
        nib.save(nib.Nifti1Image(voxels, np.diag([1.0, 2.0, 3.0, 1.0])), part)
    assert path.read_bytes()[:2] == b"\x1f\x8b"  # gzip
    np.testing.assert_array_equal(np.asarray(nib.load(path).dataobj), voxels)


def test_json_comes_back_as_it_went(tmp_path):
    content = {"case": "crossmoda2021_ldn_1", "dice": [0.5, None], "größe": 3}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_json_lacks_are_refused_and_the_old_file_stays(tmp_path, number):
    write_json(tmp_path / "a.json", {"dice": 0.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"dice": number})
    assert read_json(tmp_path / "a.json") == {"dice": 0.5}
    assert names(tmp_path) == ["a.json"]


@pytest.mark.parametrize("free", [0, 10**9])
@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("unexpected pos 1045696 vs 1045584")])
def test_a_full_disk_is_told_in_one_sentence_and_other_failures_as_they_are(tmp_path, monkeypatch, error, free):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: SimpleNamespace(free=free))

    def write():
        with whole_file(tmp_path / "model.pt"):
            raise error

    with pytest.raises(InputError if free == 0 else type(error)) as caught:
        write()
    assert ("model.pt could not be written, as the disk is full. Make room" in str(caught.value)) == (free == 0)
    assert names(tmp_path) == []
