"""Misspelt names of options, and the right ones nearest to them."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, DEFAULT_MLFLOW_SETTINGS

from plugins.errors import InputError

COMPLETE = ("train.json", "inference.json", "evaluate.json")  # configs that may be run alone
# what `monai.bundle run` takes itself
RUN_OPTIONS = frozenset(
    ("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file")
)


def refuse_unknown(names: Iterable[str], known: Iterable[str], what: str) -> None:
    """Refuse names that are not among the known ones.

    Raises:
        InputError: naming the first unknown name and the nearest known one.

    Example:
        >>> refuse_unknown(["tanc"], ["tanq", "cyclegan"], what="views")
        Traceback (most recent call last):
        plugins.errors.InputError: views has no 'tanc': did you mean 'tanq'?
    """
    known = [str(name) for name in known]
    for name in names:
        if name not in known:
            near = get_close_matches(name, known, n=1, cutoff=0.5)
            cure = f"did you mean {near[0]!r}?" if near else f"choose from {', '.join(sorted(known))}."
            raise InputError(f"{what} has no {name!r}: {cure}")


def refuse_unknown_ids(config: Mapping[str, Any], ids: Iterable[str], what: str) -> None:
    """Refuse ids that a config does not have; MONAI would add them silently and leave the misspelt setting as it was.

    Args:
        config: a parsed config.
        ids: nested ids such as ``train::trainer::max_epochs``; ``#`` separates as well, a leading ``+`` is ignored.
        what: what has no such id, for the message.

    Raises:
        InputError: naming the first unknown id and the nearest known one.
    """
    for name in ids:
        level: Any = config
        path = name.lstrip("+").replace("#", "::").split("::")
        for depth, key in enumerate(path):
            names = level if isinstance(level, Mapping) else range(len(level)) if isinstance(level, list) else ()
            prefix = "::".join(path[:depth]) + "::" if depth else ""
            refuse_unknown([prefix + key], [f"{prefix}{known}" for known in names], what)
            level = level[int(key)] if isinstance(level, list) else level[key]


def fitting(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the settings whose ids the config has."""
    found = {}
    for name, value in settings.items():
        with suppress(InputError):
            refuse_unknown_ids(config, [name], "config")
            found[name] = value
    return found


def merged(config_files: Sequence[Path]) -> dict[str, Any]:
    """The config files merged as ``monai.bundle run`` merges them."""
    parser = ConfigParser()
    parser.read_config([str(path) for path in config_files])
    config: dict[str, Any] = parser.get()
    return config


@dataclass(frozen=True)
class CommandLine:
    """What ``monai.bundle run`` was asked for.

    Attributes:
        files: config files, in order.
        options: overrides, as MONAI will parse them.
        run_id: the section to run.
        tracking: MONAI's settings for ``--tracking``; empty without it.
    """

    files: Sequence[Path]
    options: Mapping[str, Any]
    run_id: str | None
    tracking: Mapping[str, Any] = field(default_factory=dict)

    def base(self) -> dict[str, Any]:
        """The first config file, and complete ones behind it, such as ``evaluate.json`` behind ``train.json``."""
        return merged([file for file in self.files if file == self.files[0] or file.name in COMPLETE])

    def config(self) -> dict[str, Any]:
        """The config that MONAI will run."""
        parser = ConfigParser()
        parser.read_config([str(path) for path in self.files])
        parser.update({name.replace("#", "::"): value for name, value in self.options.items()})
        config: dict[str, Any] = parser.get()
        return config


def command_line(arguments: Sequence[str] | None = None) -> CommandLine | None:
    """The command line of this process's ``monai.bundle run``.

    Args:
        arguments: the command line; that of this process if omitted.

    Returns:
        ``None`` for any other program, and without ``--config_file``.
    """
    arguments = sys.argv if arguments is None else arguments
    if not arguments or Path(arguments[0]).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return None
    options: dict[str, Any] = {}
    words: list[str] = []
    position = 1
    while position < len(arguments):
        argument = arguments[position]
        position += 1
        if not argument.startswith("--"):
            words.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        name = name.replace("-", "_")
        if not equals and (position == len(arguments) or arguments[position].startswith("--")):
            options[name] = True  # as fire reads a flag
            continue
        if not equals:
            value = arguments[position]
            position += 1
        options[name] = fire.parser.DefaultParseValue(value)
    if options.get("args_file") is not None:
        options = {**ConfigParser.load_config_file(str(options["args_file"])), **options}
    if "config_file" not in options:
        return None
    given = options["config_file"]
    files = [Path(str(file)) for file in ([given] if isinstance(given, str) else given)]
    run_id = options.get("run_id", words[1] if len(words) > 1 else None)
    overrides = {name: value for name, value in options.items() if name not in RUN_OPTIONS}
    return CommandLine(files, overrides, run_id, _tracking(options.get("tracking")))


def _tracking(setting: Any) -> dict[str, Any]:
    if setting is None:
        return {}
    if isinstance(setting, str) and setting in DEFAULT_EXP_MGMT_SETTINGS:
        return dict(DEFAULT_EXP_MGMT_SETTINGS[setting])
    return dict(ConfigParser.load_config_files(setting))


def tracking_settings() -> dict[str, Any]:
    """The settings for ``--tracking`` of this process's ``monai.bundle run``, with those of its options among them.

    MONAI's for MLflow if there are none.
    """
    given = command_line()
    settings = (given.tracking if given else None) or DEFAULT_MLFLOW_SETTINGS
    options = given.options if given else {}
    configs = {name: options.get(name, value) for name, value in settings["configs"].items()}
    return {**settings, "configs": configs}


def refuse_unknown_options(arguments: Sequence[str] | None = None) -> None:
    """Refuse options of this process's ``monai.bundle run`` that the first config file does not have.

    MONAI adds ``--round 2`` to the config as a new entry, and whoever meant ``--rounds 2`` gets the default. Further
    config files are overlays: they may also hold what only a sibling of the first file has, such as ``max_epochs``
    beside an ``inference.json``.

    Args:
        arguments: the command line; that of this process if omitted. Any that is not ``monai.bundle run`` passes.

    Raises:
        InputError: naming the first unknown option and the nearest known one, or a section to run that is not there.
    """
    given = command_line(arguments)
    if given is None:
        return
    files = given.files
    base = given.base()
    siblings: dict[str, Any] = {}
    for sibling in sorted(files[0].parent.glob("*.json")):
        if sibling not in files and sibling.name in COMPLETE:
            siblings |= merged([sibling])
    for later in files[1:]:
        refuse_unknown_ids(siblings | base, ConfigParser.load_config_file(later), later.name)
    read = {name: value for name, value in merged(files).items() if name in base}
    refuse_unknown_ids({**given.tracking.get("configs", {}), **read}, given.options, files[0].name)
    if given.run_id is not None:
        refuse_unknown([given.run_id], base, f"{files[0].name}")
