"""Ctrl-C ends a run, wherever it comes."""

import os
import random
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from plugins import nnunet
from plugins.interrupts import SENTENCE, STATUS, obeyed

from .interruptible import PATIENCE, restore_ctrl_c, start

BEGIN = """
import os, signal, sys
from plugins import interrupts
from plugins.errors import show_input_errors_as_sentences
show_input_errors_as_sentences()
interrupts.obey()

def press():
    os.kill(os.getpid(), signal.SIGINT)
"""


def run(code, folder=None):
    text = BEGIN + textwrap.dedent(code)
    command = [sys.executable, "-c", text]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=PATIENCE, cwd=folder, preexec_fn=restore_ctrl_c
    )


def is_stopped(done):
    return done.returncode in (STATUS, -signal.SIGINT) and done.stderr.splitlines()[-1] == SENTENCE


@pytest.mark.parametrize(
    "code",
    [
        "press()",
        """
        class Thing:
            def __del__(self):
                press()
        Thing()
        while True: pass
        """,
        """
        import weakref
        class Thing: pass
        thing = Thing()
        reference = weakref.ref(thing, lambda _: press())
        del thing
        while True: pass
        """,
        """
        os.register_at_fork(after_in_parent=press)
        child = os.fork()
        if child == 0: os._exit(0)
        while True: pass
        """,
        """
        import gc
        def once(phase, info):
            gc.callbacks.remove(once)
            press()
        gc.callbacks.append(once)
        gc.collect()
        while True: pass
        """,
    ],
    ids=[
        "anywhere",
        "in a finaliser",
        "in a callback of a weak reference",
        "while a process is forked",
        "in a collection",
    ],
)
def test_ctrl_c_that_python_swallows_ends_the_run_all_the_same(code):
    done = run(code)
    assert is_stopped(done), done


def test_ctrl_c_in_an_import_is_not_told_as_a_fault_of_the_config(tmp_path):
    (tmp_path / "slow.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nclass Thing: pass\n")
    code = """
    from plugins.config.signatures import locate
    sys.path.insert(0, os.getcwd())
    print(locate("slow.Thing"))
    raise ValueError("slow.Thing is misspelt")
    """
    done = run(code, tmp_path)
    assert is_stopped(done), done
    assert done.stdout == ""


def test_an_error_that_ctrl_c_became_ends_with_its_status_and_no_traceback():
    code = """
    try:
        press()
    except BaseException as error:
        raise RuntimeError("Failed to instantiate component") from error
    """
    done = run(code)
    assert done.returncode == STATUS
    assert done.stderr.splitlines() == [SENTENCE]


def test_work_stops_at_its_next_step_where_a_library_swallows_ctrl_c():
    code = """
    from plugins.progress import Progress
    try:
        press()
    except BaseException:
        pass
    with Progress(10, "slices") as progress:
        for step in range(10):
            progress.advance()
            print("went on", step)
    """
    done = run(code)
    assert is_stopped(done), done
    assert done.stdout == ""


def test_other_faults_in_callbacks_are_still_told():
    done = run("class Thing:\n    def __del__(self): 1 / 0\nThing()\n")
    assert done.returncode == 0
    assert "ZeroDivisionError" in done.stderr


def test_a_process_that_is_not_ours_keeps_its_handlers():
    before, hook = signal.getsignal(signal.SIGINT), sys.unraisablehook
    with obeyed():
        if before is signal.default_int_handler:
            assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    assert sys.unraisablehook is hook
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        with obeyed():
            assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_at_any_moment_of_a_run_ends_it_and_its_processes(tmp_path):
    """Pressed at the n-th call of a function, so that no clock decides where."""
    code = """
    import random
    from concurrent.futures import wait
    from workers import ended_with, process_pool

    left = int(os.environ["CALLS"])

    def count(frame, event, argument):
        global left
        if event == "call":
            left -= 1
            if left == 0:
                sys.setprofile(None)
                press()

    if __name__ == "__main__":
        sys.setprofile(count)
        pool = process_pool(2)
        with ended_with(pool):
            jobs = [pool.submit(pow, 2, index) for index in range(4)]
            wait(jobs)
            pool.shutdown()
        sys.setprofile(None)
        print("done", left)
    """
    (tmp_path / "job.py").write_text(BEGIN + textwrap.dedent(code))

    def job(calls):
        command = [sys.executable, tmp_path / "job.py"]
        environment = {**os.environ, "CALLS": str(calls), "PYTHONPATH": str(Path(nnunet.__file__).parent)}
        job = start(command, env=environment)
        said, complaint = job.communicate(timeout=PATIENCE)  # ends only when no process holds the pipes any more
        return job.returncode, said, complaint

    code, said, _ = job(10**9)
    assert code == 0
    total = 10**9 - int(said.split()[1])
    for calls in random.Random(0).sample(range(1, total), 6):
        code, said, complaint = job(calls)
        assert code in (STATUS, -signal.SIGINT), (calls, said, complaint)
        assert SENTENCE in complaint, (calls, complaint)
