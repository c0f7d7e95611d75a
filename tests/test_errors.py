from __future__ import annotations

import subprocess
import sys
import textwrap

import pytest

from plugins.errors import InputError, find_input_error, show_input_errors_as_sentences


def raised_by(action) -> BaseException:
    with pytest.raises(Exception) as caught:  # noqa: PT011 -- whatever it raises is what the test looks at
        action()
    return caught.value


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)


def test_found_as_itself():
    error = InputError("a.nii.gz is empty")
    assert find_input_error(error) is error


def test_found_as_the_cause_of_a_cause():
    error = InputError("a.nii.gz is empty")

    def wrap():
        try:
            try:
                raise error
            except InputError as cause:
                raise RuntimeError("transform failed") from cause
        except RuntimeError as cause:
            raise RuntimeError("could not instantiate") from cause

    assert find_input_error(raised_by(wrap)) is error


def test_found_as_the_context_of_an_error_raised_while_handling_it():
    error = InputError("a.nii.gz is empty")

    def wrap():
        try:
            raise error
        except InputError:
            raise KeyError("image")  # noqa: B904 -- without `from` on purpose

    assert find_input_error(raised_by(wrap)) is error


@pytest.mark.parametrize("error", [None, ValueError("no")])
def test_other_errors_are_not_taken_for_it(error):
    assert find_input_error(error) is None


def test_an_uncaught_input_error_ends_in_one_sentence():
    done = run(
        """
        from plugins.errors import InputError, show_input_errors_as_sentences
        show_input_errors_as_sentences()
        try:
            raise InputError("a.nii.gz has no label. Put a_Label.nii.gz beside it")
        except InputError as cause:
            raise RuntimeError("could not instantiate") from cause
        """
    )
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == "error: a.nii.gz has no label. Put a_Label.nii.gz beside it\n"


def test_a_sentence_about_an_id_names_the_config_file(capsys, monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    show_input_errors_as_sentences({"crop_size": "cpu.json", "train::dataset": "train.json"}.get)
    for message in ("crop_size is 3. Give two.", "train::dataset: it is open.", "a.nii.gz is empty. Copy it."):
        sys.excepthook(InputError, InputError(message), None)
    assert capsys.readouterr().err.splitlines() == [
        "error: cpu.json: crop_size is 3. Give two.",
        "error: train.json: train::dataset: it is open.",
        "error: a.nii.gz is empty. Copy it.",
    ]


def test_ctrl_c_ends_in_a_sentence():
    done = run(
        """
        from plugins.errors import show_input_errors_as_sentences
        show_input_errors_as_sentences()
        raise KeyboardInterrupt
        """
    )
    assert done.returncode != 0
    assert done.stderr == "Stopped. To go on, give the same command again.\n"


def test_a_bug_keeps_its_traceback():
    done = run(
        """
        from plugins.errors import show_input_errors_as_sentences
        show_input_errors_as_sentences()
        1 / 0
        """
    )
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "ZeroDivisionError" in done.stderr
