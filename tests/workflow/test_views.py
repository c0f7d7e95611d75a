"""Views are weighed by how their structures stand out."""

import nibabel as nib
import numpy as np
import pytest

from plugins.files import read_json, write_json
from plugins.workflow.views import contrast_error, weigh_views

RANGES = {"vs": (-0.2, 0.1), "cochlea": (0.15, 0.45)}


@pytest.fixture
def scans(tmp_path):
    label = np.zeros((20, 22, 6), np.uint8)
    label[4:7, 5:8, 2:4], label[12:15, 12:15, 2:4] = 1, 2
    affine = np.diag([-1.0, -1.0, 1.5, 1.0])
    nib.save(nib.Nifti1Image(label, affine), tmp_path / "a_Label.nii.gz")
    nib.save(nib.Nifti1Image(label.astype(np.float32), affine), tmp_path / "a_ceT1.nii.gz")
    write_json(
        tmp_path / "source.json", {"training": [{"case": "a", "image": "a_ceT1.nii.gz", "label": "a_Label.nii.gz"}]}
    )

    def view(name, vs, cochlea):
        volume = np.linspace(0, 1, label.size).reshape(label.shape).astype(np.float32)
        middle = np.full(label.shape, 0.5, np.float32)
        middle[:2], middle[-2:] = volume[:2] * 0, 1
        middle[label == 1], middle[label == 2] = 0.5 + vs, 0.5 + cochlea
        (tmp_path / name).mkdir()
        nib.save(nib.Nifti1Image(middle, affine), tmp_path / name / "a.nii.gz")
        return str(tmp_path / name)

    return tmp_path, view


@pytest.mark.parametrize(("contrast", "error"), [
    ({"vs": 0.0, "cochlea": 0.3}, 0.0), ({"vs": 0.4, "cochlea": 0.3}, 0.15), ({"vs": -0.3, "cochlea": 0.05}, 0.1),
    ({"vs": None, "cochlea": 0.0}, 0.15), ({"vs": None, "cochlea": None}, None),
])  # fmt: skip
def test_the_error_is_the_mean_distance_to_the_ranges_of_what_is_known(contrast, error):
    assert contrast_error(contrast, RANGES) == (None if error is None else pytest.approx(error))


def test_a_view_with_a_bright_tumour_and_a_dark_cochlea_is_left_out_and_a_true_one_stays(scans):
    folder, view = scans
    views = {"good": view("good", -0.05, 0.3), "bad": view("bad", 0.45, 0.0)}
    rows = weigh_views(str(folder / "source.json"), views, str(folder))
    assert rows["good"]["weight"] == 1.0
    assert rows["bad"]["weight"] == 0.0
    assert rows["good"]["contrast"]["cochlea"] == pytest.approx(0.3, abs=0.02)
    assert read_json(folder / "views.json") == rows


def test_the_best_of_bad_views_is_kept(scans):
    folder, view = scans
    views = {"worse": view("worse", 0.49, -0.3), "bad": view("bad", 0.45, 0.0)}
    rows = weigh_views(str(folder / "source.json"), views, str(folder))
    assert [rows[name]["weight"] for name in ("worse", "bad")] == [0.0, 1.0]
