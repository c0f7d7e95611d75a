"""What prediction needs to know of a trained model, beside its weights."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from plugins.errors import InputError
from plugins.files import write_json
from plugins.state import read_state

LABELS = {"background": 0, "VS": 1, "cochlea": 2}
DESCRIPTION, WEIGHTS = "model.json", "model.pt"


@dataclass(frozen=True)
class EnsembleMember:
    """One configuration of nnU-Net.

    Attributes:
        spacing: mm along the axes of the network; ``None`` leaves the scan's own.
        patch_size: of its network, two or three numbers.
        mirror_axes: axes of a patch along which it was trained with mirroring.
        architecture: ``PlainConvUNet`` or ``ResidualEncoderUNet``.
        arguments: of the architecture, plain numbers.
    """

    spacing: Sequence[float | None]
    patch_size: Sequence[int]
    mirror_axes: Sequence[int]
    architecture: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class SegmentationModel:
    """The members of an ensemble and how they work together.

    Attributes:
        members: name to configuration.
        folds: numbers of the folds that each member has a network of.
        members_of: structure to the members whose probabilities decide on it.
        axes: the axes R, A, S of a scan, in the order of the networks' axes.
        nonzero: z-score within the non-zero part of a scan only.
        keep_largest_component_of: labels that lose all but their largest component together, step by step.
        anatomy: settings of :class:`plugins.segmentation.PlausibleComponentsd`, by which one VS and two cochleae are
            kept; ``None`` keeps all.
        results: Dice in cross-validation, for the record.
    """

    members: Mapping[str, EnsembleMember]
    folds: Sequence[int]
    members_of: Mapping[str, Sequence[str]]
    axes: Sequence[int] = (2, 1, 0)
    nonzero: bool = False
    keep_largest_component_of: Sequence[Sequence[int]] = ()
    anatomy: Mapping[str, Any] | None = None
    results: Mapping[str, Any] = field(default_factory=dict)

    def write(self, model_dir: str | os.PathLike[str]) -> None:
        """Write ``model.json``."""
        write_json(Path(model_dir) / DESCRIPTION, asdict(self))


def _stages(dims: int, features: Sequence[int], kernels: Sequence[Any], strides: Sequence[Any]) -> dict[str, Any]:
    stages = len(features)
    return {
        "n_stages": stages,
        "features_per_stage": list(features),
        "kernel_sizes": list(kernels),
        "strides": list(strides),
        "n_conv_per_stage": [2] * stages,
        "n_conv_per_stage_decoder": [2] * (stages - 1),
    }


NOMINAL = SegmentationModel(
    members={
        "2d": EnsembleMember(
            (None, 0.41, 0.41),
            (192, 256),
            (0, 1),
            "PlainConvUNet",
            _stages(2, (32, 64, 128, 256, 512, 512), [[3, 3]] * 6, [[1, 1], *[[2, 2]] * 5]),
        ),
        "3d_fullres": EnsembleMember(
            (1.5, 0.41, 0.41),
            (40, 192, 256),
            (0, 1, 2),
            "PlainConvUNet",
            _stages(
                3,
                (32, 64, 128, 256, 320, 320),
                [[1, 3, 3], *[[3, 3, 3]] * 5],
                [[1, 1, 1], [1, 2, 2], *[[2, 2, 2]] * 3, [1, 2, 2]],
            ),
        ),
    },
    folds=(0,),
    members_of={"VS": ("2d", "3d_fullres"), "cochlea": ("2d", "3d_fullres")},
)
"""nnU-Net's plan for windows of 256 x 170 x 40 voxels of 0.41 x 0.41 x 1.5 mm: networks of this size, untrained."""


def read_model(model_dir: str | os.PathLike[str], folds: Sequence[int] | int | None = None) -> SegmentationModel:
    """The description that a training left in ``model_dir``, or :data:`NOMINAL` where there is none yet.

    Args:
        model_dir: holds ``model.json`` beside the weights.
        folds: of its folds, those to use; ``None`` uses all.

    Raises:
        InputError: if the file is no such description, or if it lacks a fold.
    """
    file = Path(model_dir) / DESCRIPTION
    folds = [folds] if isinstance(folds, int) else folds
    if not file.is_file():
        return NOMINAL if folds is None else replace(NOMINAL, folds=list(folds))
    content = read_state(file, dict[str, Any], "Give the model_dir of a training")
    try:
        members = {name: EnsembleMember(**member) for name, member in content.pop("members").items()}
        model = SegmentationModel(members=members, **content)
        used = [name for names in model.members_of.values() for name in names]
        if set(model.members_of) != set(LABELS) - {"background"} or set(used) != set(members):
            raise ValueError(f"members_of is {dict(model.members_of)}")
        _check(model)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(f"{file}: describes no model ({error}). Give the model_dir of a training.") from error
    if folds is None:
        return model
    absent = sorted(set(folds) - set(model.folds))
    if absent or not folds:
        raise InputError(f"folds is {list(folds)}, but {file} has {list(model.folds)}. Choose among these.")
    return replace(model, folds=list(folds))


def _check(model: SegmentationModel) -> None:
    """Refuse what a training does not write.

    Raises:
        ValueError: naming the first such entry.
    """
    for name, member in model.members.items():
        axes = len(member.patch_size)
        right = {
            "patch_size": axes in (2, 3) and all(_is_whole(size) and size > 0 for size in member.patch_size),
            "spacing": len(member.spacing) == 3 and all(mm is None or _is_length(mm) for mm in member.spacing),
            "mirror_axes": all(_is_whole(axis) and 0 <= axis < axes for axis in member.mirror_axes),
            "architecture": isinstance(member.architecture, str),
            "arguments": isinstance(member.arguments, dict),
        }
        for key, is_right in right.items():
            if not is_right:
                raise ValueError(f"{key} of {name} is {getattr(member, key)!r}")
    structures = {value for value in LABELS.values() if value}
    entries = {
        "folds": bool(model.folds) and all(_is_whole(fold) and fold >= 0 for fold in model.folds),
        "axes": sorted(model.axes) == [0, 1, 2],
        "nonzero": isinstance(model.nonzero, bool),
        "keep_largest_component_of": all({*step} <= structures and step for step in model.keep_largest_component_of),
        "anatomy": model.anatomy is None or isinstance(model.anatomy, dict),
        "results": isinstance(model.results, dict),
    }
    for key, is_right in entries.items():
        if not is_right:
            raise ValueError(f"{key} is {getattr(model, key)!r}")


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_length(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value < 1000
