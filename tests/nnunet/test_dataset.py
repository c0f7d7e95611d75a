from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from plugins.errors import InputError
from plugins.nnunet.dataset import check_extents, check_items, check_splits, label_of, make_splits, write_dataset
from plugins.nnunet.workspace import Workspace

from .conftest import oblique, write_scan


def test_views_of_a_patient_never_straddle_and_real_scans_are_never_validated_on(items):
    for split in make_splits(items, num_folds=3, seed=0):
        patients = {side: {case.split("_")[0] for case in split[side]} for side in split}
        assert not patients["train"] & patients["val"]
        assert {"r0", "r1"} <= set(split["train"])
        assert len(split["train"]) + len(split["val"]) == len(items)


def test_a_later_round_validates_the_same_patients(items):
    without_real = [item for item in items if item["origin"] == "translated"]
    first, second = make_splits(without_real, 2, seed=3), make_splits(items[::-1], 2, seed=3)
    assert [split["val"] for split in first] == [split["val"] for split in second]
    by_seed = {str([split["val"] for split in make_splits(items, 2, seed)]) for seed in range(9)}
    assert len(by_seed) > 1


def test_real_scans_alone_are_validated_on(items):
    real = [{**item, "origin": "real"} for item in items]
    cases = sorted(case for split in make_splits(real, 2, seed=0) for case in split["val"])
    assert cases == sorted(item["case"] for item in items)


def test_more_folds_than_patients_are_refused(items):
    with pytest.raises(InputError, match="num_folds is 5"):
        make_splits(items, 5, seed=0)


def test_splits_are_counted_and_those_that_leak_are_refused(items):
    splits = make_splits(items, 2, seed=0)
    first = check_splits(items, splits)[0]
    assert first["train"] == {"patients": 4, "views": 6, "real": 2}
    assert first["val"] == {"patients": 2, "views": 4, "real": 0}
    assert len(first["validated_patients"]) == 2
    leaking = [{"train": [*splits[0]["train"], splits[0]["val"][0]], "val": splits[0]["val"][1:]}]
    with pytest.raises(InputError, match="fold 0 trains and validates on views of p"):
        check_splits(items, leaking)
    with pytest.raises(InputError, match="fold 0 names other"):
        check_splits(items, [{"train": ["other"], "val": []}])


@pytest.mark.parametrize("change", [{"origin": "fake"}, {"case": "p0_a"}])
def test_an_unusable_list_is_refused(items, change):
    with pytest.raises(InputError, match=r"p0_a|origin"):
        check_items([items[0], {**items[1], **change}])


def test_labels_become_integers_on_the_grid_of_the_image(items, tmp_path: Path):
    workspace = Workspace(tmp_path)
    write_dataset(items, workspace)
    for item in items:
        label, image = nib.load(workspace.labels / f"{item['case']}.nii.gz"), nib.load(item["image"])
        assert label.get_data_dtype() == np.uint8
        assert np.array_equal(label.affine, image.affine)
        values = np.asarray(label.dataobj)
        assert np.array_equal(values, np.rint(nib.load(item["label"]).get_fdata()))
        assert (values == 1).sum() > 20
        assert (values == 2).sum() > 5


@pytest.mark.parametrize("value", [3, 0.5])
def test_a_foreign_label_value_is_refused(tmp_path: Path, value: float):
    files = write_scan(tmp_path, "a", 0)
    label = nib.load(files["label"])
    values = label.get_fdata()
    values[0, 0, 0] = value
    nib.save(nib.Nifti1Image(values, label.affine), files["label"])
    with pytest.raises(InputError, match="a_Label"):
        label_of({**files, "origin": "translated"})


def test_a_label_in_another_place_is_refused(tmp_path: Path):
    files, other = write_scan(tmp_path, "a", 0), write_scan(tmp_path, "b", 0, oblique())
    with pytest.raises(InputError, match="mm away"):
        label_of({"label": other["label"], "image": files["image"], "origin": "translated"})


@pytest.mark.parametrize("axis", range(3))
@pytest.mark.parametrize("codes", ["RAS", "LPS", "PIR", "AIL"])
def test_a_scan_thinner_than_half_a_voxel_of_the_networks_is_refused(tmp_path: Path, codes: str, axis: int):
    affine, shape = oblique(codes, spacing=(1.0, 1.0, 1.0)), [5, 6, 7]
    shape[axis] = 1
    nib.save(nib.Nifti1Image(np.zeros(shape, np.uint8), affine), tmp_path / "a.nii.gz")
    across = nib.orientations.io_orientation(affine)[axis, 0]  # R, A or S
    thick, thin = [1.0, 1.0, 1.0], [1.0, 1.0, 1.0]
    thick[2 - int(across)] = 2.1  # in the networks' order
    items = [{"image": str(tmp_path / "a.nii.gz")}]
    check_extents(items, {"transpose_forward": [0, 1, 2], "configurations": {"3d_fullres": {"spacing": thin}}})
    for order in ([0, 1, 2], [2, 0, 1]):
        plans = {"transpose_forward": order, "configurations": {"3d_fullres": {"spacing": [thick[i] for i in order]}}}
        with pytest.raises(InputError, match=r"a\.nii\.gz: spans .* less than a voxel"):
            check_extents(items, plans)
