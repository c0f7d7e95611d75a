"""The audit against counts by hand; what it says of a gate that is right, and of one that is wrong."""

import nibabel as nib
import numpy as np
import pytest

from plugins.data import Window, crossmoda_datalist, write_datalist
from plugins.data.windows import write_windowed_dataset
from plugins.errors import InputError
from plugins.files import read_json, write_json
from plugins.workflow.audit import audit_line, audit_pseudo_labels, write_truth

AFFINE = np.diag([0.5, 0.5, 1.5, 1.0])


def write(folder, case, labels):
    folder.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(labels.astype(np.uint8), AFFINE), folder / f"{case}_Label.nii.gz")


def head(shift=0):
    labels = np.zeros((12, 10, 4), np.uint8)
    labels[2 + shift : 5 + shift, 2:6, 1:3] = 1
    labels[8, 3:5, 1 + shift % 3] = 2
    return labels


class Round:
    def __init__(self, folder):
        self.folder, self.cases = folder, []
        for name in ("pseudo", "target", "truth"):
            (folder / name).mkdir()

    def add(self, case, truth, judged, score, gated=None):
        write(self.folder / "truth", case, truth)
        write(self.folder / "target", case, judged)
        if gated is not None:
            write(self.folder / "pseudo", case, gated)
        self.cases.append({"case": case, "kept": gated is not None, "score": score, "weight": 1.0})

    def audit(self):
        write_json(self.folder / "pseudo" / "gate.json", {"cases": self.cases, "ensemble_dir": "../target"})
        content = audit_pseudo_labels(self.folder / "pseudo", self.folder / "truth", self.folder / "out")
        assert content == read_json(self.folder / "out" / "audit.json")
        return content


@pytest.fixture
def a_round(tmp_path):
    return Round(tmp_path)


def naive_dice(a, b):
    return 2.0 * sum(x and y for x, y in zip(a, b, strict=True)) / (sum(a) + sum(b))


def test_dice_of_kept_and_ignored_voxels_and_of_scans_equal_counts_by_hand(a_round):
    rng = np.random.default_rng(0)
    truths = [rng.integers(0, 3, (5, 4, 3)) for _ in range(4)]
    judged = [np.where(rng.random(t.shape) < 0.7, t, rng.integers(0, 3, t.shape)) for t in truths]
    ignored = [rng.random(t.shape) < 0.3 for t in truths]
    for at, (t, j, i) in enumerate(zip(truths, judged, ignored, strict=True)):
        a_round.add(f"case_{at}", t, j, score=float(at), gated=np.where(i, 3, j) if at < 3 else None)
    content = a_round.audit()
    for name, value in (("VS", 1), ("cochlea", 2)):
        for kind, where in (("kept", [~i for i in ignored[:3]]), ("ignored", ignored[:3])):
            a = [bool(v) for j, w in zip(judged, where, strict=False) for v in (j == value)[w]]
            b = [bool(v) for t, w in zip(truths, where, strict=False) for v in (t == value)[w]]
            assert content["voxels"][kind][name] == pytest.approx(naive_dice(a, b), abs=1e-12)
    means = [
        np.mean([naive_dice((j == v).ravel(), (t == v).ravel()) for v in (1, 2)])
        for t, j in zip(truths, judged, strict=True)
    ]
    assert [row["dice"]["mean"] for row in content["cases"]] == pytest.approx(means)
    assert content["scans"]["kept"] == {"scans": 3, "dice": pytest.approx(np.mean(means[:3]))}
    assert content["scans"]["dropped"] == {"scans": 1, "dice": pytest.approx(means[3])}
    ranks = np.argsort(np.argsort(means))
    rho = 1 - 6 * np.sum((ranks - np.arange(4)) ** 2) / (4 * 15)
    assert content["spearman"]["rho"] == pytest.approx(rho)


@pytest.mark.parametrize(("scores", "rho"), [((1, 2, 3), 1), ((3, 2, 1), -1)])
def test_the_order_of_the_scores_is_told_from_the_reverse_order(a_round, scores, rho):
    for case, score, shift in zip("abc", scores, (2, 1, 0), strict=True):
        a_round.add(case, head(), head(shift), score, gated=head(shift))
    assert a_round.audit()["spearman"] == {"rho": pytest.approx(rho), "p": pytest.approx(0, abs=1e-6), "n": 3}


def test_what_cannot_be_told_is_null(a_round):
    empty = np.zeros((4, 4, 4), np.uint8)
    a_round.add("a", empty, empty, 0.5, gated=empty)
    a_round.add("b", head(), head(), 0.5, gated=head())
    content = a_round.audit()
    assert content["cases"][0]["dice"] == {"VS": None, "cochlea": None, "mean": None}
    assert content["voxels"]["ignored"] == {"VS": None, "cochlea": None}
    assert content["scans"] == {"kept": {"scans": 2, "dice": 1.0}, "dropped": {"scans": 0, "dice": None}}
    assert content["spearman"] == {"rho": None, "p": None, "n": 1}


def test_truth_on_another_grid_is_refused(a_round):
    a_round.add("a", head()[:, :, :3], head(), 0.5)
    with pytest.raises(InputError, match="a_Label"):
        a_round.audit()


def test_a_line_of_a_table_holds_the_numbers_of_the_audit(a_round):
    half = np.where(head() == 2, 3, head())
    for case, score, shift in zip("abcd", (4, 3, 2, 1), (0, 1, 2, 2), strict=True):
        a_round.add(case, head(), head(shift), score, gated=half if case == "a" else None)
    content = a_round.audit()
    line = audit_line(read_json(a_round.folder / "out" / "audit.json"))
    assert line == {
        "kept_scans": 1,
        "kept_scans_dice": 1.0,
        "dropped_scans": 3,
        "dropped_scans_dice": content["scans"]["dropped"]["dice"],
        "kept_voxels_vs_dice": 1.0,
        "kept_voxels_cochlea_dice": None,
        "ignored_voxels_vs_dice": None,
        "ignored_voxels_cochlea_dice": 1.0,
        "spearman_rho": content["spearman"]["rho"],
        "spearman_p": content["spearman"]["p"],
        "spearman_n": 4,
    }
    assert 0 < line["dropped_scans_dice"] < 1
    assert line["spearman_rho"] > 0.9


def test_truth_is_cut_to_the_windows_of_its_scans_and_refused_where_it_does_not_fit(tmp_path):
    write(tmp_path, "a", head())
    nib.save(nib.Nifti1Image(np.zeros((12, 10, 4), np.float32), AFFINE), tmp_path / "a_hrT2.nii.gz")
    scan = {"case": "a", "image": str(tmp_path / "a_hrT2.nii.gz")}
    window = Window((2.0, 2.0, 2.25), (3.0, 3.0, 9.0))
    write_windowed_dataset({"target": [scan]}, {"a": window}, tmp_path / "windows")
    cut = crossmoda_datalist(tmp_path / "windows", "training_target")
    write_datalist(tmp_path / "target.json", cut)
    truth = {"a": str(tmp_path / "a_Label.nii.gz")}, str(tmp_path / "target.json")
    write_truth(*truth, str(tmp_path / "windows"), str(tmp_path / "truth"))
    found, seen = (nib.load(file) for file in (tmp_path / "truth" / "a_Label.nii.gz", cut[0]["image"]))
    assert found.shape == seen.shape != (12, 10, 4)
    assert np.allclose(found.affine, seen.affine)
    start = np.round(np.linalg.solve(AFFINE, found.affine[:, 3]))[:3].astype(int)
    assert np.array_equal(
        found.dataobj, head()[tuple(slice(s, s + n) for s, n in zip(start, found.shape, strict=True))]
    )
    with pytest.raises(InputError, match="a_Label"):
        write_truth(*truth, None, str(tmp_path / "truth"))
