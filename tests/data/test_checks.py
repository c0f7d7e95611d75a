import gzip
import re
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec

from plugins.data.checks import check_scans
from plugins.data.scans import read_scan
from plugins.errors import InputError

SHAPE = (7, 6, 5)
TURN = np.linalg.svd([[-1.1, 0.2, 0], [-0.2, -1.2, 0.1], [0, 0.1, 1.5]])
OBLIQUE = from_matvec(TURN[0] @ TURN[2] @ np.diag([1.1, 1.2, 1.5]), [9, 8, -7])


def save(path: Path, voxels: Any, affine: Any = OBLIQUE) -> Path:
    nib.save(nib.Nifti1Image(voxels, affine), path)
    return path


def scan(path: Path, affine: Any = OBLIQUE) -> Path:
    return save(path, np.random.default_rng(0).integers(0, 900, SHAPE).astype(np.int16), affine)


def labels(dtype: Any = np.float64) -> Any:
    voxels = np.zeros(SHAPE, dtype)
    voxels[1:3, 2, 1], voxels[4, 4, 3] = 1, 2
    return voxels


def refused(image: Path, label: Path | None = None) -> str:
    item = {"case": "a", "site": "ldn", "image": str(image)} | ({"label": str(label)} if label else {})
    with pytest.raises(InputError) as error:
        check_scans([item])
    sentence = str(error.value)
    assert str(label or image) in sentence, "the sentence names the faulty file"
    assert re.search(r"\. [A-Z]", sentence), "a cure follows the fault"
    assert sentence.endswith(".")
    assert "\n" not in sentence
    return sentence


def accept(tmp_path: Path, label: Any, label_affine: Any = OBLIQUE, affine: Any = OBLIQUE) -> None:
    image = scan(tmp_path / "a_ceT1.nii.gz", affine)
    check_scans([{"image": str(image), "label": str(save(tmp_path / "a_Label.nii.gz", label, label_affine))}])


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.float32, np.float64])
def test_oblique_scan_with_label_is_valid(tmp_path: Path, dtype: Any) -> None:
    accept(tmp_path, labels(dtype))


@pytest.mark.parametrize("flip", [[1, 1, 1], [-1, -1, 1], [1, -1, -1]])
def test_flipped_scan_is_valid(tmp_path: Path, flip: list[int]) -> None:
    affine = np.diag([*(np.array([0.4, 0.5, 1.5]) * flip), 1])
    accept(tmp_path, labels(), affine, affine)


def test_empty_label_map_is_valid(tmp_path: Path) -> None:
    accept(tmp_path, np.zeros(SHAPE, np.uint8))


@pytest.mark.parametrize("factor", [0.9999999997, 1.0000000003])
def test_values_are_rounded_not_truncated(tmp_path: Path, factor: float) -> None:
    accept(tmp_path, labels() * factor)


def test_scale_slope_and_intercept_nan_is_valid(tmp_path: Path) -> None:
    image = scan(tmp_path / "a.nii")
    content = bytearray(image.read_bytes())
    content[112:120] = np.full(2, np.nan, np.float32).tobytes()
    image.write_bytes(content)
    check_scans([{"image": str(image)}])


def test_spacing_that_differs_by_a_millionth_is_valid(tmp_path: Path) -> None:
    accept(tmp_path, labels(), OBLIQUE @ np.diag([1 + 1e-6, 1 - 1e-6, 1, 1]))


def test_origin_that_differs_by_a_thousandth_is_valid(tmp_path: Path) -> None:
    moved = OBLIQUE.copy()
    moved[:3, 3] += 1e-3
    accept(tmp_path, labels(), moved)


@pytest.mark.parametrize("millimetres", [0.05, 0.3, 1, 10])
@pytest.mark.parametrize("axis", range(3))
def test_label_in_another_place_is_refused(tmp_path: Path, axis: int, millimetres: float) -> None:
    moved = OBLIQUE.copy()
    moved[axis, 3] += millimetres
    image, label = scan(tmp_path / "a.nii.gz"), save(tmp_path / "a_Label.nii.gz", labels(), moved)
    assert "mm away" in refused(image, label)


@pytest.mark.parametrize("factor", [0.98, 1.02, 10])
def test_label_with_voxels_of_another_size_is_refused(tmp_path: Path, factor: float) -> None:
    label = save(tmp_path / "a_Label.nii.gz", labels(), OBLIQUE @ np.diag([factor, 1, 1, 1]))
    assert "mm away" in refused(scan(tmp_path / "a.nii.gz"), label)


def test_label_of_another_shape_is_refused(tmp_path: Path) -> None:
    image, label = scan(tmp_path / "a.nii.gz"), save(tmp_path / "a_Label.nii.gz", labels().transpose(1, 0, 2))
    assert "(6, 7, 5)" in refused(image, label)


@pytest.mark.parametrize("value", [1.5, 3, -1, 0.6, 1.4, 255])
def test_foreign_label_value_is_listed(tmp_path: Path, value: float) -> None:
    voxels = labels()
    voxels[0, 0, 0] = value
    image, label = scan(tmp_path / "a.nii.gz"), save(tmp_path / "a_Label.nii.gz", voxels)
    assert f"values {value:g}, but only" in refused(image, label)


def test_label_values_are_a_choice(tmp_path: Path) -> None:
    voxels = labels()
    voxels[0, 0, 0] = 3
    item = {"image": str(scan(tmp_path / "a.nii.gz")), "label": str(save(tmp_path / "l.nii.gz", voxels))}
    check_scans([item], label_values=(0, 1, 2, 3))
    with pytest.raises(InputError, match=r"label values 2, but"):
        check_scans([item], label_values=(0, 1, 3))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_not_finite_is_refused_in_image_and_label(tmp_path: Path, value: float) -> None:
    good = scan(tmp_path / "good.nii.gz")
    bad = labels()
    bad[1, 1, 1] = value
    save(tmp_path / "bad.nii.gz", bad)
    assert "1 voxels are NaN or infinite" in refused(tmp_path / "bad.nii.gz")
    assert "1 voxels are NaN or infinite" in refused(good, tmp_path / "bad.nii.gz")


def test_constant_image_is_refused(tmp_path: Path) -> None:
    assert "every voxel is 4" in refused(save(tmp_path / "a.nii.gz", np.full(SHAPE, 4, np.int16)))


@pytest.mark.parametrize("shape", [(7, 6), (7, 6, 5, 2), (7, 6, 5, 1, 3)])
def test_other_than_3d_is_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    assert f"is {len(shape)}D" in refused(save(tmp_path / "a.nii.gz", np.ones(shape, np.int16)))


def test_a_fourth_dimension_of_one_is_left_out(tmp_path: Path) -> None:
    voxels = np.arange(210, dtype=np.int16).reshape(7, 6, 5, 1)
    path = save(tmp_path / "a.nii.gz", voxels)
    check_scans([{"image": str(path)}])
    assert np.array_equal(read_scan(path).voxels, voxels[..., 0])


def test_no_slices_is_refused(tmp_path: Path) -> None:
    assert "has no voxels" in refused(save(tmp_path / "a.nii.gz", np.ones((7, 6, 0), np.int16)))


def test_colour_image_is_refused(tmp_path: Path) -> None:
    colour = np.zeros(SHAPE, [("R", "u1"), ("G", "u1"), ("B", "u1")])
    assert "one real number a voxel" in refused(save(tmp_path / "a.nii.gz", colour))


@pytest.mark.parametrize("columns", [[0, 1, 1, 1], [1, 1, 0, 1]])
def test_affine_with_a_zero_column_is_refused(tmp_path: Path, columns: list[int]) -> None:
    image = nib.Nifti1Image(np.arange(210, dtype=np.int16).reshape(SHAPE), OBLIQUE)
    image.header.set_sform(np.diag(columns) @ np.diag([0.4, 0.5, 1.5, 1]), 2)
    image.header["pixdim"][1:4] = 1
    path = tmp_path / "a.nii"
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), path)
    assert "cannot be inverted" in refused(path)


def test_affine_with_parallel_columns_is_refused(tmp_path: Path) -> None:
    flat = OBLIQUE.copy()
    flat[:3, 2] = flat[:3, 1]
    image = nib.Nifti1Image(np.arange(210, dtype=np.int16).reshape(SHAPE), None)
    image.header.set_sform(flat, 2)
    nib.save(nib.Nifti1Image(image.dataobj, None, image.header), tmp_path / "a.nii.gz")
    assert "cannot be inverted" in refused(tmp_path / "a.nii.gz")


@pytest.mark.parametrize("spacing", [0.0, np.nan])
def test_spacing_without_size_is_refused(tmp_path: Path, spacing: float) -> None:
    path = scan(tmp_path / "a.nii")
    content = bytearray(path.read_bytes())
    content[80:84] = np.float32(spacing).tobytes()
    path.write_bytes(content)
    assert "spacing" in refused(path)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz"])
@pytest.mark.parametrize("kept", [0, 100, 400])
def test_file_that_is_cut_off_is_refused(tmp_path: Path, ending: str, kept: int) -> None:
    path = scan(tmp_path / f"a{ending}")
    assert path.stat().st_size > kept
    path.write_bytes(path.read_bytes()[:kept])
    assert "cannot be read as NIfTI" in refused(path)


def test_file_without_its_last_byte_is_refused(tmp_path: Path) -> None:
    path = scan(tmp_path / "a.nii.gz")
    path.write_bytes(path.read_bytes()[:-1])
    assert "cannot be read as NIfTI" in refused(path)


def test_wrong_checksum_is_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 900, (90, 80, 70)).astype(np.int16)  # more than a reader's buffer
    path = save(tmp_path / "a.nii.gz", noise)
    content = bytearray(path.read_bytes())
    content[-6] ^= 255
    path.write_bytes(content)
    assert "cannot be read as NIfTI" in refused(path)


def test_other_content_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.nii").write_text("hello " * 100)
    (tmp_path / "plain.nii.gz").write_text("hello " * 100)
    (tmp_path / "packed.nii.gz").write_bytes(gzip.compress(b"hello " * 100))
    for name in ("text.nii", "plain.nii.gz", "packed.nii.gz"):
        assert "cannot be read as NIfTI" in refused(tmp_path / name)


def test_missing_file_is_named(tmp_path: Path) -> None:
    assert "does not exist" in refused(tmp_path / "gone.nii.gz")
    assert "does not exist" in refused(scan(tmp_path / "a.nii.gz"), tmp_path / "gone.nii.gz")


def test_every_item_is_checked(tmp_path: Path) -> None:
    good, bad = scan(tmp_path / "good.nii.gz"), save(tmp_path / "bad.nii.gz", np.zeros(SHAPE, np.int16))
    with pytest.raises(InputError, match=r"bad\.nii\.gz"):
        check_scans([{"image": str(good)}, {"image": str(bad)}])
