"""The container file, as far as it can be looked at without a builder of images."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LINES = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text(encoding="utf-8")).splitlines()
AS_NOBODY = """
import pwd
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown
import monai
"""


def words(instruction):
    return [shlex.split(line)[1:] for line in LINES if line.startswith(f"{instruction} ")]


def test_what_is_copied_is_there():
    sources = [source for *names, _ in words("COPY") for source in names]
    assert "bundles" in sources
    assert [source for source in sources if not (ROOT / source).exists()] == []


@pytest.mark.skipif(sys.platform == "win32", reason="Windows knows no users by number")
def test_a_user_without_a_name_can_import_monai():
    given = dict(word.split("=", 1) for line in words("ENV") for word in line)
    assert given["HOME"] == "/tmp"
    names = ("LOGNAME", "USER", "LNAME", "USERNAME")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    command = [sys.executable, "-c", AS_NOBODY]
    run = subprocess.run(command, env=environment | given, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
