"""What files are called: cases, contrasts, and what in a folder is passed over."""

from __future__ import annotations

import gzip
import logging
import os
import re
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from plugins.data.dicom import is_dicom_folder, looks_like_dicom
from plugins.data.nifti import is_packed
from plugins.errors import InputError

CONTRASTS = ("ceT1", "hrT2", "T2")
UNMISTAKABLE = ("ceT1", "hrT2")
"""Contrasts whose capitals never matter; ``_t2`` is often a part of the case."""
LABEL = "Label"
MAX_NAME_BYTES = 200

_NIFTI = re.compile(r"(?P<stem>[^.].*)\.nii(\.gz)?", re.IGNORECASE)
_OTHER_IMAGES = (".nrrd", ".nhdr", ".mha", ".mhd", ".img", ".hdr", ".mgz", ".mnc")
_DEPTH, _SHOWN = 3, 5
_logger = logging.getLogger(__name__)


def check_cases(cases: Iterable[Any], place: str | os.PathLike[str]) -> None:
    """Make sure that every case can name a file, and one file only.

    Raises:
        InputError: for a case that is no plain file name of at most 200 bytes, or that occurs twice.
    """
    seen: set[str] = set()
    twice: set[str] = set()
    for case in cases:
        if not (isinstance(case, str) and is_plain(case)):
            shown = repr(case) if len(repr(case)) <= 60 else f"{repr(case)[:57]}..."
            cure = f"Give a file name of 1 to {MAX_NAME_BYTES} characters, without folders"
            raise InputError(f"{place}: the case {shown} cannot name a file. {cure}.")
        (twice if case in seen else seen).add(case)
    if twice:
        raise InputError(f"{place}: lists {', '.join(sorted(twice))} twice. Write it again with every scan once.")


def is_plain(case: str) -> bool:
    """Whether a case can name a file of any file system."""
    try:
        length = len(case.encode())
    except UnicodeEncodeError:
        return False
    named = case.isprintable() and case == case.strip() and case[:1] not in ("", ".")
    return named and not {"/", "\\"} & {*case} and length <= MAX_NAME_BYTES


def nifti_files(folder: Path, nested: Sequence[str] = ()) -> Iterator[Path]:
    """The NIfTI files in a folder, by name; what macOS adds (``._*``) is left out.

    Args:
        folder: where they lie.
        nested: names of subfolders that count as the folder itself.

    Raises:
        InputError: for a link to a file that does not exist.
    """
    for path in sorted(folder.iterdir()):
        if path.is_symlink() and not path.exists() and not path.name.startswith("."):
            cure = "Fetch what it points to (git annex get, datalad get), or remove the link"
            raise InputError(f"{path}: is a link to a file that does not exist. {cure}.")
        if path.is_dir() and path.name in nested:
            yield from nifti_files(path, nested)
        elif path.is_file() and _NIFTI.fullmatch(path.name):
            yield path


def by_case(files: Iterable[Path], kind: str | None) -> dict[str, Path]:
    """The files that end in ``_<kind>``, or all that are no labels, by case in natural order.

    Raises:
        InputError: for a second file of a case, or a name that is too long.
    """
    found: dict[str, Path] = {}
    for path in files:
        case, own = split_name(path, kind)
        if own != kind if kind else own == LABEL:
            continue
        if case in found:
            raise InputError(f"{path}: is a second file of case {case}, beside {found[case]}. Remove one of them.")
        check_cases([case], path)
        found[case] = path.absolute()
    return {case: found[case] for case in sorted(found, key=natural)}


def split_name(path: str | os.PathLike[str], wanted: str | None = None) -> tuple[str, str | None]:
    """Case and kind of a file; a contrast that is unknown here stays in the case, even if it is the ``wanted`` one.

    Capitals do not matter for the wanted contrast; without one, for ceT1 and hrT2.

    Example:
        >>> split_name("a_hrT2.nii.gz"), split_name("b_label.NII.GZ"), split_name("c_t2.nii", "T2")
        (('a', 'hrT2'), ('b', 'Label'), ('c', 'T2'))
    """
    name = Path(path).name
    match = _NIFTI.fullmatch(name)
    stem = match["stem"] if match else name
    loose = {LABEL, *(UNMISTAKABLE if wanted is None else (wanted,))}
    for kind in (*CONTRASTS, LABEL):
        end = stem[-len(kind) - 1 :]
        if end == f"_{kind}" or (kind in loose and end.lower() == f"_{kind.lower()}"):
            return stem[: -len(kind) - 1], kind
    return stem, wanted if wanted and stem.endswith(f"_{wanted}") else None


def report_passed_over(folder: Path, used: Iterable[str], contrast: str | None, nested: Sequence[str] = ()) -> None:
    """Warn of what looks like a scan in a folder, but is not among those used, and say how to have it used.

    Args:
        folder: where it lies.
        used: paths of scans, labels and folders of DICOM series.
        contrast: that was asked for.
        nested: names of subfolders that count as the folder itself.
    """
    taken = {os.path.abspath(path) for path in used}
    groups: defaultdict[str, list[str]] = defaultdict(list)
    others, series = (
        f"name them *_{contrast}{ending}, or set contrast" if contrast else "rename them" for ending in (".nii.gz", "")
    )
    for path in sorted(folder.iterdir()):
        if path.name.startswith(".") or path.name.endswith("_Label.dcm") or os.path.abspath(path) in taken:
            continue
        if path.is_dir():
            if path.name in nested:
                report_passed_over(path, taken, contrast, nested)
            elif _holds_scans(path):
                other = is_dicom_folder(path) and split_name(path, contrast)[1] not in (None, contrast)
                groups[series if other else "name that folder, or move its scans up"].append(path.name)
        elif _NIFTI.fullmatch(path.name):
            if split_name(path)[1] != LABEL:
                groups[others].append(path.name)
        elif looks_like_dicom(path):
            if os.path.abspath(folder) not in taken:
                groups["give each DICOM series a folder of its own"].append(path.name)
        elif path.name.lower().endswith(_OTHER_IMAGES):
            groups["convert them to .nii.gz"].append(path.name)
        elif _is_nifti(path):
            groups[f"name them *{f'_{contrast}' if contrast else ''}.nii.gz"].append(path.name)
    for cure, names in groups.items():
        _logger.warning(f"{folder}: passed over {shown(names)}; {cure}.")


def shown(names: Sequence[str]) -> str:
    """The first of some names for a message, and how many more there are."""
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _holds_scans(folder: Path, depth: int = _DEPTH) -> bool:
    try:
        children = [path for path in sorted(folder.iterdir()) if not path.name.startswith(".")]
    except OSError:  # who knows
        return True
    if is_dicom_folder(folder) or any(path.is_file() and _NIFTI.fullmatch(path.name) for path in children):
        return True
    return depth > 1 and any(_holds_scans(path, depth - 1) for path in children if path.is_dir())


def _is_nifti(path: Path) -> bool:
    """Whether a file of another name holds NIfTI."""
    try:
        with (gzip.open if is_packed(path) else open)(path, "rb") as file:
            head = file.read(348)
    except (OSError, EOFError, zlib.error):
        return False
    return head[344:347] == b"n+1" or head[4:7] == b"n+2"


def natural(name: str) -> list[str | int]:
    """A key that sorts ``a_2`` before ``a_10``."""
    return [int(part) if part.isdecimal() else part for part in re.split(r"(\d+)", name)]
