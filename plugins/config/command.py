"""The command line of ``monai.bundle run``: its config files, merged, and what overrides them."""

from __future__ import annotations

import inspect
import json
import logging
import sys
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fire
from monai.bundle import ConfigParser, run
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
COMPLETE = (
    "train.json",
    "inference.json",
    "evaluate.json",
    "compare.json",
    "study.json",
    "locator.json",
)  # may be run alone
RUN_OPTIONS = inspect.signature(run).parameters.keys() - {"override"}  # what `monai.bundle run` takes itself


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
    return dict(parser.get())


def overridden(config: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """A config with other values for some of its ids."""
    parser = ConfigParser(deepcopy(dict(config)))
    parser.update({as_id(name): value for name, value in settings.items()})
    return dict(parser.get())


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
        """The file that an id has its value from: the first for what the command line gives, empty for no id."""
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
    """The command line of this process's ``monai.bundle run``, or another one.

    Returns:
        ``None`` for any other program, and without ``--config_file``.
    """
    arguments = sys.argv if arguments is None else arguments
    if not arguments or Path(arguments[0]).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return None
    words: list[Any] = []
    options: dict[str, Any] = {}

    def read(*given: Any, **named: Any) -> None:
        words.extend(given)
        options.update(named)

    fire.Fire(fire.decorators.SetParseFn(_meant)(read), [*arguments[1:]])
    if options.get("args_file") is not None:
        options = {**ConfigParser.load_config_file(str(options["args_file"])), **options}
    if "config_file" not in options:
        return None
    given = options["config_file"]
    files = [Path(str(file)) for file in ([given] if isinstance(given, str) else given)]
    named = [options.get("run_id", "".join(map(str, words[1:2]))), options.get("init_id"), options.get("final_id")]
    overrides = {name: value for name, value in options.items() if name not in RUN_OPTIONS}
    tracking = options.get("tracking")
    tracking = ConfigParser.load_config_files(DEFAULT_EXP_MGMT_SETTINGS.get(str(tracking), tracking or {}))
    return CommandLine(files, overrides, [name for name in named if name], tracking)


def _meant(text: str) -> Any:
    """The value of an option. Fire takes ``null`` for a word, and what follows ``#`` for a comment."""
    if text == "null":
        return None
    value = fire.parser.DefaultParseValue(text)
    return text if "#" in text and not isinstance(value, (list, tuple, dict)) else value


def tracking_settings() -> dict[str, Any]:
    """The settings for ``--tracking`` of this process, with its options among them; MONAI's for MLflow without it."""
    given = command_line()
    settings = (given.tracking if given else None) or DEFAULT_MLFLOW_SETTINGS
    options = given.options if given else {}
    return {**settings, "configs": {name: options.get(name, value) for name, value in settings["configs"].items()}}


def refuse_unknown_options(arguments: Sequence[str] | None = None) -> None:
    """Refuse options of this process's ``monai.bundle run``, or another one, that the first config file does not have.

    MONAI adds ``--round 2`` to the config as a new entry, and whoever meant ``--rounds 2`` gets the default. Further
    config files are overlays: they may also hold what only a sibling of the first file has, such as ``max_epochs``
    beside an ``inference.json``. A section of one's own passes if something refers to it.

    Raises:
        InputError: naming the first unknown option and the nearest known one, or a section to run that is not there.
    """
    given = command_line(arguments)
    if given is None:
        return
    first, *overlays = given.files
    for file in given.files:
        _refuse_doubled_keys(file)
    _refuse_wrong_places(first, overlays)
    base, whole = given.base(), read_configs(given.files)
    beside = [file for file in sorted(first.parent.glob("*.json")) if file not in given.files]
    siblings = read_configs([file for file in beside if file.name in COMPLETE])
    options = {as_id(name): value for name, value in given.options.items()}
    read = {*SECTIONS, *given.sections} | all_references(whole) | all_references(options)
    refuse_unknown(given.sections, [*whole, *given.options], first.name)
    for file in overlays:
        _refuse_unknown_settings(siblings | base, ConfigParser.load_config_file(file), file, read)
        _refuse_overlay_without_effect(base, file, first, read)
    known = given.tracking.get("configs", {}) | {name: value for name, value in whole.items() if name in base}
    _refuse_unknown_settings(known, options, first, read)


def _refuse_wrong_places(first: Path, overlays: Sequence[Path]) -> None:
    """Refuse an overlay before the file whose values it is to change, and one of another bundle."""
    complete = [file.name for file in overlays if file.name in COMPLETE]
    if complete and first.name not in COMPLETE:
        raise InputError(f"{first.name} stands before {complete[0]}, which replaces it. Name {complete[0]} first.")
    for file in overlays:
        if file.resolve().parent != first.resolve().parent and file.with_name("metadata.json").is_file():
            raise InputError(f"{file} is for another bundle. Take an overlay from {first.parent}.")


def _refuse_overlay_without_effect(base: Mapping[str, Any], file: Path, first: Path, read: set[str]) -> None:
    """Refuse an overlay for another config than the first; those for ``train.json`` may follow any, as settings do."""
    settings = ConfigParser.load_config_file(str(file))
    trained = first.with_name("train.json")
    held = base if not trained.is_file() else read_configs([trained]) | dict(base)
    if (
        not settings
        or known_settings(held, settings)
        or any(_meet(as_id(name), each) for name in settings for each in read)
    ):
        return
    beside = [other for other in COMPLETE if (path := first.with_name(other)).is_file()
              and known_settings(read_configs([path]), settings)]  # fmt: skip
    cure = f"Give it after {' or '.join(beside)}" if beside else "Leave it out"
    raise InputError(f"{file.name} changes nothing of {first.name}. {cure}.")


def _meet(name: str, other: str) -> bool:
    """Whether one of two ids is the other, or lies below it."""
    return f"{name}::".startswith(f"{other}::") or f"{other}::".startswith(f"{name}::")


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


def _refuse_unknown_settings(
    config: Mapping[str, Any], settings: Mapping[str, Any], file: Path, read: set[str]
) -> None:
    """Refuse ids that a config does not have; other classes in place of its components take other arguments."""
    classes = {name: value for name, value in settings.items() if name.endswith("_target_")}
    refuse_unknown_ids(overridden(config, known_settings(config, classes)), settings, file.name, read)
