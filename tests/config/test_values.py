"""Values of a config against annotations and ranges."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pytest
from pydantic import PositiveInt
from typing_extensions import TypedDict

from plugins.config.ranges import NotEmpty, Pair, Rate
from plugins.config.signatures import locate, signature
from plugins.config.values import value_fault

Structure = Literal["VS", "cochlea"]


class Changes(TypedDict, total=False):
    stages: PositiveInt


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        ("@x", PositiveInt),
        (["$x", 2], Pair[PositiveInt]),
        ({"VS": {"_target_": "x"}}, Mapping[Structure, int]),
        ([["%x", 2]], Sequence[Sequence[str] | Sequence[int]]),
        ({"stages": "$x"}, Changes),
        ("$x", NotEmpty[str]),
        ([1, 2], tuple[int, ...]),
        ("VS", Sequence[str]),
        (1, float),
        ({"any": [1]}, object),
    ],
)
def test_what_is_computed_and_what_fits_passes(value, hint):
    assert value_fault(value, hint, "key") == ""


@pytest.mark.parametrize(
    ("value", "hint", "sentence"),
    [
        (0, PositiveInt, "key is 0. It must be more than 0."),
        (True, PositiveInt, "key is True. Give a whole number."),
        (11, Rate | None, "key is 11. It must be at most 10."),
        (0, PositiveInt | Mapping[Structure, PositiveInt], "key is 0. It must be more than 0."),
        ({"VS": 0}, PositiveInt | Mapping[Structure, PositiveInt], "key::VS is 0. It must be more than 0."),
        ({"VSS": 1}, Mapping[Structure, int], "key has no 'VSS'. Did you mean 'VS'?"),
        ([1], Pair[int] | None, "key is [1]. Give a list of 2 (a whole number each) or null."),
        ([1, 2, 3], Pair[int], "key is [1, 2, 3]. Give a list of 2 (a whole number each)."),
        (["$x", "y"], Pair[int], "key::1 is 'y'. Give a whole number."),
        ([], NotEmpty[str], "key is empty. Name at least one."),
        ([1], tuple[int, int], "key is [1]. Give a list of 2 (a whole number each)."),
        ({"stage": 1}, Changes, "key has no 'stage'. Did you mean 'stages'?"),
        ({"stages": 0}, Changes, "key::stages is 0. It must be more than 0."),
        (3, Changes, "key is 3. Give a dictionary of stages."),
        ("a", Iterable[Mapping[str, Any]], "key is 'a'. Give a list (a dictionary each)."),
    ],
)
def test_a_misfit_is_told_in_one_sentence(value, hint, sentence):
    assert value_fault(value, hint, "key") == sentence


@pytest.mark.parametrize(
    ("name", "argument", "value"),
    [
        ("torch.optim.AdamW", "lr", -1.0),
        ("DataLoader", "batch_size", 0),
        ("torch.utils.data.DataLoader", "num_workers", -1),
        ("SliceInferer", "sw_batch_size", 0),
        ("SupervisedTrainer", "max_epochs", 0),
        ("plugins.engines.CycleGANTrainer", "max_epochs", 0),
        ("ValidationHandler", "interval", 0),
        ("concurrent.futures.ThreadPoolExecutor", "max_workers", 0),
        ("plugins.networks.PatchDiscriminator", "channels", 0),
        ("plugins.runtime.start", "num_threads", 0),
    ],
)
def test_arguments_have_their_ranges(name, argument, value):
    assert "It must be" in value_fault(value, signature(locate(name)).parameters[argument].annotation, argument)


def test_ranges_change_nothing_from_python():
    assert locate("plugins.networks.RandomQueries")(0).num_queries == 0
    assert locate("plugins.segmentation.SlidingWindow")(tile_step_size=2).tile_step_size == 2


def test_a_union_of_another_order_keeps_its_own_words():
    assert value_fault([], int | str, "a") == "a is []. Give a whole number or text."
    assert value_fault([], str | int, "a") == "a is []. Give text or a whole number."
