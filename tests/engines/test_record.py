"""A training does not go on with other data or settings, and says what differs."""

import subprocess
import sys

import pytest
import torch
from ignite.engine import Events

from plugins.engines import Resume, SaveWeights, TrainingRecord, constant_then_linear
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

    def run(settings=None, resume=True, max_epochs=1):
        folder = tmp_path / "models"
        engine = trainer(max_epochs=max_epochs)
        record = TrainingRecord(
            folder / "model.pt", SETTINGS | (settings or {}), {"source": [{"image": str(scan)}]}, resume
        )
        record.attach(engine)
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
