"""Stages by dask and by submitit, each on two workers: the same files as a pool makes, and what a lost worker costs."""

import multiprocessing
import os
import signal
import sys
import time
from concurrent.futures import BrokenExecutor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from threading import Thread

import dask
import pytest

from plugins.errors import InputError
from plugins.workflow import Stage, dask_executor, run_stage, run_stages, submitit_executor
from plugins.workflow.process import CommandError


def note(folder, content, log, wait_for=None):
    """The work of a stage; every call leaves a line behind, with the process that it runs in."""
    with open(log, "a") as file:
        file.write(f"{content} {os.getpid()}\n")
    while wait_for and not os.path.exists(wait_for):
        time.sleep(0.02)
    Path(folder, "out.txt").write_text(content)


@pytest.fixture(scope="module", params=["dask", "submitit"])
def executor(request, tmp_path_factory):
    if request.param == "dask":
        made = dask_executor(2)
    else:
        made = submitit_executor(tmp_path_factory.mktemp("jobs"), 2, cluster="local")
    yield made
    made.shutdown(cancel_futures=True)


@pytest.fixture
def log(tmp_path):
    (tmp_path / "log.txt").touch()
    return tmp_path / "log.txt"


def stage(name, log, wait_for=None):
    overrides = {"folder": "{stage}", "content": name, "log": str(log), "wait_for": wait_for and str(wait_for)}
    return Stage(name=name, function=f"{__name__}.note", overrides=overrides)


def begun(log, name, times):
    """The processes that began a stage, as soon as so many have."""
    while True:
        found = [int(line.split()[1]) for line in log.read_text().splitlines() if line.split()[0] == name]
        if len(found) >= times:
            return found
        time.sleep(0.02)


def results(run):
    return {str(path.relative_to(run)): path.read_text() for path in run.rglob("out.txt")}


def test_stages_elsewhere_give_the_files_of_a_pool_and_a_killed_worker_costs_its_stage_only(executor, log, tmp_path):
    def kill():
        os.kill(begun(log, "r/b", 1)[0], signal.SIGKILL)
        begun(log, "r/b", 2)
        (tmp_path / "go").touch()

    killer = Thread(target=kill, daemon=True)
    killer.start()
    stages = [stage("a", log), stage("r/b", log, tmp_path / "go")]
    run_stages(stages, tmp_path / "run", executor)
    killer.join()
    assert sorted(line.split()[0] for line in log.read_text().splitlines()) == ["a", "r/b", "r/b"]
    assert str(os.getpid()) not in log.read_text()
    with ThreadPoolExecutor(2) as pool:
        run_stages(stages, tmp_path / "pool", pool)
    assert results(tmp_path / "run") == results(tmp_path / "pool") == {"a/out.txt": "a", "r/b/out.txt": "r/b"}


def test_an_error_elsewhere_is_the_error_here(executor):
    with pytest.raises(ValueError, match="invalid literal for int"):
        executor.submit(int, "x").result()


def test_a_job_that_is_lost_for_good_is_told_with_its_log(tmp_path):
    with submitit_executor(tmp_path, 1, cluster="local", retries=0) as executor:
        future = executor.submit(os._exit, 3)
        with pytest.raises(BrokenExecutor, match=r"job \d+ ended without a result, see .*log.err"):
            future.result()


def test_a_lost_worker_ends_the_run_with_one_sentence_and_the_same_command_goes_on(log, tmp_path):
    broken = ProcessPoolExecutor(1, multiprocessing.get_context("fork"))
    lost = Stage("b", needs=("a",), function="os._exit", overrides={"status": 3})
    with pytest.raises(CommandError, match=r"^stage b: its worker was lost \(.*\)\. Look at memory"):
        run_stages([stage("a", log), lost], tmp_path / "run", broken)
    with ThreadPoolExecutor(1) as pool:
        run_stages([stage("a", log), stage("b", log)], tmp_path / "run", pool)
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["a", "b"]


def test_who_comes_while_a_stage_is_made_waits_and_does_not_make_it_again(log, tmp_path, capfd):
    going = stage("a", log, tmp_path / "go")
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run_stage, going, tmp_path / "run")
        begun(log, "a", 1)
        second = pool.submit(run_stage, going, tmp_path / "run")
        while "waiting for it to end" not in capfd.readouterr().out:
            time.sleep(0.02)
        (tmp_path / "go").touch()
        assert first.result() == second.result()
    assert len(log.read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("make", "module"),
    [(lambda folder: dask_executor(1), "distributed"), (lambda folder: submitit_executor(folder, 1), "submitit")],
)
def test_a_missing_package_is_told_in_one_sentence(make, module, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"^executor: .*needs {module}, .* pip install 'tanq-bundles\[cluster\]'\.$"):
        make(tmp_path)


@pytest.mark.parametrize("settings", [{"cluster": "slrm"}, {"cluster": "local", "slurm_partitoin": "gpu"}])
def test_settings_that_submitit_does_not_know_are_refused(settings, tmp_path):
    with pytest.raises(InputError, match=r"^executor: submitit refuses these settings \(.*\)\. Correct them\.$"):
        submitit_executor(tmp_path, 1, **settings)


def test_a_scheduler_that_does_not_answer_is_named():
    nobody = pytest.raises(InputError, match=r"^executor: no scheduler of dask's answers at 'tcp://127.0.0.1:9'")
    with dask.config.set({"distributed.comm.timeouts.connect": "0.2s"}), nobody:
        dask_executor(1, "tcp://127.0.0.1:9")
