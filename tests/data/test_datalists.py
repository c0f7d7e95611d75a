import json
from pathlib import Path

import pytest

from plugins.data import datalists
from plugins.data.datalists import (
    dataset_or_phantom,
    inference_datalist,
    read_datalist,
    segmentation_datalist,
    unpaired_datalist,
    write_datalist,
)
from plugins.errors import InputError

NOWHERE = "no bundle root is needed"


def touch(folder, *names):
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / f"{name}.nii.gz").touch()


@pytest.fixture
def crossmoda(tmp_path):
    root = tmp_path / "crossmoda"
    training = root / "crossmoda2022_training"
    for case in ("crossmoda2021_ldn_1", "crossmoda2022_etz_0"):
        touch(training / "training_source", f"{case}_ceT1", f"{case}_Label")
    touch(training / "training_target", *(f"crossmoda2021_ldn_{number}_hrT2" for number in (106, 107, 108)))
    touch(root / "crossmoda2022_validation" / "validation", "crossmoda2021_ldn_211_hrT2")
    return root


def cases(items):
    return [item["case"].removeprefix("crossmoda2021_ldn_") for item in items]


def test_unpaired_scans_are_the_two_training_folders(crossmoda):
    data = unpaired_datalist(crossmoda, NOWHERE)
    assert cases(data["source"]) == ["1", "crossmoda2022_etz_0"]
    assert all("label" in item for item in data["source"])
    assert cases(data["target"]) == ["106", "107", "108"]
    assert not any("label" in item or "pseudo" in item for item in data["target"])


def test_pseudo_labels_join_the_targets_that_have_one(crossmoda, tmp_path):
    touch(tmp_path / "labels", "crossmoda2021_ldn_107_Label", "crossmoda2021_ldn_1_Label")
    target = unpaired_datalist(crossmoda, NOWHERE, tmp_path / "labels")["target"]
    assert cases(target) == ["106", "107", "108"]
    assert [item.get("pseudo", False) for item in target] == [False, True, False]
    assert target[1]["label"] == str(tmp_path / "labels" / "crossmoda2021_ldn_107_Label.nii.gz")
    assert "label" not in target[0]


def test_segmentation_takes_the_labelled_sources_of_crossmoda(crossmoda):
    items = segmentation_datalist(None, crossmoda, NOWHERE)
    assert cases(items) == ["1", "crossmoda2022_etz_0"]
    assert items[0].keys() >= {"case", "patient", "image", "label", "origin"}
    assert {(item["patient"] == item["case"], item["origin"]) for item in items} == {(True, "real")}


def test_segmentation_takes_the_targets_that_have_a_pseudo_label(crossmoda, tmp_path):
    touch(tmp_path / "labels", "crossmoda2021_ldn_106_Label", "crossmoda2021_ldn_108_Label")
    items = segmentation_datalist(None, crossmoda, NOWHERE, tmp_path / "labels")
    assert cases(items) == ["106", "108"]
    assert all(Path(item["image"]).name.endswith("_hrT2.nii.gz") for item in items)
    assert [Path(item["label"]).parent.name for item in items] == ["labels"] * 2


def test_segmentation_takes_the_labelled_scans_of_a_flat_folder(tmp_path):
    touch(tmp_path / "flat", "a_hrT2", "a_Label", "b", "b_Label", "c")
    assert cases(segmentation_datalist(None, tmp_path / "flat", NOWHERE)) == ["a", "b"]


def test_scans_and_labels_that_do_not_pair_are_named(tmp_path, caplog):
    touch(tmp_path / "flat", "a_hrT2", "a_Label", "b_hrT2", "bb_Label")
    assert cases(segmentation_datalist(None, tmp_path / "flat", NOWHERE)) == ["a"]
    told = [record.getMessage().partition("flat: ")[2] for record in caplog.records]
    assert told == [
        "label maps without a scan (1): bb_Label.nii.gz. Name each as its scan, <case>_Label.nii.gz.",
        "scans left out of training, as they have no label (1): b. Put <case>_Label.nii.gz beside them.",
    ]


def test_items_of_a_datalist_that_have_no_label_are_named(tmp_path, caplog):
    touch(tmp_path, "l", *(f"a{number}_hrT2" for number in range(9)))
    items = [{"image": str(tmp_path / f"a{number}_hrT2.nii.gz")} for number in range(9)]
    write_datalist(tmp_path / "list.json", [items[0] | {"label": str(tmp_path / "l.nii.gz")}, *items[1:]])
    assert cases(segmentation_datalist(tmp_path / "list.json", None, NOWHERE)) == ["a0"]
    (record,) = caplog.records
    words = 'as they have no label (8): a1, a2, a3, a4, a5 and 3 more. Add "label" to their items.'
    assert record.getMessage() == f"{tmp_path / 'list.json'}: scans left out of training, {words}"
    assert len(inference_datalist(tmp_path / "list.json", None, NOWHERE)) == 9
    assert len(caplog.records) == 1


def test_segmentation_takes_a_datalist_as_it_is(tmp_path):
    touch(tmp_path / "scans", "a_hrT2", "b_hrT2", "l")
    folder = tmp_path / "scans"
    items = [
        {"image": str(folder / "a_hrT2.nii.gz"), "label": str(folder / "l.nii.gz")},
        {"case": "b1", "patient": "b", "origin": "translated", "image": str(folder / "b_hrT2.nii.gz")},
    ]
    items[1]["label"] = items[0]["label"]
    write_datalist(tmp_path / "list.json", items)
    found = segmentation_datalist(tmp_path / "list.json", None, NOWHERE)
    assert found == [{"case": "a", "patient": "a", "origin": "real", **items[0]}, items[1]]


def test_a_misspelt_key_of_a_datalist_is_refused(tmp_path):
    touch(tmp_path, "a_hrT2", "l")
    item = {"image": str(tmp_path / "a_hrT2.nii.gz"), "label": str(tmp_path / "l.nii.gz"), "pateint": "a", "age": "7"}
    write_datalist(tmp_path / "list.json", [item])
    with pytest.raises(InputError, match=r"list\.json: .*a_hrT2\.nii\.gz has 'pateint'. Did you mean 'patient'"):
        segmentation_datalist(tmp_path / "list.json", None, NOWHERE)


@pytest.mark.parametrize("build", [segmentation_datalist, inference_datalist])
def test_of_a_list_and_a_folder_neither_is_ignored(tmp_path, build):
    touch(tmp_path / "flat", "a_hrT2", "a_Label")
    write_datalist(tmp_path / "list.json", [{"image": str(tmp_path / "flat" / "a_hrT2.nii.gz")}])
    with pytest.raises(InputError, match=r"list\.json\) and dataset_dir \(.*flat\) are both set. Give one"):
        build(tmp_path / "list.json", tmp_path / "flat", NOWHERE)


def test_pseudo_labels_beside_a_list_are_not_ignored(tmp_path):
    touch(tmp_path / "flat", "a_hrT2", "a_Label")
    item = {"image": str(tmp_path / "flat" / "a_hrT2.nii.gz"), "label": str(tmp_path / "flat" / "a_Label.nii.gz")}
    write_datalist(tmp_path / "list.json", [item])
    with pytest.raises(InputError, match=r"list\.json\) and label_dir \(.*labels\) are both set. Give one"):
        segmentation_datalist(tmp_path / "list.json", None, NOWHERE, tmp_path / "labels")


@pytest.mark.parametrize(
    ("key", "values"),
    {
        "image": ["", " ", 3, None, ["a.nii.gz", "b.nii.gz"], {}, True],
        "label": ["", 3, None, ["a.nii.gz"], {}, False],
        "patient": ["", None, [], True],
        "origin": ["", 3, None, ["real"]],
        "site": ["", 5, None, {}],
        "weight": ["x", "1", "", None, True, [1], float("nan"), float("inf")],
    }.items(),
)
def test_a_value_of_the_wrong_kind_is_named_with_its_item(tmp_path, key, values):
    touch(tmp_path, "a", "b")
    for value in values:
        items = [{"image": "a.nii.gz"}, {"case": "b", "image": "b.nii.gz", key: value}]
        (tmp_path / "list.json").write_text(json.dumps({"training": items}))
        with pytest.raises(InputError, match=rf'list\.json: item 2 \(b\) has "{key}": .*\. Give (the path|a n)'):
            inference_datalist(tmp_path / "list.json", None, NOWHERE)


def test_values_of_the_right_kind_stay_as_they_are(tmp_path):
    """Also those that are the name of a file beside the list."""
    touch(tmp_path, "a")
    (tmp_path / "ldn").mkdir()
    item = {
        "case": "ldn",
        "image": "./a.nii.gz",
        "site": "ldn",
        "patient": 7,
        "origin": "real",
        "weight": 0.5,
        "age": None,
    }
    (tmp_path / "list.json").write_text(json.dumps({"training": [item]}))
    assert read_datalist(tmp_path / "list.json") == [{**item, "image": str(tmp_path / "a.nii.gz")}]


@pytest.mark.parametrize("names", [("a_ceT1.NII.GZ", "a_Label.NII.GZ"), ("a_cet1.nii.gz", "a_label.nii")])
def test_a_training_reads_names_in_any_capitals_as_inference_does(tmp_path, caplog, names):
    touch(tmp_path / "flat", "b_ceT1", "b_Label")
    for folder in ("flat", "alone"):
        (tmp_path / folder).mkdir(exist_ok=True)
        for name in names:
            (tmp_path / folder / name).touch()
    assert cases(segmentation_datalist(None, tmp_path / "alone", NOWHERE)) == ["a"]
    found = segmentation_datalist(None, tmp_path / "flat", NOWHERE)
    assert cases(found) == cases(inference_datalist(None, tmp_path / "flat", NOWHERE, "ceT1")) == ["a", "b"]
    assert all("label" in item for item in found)
    assert caplog.text == ""


def test_what_macos_adds_hides_no_data_set(crossmoda):
    (crossmoda / "._x.nii.gz").touch()
    assert cases(segmentation_datalist(None, crossmoda, NOWHERE)) == ["1", "crossmoda2022_etz_0"]


def test_scans_without_any_label_are_refused(tmp_path):
    touch(tmp_path / "flat", "a_hrT2")
    with pytest.raises(InputError, match=r"flat: no scan has a label. Put <case>_Label"):
        segmentation_datalist(None, tmp_path / "flat", NOWHERE)


@pytest.mark.parametrize("build", [unpaired_datalist, lambda *args: segmentation_datalist(None, *args)])
def test_pseudo_labels_that_fit_no_target_are_refused(crossmoda, tmp_path, build):
    touch(tmp_path / "labels", "crossmoda2021_ldn_1_Label")
    with pytest.raises(InputError, match="labels: holds no <case>_Label"):
        build(crossmoda, NOWHERE, tmp_path / "labels")


@pytest.mark.parametrize(("contrast", "expected"), [("ceT1", ["1", "crossmoda2022_etz_0"]), ("hrT2", ["211"])])
def test_inference_takes_the_scans_of_a_contrast(crossmoda, contrast, expected):
    assert cases(inference_datalist(None, crossmoda, NOWHERE, contrast)) == expected


def test_inference_names_the_cases_of_a_bare_datalist(tmp_path):
    touch(tmp_path, "a_ceT1", "b.x", "crossmoda2021_ldn_7_hrT2")
    items = [{"image": str(tmp_path / f"{name}.nii.gz")} for name in ("a_ceT1", "b.x", "crossmoda2021_ldn_7_hrT2")]
    write_datalist(tmp_path / "list.json", items)
    assert cases(inference_datalist(tmp_path / "list.json", None, NOWHERE)) == ["a", "b.x", "7"]


def test_a_datalist_whose_results_would_overwrite_each_other_is_refused(tmp_path):
    touch(tmp_path / "1", "a")
    touch(tmp_path / "2", "a")
    items = [{"image": str(tmp_path / number / "a.nii.gz")} for number in "12"]
    write_datalist(tmp_path / "list.json", items)
    with pytest.raises(InputError, match=r"list\.json: lists a twice"):
        inference_datalist(tmp_path / "list.json", None, NOWHERE)


def test_without_a_dataset_the_phantom_of_the_bundle_is_written(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr(datalists, "write_phantom", written.append)
    assert dataset_or_phantom(None, tmp_path) == tmp_path / "eval" / "phantom"
    assert written == [tmp_path / "eval" / "phantom"]
    assert dataset_or_phantom(str(tmp_path), NOWHERE) == tmp_path
    assert len(written) == 1
