"""What a component takes is read off its signature, `**settings` that are handed on included."""

import inspect
import subprocess
import sys
import types

import pytest
from monai.engines import SupervisedTrainer

from plugins.config.signatures import argument_names, importable, locate, passes_on, signature
from plugins.engines import ContrastiveTranslationTrainer, CycleGANTrainer, TranslationTrainer
from plugins.engines.translation import UNUSED
from plugins.errors import InputError
from plugins.nnunet import NnUNetTraining

NEEDED = {
    **dict.fromkeys(("device", "max_epochs", "train_data_loader", "network", "optimizer", "discriminators")),
    **dict.fromkeys(("d_optimizer", "adversarial_loss", "loss_weights")),
}


def shout(text: str, times: int = 1, loud: bool = True): ...


@passes_on(shout, but=("loud",))
class Voice:
    def __init__(self, pitch: float, **settings):
        shout(**settings, loud=True)


class Deeper(Voice):
    def __init__(self, depth: int):
        super().__init__(pitch=1.0, text=str(depth))


def test_what_is_handed_on_belongs_to_the_signature():
    taken = signature(Voice).parameters
    assert list(taken) == ["pitch", "text", "times"]
    assert taken["times"].annotation is int
    assert argument_names(Voice) == ({"pitch", "text", "times"}, False)
    with pytest.raises(TypeError, match="tims"):
        inspect.signature(Voice).bind(1.0, text="a", tims=3)


def test_a_subclass_has_a_signature_of_its_own():
    assert list(signature(Deeper).parameters) == ["depth"]


@pytest.mark.parametrize("trainer", [ContrastiveTranslationTrainer, CycleGANTrainer])
def test_trainers_take_what_monais_take_and_their_steps_use(trainer):
    names, takes_more = argument_names(trainer)
    assert not takes_more
    assert {"amp", "train_handlers", "clip_norm", "loss_weights"} <= names
    assert not {"discriminators", *UNUSED} & names
    assert set(inspect.signature(SupervisedTrainer).parameters) - UNUSED <= names
    with pytest.raises(InputError, match=f"{trainer.__name__} has no 'accumulation_steps'"):
        TranslationTrainer.__init__(trainer.__new__(trainer), **NEEDED, accumulation_steps=2)


def test_nnunets_settings_are_arguments_of_the_training():
    assert {"max_epochs", "initial_lr", "weight_decay", "items"} <= argument_names(NnUNetTraining)[0]


def test_modules_found_for_a_check_are_forgotten_but_those_of_the_code_that_runs(tmp_path):
    with importable(tmp_path):
        for name in ("mine", "plugins.mine"):
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].__file__ = str(tmp_path / f"{name}.py")
    assert "mine" not in sys.modules
    assert sys.modules.pop("plugins.mine", None)


def test_arguments_of_base_classes_are_known_where_others_are_taken():
    names, takes_more = argument_names(locate("DataLoader"))
    assert takes_more
    assert {"batch_size", "dataset", "pin_memory"} <= names


def test_a_class_whose_package_is_not_installed_is_told_with_its_extra():
    code = (
        "import sys; sys.modules['nnunetv2'] = None; from plugins.config.signatures import locate;"
        " locate('plugins.nnunet.NnUNetTraining')"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "plugins.nnunet.NnUNetTraining needs nnunetv2, which is not installed. Install the extra" in result.stderr
    assert "pip install 'tanq-bundles[train]'" in result.stderr
