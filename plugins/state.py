"""The one reader of what this package has written for itself: JSON of a known form, tensors with their SHA-256.

What cannot be made again is refused, with the file, the fault and the cure. What can is made again, with a warning.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from pickle import UnpicklingError
from types import MappingProxyType
from typing import Any, TypeVar, cast

import torch
from pydantic import TypeAdapter, ValidationError

from plugins.errors import InputError
from plugins.files import whole_file

StrPath = str | os.PathLike[str]
T = TypeVar("T")
SUM = ".sha256"
"""Ending of the file beside weights that holds their SHA-256, as ``sha256sum -c`` reads it."""
_logger = logging.getLogger(__name__)


def read_state(path: StrPath, form: type[T], cure: str, names: Mapping[str, str] = MappingProxyType({})) -> T:
    """Read JSON that this package wrote.

    Args:
        path: of the file.
        form: its type, such as ``dict[str, float]`` or a ``TypedDict``.
        cure: what to do where it cannot be read, a sentence without its full stop.
        names: of texts in files of earlier versions, at any depth, to their names of today.

    Raises:
        InputError: naming the file, the fault and the cure, if it is missing, damaged or of another form.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content: T = json.loads(text, object_hook=lambda node: _of_today(node, names))
        _adapter(cast(Any, form)).validate_python(content, strict=True)
    except (OSError, ValueError) as error:  # of which pydantic's and JSON's are
        raise InputError(f"{path} is {_fault(error)}. {cure}.") from error
    return content


def recall_state(
    path: StrPath, form: type[T], instead: str, names: Mapping[str, str] = MappingProxyType({})
) -> T | None:
    """Read JSON that can be made again: ``None`` if it is missing or, with a warning, if it is damaged.

    Args:
        path: of the file.
        form: its type.
        instead: what happens now, for the warning, a sentence without its full stop.
        names: as in :func:`read_state`.
    """
    if not os.path.lexists(path):
        return None
    try:
        return read_state(path, form, instead, names)
    except InputError as error:
        _logger.warning("%s", error)
        return None


def _of_today(node: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(name, name) if isinstance(value, str) else name: value for name, value in node.items()}


@lru_cache(maxsize=64)
def _adapter(form: Any) -> TypeAdapter[Any]:
    return TypeAdapter(form)


def _fault(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "missing"
    if isinstance(error, OSError):
        return f"unreadable ({error.strerror})"
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        place = ".".join(map(str, first["loc"]))
        return f"damaged ({place + ': ' if place else ''}{first['msg'].lower()})"
    return f"damaged ({error})" if isinstance(error, json.JSONDecodeError) else "damaged (no text)"


def write_tensors(content: Any, path: StrPath) -> None:
    """Write tensors for :func:`read_tensors`, whole or not at all.

    Raises:
        InputError: if the disk is full.
    """
    with whole_file(path) as part:
        torch.save(content, part)


def write_weights(weights: Any, path: StrPath) -> None:
    """Write weights, whole or not at all, and their SHA-256 beside them.

    Until the new file stands, the sum is that of the old one too, so a run may be killed at any moment.

    Raises:
        InputError: if the disk is full.
    """
    path = Path(path)
    with whole_file(path) as part:
        torch.save(weights, part)
        new = _sum(part)
        _write_sums(path, [new, *_sums(path)])
    _write_sums(path, [new])


def read_tensors(path: StrPath, cure: str, device: Any = "cpu", mmap: bool = False) -> Any:
    """Read weights or a checkpoint; no code in it is run.

    Args:
        path: of the file.
        cure: what to do where it cannot be read, a sentence without its full stop.
        device: for the tensors.
        mmap: leave tensors on the disk until they are used.

    Raises:
        InputError: naming the file, the fault and the cure, if it is missing, damaged, or not the file that its SHA-256
            was written for.
    """
    check_tensors(path, cure)
    try:
        return torch.load(path, map_location=device, weights_only=True, mmap=mmap)
    except (RuntimeError, ValueError, TypeError, EOFError, LookupError, OSError, UnpicklingError) as error:
        raise InputError(f"{path} cannot be read as tensors. {cure}.") from error


def check_tensors(path: StrPath, cure: str) -> None:
    """Make sure that a file of tensors is whole: by its SHA-256, or without one by the checksums within.

    Raises:
        InputError: as :func:`read_tensors`.
    """
    path = Path(path)
    try:
        sums = _sums(path)
        if sums and _sum(path) not in sums:
            raise InputError(f"{path} is damaged: its SHA-256 is not that in {path.name}{SUM}. {cure}.")
        if not sums:
            with zipfile.ZipFile(path) as archive:
                broken = archive.testzip()
            if broken is not None:
                raise InputError(f"{path} is damaged (checksum of {broken}). {cure}.")
    except (OSError, zipfile.BadZipFile, RuntimeError, EOFError) as error:
        fault = _fault(error) if isinstance(error, OSError) else "damaged (no file of tensors)"
        raise InputError(f"{path} is {fault}. {cure}.") from error


def copy_weights(source: StrPath, target: StrPath) -> None:
    """Copy weights, whole or not at all, and write the SHA-256 of the copy.

    Raises:
        InputError: as :func:`read_tensors`.
    """
    check_tensors(source, "Copy it again, or train again")
    target = Path(target)
    content = Path(source).read_bytes()
    new = hashlib.sha256(content).hexdigest()
    with whole_file(target) as part:
        part.write_bytes(content)
        _write_sums(target, [new, *_sums(target)])
    _write_sums(target, [new])


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sums(path: Path) -> list[str]:
    """The SHA-256 that a file of tensors may have."""
    file = path.with_name(path.name + SUM)
    lines = file.read_text(encoding="utf-8", errors="replace").splitlines() if file.is_file() else []
    return [line.split(maxsplit=1)[0] for line in lines if line.strip()]


def _write_sums(path: Path, sums: Sequence[str]) -> None:
    with whole_file(path.with_name(path.name + SUM)) as part:
        part.write_text("".join(f"{each}  {path.name}\n" for each in sums))
