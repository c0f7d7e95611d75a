"""Odd files, good and bad, through both translators, the segmentation and the evaluation: see ``odd_files.py``."""

from __future__ import annotations

import gzip
import logging
import re
import shutil
import sys
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigWorkflow
from nibabel.affines import apply_affine

from plugins.data import LoadScand, check_scan, scan_datalist
from plugins.errors import InputError, find_input_error
from plugins.evaluation import evaluate_folder
from plugins.files import read_json, write_json
from plugins.segmentation import EnsembleMember, Locator, LocatorNetwork, SegmentationModel

from .odd_files import BAD, GOOD, Maker, box

BUNDLES = Path(__file__).parents[2] / "bundles"
STAGES = {"n_stages": 3, "features_per_stage": [4, 8, 8], "n_conv_per_stage": [1, 1, 1], "strides": [1, 2, 2]}
UNET = {**STAGES, "kernel_sizes": [3, 3, 3], "n_conv_per_stage_decoder": [1, 1]}
MEMBER = EnsembleMember((1.4, 1.1, 0.9), (8, 16, 16), (), "PlainConvUNet", UNET)
DARK = ("one voxel",)  # nothing in it is brighter than the rest
FINE = ("fine voxels", "two thin slices")  # what is bright is smaller than a voxel of the networks


class Bright(torch.nn.Module):
    """Calls VS what is brighter than the scan's mean and one standard deviation."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        return torch.cat([0 * x, 10 * (x - self.one), 0 * x - 50], dim=1)


class Same(torch.nn.Module):
    """Gives back its input."""

    def __init__(self):
        super().__init__()
        self.one = torch.nn.Parameter(torch.ones(1))

    def forward(self, x, condition=None):
        return x * self.one


def run(bundle, folder, output_dir, network, **overrides):
    """The bundle's own ``inference.json`` on a folder of scans."""
    models = output_dir.parent / f"{bundle} models"
    models.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), models / "model.pt")
    SegmentationModel({"3d": MEMBER}, (0,), {"VS": ("3d",), "cochlea": ("3d",)}).write(models)
    settings = {
        "bundle_root": str(models), "dataset_dir": str(folder), "output_dir": str(output_dir), "device": "cpu",
        "ckpt_dir": str(models), "num_threads": 1, "contrast": "hrT2", "network": network,
    }  # fmt: skip
    hook = sys.excepthook
    file = str(BUNDLES / bundle / "configs" / "inference.json")
    steps = ConfigWorkflow(file, logging_file=False, workflow_type="infer", **settings | overrides)
    try:
        steps.initialize()
        steps.run()
    finally:
        sys.excepthook = hook


def translate(bundle, folder, output_dir):
    small = {"spacing": [0.9, 1.1, 1.4], "crop_size": [48, 48], "patch_size": [48, 48], "percentiles": [0, 100]}
    run(bundle, folder, output_dir, Same(), **small)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / "scans"
    folder.mkdir()
    return {case: make(Maker(folder, case)) for case, make in GOOD.items()}


@pytest.fixture(scope="module")
def folder(scans):
    return next(iter(scans.values())).path.parent


@pytest.fixture(scope="module")
def segmented(folder):
    run("vs_cochlea_seg", folder, folder.parent / "segmented", Bright())
    return folder.parent / "segmented"


@pytest.fixture(scope="module", params=["tanq_translation", "cyclegan_translation"])
def translated(folder, request):
    translate(request.param, folder, folder.parent / request.param)
    return folder.parent / request.param


def stored(path):
    """A NIfTI file as it is, whatever its name."""
    content = path.read_bytes()
    content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    kind = (
        nib.Nifti2Image
        if 540 in (int.from_bytes(content[:4], order) for order in ("little", "big"))
        else nib.Nifti1Image
    )
    return kind.from_bytes(content)


def in_mm(image):
    return np.diag([*[{"meter": 1e3, "micron": 1e-3}.get(image.header.get_xyzt_units()[0], 1)] * 3, 1]) @ image.affine


def check_geometry(odd, file):
    """The same grid, by the same codes and units, for viewers that take the sform and for those that take the qform."""
    found = nib.load(file)
    assert np.allclose(in_mm(found), odd.affine, rtol=1e-5, atol=1e-4)
    if odd.path.is_dir():
        assert found.shape == odd.shape
        return found
    scan = stored(odd.path)
    assert type(found) is type(scan)
    assert found.shape == scan.shape
    assert np.array_equal(found.affine, scan.affine)
    same = ("pixdim", "xyzt_units", "sform_code", "qform_code", "srow_x", "srow_y", "srow_z", "quatern_b", "qoffset_x")
    assert all(np.array_equal(found.header[key], scan.header[key]) for key in same if key != "pixdim")
    assert np.array_equal(found.header["pixdim"][:4], scan.header["pixdim"][:4])
    return found


def check_place(odd, bright):
    """The centre of what is bright is that of the bright box, to half a voxel of the scan or the network."""
    assert bright.any(), "the bright box is found"
    expected = apply_affine(odd.affine, [(edge.start + edge.stop - 1) / 2 for edge in box(odd.shape)])
    place = apply_affine(odd.affine, np.argwhere(bright.reshape(odd.shape)).mean(0))
    spacing = np.linalg.norm(odd.affine[:3, :3], axis=0)
    apart = (odd.affine[:3, :3] / spacing).T @ (place - expected)
    assert (np.abs(apart) < 0.5 * np.maximum(spacing, max(MEMBER.spacing))).all()


def test_there_are_enough_of_them():
    assert len(GOOD) >= 40
    assert len(BAD) >= 40


def test_every_good_file_of_the_folder_is_listed_once(scans, folder, caplog):
    items = scan_datalist(folder, "hrT2")
    assert {item["case"]: Path(item["image"]) for item in items} == {case: odd.path for case, odd in scans.items()}
    assert "passed over" not in caplog.text


@pytest.mark.parametrize("case", GOOD)
def test_a_good_file_is_segmented_on_its_own_grid_and_at_its_place(scans, segmented, case):
    found = check_geometry(scans[case], segmented / f"{case}_Label.nii.gz")
    assert found.get_data_dtype() == np.uint8
    if case not in DARK:
        check_place(scans[case], np.asarray(found.dataobj) == 1)


def test_good_files_are_segmented_in_the_window_of_a_locator(scans, folder):
    """One that has learnt nothing: it must cope with any file, and what it finds matters not."""
    torch.manual_seed(0)
    models = folder.parent / "vs_cochlea_seg models"
    models.mkdir(exist_ok=True)
    locator = Locator(LocatorNetwork(), window_size=(12, 10, 8), threshold=0.0)
    write_json(models / "locator.json", locator.description())
    torch.save(locator.network.state_dict(), models / "locator.pt")
    try:
        run("vs_cochlea_seg", folder, folder.parent / "located", Bright())
    finally:
        (models / "locator.pt").unlink()
    for case, odd in scans.items():
        check_geometry(odd, folder.parent / "located" / f"{case}_Label.nii.gz")
    windows = read_json(folder.parent / "located" / "windows.json")
    assert {*windows} == {*scans}
    assert any(window["found"] == "locator" for window in windows.values())


@pytest.mark.parametrize("case", GOOD)
def test_a_good_file_is_translated_on_its_own_grid_and_at_its_place(scans, translated, case):
    found = check_geometry(scans[case], translated / f"{case}.nii.gz")
    assert found.get_data_dtype().type == np.float32
    if case not in (*DARK, *FINE):
        check_place(scans[case], np.asarray(found.dataobj) > 0.5)


VIEWED = ["plain", "qform elsewhere", "pixdim only", "pixdim of one", "pixdim twice", "sform only", "qform only"]
VIEWED += ["sagittal", "oblique", "micrometres", "metres", "oblique in metres", "no unit", "4D with one volume"]


@pytest.mark.parametrize("case", VIEWED)
def test_a_viewer_of_another_rule_shows_result_and_scan_at_one_place(scans, segmented, translated, case):
    """ITK knows units, takes the qform first, and voxel sizes from pixdim."""
    files = scans[case].path, segmented / f"{case}_Label.nii.gz", translated / f"{case}.nii.gz"
    images = (itk.imread(str(file)) for file in files)
    scan, *results = ([*map(np.asarray, (i.GetOrigin(), i.GetSpacing(), i.GetDirection()))] for i in images)
    for result in results:
        assert all(np.array_equal(ours, theirs) for ours, theirs in zip(result, scan, strict=True))


def test_good_files_are_evaluated_against_labels_in_mm(scans, segmented, tmp_path):
    """References are plain files in mm, whatever the predictions are."""
    for case, odd in scans.items():
        labels = np.zeros(odd.shape, np.uint8)
        if case not in DARK:
            labels[box(odd.shape)] = 1
        nib.save(nib.Nifti1Image(labels, odd.affine), tmp_path / f"{case}_Label.nii.gz")
    cases = evaluate_folder(segmented, tmp_path, tmp_path / "metrics.json")["cases"]
    volumes = read_json(segmented / "volumes.json")["cases"]
    assert {*cases} == {*volumes} == {*scans}
    for case, odd in scans.items():
        if case not in (*DARK, *FINE):
            assert cases[case]["vs"]["dice"] > 0.6, case
            truth = np.prod([e.stop - e.start for e in box(odd.shape)]) * abs(np.linalg.det(odd.affine[:3, :3]))
            assert 0.4 * truth < volumes[case]["VS"] < 2.5 * truth, case


@pytest.mark.parametrize("case", BAD)
def test_a_bad_file_is_refused_in_one_sentence(tmp_path, case):
    make, words = BAD[case]
    odd = make(Maker(tmp_path, "a"))
    with pytest.raises(InputError, match=words.replace("(", r"\(")) as error:
        check_scan({"image": str(odd.path)})
    sentence = str(error.value)
    assert sentence.startswith(str(odd.path))
    assert sentence.endswith(".")
    assert re.search(r"\. [A-Z]", sentence), "a cure follows the fault"
    assert "\n" not in sentence
    assert len(sentence) < len(str(odd.path)) * 2 + 220


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A folder with good scans and all bad ones that a folder can list."""
    folder = tmp_path_factory.mktemp("mixed") / "scans"
    folder.mkdir()
    for number, (make, _) in enumerate(BAD.values()):
        if make not in (BAD["missing"][0], BAD["dangling link"][0]):
            make(Maker(folder, f"bad {number}"))
    for case in ("plain", "oblique"):
        GOOD[case](Maker(folder, case))
    return folder


def test_bad_files_do_not_keep_good_ones_from_being_segmented(mixed):
    bad = {item["case"]: item["image"] for item in scan_datalist(mixed, "hrT2")}
    before = {path: path.read_bytes() for path in mixed.rglob("*") if path.is_file()}
    with pytest.raises(Exception, match=r"finish") as error:
        run("vs_cochlea_seg", mixed, mixed.parent / "out", Bright())
    sentence = str(find_input_error(error.value))
    assert "scans were not segmented" in sentence
    for case in ("plain", "oblique"):
        del bad[case]
        assert (mixed.parent / "out" / f"{case}_Label.nii.gz").is_file()
    assert all(path in sentence for path in bad.values())
    report = mixed.parent / "out" / "report"
    rows = {row["case"]: row for row in read_json(report / "report.json")["cases"]}
    assert [case for case, path in bad.items() if path not in rows[case]["reasons"][0]] == []
    shutil.rmtree(report)
    with pytest.raises(Exception, match=r"finish"):  # nothing is left to do, and the report is there all the same
        run("vs_cochlea_seg", mixed, mixed.parent / "out", Bright())
    assert {row["case"] for row in read_json(report / "report.json")["cases"]} == rows.keys()
    assert len([*(mixed.parent / "out").glob("*.nii.gz")]) == 2
    assert before == {path: path.read_bytes() for path in mixed.rglob("*") if path.is_file()}, "nothing is lost"


@pytest.mark.parametrize("case", ["NaN", "gzip bomb", "sheared by a tenth", "voxels of a metre", "dangling link"])
@pytest.mark.parametrize("bundle", ["tanq_translation", "cyclegan_translation"])
def test_a_bad_file_is_not_translated(tmp_path, bundle, case):
    (tmp_path / "scans").mkdir()
    odd = BAD[case][0](Maker(tmp_path / "scans", "a"))
    with pytest.raises(Exception, match=r".") as error:
        translate(bundle, tmp_path / "scans", tmp_path / "out")
    assert str(odd.path) in str(find_input_error(error.value))
    assert [*tmp_path.rglob("out/*.nii.gz")] == []


def test_two_voxel_sizes_in_a_header_are_both_named(tmp_path, caplog):
    odd = GOOD["pixdim twice"](Maker(tmp_path, "a"))
    with caplog.at_level(logging.WARNING):
        LoadScand("image")({"image": str(odd.path)})
    assert "1 x 1.2 x 1.5 mm" in caplog.text
    assert "1 x 1.2 x 3 mm" in caplog.text
    assert "the sform holds" in caplog.text
