"""Positions of the contrastive loss by a small generator: where they lie, their share, and Fig. 4 and 5."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from plugins.files import read_json, write_json
from plugins.networks import ResnetGenerator
from plugins.report import paper, write_report, write_study_report
from plugins.report.positions import Chosen, attended, chosen_positions, numbers_of, run_positions, shares_table
from plugins.state import write_weights

from .conftest import label_map, save

NETWORK = {"channels": 4, "num_res_blocks": 1, "feature_blocks": [0], "encoder_norm": "instance", "seg_classes": 0}
RANDOM = {"_target_": "plugins.networks.RandomQueries", "num_queries": 50}
PADDING = 3.5  # of the first layer, which is the image with a reflected border of 3 pixels
ATTENTION = {"_target_": "plugins.networks.AttentionQueries", "num_queries": 40}
PREPARE = {
    "_target_": "plugins.data.translation_transforms",
    "spacing": [1.0, 1.0, 1.5],
    "crop_size": [80, 32],
    "patch_size": [80, 32],
    "percentiles": [0, 100],
    "divisor": 4,
}


def trained(run, view, last, scan):
    """What a translator's training leaves, and its translation; the last of its four layers chooses by ``last``."""
    settings = {
        "network_def": {"_target_": "plugins.networks.ResnetGenerator", **NETWORK},
        "selections": [RANDOM, RANDOM, RANDOM, last],
        "train": {"preprocessing": PREPARE},
    }
    folder = run / f"{view}_training"
    torch.manual_seed(0)
    write_json(folder / "models" / "training.json", {"settings": settings})
    write_json(folder / "stage.json", {"fingerprint": f"of {last['_target_']}"})
    write_weights(ResnetGenerator(**NETWORK).state_dict(), folder / "models" / "model.pt")
    write_json(run / f"{view}_translation" / "list.json", {"training": [scan]})
    write_json(run / f"{view}_translation" / "overrides.json", {"datalist": str(run / f"{view}_translation/list.json")})
    shutil.copyfile(scan["image"], run / f"{view}_translation" / "s.nii.gz")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    root = tmp_path_factory.mktemp("translators")
    affine = np.diag([0.5, 0.5, 1.5, 1])
    image = np.random.default_rng(0).random((150, 40, 12), dtype=np.float32)
    files = {"image": save(root / "s.nii.gz", image, affine), "label": save(root / "l.nii.gz", label_map(), affine)}
    scan = {"case": "s", **{name: str(file) for name, file in files.items()}}
    found = {"CUT": (root / "cut", RANDOM), "QS-Attn": (root / "qs", ATTENTION), "again": (root / "again", ATTENTION)}
    for run, last in found.values():
        trained(run, "tanq", last, scan)
    return {name: run for name, (run, _) in found.items()}, scan


def test_positions_lie_in_the_slice_and_are_the_same_every_time(runs):
    folders, scan = runs
    first, again = (chosen_positions(folders["QS-Attn"], "tanq", [scan])[0] for _ in range(2))
    assert {title: len(places) for title, places in first.layers.items()} == {
        "layer 1, random": 50,
        "layer 2, random": 50,
        "layer 3, random": 50,
        "layer 4, attention": 40,
    }
    for title, places in first.layers.items():
        np.testing.assert_array_equal(places, again.layers[title])
        assert (places > -PADDING).all()
        assert (places < np.asarray(first.image.shape) - 1 + PADDING).all()
    assert set(attended(first.layers)) == {"layer 4, attention"}
    assert set(np.unique(first.label)) == {0, 1, 2}


def test_shares_count_what_lies_on_a_structure():
    label = np.zeros((10, 10))
    label[2:4, 2:4] = 1
    label[7, 7] = 2
    places = np.array([[2.2, 3.4], [7, 7], [7.4, 6.6], [0, 0]])
    shares = Chosen("s", 1, label, label, {"layer 1, random": places}).shares()
    assert shares == {"all pixels": {"vs": 0.04, "cochlea": 0.01}, "layer 1, random": {"vs": 0.25, "cochlea": 0.5}}


def test_a_run_shows_numbers_and_a_picture_for_each_translator(runs):
    folders, scan = runs
    numbers, pictures = run_positions(folders["CUT"], [scan])
    assert [(each["view"], each["case"]) for each in pictures] == [("tanq", "s")]
    assert numbers[0]["shares"]["all pixels"]["vs"] > 0
    shares = shares_table(numbers)
    assert len(shares["rows"]) == 5
    assert shares["caption"].endswith("(n = 1).")
    assert shares_table([*numbers, {**numbers[0], "scans": 4}])["caption"].endswith("(n = 1 or 4).")
    assert len(numbers[0]["layers"]["layer 4, random"]) == 50


@pytest.fixture
def interacting(runs, tmp_path):
    """A run whose TANQ was trained on in its round, where it chooses by attention."""
    scan = runs[1]
    trained(tmp_path, "tanq", RANDOM, scan)
    trained(tmp_path / "round_1", "tanq", ATTENTION, scan)
    write_json(tmp_path / "dataset" / "source.json", {"training": [scan]})
    write_json(tmp_path / "windows" / "source.json", {"training": [{**scan, "case": "of earlier settings"}]})
    return tmp_path


def test_a_report_and_a_study_show_the_translations_that_the_run_hands_on(runs, interacting, monkeypatch):
    scan, last = runs[1], interacting / "round_1" / "tanq_translation"
    shutil.copyfile(scan["label"], interacting / "s_Label.nii.gz")
    write_report(
        validation=[scan],
        pred_dirs={"round_0": interacting},
        metrics_files={},
        output_dir=interacting / "report",
        source=[scan],
        translations={"tanq": last},
        run_dir=interacting,
        stages=["tanq_training", "tanq_translation", "round_1/tanq_training", "round_1/tanq_translation"],
    )
    numbers = read_json(interacting / "report" / "report.json")
    assert numbers["translations"] == {"tanq": "round_1/tanq_translation"}
    assert "layer 4, attention" in numbers["positions"][0]["layers"]

    drawn, real = [], paper.draw_translations
    monkeypatch.setattr(paper, "draw_translations", lambda cases: drawn.append(cases) or real(cases))
    write_study_report({"a": {0: interacting}}, interacting / "study")
    assert [volumes for cases in drawn for _, volumes in cases] == [{"a": last / "s.nii.gz"}] * 2  # figure and page
    assert "layer 4, attention" in read_json(interacting / "study" / "report" / "report.json")["positions"][0]["layers"]


def test_calibrated_translations_are_those_of_the_training_beside_them(interacting):
    (found,) = paper.translators_in({"a": interacting}, given={"a": {"tanq": "tanq_calibrated"}})
    assert found.volume({"case": "s"}) == interacting / "tanq_calibrated" / "s.nii.gz"
    assert found.training == interacting / "tanq_training"
    for given in (None, {"a": {}}, {"a": {"tanq": "/elsewhere/tanq"}}):
        (found,) = paper.translators_in({"a": interacting}, given=given)
        assert found.volume({"case": "s"}) == interacting / "tanq_translation" / "s.nii.gz"


def test_a_study_draws_each_translator_once_and_the_same_layer_of_all(runs, tmp_path):
    folders, scan = runs
    translators = paper.translators_in(folders)
    assert [each.title for each in translators] == ["CUT", "QS-Attn"]
    assert translators[0].numbers()["encoder_norm"] == "instance"
    found = paper.positions_of(translators, [scan])
    assert [numbers for _, numbers, _ in found] == [numbers_of([chosen]) for _, _, chosen in found]
    figures = {"fig4": paper.translations(translators, [scan]), "fig5": paper.positions(found)}
    heads = [[axis.get_title() for axis in figure.axes if axis.get_title()] for figure in figures.values()]
    assert heads[0] == ["ceT1", "CUT", "QS-Attn"]
    assert [head.split(":")[0] for head in heads[1]] == ["slice", "layer 4, random", "slice", "layer 4, attention"]
    paper.write_figures(figures, tmp_path)
    for name in figures:
        with Image.open(tmp_path / f"{name}.png") as picture:
            assert picture.format == "PNG"
    paper.write_figures({"fig5": None}, tmp_path)
    assert not (tmp_path / "fig5.png").exists()
