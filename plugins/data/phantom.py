"""The embedded data set: drawn heads in the file layout of CrossMoDA 2022, made in seconds, the same every time.

It has no value beyond letting everything run and be tested without a download: anatomy from
:mod:`plugins.data.phantom_anatomy`, signals from :mod:`plugins.data.phantom_signal`.
"""

from __future__ import annotations

import csv
import os
import shutil
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

from plugins.data.crossmoda import HELDOUT_SCANS, PLACES
from plugins.data.nifti import new_image
from plugins.data.phantom_anatomy import Head, lps_affine, paint
from plugins.data.phantom_signal import acquire
from plugins.errors import InputError
from plugins.files import write_json
from plugins.progress import Progress
from plugins.state import recall_state

Spacing = tuple[float, float, float]
Shape = tuple[int, int, int]

GRIDS: dict[tuple[str, str], tuple[Shape, Spacing]] = {
    ("ldn", "ceT1"): ((96, 96, 16), (1.1, 1.1, 1.5)),
    ("etz", "ceT1"): ((80, 80, 16), (1.3, 1.3, 1.5)),
    ("ldn", "hrT2"): ((96, 96, 16), (1.1, 1.1, 1.5)),
    ("etz", "hrT2"): ((104, 104, 20), (1.0, 1.0, 1.2)),
}
"""Voxels and their size in mm, by site and contrast."""

VERSION = 1
_RECORD = "phantom.json"
_SPLITS = ("source", "target", "validation")
_FIRST_NUMBER = {
    ("source", "ldn"): 1,
    ("source", "etz"): 0,
    ("target", "ldn"): 106,
    ("target", "etz"): 105,
    ("validation", "ldn"): 211,
    ("validation", "etz"): 210,
}
_MOST = 210
_CENTER = {"ldn": "London", "etz": "Tilburg"}
_PREFIX = {"ldn": "crossmoda2021_ldn", "etz": "crossmoda2022_etz"}


def write_phantom(
    folder: str | os.PathLike[str], num_source: int = 8, num_target: int = 8, num_validation: int = 4, seed: int = 0
) -> Path:
    """Write a simulated data set in the file layout of CrossMoDA 2022, whole or not at all.

    London and Tilburg alternate; every scan is of another head. ``heldout/`` holds the truth of the targets and the
    hrT2 of the sources, for evaluation only. A complete phantom of the same arguments is left as it is; one of other
    arguments is replaced. The same arguments give the same bytes.

    Args:
        folder: where it goes.
        num_source: ceT1 scans with labels.
        num_target: hrT2 scans without labels.
        num_validation: hrT2 scans without labels.
        seed: of all randomness.

    Returns:
        ``folder``.

    Raises:
        InputError: if a number is out of range, or if ``folder`` holds anything else than a phantom.
    """
    folder = Path(folder)
    numbers = dict(zip(_SPLITS, (num_source, num_target, num_validation), strict=True))
    record = {"version": VERSION, **{f"num_{split}": number for split, number in numbers.items()}, "seed": seed}
    for split, number in numbers.items():
        if not 0 <= number <= _MOST:
            raise InputError(f"num_{split} of the phantom is {number}. Choose a number from 0 to {_MOST}.")
    if seed < 0:
        raise InputError(f"seed of the phantom is {seed}. Choose 0 or a positive number.")
    if _is_complete(folder, record):
        return folder
    if folder.exists() and not (folder / _RECORD).is_file() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f"{folder}: holds something else than a phantom. Choose an empty or a new folder for it.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = folder.with_name(f".part-{os.getpid()}-{folder.name}")
    try:
        _write_all(part, numbers, seed)
        write_json(part / _RECORD, record)
        _install(part, folder, record)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _is_complete(folder: Path, record: dict[str, int]) -> bool:
    path = folder / _RECORD
    return recall_state(path, dict[str, Any], "The phantom counts as unfinished") == record


def _install(part: Path, folder: Path, record: dict[str, int]) -> None:
    """Move the finished phantom into place, unless another process has just done so."""
    old = folder.with_name(f".old-{os.getpid()}-{folder.name}")
    if (folder / _RECORD).is_file():
        folder.rename(old)
    try:
        part.rename(folder)
    except OSError:
        if not _is_complete(folder, record):
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def _write_all(root: Path, numbers: dict[str, int], seed: int) -> None:
    koos: dict[str, int] = {}
    with Progress(total=sum(numbers.values()), description="drawing phantoms") as progress:
        for split in _SPLITS:
            for index in range(numbers[split]):
                site = ("ldn", "etz")[index % 2]
                case = f"{_PREFIX[site]}_{_FIRST_NUMBER[split, site] + index // 2}"
                rng = np.random.default_rng([seed, _SPLITS.index(split), index])
                head = Head.draw(rng)
                _write_head(root, split, case, site, head, rng)
                if split == "source":
                    koos[case] = head.koos
                progress.advance()
    _write_infos(root / "crossmoda2022_training" / "infos_source_training.csv", koos)


def _write_head(root: Path, split: str, case: str, site: str, head: Head, rng: np.random.Generator) -> None:
    scans, contrast, truths = PLACES[split if split == "validation" else f"training_{split}"]
    shape, spacing = GRIDS[site, contrast]
    affine = lps_affine(shape, spacing, rng.uniform(-10, 10, 3))
    fractions, labels = paint(head, shape, spacing, rng)
    stored = _as_stored(labels, case, site) if split == "source" else labels
    _save(root / scans / f"{case}_{contrast}.nii.gz", acquire(fractions, site, contrast, spacing, rng), affine)
    _save(root / truths / f"{case}_Label.nii.gz", stored, affine)
    if split == "source":
        truth = acquire(fractions, site, "hrT2", spacing, rng)
        _save(root / HELDOUT_SCANS / f"{case}_hrT2.nii.gz", truth, affine)


def _as_stored(labels: NDArray[np.uint8], case: str, site: str) -> NDArray[Any]:
    """The number formats of the real masks: float64 in London; in Tilburg every other one just below the integers."""
    if site == "ldn":
        return labels.astype(np.float64)
    return labels if case.endswith(tuple("13579")) else labels * 0.9999999997


def _save(path: Path, voxels: NDArray[Any], affine: NDArray[np.float64]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(new_image(voxels, affine, sform_code=2), path)


def _write_infos(path: Path, koos: dict[str, int]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=csv.QUOTE_NONNUMERIC)
        writer.writerow(["crossmoda_name", "group", "center", "koos"])
        for case, grade in koos.items():
            writer.writerow([case, "training_source", _CENTER[case.split("_")[1]], grade])
