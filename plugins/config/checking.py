"""A config as a whole: its references, keys that nothing reads, and every value in it."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from contextlib import nullcontext
from difflib import get_close_matches
from graphlib import CycleError, TopologicalSorter
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from monai.bundle import ConfigComponent, ConfigParser, ConfigWorkflow
from monai.bundle.utils import DEFAULT_MLFLOW_SETTINGS

from plugins.config.command import COMPLETE
from plugins.config.expressions import check_expressions
from plugins.config.names import (
    OF_COMPONENTS,
    SECTIONS,
    all_references,
    is_computed,
    nearest,
    nodes,
    plain,
    references,
    refuse_unknown,
    texts,
)
from plugins.config.places import check_device, check_paths
from plugins.config.ranges import OF_EXPRESSIONS
from plugins.config.signatures import importable, locate
from plugins.config.values import check_component, check_value, title, value_fault
from plugins.errors import InputError

# ids that MONAI or a person reads, not another id
ENTRY_POINTS = SECTIONS | {"training", "inference", "evaluate", "compare", "study", "network_def", "network"}
OF_MONAI = {"bundle_root", "dataset_dir", "device", "output_dir", "ckpt_dir", "train", "validate", "seed", "inferer"}
# what a section such as "train" may hold for MONAI alone
OF_SECTIONS = {"dataset", "handlers", "inferer", "key_metric", "postprocessing", "preprocessing", "trainer"}
_MOVED = re.compile(r"\$@[\w:]+\.to\(@[\w:]+\)")


def check_config(
    config: Mapping[str, Any], base: Mapping[str, Any], root: Path | None = None, on_disk: bool = True
) -> None:
    """Refuse a config that could not be run, or not as it was meant.

    Args:
        config: parsed and merged, with all overrides.
        base: the first config file, whose values tell of which kind a value has to be.
        root: of the bundle, whose own modules components may be in.
        on_disk: whether files that the config names must be there.

    Raises:
        InputError: naming the first id that refers to nothing or to itself, that nothing reads, that has another kind
            of value than the base or than the component that reads it asks for, an impossible value, a faulty
            expression, a missing file or a device that is not there, or whose ``_target_`` does not exist or does not
            take these arguments; with the nearest right name. The sentence begins with the id.
    """
    parser = ConfigParser(dict(config))
    _check_references(parser, base)
    wanted = all_references(config) | all_references(base)
    for path, value in base.items():
        _check_read(path, value, wanted, ENTRY_POINTS | OF_MONAI)
    check_expressions(parser)
    for path, value in nodes(config):
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{path} is {value!r}. Give a finite number.")
    with nullcontext() if root is None else importable(root):
        for path, value in nodes(config):
            _check_special_keys(path, value)
            _check_handlers(parser, path, value)
            if ConfigComponent.is_instantiable(value):
                check_component(value, path, lambda place, item: _follow(parser, place, item))
    for path, value in nodes(config):
        _check_kind(path, value, base.get(path))
        check_value(value, OF_EXPRESSIONS.get(path, Any), path)
    check_device(config)
    if on_disk:
        check_paths(config)


def check_workflow(workflow: ConfigWorkflow) -> None:
    """The checks for a workflow that Python code made: it knows no config files, but what these could hold."""
    folder = Path(workflow.config_root_path).absolute()
    config = plain(workflow.parser.get(), lambda made: "$None")
    known = {*DEFAULT_MLFLOW_SETTINGS["configs"]}  # which MONAI adds for its tracking
    for file in (file for file in folder.glob("*.json") if file.name in COMPLETE):
        known |= ConfigParser.load_config_file(file).keys()
    refuse_unknown([workflow.run_id], config, "the config")
    strange = {name: value for name, value in config.items() if name not in known}
    config["device"] = "$None"  # its name will do for torch
    check_config(config, strange, folder.parent if folder.name == "configs" else folder)


def check_tracking(settings: Mapping[str, Any]) -> None:
    """Refuse settings for ``--tracking`` that need MLflow where it is not installed.

    Raises:
        InputError: naming the extra.
    """
    targets = [text for path, text in texts(settings).items() if path.endswith("_target_")]
    if any(target.endswith("MLFlowHandler") for target in targets) and find_spec("mlflow") is None:
        cure = "Install the extra, pip install 'tanq-bundles[tracking]'"
        raise InputError(f"--tracking needs mlflow, which is not installed. {cure}.")


def _follow(parser: ConfigParser, path: str, value: Any) -> tuple[str, Any]:
    """The id and the value at the end of a chain of plain references; what is moved to a device stays what it is."""
    for _ in range(10):
        found = references(parser, path, value)
        if not (found and (value.startswith("@") or _MOVED.fullmatch(value))):
            break
        path, value = found[0], parser[found[0]]
    return path, value


def _check_references(parser: ConfigParser, base: Mapping[str, Any]) -> None:
    """Refuse a reference to nothing; nothing reads what only a sibling config has and an overlay brings along."""
    known = [path for path, _ in nodes(parser.get()) if path]
    graph: dict[str, list[str]] = {}
    for path, value in nodes(parser.get()):
        graph[path] = references(parser, path, value)
        for wanted in graph[path]:
            if path.split("::")[0] in base and wanted not in parser:
                raise InputError(f"{path} refers to @{wanted}, which is not there{nearest(wanted, known)}")
        if path:
            graph.setdefault(path.rpartition("::")[0], []).append(path)
    del graph[""]
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        names = " -> ".join(dict.fromkeys(error.args[1]))
        raise InputError(f"{names} refer to each other in a circle. Give one of them a value.") from error


def _check_read(name: str, value: Any, wanted: Collection[str], known: Collection[str]) -> None:
    """Refuse a key that no reference names and that neither MONAI nor a person asks for; ``null`` may wait for an
    overlay.
    """
    if value is None or name in wanted:
        return
    if name.split("::")[-1] not in known and not any(each.startswith(f"{name}::") for each in wanted):
        raise InputError(f"{name} has no effect, as nothing reads it{nearest(name, wanted, 'Remove it')}")
    if isinstance(value, Mapping) and "_target_" not in value and not name.startswith("_"):
        for key, item in value.items():
            _check_read(f"{name}::{key}", item, wanted, OF_SECTIONS)


def _check_special_keys(path: str, value: Any) -> None:
    """Refuse a misspelt ``_target_`` and its like, which would make a component a plain dictionary, and a
    ``_disabled_`` that MONAI takes for no.
    """
    if not isinstance(value, Mapping):
        return
    disabled = value.get("_disabled_", False)
    if not (isinstance(disabled, bool) or is_computed(disabled) or str(disabled).lower() in ("true", "false")):
        raise InputError(f"{path}::_disabled_ is {disabled!r}. Give true or false.")
    for key in map(str, value):
        misspelt = key.startswith("_") and key not in OF_COMPONENTS | SECTIONS
        if misspelt and get_close_matches(key, OF_COMPONENTS, n=1, cutoff=0.7):
            raise InputError(f"{path or 'the config'} has {key!r}{nearest(key, OF_COMPONENTS)}")


def _check_handlers(parser: ConfigParser, path: str, value: Any) -> None:
    """Refuse in a list of handlers what cannot be attached to an engine."""
    for index, each in enumerate(value if path.endswith("handlers") and isinstance(value, list) else ()):
        place, handler = _follow(parser, f"{path}::{index}", each)
        target = handler.get("_target_", "") if isinstance(handler, Mapping) else ""
        made = locate(target) if isinstance(target, str) and target.isidentifier() | ("." in target) else None
        lacks = isinstance(made, type) and not hasattr(made, "attach")
        if lacks or not is_computed(handler):
            raise InputError(f"{place} is {target or repr(handler)}. Give a handler of events, which has 'attach'.")


def _check_kind(name: str, value: Any, before: Any) -> None:
    """Refuse another kind of value than the base has; expressions, references and ``null`` pass, and any of them may
    become anything.
    """
    if value is None or is_computed(value):
        return
    if ConfigComponent.is_instantiable(before):
        raise InputError(f"{name} is {value!r}. Give a dictionary with _target_, or null.")
    kinds = (bool, int, float, str, list)
    kind = Any if is_computed(before) else next((each for each in kinds if isinstance(before, each)), Any)
    is_for_each = kind is int and isinstance(value, Mapping)  # one for each configuration
    if not is_for_each and value_fault(value, kind, name):
        raise InputError(f"{name} is {value!r}. Give {title(kind)}, such as {before!r}.")
