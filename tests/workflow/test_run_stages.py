"""Stages in the order of their needs, once each; interruption, failure, misspelt settings, two drivers."""

import os
import re
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from plugins.errors import InputError
from plugins.files import read_json, write_json
from plugins.workflow import Stage, check_stages, run_stages

from ..interruptible import PATIENCE

WORK = """
import os, time
from plugins.errors import InputError

def work(output_dir, text, wait_for, complaint):
    with open(f"{output_dir}/attempts.txt", "a") as file:
        file.write(f"{os.getpid()} {text}\\n")
    if complaint:
        raise InputError(complaint)
    while wait_for and not os.path.exists(wait_for):
        time.sleep(0.05)
"""


@pytest.fixture
def bundle(tmp_path):
    config = {
        "bundle_root": ".",
        "output_dir": None,
        "text": "a",
        "wait_for": None,
        "complaint": None,
        "work": {
            "_target_": "works.work",
            "output_dir": "@output_dir",
            "text": "@text",
            "wait_for": "@wait_for",
            "complaint": "@complaint",
        },
        "initialize": {"_target_": "plugins.runtime.start"},
        "run": ["$@work"],
        "training": "%run",
    }
    write_json(tmp_path / "bundle" / "configs" / "train.json", config)
    (tmp_path / "bundle" / "works.py").write_text(WORK)
    return tmp_path / "bundle"


def function(name, text, needs=()):
    overrides = {"path": "{stage}/out.json", "content": text}
    return Stage(name=name, needs=needs, function="plugins.files.write_json", overrides=overrides)


def chain(**texts):
    """A -> B -> D and A -> C."""
    needs = {"a": (), "round_0/b": ("a",), "c": ("a",), "round_0/d": ("round_0/b",)}
    return [function(name, texts.get(name[-1], name), needs[name]) for name in ("round_0/d", "c", "round_0/b", "a")]


def run(stages, run_dir, workers=2):
    with ThreadPoolExecutor(workers) as executor:
        check_stages(stages, run_dir)
        run_stages(stages, run_dir, executor)


def stamps(run_dir):
    return {str(p.parent.relative_to(run_dir)): p.stat().st_mtime_ns for p in sorted(run_dir.rglob("stage.json"))}


def test_every_stage_runs_once_and_in_order(tmp_path, capsys):
    run(chain(), tmp_path / "run")
    first = stamps(tmp_path / "run")
    assert set(first) == {"a", "c", "round_0/b", "round_0/d"}
    lines = [re.sub(r"done in .*", "done", line) for line in capsys.readouterr().out.splitlines() if "done" in line]
    assert lines[0] == "[1/4] a ... done"
    assert lines.index(next(x for x in lines if "/b" in x)) < lines.index(next(x for x in lines if "/d" in x))
    run(chain(), tmp_path / "run")
    assert stamps(tmp_path / "run") == first
    assert capsys.readouterr().out.count("already complete") == 4
    assert not list((tmp_path / "run").rglob("*.partial"))


def test_a_changed_setting_repeats_exactly_what_depends_on_it(tmp_path):
    run(chain(), tmp_path / "run")
    first = stamps(tmp_path / "run")
    run(chain(b="changed"), tmp_path / "run")
    second = stamps(tmp_path / "run")
    assert {name for name in first if first[name] != second[name]} == {"round_0/b", "round_0/d"}
    assert read_json(tmp_path / "run" / "round_0" / "b" / "out.json") == "changed"
    assert set(second) == set(first)


def test_a_moved_run_folder_stays_complete(tmp_path, capsys):
    run(chain(), tmp_path / "run")
    (tmp_path / "run").rename(tmp_path / "moved")
    capsys.readouterr()
    run(chain(), tmp_path / "moved")
    assert capsys.readouterr().out.count("already complete") == 4


def test_a_foreign_folder_is_left_alone(tmp_path):
    (tmp_path / "run" / "c").mkdir(parents=True)
    (tmp_path / "run" / "c" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="not made by this workflow"):
        run(chain(), tmp_path / "run")
    assert (tmp_path / "run" / "c" / "thesis.txt").read_text() == "mine"
    assert not (tmp_path / "run" / "a").exists()


def test_misspelt_overrides_are_refused_before_anything_runs(bundle, tmp_path):
    stage = Stage(name="b", needs=("a",), bundle=str(bundle), overrides={"output_dir": "{stage}", "txt": "b"})
    with pytest.raises(InputError, match=r"train\.json.*'txt'. Did you mean 'text'"):
        run([function("a", "a"), stage], tmp_path / "run")
    assert not (tmp_path / "run" / "a").exists()


def test_failures_leave_nothing_at_the_final_name_and_stop_the_others(bundle, tmp_path):
    never = str(tmp_path / "never")
    bad = Stage(name="bad", bundle=str(bundle), overrides={"output_dir": "{stage}", "complaint": "scan.nii: empty."})
    slow = Stage(name="slow", bundle=str(bundle), overrides={"output_dir": "{stage}", "wait_for": never})
    with pytest.raises(InputError, match=r"^scan\.nii: empty\.$"):
        run([bad, slow], tmp_path / "run")
    assert not (tmp_path / "run" / "bad").exists()
    assert not (tmp_path / "run" / "slow").exists()
    log = (tmp_path / "run" / "bad.partial" / "log.txt").read_text()
    assert "-m monai.bundle run training" in log


DRIVER = """
import sys
from concurrent.futures import ThreadPoolExecutor
from plugins.workflow import Stage, run_stages
bundle, run_dir, go = sys.argv[1:]
stage = Stage(name="work", bundle=bundle, overrides={"output_dir": "{stage}", "wait_for": go})
run_stages([stage], run_dir, ThreadPoolExecutor(1))
"""


def until(condition, seconds=PATIENCE):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "took too long"
        time.sleep(0.05)


def alive(pid):
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_killed_driver_takes_its_stage_along_and_is_continued(bundle, tmp_path):
    run_dir, go = tmp_path / "run", tmp_path / "go"
    attempts = run_dir / "work.partial" / "attempts.txt"
    driver = subprocess.Popen([sys.executable, "-c", DRIVER, str(bundle), str(run_dir), str(go)])
    until(lambda: attempts.is_file() and attempts.read_text().endswith("\n"))
    child = int(attempts.read_text().split()[0])
    assert alive(child)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    if sys.platform != "linux":  # there a child outlives its parent, and the user ends it
        os.kill(child, signal.SIGKILL)
    until(lambda: not alive(child))
    go.touch()
    run([Stage(name="work", bundle=str(bundle), overrides={"output_dir": "{stage}", "wait_for": str(go)})], run_dir)
    assert len((run_dir / "work" / "attempts.txt").read_text().splitlines()) == 2
    assert (run_dir / "work" / "log.txt").read_text().count("$ ") >= 2
    record = read_json(run_dir / "work" / "stage.json")
    assert record["command"][1:5] == ["-m", "monai.bundle", "run", "training"]
    assert record["seconds"] > 0
    assert torch.__version__.partition("+")[0] == record["versions"]["torch"].partition("+")[0]
    assert record["peak_mib"] > 10 or sys.platform == "win32"


def test_a_record_without_a_peak_is_read(tmp_path):
    run([function("a", "a")], tmp_path / "run")
    file = tmp_path / "run" / "a" / "stage.json"
    record = read_json(file)
    assert record.pop("peak_mib") > 10 or sys.platform == "win32"
    write_json(file, record)
    made = (tmp_path / "run" / "a" / "out.json").stat().st_mtime_ns
    run([function("a", "a")], tmp_path / "run")
    assert (tmp_path / "run" / "a" / "out.json").stat().st_mtime_ns == made


def test_a_partial_stage_of_other_settings_is_begun_anew(tmp_path):
    partial = tmp_path / "run" / "a.partial"
    write_json(partial / "stage.json", {"fingerprint": "another", "command": [], "seconds": 1.0})
    write_json(partial / "stale.json", 1)
    run([function("a", "a")], tmp_path / "run")
    assert not (tmp_path / "run" / "a" / "stale.json").exists()


def results(run_dir):
    return {str(p.relative_to(run_dir)): read_json(p) for p in sorted(run_dir.rglob("out.json"))}


@pytest.mark.parametrize("content", [None, "", '"\\u0061', '"c"'])
def test_a_result_that_is_gone_cut_or_changed_is_made_again_with_a_warning(tmp_path, capsys, caplog, content):
    run(chain(), tmp_path / "run")
    whole, file = results(tmp_path / "run"), tmp_path / "run" / "round_0" / "b" / "out.json"
    file.unlink() if content is None else file.write_text(content)
    capsys.readouterr()
    run(chain(), tmp_path / "run")
    assert results(tmp_path / "run") == whole
    assert capsys.readouterr().out.count("already complete") == 3
    assert "round_0/b/out.json is missing or was changed. The stage makes it again." in caplog.text


def test_a_flipped_bit_of_a_result_is_noticed(tmp_path, caplog):
    run(chain(), tmp_path / "run")
    file = tmp_path / "run" / "a" / "out.json"
    content = bytearray(file.read_bytes())
    content[1] ^= 1
    file.write_bytes(content)
    run(chain(), tmp_path / "run")
    assert read_json(file) == "a"
    assert "a/out.json is missing or was changed" in caplog.text


def test_a_result_that_is_copied_back_counts_as_there(tmp_path, capsys):
    run(chain(), tmp_path / "run")
    file = tmp_path / "run" / "a" / "out.json"
    content = file.read_bytes()
    file.unlink()
    file.write_bytes(content)
    os.utime(file, (1, 1))
    capsys.readouterr()
    run(chain(), tmp_path / "run")
    assert capsys.readouterr().out.count("already complete") == 4


@pytest.mark.parametrize("folder", ["a", "a.partial"])
@pytest.mark.parametrize("content", ["", "[]", "{}", '{"fingerprint": 1, "command": [], "seconds": 1}', '{"finger'])
def test_a_damaged_record_of_a_stage_is_named_and_nothing_is_begun_anew(tmp_path, folder, content):
    run(chain(), tmp_path / "run")
    if folder == "a.partial":
        (tmp_path / "run" / "a").rename(tmp_path / "run" / "a.partial")
    (tmp_path / "run" / folder / "stage.json").write_text(content)
    with pytest.raises(
        InputError, match=rf"{folder}/stage\.json is damaged \(.+\)\. Restore it, or remove .*/{folder} "
    ):
        run(chain(), tmp_path / "run")
    assert (tmp_path / "run" / folder / "out.json").is_file()


def test_records_of_older_versions_without_results_are_read(tmp_path, capsys):
    run(chain(), tmp_path / "run")
    for file in (tmp_path / "run").rglob("stage.json"):
        write_json(file, {key: value for key, value in read_json(file).items() if key != "results"})
    capsys.readouterr()
    run(chain(), tmp_path / "run")
    assert capsys.readouterr().out.count("already complete") == 4
