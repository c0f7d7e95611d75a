"""Writes scans from anywhere in the layout that the bundles read: links where it can, label maps where it must."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

import plugins
from plugins.data.checks import check_scan
from plugins.data.crossmoda import PLACES
from plugins.data.dicom import is_series
from plugins.data.names import is_plain
from plugins.data.nifti import Grid, is_packed, new_image
from plugins.data.rtstruct import CONTOUR_NAMES, draw_labels, is_structure_set
from plugins.data.scans import STRUCTURES, read_grid, read_label, read_scan
from plugins.errors import InputError
from plugins.files import FULL_BYTES, whole_file, write_json
from plugins.locks import LOCK, sole_owner
from plugins.progress import Progress
from plugins.state import read_state, recall_state
from plugins.store import content_of, digest_of

SUMMARY = "summary.json"
RELEASED_LABELS = "labels_as_released"
_MADE_FROM = "made_from.json"
_DONE = "done"


@dataclass(frozen=True)
class Entry:
    """A scan to be put in its place.

    Args:
        case: plain text, unique.
        split: a key of :data:`plugins.data.crossmoda.PLACES`.
        image: NIfTI file, or folder of a DICOM series.
        label: NIfTI file or RT Structure Set.
        site: for the summary.
    """

    case: str
    split: str
    image: Path
    label: Path | None = None
    site: str = "unknown"


@dataclass(frozen=True)
class Rules:
    """How labels are read.

    Args:
        merge: value in a label file: value in the layout; ``None`` keeps files of 0, 1 and 2 as they are.
        keep_labels: also link label files as they are to ``labels_as_released``.
        names: label: names of the structures of a structure set.
        need_all: leave a ceT1 out if its label lacks one of the structures.
        copy: copy files instead of linking to them.
    """

    merge: Mapping[int, int] | None = None
    keep_labels: bool = False
    names: Mapping[int, Sequence[str]] = field(default_factory=lambda: CONTOUR_NAMES)
    need_all: bool = True
    copy: bool = False


def write_layout(
    folder: Path, entries: Sequence[Entry], rules: Rules, left_out: Iterable[tuple[str, str]] = ()
) -> dict[str, Any]:
    """Put scans in their places below ``folder``, which appears when all is done; what was stopped goes on.

    Args:
        folder: new, empty, or made by the same call before: then scans that could not be used are tried again, files
            that are gone are made again, and all else is left as it is.
        entries: the scans.
        rules: how labels are read.
        left_out: what the caller left out, and why.

    Returns:
        What ``summary.json`` in ``folder`` holds; ``faults`` are the scans that could not be used.

    Raises:
        InputError: if ``folder`` holds anything else, cannot be made or lies in a scan, if a case is no plain
            and unique file name, or if no scan is left.
    """
    folder = folder.absolute()
    _check(folder, entries)
    made_from = _fingerprint(entries, rules)
    if (folder / SUMMARY).is_file():
        return _mended(folder, entries, rules, left_out, made_from)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: holds something else already. Choose a new or an empty folder.")
    part = folder.with_name(f".part-{folder.name}")
    try:
        part.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error}). Choose a folder that you may write to.") from error
    with sole_owner(part, "preparation"):
        if (folder / SUMMARY).is_file():  # made by the one that was waited for
            return _mended(folder, entries, rules, left_out, made_from)
        _begin(part, folder, made_from)
        measured = _write_all(part, entries, rules, [])
        summary = {"made_from": made_from, **_summary(measured, left_out)}
        if summary["splits"]:
            _finish(part, folder, summary)
            return summary
    shutil.rmtree(part)
    reasons = "; ".join(each["why"].rstrip(".") for each in [*summary["faults"], *summary["left_out"]][:3])
    raise InputError(f"{folder}: no scan is left to be written ({reasons or 'none was found'}). Correct the input.")


def _earlier(folder: Path, made_from: Mapping[str, str]) -> dict[str, Any]:
    summary = read_state(folder / SUMMARY, dict[str, Any], _cure(folder))
    if summary.get("made_from") != made_from:
        raise InputError(f"{folder}: was made from other files or with other options. Choose another folder.")
    return summary


def _mended(
    folder: Path,
    entries: Sequence[Entry],
    rules: Rules,
    left_out: Iterable[tuple[str, str]],
    made_from: Mapping[str, str],
) -> dict[str, Any]:
    """The summary of what the same call made before, after making what is missing of it."""
    summary = _earlier(folder, made_from)
    if not summary["faults"] and all(_is_whole(folder, scan) for scan in summary.get("scans", [])):
        return summary
    with sole_owner(folder, "preparation"):
        measured = _write_all(folder, entries, rules, _earlier(folder, made_from).get("scans", []))
        summary = {"made_from": made_from, **_summary(measured, left_out)}
        write_json(folder / SUMMARY, summary)
        _tidy(folder)
    return summary


def _is_whole(folder: Path, scan: Mapping[str, Any]) -> bool:
    return "why" not in scan and all((folder / file).exists() for file in scan.get("files", []))


def _begin(part: Path, folder: Path, made_from: Mapping[str, str]) -> None:
    """Keep what the same call left in ``part`` when it was stopped, and remove what another one left."""
    present = [path for path in part.iterdir() if path.name != LOCK and not path.name.startswith(".part-")]
    if present and part / _MADE_FROM not in present:
        raise InputError(f"{part}: is where {folder} is prepared, but holds something else. Rename it.")
    if present and read_state(part / _MADE_FROM, dict[str, str], _cure(part)) != made_from:
        for path in present:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    write_json(part / _MADE_FROM, made_from)


def _finish(part: Path, folder: Path, summary: Mapping[str, Any]) -> None:
    _tidy(part)
    write_json(part / SUMMARY, summary)
    if folder.exists():
        folder.rmdir()
    part.rename(folder)


def _tidy(folder: Path) -> None:
    shutil.rmtree(folder / _DONE, ignore_errors=True)
    for path in [*folder.rglob(".part-*"), folder / _MADE_FROM, folder / LOCK]:
        path.unlink(missing_ok=True)


def _cure(folder: Path) -> str:
    return f"Remove {folder}, and give the command again"


def _check(folder: Path, entries: Sequence[Entry]) -> None:
    places = Counter((entry.case, entry.split) for entry in entries)
    for entry in entries:
        if not is_plain(entry.case):
            raise InputError(f"{entry.image}: its case {entry.case!r} is no plain file name. Give it another.")
        if places[entry.case, entry.split] > 1:
            raise InputError(f"{entry.image}: is one of two scans of case {entry.case}. Give it another case.")
        if is_series(entry.image) and entry.image.resolve() in (folder.resolve(), *folder.resolve().parents):
            raise InputError(f"{folder}: lies in the scan {entry.image}. Choose a folder outside.")


def _fingerprint(entries: Sequence[Entry], rules: Rules) -> dict[str, str]:
    """SHA-256 of the rules and of the places and contents of all files."""
    listed: list[Any] = [{**asdict(rules), "merge": str(rules.merge), "names": str(rules.names)}]
    for entry in entries:
        files = [path for path in (entry.image, entry.label) if path is not None]
        contents = [(os.fspath(path), content_of(path)) for path in files if path.exists()]
        listed.append((entry.case, entry.split, entry.site, contents))
    return {"version": plugins.__version__, "files": digest_of([], listed)}


def _write_all(
    part: Path, entries: Sequence[Entry], rules: Rules, known: Iterable[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Write the scans that are not ``known`` to be whole."""
    recalled = {f"{scan['split']}-{scan['case']}": scan for scan in known}
    measured = []
    with Progress(total=len(entries), description="preparing scans") as progress:
        for entry in entries:
            name = f"{entry.split}-{entry.case}"
            done = part / _DONE / f"{name}.json"
            result = recalled.get(name) or recall_state(done, dict[str, Any], "The scan is prepared again")
            if result is None or not _is_whole(part, result):
                try:
                    result = _write(part, entry, rules)
                except (InputError, OSError) as error:
                    if shutil.disk_usage(part).free < FULL_BYTES:
                        raise
                    result = {"file": os.fspath(entry.image), "why": " ".join(str(error).split())}
                write_json(done, result)
            measured.append(result)
            progress.advance()
    return measured


def _write(part: Path, entry: Entry, rules: Rules) -> dict[str, Any]:
    """Write a scan and its label, and return what the summary says of it."""
    scans, contrast, labels = PLACES[entry.split]
    image = part / scans / f"{entry.case}_{contrast}{_ending(entry.image)}"
    label = part / labels / f"{entry.case}_Label.nii.gz"
    files = [image]
    result: dict[str, Any] = {}
    try:
        _put(entry.image, image, rules.copy)
        check_scan({"image": image})
        scan = read_grid(image)
        about: dict[str, Any] = {}
        if entry.label is not None:
            label, unknown = _put_label(entry.label, label, scan, rules)
            check_scan({"image": image, "label": label})
            files.append(label)
            about = {"ml": _volumes(label), "unknown": unknown}
            lacking = [name for name, volume in about["ml"].items() if volume == 0]
            if lacking and rules.need_all and entry.split == "training_source":
                cure = "Allow it by --incomplete if that is true of the patient"
                raise InputError(f"{entry.label}: shows no {' and no '.join(lacking)}. {cure}.")
            if rules.keep_labels and not is_structure_set(entry.label):
                files.append(part / RELEASED_LABELS / f"{entry.case}_Label{_ending(entry.label)}")
                _put(entry.label, files[-1], rules.copy)
        about["files"] = [file.relative_to(part).as_posix() for file in files]
        spacing = [round(size, 4) for size in scan.spacing]
        result = {"case": entry.case, "split": entry.split, "site": entry.site, "spacing": spacing, **about}
    except InputError as error:
        shown = str(error).replace(os.fspath(image), os.fspath(entry.image))
        raise InputError(shown.replace(os.fspath(label), str(entry.label))) from error
    finally:
        if not result:
            image.unlink(missing_ok=True)
            label.unlink(missing_ok=True)
    return result


def _volumes(label: Path) -> dict[str, float]:
    stored = read_label(label)
    ml = stored.voxel_mm3 / 1000
    return {name: float(np.count_nonzero(stored.voxels == value)) * ml for name, value in STRUCTURES.items()}


def _put(source: Path, place: Path, copy: bool) -> None:
    """Make ``place`` show the scan ``source``: a link, a copy, or a NIfTI file of a DICOM series."""
    if is_series(source):
        series = read_scan(source)
        _save(place, new_image(series.voxels, series.affine))
        return
    place.parent.mkdir(parents=True, exist_ok=True)
    if not copy:
        link = place.with_name(f".part-{place.name}")
        try:
            link.unlink(missing_ok=True)
            link.symlink_to(source.resolve())
            link.replace(place)
            return
        except OSError:  # a file system or an account without links
            link.unlink(missing_ok=True)
    with whole_file(place) as part:
        shutil.copyfile(source, part)


def _put_label(source: Path, place: Path, scan: Grid, rules: Rules) -> tuple[Path, list[str]]:
    """Write or link the label of a scan; return where, and the names of structures that were left out."""
    if is_structure_set(source):
        labels, unknown = draw_labels(source, scan.shape, scan.affine, rules.names)
        _save(place, new_image(labels, scan.affine))
        return place, unknown
    if rules.merge is None:
        place = place.with_name(place.name.removesuffix(".nii.gz") + _ending(source))
        _put(source, place, rules.copy)
        return place, []
    stored = read_label(source, [0, *rules.merge], of=scan)
    merged = np.zeros(stored.shape, dtype=np.uint8)
    for value, label in rules.merge.items():
        merged[stored.voxels == value] = label
    _save(place, stored.image(merged, np.uint8))
    return place, []


def _ending(path: Path) -> str:
    """``.nii`` or ``.nii.gz``, by the content: files behind links may have no ending of their own."""
    if is_series(path):
        return ".nii.gz"
    if not path.is_file():
        raise InputError(f"{path}: does not exist. Restore it or correct the path.")
    return ".nii.gz" if is_packed(path) else ".nii"


def _save(path: Path, image: nib.Nifti1Image) -> None:
    with whole_file(path) as part:
        nib.save(image, part)


def _summary(measured: Sequence[Mapping[str, Any]], left_out: Iterable[tuple[str, str]]) -> dict[str, Any]:
    good = [scan for scan in measured if "why" not in scan]
    splits = {}
    for split in PLACES:
        scans = [scan for scan in good if scan["split"] == split]
        if not scans:
            continue
        labelled = [scan["ml"] for scan in scans if "ml" in scan]
        spacings = np.array([scan["spacing"] for scan in scans])
        splits[split] = {
            "scans": len(scans),
            "labels": len(labelled),
            "sites": dict(sorted(Counter(scan["site"] for scan in scans).items())),
            "spacing_mm": {"smallest": spacings.min(0).tolist(), "largest": spacings.max(0).tolist()},
            "ml": {name: _spread([each[name] for each in labelled]) for name in ("VS", "cochlea") if labelled},
        }
    return {
        "splits": splits,
        "unknown_structures": dict(Counter(name for scan in good for name in scan.get("unknown", []))),
        "scans": good,
        "faults": [{"file": scan["file"], "why": scan["why"]} for scan in measured if "why" in scan],
        "left_out": [{"file": file, "why": why} for file, why in left_out],
    }


def _spread(values: Sequence[float]) -> dict[str, float]:
    found = {"smallest": min(values), "median": float(np.median(values)), "largest": max(values)}
    return {name: round(value, 4) for name, value in found.items()}
