"""The page of a study: methods and seeds side by side, the worst case first, and the figures of the paper."""

import json
import re
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image

from plugins.errors import InputError
from plugins.evaluation import compare_methods
from plugins.evaluation.metrics import CASE_MEASURES
from plugins.evaluation.pictures import read_axial
from plugins.files import read_json, write_json
from plugins.report import write_report, write_study_report
from plugins.report.figures import draw_translations
from plugins.report.volumes import DIFFERENCE, PREDICTION, REFERENCE

from .conftest import FAILED, FINE, HOSTILE

OTHER = "b <i>"


@pytest.fixture(scope="module")
def study(run, tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    files = {name: run / "round_1" / "evaluation" / "metrics.json" for name in ("a", OTHER)}
    comparison = compare_methods(files, folder / "results", reference="a")
    seeds = [("a", seed, structure, 0.5, 1.0, 1) for seed in (0, 3) for structure in ("vs", "cochlea")]
    page = write_study_report({"a": {0: run, 3: run}, OTHER: {0: run}}, folder, comparison, seeds)
    return folder, page, comparison


def test_its_files_and_its_numbers(study):
    folder, page, comparison = study
    assert page == folder / "report.html"
    assert page.read_text() == (folder / "report" / "index.html").read_text()
    numbers, text = read_json(folder / "report" / "report.json"), page.read_text()
    assert "<h2>Pictures, method by method</h2>" in text
    assert numbers["comparison"] == json.loads(json.dumps(comparison))
    vs = numbers["intervals"]["a"]["vs"]["dice"]
    assert vs == {"mean": pytest.approx(2 / 3), "n": 3, "low": None, "high": None}
    assert "<td>0.667</td>" in text
    assert numbers["seeds"][2] == {
        "method": "a",
        "seed": 3,
        "structure": "vs",
        "dice": 0.5,
        "assd_mm": 1.0,
        "failures": 1,
    }
    titles = [table["caption"] for table in numbers["tables"]]
    assert [title.split()[0] for title in titles] == ["Mean", "Ranks", "Paired", "Means", "Traffic", "Score"]
    assert all(title in text for title in titles if "<" not in title)


def test_the_worst_case_is_first_and_names_its_methods(study):
    folder, page, _ = study
    rows = read_json(folder / "report" / "report.json")["cases"]
    assert rows[0]["case"] == FAILED
    assert rows[0]["runs"] == {"a, seed 0": 0.5, "a, seed 3": 0.5, OTHER: 0.5}
    assert rows[0]["failed"] == ["a, seed 0", "a, seed 3", OTHER]
    assert rows[0]["reasons"][0].startswith(
        "failed in 3 of 3 runs: worst with 'a, seed 0' (score 0.50), best with 'a, seed 0' (0.50)"
    )
    assert "a, seed 3: empty: no VS was found" in rows[0]["reasons"]
    assert rows[1]["light"] == "green"
    assert rows[1]["reasons"] == []
    assert HOSTILE in {row["case"] for row in rows}
    markup = re.sub(r"<script.*?</script>", "", page.read_text(), flags=re.DOTALL)
    assert "<i>" not in markup
    assert "<b onmouseover" not in markup


def test_figure_3_is_written_and_figures_without_data_are_not(study):
    results = study[0] / "results"
    with Image.open(results / "fig3.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 600
    assert {path.name for path in results.glob("fig*")} == {"fig3.png"}


def test_the_viewer_has_every_method_against_the_truth(study):
    volumes = re.findall(r'<script type="application/json" class="volume">(.*?)</script>', study[1].read_text())
    packed = [json.loads(text) for text in volumes]
    assert packed[0]["case"] == FAILED
    for each in packed:
        assert set(each["maps"]) == {REFERENCE}
        assert {name: set(maps) for name, maps in each["methods"].items()} == {
            "a": {PREDICTION, DIFFERENCE},
            OTHER: {PREDICTION, DIFFERENCE},
        }


@pytest.mark.parametrize("measures", [("hd95_mm",), tuple(CASE_MEASURES)], ids=["one", "all"])
def test_a_comparison_by_any_measures_has_a_page(run, tmp_path, measures):
    files = {name: run / "round_1" / "evaluation" / "metrics.json" for name in ("a", "b")}
    comparison = compare_methods(files, tmp_path / "results", measures=measures)
    page = write_study_report({"a": {0: run}, "b": {0: run}}, tmp_path, comparison)
    results, _, pairs, *_ = read_json(tmp_path / "report" / "report.json")["tables"]
    titles = [CASE_MEASURES[name].title for name in measures]
    assert results["heads"][2:-1] == titles
    assert [row[1] for row in pairs["rows"]] == [f"{title} {name}" for name in ("VS", "cochlea") for title in titles]
    assert all(f"{title} cochlea" in page.read_text() for title in titles)


def with_light(run, folder, light):
    """A run like another one whose scans all have this light."""
    numbers = read_json(run / "report" / "report.json")
    numbers["cases"] = [{**row, "light": light} for row in numbers["cases"]]
    write_json(folder / "report" / "report.json", numbers)
    return folder


def test_a_moved_run_shows_its_own_label_maps_and_the_scans_where_they_are(run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(run, moved)
    for file in (moved / "round_1" / "validation").glob("*.nii.gz"):
        image = nib.load(file)
        nib.save(nib.Nifti1Image(np.zeros(image.shape, np.uint8), image.affine), file)
    drawn = {}
    for name, folder in {"there": run, "moved": moved}.items():
        page = write_study_report({"a": {0: folder}}, tmp_path / name)
        drawn[name] = json.loads(page.read_text().split('class="volume">')[1].split("</script>")[0])["methods"]["a"]
    assert drawn["there"][PREDICTION] != drawn["moved"][PREDICTION]

    numbers = read_json(run / "report" / "report.json")
    for row in numbers["cases"]:
        assert row["files"][PREDICTION] == f"round_1/validation/{row['case']}_Label.nii.gz"
        row["files"] = {name: str(run / path) for name, path in row["files"].items()}  # as earlier versions wrote them
    write_json(moved / "report" / "report.json", numbers)
    page = write_study_report({"a": {0: moved}}, tmp_path / "earlier")
    assert drawn["there"][PREDICTION] in page.read_text()


def test_files_outside_a_run_are_named_by_their_absolute_paths(run, tmp_path, monkeypatch):
    monkeypatch.chdir(run)
    inside = Path("round_0", "validation")
    write_report(
        validation=[{"case": FINE, "image": Path("scans", f"{FINE}_hrT2.nii.gz")}],
        pred_dirs={"round_0": inside},
        metrics_files={},
        output_dir=tmp_path / "report",
        run_dir="round_0",
    )
    (row,) = read_json(tmp_path / "report" / "report.json")["cases"]
    files = {"image": str(run / "scans" / f"{FINE}_hrT2.nii.gz"), PREDICTION: f"validation/{FINE}_Label.nii.gz"}
    assert row["files"] == {**files, REFERENCE: None}


@pytest.mark.parametrize(
    ("of_runs", "light"),
    [
        (["red", "red", "green"], "red"),
        (["red", "green", "green"], "amber"),
        (["red", "green"], "amber"),
        (["amber", "green"], "amber"),
        (["green", "green"], "green"),
    ],
    ids=", ".join,
)
def test_a_scan_is_red_if_most_runs_failed_with_it(run, tmp_path, of_runs, light):
    runs = {f"m{at}": {0: with_light(run, tmp_path / str(at), each)} for at, each in enumerate(of_runs)}
    page = write_study_report(runs, tmp_path)
    assert {row["light"] for row in read_json(tmp_path / "report" / "report.json")["cases"]} == {light}
    assert "most runs failed with the scan" in page.read_text()


def test_scores_of_more_runs_than_cases_go_down_the_page(run, tmp_path):
    cases = [row["case"] for row in read_json(run / "report" / "report.json")["cases"]]
    few = {f"m{at}": {0: run} for at in range(len(cases))}
    write_study_report(few, tmp_path)
    table = read_json(tmp_path / "report" / "report.json")["tables"][-1]
    assert table["heads"] == ["case", *few]
    assert sorted(row[0] for row in table["rows"]) == sorted(cases)
    write_study_report({**few, "one more": {0: run}}, tmp_path)
    turned = read_json(tmp_path / "report" / "report.json")["tables"][-1]
    assert turned["heads"] == ["run", *(row[0] for row in table["rows"])]
    assert turned["rows"] == [[name, *(row[1] for row in table["rows"])] for name in (*few, "one more")]


def test_runs_alone_are_enough(run, tmp_path):
    page = write_study_report({OTHER: {0: run}, "a": {0: run}}, tmp_path)
    text = page.read_text().split('class="volume">')[1]
    assert list(json.loads(text[: text.index("</script>")])["methods"]) == [OTHER, "a"]
    numbers = read_json(tmp_path / "report" / "report.json")
    assert set(numbers["intervals"]) == {"a", OTHER}
    assert numbers["cases"][0]["runs"] == {"a": 0.5, OTHER: 0.5}


@pytest.mark.parametrize(("runs", "words"), [({}, "a study needs runs"), ({"a": {0: "nowhere"}}, "is missing")])
def test_a_study_without_reports_is_refused(tmp_path, runs, words):
    with pytest.raises(InputError, match=words):
        write_study_report(runs, tmp_path)


def test_a_translation_in_another_window_is_drawn_where_its_voxels_lie(tmp_path):
    def save(name, voxels, corner=(0, 0, 0)):
        affine = np.diag([-1.0, -1.0, 2.0, 1.0])
        affine[:3, 3] = affine[:3, :3] @ corner
        nib.save(nib.Nifti1Image(voxels, affine), tmp_path / name)
        return tmp_path / name

    scan = np.random.default_rng(0).random((12, 14, 8), dtype=np.float32) + 1
    scan[8, 9, 6] = 5
    label = np.zeros(scan.shape, np.uint8)
    label[6:8, 6:8, 6], label[3:5, 6:8, 6] = 1, 2
    case = {"case": "a", "image": save("a_ceT1.nii.gz", scan), "label": save("a_Label.nii.gz", label)}
    window = save("a.nii.gz", scan[2:11, 3:, 4:], corner=(2, 3, 4))

    shown, _ = read_axial(window, on=case["image"])
    expected = np.zeros_like(scan)
    expected[2:11, 3:, 4:] = scan[2:11, 3:, 4:]
    np.testing.assert_allclose(shown, np.flip(expected, (0, 1)), atol=1e-5)

    images = [axis.images[0].get_array() for axis in draw_translations([(case, {"window": window})]).axes]
    assert images[0].shape == images[1].shape
    assert images[0].argmax() == images[1].argmax()
