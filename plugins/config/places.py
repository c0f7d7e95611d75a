"""Files, folders and devices that a config names."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser

from plugins.config.names import is_computed
from plugins.errors import InputError

INPUTS = frozenset(
    ("bundle_root", "bundles_dir", "dataset_dir", "datalist", "label_dir", "truth_dir", "run_dir", "plans_from",
     "init_weights", "pred_dir", "cases_file")
)  # fmt: skip
KNOWN = "Give cpu, cuda or cuda:<number>"
OUTPUTS = ("output_dir", "ckpt_dir", "runs_dir", "cache_dir", "model_dir")  # those behind may lie in those before


def check_paths(config: Mapping[str, Any]) -> None:
    """Refuse inputs that are not there, folders for results that are files, and what is no path at all.

    Raises:
        InputError: naming the id and the path.
    """
    for name in sorted({*INPUTS, *OUTPUTS} & config.keys()):
        if not isinstance(config[name], (str, Path, type(None))) or config[name] == "":
            raise InputError(f"{name} is {config[name]!r}. Give a path.")
    for name in sorted(INPUTS & config.keys()):
        value = config[name]
        if value is not None and not is_computed(value) and not Path(value).exists():
            raise InputError(f"{name} is {str(value)!r}, which does not exist. Correct the path.")
    for name in OUTPUTS:
        value = None if is_computed(config.get(name)) else config.get(name)
        with suppress(Exception):  # of what can be known before the run
            value = ConfigParser(dict(config)).get_parsed_content(name)
        for place in [Path(value), *Path(value).parents] if isinstance(value, (str, Path)) else []:
            if place.exists() and not place.is_dir():
                raise InputError(f"{name} is {str(value)!r}, but {place} is a file. Give a folder.")


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
                    raise InputError(f"{name} is {each!r}. {KNOWN}.")
                if str(each) == "meta":
                    raise InputError(f"{name} is 'meta', which computes nothing. {KNOWN}.")
                if each is not None and not _exists(torch.device(each)):
                    found = f"this machine has {torch.cuda.device_count()} GPUs"
                    raise InputError(f"{name} is {str(each)!r}, but {found}. Give cpu or another.")
        except (RuntimeError, AssertionError, ModuleNotFoundError) as error:
            raise InputError(f"{name} is {config[name]!r}, which torch does not know. {KNOWN}.") from error


def _exists(device: torch.device) -> bool:
    if device.type == "cuda":  # counted, as using it would take memory
        return (device.index or 0) < torch.cuda.device_count()
    torch.empty(0, device=device)
    return True
