"""Redrawn and calibrated scans as files: geometry, orientation, restarts, layout."""

from __future__ import annotations

import json

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from nibabel.orientations import apply_orientation, axcodes2ornt, inv_ornt_aff, io_orientation, ornt_transform
from numpy.testing import assert_allclose, assert_array_equal

from plugins.data import crossmoda_datalist, write_datalist
from plugins.errors import InputError
from plugins.workflow.redrawing import write_calibrated, write_redrawn, write_redrawn_dataset

TURN = np.linalg.svd([[-1.1, 0, 0.1], [0, -1.1, 0.05], [0.05, 0, 1.5]])
AFFINE = from_matvec(TURN[0] @ TURN[2] @ np.diag([1.1, 1.1, 1.5]), [20, 30, -7])  # oblique, near LPS
CASE = "crossmoda2021_ldn_1"


def scan_and_label(seed=0):
    random = np.random.default_rng(seed)
    volume, label = np.full((40, 32, 4), 20.0), np.zeros((40, 32, 4), np.uint8)
    volume[14:, :20], volume[26:, :20], volume[18:21] = 220, 290, 70
    volume[14:20, 21:27], label[14:20, 21:27] = 560, 1
    volume[5:7, 8:10], label[5:7, 8:10] = 45, 2
    return (volume + 3 * random.standard_normal(volume.shape)).astype(np.float32), label


def hrt2(seed):
    random = np.random.default_rng(seed)
    volume = np.full((40, 32, 4), 20.0)
    volume[14:], volume[18:21] = 200, 700
    return (volume + 5 * random.standard_normal(volume.shape)).astype(np.float32)


def save(volume, path, affine=AFFINE):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(volume, affine), path)
    return str(path)


def lists(folder, codes="LPS", sites=("ldn", "etz")):
    """Lists of one source scan, stored with other axes, and of one target scan a site."""
    volume, label = scan_and_label()
    turn = ornt_transform(io_orientation(AFFINE), axcodes2ornt(codes))
    affine = AFFINE @ inv_ornt_aff(turn, volume.shape)
    image = save(apply_orientation(volume, turn), folder / f"{CASE}_ceT1.nii.gz", affine)
    label = save(apply_orientation(label, turn).astype(np.uint8), folder / f"{CASE}_Label.nii.gz", affine)
    item = {"case": CASE, "site": "ldn", "image": image, "label": label}
    write_datalist(folder / "source.json", [item])
    targets = [
        {"case": f"t_{n}", "site": site, "image": save(hrt2(n), folder / f"t_{n}_hrT2.nii.gz")}
        for n, site in enumerate(sites)
    ]
    write_datalist(folder / "target.json", targets)
    return str(folder / "source.json"), str(folder / "target.json")


def in_lps(path):
    image = nib.load(path)
    turn = ornt_transform(io_orientation(image.affine), axcodes2ornt("LPS"))
    return apply_orientation(image.get_fdata(), turn)


def test_a_redrawn_scan_has_the_geometry_of_its_scan(tmp_path):
    source, target = lists(tmp_path, "ASR")
    write_redrawn(source, target, str(tmp_path / "out"))
    scan, drawn = nib.load(tmp_path / f"{CASE}_ceT1.nii.gz"), nib.load(tmp_path / "out" / f"{CASE}.nii.gz")
    assert drawn.shape == scan.shape
    assert_allclose(drawn.affine, scan.affine)
    assert drawn.header["sform_code"] == scan.header["sform_code"]
    assert drawn.get_data_dtype() == np.float32
    assert drawn.get_fdata().min() >= 0
    assert drawn.get_fdata().max() <= 1


@pytest.mark.parametrize("codes", ["RAS", "LAI", "SPL", "PIR"])
def test_the_storage_of_a_scan_changes_no_voxel(tmp_path, codes):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    drawn = []
    for folder, axes in (("a", "LPS"), ("b", codes)):
        source, target = lists(tmp_path / folder, axes)
        write_redrawn(source, target, str(tmp_path / folder / "out"))
        write_calibrated(source, str(tmp_path / folder / "out"), target, str(tmp_path / folder / "cal"))
        drawn.append([in_lps(tmp_path / folder / kind / f"{CASE}.nii.gz") for kind in ("out", "cal")])
    assert_array_equal(drawn[0][0], drawn[1][0])
    assert_array_equal(drawn[0][1], drawn[1][1])


def test_views_differ_and_their_number_and_order_change_none(tmp_path):
    source, target = lists(tmp_path)
    write_redrawn(source, target, str(tmp_path / "three"), views=3, seed=4)
    write_redrawn(source, target, str(tmp_path / "two"), views=2, seed=4)
    first, second, third = (
        nib.load(tmp_path / "three" / f"{name}.nii.gz").get_fdata() for name in (CASE, f"{CASE}_1", f"{CASE}_2")
    )
    assert np.abs(first - second).max() > 0.02
    assert np.abs(second - third).max() > 0.02
    assert_array_equal(nib.load(tmp_path / "two" / f"{CASE}_1.nii.gz").get_fdata(), second)


def test_a_scan_takes_the_levels_of_its_site_or_of_all(tmp_path):
    source, target = lists(tmp_path, sites=("etz", "etz"))
    write_redrawn(source, target, str(tmp_path / "out"))
    record = json.loads((tmp_path / "out" / "levels.json").read_text())
    assert set(record["levels"]) == {"all", "etz"}
    assert record["levels"]["all"] == record["levels"]["etz"]
    assert set(record["scans"][CASE]["modes"]) == {"bone", "fluid", "low", "high"}


def test_what_is_drawn_is_kept_until_the_settings_or_the_scan_change(tmp_path):
    source, target = lists(tmp_path)
    out = tmp_path / "out" / f"{CASE}.nii.gz"
    write_redrawn(source, target, str(tmp_path / "out"))
    first = out.stat().st_mtime_ns
    write_redrawn(source, target, str(tmp_path / "out"))
    assert out.stat().st_mtime_ns == first
    write_redrawn(source, target, str(tmp_path / "out"), seed=1)
    second = out.stat().st_mtime_ns
    assert second > first
    (tmp_path / f"{CASE}_Label.nii.gz").touch()  # a time tells nothing
    write_redrawn(source, target, str(tmp_path / "out"), seed=1)
    assert out.stat().st_mtime_ns == second
    label = nib.load(tmp_path / f"{CASE}_Label.nii.gz")
    values = np.asarray(label.dataobj).copy()
    values[0, 0, 0] = 1
    nib.save(nib.Nifti1Image(values, label.affine), tmp_path / f"{CASE}_Label.nii.gz")
    write_redrawn(source, target, str(tmp_path / "out"), seed=1)
    third = out.stat().st_mtime_ns
    assert third > second
    out.unlink()
    write_redrawn(source, target, str(tmp_path / "out"), seed=1)
    assert out.is_file()


def test_what_version_0_1_0_has_drawn_is_kept(tmp_path):
    source, target = lists(tmp_path)
    out, levels = tmp_path / "out" / f"{CASE}.nii.gz", tmp_path / "out" / "levels.json"
    write_redrawn(source, target, str(tmp_path / "out"))
    first = out.stat().st_mtime_ns
    assert levels.read_text().count('"made_from"') == 1
    levels.write_text(levels.read_text().replace('"made_from"', '"origin"'))
    write_redrawn(source, target, str(tmp_path / "out"))
    assert out.stat().st_mtime_ns == first


def test_a_scan_without_a_label_is_drawn(tmp_path):
    source, target = lists(tmp_path)
    write_datalist(source, [{"case": CASE, "image": str(tmp_path / f"{CASE}_ceT1.nii.gz")}])
    write_redrawn(source, target, str(tmp_path / "out"))
    assert nib.load(tmp_path / "out" / f"{CASE}.nii.gz").get_fdata().max() > 0.5


def test_no_view_is_refused(tmp_path):
    with pytest.raises(InputError, match="views is 0"):
        write_redrawn("source.json", "target.json", str(tmp_path), views=0)


def test_given_statistics_are_reached(tmp_path):
    source, target = lists(tmp_path)
    write_redrawn(source, target, str(tmp_path / "out"))
    means = []
    for mean in (0.2, 0.6):
        folder = tmp_path / f"cal_{mean}"
        write_calibrated(source, str(tmp_path / "out"), target, str(folder), {"all": {"VS": {"mean": mean}}})
        _, label = scan_and_label()
        means.append(in_lps(folder / f"{CASE}.nii.gz")[label == 1].mean())
    assert 0.25 < means[1] - means[0] < 0.45


def test_a_missing_or_foreign_translation_is_named(tmp_path):
    source, target = lists(tmp_path)
    with pytest.raises(InputError, match=f"{CASE}.nii.gz: this translation does not exist"):
        write_calibrated(source, str(tmp_path / "none"), target, str(tmp_path / "cal"))
    save(np.zeros((3, 4, 5), np.float32), tmp_path / "small" / f"{CASE}.nii.gz")
    with pytest.raises(InputError, match="has shape"):
        write_calibrated(source, str(tmp_path / "small"), target, str(tmp_path / "cal"))
    with pytest.raises(InputError, match="another output_dir"):
        write_calibrated(source, str(tmp_path / "small"), target, str(tmp_path / "small"))


def test_a_redrawn_data_set_is_one_again(tmp_path):
    lists(tmp_path / "data" / "training_source")
    for split in ("training_target", "validation"):
        save(hrt2(1), tmp_path / "data" / split / f"crossmoda2021_ldn_{len(split)}_hrT2.nii.gz")
    write_redrawn_dataset(str(tmp_path / "data"), str(tmp_path / "out"))
    (source,) = crossmoda_datalist(tmp_path / "out", "training_source")
    assert_array_equal(nib.load(source["label"]).get_fdata(), scan_and_label()[1])
    assert nib.load(source["image"]).get_fdata().max() <= 1
    for split in ("training_target", "validation"):
        (scan,) = crossmoda_datalist(tmp_path / "out", split)
        assert_array_equal(nib.load(scan["image"]).get_fdata(), hrt2(1))
