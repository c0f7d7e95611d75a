"""A training ends at its first value that is not finite, and what was good stays."""

import math

import pytest
import torch
from ignite.engine import Events

from plugins.engines import Resume, SaveWeights
from plugins.errors import InputError
from plugins.finite import is_finite, refuse_broken_weights, refuse_diverged

BAD = [math.nan, math.inf, -math.inf]


def fault_of(run):
    """The sentence that ends a training."""
    with pytest.raises(InputError) as caught:
        run()
    return str(caught.value)


@pytest.mark.parametrize("value", [*BAD, torch.tensor([1.0, math.nan]), torch.tensor([math.inf, -math.inf])])
def test_nan_and_infinity_are_found(value):
    assert not is_finite(value)


@pytest.mark.parametrize(
    "value", [0.0, 1e30, torch.arange(4), torch.full((9,), 3e38), torch.zeros(0), torch.tensor([True])]
)
def test_large_whole_and_empty_values_are_finite(value):
    assert is_finite(value)


@pytest.mark.parametrize("value", BAD)
def test_the_sentence_names_step_and_loss(value):
    terms = {"cycle": torch.tensor(1.0), "identity": torch.tensor(value)}
    with pytest.raises(InputError, match=r"^identity is -?(nan|inf) at step 7, so .*Lower the learning rate"):
        refuse_diverged(sum(terms.values()), terms, "step 7")


def test_terms_that_are_finite_apart_and_not_together_stop_it_too():
    with pytest.raises(InputError, match=r"^loss is inf"):
        refuse_diverged(math.inf, {"a": 1.0}, "step 1")


@pytest.mark.parametrize("state", [{"a": {"b": [torch.tensor([1.0, math.nan])]}}, {"a": torch.tensor(math.inf)}])
def test_broken_weights_are_found_however_deep(state):
    with pytest.raises(InputError, match=r"^model: a.* holds values that are not finite\. Train again"):
        refuse_broken_weights(state, "model")


@pytest.mark.parametrize("bad", BAD)
def test_training_stops_before_weights_follow_a_loss_that_is_not_finite(trainer, tmp_path, bad):
    engine = trainer(tmp_path, max_epochs=4)
    terms = engine._generator_losses

    def poisoned(batch, made):
        losses = terms(batch, made)
        return losses if engine.state.iteration < 6 else losses | {next(iter(losses)): torch.tensor(bad)}

    engine._generator_losses = poisoned
    before = {}
    engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=5),  # of 4 in an epoch
        lambda: before.update({name: value.clone() for name, value in engine.network.state_dict().items()}),
    )
    sentence = fault_of(engine.run)
    assert "at step 6" in sentence
    assert sentence.startswith("adversarial")
    assert all(torch.equal(value, before[name]) for name, value in engine.network.state_dict().items())
    assert torch.load(tmp_path / "resume.pt", weights_only=True)["epoch"] == 1


def test_training_stops_at_a_discriminators_loss_that_is_not_finite(trainer):
    engine = trainer()
    engine._discriminator_losses = lambda batch, made: {"discriminator": torch.tensor(math.nan, requires_grad=True)}
    assert fault_of(engine.run).startswith("discriminator is nan at step 1")


def test_weights_that_are_not_finite_are_never_kept(trainer, tmp_path):
    engine = trainer(max_epochs=2)
    path, weights = tmp_path / "resume.pt", tmp_path / "model.pt"
    Resume(path, {"network": engine.network}).attach(engine)
    SaveWeights(weights, engine.network).attach(engine)
    poison = next(engine.network.parameters())
    engine.add_event_handler(
        Events.ITERATION_COMPLETED(once=8), lambda: poison.data.fill_(math.nan)
    )  # after the last step
    assert "holds values that are not finite" in fault_of(engine.run)
    assert torch.load(path, weights_only=True)["epoch"] == 1
    assert not weights.exists()
