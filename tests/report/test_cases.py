"""Lights and reasons of single label maps."""

from pathlib import Path

import numpy as np
import pytest

from plugins.data import Scan, Window
from plugins.files import read_json, write_json
from plugins.report import write_report
from plugins.report.cases import case_row, failed_row, general_statistics, worst_first
from plugins.segmentation import AnatomySettings, SourceStatistics
from plugins.workflow.scoring import Rules, read_case

from .conftest import label_map, save

AFFINE = np.diag([0.5, 0.5, 1.5, 1.0])


def row(label, **known):
    scan = Scan(Path("a.nii.gz"), label.shape, AFFINE, None, label)
    return case_row("a", scan, general_statistics(), **known)


def test_a_label_map_like_others_is_green():
    found = row(label_map())
    assert (found["light"], found["reasons"], found["score"]) == ("green", [], 1.0)
    assert found["volumes_mm3"] == {"VS": 300 * 0.375, "cochlea": 2 * 60 * 0.375}


def test_an_empty_structure_is_red_and_named_once():
    label = label_map()
    found = row(np.where(label == 1, 0, label))
    assert (found["light"], found["score"]) == ("red", 0.0)
    assert found["reasons"] == ["empty: no VS was found"]


def test_a_volume_far_out_of_range_is_red_and_one_just_out_is_amber():
    tiny, small = label_map(wide=1), label_map(wide=2)
    assert row(tiny)["light"] == "red"
    assert row(tiny)["reasons"][0].startswith("implausible: the volume of the VS is 4.5 mm3")
    small[30:34, 10:14, 6] = 0
    assert (row(small)["light"], row(small)["score"]) == ("amber", pytest.approx(12 / 20))


@pytest.mark.parametrize(("agreement", "light"), [(0.9, "green"), (0.7, "amber"), (0.4, "red")])
def test_members_that_disagree(agreement, light):
    found = row(label_map(), agreement={"VS": agreement, "cochlea": None})
    assert (found["light"], found["score"]) == (light, pytest.approx(agreement))
    assert found["scored_by"] == "plausibility x agreement"
    assert found["reasons"] == [f"members disagree: agreement on the VS is {agreement:.2f}"] * (light != "green")


def test_a_structure_at_the_border_of_the_window_is_amber():
    inside = Window((37.0, 10.0, 8.0), (75.0, 20.0, 18.0), "locator", 0.9)
    cut = Window((37.0, 10.0, 8.0), (75.0, 9.5, 18.0), "locator", 0.9)
    assert row(label_map(), window=inside)["light"] == "green"
    found = row(label_map(), window=cut)
    assert found["light"] == "amber"
    assert "off the window: the VS reaches its border" in found["reasons"]


def test_a_window_that_was_not_found_is_amber():
    found = row(label_map(), window=Window((37.0, 10.0, 8.0), (75.0, 20.0, 18.0), "whole scan", 0.0))
    assert found["reasons"] == ["off the window: the inner ears were not located, the whole scan was taken"]


def two_tumours(folder):
    """A label map with a second, smaller VS, saved as that of a case."""
    label = label_map()
    label[94:104, 10:20, 5:7] = 1
    save(folder / "a_Label.nii.gz", label, AFFINE)
    return label


def test_a_scan_is_judged_by_the_sizes_of_the_source_as_in_the_scores_of_a_model(tmp_path):
    label, statistics = two_tumours(tmp_path), SourceStatistics.measure([(label_map(wide=3), AFFINE)])
    scored = read_case("a", str(tmp_path), (), Rules(statistics, statistics.settings())).row
    scan = Scan(Path("a.nii.gz"), label.shape, AFFINE, None, label)
    assert case_row("a", scan, statistics)["plausibility"] == scored["plausibility"]
    assert general_statistics().settings() == AnatomySettings()


def test_a_scan_that_a_run_has_scored_has_the_same_plausibility_in_its_page(tmp_path):
    folder = tmp_path / "round_0" / "target"
    label, statistics = two_tumours(folder), SourceStatistics.measure([(label_map(), AFFINE)])
    image = save(tmp_path / "a.nii.gz", label.astype(np.float32), AFFINE)
    sure = np.where(np.arange(label.shape[0])[:, None, None] < 55, 0.55, 1.0) * (label > 0)
    probabilities = np.stack([1 - sure, sure * (label == 1), sure * (label == 2)], axis=-1).astype(np.float32)
    save(folder / "a_Probabilities.nii.gz", probabilities, AFFINE)
    scored = read_case("a", str(folder), [str(folder)] * 2, Rules(statistics, statistics.settings())).row
    content = {"statistics": statistics.to_json(), "cases": [scored], "mean": {}}
    write_json(tmp_path / "round_0" / "score" / "score.json", content)
    target = [{"case": "a", "image": image}]
    write_report(target, {"round_0": folder}, {}, tmp_path / "report", target=target, run_dir=tmp_path)
    numbers = read_json(tmp_path / "report" / "report.json")
    assert numbers["target_cases"][0]["plausibility"] == scored["plausibility"]
    assert numbers["cases"][0]["plausibility"] != scored["plausibility"]  # without probabilities


def test_truth_decides_the_score():
    metrics = {"vs": {"dice": 0.3, "failure": True}, "cochlea": {"dice": 0.9, "failure": False}}
    found = row(label_map(), metrics=metrics)
    assert (found["light"], found["score"], found["scored_by"]) == ("red", pytest.approx(0.6), "mean Dice")
    assert found["reasons"] == ["against the truth: Dice of the VS is 0.30"]


def test_the_order_is_by_light_then_score_then_name():
    rows = [
        {"case": "d", "light": "green", "score": 0.1},
        {"case": "c", "light": "red", "score": 0.9},
        {"case": "b", "light": "amber", "score": 0.0},
        {"case": "a", "light": "red", "score": 0.9},
        failed_row("e", "cannot be read"),
    ]
    assert [each["case"] for each in worst_first(rows)] == ["e", "a", "c", "b", "d"]
