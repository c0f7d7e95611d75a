"""The command line of ``monai.bundle run``: its config files, merged, and what overrides them."""

from __future__ import annotations

import json
import logging
import sys
from collections import deque
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser
from monai.bundle.utils import DEFAULT_EXP_MGMT_SETTINGS, DEFAULT_MLFLOW_SETTINGS

from plugins.config.names import (
    SECTIONS,
    all_references,
    as_id,
    known_settings,
    nodes,
    refuse_unknown,
    refuse_unknown_ids,
    texts,
)
from plugins.errors import InputError

_logger = logging.getLogger(__name__)
COMPLETE = ("train.json", "inference.json", "evaluate.json", "locator.json")  # configs that may be run alone
# what `monai.bundle run` takes itself
RUN_OPTIONS = frozenset(
    ("run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file")
)


def read_configs(config_files: Sequence[Path]) -> dict[str, Any]:
    """The config files merged as ``monai.bundle run`` merges them.

    Raises:
        InputError: if one is no JSON object.
    """
    for path in config_files:
        try:
            fault = "" if isinstance(ConfigParser.load_config_file(str(path)), Mapping) else "it holds no object"
        except (ValueError, OSError) as error:
            fault = str(error)
        if fault:
            raise InputError(f"{path} is no JSON config ({fault}). Correct it.")
    parser = ConfigParser()
    parser.read_config([str(path) for path in config_files])
    config: dict[str, Any] = parser.get()
    return config


def overridden(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other values for some of its ids."""
    parser = ConfigParser(deepcopy(dict(config)))
    parser.update({as_id(name): value for name, value in settings.items()})
    changed: dict[str, Any] = parser.get()
    return changed


@dataclass(frozen=True)
class CommandLine:
    """What ``monai.bundle run`` was asked for.

    Attributes:
        files: config files, in order.
        options: overrides, as they are meant.
        sections: those to run that are named on the command line.
        tracking: MONAI's settings for ``--tracking``; empty without it.
    """

    files: Sequence[Path]
    options: Mapping[str, Any]
    sections: Sequence[str]
    tracking: Mapping[str, Any] = field(default_factory=dict)

    @property
    def root(self) -> Path:
        """The bundle's folder, as MONAI sees it."""
        folder = self.files[0].absolute().parent
        return folder.parent if folder.name == "configs" else folder

    def base(self) -> dict[str, Any]:
        """The first config file, and complete ones after it, such as ``evaluate.json`` after ``train.json``."""
        return read_configs([file for file in self.files if file == self.files[0] or file.name in COMPLETE])

    def place(self, name: str) -> str:
        """Name of the file that an id has its value from: the first one for what the command line gives, empty for what
        is no id.
        """
        if not any(f"{name}::".startswith(f"{as_id(each)}::") for each in self.options):
            for file in reversed(self.files):
                for key, value in ConfigParser.load_config_file(str(file)).items():
                    if any(name == each for each, _ in nodes(value, as_id(key))):
                        return file.name
        return self.files[0].name if name in ConfigParser(self.config()) else ""

    def config(self) -> dict[str, Any]:
        """The config that MONAI will run."""
        return overridden(read_configs(self.files), self.options)

    def misread(self) -> dict[str, Any]:
        """What MONAI does not read as it is meant, with what says the same to it.

        It leaves out options that are ``null``, and takes every ``#`` for a separator of ids, in file names as well.
        """
        meant: dict[str, Any] = {as_id(name): None for name, value in self.options.items() if value is None}
        for path, text in texts(self.config()).items():
            if "#" in text and text[0] not in "@$%" and not path.endswith("_desc_"):
                meant[path] = "$" + " + chr(35) + ".join(map(repr, text.split("#")))
        return meant

    def warn_of_accidental_root(self) -> None:
        """Tell of the default ``bundle_root``, the working directory, outside the bundle: two would share it."""
        file = self.files[0]
        root, here = file.resolve().parents[1], Path.cwd()
        by_default = self.config().get("bundle_root") == "." and "bundle_root" not in self.options
        if by_default and file.with_name("metadata.json").is_file() and here != root:
            cure = f"Add --bundle_root {root} to write into the bundle."
            _logger.warning("bundle_root is not given: models and results go below %s. %s", here, cure)


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
    rest = deque(arguments[1:])
    while rest:
        argument = rest.popleft()
        if not argument.startswith("--"):
            words.append(argument)
            continue
        name, equals, value = argument[2:].partition("=")
        is_flag = not equals and (not rest or rest[0].startswith("--"))  # as fire reads it
        options[name.replace("-", "_")] = is_flag or _meant(value if equals else rest.popleft())
    if options.get("args_file") is not None:
        options = {**ConfigParser.load_config_file(str(options["args_file"])), **options}
    if "config_file" not in options:
        return None
    given = options["config_file"]
    files = [Path(str(file)) for file in ([given] if isinstance(given, str) else given)]
    named = [options.get("run_id", "".join(words[1:2])), options.get("init_id"), options.get("final_id")]
    overrides = {name: value for name, value in options.items() if name not in RUN_OPTIONS}
    return CommandLine(files, overrides, [name for name in named if name], _tracking(options.get("tracking")))


def _meant(text: str) -> Any:
    """The value of an option. Fire takes ``null`` for a word, and what follows ``#`` for a comment."""
    if text == "null":
        return None
    value = fire.parser.DefaultParseValue(text)
    return text if "#" in text and not isinstance(value, (list, tuple, dict)) else value


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

    A section of one's own passes if something refers to it.

    Args:
        arguments: the command line; that of this process if omitted. Any that is not ``monai.bundle run`` passes.

    Raises:
        InputError: naming the first unknown option and the nearest known one, or a section to run that is not there.
    """
    given = command_line(arguments)
    if given is None:
        return
    files = given.files
    for file in files:
        _refuse_doubled_keys(file)
    base, whole = given.base(), read_configs(files)
    beside = sorted(files[0].parent.glob("*.json"))
    siblings = read_configs([file for file in beside if file not in files and file.name in COMPLETE])
    options = {as_id(name): value for name, value in given.options.items()}
    read = {*SECTIONS, *given.sections} | all_references(whole) | all_references(options)
    refuse_unknown(given.sections, [*whole, *given.options], files[0].name)
    for later in files[1:]:
        try:
            given_here = ConfigParser.load_config_file(later)
            refuse_unknown_ids(_with_classes(siblings | base, given_here), given_here, later.name, read)
        except InputError as error:
            if later.resolve().parent == files[0].resolve().parent or not later.with_name("train.json").is_file():
                raise
            fault = f"{later} is for another bundle ({str(error).partition(': ')[0]})"
            raise InputError(f"{fault}. Take an overlay from {files[0].parent}.") from error
    known = given.tracking.get("configs", {}) | {name: value for name, value in whole.items() if name in base}
    refuse_unknown_ids(_with_classes(known, options), options, files[0].name, read)


def _refuse_doubled_keys(file: Path) -> None:
    """Refuse a key that a JSON file has twice, of which the first would be lost."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise InputError(f"{file} has {twice[0]!r} twice. Remove one of them.")
        return dict(pairs)

    if file.suffix == ".json":
        json.loads(file.read_text(encoding="utf-8"), object_pairs_hook=unique)


def _with_classes(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other classes in place of its components, which take other arguments."""
    classes = {name: value for name, value in settings.items() if name.endswith("_target_")}
    return overridden(config, known_settings(config, classes))
