"""What a stage's process held at once: of the child and not of what started it, and of a function in this process."""

import subprocess
import sys
import time

import numpy as np
import pytest

from plugins.workflow.memory import ChildPeak, high_water_mib, peak_of
from plugins.workflow.process import run_command

MIB = 2**20
HOLD = "held = bytearray(b'1') * ({} << 20); held = None"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no wait4")


def of(code, tmp_path):
    return run_command([sys.executable, "-c", code], tmp_path, tmp_path / "log.txt", "stage x")


def test_the_peak_of_a_command_is_its_own_and_that_of_what_it_waited_for(tmp_path):
    small = of("import time; time.sleep(0.2)", tmp_path)
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD.format(900)!r}])"
    assert 3 < small < 60
    assert 900 < of(HOLD.format(900), tmp_path) < 960
    assert 900 < of(inner, tmp_path) < 960


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells of a running process")
def test_what_this_process_holds_is_no_peak_of_its_child(tmp_path):
    held = np.ones(900 * MIB, dtype=np.uint8)
    assert of("import time; time.sleep(0.2)", tmp_path) < 60
    assert held.all()


def test_the_exit_code_is_that_of_the_process():
    process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(7)"])
    peak = ChildPeak(process, high_water_mib())
    while (code := peak.poll()) is None:
        time.sleep(0.01)
    assert (code, process.poll(), process.wait()) == (7, 7, 7)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a peak cannot be forgotten")
def test_the_peak_of_a_function_is_that_of_its_time_alone():
    np.ones(700 * MIB, dtype=np.uint8).sum()
    nothing = peak_of(lambda: None)
    something = peak_of(lambda: np.ones(300 * MIB, dtype=np.uint8).sum())
    assert 290 < something - nothing < 400
