"""The report on small oblique scans."""

import html
import re
import shutil
from urllib.parse import unquote

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec

from plugins.evaluation import evaluate_folder, write_report
from plugins.evaluation.pictures import read_axial
from plugins.files import read_json

TURN = np.linalg.svd([[0, -0.5, 0.05], [-0.5, 0, 0.05], [0.05, 0.05, 0.5]])
AFFINE = from_matvec(TURN[0] @ TURN[2] @ np.diag([0.5, 0.5, 1.5]), [3, 4, 5])


def save(path, array):
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Nifti1Image(array, AFFINE), path)


@pytest.fixture
def run(tmp_path):
    rng = np.random.default_rng(0)
    label = np.zeros((20, 24, 7), dtype=np.uint8)
    label[5:9, 6:12, 3] = 1
    label[12:14, 6:8, 4] = 2
    save(tmp_path / "scan.nii.gz", rng.random(label.shape, dtype=np.float32))
    save(tmp_path / "tanq" / "s.nii.gz", rng.random(label.shape, dtype=np.float32))
    save(tmp_path / "truth" / "v_Label.nii.gz", label)
    save(tmp_path / "round_0" / "v_Label.nii.gz", label * 0)
    save(tmp_path / "round_1" / "v_Label.nii.gz", label)
    for name in ("round_0", "round_1"):
        evaluate_folder(tmp_path / name, tmp_path / "truth", tmp_path / f"{name}.json")
    return tmp_path


def test_report_is_complete_and_links_what_exists(run):
    write_report(
        validation=[{"case": "v", "image": run / "scan.nii.gz"}],
        pred_dirs={name: run / name for name in ("round_0", "round_1")},
        metrics_files={name: run / f"{name}.json" for name in ("round_0", "round_1")},
        output_dir=run / "report",
        truth={"v": run / "truth" / "v_Label.nii.gz"},
        source=[{"case": "s", "image": run / "scan.nii.gz", "label": run / "truth" / "v_Label.nii.gz"}],
        translations={"tanq": run / "tanq"},
        decisions={"round_1": "accepted <b>, nothing falls"},
    )
    metrics = read_json(run / "report" / "metrics.json")
    assert metrics["round_1"]["cases"]["v"]["vs"]["dice"] == 1
    assert metrics["round_0"]["mean"]["cochlea"]["failures"] == 1
    assert len(metrics["paired_t_test"]) == 4
    page = (run / "report" / "index.html").read_text()
    for picture in ("pictures/translations.png", "pictures/v.png"):
        assert picture in page
        assert (run / "report" / picture).read_bytes().startswith(b"\x89PNG")
    assert "self-training, round 1: accepted &lt;b&gt;, nothing falls." in page
    table = (run / "report" / "table.txt").read_text()
    assert "before self-training" in table
    assert "self-training, round 1: accepted <b>, nothing falls" in table


@pytest.mark.parametrize("case", ["$x_{$", "a#1", "50%20", "why?", "<b>&", "[bold]", "\\frac", "ü" * 90, "n" * 200])
def test_names_of_cases_are_text_everywhere(run, case):
    label = run / "round_1" / f"{case}_Label.nii.gz"
    shutil.copyfile(run / "truth" / "v_Label.nii.gz", label)
    shutil.copyfile(run / "tanq" / "s.nii.gz", run / "tanq" / f"{case}.nii.gz")
    write_report(
        validation=[{"case": case, "image": run / "scan.nii.gz"}],
        pred_dirs={"round_1": run / "round_1"},
        metrics_files={},
        output_dir=run / "report",
        source=[{"case": case, "image": run / "scan.nii.gz", "label": label}],
        translations={"tanq": run / "tanq"},
    )
    page = (run / "report" / "index.html").read_text()
    sources = [unquote(html.unescape(link)) for link in re.findall(r'<img src="([^"]*)"', page)]
    assert sources == ["pictures/translations.png", f"pictures/{case}.png"]
    assert all((run / "report" / source).read_bytes().startswith(b"\x89PNG") for source in sources)
    assert f"<h3>{html.escape(case)}</h3>" in page


def test_report_without_references_says_so(run):
    content = write_report(
        [{"case": "v", "image": run / "scan.nii.gz"}],
        {"round_0": run / "round_0"},
        {},
        run / "report",
        decisions={"round_1": "refused [all]"},
    )
    assert content == {"paired_t_test": []}
    assert "self-training, round 1: refused [all]\n" in (run / "report" / "table.txt").read_text()
    assert "no reference label maps" in (run / "report" / "index.html").read_text()


def test_pictures_turn_axes_to_right_anterior_superior(tmp_path):
    array = np.zeros((4, 5, 6), dtype=np.float32)
    array[1, 2, 3] = 1
    save(tmp_path / "x.nii.gz", array)
    volume, spacing = read_axial(tmp_path / "x.nii.gz")
    assert volume.shape == (5, 4, 6)
    assert np.argwhere(volume).tolist() == [[5 - 1 - 2, 4 - 1 - 1, 3]]
    assert spacing == pytest.approx(tuple(np.linalg.norm(AFFINE[:3, [1, 0, 2]], axis=0)))
