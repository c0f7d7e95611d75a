"""A training does not go on with other data or settings, and says what differs."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from ignite.engine import Events

from plugins.engines import Resume, SaveWeights, TimeBudget, TrainingRecord, constant_then_linear
from plugins.errors import InputError
from plugins.files import read_json
from plugins.store import TRAINING, check_weights

SETTINGS = {
    "learning_rate": 0.1,
    "spacing": (0.4, 0.4, 1.5),
    "attention": "global",
    "slices_per_epoch": None,
    "loss": {"_target_": "L1Loss", "weights": {"vs": 1.0}, "scale": None},
}


@pytest.fixture
def train(trainer, tmp_path):
    """Train for an epoch in one folder; returns the engine."""
    scan = tmp_path / "a.nii.gz"
    if not scan.exists():
        scan.write_bytes(b"scan")

    def run(settings=None, resume=True, max_epochs=1, state=()):
        folder, given = tmp_path / "models", SETTINGS | (settings or {})
        engine = trainer(max_epochs=max_epochs)
        data = {"source": [{"image": str(scan)}]}
        TrainingRecord(folder / "model.pt", given, data, resume, state=state).attach(engine)
        SaveWeights(folder / "model.pt", engine.network).attach(engine)
        engine.run()
        return engine

    return run


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"learning_rate": 0.2}, r"learning_rate 0\.1, not 0\.2"),
        ({"spacing": [0.5, 0.4, 1.5]}, r"spacing \[0\.4, 0\.4, 1\.5\], not \[0\.5, 0\.4, 1\.5\]"),
        ({"attention": "local"}, "attention 'global', not 'local'"),
        ({"slices_per_epoch": 8}, "slices_per_epoch None, not 8"),
        ({"loss": SETTINGS["loss"] | {"weights": {"vs": 2.0}}}, "loss::weights::vs 1.0, not 2.0"),
        ({"loss": SETTINGS["loss"] | {"further": True}}, "loss::further None, not True"),
        ({"loss": None}, "loss {.*}, not None"),
    ],
)
def test_other_settings_are_refused_by_name(train, settings, words):
    train()
    with pytest.raises(InputError, match=f"models holds a training with {words}. Set another ckpt_dir"):
        train(settings)


def test_other_scans_are_refused_though_they_have_the_same_name(train, tmp_path):
    train()
    (tmp_path / "a.nii.gz").write_bytes(b"another scan")
    with pytest.raises(InputError, match="models holds a training with other scans"):
        train()


def test_the_same_training_and_one_that_begins_anew_pass(train, tmp_path):
    train()
    train()
    train({"loss": {"_target_": "L1Loss", "weights": {"vs": 1.0}}})
    train({"learning_rate": 0.2}, resume=False)
    assert read_json(tmp_path / "models" / TRAINING)["settings"]["learning_rate"] == 0.2


def handlers_of(config):
    """The nodes of a config's handlers, by the name of their class."""
    handlers = read_json(Path(__file__).parents[2] / "bundles" / config)["train"]["handlers"]
    return {each["_target_"].rpartition(".")[2]: each for each in handlers}


STATES = {
    "tanq_translation/configs/train.json": ("best.json", "best.pt", "best.pt.sha256", "resume_rank1.pt", "budget.json"),
    "cyclegan_translation/configs/train.json": ("best.json", "best.pt", "best.pt.sha256", "resume.pt", "budget.json"),
    "vs_cochlea_seg/configs/locator.json": ("locator_resume.pt",),
}


@pytest.mark.parametrize("config", STATES)
def test_a_training_that_begins_anew_removes_what_belongs_to_the_one_before(train, tmp_path, config):
    folder, state = tmp_path / "models", handlers_of(config)["TrainingRecord"]["state"]
    train()
    before = [file.name for file in folder.iterdir()]
    for name in (*STATES[config], "resume_of_mine.pt"):
        (folder / name).touch()
    train(state=state)
    assert all((folder / name).exists() for name in STATES[config])
    train({"learning_rate": 0.2}, resume=False, state=state)
    assert {*folder.iterdir()} == {folder / name for name in (*before, "resume_of_mine.pt")}


def test_no_weights_of_the_one_before_stay_until_a_training_that_began_anew_has_ended(train, trainer, tmp_path):
    train()
    folder = tmp_path / "models"
    engine = trainer(max_epochs=1)
    TrainingRecord(folder / "model.pt", SETTINGS | {"learning_rate": 0.2}, {}, resume=False).attach(engine)
    left = []
    engine.add_event_handler(Events.ITERATION_STARTED, lambda _: left.extend(file.name for file in folder.iterdir()))
    engine.run()
    assert "training.json" in left
    assert not {"model.pt", "model.pt.sha256"} & {*left}


def test_an_engine_that_is_run_once_more_keeps_its_own_files(train, tmp_path):
    engine = train(resume=False, state=["best.json"])
    (tmp_path / "models" / "best.json").touch()
    engine.state.max_epochs = 2
    engine.run()
    assert (tmp_path / "models" / "best.json").exists()


def test_the_run_after_one_that_began_anew_goes_on_from_no_older_network(trainer, tmp_path):
    def run(rate, resume=True):
        engine = trainer(max_epochs=2)
        TrainingRecord(tmp_path / "model.pt", {"rate": rate}, {}, resume, state=["resume.pt"]).attach(engine)
        if resume:
            Resume(tmp_path / "resume.pt", {"network": engine.network}).attach(engine)
        steps = []
        engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: steps.append(e.state.iteration))
        engine.run()
        return steps

    first = run(0.1)
    run(0.2, resume=False)
    assert run(0.2) == first == list(range(1, len(first) + 1))


@pytest.mark.parametrize("config", [name for name in STATES if name.endswith("train.json")])
def test_no_number_of_epochs_comes_from_a_training_before(trainer, tmp_path, config):
    assert [*handlers_of(config)][:2] == ["TrainingRecord", "TimeBudget"]
    (tmp_path / "budget.json").write_text('{"max_minutes": 0.0001, "max_epochs": 50}')
    engine = trainer(max_epochs=4)
    TrainingRecord(tmp_path / "model.pt", {}, {}, resume=False, state=["budget.json"]).attach(engine)
    TimeBudget(0.0001, tmp_path / "budget.json", []).attach(engine)
    engine.run()
    assert engine.state.epoch == 2


def test_weights_are_used_as_they_were_trained(train, tmp_path):
    train()
    weights = tmp_path / "models" / "model.pt"
    check_weights(weights, {"spacing": [0.4, 0.4, 1.5], "of inference alone": 1})
    with pytest.raises(InputError, match=r"model\.pt: was trained with spacing .*. Give the settings of the training"):
        check_weights(weights, {"spacing": [0.4, 0.4, 1.6]})
    torch.save({}, weights)
    with pytest.raises(InputError, match=r"model\.pt is damaged: its SHA-256 is not that in model\.pt\.sha256"):
        check_weights(weights, {})


@pytest.mark.parametrize("content", ["", "[]", '{"settings": 1}'])
def test_a_torn_record_is_named(train, tmp_path, content):
    train()
    (tmp_path / "models" / TRAINING).write_text(content)
    with pytest.raises(InputError, match=r"training\.json is damaged \(.*\)\. Set another ckpt_dir"):
        train()


def test_a_second_training_in_the_same_folder_is_refused(train, tmp_path):
    train()
    code = "import sys; from plugins.locks import hold; hold(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "models")], capture_output=True, text=True)
    assert "another run is at work there" in done.stderr


def test_a_longer_training_goes_on_at_the_rate_of_its_own_schedule(trainer, tmp_path):
    rates = []
    for epochs in (2, 4):
        engine = trainer(max_epochs=epochs)
        schedule = constant_then_linear(engine.optimizer, epochs)
        engine.add_event_handler(Events.EPOCH_STARTED, lambda e: rates.append(e.optimizer.param_groups[0]["lr"]))
        engine.add_event_handler(Events.EPOCH_COMPLETED, lambda _, schedule=schedule: schedule.step())
        Resume(tmp_path / "resume.pt", {"optimizer": engine.optimizer, "schedule": schedule}).attach(engine)
        engine.run()
    whole = constant_then_linear(torch.optim.SGD([torch.zeros(1)], lr=2e-4), 4)
    assert rates[2:] == [whole.base_lrs[0] * whole.lr_lambdas[0](epoch) for epoch in (2, 3)]
    assert min(rates[2:]) > 0
