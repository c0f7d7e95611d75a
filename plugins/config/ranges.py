"""Values that no component could work with: numbers out of range, paths to nothing, foreign devices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from plugins.config.values import is_computed
from plugins.errors import InputError

POSITIVE = frozenset(
    (
        "max_epochs", "val_interval", "batch_size", "sw_batch_size", "learning_rate", "initial_lr", "channels",
        "num_res_blocks", "discriminator_channels", "num_layers_d", "num_queries", "temperature", "num_threads",
        "slices_per_epoch", "iterations_per_epoch", "val_iterations_per_epoch", "num_folds", "save_every",
        "early_stop_patience", "gpu_memory_gb", "spacing", "target_spacing", "val_scans", "min_region_pixels",
        "tile_step_size", "max_workers",
    )
)  # fmt: skip
SIZES = frozenset(("crop_size", "patch_size", "roi_size"))  # a -1 in a component of MONAI's means all
RATES, LARGEST_RATE = frozenset(("learning_rate", "d_learning_rate", "initial_lr", "lr")), 10
NOT_EMPTY = frozenset(("devices", "configurations", "views"))
NOT_NEGATIVE = frozenset(("class_weights", "num_workers", "seed", "rounds", "pool_size", "seg_classes", "lr"))
SHARES = frozenset(
    (
        "foreground_probability", "oversample_foreground", "tile_step_size", "constant_fraction",
    )
)  # fmt: skip
INPUTS = frozenset(
    ("bundle_root", "bundles_dir", "dataset_dir", "datalist", "label_dir", "truth_dir", "run_dir", "plans_from",
     "init_weights", "pred_dir", "segmenter")
)  # fmt: skip
OUTPUTS = ("output_dir", "ckpt_dir", "runs_dir", "cache_dir", "model_dir")  # those behind may lie in those before


def check_number(path: str, value: Any) -> None:
    """Refuse numbers that the last name of an id forbids.

    Raises:
        InputError: naming the id.
    """
    name = path.split("::")[-1]
    positive = name in POSITIVE or path in SIZES
    if name in NOT_EMPTY and value == []:
        raise InputError(f"{path} is empty: name at least one.")
    for number in _numbers(value):
        if not math.isfinite(number) and not isinstance(value, Mapping):  # what it holds is checked by itself
            raise InputError(f"{path} is {value!r}: give a finite number.")
        if (positive and number <= 0) or (name in NOT_NEGATIVE and number < 0):
            raise InputError(f"{path} is {value!r}: it must be {'more than 0' if positive else '0 or more'}.")
        if name in RATES and number > LARGEST_RATE:
            raise InputError(f"{path} is {value!r}: it must be at most {LARGEST_RATE}, or the training diverges.")
        if name in SHARES and not 0 <= number <= 1:
            raise InputError(f"{path} is {value!r}: it must lie between 0 and 1.")


def _numbers(value: Any) -> Sequence[float]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [value]
    if isinstance(value, (list, tuple)):
        return [number for each in value for number in _numbers(each)]
    if isinstance(value, Mapping) and "_target_" not in value:
        return [number for each in value.values() for number in _numbers(each)]
    return []


def check_paths(config: Mapping[str, Any]) -> None:
    """Refuse inputs that are not there, folders for results that are files, and what is no path at all.

    Raises:
        InputError: naming the id and the path.
    """
    for name in sorted({*INPUTS, *OUTPUTS} & config.keys()):
        if not isinstance(config[name], (str, Path, type(None))) or config[name] == "":
            raise InputError(f"{name} is {config[name]!r}: give a path.")
    for name in sorted(INPUTS & config.keys()):
        value = config[name]
        if isinstance(value, (str, Path)) and not is_computed(value) and not Path(value).exists():
            raise InputError(f"{name} is {str(value)!r}, which does not exist: correct the path.")
    for name in OUTPUTS:
        value = _evaluated(config, name)
        for place in [Path(value), *Path(value).parents] if isinstance(value, (str, Path)) else []:
            if place.exists() and not place.is_dir():
                raise InputError(f"{name} is {str(value)!r}, but {place} is a file: give a folder.")


def check_device(config: Mapping[str, Any]) -> None:
    """Refuse a device that torch does not know or this machine does not have.

    Raises:
        InputError: naming it.
    """
    for name in sorted({"device", "devices"} & config.keys()):
        try:
            value = ConfigParser(dict(config)).get_parsed_content(name)
            for each in value if isinstance(value, (list, tuple)) else [value]:
                if not isinstance(each, (str, torch.device, type(None))):
                    raise InputError(f"{name} is {each!r}: give cpu, cuda or cuda:<number>.")
                if str(each) == "meta":
                    raise InputError(f"{name} is 'meta', which computes nothing: give cpu, cuda or cuda:<number>.")
                if each is not None and not _exists(torch.device(each)):
                    found = f"this machine has {torch.cuda.device_count()} GPUs"
                    raise InputError(f"{name} is {str(each)!r}, but {found}: give cpu or another.")
        except (RuntimeError, AssertionError, ModuleNotFoundError) as error:
            raise InputError(
                f"{name} is {config[name]!r}, which torch does not know: give cpu, cuda or cuda:<number>."
            ) from error


def _exists(device: torch.device) -> bool:
    if device.type == "cuda":  # counted, as using it would take memory
        return (device.index or 0) < torch.cuda.device_count()
    torch.empty(0, device=device)
    return True


def _evaluated(config: Mapping[str, Any], name: str) -> Any:
    """A top-level value; ``None`` where nothing can be said about it before the run."""
    value = config.get(name)
    if not is_computed(value):
        return value
    try:
        return ConfigParser(dict(config)).get_parsed_content(name)
    except Exception:
        return None
