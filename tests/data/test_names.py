"""What a folder holds is read or named, never silently left out; cases are plain file names."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from plugins.data import (
    check_scan,
    inference_datalist,
    label_files,
    read_datalist,
    scan_datalist,
    segmentation_datalist,
)
from plugins.data.crossmoda import crossmoda_datalist
from plugins.errors import InputError
from plugins.evaluation.labels import labels_in

from ..dicom_series import write_series
from .odd_files import placed, voxels


def scan(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(voxels(), placed()), path)
    return path


def series(folder: Path, preamble: bool = True) -> None:
    write_series(folder, voxels(dtype=np.uint16), placed(np.diag([-1.0, -1, 1])))
    for path in [] if preamble else folder.iterdir():
        path.write_bytes(path.read_bytes()[132:])


def content(folder: Path, name: str) -> None:
    """A scan under a name that says nothing of it."""
    path = scan(folder / "x.nii.gz")
    path.rename(folder / name)


PASSED_OVER = {
    "_hrt2, beside another contrast": (lambda f: scan(f / "b_hrt2x.nii.gz"), "b_hrt2x.nii.gz", "name them *_hrT2"),
    "_T2": (lambda f: scan(f / "b_T2.nii.gz"), "b_T2.nii.gz", "name them *_hrT2.nii.gz, or set contrast"),
    "no contrast": (lambda f: scan(f / "b.nii.gz"), "b.nii.gz", "name them *_hrT2"),
    "subfolder": (lambda f: scan(f / "more" / "b_hrT2.nii.gz"), "more", "move its scans up"),
    "subfolder of a subfolder": (lambda f: scan(f / "more" / "x" / "b_hrT2.nii.gz"), "more", "move its scans up"),
    "nested DICOM": (lambda f: series(f / "patient" / "study"), "patient", "move its scans up"),
    "nested DICOM without preamble": (lambda f: series(f / "patient" / "study", False), "patient", "move its scans up"),
    "NRRD": (lambda f: (f / "b_hrT2.nrrd").write_bytes(b"NRRD0004"), "b_hrT2.nrrd", "convert them to .nii.gz"),
    "pair": (lambda f: (f / "b_hrT2.IMG").write_bytes(b"0"), "b_hrT2.IMG", "convert them to .nii.gz"),
    "no ending": (lambda f: content(f, "b_hrT2"), "b_hrT2", "name them *_hrT2.nii.gz"),
    "another ending": (lambda f: content(f, "b_hrT2.nii.gz.bak"), "b_hrT2.nii.gz.bak", "name them *_hrT2.nii.gz"),
}


@pytest.mark.parametrize("kind", PASSED_OVER)
def test_what_is_passed_over_is_named_with_the_cure(tmp_path, caplog, kind):
    make, name, cure = PASSED_OVER[kind]
    scan(tmp_path / "good_hrT2.nii.gz")
    make(tmp_path)
    with caplog.at_level(logging.WARNING):
        assert [item["case"] for item in scan_datalist(tmp_path, "hrT2")] == ["good"]
    (record,) = caplog.records
    assert f"passed over {name};" in record.message
    assert cure in record.message


READ = {
    "_hrt2": lambda f: scan(f / "b_hrt2.nii.gz"),
    "capitals": lambda f: scan(f / "b_hrT2.NII.GZ"),
    "uncompressed in capitals": lambda f: scan(f / "b_hrT2.NII"),
    "DICOM": lambda f: series(f / "b"),
    "DICOM without preamble": lambda f: series(f / "b", preamble=False),  # and refused when it is read
}


@pytest.mark.parametrize("kind", READ)
def test_what_can_be_read_is_listed(tmp_path, caplog, kind):
    READ[kind](tmp_path)
    assert [item["case"] for item in scan_datalist(tmp_path, "hrT2")] == ["b"]
    assert "passed over" not in caplog.text


@pytest.fixture
def mixed(tmp_path):
    """Series of two contrasts and one of none, with label maps."""
    for name in ("anna_ceT1", "ben_hrT2", "cleo"):
        series(tmp_path / name)
    for name in ("anna", "cleo"):
        scan(tmp_path / f"{name}_Label.nii.gz")
    return tmp_path


@pytest.mark.parametrize(
    ("contrast", "labels", "other"),
    [
        ("ceT1", {"anna": "anna_Label.nii.gz", "cleo": "cleo_Label.nii.gz"}, "ben_hrT2"),
        ("hrT2", {"ben": None, "cleo": "cleo_Label.nii.gz"}, "anna_ceT1"),
    ],
)
def test_a_series_is_listed_by_the_rules_of_a_file(mixed, caplog, contrast, labels, other):
    found = scan_datalist(mixed, contrast)
    assert {item["case"]: Path(item["label"]).name if "label" in item else None for item in found} == labels
    (record,) = caplog.records
    assert f"passed over {other}; name them *_{contrast}, or set contrast." in record.message


def test_a_series_has_the_case_that_a_datalist_gives_it(mixed):
    listed = [{"image": str(path)} for path in sorted(mixed.iterdir()) if path.is_dir()]
    (mixed / "list.json").write_text(json.dumps({"training": listed}))
    for items in (inference_datalist(mixed / "list.json", None, mixed), scan_datalist(mixed)):
        assert [item["case"] for item in items] == ["anna", "ben", "cleo"]


def test_a_series_that_is_given_itself_is_taken_whatever_its_contrast(mixed):
    (item,) = scan_datalist(mixed / "ben_hrT2", "ceT1")
    assert (item["case"], item["image"]) == ("ben", str(mixed / "ben_hrT2"))


def test_a_folder_with_series_of_another_contrast_alone_holds_no_scan(tmp_path):
    series(tmp_path / "ben_hrT2")
    with pytest.raises(InputError, match=r"holds no scan named \*_ceT1"):
        scan_datalist(tmp_path, "ceT1")


@pytest.mark.parametrize("second", ["e/e", "e/e_hrT2"])
def test_two_series_of_one_case_are_refused(tmp_path, second):
    series(tmp_path / "e")
    series(tmp_path / second)
    with pytest.raises(InputError, match=f"{second}: is a second series of case e, beside .*e. Rename one of them"):
        scan_datalist(tmp_path / "e", "hrT2")


@pytest.mark.parametrize("name", ["x" * 201, " a"], ids=["long", "blank"])
def test_a_series_whose_case_cannot_name_a_file_is_refused(tmp_path, name):
    series(tmp_path / name)
    with pytest.raises(InputError, match="cannot name a file"):
        scan_datalist(tmp_path, "hrT2")


@pytest.mark.parametrize("name", ["notes.txt", "table.csv", ".hidden_hrT2.nii.gz", "._a_hrT2.nii.gz", "a_Label.nii.gz"])
def test_what_is_no_scan_is_not_named(tmp_path, caplog, name):
    scan(tmp_path / "a_hrT2.nii.gz")
    (tmp_path / name).write_text("1")
    (tmp_path / "figures").mkdir()
    scan_datalist(tmp_path, "hrT2")
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["b_hrT2.nii.gz", "b_Label.nii.gz", "b.dcm", "b"])
@pytest.mark.parametrize("listed", [scan_datalist, label_files, labels_in])
def test_a_dangling_link_is_an_error(tmp_path, listed, name):
    scan(tmp_path / "a_hrT2.nii.gz")
    scan(tmp_path / "a_Label.nii.gz")
    (tmp_path / name).symlink_to("nowhere")
    with pytest.raises(InputError, match=f"{name}: is a link to a file that does not exist. Fetch"):
        listed(tmp_path)


@pytest.mark.parametrize("folder", ["training_source", "training_target", "validation"])
def test_the_folders_of_a_data_set_are_read_by_the_same_rule(tmp_path, caplog, folder):
    contrast = "ceT1" if folder == "training_source" else "hrT2"
    scan(tmp_path / folder / f"a_{contrast}.nii.gz")
    scan(tmp_path / folder / "a_Label.nii.gz")
    scan(tmp_path / folder / "b_T2.nii.gz")
    assert [item["case"] for item in crossmoda_datalist(tmp_path, folder)] == ["a"]
    assert "passed over b_T2.nii.gz;" in caplog.text
    (tmp_path / folder / f"c_{contrast}.nii.gz").symlink_to("nowhere")
    with pytest.raises(InputError, match="link to a file that does not exist"):
        crossmoda_datalist(tmp_path, folder)


def test_many_files_of_one_kind_are_one_warning(tmp_path, caplog):
    scan(tmp_path / "a_hrT2.nii.gz")
    for number in range(40):
        (tmp_path / f"b{number:02}_T2.nii.gz").write_bytes(gzip.compress(b""))
    scan_datalist(tmp_path, "hrT2")
    assert len(caplog.records) == 1
    assert "b04_T2.nii.gz and 35 more;" in caplog.text


CASES = ["../../x", "/etc/x", "a/b", "./a", "a\\b", "..", ".", ".a", "", " ", " a", "a\0b", "a\nb", "x" * 201,
         "é" * 101, "\ud800", None, 1, 1.5, True, [], {}]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=repr)
@pytest.mark.parametrize("read", ["read_datalist", "inference", "segmentation"])
def test_a_case_that_cannot_name_a_file_is_refused(tmp_path, case, read):
    scan(tmp_path / "a_hrT2.nii.gz")
    scan(tmp_path / "a_Label.nii.gz")
    item = {"case": case, "image": "a_hrT2.nii.gz", "label": "a_Label.nii.gz"}
    (tmp_path / "list.json").write_text(json.dumps({"training": [item]}))
    with pytest.raises(InputError, match=r"cannot name a file. Give a file name of 1 to 200") as error:
        {
            "read_datalist": lambda: read_datalist(tmp_path / "list.json"),
            "inference": lambda: inference_datalist(tmp_path / "list.json", None, tmp_path),
            "segmentation": lambda: segmentation_datalist(tmp_path / "list.json", None, tmp_path),
        }[read]()
    assert str(error.value).startswith(str(tmp_path / "list.json"))
    assert str(error.value).isprintable()


@pytest.mark.parametrize("case", ["a", "$x_1$", "a #2", "50%20", "Müller", "東京", "x" * 200, "a.b", "a?", "1"])
def test_any_other_name_is_a_case(tmp_path, case):
    scan(tmp_path / "a_hrT2.nii.gz")
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"case": case, "image": "a_hrT2.nii.gz"}]}))
    assert inference_datalist(tmp_path / "list.json", None, tmp_path)[0]["case"] == case


def test_a_listed_file_is_read_by_its_content_whatever_its_name(tmp_path):
    content(tmp_path, "0a1b2c3d")
    (tmp_path / "list.json").write_text(json.dumps({"training": [{"image": "0a1b2c3d"}]}))
    (item,) = inference_datalist(tmp_path / "list.json", None, tmp_path)
    assert item["case"] == "0a1b2c3d"
    check_scan(item)


def test_cases_that_occur_twice_are_refused_given_or_not(tmp_path):
    scan(tmp_path / "a_hrT2.nii.gz")
    scan(tmp_path / "b" / "a_hrT2.nii.gz")
    for items in (
        [{"image": "a_hrT2.nii.gz"}, {"image": "b/a_hrT2.nii.gz"}],
        [{"case": "a", "image": "b/a_hrT2.nii.gz"}, {"image": "a_hrT2.nii.gz"}],
        [{"case": "c", "image": "b/a_hrT2.nii.gz"}, {"case": "c", "image": "a_hrT2.nii.gz"}],
    ):
        (tmp_path / "list.json").write_text(json.dumps({"training": items}))
        with pytest.raises(InputError, match="twice"):
            inference_datalist(tmp_path / "list.json", None, tmp_path)


def test_a_file_name_that_is_too_long_is_refused(tmp_path):
    scan(tmp_path / f"{'n' * 220}_hrT2.nii.gz")
    with pytest.raises(InputError, match="cannot name a file"):
        scan_datalist(tmp_path)
