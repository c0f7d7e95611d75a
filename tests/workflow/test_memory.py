"""What a stage's process held at once: of the child and not of what started it, and of a function in this process."""

import inspect
import json
import subprocess
import sys
import time

import numpy as np
import pytest

from plugins.workflow import memory
from plugins.workflow.memory import ChildPeak, high_water_mib
from plugins.workflow.process import run_command

MIB = 2**20
HOLD = "held = bytearray(b'1') * ({} << 20); held = None"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="Windows has no wait4")


START = f"import json, runpy, subprocess, sys, time\nmemory = runpy.run_path({inspect.getfile(memory)!r})\n"
COMMAND = """
process = subprocess.Popen([sys.executable, "-c", {!r}])
peak = memory["ChildPeak"](process, memory["high_water_mib"]())
while peak.poll() is None:
    time.sleep(0.05)
print(json.dumps(peak.mib))
"""
FUNCTION = """
held = bytearray(b"1") * (700 << 20)
held = None
peaks = [memory["peak_of"](lambda: bytearray(b"1") * (size << 20)) for size in (0, 300)]
print(json.dumps(peaks))
"""


def small_process(code):
    """What a process says that holds little itself, unlike that of the tests."""
    return json.loads(subprocess.run([sys.executable, "-c", START + code], capture_output=True, check=True).stdout)


def of(code, tmp_path):
    return run_command([sys.executable, "-c", code], tmp_path, tmp_path / "log.txt", "stage x")


def test_the_peak_of_a_command_is_its_own_and_that_of_what_it_waited_for():
    inner = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {HOLD.format(900)!r}])"
    assert 3 < small_process(COMMAND.format("import time; time.sleep(0.2)")) < 60
    assert 900 < small_process(COMMAND.format(HOLD.format(900))) < 960
    assert 900 < small_process(COMMAND.format(inner)) < 960


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
    nothing, something = small_process(FUNCTION)
    assert 3 < nothing < 60
    assert 290 < something - nothing < 310
