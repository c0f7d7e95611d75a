"""The report of label maps without truth, and the handler that a bundle's inference has."""

import gc
import tracemalloc
import weakref
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest

from plugins.errors import InputError
from plugins.files import read_json, write_json
from plugins.report import InferenceReport, write_inference_report
from plugins.report.figures import CaseFigures, draw_cases

from .conftest import HOSTILE, label_map, save

PLAIN = np.diag([0.5, 0.5, 1.5, 1])


@pytest.fixture
def scans(tmp_path):
    rng, items = np.random.default_rng(0), []
    for index in range(8):
        case = HOSTILE if index == 7 else f"scan_{index}"
        label = label_map()
        if index == 5:
            label[label == 1] = 0
        image = save(tmp_path / "in" / f"{case}.nii.gz", rng.random(label.shape, dtype=np.float32), PLAIN)
        if index != 3:
            save(tmp_path / "out" / f"{case}_Label.nii.gz", label, PLAIN)
        items.append({"case": case, "image": str(image)})
    return items


def test_eight_scans_worst_first(scans, tmp_path):
    page = write_inference_report(scans, tmp_path / "out", failed={"scan_3": "scan_3: is all zero. Export it again."})
    numbers = read_json(page.with_name("report.json"))
    assert [row["case"] for row in numbers["cases"][:2]] == ["scan_3", "scan_5"]
    assert numbers["lights"] == {"red": 2, "amber": 0, "green": 6}
    assert "metrics" not in numbers
    text = page.read_text()
    assert "<h2>Pictures</h2>" in text
    assert "scan_3: is all zero. Export it again." in text
    assert "<b onmouseover" not in text
    assert len(numbers["viewer"]) == 7
    assert "Dice" not in text.split("<script")[0]


def test_no_two_pictures_are_in_memory_at_once(scans, tmp_path, monkeypatch):
    size = 4_000_000
    monkeypatch.setattr("plugins.report.figures.data_uri", lambda _: "data:," + "x" * size)
    monkeypatch.setattr("plugins.report.inference.pack_cases", lambda *_: [])
    tracemalloc.start()
    page = write_inference_report(scans, tmp_path / "out")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert page.stat().st_size > 7 * size
    assert peak < 5 * size  # the picture, the piece of the page, and its bytes


def test_nothing_of_a_figure_stays_when_its_picture_is_drawn(scans, tmp_path, monkeypatch):
    drawn = []

    def draw(cases):
        figure = draw_cases(cases)
        drawn.append(weakref.ref(figure.axes[0]))
        return figure

    monkeypatch.setattr("plugins.report.figures.draw_cases", draw)
    label = tmp_path / "out" / "scan_0_Label.nii.gz"
    figures = CaseFigures({"scan_0": {"image": scans[0]["image"], "maps": {"prediction": label}}})
    assert figures["scan_0"].startswith("data:image/webp")
    assert [axes() for axes in drawn] == [None]
    assert gc.get_freeze_count() == 0


def test_a_picture_that_fails_leaves_the_page_before(scans, tmp_path):
    page = write_inference_report(scans, tmp_path / "out")
    before = {file.name: file.read_bytes() for file in page.parent.iterdir()}
    save(tmp_path / "in" / "scan_2.nii.gz", np.ones((2, 2, 2), np.float32), PLAIN)
    with pytest.raises(InputError, match="scan_2"):
        write_inference_report(scans, tmp_path / "out")
    assert {file.name: file.read_bytes() for file in page.parent.iterdir()} == before


def test_limits_of_a_run_replace_the_general_ones(scans, tmp_path):
    general = read_json(write_inference_report(scans, tmp_path / "out").with_name("report.json"))["statistics"]
    narrow = {**general, "volume_mm3": {**general["volume_mm3"], "VS": [1000, 2000]}, "scans": 5}
    write_json(tmp_path / "score.json", {"statistics": narrow})
    page = write_inference_report(scans, tmp_path / "out", statistics=tmp_path / "score.json")
    assert read_json(page.with_name("report.json"))["lights"]["red"] == 8
    assert "5 labelled scans" in page.read_text()
    write_json(tmp_path / "score.json", {"statistics": {}})
    with pytest.raises(InputError, match="statistics"):
        write_inference_report(scans, tmp_path / "out", statistics=tmp_path / "score.json")


def test_each_scan_is_told_what_is_its_own(scans, tmp_path, capsys):
    scans.append({"case": "33", "image": str(tmp_path / "in" / "33.nii.gz")})
    refused = {"33": f"{tmp_path / 'out' / 'scan_1_33_Label.nii.gz'}: was changed. Move it away."}
    failed, remarks = {"scan_3": "the network gives scan_1. Train again."}, {"scan_2": "there is no copy of scan_1."}
    InferenceReport(SimpleNamespace(all=scans, refused=refused), tmp_path / "out").write(failed, remarks)
    rows = {row["case"]: row for row in read_json(tmp_path / "out" / "report" / "report.json")["cases"]}
    assert rows["scan_3"]["reasons"] == [failed["scan_3"]]
    assert rows["33"]["reasons"] == [refused["33"]]
    assert (rows["scan_2"]["light"], rows["scan_2"]["reasons"]) == ("amber", [remarks["scan_2"]])
    assert "volumes_mm3" in rows["scan_2"]
    assert (rows["scan_1"]["light"], rows["scan_1"]["reasons"]) == ("green", [])
    assert f"report: {tmp_path / 'out' / 'report' / 'index.html'}" in capsys.readouterr().out


def test_no_report_is_written_where_none_is_wanted(scans, tmp_path, capsys):
    listed = SimpleNamespace(all=scans, refused={})
    InferenceReport(listed, tmp_path / "out", enabled=False).write({}, {})
    assert not (tmp_path / "out" / "report").exists()
    assert capsys.readouterr().out == ""


def test_long_heads_of_pictures_do_not_run_into_each_other(tmp_path):
    image = save(tmp_path / "a.nii.gz", np.zeros(label_map().shape, dtype=np.float32), PLAIN)
    label = save(tmp_path / "l.nii.gz", label_map(), PLAIN)
    heads = [f"paper: TANQ + CycleGAN + self-training: {view}" for view in ("cyclegan", "tanq")]
    figure = draw_cases([("", image, dict.fromkeys(heads, label))])
    boxes = [axis.title.get_window_extent(figure.canvas.get_renderer()) for axis in figure.axes]
    assert [(a, b) for a, b in pairwise(boxes) if a.y0 == b.y0 and a.x1 >= b.x0] == []
