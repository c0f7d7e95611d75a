"""The settings behind a part of the config that is being built."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from monai.bundle import ConfigParser

from plugins.config.names import nearest, nodes, references
from plugins.config.running import running
from plugins.errors import InputError

WITHOUT_EFFECT = frozenset(
    ("amp", "bundle_root", "cache_dir", "dataset_dir", "device", "max_epochs", "num_threads", "num_workers",
     "output_dir", "train::dataset::data", "train::handlers")
)  # fmt: skip
"""Ids that say where things lie, how fast and for how long a training goes, and who watches it."""
NO_SETTINGS = frozenset(("_desc_", "_requires_"))


def settings_behind(ids: Sequence[str], without: Sequence[str] = ()) -> dict[str, Any]:
    """All that is built for some ids, as it stands in the config: their nodes, and whatever these refer to.

    A component for configs: it reads the one that it stands in.

    Args:
        ids: where to begin.
        without: ids that do not count, besides those of :data:`WITHOUT_EFFECT`.

    Returns:
        id to its node, in which references and expressions are texts, and an object that Python code has put there is
        the name of its class.

    Raises:
        InputError: if an id is not there.
        RuntimeError: outside of a config.

    Example:
        >>> config = {"rate": 0.1, "optimizer": {"_target_": "torch.optim.SGD", "lr": "@rate"}}
        >>> config["settings"] = {"_target_": "plugins.config.settings_behind", "ids": ["optimizer"]}
        >>> ConfigParser(config).get_parsed_content("settings")
        {'optimizer': {'_target_': 'torch.optim.SGD', 'lr': '@rate'}, 'rate': 0.1}
    """
    parser, left_out = running(ConfigParser), WITHOUT_EFFECT | {*without}
    if parser is None:
        raise RuntimeError("settings_behind is for configs: no config is being built")
    settings: dict[str, Any] = {}
    waiting = list(ids)
    while waiting:
        name = waiting.pop(0)
        if name in settings or name in left_out:
            continue
        if name not in parser:
            raise InputError(f"settings_behind: there is no {name!r}{nearest(name, parser.get())}")
        settings[name] = _plain(parser[name], name, left_out)
        waiting += [each for path, text in nodes(settings[name], name) for each in references(parser, path, text)]
    return settings


def _plain(value: Any, path: str, left_out: Collection[str]) -> Any:
    if isinstance(value, Mapping):
        kept = {key: each for key, each in value.items() if key not in NO_SETTINGS and f"{path}::{key}" not in left_out}
        return {key: _plain(each, f"{path}::{key}", left_out) for key, each in kept.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each, f"{path}::{index}", left_out) for index, each in enumerate(value)]
    return value if value is None or isinstance(value, (bool, int, float, str)) else type(value).__name__
