"""Dice and ASSD against slow, plain float64 code; the policy for empty structures; what goes into the files."""

import json
import math
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from nibabel.affines import from_matvec
from rich.console import Console
from scipy import ndimage, stats

from plugins.errors import InputError
from plugins.evaluation import (
    case_metrics,
    compare_rounds,
    evaluate_folder,
    paired_t_test,
    results_table,
    show_metrics,
    summarise,
)
from plugins.evaluation.cases import read_cases

TURN = np.linalg.svd([[-0.39, 0.06, 0.05], [0.08, -0.4, 0.07], [0.05, 0.07, 0.4]])
OBLIQUE = from_matvec(TURN[0] @ TURN[2] @ np.diag([0.4, 0.41, 1.5]), [5, -7, 11])


def blob(rng, shape, value):
    """A random smooth blob as a label map."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), 1.5)
    return np.where(noise > np.quantile(noise, 0.9), value, 0).astype(np.uint8)


def surface(mask):
    padded = np.pad(mask, 1)
    inside = padded.copy()
    for axis in range(3):
        for step in (1, -1):
            inside &= np.roll(padded, step, axis)
    return np.argwhere((padded & ~inside)[1:-1, 1:-1, 1:-1]).astype(np.float64)


def naive_distances(a, b, spacing):
    pa, pb = surface(a) * spacing, surface(b) * spacing
    distances = np.linalg.norm(pa[:, None] - pb[None], axis=2)
    return distances.min(1), distances.min(0)


def naive_assd(a, b, spacing):
    return np.concatenate(naive_distances(a, b, spacing)).mean()


@pytest.mark.parametrize("spacing", [(0.4, 0.5, 1.5), (1.0, 1.0, 1.0), (3.0, 0.3, 0.7)])
@pytest.mark.parametrize("value", [1, 2])
def test_dice_and_assd_equal_plain_code(spacing, value):
    rng = np.random.default_rng(value)
    pred, truth = blob(rng, (17, 14, 9), value), blob(rng, (17, 14, 9), value)
    found = case_metrics(pred, truth, spacing)["vs" if value == 1 else "cochlea"]
    a, b = pred == value, truth == value
    assert found["dice"] == 2 * (a & b).sum() / (a.sum() + b.sum())  # equal, or it ties with no other tool's
    assert found["assd_mm"] == pytest.approx(naive_assd(a, b, spacing), abs=1e-5)


def test_assd_is_symmetric_and_pools_both_surfaces():
    small, large = np.zeros((2, 12, 11, 10), dtype=np.uint8)
    small[2, 2, 2] = 1
    large[2:9, 2:8, 2:7] = 1
    spacing = (0.5, 0.5, 2.0)
    there, back = case_metrics(small, large, spacing)["vs"], case_metrics(large, small, spacing)["vs"]
    assert there["assd_mm"] == pytest.approx(back["assd_mm"], abs=1e-5)
    assert there["assd_mm"] == pytest.approx(naive_assd(small > 0, large > 0, spacing), abs=1e-5)


@pytest.mark.parametrize(
    ("pred", "truth", "expected"),
    [
        (0, 1, (0.0, 350.0, 0.0, True, "prediction")),
        (1, 0, (0.0, 350.0, 0.0, True, "reference")),
        (0, 0, (None, None, None, False, "both")),
    ],
)
def test_empty_structures_follow_the_written_policy(pred, truth, expected):
    maps = np.zeros((2, 4, 5, 6), dtype=np.uint8)
    maps[0, 1:3, 1:3, 1:3] = pred
    maps[1, 1:3, 1:3, 1:3] = truth
    dice, distance, nsd, failure, empty = expected
    assert case_metrics(maps[0], maps[1], (1, 1, 1))["vs"] == {
        "dice": dice,
        "assd_mm": distance,
        "assd_medpy_0_4_mm": distance,
        "hd95_mm": distance,
        "hd95_medpy_mm": distance,
        "nsd_1mm": nsd,
        "failure": failure,
        "empty": empty,
    }


@pytest.mark.parametrize(("shared", "failure"), [(3, True), (4, False), (0, True)])
def test_a_dice_below_one_half_is_a_failure(shared, failure):
    pred, truth = np.zeros((2, 20, 3, 3), dtype=np.uint8)
    pred[:8, 1, 1] = 2
    truth[8 - shared : 16 - shared, 1, 1] = 2
    found = case_metrics(pred, truth, (1, 1, 1))["cochlea"]
    assert found["dice"] == pytest.approx(shared / 8)
    assert found["failure"] == failure
    assert found["assd_mm"] < 350


def test_failures_are_counted_and_distances_of_what_was_found_kept():
    truth = np.zeros((20, 3, 3), dtype=np.uint8)
    truth[:8, 1, 1] = 1
    preds = {"right": truth, "off": np.roll(truth, 8, axis=0), "empty": truth * 0}
    mean = summarise({name: case_metrics(pred, truth, (1, 1, 1)) for name, pred in preds.items()})["vs"]
    assert (mean["failures"], mean["cases"]) == (2, 3)
    off = naive_assd(preds["off"] > 0, truth > 0, (1, 1, 1))
    assert mean["assd_mm_found"] == pytest.approx(off / 2, abs=1e-5)
    assert (mean["dice"], mean["assd_mm"]) == pytest.approx((1 / 3, (off + 350) / 3))
    assert (mean["plain"]["dice"], mean["plain"]["assd_mm"]) == pytest.approx((1 / 3, off / 2))
    assert mean["plain"]["nsd_1mm"] == mean["nsd_1mm"]
    assert (mean["plain"]["hd95_mm"], mean["hd95_mm"]) == pytest.approx((8 / 2, (8 + 350) / 3), abs=0.5)
    assert (mean["plain"]["cases"], mean["empty"]) == (3, 1)
    assert {key: mean["without_failures"][key] for key in ("dice", "assd_mm", "cases")} == {
        "dice": 1.0,
        "assd_mm": 0.0,
        "cases": 1,
    }


def test_excluded_cases_and_failures_in_the_means():
    def row(dice, assd, failure=False):
        return {"dice": dice, "assd_mm": assd, "failure": failure}

    cases = {
        "a": {"vs": row(0.8, 1.0), "cochlea": row(None, None)},
        "b": {"vs": row(0.0, 350.0, True), "cochlea": row(0.6, 0.2)},
    }
    mean = summarise(cases)
    assert mean["vs"]["dice"] == pytest.approx(0.4)
    assert mean["vs"]["dice_std"] == pytest.approx(np.std([0.8, 0], ddof=1))
    assert mean["vs"]["assd_mm"] == pytest.approx(175.5)
    assert mean["vs"]["assd_mm_found"] == 1.0
    assert (mean["vs"]["cases"], mean["vs"]["failures"]) == (2, 1)
    assert (mean["cochlea"]["cases"], mean["cochlea"]["dice_std"]) == (1, None)
    assert mean["both"]["dice"] == pytest.approx(0.5)


def save(path, array, affine=OBLIQUE):
    path.parent.mkdir(exist_ok=True)
    nib.save(nib.Nifti1Image(array, affine), path)


def test_folder_uses_mm_of_an_oblique_affine_and_rounds(tmp_path):
    rng = np.random.default_rng(0)
    pred, truth = blob(rng, (11, 12, 13), 1), blob(rng, (11, 12, 13), 1)
    save(tmp_path / "pred" / "x_1_Label.nii.gz", pred)
    save(tmp_path / "truth" / "x_1_Label.nii.gz", truth * 0.9999999997)
    save(tmp_path / "truth" / "x_2_Label.nii.gz", truth)
    content = evaluate_folder(tmp_path / "pred", tmp_path / "truth", tmp_path / "out" / "metrics.json")
    text = (tmp_path / "out" / "metrics.json").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == content
    spacing = np.sqrt((OBLIQUE[:3, :3] ** 2).sum(0))
    assert content["cases"]["x_1"]["vs"]["assd_mm"] == pytest.approx(naive_assd(pred > 0, truth > 0, spacing), abs=1e-5)
    assert content["cases"]["x_1"]["cochlea"]["dice"] is None
    assert content["mean"]["cochlea"]["assd_mm"] is None
    assert content["not_compared"] == ["x_2"]
    assert set(content["definitions"]) == set(content["cases"]["x_1"]["vs"]) - {"failure", "empty"}
    assert "MedPy 0.5" in content["definitions"]["assd_mm"]
    assert "MedPy 0.4" in content["definitions"]["assd_medpy_0_4_mm"]
    assert set(content["rules"]) == {"challenge", "plain", "without_failures"}
    table = read_cases(tmp_path / "out" / "metrics.csv")
    assert table.methods == {"": {"x_1": {name: without_nothing(row) for name, row in content["cases"]["x_1"].items()}}}


def without_nothing(row):
    """As it comes back from a CSV: ``empty`` is there only where it says something."""
    return {key: value for key, value in row.items() if key != "empty" or value is not None}


def test_sites_have_means_of_their_own_and_failures_are_named(tmp_path):
    truth = np.zeros((9, 8, 7), dtype=np.uint8)
    truth[2:5, 2:5, 2:5], truth[6:8, 1:3, 1:3] = 1, 2
    lacking = np.where(truth == 2, 0, truth)
    for case, pred in {"crossmoda2021_ldn_211": truth, "crossmoda2022_etz_210": lacking, "other": truth}.items():
        save(tmp_path / "pred" / f"{case}_Label.nii.gz", pred)
        save(tmp_path / "truth" / f"{case}_Label.nii.gz", truth)
    content = evaluate_folder(tmp_path / "pred", tmp_path / "truth", tmp_path / "metrics.json")
    assert {site: each["cases"] for site, each in content["sites"].items()} == {
        "etz": ["crossmoda2022_etz_210"],
        "ldn": ["crossmoda2021_ldn_211"],
        "unknown": ["other"],
    }
    assert content["sites"]["etz"]["mean"]["cochlea"]["assd_mm"] == 350
    assert content["sites"]["etz"]["mean"]["cochlea"]["plain"]["assd_mm"] is None
    assert content["sites"]["ldn"]["mean"]["cochlea"]["assd_mm"] == 0
    failure = content["failures"][0]
    assert len(content["failures"]) == 1
    assert (failure["case"], failure["site"], failure["structure"], failure["empty"]) == (
        "crossmoda2022_etz_210",
        "etz",
        "cochlea",
        "prediction",
    )


def test_the_deviation_of_both_structures_is_that_of_the_cases_means():
    def row(dice):
        return {"dice": dice, "assd_mm": 1.0, "failure": dice < 0.5}

    cases = {str(n): {"vs": row(a), "cochlea": row(b)} for n, (a, b) in enumerate([(0.9, 0.5), (0.7, 0.8), (0.6, 0.9)])}
    both = summarise(cases)["both"]
    assert both["dice_std"] == pytest.approx(np.std([0.7, 0.75, 0.75], ddof=1))
    assert both["assd_mm_std"] == 0


def test_rows_of_older_files_have_no_means_of_what_they_lack():
    old = {"dice": 0.8, "assd_mm": 1.0, "failure": False}
    mean = summarise({"a": {"vs": old, "cochlea": old}})["vs"]
    assert (mean["dice"], mean["hd95_mm"], mean["nsd_1mm"]) == (0.8, None, None)


def test_unequal_grids_are_refused_by_name(tmp_path):
    label = np.ones((4, 5, 6), dtype=np.uint8)
    save(tmp_path / "truth" / "x_Label.nii.gz", label)
    save(tmp_path / "pred" / "x_Label.nii.gz", label[:3])
    with pytest.raises(InputError, match=r"pred.x_Label.*truth.x_Label"):
        evaluate_folder(tmp_path / "pred", tmp_path / "truth", tmp_path / "m.json")
    save(tmp_path / "pred" / "x_Label.nii.gz", label, OBLIQUE @ np.diag([-1, 1, 1, 1.0]))
    with pytest.raises(InputError, match="mm away"):
        evaluate_folder(tmp_path / "pred", tmp_path / "truth", tmp_path / "m.json")
    save(tmp_path / "pred" / "x_Label.nii.gz", label, OBLIQUE + 1e-6)
    assert evaluate_folder(tmp_path / "pred", tmp_path / "truth", tmp_path / "m.json")["mean"]["vs"]["dice"] == 1


def test_unknown_label_values_and_empty_folders_are_refused(tmp_path):
    save(tmp_path / "pred" / "x_Label.nii.gz", np.full((4, 5, 6), 3, dtype=np.uint8))
    save(tmp_path / "truth" / "y_Label.nii.gz", np.ones((4, 5, 6), dtype=np.uint8))
    with pytest.raises(InputError, match="no case in common"):
        evaluate_folder(tmp_path / "pred", tmp_path / "truth", tmp_path / "m.json")
    with pytest.raises(InputError, match=r"label values 3, but"):
        evaluate_folder(tmp_path / "pred", tmp_path / "pred", tmp_path / "m.json")
    with pytest.raises(InputError, match="is no folder"):
        evaluate_folder(tmp_path / "nothing", tmp_path / "truth", tmp_path / "m.json")


def test_paired_t_test_equals_its_formula():
    rng = np.random.default_rng(3)
    a, b = rng.random(9), rng.random(9)
    found = paired_t_test(a, b)
    t = (b - a).mean() / ((b - a).std(ddof=1) / 3)
    assert found["t"] == pytest.approx(t)
    assert found["p"] == pytest.approx(2 * stats.t.sf(abs(t), 8))


@pytest.mark.parametrize(("a", "b"), [([], []), ([0.5], [0.7]), ([0.1, 0.2], [0.1, 0.2]), ([0.1, 0.3], [0.3, 0.5])])
def test_undefined_t_tests_are_none(a, b):
    found = paired_t_test(a, b)
    assert found["t"] is None
    assert found["p"] is None
    assert all(value is None or math.isfinite(value) for value in found.values())


def test_a_folder_is_not_evaluated_against_itself(tmp_path):
    save(tmp_path / "pred" / "a_Label.nii.gz", np.eye(4, dtype=np.uint8)[:, :, None], np.eye(4))
    for other in (tmp_path / "pred", tmp_path / "pred" / ".." / "pred"):
        with pytest.raises(InputError, match=r"are both .*pred. Give the references as label_dir"):
            evaluate_folder(tmp_path / "pred", other, tmp_path / "m.json")


def test_an_evaluation_says_its_means_and_where_they_are(capsys):
    content = {"cases": {}, "mean": summarise({"a": case_metrics(np.ones((3, 3, 3)), np.ones((3, 3, 3)), (1, 1, 1))})}
    show_metrics({**content, "not_compared": [f"x_{number}" for number in range(7)]}, "out/metrics.json")
    show_metrics({"mean": {"vs_contrast": -0.05, "segmenter": None}}, "out/translated.json")
    said = capsys.readouterr().out
    assert "1.0000" in said
    assert said.count("not compared, since one of the folders lacks them: 7 cases (x_0, x_1, x_2, x_3, x_4, ...)") == 1
    assert "vs_contrast" in said
    assert "-0.0500" in said
    assert "metrics: out/metrics.json" in said
    assert "metrics: out/translated.json" in said


def test_rounds_are_paired_by_case_and_shown():
    def content(dice):
        cases = {
            c: {s: {"dice": d, "assd_mm": 1.0, "failure": False} for s in ("vs", "cochlea")} for c, d in dice.items()
        }
        return {"cases": cases, "mean": summarise(cases)}

    rounds = {
        "round_0": content({"a": 0.1, "b": 0.2, "c": 0.9}),
        "round_1": content({"c": 0.95, "b": 0.4, "a": 0.2, "d": None}),
    }
    test = compare_rounds(rounds)[0]
    assert (test["before"], test["after"], test["structure"], test["measure"]) == ("round_0", "round_1", "vs", "dice")
    assert test["n"] == 3
    assert test["difference"] == pytest.approx((0.1 + 0.2 + 0.05) / 3)
    assert results_table(rounds).row_count == 6


def test_the_printed_table_counts_failures_and_tells_the_decisions(capsys):
    cases = {
        case: {s: {"dice": dice, "assd_mm": 9.0, "failure": dice < 0.5} for s in ("vs", "cochlea")}
        for case, dice in {"a": 0.0, "b": 0.49, "c": 0.9}.items()
    }
    rounds = {"round_0": {"cases": cases, "mean": summarise(cases)}}
    Console(width=80).print(results_table(rounds, {"round_1": "refused, plausibility falls from [1] to [0]"}))
    printed = capsys.readouterr().out
    assert printed.count("2/3") == 2
    assert "a failure is a Dice below 0.5 or an empty mask" in printed
    assert "self-training, round 1: refused, plausibility falls from [1] to [0]" in printed


def test_masks_at_the_border_are_measured_where_denormal_numbers_count_as_zero():
    """SciPy's tree crashes there; in a process of its own, so that a crash is one failed test."""
    code = """
import numpy as np, torch
from plugins.evaluation import case_metrics
torch.set_flush_denormal(True)
mask = np.zeros((22, 18, 14), np.uint8)
mask[:14, :12, :12] = 1
found = case_metrics(mask, np.roll(mask, 1, 0), (0.08, 0.1, 0.12))["vs"]
flushed = float(np.float64(5e-324) * np.float64(1.0)) == 0
print(found["dice"] > 0.9, found["nsd_1mm"], flushed)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stdout.split() == ["True", "1.0", "True"], done.stderr[-2000:]
