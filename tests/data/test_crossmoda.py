import json
from pathlib import Path

import pytest

from plugins.data import crossmoda
from plugins.data.crossmoda import (
    crossmoda_datalist,
    has_split,
    heldout_labels,
    heldout_scans,
    is_release_2023,
    scan_datalist,
)
from plugins.data.datalists import read_datalist, write_datalist
from plugins.errors import InputError


def touch(folder: Path, *names: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name in names:
        (folder / name).write_bytes(b"")
    return folder


def pair(case: str, ending: str = ".nii.gz") -> tuple[str, str]:
    return f"{case}_ceT1{ending}", f"{case}_Label{ending}"


def cases(items: list[dict[str, str]]) -> list[str]:
    return [item["case"] for item in items]


@pytest.fixture
def layout_2022(tmp_path: Path) -> Path:
    training = tmp_path / "crossmoda2022_training"
    touch(training / "training_source", *pair("crossmoda2021_ldn_10"), *pair("crossmoda2021_ldn_2", ".nii"))
    touch(training / "training_source", *pair("crossmoda2022_etz_0"), "._crossmoda2021_ldn_2_ceT1.nii.gz", "notes.txt")
    touch(training / "training_target", "crossmoda2021_ldn_106_hrT2.nii.gz")
    touch(tmp_path / "crossmoda2022_validation" / "validation", "crossmoda2022_etz_210_hrT2.nii.gz")
    touch(tmp_path / "heldout" / "validation_labels", "crossmoda2022_etz_210_Label.nii.gz")
    return tmp_path


def test_source_is_sorted_naturally_and_paired(layout_2022: Path) -> None:
    items = crossmoda_datalist(layout_2022, "training_source")
    assert cases(items) == ["crossmoda2021_ldn_2", "crossmoda2021_ldn_10", "crossmoda2022_etz_0"]
    for item in items:
        assert Path(item["image"]).name.startswith(item["case"] + "_ceT1")
        assert Path(item["label"]).name.startswith(item["case"] + "_Label")
        assert Path(item["image"]).is_file()
        assert Path(item["label"]).is_file()


def test_site_comes_from_the_name(layout_2022: Path) -> None:
    assert [item["site"] for item in crossmoda_datalist(layout_2022, "training_source")] == ["ldn", "ldn", "etz"]


@pytest.mark.parametrize("split", ["training_target", "validation"])
def test_targets_have_no_label(layout_2022: Path, split: str) -> None:
    (item,) = crossmoda_datalist(layout_2022, split)
    assert set(item) == {"case", "site", "image"}


@pytest.mark.parametrize("inside", ["crossmoda2022_training", "crossmoda2022_training/training_source", "."])
def test_any_folder_of_the_data_set_finds_every_split(layout_2022: Path, inside: str) -> None:
    for split, number in {"training_source": 3, "training_target": 1, "validation": 1}.items():
        assert len(crossmoda_datalist(layout_2022 / inside, split)) == number


def test_parent_of_the_data_set_finds_every_split(layout_2022: Path) -> None:
    parent = layout_2022.parent / "parent"
    parent.mkdir()
    layout_2022.rename(parent / "data")
    assert len(crossmoda_datalist(parent, "training_source")) == 3
    assert len(crossmoda_datalist(parent, "validation")) == 1


@pytest.mark.parametrize(
    "nested",
    ["validation/validation", "crossmoda2022_validation/validation", "", "validation/crossmoda2022_validation"],
)
def test_validation_folder_may_be_nested_twice_or_flat(tmp_path: Path, nested: str) -> None:
    touch(tmp_path / "crossmoda2022_validation" / nested, "crossmoda2021_ldn_211_hrT2.nii.gz")
    assert cases(crossmoda_datalist(tmp_path, "validation")) == ["crossmoda2021_ldn_211"]


def test_layout_of_2021_is_london(tmp_path: Path) -> None:
    touch(tmp_path / "source_training", *pair("crossmoda_2"), *pair("crossmoda_1"))
    touch(tmp_path / "target_training", "crossmoda_106_hrT2.nii.gz")
    touch(tmp_path / "target_validation", "crossmoda_211_hrT2.nii.gz")
    source = crossmoda_datalist(tmp_path, "training_source")
    assert cases(source) == ["crossmoda_1", "crossmoda_2"]
    assert {item["site"] for item in source} == {"ldn"}
    assert cases(crossmoda_datalist(tmp_path, "training_target")) == ["crossmoda_106"]
    assert cases(crossmoda_datalist(tmp_path, "validation")) == ["crossmoda_211"]


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (
            [*pair("crossmoda2021_ldn_1"), "crossmoda2021_ldn_2_ceT1.nii.gz"],
            "ldn_2_ceT1.nii.gz: this scan has no label",
        ),
        ([*pair("crossmoda2021_ldn_1"), "crossmoda2021_ldn_2_Label.nii"], "ldn_2_Label.nii: this label has no scan"),
        (["crossmoda2021_ldn_1_ceT1.nii.gz"], "holds no label"),
        ([*pair("crossmoda2021_ldn_1"), "crossmoda2021_ldn_1_ceT1.nii"], "second file of case crossmoda2021_ldn_1"),
        ([*pair("crossmoda2021_ldn_1"), "crossmoda2021_ldn_1_Label.nii"], "second file of case crossmoda2021_ldn_1"),
        ([], "holds no scan"),
        (["._crossmoda2021_ldn_1_ceT1.nii.gz"], "holds no scan"),
    ],
)
def test_fault_in_the_source_is_named(tmp_path: Path, names: list[str], words: str) -> None:
    touch(tmp_path / "crossmoda2022_training" / "training_source", *names)
    with pytest.raises(InputError, match=words):
        crossmoda_datalist(tmp_path, "training_source")


def test_missing_folders_and_splits_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nowhere: is not a folder"):
        crossmoda_datalist(tmp_path / "nowhere", "validation")
    with pytest.raises(InputError, match="has no folder validation or target_validation"):
        crossmoda_datalist(tmp_path, "validation")
    with pytest.raises(InputError, match="'test' is no split"):
        crossmoda_datalist(tmp_path, "test")


def test_two_data_sets_below_one_folder_are_ambiguous(tmp_path: Path) -> None:
    for name in ("a", "b"):
        touch(tmp_path / name / "training_source", *pair("crossmoda2021_ldn_1"))
    with pytest.raises(InputError, match="more than one data set"):
        crossmoda_datalist(tmp_path, "training_source")


RELEASES = {
    "2021": ("source_training", "target_training", "target_validation"),
    "2022": (
        "crossmoda2022_training/training_source",
        "crossmoda2022_training/training_target",
        "crossmoda2022_validation/validation",
    ),
    "2023": ("crossmoda23_training/TrainingSource", "crossmoda23_training/TrainingTarget", "crossmoda23_validation"),
}
ALL = ("training_source", "training_target", "validation")


def unpack(folder: Path, release: str, case: str = "") -> Path:
    """A release with one scan a split, whose case is the year if none is given."""
    source, *targets = RELEASES[release]
    touch(folder / source, *pair(case or release))
    for target in targets:
        touch(folder / target, f"{case or release}_{'T2' if release == '2023' else 'hrT2'}.nii.gz")
    return folder


@pytest.mark.parametrize(
    ("release", "others"), [("2021", ["2022"]), ("2022", ["2021"]), ("2022", ["2023"]), ("2022", ["2021", "2023"])]
)
def test_the_release_that_is_named_is_read_and_never_the_one_beside_it(tmp_path: Path, release: str, others) -> None:
    for each in (release, *others):
        unpack(tmp_path, each)
    parts = {*RELEASES[release], *(str(Path(each).parent) for each in RELEASES[release])} - {"."}
    for part in parts:
        for split in ALL:
            assert cases(crossmoda_datalist(tmp_path / part, split)) == [release]
            assert not has_split(tmp_path / part, split, release_2023=True)
        assert not is_release_2023(tmp_path / part)
    with pytest.raises(InputError, match="more than one data set"):
        crossmoda_datalist(tmp_path, "training_source")


def test_the_release_of_2023_is_read_beside_another(tmp_path: Path) -> None:
    unpack(unpack(tmp_path, "2022"), "2023")
    for part in ("crossmoda23_training", "crossmoda23_validation", "crossmoda23_training/TrainingTarget"):
        assert is_release_2023(tmp_path / part)
        for split in ALL:
            assert cases(crossmoda_datalist(tmp_path / part, split, release_2023=True)) == ["2023"]
        with pytest.raises(InputError, match="2023 as it was unpacked"):
            crossmoda_datalist(tmp_path / part, "training_source")
    with pytest.raises(InputError, match="more than one data set"):
        crossmoda_datalist(tmp_path, "training_source", release_2023=True)


@pytest.mark.parametrize("name", ["validation", "training_source", "crossmoda2022_training", "data"])
@pytest.mark.parametrize("release", ["2021", "2022"])
def test_a_data_set_may_have_the_name_of_a_split(tmp_path: Path, caplog, name: str, release: str) -> None:
    unpack(tmp_path / "other", "2022", "foreign")
    unpack(tmp_path / name, release, "own")
    for split in ALL:
        assert cases(crossmoda_datalist(tmp_path / name, split)) == ["own"]
    assert caplog.text == ""


def test_a_split_that_a_data_set_lacks_is_not_taken_from_its_neighbour(tmp_path: Path) -> None:
    unpack(tmp_path / "other", "2022", "foreign")
    for name in ("validation", "data", "crossmoda2022_training"):
        touch(tmp_path / name / "training_source", *pair("own"))
        assert not has_split(tmp_path / name, "validation")
        assert not has_split(tmp_path / name, "training_target")
    unpack(tmp_path, "2021", "foreign")
    assert not has_split(tmp_path / "crossmoda2022_training", "validation")
    with pytest.raises(InputError, match="crossmoda2022_training: has no folder validation"):
        crossmoda_datalist(tmp_path / "crossmoda2022_training", "validation")


def test_a_second_data_set_is_seen_at_any_depth(tmp_path: Path) -> None:
    unpack(tmp_path, "2021")
    unpack(tmp_path / "more", "2022")
    for split in ALL:
        with pytest.raises(InputError, match=r"more than one data set \(.* and .*\). Set dataset_dir to one"):
            crossmoda_datalist(tmp_path, split)
    assert cases(crossmoda_datalist(tmp_path / "more", "validation")) == ["2022"]


@pytest.mark.parametrize("given", [".", "crossmoda2022_training", "crossmoda2022_validation/validation"])
def test_the_truth_is_that_of_the_data_set_that_is_named(tmp_path: Path, given: str) -> None:
    for name in ("a", "b"):
        unpack(tmp_path / name, "2022", name)
        touch(tmp_path / name / "heldout" / "validation_labels", f"{name}_Label.nii.gz")
        touch(tmp_path / name / "heldout" / "source_hrT2", f"{name}_hrT2.nii.gz")
    assert [*heldout_labels(tmp_path / "b" / given, "validation")] == ["b"]
    assert [*heldout_scans(tmp_path / "b" / given)] == ["b"]
    with pytest.raises(InputError, match="more than one data set"):
        heldout_labels(tmp_path, "validation")


def test_a_folder_that_cannot_be_looked_into_is_passed_by(tmp_path: Path, monkeypatch) -> None:
    unpack(tmp_path, "2021")
    locked = tmp_path / "lost+found"
    locked.mkdir()
    monkeypatch.setattr("os.access", lambda path, _: path != locked)
    monkeypatch.setattr(crossmoda, "_subfolders", lambda path: 1 / 0 if path == locked else [*path.glob("[a-z]*")])
    assert has_split(tmp_path, "validation")


def test_scans_of_any_folder(tmp_path: Path) -> None:
    touch(tmp_path, "tcga_fg6692_t2.nii.gz", "tcga_fg6692_t1.nii", "a_2_hrT2.nii.gz", "a_10_T2.nii.gz", "._a.nii.gz")
    touch(tmp_path, "a_2_Label.nii", "orphan_Label.nii.gz", "tcga_fg6692_t2_Label.nii.gz", "readme.txt")
    items = scan_datalist(tmp_path)
    assert cases(items) == ["a_2", "a_10", "tcga_fg6692_t1", "tcga_fg6692_t2"]
    assert [Path(item["label"]).name if "label" in item else None for item in items] == [
        "a_2_Label.nii",
        None,
        None,
        "tcga_fg6692_t2_Label.nii.gz",
    ]


def test_labels_without_a_scan_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    touch(tmp_path, "dora_ceT1.nii.gz", "doraa_Label.nii.gz", "eva_hrT2.nii.gz", "eva_Label.nii.gz")
    assert cases(scan_datalist(tmp_path, "ceT1")) == ["dora"]
    (other, lone) = [record.getMessage() for record in caplog.records]
    assert "passed over eva_hrT2.nii.gz" in other
    assert "label maps without a scan (1): doraa_Label.nii.gz. Name each as its scan" in lone


@pytest.mark.parametrize(
    ("contrast", "expected"), [("hrT2", ["a"]), ("T2", ["b"]), ("ceT1", ["a"]), ("flair", ["c_flair"])]
)
def test_contrast_selects_scans(tmp_path: Path, contrast: str, expected: list[str]) -> None:
    touch(tmp_path, "a_hrT2.nii.gz", "a_ceT1.nii.gz", "b_T2.nii.gz", "c_flair.nii.gz")
    assert cases(scan_datalist(tmp_path, contrast)) == expected


def test_two_contrasts_of_a_case_are_a_duplicate_without_choice(tmp_path: Path) -> None:
    touch(tmp_path, "a_hrT2.nii.gz", "a_ceT1.nii.gz")
    with pytest.raises(InputError, match="second file of case a"):
        scan_datalist(tmp_path)


@pytest.mark.parametrize("names", [[], ["a_Label.nii.gz"], ["a_hrT2.nii.gz"]])
def test_folder_without_a_wanted_scan_is_refused(tmp_path: Path, names: list[str]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(InputError, match="holds no"):
        scan_datalist(tmp_path, "ceT1")
    with pytest.raises(InputError, match="is not a folder"):
        scan_datalist(tmp_path / "nowhere")


def test_data_set_as_a_folder_of_scans(layout_2022: Path) -> None:
    assert scan_datalist(layout_2022, "ceT1") == crossmoda_datalist(layout_2022, "training_source")
    assert scan_datalist(layout_2022, "hrT2") == crossmoda_datalist(layout_2022, "validation")
    target = layout_2022 / "crossmoda2022_training" / "training_target"
    assert cases(scan_datalist(target, "hrT2")) == ["crossmoda2021_ldn_106"]


def test_heldout_labels_only_where_there_are_some(layout_2022: Path) -> None:
    truth = heldout_labels(layout_2022, "validation")
    assert list(truth) == ["crossmoda2022_etz_210"]
    assert Path(truth["crossmoda2022_etz_210"]).is_file()
    assert heldout_labels(layout_2022 / "crossmoda2022_training", "validation") == truth
    assert heldout_labels(layout_2022, "training_target") == {}
    assert heldout_labels(layout_2022, "training_source") == {}


def test_datalist_survives_a_move_of_everything(layout_2022: Path) -> None:
    items = crossmoda_datalist(layout_2022, "training_source")
    write_datalist(layout_2022 / "lists" / "source.json", items)
    assert read_datalist(layout_2022 / "lists" / "source.json") == items
    moved = layout_2022.rename(layout_2022.with_name("moved"))
    assert read_datalist(moved / "lists" / "source.json") == crossmoda_datalist(moved, "training_source")


def test_datalist_keeps_other_keys(tmp_path: Path) -> None:
    touch(tmp_path, "a.nii.gz")
    item = {"case": "a", "patient": "p", "image": str(tmp_path / "a.nii.gz"), "origin": "real", "weight": 2}
    write_datalist(tmp_path / "list.json", [item])
    assert read_datalist(tmp_path / "list.json") == [item]
    assert json.loads((tmp_path / "list.json").read_text())["training"][0]["image"] == "a.nii.gz"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('{"training": [', "is not JSON"),
        ('{"validation": []}', "is not a datalist"),
        ('{"training": ["a.nii.gz"]}', "is not a datalist"),
        ("[]", "is not a datalist"),
        ('{"training": 3}', "is not a datalist"),
        ('{"training": [{"label": "a.nii.gz"}]}', 'has no "image"'),
        ('{"training": [{"image": "gone.nii.gz"}]}', "gone.nii.gz: does not exist"),
        ('{"training": [{"image": "a.nii.gz", "label": "gone.nii.gz"}]}', "gone.nii.gz: does not exist"),
    ],
)
def test_broken_datalist_is_named(tmp_path: Path, text: str, words: str) -> None:
    touch(tmp_path, "a.nii.gz")
    (tmp_path / "list.json").write_text(text)
    with pytest.raises(InputError, match=words):
        read_datalist(tmp_path / "list.json")


def test_missing_datalist_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"list\.json: this datalist does not exist"):
        read_datalist(tmp_path / "list.json")
