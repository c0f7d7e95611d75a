"""Methods and seeds on a small phantom: stages in common once, a table of all, faults before anything begins."""

import csv
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser

from plugins.errors import InputError
from plugins.evaluation.cases import read_cases
from plugins.files import read_json, write_json
from plugins.workflow import Study, UdaWorkflow, gate
from plugins.workflow.segment import final_model

from .test_driver import bundles, dataset, work  # noqa: F401

METHODS = {
    "TANQ alone": {"views": ["tanq"]},
    "TANQ + CycleGAN": {"views": ["tanq", "cyclegan"]},
    "TANQ again": {"configs": ["rounds.json"], "views": ["tanq"]},
}
CONFIGS = Path(__file__).parents[2] / "bundles" / "vs_cochlea_uda" / "configs"


@pytest.fixture
def study(bundles, dataset, tmp_path):  # noqa: F811
    root = tmp_path / "uda"
    write_json(root / "configs" / "rounds.json", {"rounds": 1, "gate": {}, "run_suffix": "_x", "+overlays": []})

    def make(methods, **settings):
        driver = partial(
            UdaWorkflow,
            bundle_root=root,
            bundles_dir=bundles,
            executor=None,
            output_dir=None,
            dataset_dir=dataset,
            rounds=0,
            overlays=["cpu.json"],
        )
        return Study(driver, methods, ThreadPoolExecutor(2), tmp_path / "study", root, **settings)

    return make


def test_a_seed_that_stands_twice_is_refused(study):
    with pytest.raises(InputError, match=r"seeds is \[0, 1, 0\]. Name each seed once"):
        study(METHODS, seeds=[0, 1, 0]).arms()


def test_the_seed_of_a_study_is_the_first_of_its_seeds():
    config = ConfigParser.load_config_file(CONFIGS / "study.json")
    assert ConfigParser(config).get_parsed_content("seeds") == [0, 1]
    assert ConfigParser({**config, "seed": 7}).get_parsed_content("seeds") == [7, 8]


def names(work):  # noqa: F811
    return sorted(name for name, _ in work)


def test_common_stages_are_made_once_for_each_seed_and_the_table_has_each_seed(study, work, tmp_path):  # noqa: F811
    study(METHODS).run()
    trained = names(work)
    assert trained.count("tanq_training") == 2  # one for each seed, not for each method
    assert trained.count("cyclegan_training") == 2
    assert trained.count("round_0/segmentation") == 4
    assert trained.count("round_1/segmentation") == 2
    folder = tmp_path / "study"
    for method in ("tanq_alone", "tanq_cyclegan", "tanq_again"):
        for seed in (0, 1):
            assert (folder / method / f"seed_{seed}" / "round_0" / "evaluation" / "metrics.json").is_file()
    seeds = {settings["seed"] for name, settings in work if name == "tanq_training"}
    assert seeds == {0, 1}

    table = read_cases(folder / "results" / "methods.csv").methods
    assert list(table) == ["TANQ alone", "TANQ + CycleGAN", "TANQ again + self-training"]  # one model, one row
    files = [folder / "tanq_alone" / f"seed_{seed}" / "round_0" / "evaluation" / "metrics.json" for seed in (0, 1)]
    per_seed = [read_json(file) for file in files]
    for case, structures in table["TANQ alone"].items():
        for structure, row in structures.items():
            for measure in ("dice", "assd_mm"):
                both = [each["cases"][case][structure][measure] for each in per_seed]
                assert row[measure] == pytest.approx(np.mean(both))
    with open(folder / "results" / "seeds.csv", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["method"] == "TANQ alone" and row["structure"] == "vs"]
    assert [row["seed"] for row in rows] == ["0", "1"]
    assert [float(row["dice"]) for row in rows] == [each["mean"]["vs"]["dice"] for each in per_seed]
    comparison = read_json(folder / "results" / "comparison.json")
    assert {row["method"] for row in comparison["ranks"]} == set(table)
    assert (folder / "results" / "table.tex").is_file()
    report = read_json(folder / "report" / "report.json")
    assert report["comparison"]["ranks"] == comparison["ranks"]
    assert [row["seed"] for row in report["seeds"] if row["method"] == "TANQ alone"] == [0, 0, 1, 1]
    assert (folder / "report.html").read_text() == (folder / "report" / "index.html").read_text()
    assert (folder / "results" / "fig3.png").is_file()

    assert report["methods"] == ["TANQ alone", "TANQ + CycleGAN", "TANQ again + self-training"]
    with open(folder / "results" / "methods.csv", newline="") as file:
        raw = [row for row in csv.DictReader(file) if row["method"] == "TANQ alone" and row["structure"] == "vs"]
    scored = [(str(seed), case, row["vs"]["dice"]) for seed in (0, 1) for case, row in per_seed[seed]["cases"].items()]
    assert [(row["seed"], row["case"], float(row["dice"])) for row in raw] == scored

    with open(folder / "results" / "audit.csv", newline="") as file:
        rows = [*csv.DictReader(file)]
    assert [(row["method"], row["seed"], row["round"]) for row in rows] == [
        ("TANQ again", seed, "round_1") for seed in "01"
    ]
    for row in rows:
        audit = read_json(folder / "tanq_again" / f"seed_{row['seed']}" / "round_1" / "audit" / "audit.json")
        assert row["kept_scans"] == str(audit["scans"]["kept"]["scans"])
        assert float(row["kept_scans_dice"]) == audit["scans"]["kept"]["dice"]

    work.clear()
    study(METHODS).run()
    assert work == []

    study({title: METHODS[title] for title in ("TANQ alone", "TANQ + CycleGAN")}).run()
    assert not (folder / "results" / "audit.csv").exists()  # of rounds that the study no longer has


@pytest.mark.parametrize(
    ("methods", "words"),
    [
        ({}, "methods is empty"),
        ({"a": {"viws": ["tanq"]}}, "methods::a has no 'viws'. Did you mean 'views'"),
        ({"a": {"seed": 3}}, "methods::a has no 'seed'"),
        ({"a b": {}, "A-b": {}}, "'a b', 'A-b' give no folder of their own"),
        ({"a": {"views": ["tanc"]}}, "views has no 'tanc'. Did you mean 'tanq'"),
        ({"a": None, "b": {}}, "methods::a is None. Give a mapping of settings, or {} for those shared."),
        ({"a": {"configs": "round.json"}}, "has no 'round.json'. Did you mean 'rounds.json'"),
        ({"a": {"configs": ["round.json"]}}, "has no 'round.json'. Did you mean 'rounds.json'"),
        ({"a": {"views": ["tanq"]}}, "methods gives one row, a. Name two or more methods"),
        (
            {"a": {"rounds": 1}, "a + self-training": {"rounds": 0}},
            "methods: 'a + self-training' is a row of 'a' too. Rename 'a + self-training'.",
        ),
    ],
)
def test_a_fault_of_a_method_is_told_before_anything_begins(study, work, tmp_path, methods, words):  # noqa: F811
    with pytest.raises(InputError) as caught:
        study(methods).run()
    assert words in str(caught.value)
    assert work == []
    assert not (tmp_path / "study").exists()


def test_audits_of_earlier_settings_are_in_no_table(study, work, dataset, tmp_path):  # noqa: F811
    methods = {"TANQ again": METHODS["TANQ again"]}
    study(methods, seeds=(0,)).run()
    results = tmp_path / "study" / "results"
    assert (results / "audit.csv").is_file()

    label = next((dataset / "heldout").rglob("training_target_labels/*_Label.nii.gz"))
    (tmp_path / "truth").mkdir()
    shutil.copyfile(label, tmp_path / "truth" / label.name)  # of one scan, too few for audits
    fewer = study(methods, seeds=(0,))
    fewer.driver = partial(fewer.driver, target_truth_dir=tmp_path / "truth")
    fewer.run()
    assert (tmp_path / "study" / "tanq_again" / "seed_0" / "round_1" / "audit" / "audit.json").is_file()
    assert not (results / "audit.csv").exists()
    assert read_json(tmp_path / "study" / "report" / "report.json")["audit_tables"] == []


def test_rows_are_tested_against_the_reference_before_and_after_self_training(study, work, tmp_path):  # noqa: F811
    methods = {
        "plain": {"views": ["tanq"]},
        "both": {"views": ["tanq", "cyclegan"], "rounds": 1},
        "ours": {"views": ["tanq"], "rounds": 1, "gate": {}},
    }
    study(methods, reference="ours").run()
    pairs = read_json(tmp_path / "study" / "results" / "comparison.json")["pairs"]
    tested = {(pair["method"], pair["against"]) for pair in pairs}
    assert tested == {("ours", "both"), ("ours + self-training", "both + self-training")}
    with pytest.raises(InputError, match=r"reference has no 'our'\. Did you mean 'ours'"):
        study(methods, reference="our").run()


def test_a_refused_round_keeps_the_row_of_what_is_handed_over(study, work, tmp_path, monkeypatch):  # noqa: F811
    refused = {"accepted": False, "model": "round_0", "sentence": "refused"}
    real = gate.accept_round

    def refuse(before, after, output_dir, **settings):
        content = {**real(before, after, output_dir, **settings), **refused}
        write_json(Path(output_dir, gate.ACCEPTED), content)
        return content

    monkeypatch.setattr(gate, "accept_round", refuse)
    methods = {"ours": {"views": ["tanq"], "rounds": 1, "gate": {}}}
    study(methods, reference="ours", seeds=(3,)).run()
    run, results = tmp_path / "study" / "ours" / "seed_3", tmp_path / "study" / "results"
    assert final_model(run) == run / "round_0" / "segmentation" / "models"
    rows = read_cases(results / "methods.csv").methods
    assert rows["ours"] == rows["ours + self-training"]
    pairs = read_json(results / "comparison.json")["pairs"]
    assert {(pair["method"], pair["against"]) for pair in pairs} == {("ours", "ours + self-training")}


def test_settings_of_a_method_are_added_to_those_of_the_study(study):
    made = study({"a": {"settings": {"tanq_translation": {"lr": 1e-3}}}, "b": {}})
    made.driver = partial(made.driver, settings={"tanq_translation": {"lr": 1e-4, "max_epochs": 3}})
    given = {arm.method: arm.driver.settings for arm in made.arms()}
    assert given["a"] == {"tanq_translation": {"lr": 1e-3, "max_epochs": 3}}
    assert given["b"] == {"tanq_translation": {"lr": 1e-4, "max_epochs": 3}}


def test_overlays_that_a_method_adds_are_added_once(study):
    made = study({"a": {"overlays": ["cpu.json"], "+overlays": ["cut.json"]}})
    for _ in range(2):
        assert {tuple(arm.driver.overlays) for arm in made.arms()} == {("cpu.json", "cut.json")}


@pytest.mark.parametrize(
    ("overlays", "training", "method", "other", "overlay"),
    [
        ([], "tanq_training", "TANQ without RAIN", "TANQ + CycleGAN", "without_rain.json"),
        (
            ["study_beyond.json"],
            "cyclegan_training",
            "and CycleGAN with SegDecoder",
            "and CycleGAN",
            "seg_decoder.json",
        ),
    ],
)
def test_the_configs_of_the_study_plan_every_method_of_the_bundle(
    dataset,  # noqa: F811
    tmp_path,
    overlays,
    training,
    method,
    other,
    overlay,
):
    configs = Path(__file__).parents[2] / "bundles" / "vs_cochlea_uda" / "configs"
    parser = ConfigParser()
    parser.read_config([str(configs / name) for name in ("study.json", "cpu.json", *overlays)])
    parser.update({"bundle_root": str(configs.parent), "dataset_dir": str(dataset), "output_dir": str(tmp_path)})
    named = set(ConfigParser.load_config_file(configs / (overlays or ["study.json"])[-1])["methods"])
    arms = parser.get_parsed_content("all_methods").arms()
    assert {(arm.method, arm.seed) for arm in arms} == {(name, seed) for name in named for seed in (0, 1)}
    stages = {arm.method: arm.driver.checked()[1] for arm in arms if arm.seed == 0}
    files = {name: stage.config_files for name in stages for stage in stages[name] if stage.name == training}
    assert overlay in files[method]
    assert overlay not in files[other]


def test_a_study_without_methods_is_refused_by_its_command():
    configs = Path(__file__).parents[2] / "bundles" / "vs_cochlea_uda" / "configs"
    command = [sys.executable, "-m", "monai.bundle", "run", "study", "--config_file", str(configs / "study.json")]
    done = subprocess.run([*command, "--methods", "{}"], capture_output=True, text=True, cwd=configs.parent)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: study.json: methods is empty. Name at least one method."
