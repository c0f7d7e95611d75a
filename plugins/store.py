"""The one record of what an output was made from: content of its inputs, weights, settings, version of this package.

An output is made again exactly when one of these has changed. A file that is not as this package wrote it is never
replaced.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

from typing_extensions import TypedDict

import plugins
from plugins.errors import InputError
from plugins.files import whole_file, write_json
from plugins.state import SUM, check_tensors, read_state

StrPath = str | os.PathLike[str]
RECORD, TRAINING = "made.json", "training.json"
EARLIER_NAMES = {"origin": "made_from"}  # in files of version 0.1.0
OF_USE = frozenset(("network_def::code::site",))
"""Settings that outputs depend on, and no weights: they may be others when a network is used."""
FIELD = ("crop_size", "patch_size")
"""They may be others too, but together: a pixel spans ``spacing`` times their ratio."""
COMPUTED = ("@", "$", "%")
PREPROCESSING = ("preprocessing", "train::preprocessing")
"""What makes slices of scans, in a use and in a training."""


def content_of(path: StrPath) -> str:
    """SHA-256 of a file, or of all files in a folder with their names.

    Raises:
        InputError: if it cannot be read.
    """
    path = Path(path)
    try:
        if path.is_dir():
            parts = [f"{file.name} {content_of(file)}" for file in sorted(path.iterdir()) if file.is_file()]
            return hashlib.sha256("\n".join(parts).encode()).hexdigest()
        status = path.stat()
        return _digest(str(path.resolve()), status.st_size, status.st_mtime_ns, status.st_ino)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}). Restore it.") from error


@lru_cache(maxsize=4096)
def _digest(path: str, *status: int) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Mark(TypedDict):
    """A file as it was written: bytes, time of change in ns, content."""

    size: int
    changed: int
    sha256: str


def mark_of(path: StrPath) -> Mark:
    """The mark of a file as it is now.

    Raises:
        InputError: if it cannot be read.
    """
    status = Path(path).stat()
    return {"size": status.st_size, "changed": status.st_mtime_ns, "sha256": content_of(path)}


def is_as_marked(path: StrPath, mark: Mark) -> bool:
    """Whether a file is there as it was; one of the same size and time of change is taken for the same, as by Git."""
    path = Path(path)
    if not path.is_file():
        return False
    status = path.stat()
    if status.st_size != mark["size"]:
        return False
    return status.st_mtime_ns == mark["changed"] or content_of(path) == mark["sha256"]


def digest_of(inputs: Iterable[StrPath], settings: Any) -> str:
    """SHA-256 of all that something is made from, as records hold it under ``made_from``.

    Args:
        inputs: files or folders, in an order that matters.
        settings: on which the output depends; what is no JSON counts by its text.
    """
    facts = {"inputs": [content_of(path) for path in inputs], "settings": settings, "version": plugins.__version__}
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


class _Output(TypedDict):
    made_from: str
    content: list[str]


class _Outputs(TypedDict):
    outputs: dict[str, _Output]


class TrainingFacts(TypedDict):
    """``training.json``: what a training was given."""

    settings: dict[str, Any]
    data: str


class Store:
    """The outputs in a folder and what they were made from, in ``made.json`` there.

    Args:
        folder: of the outputs.
    """

    def __init__(self, folder: StrPath):
        self.folder = Path(folder)

    @property
    def _file(self) -> Path:
        return self.folder / RECORD

    def records(self) -> dict[str, _Output]:
        """File name to ``{"made_from", "content"}``.

        Raises:
            InputError: if the record cannot be read.
        """
        if not self._file.is_file():
            return {}
        cure = "Choose another output_dir, or move away what this program has written there"
        return read_state(self._file, _Outputs, cure, EARLIER_NAMES)["outputs"]

    def is_current(self, file: StrPath, made_from: str) -> bool:
        """Whether an output is there as it was made, and from the same.

        Raises:
            InputError: if a file is there that is not as this package wrote it.
        """
        path = Path(file)
        if not path.exists():
            return False
        record = self.records().get(path.name)
        content = content_of(path)
        if record is None or content not in record["content"]:
            fault = "was not made by this program" if record is None else "was changed since this program made it"
            raise InputError(f"{path}: {fault}. Move it away, or choose another output_dir.")
        return bool(record["made_from"] == made_from and record["content"][0] == content)

    def write(self, file: StrPath, made_from: str, save: Any) -> None:
        """Write an output, whole or not at all, with its record.

        Args:
            file: within the folder.
            made_from: of :func:`digest_of`.
            save: called with the path to write to.

        Raises:
            InputError: if a file is there that is not as this package wrote it, or the disk is full.
        """
        path = Path(file)
        self.is_current(path, made_from)
        with whole_file(path) as part:
            save(part)
            with part.open("rb") as written:
                content = [hashlib.file_digest(written, "sha256").hexdigest()]
            if path.exists():  # as long as the new file has not replaced the old one, both are ours
                content.append(content_of(path))
            outputs = {**self.records(), path.name: {"made_from": made_from, "content": content}}
            write_json(self._file, {"version": plugins.__version__, "outputs": outputs})

    def remove_older(self, file: StrPath, made_from: str) -> None:
        """Remove an output that was made from something else, so that it does not stand beside newer ones as theirs.

        Args:
            file: within the folder; one that is not as this package wrote it stays.
            made_from: of the newer ones.
        """
        path, outputs = Path(file), self.records()
        record = outputs.pop(path.name, None)
        if record is None or record["made_from"] == made_from or not path.is_file():
            return
        if content_of(path) in record["content"]:
            path.unlink()
            write_json(self._file, {"version": plugins.__version__, "outputs": outputs})


def check_output_dir(output_dir: StrPath, inputs: Iterable[StrPath]) -> None:
    """Try an output folder before the work.

    Raises:
        InputError: if inputs lie in it, or if nothing can be written there.
    """
    folder = Path(output_dir)
    for path in inputs:
        if Path(path).absolute().parent.resolve() == folder.resolve() or Path(path).resolve() == folder.resolve():
            raise InputError(f"output_dir is {folder}, where {Path(path).name} lies. Choose another one.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with whole_file(folder / ".try") as part:
            part.write_bytes(b"")
        (folder / ".try").unlink()
    except OSError as error:
        fault = f"{folder}: nothing can be written there ({error.strerror})"
        raise InputError(f"{fault}. Choose another output_dir.") from error


def read_training(folder: StrPath, name: str = TRAINING) -> TrainingFacts | None:
    """What the training in a folder was given, as :class:`plugins.engines.TrainingRecord` keeps it; ``None`` without.

    Raises:
        InputError: if the record cannot be read.
    """
    file = Path(folder) / name
    if not file.is_file():
        return None
    return read_state(file, TrainingFacts, "Set another ckpt_dir, or train anew")


def check_weights(
    weights: StrPath, settings: Mapping[str, Any], cure: str = "Give the settings of the training"
) -> None:
    """Make sure that weights are whole, and that they are used as they were trained.

    Args:
        weights: of a translator.
        settings: with which they are to be used; weights without ``training.json`` beside them may have any.
        cure: what to do where a setting differs, a sentence without its full stop.

    Raises:
        InputError: if the file is damaged or another than its SHA-256 was written for, or if a setting differs.
    """
    check_tensors(weights, f"Copy it again, with {Path(weights).name}{SUM}, or train again")
    record = read_training(Path(weights).parent)
    if record is None:
        return
    trained, compared = record["settings"], {name: each for name, each in settings.items() if name not in FIELD}
    before, now = _slicing(trained), _slicing(settings)
    other = difference(trained, compared) or _other_pixels(before, now)
    other = other or difference(before, {name: each for name, each in now.items() if name not in FIELD})
    if other:
        raise InputError(f"{weights}: was trained with {other}. {cure}.")


def difference(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """The first setting of ``given`` that differs, in words; empty if there is none.

    Settings that only one of the two has are not compared; within one, what is left out counts as ``None``. Older
    records hold arguments of a component by their names alone. A class that has moved is the same class. Those of
    :data:`OF_USE` may differ.
    """
    recorded = _as_of_today(recorded)
    plain = json.loads(json.dumps(dict(given), default=str))
    pairs = [(name, recorded[name], plain[name]) for name in plain if name in recorded]
    pairs += [
        (f"{node}::{name}", recorded[name], content[name])
        for node, content in plain.items()
        if node not in recorded
        for name in (content if isinstance(content, Mapping) else ())
        if name in recorded and name not in plain and not str(content[name]).startswith(COMPUTED)
    ]
    differences = (each for each in chain.from_iterable(_differences(*pair) for pair in pairs) if each[0] not in OF_USE)
    return next((f"{name} {before!r}, not {now!r}" for name, before, now in differences), "")


def _slicing(settings: Mapping[str, Any]) -> dict[str, Any]:
    """How scans become slices: arguments of the preprocessing, with settings in place of references to them."""
    node = next((settings[name] for name in PREPROCESSING if name in settings), None)
    if not isinstance(node, Mapping):  # records of version 0.1.0 hold arguments by their names
        return dict(settings)
    names = {name: str(value).removeprefix("@") for name, value in node.items() if str(value).startswith("@")}
    found = {**node, **{name: settings[other] for name, other in names.items() if other in settings}}
    return {name: value for name, value in found.items() if not str(value).startswith(COMPUTED)}


def _other_pixels(recorded: Mapping[str, Any], given: Mapping[str, Any]) -> str:
    """How the ratio of crop to patch differs, in words; empty if it does not, or is known by an expression only."""
    fields: list[Any] = [settings.get(name) for settings in (recorded, given) for name in FIELD]
    if not all(isinstance(size, (list, tuple)) and all(isinstance(side, int) for side in size) for size in fields):
        return ""
    crop, patch, new_crop, new_patch = (list(size) for size in fields)
    if all(a * d == b * c for a, b, c, d in zip(crop, patch, new_crop, new_patch, strict=True)):
        return ""
    other = f"crop_size {new_crop} and patch_size {new_patch}, whose pixels are of another size"
    return f"crop_size {crop} and patch_size {patch}, not {other} (set patch_size too)"


def _as_of_today(settings: Any) -> Any:
    """Settings of version 0.1.0 under the names of today."""
    if isinstance(settings, Mapping):
        return {key: _as_of_today(value) for key, value in settings.items() if key != "fast_convolutions"}
    if isinstance(settings, list):
        return [_as_of_today(value) for value in settings]
    return settings.replace("plugins.losses.", "plugins.networks.") if isinstance(settings, str) else settings


def _differences(name: str, before: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in dict.fromkeys((*before, *now)):
            yield from _differences(f"{name}::{key}", before.get(key), now.get(key))
    elif before != now:
        yield name, before, now
