"""Several runs at once: what is the same is made once, and each run looks as if it had been made alone."""

import os
import shutil
from concurrent.futures import ThreadPoolExecutor

import pytest

from plugins.errors import InputError
from plugins.files import read_json
from plugins.workflow import Stage, run_stages, run_together


def note(path, content, log):
    """The work of a stage; every call leaves a line behind."""
    with open(log, "a") as file:
        file.write(f"{content}\n")
    with open(path, "w") as file:
        file.write(f'"{content}"')


def stage(name, content, log, needs=()):
    overrides = {"path": "{stage}/out.json", "content": content, "log": str(log)}
    return Stage(name=name, needs=needs, function=f"{__name__}.note", overrides=overrides)


@pytest.fixture
def log(tmp_path):
    file = tmp_path / "log.txt"
    file.touch()
    return file


def method(log, last):
    """A common beginning and an end of its own."""
    return [stage("a", "a", log), stage("r/b", "b", log, ("a",)), stage("r/c", last, log, ("r/b",))]


def together(folder, **runs):
    with ThreadPoolExecutor(2) as executor:
        run_together({folder / name: stages for name, stages in runs.items()}, folder, executor)


def content(run):
    return {str(file.parent.relative_to(run)): read_json(file) for file in sorted(run.rglob("out.json"))}


def test_what_runs_have_in_common_is_made_once_and_lies_in_each(tmp_path, log):
    study = tmp_path / "study"
    together(study, one=method(log, "1"), two=method(log, "2"), three=method(log, "1"))
    assert sorted(log.read_text().split()) == ["1", "2", "a", "b"]
    assert content(study / "one") == content(study / "three") == {"a": "a", "r/b": "b", "r/c": "1"}
    assert content(study / "two") == {"a": "a", "r/b": "b", "r/c": "2"}


def test_a_run_of_a_study_is_complete_for_the_driver_alone(tmp_path, log):
    study = tmp_path / "study"
    together(study, one=method(log, "1"), two=method(log, "2"))
    shutil.rmtree(study / "one")
    before = log.read_text()
    with ThreadPoolExecutor(1) as executor:
        run_stages(method(log, "2"), study / "two", executor)
    assert log.read_text() == before


def test_a_study_that_is_given_again_makes_only_what_is_missing(tmp_path, log, capsys):
    study = tmp_path / "study"
    together(study, one=method(log, "1"))
    log.write_text("")
    together(study, zero=method(log, "0"), one=method(log, "1"))
    assert log.read_text().split() == ["0"]
    assert content(study / "zero") == {"a": "a", "r/b": "b", "r/c": "0"}
    assert "zero/r/c ... done" in capsys.readouterr().out


def test_a_shared_result_that_one_run_loses_does_not_change_the_other(tmp_path, log):
    study = tmp_path / "study"
    runs = {"one": method(log, "1"), "two": method(log, "2")}
    together(study, **runs)
    (study / "one" / "a" / "out.json").unlink()
    (study / "one" / "a" / "out.json").write_text('"other"')
    log.write_text("")
    together(study, **runs)
    assert content(study / "one") == {"a": "a", "r/b": "b", "r/c": "1"}
    assert content(study / "two") == {"a": "a", "r/b": "b", "r/c": "2"}
    assert log.read_text() == ""


def test_where_links_cannot_be_files_are_copied(tmp_path, log, monkeypatch):
    def refuse(*_, **__):
        raise OSError("no links here")

    monkeypatch.setattr(os, "link", refuse)
    study = tmp_path / "study"
    runs = {"one": method(log, "1"), "two": method(log, "2")}
    together(study, **runs)
    together(study, **runs)
    assert sorted(log.read_text().split()) == ["1", "2", "a", "b"]


def test_a_killed_link_is_made_anew(tmp_path, log):
    study = tmp_path / "study"
    together(study, one=method(log, "1"))
    partial = study / "two" / "a.partial"
    shutil.copytree(study / "one" / "a", partial)
    (partial / "out.json").unlink()
    together(study, one=method(log, "1"), two=method(log, "2"))
    assert content(study / "two")["a"] == "a"
    assert not partial.exists()


def test_a_failure_names_its_cause_and_nothing_that_needs_it_begins(tmp_path, log):
    broken = stage("a", "a", tmp_path / "no folder" / "log.txt")
    with pytest.raises(OSError, match="no folder"):
        together(tmp_path / "study", one=[broken, stage("b", "b", log, ("a",))], two=[stage("c", "c", log)])
    assert "b" not in log.read_text()


@pytest.mark.parametrize("run", ["one", "two"])
def test_a_foreign_folder_is_refused(tmp_path, log, run):
    (tmp_path / "study" / run / "a").mkdir(parents=True)
    (tmp_path / "study" / run / "a" / "mine.txt").touch()
    with pytest.raises(InputError, match="was not made by this workflow"):
        together(tmp_path / "study", one=method(log, "1"), two=method(log, "2"))
    assert (tmp_path / "study" / run / "a" / "mine.txt").exists()
