"""Everything about a config that can be found wrong before anything is built: names, arguments, references, values."""

from __future__ import annotations

import inspect
import math
import pydoc
import re
from collections.abc import Iterator, Mapping, Sequence
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ComponentLocator, ConfigComponent, ConfigParser, ReferenceResolver

from plugins.errors import InputError

# ids that MONAI or a person reads, not another id
ENTRY_POINTS = frozenset(
    (
        "_meta_", "imports", "initialize", "run", "finalize", "training", "inference", "evaluate", "network_def",
        "network",
    )
)  # fmt: skip
OF_MONAI = frozenset(
    ("bundle_root", "dataset_dir", "device", "output_dir", "ckpt_dir", "train", "validate", "seed", "inferer")
)
POSITIVE = frozenset(
    (
        "max_epochs", "val_interval", "batch_size", "sw_batch_size", "learning_rate", "initial_lr", "channels",
        "num_res_blocks", "discriminator_channels", "num_layers_d", "num_queries", "temperature", "num_threads",
        "slices_per_epoch", "iterations_per_epoch", "val_iterations_per_epoch", "num_folds", "save_every",
        "early_stop_patience", "gpu_memory_gb", "crop_size", "patch_size", "roi_size", "spacing", "target_spacing",
        "val_scans", "min_region_pixels", "tile_step_size",
    )
)  # fmt: skip
NOT_NEGATIVE = frozenset(("num_workers", "seed", "rounds", "pool_size"))
SHARES = frozenset(("foreground_probability", "oversample_foreground", "appearance_probability", "tile_step_size"))
INPUTS = frozenset(("dataset_dir", "datalist", "label_dir", "truth_dir", "run_dir", "plans_from", "pred_dir"))
_LOCATOR = ComponentLocator()


def check_tracking(settings: Mapping[str, Any]) -> None:
    """Refuse settings for ``--tracking`` that need MLflow where it is not installed.

    Raises:
        InputError: naming the extra.
    """
    targets = [str(node["_target_"]) for _, node in nodes(settings) if isinstance(node, Mapping) and "_target_" in node]
    if any(target.endswith("MLFlowHandler") for target in targets) and find_spec("mlflow") is None:
        raise InputError(
            "--tracking needs mlflow, which is not installed: install the extra, pip install 'tanq-bundles[tracking]'."
        )


def check_config(config: Mapping[str, Any], base: Mapping[str, Any], where: str) -> None:
    """Refuse a config that could not be run, or not as it was meant.

    Args:
        config: parsed and merged, with all overrides.
        base: the first config file, whose values tell of which kind a value has to be.
        where: name of the file, for messages.

    Raises:
        InputError: naming the first id that refers to nothing, that nothing reads, that has another kind of value than
            the base, an impossible value or a missing file, or whose ``_target_`` does not exist or does not take these
            arguments; with the nearest right name.
    """
    parser = ConfigParser(dict(config))
    _check_references(parser, base, where)
    _check_unread(config, base, where)
    for name, value in config.items():
        _check_kind(name, value, base.get(name), where)
        _check_value(name, value, where)
    for name, node in nodes(config):
        if isinstance(node, Mapping) and "_target_" in node:
            fault = component_fault(node)
            if fault:
                raise InputError(f"{where}: {name}: {fault}")


def nodes(config: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Every value in a config, with its id."""
    yield path, config
    if isinstance(config, (Mapping, list)):
        for key, value in config.items() if isinstance(config, Mapping) else enumerate(config):
            yield from nodes(value, f"{path}::{key}" if path else str(key))


def component_fault(node: Mapping[str, Any]) -> str:
    """What is wrong with a ``_target_`` node, with a cure: empty if nothing is."""
    target = node["_target_"]
    if not isinstance(target, str):
        return f"_target_ is {target!r}: give the name of a class or function."
    if target.startswith(("$", "@")):
        return ""
    component = locate(target)
    if component is None:
        near = _nearest(target, _names_beside(target))
        return f"there is no {target}{near}"
    if not callable(component):
        return f"{target} is no class or function: name one."
    try:
        signature = inspect.signature(component)
    except ValueError:  # some built-ins have none
        return ""
    given = {key: value for key, value in node.items() if key not in ConfigComponent.non_arg_keys}
    try:
        bind = signature.bind_partial if node.get("_mode_") == "callable" else signature.bind
        bind(**given)
    except TypeError as error:
        unknown = [key for key in given if key not in signature.parameters]
        near = _nearest(unknown[0], signature.parameters) if unknown else ": give all that it needs."
        return f"{target}: {error}{near}"
    return ""


def locate(target: str) -> Any:
    """The class or function that MONAI finds under a name; ``None`` if there is none."""
    module = _LOCATOR.get_component_module_name(target)
    if isinstance(module, list):
        module = module[0]
    try:
        return pydoc.locate(f"{module}.{target}" if module else target)
    except pydoc.ErrorDuringImport:
        return None


def _names_beside(target: str) -> list[str]:
    """Names that could have been meant: those of the same module, or MONAI's short ones."""
    parent, _, _ = target.rpartition(".")
    module = pydoc.locate(parent) if parent else None
    if module is not None:
        return [f"{parent}.{name}" for name in getattr(module, "__all__", dir(module)) if not name.startswith("_")]
    return list(_LOCATOR._components_table or {})


def _nearest(name: str, known: Any) -> str:
    near = get_close_matches(name, [str(each) for each in known], n=1, cutoff=0.6)
    return f": did you mean {near[0]!r}?" if near else ": take the name from its documentation."


def _strings(config: Any) -> Iterator[tuple[str, str]]:
    return ((path, value) for path, value in nodes(config) if isinstance(value, str))


def _references(parser: ConfigParser, path: str, text: str) -> list[str]:
    if not text.startswith(("@", "$", "%")):
        return []
    absolute = parser.resolve_relative_ids(path, text)
    wanted = [*ReferenceResolver.match_refs_pattern(absolute)]
    if absolute.startswith("%") and ".json" not in absolute:
        wanted.append(ReferenceResolver.normalize_id(absolute[1:]))
    return wanted


def _check_references(parser: ConfigParser, base: Mapping[str, Any], where: str) -> None:
    """Refuse a reference to nothing; nothing reads what only a sibling config has and an overlay brings along."""
    known = [path for path, _ in nodes(parser.get()) if path]
    for path, text in _strings(parser.get()):
        for wanted in _references(parser, path, text):
            if path.split("::")[0] in base and wanted not in parser:
                raise InputError(f"{where}: {path} refers to @{wanted}, which is not there{_nearest(wanted, known)}")


def _check_unread(config: Mapping[str, Any], base: Mapping[str, Any], where: str) -> None:
    """Refuse a key of the base that no reference names and that neither MONAI nor a person asks for.

    Keys that are ``null`` may wait for an overlay.
    """
    read = {
        wanted.split("::")[0]
        for each in (config, base)
        for path, text in _strings(each)
        for wanted in _references(ConfigParser(dict(each)), path, text)
    }
    for name, value in base.items():
        if value is not None and name not in read | ENTRY_POINTS | OF_MONAI:
            near = get_close_matches(name, read, n=1, cutoff=0.6)
            cure = f"did you mean {near[0]!r}?" if near else "remove it."
            raise InputError(f"{where}: nothing reads {name!r}: {cure}")


def _check_kind(name: str, value: Any, before: Any, where: str) -> None:
    """Refuse another kind of value than the base has; expressions, references and ``null`` pass, and any of them may
    become anything.
    """
    computed = (str(before).startswith(("$", "@", "%")), str(value).startswith(("$", "@", "%")))
    if before is None or value is None or any(computed) or isinstance(before, Mapping):
        return
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "text", list: "a list"}
    for kind, title in kinds.items():
        if isinstance(before, kind):
            fits = isinstance(value, (list, tuple) if kind is list else kind) and (
                kind is bool or not isinstance(value, bool)
            )
            fits |= kind is float and isinstance(value, int) and not isinstance(value, bool)
            fits |= kind is int and isinstance(value, Mapping)  # one for each configuration
            if not fits:
                raise InputError(f"{where}: {name} is {value!r}: give {title}, such as {before!r}.")
            return


def _check_value(name: str, value: Any, where: str) -> None:
    for number in _numbers(value):
        if not math.isfinite(number):
            raise InputError(f"{where}: {name} is {value!r}: give a finite number.")
        if (name in POSITIVE and number <= 0) or (name in NOT_NEGATIVE and number < 0):
            least = "more than 0" if name in POSITIVE else "0 or more"
            raise InputError(f"{where}: {name} is {value!r}: it must be {least}.")
        if name in SHARES and not 0 <= number <= 1:
            raise InputError(f"{where}: {name} is {value!r}: it must lie between 0 and 1.")
    if name in INPUTS and isinstance(value, str) and not re.match(r"[$@%]", value) and not Path(value).exists():
        raise InputError(f"{where}: {name} is {value!r}, which does not exist: correct the path.")
    if name == "device" and isinstance(value, str) and not re.match(r"[$@%]", value):
        try:
            torch.device(value)
        except RuntimeError as error:
            raise InputError(f"{where}: device is {value!r}: give cpu, cuda or cuda:<number>.") from error


def _numbers(value: Any) -> Sequence[float]:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return [value]
    if isinstance(value, (list, tuple)):
        return [number for each in value for number in _numbers(each)]
    if isinstance(value, Mapping) and "_target_" not in value:
        return [number for each in value.values() for number in _numbers(each)]
    return []
