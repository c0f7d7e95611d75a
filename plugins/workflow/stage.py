"""A stage of a run, and the fingerprint that tells whether its results are still those of its settings."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path
from typing import Any

import plugins
from plugins.errors import InputError
from plugins.files import read_json
from plugins.store import content_of

WITHOUT_EFFECT = frozenset({"device", "devices", "executor", "num_threads", "num_workers", "report"})
STAGE_FOLDER, RUN_FOLDER = "{stage}", "{run}"


@dataclass(frozen=True)
class Stage:
    """One step of a run: a bundle run in a process of its own, or a function.

    Paths below the run folder are written ``{run}/...`` and those below the stage's own folder ``{stage}/...``; they
    are filled in when the stage is run, so a stage is the same wherever its run lies.

    Args:
        name: the stage's folder below the run folder, e.g. ``round_1/segmentation``.
        needs: names of the stages whose results it reads.
        bundle: root folder of the bundle to run; ``None`` for a function.
        run_id: what ``monai.bundle run`` runs.
        config_files: names in ``<bundle>/configs``, later ones override earlier ones.
        function: dotted name of the function to call instead of a bundle.
        overrides: config ids to values for a bundle, arguments for a function; JSON.
        inputs: files from outside the run; their names and contents enter the fingerprint, and the order of those of
            one name.
    """

    name: str
    needs: tuple[str, ...] = ()
    bundle: str | None = None
    run_id: str = "training"
    config_files: tuple[str, ...] = ("train.json",)
    function: str | None = None
    overrides: Mapping[str, Any] = field(default_factory=dict)
    inputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if (self.bundle is None) == (self.function is None):
            raise ValueError(f"stage {self.name} must have either a bundle or a function")

    @property
    def config_paths(self) -> list[Path]:
        """The config files; none for a function."""
        return [] if self.bundle is None else [Path(self.bundle, "configs", name) for name in self.config_files]


def fingerprint(stage: Stage, needed: Mapping[str, str]) -> str:
    """SHA-256 of everything that can change the stage's results.

    That is its settings (contents of the config files and overrides, but for devices, threads and workers), its inputs,
    the fingerprints of the stages it needs, and the version of this package.

    Args:
        stage: the stage.
        needed: fingerprints of (at least) the stages in ``stage.needs``.

    Raises:
        InputError: if a config file or an input is missing.
    """
    content = {
        "stage": stage.name,
        "bundle": stage.bundle and Path(stage.bundle).name,
        "run": stage.run_id if stage.bundle else stage.function,
        "configs": [_read_config(path) for path in stage.config_paths],
        "overrides": _with_effect(stage.overrides),
        "inputs": sorted(((os.path.basename(path), content_of(path)) for path in stage.inputs), key=itemgetter(0)),
        "needs": {name: needed[name] for name in stage.needs},
        "version": plugins.__version__,
    }
    try:
        text = json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:
        raise InputError(
            f"stage {stage.name} has a setting that is no JSON ({error}). Write it as plain JSON."
        ) from error
    return hashlib.sha256(text.encode()).hexdigest()


def fill_in(value: Any, stage_dir: str | os.PathLike[str], run_dir: str | os.PathLike[str]) -> Any:
    """``value`` with ``{stage}`` and ``{run}`` at the start of its strings replaced by the two folders, at any depth.

    Example:
        >>> fill_in({"output_dir": "{stage}/models"}, stage_dir="a", run_dir="b")
        {'output_dir': 'a/models'}
    """
    if isinstance(value, Mapping):
        return {key: fill_in(item, stage_dir, run_dir) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [fill_in(item, stage_dir, run_dir) for item in value]
    if isinstance(value, str):
        for mark, folder in ((STAGE_FOLDER, stage_dir), (RUN_FOLDER, run_dir)):
            if value == mark or value.startswith(mark + "/"):
                return os.fspath(folder) + value[len(mark) :]
    return value


def _read_config(path: Path) -> Any:
    if not path.is_file():
        raise InputError(f"{path} is missing. Set bundles_dir to the folder of the bundles.")
    try:
        return _with_effect(read_json(path))
    except json.JSONDecodeError as error:
        raise InputError(f"{path} is not JSON ({error}). Correct it.") from error


def _with_effect(value: Any) -> Any:
    """``value`` without the keys, at any depth and in any nested id, that cannot change results."""
    if isinstance(value, Mapping):
        return {
            key: _with_effect(item)
            for key, item in value.items()
            if not WITHOUT_EFFECT & {*key.replace("#", "::").split("::")}
        }
    if isinstance(value, list | tuple):
        return [_with_effect(item) for item in value]
    return value
