"""Ranges of arguments. Those of our own classes and functions stand in their signatures; here are the others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from typing import Annotated, Any, TypeVar

from monai.data import CacheDataset
from monai.engines import Trainer
from monai.handlers import ValidationHandler
from monai.inferers import SlidingWindowInferer
from monai.networks.nets import PatchDiscriminator, UNet
from pydantic import Field, NonNegativeFloat, NonNegativeInt, PositiveInt
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader

Item = TypeVar("Item")
NotEmpty = Annotated[Sequence[Item], Field(min_length=1)]
Pair = Annotated[Sequence[Item], Field(min_length=2, max_length=2)]
Triple = Annotated[Sequence[Item], Field(min_length=3, max_length=3)]
Share = Annotated[float, Field(ge=0, le=1)]
Rate = Annotated[float, Field(gt=0, le=10)]
"""Of learning; beyond this a training diverges."""

OF_OTHERS: Mapping[type, Mapping[str, Any]] = {
    CacheDataset: {"num_workers": NonNegativeInt | None},
    DataLoader: {"batch_size": PositiveInt | None, "num_workers": NonNegativeInt},
    Executor: {"max_workers": PositiveInt | None},
    OneCycleLR: {"max_lr": Rate | Sequence[Rate]},
    Optimizer: {"lr": Rate},
    PatchDiscriminator: {"channels": PositiveInt, "num_layers_d": PositiveInt},
    SlidingWindowInferer: {"sw_batch_size": PositiveInt},
    Trainer: {"max_epochs": PositiveInt},
    UNet: {"channels": Sequence[PositiveInt]},
    ValidationHandler: {"interval": PositiveInt},
}
"""Arguments of classes of torch, MONAI and Python, and of what derives from them."""

OF_EXPRESSIONS: Mapping[str, Any] = {
    "class_weights": Sequence[NonNegativeFloat] | None,
    "iterations_per_epoch": PositiveInt | Mapping[str, PositiveInt],
    "val_scans": PositiveInt,
}
"""Ids of configs that expressions alone read."""
