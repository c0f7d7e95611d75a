"""What a config's ``augmentation`` puts in front of nnU-Net's own."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, TypedDict

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform
from pydantic import Field, FiniteFloat, NonNegativeFloat, PositiveInt

from plugins.config.names import nodes
from plugins.config.ranges import NotEmpty, Pair, Share
from plugins.config.values import value_fault
from plugins.errors import InputError
from plugins.nnunet.appearance import TargetAppearance
from plugins.nnunet.brightness import TargetBrightness
from plugins.nnunet.contrast import ClusterRedraw, RandomConvolutions, RandomCurves

Structure = Literal["VS", "cochlea"]
Range = Pair[Share]
PROBABILITY = 0.5
OF_STRUCTURES = {"appearance": ("levels", '{"VS": [0.2, 0.7]}'), "brightness": ("factors", '{"VS": [0.5, 0.5]}')}
"""What draws for each structure: the setting that names the structures, and an example of it."""
IN_ORDER = ("levels::VS", "levels::cochlea", "factors::VS", "factors::cochlea", "::texture", "::blend")


class Clusters(TypedDict, total=False):
    """See :class:`plugins.nnunet.contrast.ClusterRedraw`."""

    probability: Share
    number: Annotated[int, Field(ge=2)]
    targets: NotEmpty[FiniteFloat] | None
    jitter: NonNegativeFloat


class Appearance(TypedDict, total=False):
    """See :class:`plugins.nnunet.appearance.TargetAppearance`."""

    probability: Share
    levels: Mapping[Structure, Range]
    texture: Range
    cysts: Share


class Brightness(TypedDict, total=False):
    """See :class:`plugins.nnunet.brightness.TargetBrightness`."""

    probability: Share
    factors: Mapping[Structure, Pair[NonNegativeFloat]]
    stretch: Annotated[float, Field(ge=0, lt=0.5)]


class Curves(TypedDict, total=False):
    """See :class:`plugins.nnunet.contrast.RandomCurves`."""

    probability: Share
    inverted: Share
    monotone: Share
    per_structure: bool


class Convolutions(TypedDict, total=False):
    """See :class:`plugins.nnunet.contrast.RandomConvolutions`."""

    probability: Share
    layers: PositiveInt
    channels: PositiveInt
    kernel_sizes: NotEmpty[PositiveInt]
    blend: Range


class Augmentation(TypedDict, total=False):
    """In the order in which they act; ``probability`` is that of each patch, of appearance and brightness that of each
    structure.
    """

    clusters: Clusters
    appearance: Appearance
    brightness: Brightness
    curves: Curves
    convolutions: Convolutions


TRANSFORMS: dict[str, Any] = {
    "clusters": ClusterRedraw,
    "appearance": TargetAppearance,
    "brightness": TargetBrightness,
    "curves": RandomCurves,
    "convolutions": RandomConvolutions,
}


def make_augmentation(settings: Mapping[str, Any] | None) -> list[BasicTransform]:
    """The transforms that a config asks for, clusters first, then appearance, brightness, curves and convolutions.

    Args:
        settings: see :class:`Augmentation`; ``None`` asks for none.

    Raises:
        InputError: for an unknown name or a setting out of range.

    Example:
        >>> [curves] = make_augmentation({"curves": {"probability": 0.8, "per_structure": True}})
        >>> curves.apply_probability
        0.8
    """
    settings = settings or {}
    _check(settings)
    made: list[BasicTransform] = []
    for name, transform in TRANSFORMS.items():
        given = {"probability": PROBABILITY, **settings.get(name, {})}
        if name in OF_STRUCTURES and name in settings:
            made.append(transform(**given))
        elif name in settings:
            probability = given.pop("probability")
            made.append(RandomTransform(transform(**given), apply_probability=probability))
    return made


def _check(settings: Mapping[str, Any]) -> None:
    """What :class:`Augmentation` asks of the settings, and what no annotation can ask."""
    fault = value_fault(settings, Augmentation, "augmentation")
    if fault:
        raise InputError(fault)
    for name, (needed, example) in OF_STRUCTURES.items():
        if name in settings and not settings[name].get(needed):
            raise InputError(f"augmentation::{name} has no {needed}. Give some, e.g. {example}.")
    for place, value in nodes(settings, "augmentation"):
        if place.endswith(IN_ORDER) and value[0] > value[1]:
            raise InputError(f"{place} is {[*value]}. Give two numbers in order, the smaller one first.")
        if place.endswith("::kernel_sizes") and not all(size % 2 for size in value):
            raise InputError(f"{place} is {[*value]}. Give odd numbers.")
