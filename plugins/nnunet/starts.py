"""Trainings that begin from the weights of an earlier one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer
from torch import Tensor, nn

from plugins.errors import InputError
from plugins.nnunet.workspace import Workspace
from plugins.segmentation import LABELS, read_model
from plugins.segmentation.model import DESCRIPTION, WEIGHTS
from plugins.segmentation.networks import UNet
from plugins.state import read_tensors


def check_start(model_dir: Path, configurations: Sequence[str], folds: Sequence[int]) -> None:
    """Refuse a ``model_dir`` that lacks the networks to begin from.

    Raises:
        InputError: naming the first that it lacks.
    """
    if not (model_dir / DESCRIPTION).is_file() or not (model_dir / WEIGHTS).is_file():
        raise InputError(f"init_weights: {model_dir} has no {DESCRIPTION} and {WEIGHTS}. Give a training's model_dir.")
    model = read_model(model_dir)
    for name in configurations:
        for fold in folds:
            if name not in model.members or fold not in model.folds:
                held = f"holds {', '.join(model.members)} of the folds {list(model.folds)}"
                raise InputError(f"init_weights: {model_dir} {held}, but not {name} of fold {fold}. Give another.")


def begin_from(network: nn.Module, model_dir: Path, configuration: str, fold: int) -> None:
    """Give a network, in place, the weights of the same configuration and fold of an earlier training.

    The heads of deep supervision below the last, which no model holds, keep their values.

    Raises:
        InputError: if they are not there, or do not fit.
    """
    weights, ours = _weights(model_dir, configuration, fold), UNet(network)
    _compare(ours, weights, model_dir, configuration)
    ours.load_state_dict(weights)


def compare_start(workspace: Workspace, model_dir: Path, configurations: Sequence[str], fold: int) -> None:
    """Refuse weights to begin from that do not fit the plans of a training.

    Raises:
        InputError: naming the first configuration whose weights do not fit.
    """
    plans = workspace.plans()
    for name in configurations:
        with torch.device("meta"):
            planned = plans.get_configuration(name)
            network = nnUNetTrainer.build_network_architecture(plans, planned, 1, len(LABELS), False)
        _compare(UNet(network), _weights(model_dir, name, fold), model_dir, name)


def _weights(model_dir: Path, configuration: str, fold: int) -> dict[str, Tensor]:
    check_start(model_dir, [configuration], [fold])
    axes = len(read_model(model_dir).members[configuration].patch_size)
    prefix = f"folds_{axes}d.fold_{fold}."
    cure = "Copy that model_dir, which init_weights names, again"
    content: dict[str, Tensor] = read_tensors(model_dir / WEIGHTS, cure, mmap=True)
    return {key.removeprefix(prefix): value for key, value in content.items() if key.startswith(prefix)}


def _compare(network: UNet, weights: dict[str, Tensor], model_dir: Path, configuration: str) -> None:
    wanted = {key: value.shape for key, value in network.state_dict().items()}
    if wanted != {key: value.shape for key, value in weights.items()}:
        raise InputError(
            f"init_weights: the {configuration} network of {model_dir} has other layers than this training plans. "
            "Give plans_from the same folder."
        )
