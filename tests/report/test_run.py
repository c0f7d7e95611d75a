"""The report of a run: its files, its words, its order, and that names are text."""

import html
import re
import shutil

import numpy as np
import pytest

from plugins.evaluation.pictures import read_axial
from plugins.files import read_json
from plugins.report import tables, write_report

from .conftest import AFFINE, FAILED, FINE, HOSTILE, save


def test_the_page_holds_all_and_its_numbers_are_in_the_json(run):
    page, numbers = (run / "report" / "index.html").read_text(), read_json(run / "report" / "report.json")
    assert {path.name for path in (run / "report").iterdir()} == {
        "index.html",
        "report.json",
        "metrics.json",
        "table.txt",
    }
    markup = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    links = re.findall(r'(?:src|href)="([^"#][^"]*)"', markup)
    assert links
    assert all(link.startswith("data:") for link in links)
    assert "@import" not in page.split("</style>")[0]
    metrics = read_json(run / "report" / "metrics.json")
    assert metrics["round_1"]["mean"]["vs"]["failures"] == 1
    assert numbers["metrics"]["round_1"] == metrics["round_1"]
    assert numbers["paired_t_test"] == metrics["paired_t_test"]
    vs = numbers["intervals"]["round_1"]["vs"]["dice"]
    assert vs["mean"] == pytest.approx(2 / 3)
    assert (vs["low"], vs["high"], vs["n"]) == (None, None, 3)
    assert "<td>0.667</td>" in page
    assert "self-training, round 1: accepted &lt;b&gt;, nothing falls." in page
    assert "accepted <b>, nothing falls" in (run / "report" / "table.txt").read_text()
    assert numbers["other_versions"] == {"torch": "1.13<b> (1 stages)"}
    assert "Some stages were made with other versions" in page
    assert "1.13&lt;b&gt; (1 stages)" in page
    stage = next(each for each in numbers["stages"] if each["name"] == "round_0/validation")
    assert stage["seconds"] == 12.5
    assert "<td>12.5</td><td>-</td>" in page
    assert "<td>12.5</td><td>431.5</td>" in page
    assert {each["name"]: each["peak_mib"] for each in numbers["stages"]} == {
        "round_0/validation": None,
        "round_1/validation": 431.5,
    }


@pytest.mark.parametrize(("count", "shown"), [(5, r"0\.\d{3}"), (7, r"0\.\d{3} \[0\.\d{3}, 0\.\d{3}\]")])
def test_from_six_scans_on_a_mean_has_its_interval(count, shown):
    both = ("vs", "cochlea")
    cases = {str(n): {name: {"dice": n / 9, "assd_mm": 1.0} for name in both} for n in range(count)}
    content = {"cases": cases, "mean": {name: {"failures": 0, "cases": count} for name in both}}
    found = tables.intervals_of({"round_1": content})
    assert re.fullmatch(shown, tables.results_table(found)["rows"][0][2])


def test_the_worst_scan_comes_first_and_says_why(run):
    rows = read_json(run / "report" / "report.json")["cases"]
    assert rows[0]["case"] == FAILED
    assert rows[0]["light"] == "red"
    assert "empty: no VS was found" in rows[0]["reasons"]
    assert rows[0]["score"] == pytest.approx(0.5)
    assert {row["case"]: row["light"] for row in rows[1:]} == {FINE: "green", HOSTILE: "green"}
    page = (run / "report" / "index.html").read_text()
    assert page.index('id="case-1"') < page.index('id="case-2"')
    assert f'<a href="#case-1">{FAILED}</a>, against the truth: Dice of the VS is 0.00' in page


def test_a_name_like_a_tag_is_shown_as_it_is(run):
    page = (run / "report" / "index.html").read_text()
    assert "<b onmouseover" not in page
    assert html.escape(HOSTILE, quote=False).replace('"', "&#34;").replace("'", "&#39;") in page


@pytest.mark.parametrize(
    "case", ["$x_{$", "a#1", "50%20", "why?", "</script>", "[bold]", "\\frac", "ü" * 90, "{{ 7 * 7 }}"]
)
def test_names_of_cases_are_text_everywhere(run, tmp_path, case):
    stem = case.replace("/", "-")
    shutil.copyfile(run / "truth" / f"{FINE}_Label.nii.gz", tmp_path / f"{stem}_Label.nii.gz")
    write_report(
        validation=[{"case": stem, "image": run / "scans" / f"{FINE}_hrT2.nii.gz"}],
        pred_dirs={"round_1": tmp_path},
        metrics_files={},
        output_dir=tmp_path / "report",
    )
    page = (tmp_path / "report" / "index.html").read_text()
    assert re.search(rf'<article id="case-1".*?<h3>{re.escape(html.escape(stem))}\s', page, re.DOTALL)


def test_report_without_references_says_so(run, tmp_path):
    content = write_report(
        [{"case": FINE, "image": run / "scans" / f"{FINE}_hrT2.nii.gz"}],
        {"round_0": run / "round_0" / "validation"},
        {},
        tmp_path,
        decisions={"round_1": "refused [all]"},
    )
    assert content == {"paired_t_test": []}
    assert "self-training, round 1: refused [all]\n" in (tmp_path / "table.txt").read_text()
    assert "no reference label maps" in (tmp_path / "index.html").read_text()
    row = read_json(tmp_path / "report.json")["cases"][0]
    assert (row["light"], row["scored_by"], row["score"]) == ("green", "plausibility", 1.0)


def test_pictures_turn_axes_to_right_anterior_superior(tmp_path):
    array = np.zeros((4, 5, 6), dtype=np.float32)
    array[1, 2, 3] = 1
    save(tmp_path / "x.nii.gz", array)
    volume, spacing = read_axial(tmp_path / "x.nii.gz")
    assert volume.shape == (5, 4, 6)
    assert np.argwhere(volume).tolist() == [[5 - 1 - 2, 4 - 1 - 1, 3]]
    assert spacing == pytest.approx(tuple(np.linalg.norm(AFFINE[:3, [1, 0, 2]], axis=0)))
