"""What a config's ``augmentation`` puts in front of nnU-Net's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform
from batchgeneratorsv2.transforms.utils.random import RandomTransform

from plugins.config.names import refuse_unknown
from plugins.config.ranges import Pair
from plugins.errors import InputError
from plugins.nnunet.appearance import TargetAppearance
from plugins.nnunet.contrast import ClusterRedraw, RandomConvolutions, RandomCurves
from plugins.nnunet.patches import share

Structure = Literal["VS", "cochlea"]
Range = Pair[float]
PROBABILITY = 0.5


class Clusters(TypedDict, total=False):
    """See :class:`plugins.nnunet.contrast.ClusterRedraw`."""

    probability: float
    number: int
    targets: Sequence[float] | None
    jitter: float


class Appearance(TypedDict, total=False):
    """See :class:`plugins.nnunet.appearance.TargetAppearance`."""

    probability: float
    levels: Mapping[Structure, Range]
    texture: Range
    cysts: float


class Curves(TypedDict, total=False):
    """See :class:`plugins.nnunet.contrast.RandomCurves`."""

    probability: float
    inverted: float
    monotone: float
    per_structure: bool


class Convolutions(TypedDict, total=False):
    """See :class:`plugins.nnunet.contrast.RandomConvolutions`."""

    probability: float
    layers: int
    channels: int
    kernel_sizes: Sequence[int]
    blend: Range


class Augmentation(TypedDict, total=False):
    """In the order in which they act; ``probability`` is that of each patch, of appearance that of each structure."""

    clusters: Clusters
    appearance: Appearance
    curves: Curves
    convolutions: Convolutions


SETTINGS: dict[str, Any] = {
    "clusters": Clusters,
    "appearance": Appearance,
    "curves": Curves,
    "convolutions": Convolutions,
}
OTHERS: dict[str, Any] = {"clusters": ClusterRedraw, "curves": RandomCurves, "convolutions": RandomConvolutions}


def make_augmentation(settings: Mapping[str, Any] | None) -> list[BasicTransform]:
    """The transforms that a config asks for, clusters first, then appearance, curves and convolutions.

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
    refuse_unknown(settings, SETTINGS, "augmentation")
    made: list[BasicTransform] = []
    for name, known in SETTINGS.items():
        if name in settings:
            given = {"probability": PROBABILITY, **settings[name]}
            refuse_unknown(given, known.__annotations__, f"augmentation::{name}")
            made.append(_appearance(given) if name == "appearance" else _other(name, given))
    return made


def _appearance(given: dict[str, Any]) -> BasicTransform:
    if not given.get("levels"):
        raise InputError('augmentation::appearance has no levels. Give some, e.g. {"VS": [0.2, 0.7]}.')
    return TargetAppearance(**given)


def _other(name: str, given: dict[str, Any]) -> BasicTransform:
    probability = share(given.pop("probability"), f"probability of {name}")
    return RandomTransform(OTHERS[name](**given), apply_probability=probability)
