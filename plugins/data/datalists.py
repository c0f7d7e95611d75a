"""The lists of scans that the bundles' configs ask for, and datalist files."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Any

from plugins.data.crossmoda import crossmoda_datalist, label_files, scan_datalist
from plugins.data.names import check_cases, nifti_files, shown, split_name
from plugins.data.phantom import write_phantom
from plugins.errors import InputError
from plugins.files import read_json, write_json

StrPath = str | os.PathLike[str]
FILES = {"image": "the path of a scan", "label": "the path of a label map"}
VALUES = {"patient": "a name or number", "origin": "a name", "site": "a name", "weight": "a number"}
KEYS = ("case", *FILES, *VALUES)
_logger = logging.getLogger(__name__)


def dataset_or_phantom(dataset_dir: StrPath | None, bundle_root: StrPath) -> Path:
    """``dataset_dir``, or, where there is none, the phantom in ``<bundle_root>/eval/phantom``, written if missing."""
    if dataset_dir is not None:
        return Path(dataset_dir)
    phantom = Path(bundle_root) / "eval" / "phantom"
    write_phantom(phantom)
    return phantom


def unpaired_datalist(
    dataset_dir: StrPath | None, bundle_root: StrPath, label_dir: StrPath | None = None
) -> dict[str, list[dict[str, Any]]]:
    """Source scans with labels and target scans, of a folder in the CrossMoDA layout.

    Args:
        dataset_dir: that folder; ``None`` is the phantom.
        bundle_root: below which the phantom lies.
        label_dir: holds pseudo-labels ``<case>_Label.nii.gz``: target scans that have one get ``label`` and ``pseudo``.

    Returns:
        ``{"source": scans, "target": scans}``; the files are not read.

    Raises:
        InputError: if the folder does not hold both, or ``label_dir`` fits no target scan.
    """
    folder = dataset_or_phantom(dataset_dir, bundle_root)
    source = crossmoda_datalist(folder, "training_source")
    target: list[dict[str, Any]] = [*crossmoda_datalist(folder, "training_target")]
    if label_dir is not None:
        labelled = {item["case"]: {**item, "pseudo": True} for item in _with_labels(target, label_dir)}
        target = [labelled.get(item["case"], item) for item in target]
    return {"source": [*source], "target": target}


def segmentation_datalist(
    datalist: StrPath | None, dataset_dir: StrPath | None, bundle_root: StrPath, label_dir: StrPath | None = None
) -> list[dict[str, Any]]:
    """Scans with labels to train a segmentation on; a warning names scans that have none.

    Args:
        datalist: JSON datalist that is used as it is; its items may leave out all but ``image`` and ``label``.
        dataset_dir: a folder of ``<case>[_<contrast>].nii.gz`` and ``<case>_Label.nii.gz``, or one in the CrossMoDA
            layout, of which the training source is taken; ``None`` is the phantom.
        bundle_root: below which the phantom lies.
        label_dir: holds pseudo-labels ``<case>_Label.nii.gz``: the training target of ``dataset_dir`` is taken instead;
            scans without one are left out.

    Returns:
        ``{"case", "patient", "image", "label", "origin"}`` a scan; ``origin`` is ``real`` unless the datalist says
        otherwise. The files are not read.

    Raises:
        InputError: if a datalist and a folder are given, be it of scans or of labels, or no scan has a label.
    """
    _refuse_both(datalist, dataset_dir=dataset_dir, label_dir=label_dir)
    if datalist is not None:
        items, place = _read(datalist), Path(datalist)
    else:
        place = dataset_or_phantom(dataset_dir, bundle_root)
        if label_dir is not None:
            items = _with_labels(crossmoda_datalist(place, "training_target"), label_dir)
        elif place.is_dir() and any(nifti_files(place)):
            items = [*scan_datalist(place)]
        else:
            items = [*crossmoda_datalist(place, "training_source")]
    labelled = [{"patient": item["case"], "origin": "real", **item} for item in items if "label" in item]
    if not labelled:
        raise InputError(f"{place}: no scan has a label. Put <case>_Label.nii.gz beside the scans.")
    others = [item["case"] for item in items if "label" not in item]
    if others:
        cure = "Put <case>_Label.nii.gz beside them" if datalist is None else 'Add "label" to their items'
        fault = f"scans left out of training, as they have no label ({len(others)}): {shown(others)}"
        _logger.warning(f"{place}: {fault}. {cure}.")
    return labelled


def inference_datalist(
    datalist: StrPath | None, dataset_dir: StrPath | None, bundle_root: StrPath, contrast: str | None = None
) -> list[dict[str, Any]]:
    """Scans to predict from, with their labels where they have some.

    Args:
        datalist: JSON datalist; its items may leave out all but ``image``.
        dataset_dir: see :func:`plugins.data.scan_datalist`; ``None`` is the phantom.
        bundle_root: below which the phantom lies.
        contrast: ``ceT1`` or ``hrT2``: which files of a folder; ``None`` is all.

    Returns:
        ``{"case", "image", optional "label"}`` a scan, and what else the datalist holds; the files are not read.

    Raises:
        InputError: if both a datalist and a folder are given, there is no scan, or a case occurs twice, so that one
            result would overwrite another.
    """
    _refuse_both(datalist, dataset_dir=dataset_dir)
    if datalist is None:
        return [*scan_datalist(dataset_or_phantom(dataset_dir, bundle_root), contrast)]
    items = _read(datalist)
    if not items:
        raise InputError(f"{datalist}: lists no scan. Write it again with every scan once.")
    return items


def _refuse_both(datalist: StrPath | None, **folders: StrPath | None) -> None:
    for name, folder in folders.items():
        if datalist is not None and folder is not None:
            raise InputError(f"datalist ({datalist}) and {name} ({folder}) are both set. Give one of them.")


def write_datalist(path: str | os.PathLike[str], items: Sequence[Mapping[str, Any]]) -> None:
    """Write ``items`` as a MONAI datalist ``{"training": [...]}``; ``image`` and ``label`` become relative to it."""
    folder = Path(path).absolute().parent
    relative = [
        {key: os.path.relpath(value, folder) if key in ("image", "label") else value for key, value in item.items()}
        for item in items
    ]
    write_json(path, {"training": relative})


def read_datalist(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """Read the list ``training`` of a MONAI datalist file.

    Returns:
        The items; ``image`` and ``label`` are absolute paths.

    Raises:
        InputError: if the file, or a file that it names, is missing, if it is not such a list, if a value is of the
            wrong kind, or if a case cannot name a file or occurs twice.
    """
    path = Path(path).absolute()
    if not path.is_file():
        raise InputError(f"{path}: this datalist does not exist. Write it first or correct the path.")
    try:
        items: list[dict[str, Any]] = [{**item} for item in read_json(path)["training"]]
    except json.JSONDecodeError as error:
        raise InputError(f"{path}: is not JSON (line {error.lineno}: {error.msg}). Correct or rewrite it.") from error
    except (ValueError, TypeError, LookupError) as error:
        raise InputError(f'{path}: is not a datalist {{"training": [{{"image": ...}}]}}. Rewrite it.') from error
    check_cases([item["case"] for item in items if "case" in item], path)
    for number, item in enumerate(items, start=1):
        if "image" not in item:
            raise InputError(f'{path}: the item {item} has no "image". Add it or rewrite the datalist.')
        for key, wanted in (FILES | VALUES).items():
            if key in item and not _fits(key, item[key]):
                named = f"item {number} ({item.get('case', item['image'])})"
                raise InputError(f'{path}: {named} has "{key}": {json.dumps(item[key])}. Give {wanted}.')
        for key in [key for key in FILES if key in item]:
            file = item[key] = os.path.normpath(path.parent / item[key])
            if not os.path.exists(file):
                raise InputError(f"{file}: does not exist, though {path} lists it. Restore it or rewrite the list.")
    return items


def _fits(key: str, value: Any) -> bool:
    """Whether a value of an item is of the kind that its key needs."""
    if isinstance(value, str):
        return key != "weight" and bool(value.strip())
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return isfinite(value) if key == "weight" else key == "patient"


def _read(datalist: StrPath) -> list[dict[str, Any]]:
    items = read_datalist(datalist)
    for item in items:
        for key in {*item} - {*KEYS}:
            near = get_close_matches(key, {*KEYS} - {*item}, n=1, cutoff=0.8)
            if near:
                raise InputError(f"{datalist}: {item['image']} has {key!r}. Did you mean {near[0]!r}?")
    items = [{"case": split_name(item["image"])[0], **item} for item in items]
    check_cases([item["case"] for item in items], datalist)
    return items


def _with_labels(scans: list[dict[str, Any]] | list[dict[str, str]], label_dir: StrPath) -> list[dict[str, Any]]:
    """The scans that have a label in ``label_dir``."""
    labels = label_files(label_dir)
    found = [{**scan, "label": str(labels[scan["case"]])} for scan in scans if scan["case"] in labels]
    if not found:
        raise InputError(f"{label_dir}: holds no <case>_Label.nii.gz of a target scan. Predict them first.")
    return found
