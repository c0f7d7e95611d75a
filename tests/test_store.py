"""The one record of what outputs were made from."""

import ast
import os
from pathlib import Path

import pytest

import plugins
from plugins.errors import InputError
from plugins.files import read_json, write_json
from plugins.store import RECORD, Store, check_output_dir, content_of, difference, digest_of

PACKAGE = Path(plugins.__file__).parent
TIMES = {"st_mtime", "st_mtime_ns", "st_ctime", "st_ctime_ns", "getmtime", "getctime"}


def test_no_other_part_decides_by_times_whether_something_is_fresh():
    found = {
        path.relative_to(PACKAGE).as_posix()
        for path in PACKAGE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute) and node.attr in TIMES
    }
    in_order = {"report/facts.py", "report/live.py", "report/run.py"}  # the order in which stages ended, for the eye
    assert found - in_order == {"store.py"}


def test_the_content_of_a_file_is_its_bytes_and_of_a_folder_its_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.dcm").write_bytes(b"slice")
    assert content_of(tmp_path / "a" / "1.dcm") == content_of(tmp_path / "b" / "1.dcm")
    assert content_of(tmp_path / "a") == content_of(tmp_path / "b")
    (tmp_path / "b" / "1.dcm").rename(tmp_path / "b" / "2.dcm")
    assert content_of(tmp_path / "a") != content_of(tmp_path / "b")
    with pytest.raises(InputError, match="gone: cannot be read"):
        content_of(tmp_path / "gone")


def test_another_content_of_the_same_size_is_noticed(tmp_path):
    file = tmp_path / "scan"
    file.write_bytes(b"one")
    before = content_of(file)
    file.write_bytes(b"two")
    os.utime(file, ns=(5, 5))
    assert content_of(file) != before


def test_a_digest_depends_on_inputs_settings_and_version(tmp_path, monkeypatch):
    for name in "ab":
        (tmp_path / name).write_text(name)
    a, b = tmp_path / "a", tmp_path / "b"
    marks = [digest_of([a], 1), digest_of([b], 1), digest_of([a, b], 1), digest_of([b, a], 1), digest_of([a], 2)]
    assert digest_of([str(a)], 1) == marks[0]
    monkeypatch.setattr("plugins.__version__", "9.9")
    marks.append(digest_of([a], 1))
    assert len(set(marks)) == len(marks)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"outputs": {"a": 1}}', '{"outputs": {"a": {"made_from": 1}}}'])
def test_a_torn_record_is_named_and_nothing_is_replaced(tmp_path, content):
    (tmp_path / "a").write_text("hand-made")
    (tmp_path / RECORD).write_text(content)
    store = Store(tmp_path)
    with pytest.raises(InputError, match=r"made\.json is damaged \(.*\)\. Choose another output_dir"):
        store.write(tmp_path / "a", "x", lambda part: part.write_text("ours"))
    assert (tmp_path / "a").read_text() == "hand-made"


def test_records_of_others_stay(tmp_path):
    store = Store(tmp_path)
    for name in "ab":
        store.write(tmp_path / name, f"from {name}", lambda part, name=name: part.write_text(name))
    assert {name: each["made_from"] for name, each in store.records().items()} == {"a": "from a", "b": "from b"}
    assert store.is_current(tmp_path / "a", "from a")
    assert not store.is_current(tmp_path / "a", "from elsewhere")
    assert not store.is_current(tmp_path / "c", "from c")


def test_a_record_of_version_0_1_0_is_read_and_its_output_kept(tmp_path):
    """There, what an output was made from was called its origin; an output may be called so too."""
    (tmp_path / "origin").write_text("ours")
    (tmp_path / "b").write_text("theirs")
    outputs = {"origin": {"origin": "x", "content": [content_of(tmp_path / "origin")]}}
    write_json(tmp_path / RECORD, {"version": "0.1.0", "outputs": outputs})
    store = Store(tmp_path)
    assert store.is_current(tmp_path / "origin", "x")
    assert not store.is_current(tmp_path / "origin", "y")
    with pytest.raises(InputError, match="not made by this program"):
        store.is_current(tmp_path / "b", "x")
    store.write(tmp_path / "c", "z", lambda part: part.write_text("ours"))
    told = {name: {*record} for name, record in read_json(tmp_path / RECORD)["outputs"].items()}
    assert told == {"origin": {"made_from", "content"}, "c": {"made_from", "content"}}


def test_a_write_that_fails_changes_nothing(tmp_path):
    store = Store(tmp_path)
    store.write(tmp_path / "a", "x", lambda part: part.write_text("good"))
    with pytest.raises(ZeroDivisionError):
        store.write(tmp_path / "a", "y", lambda part: 1 / 0)
    assert (tmp_path / "a").read_text() == "good"
    assert store.is_current(tmp_path / "a", "x")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", RECORD]


def test_settings_are_compared_as_json_tells_them():
    assert difference({"a": [1, 2]}, {"a": (1, 2), "b": 3}) == ""
    assert difference({"a": None}, {"a": 1}) == "a None, not 1"


def test_a_record_of_before_that_holds_arguments_by_their_names_is_compared_too():
    now = {"network_def": {"_target_": "Net", "norm": "rain", "channels": "@channels", "levels": [1, 2]}, "channels": 8}
    before = {"norm": "rain", "channels": 8, "levels": [1, 2], "gone": 1}
    assert difference(before, now) == ""
    assert difference(before | {"norm": "region"}, now) == "network_def::norm 'region', not 'rain'"
    assert difference(before | {"levels": [1, 3]}, now) == "network_def::levels [1, 3], not [1, 2]"
    assert difference(before | {"channels": 16}, now) == "channels 16, not 8"


def test_an_argument_is_not_compared_with_a_setting_of_its_name_that_another_component_takes():
    trained = {"network_def": {"channels": 4}, "reverse_def": {"channels": "@channels"}, "channels": 8}
    assert difference(trained, {"network_def": {"channels": 4}}) == ""
    assert difference(trained, {"network_def": {"channels": 8}}) == "network_def::channels 4, not 8"


def test_what_no_weight_depends_on_may_be_another_when_a_network_is_used():
    def net(**code):
        return {"network_def": {"_target_": "Net", "code": {"_target_": "SiteCode", "sites": ["a", "b"], **code}}}

    assert difference(net(site=None), net(site="a")) == difference(net(), net(site="b")) == ""
    assert difference(net(), net(sites=["b", "a"])) == "network_def::code::sites ['a', 'b'], not ['b', 'a']"
    assert digest_of([], net(site="a")) != digest_of([], net(site="b"))


@pytest.mark.parametrize("inside", ["scan", "series"])
def test_an_output_folder_that_holds_inputs_is_refused(tmp_path, inside):
    series = tmp_path / "series"
    series.mkdir()
    write_json(series / "scan", 1)
    path = series / "scan" if inside == "scan" else series
    with pytest.raises(InputError, match="Choose another one"):
        check_output_dir(series, [path])
    check_output_dir(tmp_path / "out", [path])
    assert [*(tmp_path / "out").iterdir()] == []
