"""The page of a run at work."""

import logging

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from plugins.files import write_json
from plugins.report import LivePage, facts, live

from .conftest import label_map, save

STAGES = ["dataset", "tanq_training", "tanq_translation"]


def test_it_shows_stages_progress_losses_and_translations(tmp_path):
    label = save(tmp_path / "label.nii.gz", label_map())
    scan = save(tmp_path / "scan.nii.gz", np.random.default_rng(0).random((150, 40, 12), dtype=np.float32))
    write_json(
        tmp_path / "dataset" / "source.json", {"training": [{"case": "s", "image": str(scan), "label": str(label)}]}
    )
    page = LivePage(STAGES, tmp_path, every=0)
    page.finished("dataset", 1.0)
    folder = tmp_path / "tanq_training.partial"
    state = {"done": 30, "total": 60, "seconds_left": 90, "description": "<i>", "shown": {"loss": 0.5}}
    write_json(folder / "progress.json", state)
    with SummaryWriter(str(folder)) as writer:
        for step in range(5):
            writer.add_scalar("loss", 1 / (step + 1), step)
    (tmp_path / "tanq_translation.partial").mkdir()
    (tmp_path / "tanq_translation.partial" / "s.nii.gz").write_bytes(scan.read_bytes())
    page.update(["tanq_training", "tanq_translation"])
    text = page.path.read_text()
    assert "1 of 3 stages are complete" in text
    assert "30 of 60 &lt;i&gt;, 1.5 min left" in text
    assert "loss of tanq_training: 1 at first, 0.2 in the end" in text
    assert text.count("data:image/webp") == 1
    assert "location.reload" in text


def test_a_study_at_work_shows_the_latest_translations_of_its_runs_and_none_of_earlier_settings(tmp_path):
    label = save(tmp_path / "label.nii.gz", label_map())
    scan = save(tmp_path / "scan.nii.gz", np.random.default_rng(0).random((150, 40, 12), dtype=np.float32))
    for run in ("a/seed_0", "b/seed_0"):
        item = {"case": "s", "image": str(scan), "label": str(label)}
        write_json(tmp_path / run / "dataset" / "source.json", {"training": [item]})
        for view in ("tanq", "round_1/tanq", "old"):
            (tmp_path / run / f"{view}_translation").mkdir(parents=True)
            (tmp_path / run / f"{view}_translation" / "s.nii.gz").write_bytes(scan.read_bytes())
    names = ["a/seed_0/tanq_translation", "b/seed_0/round_1/tanq_translation"]
    runs = {tmp_path / "a" / "seed_0": ["dataset"], tmp_path / "b" / "seed_0": ["dataset"]}
    page = LivePage(names, tmp_path, runs, every=0)
    for name in names:
        page.finished(name, None)
        page.update([])
        text = page.path.read_text()
    assert text.count("data:image/webp") == 2  # of two runs, and not of old_translation


def test_windows_of_earlier_settings_are_not_taken(tmp_path):
    scan = str(save(tmp_path / "s.nii.gz", label_map()))
    for folder in ("windows", "dataset"):
        write_json(tmp_path / folder / "source.json", {"training": [{"case": folder, "image": scan}]})
    cases = [facts.source_in(tmp_path, stages)[0]["case"] for stages in (["dataset"], ["windows", "dataset"], None)]
    assert cases == ["dataset", "windows", "windows"]


def test_a_run_at_work_shows_the_scans_of_its_settings(tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(live, "translation_figure", lambda scan, _: drawn.append(scan["image"]) or "picture")
    for folder in ("windows", "dataset"):
        scan = save(tmp_path / folder / "s.nii.gz", label_map())
        write_json(tmp_path / folder / "source.json", {"training": [{"case": "s", "image": str(scan)}]})
    save(tmp_path / "round_1" / "tanq_translation" / "s.nii.gz", label_map())
    for stages in (["dataset", "windows"], ["dataset"]):
        page = LivePage([*stages, "round_1/tanq_translation"], tmp_path)
        page.finished("round_1/tanq_translation", None)
        page.update([])
    assert drawn == [str(tmp_path / folder / "s.nii.gz") for folder in ("windows", "dataset")]


def test_the_curves_of_a_complete_stage_are_drawn_once(tmp_path, monkeypatch):
    drawn = []
    real = live.curve_figures
    monkeypatch.setattr(live, "curve_figures", lambda losses, number: drawn.extend(losses) or real(losses, number))
    stages = ["tanq_training", "cyclegan_training"]
    for name in stages:
        with SummaryWriter(str(tmp_path / name)) as writer:
            writer.add_scalar("loss", 1.0, 0)
    page = LivePage(stages, tmp_path, every=0)
    page.finished("tanq_training", 1.0)
    page.update(["cyclegan_training"])
    page.finished("cyclegan_training", 1.0)
    page.update([])
    page.update([])
    assert drawn == stages
    text = page.path.read_text()
    assert all(f"loss of {name}" in text for name in stages)
    assert text.count('id="curve0-0-figure_1"') == text.count('id="curve1-0-figure_1"') == 1


def test_it_is_not_written_more_often_than_asked(tmp_path):
    page = LivePage(STAGES, tmp_path, every=3600)
    page.update(["dataset"])
    page.path.unlink()
    page.update(["dataset"])
    assert not page.path.exists()
    page.update(["tanq_training"])
    assert page.path.exists()


def test_a_page_that_takes_long_is_written_less_often(tmp_path, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(live.time, "monotonic", lambda: clock[0])
    real = live.render_live

    def slow(*content):
        clock[0] += 3
        return real(*content)

    monkeypatch.setattr(live, "render_live", slow)
    page = LivePage(STAGES, tmp_path, every=20)
    page.update(["dataset"])
    page.path.unlink()
    clock[0] = 100 + 3 / live.SHARE - 1
    page.update(["dataset"])
    assert not page.path.exists()
    clock[0] += 1
    page.update(["dataset"])
    assert page.path.exists()


@pytest.mark.parametrize("told", [False, True])
def test_in_the_end_it_is_the_report(tmp_path, told):
    page = LivePage(STAGES, tmp_path, {tmp_path: STAGES} if told else None)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("all of it")
    page.update(["dataset"])
    for name in STAGES:
        page.finished(name, None)
    page.close()
    assert page.path.read_text() == "all of it"


def test_a_study_that_is_compared_is_at_work_whatever_the_report_before_says(tmp_path):
    page = LivePage(["a/dataset"], tmp_path, {tmp_path / "a": ["dataset"]})
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "index.html").write_text("of earlier methods")
    page.finished("a/dataset", None)
    page.close()
    text = page.path.read_text()
    assert "1 of 1 stages are complete" in text
    assert "<h3>comparison of the methods</h3>" in text
    assert "location.reload" in text


def test_a_run_that_stops_says_how_to_go_on(tmp_path):
    page = LivePage(STAGES, tmp_path)
    page.close()
    assert "Give the same command again to go on." in page.path.read_text()


def test_a_stage_that_was_complete_when_another_one_failed_is_shown_once(tmp_path):
    stages = ["tanq_training", "cyclegan_training"]
    with SummaryWriter(str(tmp_path / "tanq_training")) as writer:
        writer.add_scalar("loss", 1.0, 0)
    page = LivePage(stages, tmp_path)
    page.update(stages)
    page.finished("tanq_training", 1.0)
    page.close()
    text = page.path.read_text()
    assert text.count('id="curve0-0-figure_1"') == 1
    assert text.count(">tanq_training</h3>") == 1


def test_a_page_that_cannot_be_made_does_not_stop_the_run(tmp_path, caplog):
    write_json(tmp_path / "dataset" / "source.json", {"training": 1})
    with caplog.at_level(logging.WARNING):
        LivePage(STAGES, tmp_path).update(["tanq_translation"])
    assert "cannot be brought up to date" in caplog.text
