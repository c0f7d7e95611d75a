"""A command, its log, and how its failure is told."""

import os
import sys
import threading

import pytest

from plugins.errors import InputError
from plugins.workflow.process import CommandError, Stopped, run_command

from ..interruptible import PATIENCE


def python(code, tmp_path, stop_file=None):
    run_command([sys.executable, "-c", code], tmp_path, tmp_path / "log.txt", "stage x", stop_file)


def test_the_log_grows_by_what_is_printed(tmp_path):
    python("import sys; print('out'); print('err', file=sys.stderr)", tmp_path)
    python("print('again')", tmp_path)
    log = (tmp_path / "log.txt").read_text()
    assert all(text in log for text in ("$ ", "out\n", "err\n", "again\n"))
    assert log.count("$ ") == 2


def test_a_sentence_at_the_end_becomes_the_error(tmp_path):
    with pytest.raises(InputError, match=r"^scan\.nii is empty\.$"):
        python("print('x'); print('error: scan.nii is empty.'); raise SystemExit(1)", tmp_path)


def test_another_failure_names_log_and_cause(tmp_path):
    code = "try:\n 1/0\nexcept ZeroDivisionError as e:\n raise RuntimeError('failed to evaluate') from e"
    with pytest.raises(CommandError, match=r"stage x failed \(exit code 1\): ZeroDivisionError.*log\.txt ends with:"):
        python(code, tmp_path)


def test_a_sentence_of_an_earlier_attempt_is_not_repeated(tmp_path):
    (tmp_path / "log.txt").write_text("error: old.\n")
    with pytest.raises(CommandError, match="signal SIGKILL"):
        python("import os; os.kill(os.getpid(), 9)", tmp_path)


def test_the_stop_file_ends_the_command_and_what_it_started(tmp_path):
    stop, pipe = tmp_path / "stop", tmp_path / "pipe"
    os.mkfifo(pipe)
    inner = f"import time; file = open({str(pipe)!r}, 'w'); file.write('at work'); file.flush(); time.sleep(9999)"
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {inner!r}])"
    said = []

    def press_and_listen():
        with pipe.open() as file:
            said.append(file.read(len("at work")))
            stop.touch()
            said.append(file.read())  # returns when nobody is left who could write

    listener = threading.Thread(target=press_and_listen)
    listener.start()
    with pytest.raises(Stopped):
        python(code, tmp_path, stop)
    listener.join(timeout=PATIENCE)
    assert said == ["at work", ""]
