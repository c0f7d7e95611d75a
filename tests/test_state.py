"""Own state: one reader, which names file, fault and cure; weights with their SHA-256."""

import ast
import hashlib
import logging
from pathlib import Path
from typing import NotRequired

import pytest
import torch
from typing_extensions import TypedDict

import plugins
from plugins.errors import InputError
from plugins.state import (
    SUM,
    check_tensors,
    copy_weights,
    read_state,
    read_tensors,
    recall_state,
    write_tensors,
    write_weights,
)

PACKAGE = Path(plugins.__file__).parent
CURE = "Do this"
BROKEN = ["", "[]", "{}", '{"epoch": "3"}', '{"epoch": 1.5}', '{"epoch": null}', '{"epoch": 3', "\ufeff{}", "\x00" * 9]


class Form(TypedDict):
    epoch: int
    note: NotRequired[dict[str, float]]


def test_tensors_and_own_json_are_read_in_one_place_only():
    readers = {"load": set(), "read_json": set()}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            of_torch = name == "load" and ast.unparse(node.func) == "torch.load"
            if of_torch or name == "read_json":
                readers[name].add(path.relative_to(PACKAGE).as_posix())
    assert readers["load"] == {"state.py"}
    # configs of bundles, lists that users write, the progress of a process at work, and a run as a report shows it
    shown = {"report/facts.py", "report/live.py", "workflow/display.py"}
    assert readers["read_json"] == {"data/datalists.py", "export.py", "programs.py", "workflow/stage.py"} | shown


def test_state_comes_back_as_it_was_written_with_what_the_form_does_not_know(tmp_path):
    (tmp_path / "a.json").write_text('{"epoch": 3, "more": [1], "note": {"x": 2}}')
    assert read_state(tmp_path / "a.json", Form, CURE) == {"epoch": 3, "more": [1], "note": {"x": 2}}


@pytest.mark.parametrize("content", BROKEN)
def test_damaged_state_is_named_with_its_cure(tmp_path, content):
    (tmp_path / "a.json").write_text(content)
    with pytest.raises(InputError, match=rf"^{tmp_path}/a\.json is damaged \(.+\)\. Do this\.$"):
        read_state(tmp_path / "a.json", Form, CURE)


def test_missing_and_unreadable_state_is_named(tmp_path):
    with pytest.raises(InputError, match=r"a\.json is missing\. Do this\.$"):
        read_state(tmp_path / "a.json", Form, CURE)
    with pytest.raises(InputError, match=r"is unreadable \(Is a directory\)\. Do this\.$"):
        read_state(tmp_path, Form, CURE)
    (tmp_path / "a.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"a\.json is damaged \(no text\)\. Do this\.$"):
        read_state(tmp_path / "a.json", Form, CURE)


@pytest.mark.parametrize("content", BROKEN)
def test_what_can_be_made_again_is_made_again_with_a_warning(tmp_path, caplog, content):
    (tmp_path / "a.json").write_text(content)
    with caplog.at_level(logging.WARNING):
        assert recall_state(tmp_path / "a.json", Form, "It is made again") is None
    assert "a.json is damaged" in caplog.text
    assert "It is made again." in caplog.text


def test_nothing_is_said_of_state_that_is_not_there_yet(tmp_path, caplog):
    assert recall_state(tmp_path / "a.json", Form, "It is made again") is None
    assert not caplog.records


@pytest.fixture
def weights(tmp_path):
    write_weights({"layer": torch.arange(4000.0)}, tmp_path / "model.pt")
    return tmp_path / "model.pt"


def flip(path, place):
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def test_weights_have_their_sha256_beside_them(weights):
    sha = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert weights.with_name("model.pt" + SUM).read_text() == f"{sha}  model.pt\n"
    assert torch.equal(read_tensors(weights, CURE)["layer"], torch.arange(4000.0))


@pytest.mark.parametrize("place", [0.0, 0.3, 0.5, 0.9, 1.0])
def test_one_flipped_bit_of_weights_is_noticed(weights, place):
    flip(weights, place)
    with pytest.raises(InputError, match=r"model\.pt is damaged: its SHA-256 is not that in model.+Do this"):
        read_tensors(weights, CURE)


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"ab12  model.pt\n", b"no sum"])
def test_a_damaged_sum_is_told_and_new_weights_mend_it(weights, content):
    weights.with_name("model.pt" + SUM).write_bytes(content)
    with pytest.raises(InputError, match=r"model\.pt is damaged: its SHA-256 is not that in model.+Do this"):
        read_tensors(weights, CURE)
    write_weights({"layer": torch.zeros(3)}, weights)
    assert len(read_tensors(weights, CURE)["layer"]) == 3


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_an_empty_sum_leaves_the_checksums_within(weights, content):
    weights.with_name("model.pt" + SUM).write_bytes(content)
    assert len(read_tensors(weights, CURE)["layer"]) == 4000
    flip(weights, 0.5)
    with pytest.raises(InputError, match=r"model\.pt is damaged \(checksum of"):
        read_tensors(weights, CURE)


def test_one_flipped_bit_of_a_tensor_is_noticed_without_a_sum(tmp_path):
    write_tensors({"layer": torch.arange(4000.0)}, tmp_path / "resume.pt")
    assert not (tmp_path / ("resume.pt" + SUM)).exists()
    check_tensors(tmp_path / "resume.pt", CURE)
    flip(tmp_path / "resume.pt", 0.5)
    with pytest.raises(InputError, match=r"resume\.pt is damaged \(checksum of .+\)\. Do this"):
        read_tensors(tmp_path / "resume.pt", CURE)


@pytest.mark.parametrize("length", [0, 1, 100, 0.5, 0.99])
def test_a_cut_file_of_tensors_is_noticed(tmp_path, length):
    file = tmp_path / "resume.pt"
    write_tensors({"layer": torch.arange(4000.0)}, file)
    whole = file.read_bytes()
    file.write_bytes(whole[: length if isinstance(length, int) else int(length * len(whole))])
    with pytest.raises(InputError, match=r"resume\.pt is damaged .*Do this"):
        read_tensors(file, CURE)


def test_missing_weights_are_named(tmp_path):
    with pytest.raises(InputError, match=r"model\.pt is missing\. Do this"):
        read_tensors(tmp_path / "model.pt", CURE)


def test_code_in_a_file_of_tensors_is_not_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "exploded",))

    torch.save({"layer": Bomb()}, tmp_path / "model.pt")
    with pytest.raises(InputError, match=r"model\.pt cannot be read as tensors\. Do this"):
        read_tensors(tmp_path / "model.pt", CURE)
    assert not (tmp_path / "exploded").exists()


def test_weights_that_replace_others_may_be_killed_at_any_moment(weights, monkeypatch):
    """As long as the new weights are not there, their sum stands beside that of the old ones."""
    replace = Path.replace

    def killed(path, target):
        if Path(target).name == "model.pt":
            raise KeyboardInterrupt
        return replace(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            write_weights({"layer": torch.zeros(3)}, weights)
    assert len(read_tensors(weights, CURE)["layer"]) == 4000
    write_weights({"layer": torch.zeros(3)}, weights)
    assert len(read_tensors(weights, CURE)["layer"]) == 3
    assert len(weights.with_name("model.pt" + SUM).read_text().splitlines()) == 1


def test_copied_weights_have_the_sum_of_the_copy_and_damaged_ones_are_not_copied(weights, tmp_path):
    copy_weights(weights, tmp_path / "copy" / "other.pt")
    sha = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert (tmp_path / "copy" / ("other.pt" + SUM)).read_text() == f"{sha}  other.pt\n"
    flip(weights, 0.5)
    with pytest.raises(InputError, match=r"model\.pt is damaged"):
        copy_weights(weights, tmp_path / "copy" / "third.pt")
    assert not (tmp_path / "copy" / "third.pt").exists()
