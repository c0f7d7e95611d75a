"""One run at a time in a folder."""

import subprocess
import sys

import pytest

from plugins.errors import InputError
from plugins.files import PART, whole_file
from plugins.locks import LOCK, hold, sole_owner

from .interruptible import PATIENCE

KILLED = """
import os, sys
from pathlib import Path
from plugins.files import whole_file
from plugins.locks import hold
hold(sys.argv[1])
with whole_file(Path(sys.argv[1], "scan.nii.gz")) as part:
    part.write_bytes(b"half")
    os._exit(9)
"""


def test_what_a_killed_run_left_half_written_is_removed_and_nothing_else(tmp_path):
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    for name in (".part-of my own", "part-1-2-a", "scan.nii.gz"):
        (tmp_path / name).write_text("mine")
    assert len([path for path in tmp_path.iterdir() if PART.match(path.name)]) == 1
    hold(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(
        [LOCK, ".part-of my own", "part-1-2-a", "scan.nii.gz"]
    )


def test_a_folder_that_is_held_may_be_held_again_by_its_owner_whose_files_stay(tmp_path):
    hold(tmp_path)
    with whole_file(tmp_path / "a") as part:
        part.write_text("a")
        hold(tmp_path)
    assert (tmp_path / "a").read_text() == "a"


def test_a_folder_is_refused_to_others_as_long_as_its_owner_lives(tmp_path):
    code = "import sys; from plugins.locks import hold; hold(sys.argv[1]); print('held', flush=True); input()"
    other = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with pytest.raises(InputError, match=r"another run is at work there\. Wait for it, or choose another folder"):
        hold(tmp_path)
    other.communicate("\n", timeout=PATIENCE)
    hold(tmp_path)


@pytest.mark.parametrize("owner", [hold, lambda folder: sole_owner(folder, "training").__enter__()])
def test_a_folder_that_cannot_be_written_is_named(tmp_path, owner):
    (tmp_path / "file").touch()
    with pytest.raises(
        InputError, match=r"file/run: nothing can be written there \(Not a directory\)\. Choose another"
    ):
        owner(tmp_path / "file" / "run")
