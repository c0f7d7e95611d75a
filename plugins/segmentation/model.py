"""What prediction needs to know of a trained model, beside its weights."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, NonNegativeInt, PositiveInt, TypeAdapter, ValidationError

from plugins.config.ranges import NotEmpty, Triple
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

    __pydantic_config__ = ConfigDict(extra="forbid")
    spacing: Triple[Annotated[float, Field(gt=0, lt=1000)] | None]
    patch_size: Annotated[Sequence[PositiveInt], Field(min_length=2, max_length=3)]
    mirror_axes: Sequence[NonNegativeInt]
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

    __pydantic_config__ = ConfigDict(extra="forbid")
    members: Mapping[str, EnsembleMember]
    folds: NotEmpty[NonNegativeInt]
    members_of: Mapping[str, Sequence[str]]
    axes: Triple[int] = (2, 1, 0)
    nonzero: bool = False
    keep_largest_component_of: Sequence[NotEmpty[Literal[1, 2]]] = ()
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
    if not file.is_file() and file.with_name(WEIGHTS).is_file():
        fault = f"{model_dir} holds {WEIGHTS}, but no {DESCRIPTION}, so it is no model of a segmentation"
        raise InputError(f"{fault}. Give the model_dir of a training.")
    if not file.is_file():
        return NOMINAL if folds is None else replace(NOMINAL, folds=list(folds))
    content = read_state(file, dict[str, Any], "Give the model_dir of a training")
    fault = _form_fault(content)
    if fault:
        raise InputError(f"{file}: describes no model ({fault}). Give the model_dir of a training.")
    members = {name: EnsembleMember(**member) for name, member in content.pop("members").items()}
    model = SegmentationModel(members=members, **content)
    if folds is None:
        return model
    absent = sorted(set(folds) - set(model.folds))
    if absent or not folds:
        raise InputError(f"folds is {list(folds)}, but {file} has {list(model.folds)}. Choose among these.")
    return replace(model, folds=list(folds))


def _form_fault(content: Any) -> str:
    """What is wrong with the form of ``model.json``: empty if nothing is."""
    try:
        model = _FORM.validate_json(json.dumps(content), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        return f"{'::'.join(map(str, first['loc']))}: {first['msg'].lower()}"
    for name, member in model.members.items():
        if member.mirror_axes and max(member.mirror_axes) >= len(member.patch_size):
            return f"mirror_axes of {name} is {[*member.mirror_axes]}"
    used = {name for names in model.members_of.values() for name in names}
    if set(model.members_of) != set(LABELS) - {"background"} or used != set(model.members):
        return f"members_of is {dict(model.members_of)}"
    return "" if sorted(model.axes) == [0, 1, 2] else f"axes is {[*model.axes]}"


_FORM = TypeAdapter(SegmentationModel)
