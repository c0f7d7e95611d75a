"""Lists of scans: the CrossMoDA folders, and any flat folder."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from plugins.data.dicom import is_dicom_folder
from plugins.data.names import LABEL, by_case, check_cases, natural, nifti_files, report_passed_over, shown, split_name
from plugins.errors import InputError

SPLITS = {
    "training_source": ("training_source", "source_training"),
    "training_target": ("training_target", "target_training"),
    "validation": ("validation", "target_validation", "crossmoda2022_validation"),
}
RELEASE_2023 = {
    "training_source": ("TrainingSource",),
    "training_target": ("TrainingTarget",),
    "validation": ("crossmoda23_validation",),
}
"""Folders of CrossMoDA 2023, whose labels 1 and 2 are parts of the VS and 3 the cochlea."""

PLACES = {
    "training_source": ("crossmoda2022_training/training_source", "ceT1", "crossmoda2022_training/training_source"),
    "training_target": ("crossmoda2022_training/training_target", "hrT2", "heldout/training_target_labels"),
    "validation": ("crossmoda2022_validation/validation", "hrT2", "heldout/validation_labels"),
}
"""Split: where its scans are written, their contrast, and where labels are; those of hrT2 are for evaluation only."""

HELDOUT_SCANS = "heldout/source_hrT2"
"""Where the true hrT2 of the source patients are."""

_HELDOUT = "heldout"
_RELEASES = (
    {"source_training", "target_training", "target_validation"},
    {"crossmoda2022_training", "training_source", "training_target", "crossmoda2022_validation", "validation"},
    {"crossmoda23_training", "TrainingSource", "TrainingTarget", "crossmoda23_validation"},
)  # names of folders that belong to one data set
_KNOWN = {name for names in _RELEASES for name in names}
_SEARCH_DEPTH = 3
_PREPARE = "Make a folder with merged labels from it, python -m plugins.data.prepare crossmoda, and name that one"
_logger = logging.getLogger(__name__)
_SITE = re.compile(r"crossmoda(20)?\d\d_(ldn|etz|ukm)_")


def crossmoda_datalist(
    dataset_dir: str | os.PathLike[str], split: str, release_2023: bool = False
) -> list[dict[str, str]]:
    """The scans of one split of CrossMoDA 2021 or 2022, sorted naturally (``ldn_2`` before ``ldn_10``).

    Files end in ``.nii`` or ``.nii.gz``, in any case of letters; what macOS adds (``._*``) is left out. A warning names
    what else looks like a scan.

    Args:
        dataset_dir: the folder of the data set, a parent of it, or a folder within it. What it lacks is taken from the
            data set that it is a part of, never from another one beside it.
        split: ``training_source`` (ceT1 with labels), ``training_target`` or ``validation`` (hrT2).
        release_2023: read the folders of 2023, whose labels mean something else, as they were unpacked.

    Returns:
        One ``{"case", "site", "image"}`` a scan, and ``"label"`` in the source; paths are absolute.

    Raises:
        InputError: if the folder is missing or ambiguous or holds no scan, if a case occurs twice, or if
            in the source a scan has no label or a label no scan.
    """
    names = RELEASE_2023 if release_2023 else SPLITS
    folder = _split_folder(Path(dataset_dir), split, names)
    files = list(nifti_files(folder, nested=names[split]))
    contrast = "ceT1" if split == "training_source" else "T2" if release_2023 else "hrT2"
    images = by_case(files, contrast)
    report_passed_over(folder, map(str, images.values()), contrast, names[split])
    if not images:
        raise InputError(f"{folder}: holds no scan named *_{contrast}.nii.gz. Unpack the data set there again.")
    labels = by_case(files, "Label") if split == "training_source" else {}
    if labels:
        _check_pairs(images, labels)
    elif split == "training_source":
        raise InputError(f"{folder}: holds no label named *_Label.nii.gz. Unpack the data set there again.")
    if not release_2023:
        _refuse_other_labels(labels)
    return _items(images, labels)


def has_split(dataset_dir: str | os.PathLike[str], split: str, release_2023: bool = False) -> bool:
    """Whether :func:`crossmoda_datalist` would find the folder of a split."""
    folder, names = Path(dataset_dir), RELEASE_2023 if release_2023 else SPLITS
    return folder.is_dir() and bool(_find_folders(folder, names[split]))


def is_release_2023(dataset_dir: str | os.PathLike[str]) -> bool:
    """Whether a folder is, holds or belongs to CrossMoDA 2023 as it was unpacked."""
    return any(has_split(dataset_dir, split, release_2023=True) for split in RELEASE_2023)


def scan_datalist(folder: str | os.PathLike[str], contrast: str | None = None) -> list[dict[str, str]]:
    """The scans that lie directly in any folder: every NIfTI file that is not a ``_Label``, sorted naturally.

    Every subfolder with DICOM files is a scan too, and so is the folder itself if it holds DICOM files, whatever its
    name.
    Warnings name what else looks like a scan, and how to have it read, and label maps without a scan of any contrast.
    A CrossMoDA data set without scans directly in ``folder`` gives its ``training_source`` for ``ceT1`` and its
    ``validation`` for ``hrT2``.

    Args:
        folder: where the scans lie; ``<case>_Label.nii[.gz]`` beside a scan is attached as its label.
        contrast: keeps only the files that end in ``_<contrast>``, and the folders of series that end so or in no
            known contrast; ``None`` keeps all.

    Returns:
        One ``{"case", "site", "image"}`` a scan, and ``"label"`` where there is one; ``case`` is the name of the file
        or folder without a known contrast and ending, ``site`` is ``unknown`` outside CrossMoDA; paths are absolute.

    Raises:
        InputError: if the folder is missing or holds no such scan, or if a case occurs twice or cannot name a file.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder. Name the folder that holds the scans.")
    files, folders = list(nifti_files(folder)), _dicom_folders(folder)
    if not files and not folders:
        split = {"ceT1": "training_source", "hrT2": "validation"}.get(contrast or "")
        if split and _folders_below(folder, SPLITS[split]):
            return crossmoda_datalist(folder, split)
        report_passed_over(folder, [], contrast)
        kinds = ".nii or .nii.gz scans or the folders of DICOM series"
        raise InputError(f"{folder}: holds no scan. Name the folder in which the {kinds} lie.")
    images, series = by_case(files, contrast), _series(folders, folder, contrast)
    report_passed_over(folder, map(str, (*images.values(), *series.values())), contrast)
    if not images and not series:
        wanted = f"no scan named *_{contrast}" if contrast else "labels only and no scan"
        raise InputError(f"{folder}: holds {wanted}. Put the scans there or choose another contrast.")
    twice = sorted(images.keys() & series.keys())
    if twice:
        raise InputError(f"{folder}: {twice[0]} is a file and a DICOM series. Remove or rename one of them.")
    labels = by_case(files, "Label")
    _refuse_other_labels(labels)
    _report_lone_labels(folder, labels, [*files, *folders], contrast)
    scans = images | series
    return _items({case: scans[case] for case in sorted(scans, key=natural)}, labels)


def label_files(folder: str | os.PathLike[str]) -> dict[str, Path]:
    """The label maps ``<case>_Label.nii[.gz]`` of a folder, by case.

    Raises:
        InputError: if a case occurs twice, or for a link to a file that does not exist.
    """
    return by_case(nifti_files(Path(folder)), "Label")


def heldout_labels(dataset_dir: str | os.PathLike[str], split: str) -> dict[str, str]:
    """The truth of the targets that simulated data sets keep in ``heldout/``: for evaluation only, never for training.

    Args:
        dataset_dir: as in :func:`crossmoda_datalist`.
        split: ``validation`` or ``training_target``; any other split has none.

    Returns:
        The absolute path of the label of each case; empty if the data set has none, as the real one.
    """
    return {} if split not in PLACES or split == "training_source" else _heldout(dataset_dir, PLACES[split][2], "Label")


def heldout_scans(dataset_dir: str | os.PathLike[str]) -> dict[str, str]:
    """The true hrT2 of the source patients that simulated data sets keep in ``heldout/source_hrT2``: for bounds only.

    Args:
        dataset_dir: as in :func:`crossmoda_datalist`.

    Returns:
        The absolute path of the scan of each case; empty if the data set has none, as the real one.
    """
    return _heldout(dataset_dir, HELDOUT_SCANS, "hrT2")


def _heldout(dataset_dir: str | os.PathLike[str], place: str, kind: str) -> dict[str, str]:
    folder = _only_one(dataset_dir, _find_folders(Path(dataset_dir), (Path(place).name,)))
    return {case: str(path) for case, path in by_case(nifti_files(folder), kind).items()} if folder else {}


def _find_folders(folder: Path, names: Sequence[str]) -> list[Path]:
    """The folders of these names in a folder or, if it is a part of a data set, in that one; none within another."""
    folder = folder.absolute()
    if folder.name in names and not _is_whole(folder) and any(nifti_files(folder, names)):
        return [folder]
    found = _folders_below(folder, names)
    release = next((each for each in _RELEASES if folder.name in each), set())
    while not found and folder.name in _KNOWN and not _is_whole(folder):
        folder = folder.parent
        found = _folders_below(folder, {*names} - (_KNOWN - release), {*release, _HELDOUT})
    return found


def _is_whole(folder: Path) -> bool:
    """Whether a folder has the name of a split but holds other splits: a data set that is called so."""
    own = next((names for names in (*SPLITS.values(), *RELEASE_2023.values()) if folder.name in names), None)
    return own is not None and bool(_folders_below(folder, _KNOWN - {*own}))


def _folders_below(root: Path, names: Collection[str], through: Collection[str] | None = None) -> list[Path]:
    """The folders of these names below ``root``, none within another; the way to them leads ``through`` these names."""
    found: list[Path] = []
    level = [root]
    for _ in range(_SEARCH_DEPTH):
        readable = [folder for folder in level if os.access(folder, os.R_OK | os.X_OK)]
        level = sorted(child for folder in readable for child in _subfolders(folder))
        hits = [folder for folder in level if folder.name in names and not _is_whole(folder)]
        level = [folder for folder in level if folder not in hits and (through is None or folder.name in through)]
        found += hits
    return found


def _subfolders(folder: Path) -> list[Path]:
    return [child for child in folder.iterdir() if child.is_dir() and not child.name.startswith(".")]


def _dicom_folders(folder: Path) -> list[Path]:
    """The DICOM series among a folder and those in it."""
    folder = Path(os.path.abspath(folder))
    return [path for path in (folder, *sorted(_subfolders(folder))) if is_dicom_folder(path)]


def _series(folders: Sequence[Path], given: Path, contrast: str | None) -> dict[str, Path]:
    """DICOM series by case, without those of another known contrast, unless that very folder was given."""
    found: dict[str, Path] = {}
    for path in folders:
        case, own = split_name(path, contrast)
        other = own not in (None, contrast) if contrast else own == LABEL
        if other and path != Path(os.path.abspath(given)):
            continue
        if case in found:
            raise InputError(f"{path}: is a second series of case {case}, beside {found[case]}. Rename one of them.")
        check_cases([case], path)
        found[case] = path
    return found


def _split_folder(dataset_dir: Path, split: str, names: Mapping[str, Sequence[str]]) -> Path:
    if split not in SPLITS:
        raise InputError(f"{split!r} is no split of CrossMoDA. Choose one of {', '.join(SPLITS)}.")
    if not dataset_dir.is_dir():
        raise InputError(f"{dataset_dir}: is not a folder. Set dataset_dir to the folder of the data set.")
    found = _find_folders(dataset_dir, (*SPLITS[split], *RELEASE_2023[split]))
    folder = _only_one(dataset_dir, found)
    if folder is not None and folder.name in names[split]:
        return folder
    if names is SPLITS and is_release_2023(dataset_dir):
        raise InputError(f"{dataset_dir}: is CrossMoDA 2023 as it was unpacked. {_PREPARE}.")
    either = " or ".join(names[split])
    raise InputError(f"{dataset_dir}: has no folder {either}. Set dataset_dir to the folder of the data set.")


def _only_one(dataset_dir: str | os.PathLike[str], found: Sequence[Path]) -> Path | None:
    if len(found) > 1:
        both = " and ".join(str(folder) for folder in found)
        raise InputError(f"{dataset_dir}: holds more than one data set ({both}). Set dataset_dir to one of them.")
    return found[0] if found else None


def site_of(case: str) -> str:
    """The site of a case by its name in CrossMoDA: ``ldn``, ``etz``, ``ukm``; ``unknown`` for other names.

    Example:
        >>> site_of("crossmoda2021_ldn_1"), site_of("patient_7")
        ('ldn', 'unknown')
    """
    match = _SITE.match(case)
    if match:
        return match[2]
    return "ldn" if re.fullmatch(r"crossmoda_\d+", case) else "unknown"


def _check_pairs(images: Mapping[str, Path], labels: Mapping[str, Path]) -> None:
    for case, path in images.items():
        if case not in labels:
            raise InputError(f"{path}: this scan has no label {case}_Label.nii.gz beside it. Add it or move the scan.")
    for case, path in labels.items():
        if case not in images:
            raise InputError(f"{path}: this label has no scan {case}_ceT1.nii.gz beside it. Add it or move the label.")


def _report_lone_labels(folder: Path, labels: Mapping[str, Path], paths: Sequence[Path], contrast: str | None) -> None:
    kinds = [split_name(path, contrast) for path in paths]
    cases = {case for case, kind in kinds if kind != LABEL}
    lone = [path.name for case, path in labels.items() if case not in cases]
    if lone:
        cure = "Name each as its scan, <case>_Label.nii.gz"
        _logger.warning(f"{folder}: label maps without a scan ({len(lone)}): {shown(lone)}. {cure}.")


def _refuse_other_labels(labels: Mapping[str, Path]) -> None:
    """In the training source of 2023, 2 is a part of the VS, where the bundles read a cochlea."""
    for path in labels.values():
        if path.parent.name in RELEASE_2023["training_source"]:
            raise InputError(f"{path}: has the label values of CrossMoDA 2023. {_PREPARE}.")


def _items(images: Mapping[str, Path], labels: Mapping[str, Path]) -> list[dict[str, str]]:
    items = [{"case": case, "site": site_of(case), "image": str(path)} for case, path in images.items()]
    for item in items:
        if item["case"] in labels:
            item["label"] = str(labels[item["case"]])
    return items
