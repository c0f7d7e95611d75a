"""Stages without a network: ceT1 redrawn in the contrast of hrT2, and translations calibrated."""

from __future__ import annotations

import logging
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from numpy.typing import NDArray

from plugins.data import (
    Scan,
    check_same_grid,
    check_scan,
    check_scans,
    crossmoda_datalist,
    read_datalist,
    read_label,
    read_scan,
)
from plugins.data.calibration import RegionStatistics, calibrate, default_statistics, read_statistics
from plugins.data.nifti import read_stored
from plugins.data.redraw import cystic, redraw_shares
from plugins.data.tissue import TargetLevels, denoise, shares, tissue_modes
from plugins.errors import InputError
from plugins.evaluation.labels import in_lps
from plugins.files import whole_file, write_json
from plugins.progress import Progress
from plugins.state import StrPath, recall_state
from plugins.store import EARLIER_NAMES, content_of, digest_of

Items = Sequence[Mapping[str, Any]]

LEVELS = "levels.json"
ALL = "all"
_LAYOUT = {
    "training_source": ("crossmoda2022_training", "training_source"),
    "training_target": ("crossmoda2022_training", "training_target"),
    "validation": ("crossmoda2022_validation", "validation"),
}
_logger = logging.getLogger(__name__)


def write_redrawn(source: str, target: str, output_dir: str, views: int = 1, seed: int = 0) -> None:
    """Write every ceT1 scan as hrT2 would show it: ``<case>.nii.gz``, and ``<case>_<k>.nii.gz`` for varied views.

    Files are float32 in [0, 1] with the header of the ceT1 scan. ``levels.json`` holds the levels of hrT2, by site and
    of ``all``, and the modes of every scan. A scan takes the levels of its own site where there are target scans of it.
    What is there already, made from the same files with the same settings, is kept.

    Args:
        source: datalist of the ceT1 scans with their labels; a scan without a label is drawn without a tumour.
        target: datalist of hrT2 scans; their labels are not read.
        output_dir: created if missing.
        views: how many of each scan; the first is not varied.
        seed: of the varied views.

    Raises:
        InputError: if a scan cannot be used, or ``views`` is not positive.
    """
    if views < 1:
        raise InputError(f"views is {views}. Give 1 or more.")
    _write_redrawn(read_datalist(source), read_datalist(target), Path(output_dir), Path(output_dir), "", views, seed)


def write_redrawn_dataset(dataset_dir: str, output_dir: str, seed: int = 0) -> None:
    """Write a data set in CrossMoDA's layout of 2022 whose ceT1 scans are redrawn in the contrast of hrT2.

    A translator or a segmentation is trained from it as from any other. Labels and hrT2 scans are copied as they are.

    Raises:
        InputError: if the data set is incomplete or a scan cannot be used.
    """
    scans = {split: crossmoda_datalist(dataset_dir, split) for split in _LAYOUT}
    root = Path(output_dir)
    folders = {split: Path(root, *parts) for split, parts in _LAYOUT.items()}
    source, target = scans["training_source"], scans["training_target"]
    _write_redrawn(source, target, folders["training_source"], root, "_ceT1", 1, seed)
    for split, items in scans.items():
        for item in items:
            key, kind = ("label", "Label") if split == "training_source" else ("image", "hrT2")
            _copy(Path(item[key]), folders[split] / f"{item['case']}_{kind}.nii.gz")


def write_calibrated(
    source: str,
    translations_dir: str,
    target: str,
    output_dir: str,
    statistics: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write every translation ``<case>.nii.gz`` with the brightness of its structures calibrated.

    ``levels.json`` holds levels and statistics. What is there already is kept as in :func:`write_redrawn`.

    Args:
        source: datalist of the ceT1 scans with their labels.
        translations_dir: folder of their translations.
        target: datalist of hrT2 scans, for the levels.
        output_dir: created if missing; another folder than ``translations_dir``.
        statistics: by site, or of ``all``, of ``VS`` and ``cochlea``, as from gated pseudo-labels; a site without them
            takes those of ``all``, and without those :func:`plugins.data.calibration.default_statistics`.

    Raises:
        InputError: if a translation is missing or is not on the grid of its scan, or a scan cannot be used.
    """
    folder = Path(output_dir)
    if folder.absolute() == Path(translations_dir).absolute():
        raise InputError(f"{output_dir}: holds the translations. Give another output_dir.")
    given = {site: read_statistics(record) for site, record in (statistics or {}).items()}
    levels = _site_levels(read_datalist(target))
    settings = {
        "levels": {site: each.record() for site, each in levels.items()},
        "statistics": {site: _records(each) for site, each in given.items()},
    }
    items = [{**item, "translation": _translation(translations_dir, item)} for item in read_datalist(source)]
    for item, files, told in _outstanding(folder / LEVELS, settings, items, folder, [""], "calibrating translations"):
        own = _of_site(levels, item)
        wanted = given.get(_site(item), given.get(ALL)) or default_statistics(own)
        scan, volume, label, spacing = _read(item)
        translation = read_scan(item["translation"])
        check_same_grid(translation, scan)
        cysts = cystic(denoise(shares(volume)), label)
        drawn = in_lps(translation.voxels, scan.affine)[0]
        _write(calibrate(drawn, label, spacing, own, wanted, cysts), scan, files[0])
        told["statistics"] = _records(wanted)


def _write_redrawn(source: Items, target: Items, folder: Path, root: Path, ending: str, views: int, seed: int) -> None:
    levels = _site_levels(target)
    settings = {"levels": {site: each.record() for site, each in levels.items()}, "seed": seed}
    endings = [ending, *(f"_{view}{ending}" for view in range(1, views))]
    for item, files, told in _outstanding(root / LEVELS, settings, source, folder, endings, "redrawing scans"):
        scan, volume, label, spacing = _read(item)
        values = denoise(shares(volume))
        modes = tissue_modes(values, item["case"])
        for view, file in enumerate(files):
            random = np.random.default_rng([seed, zlib.crc32(item["case"].encode()), view]) if view else None
            _write(redraw_shares(values, label, spacing, modes, _of_site(levels, item), random), scan, file)
        told["modes"] = asdict(modes)


def _outstanding(
    book: Path, settings: Mapping[str, Any], items: Items, folder: Path, endings: Sequence[str], description: str
) -> Iterator[tuple[Mapping[str, Any], list[Path], dict[str, Any]]]:
    """The scans that are not done: each with the files to write, and a dictionary for what to tell of it.

    The book is a JSON file of what was made of every scan and from what. It is begun anew where the settings differ.
    """
    content = {**settings, "scans": {}}
    old = recall_state(book, dict[str, Any], "All scans are made again", EARLIER_NAMES)
    if old is not None and {**old, "scans": {}} == content:
        content = old
    write_json(book, content)
    with Progress(len(items), description, book.parent) as progress:
        for item in items:
            files = [folder / f"{item['case']}{ending}.nii.gz" for ending in endings]
            made_from = digest_of([item[key] for key in ("image", "label", "translation") if key in item], None)
            known = content["scans"].get(item["case"], {}).get("made_from")
            if known != made_from or not all(file.is_file() for file in files):
                told: dict[str, Any] = {}
                yield item, files, told
                content["scans"][item["case"]] = {**told, "made_from": made_from}
                write_json(book, content)
            progress.advance()


def _site_levels(target: Items) -> dict[str, TargetLevels]:
    """Levels of each site that is known, and of all target scans."""
    check_scans([{"image": item["image"]} for item in target])
    sites = {_site(item) for item in target} - {"unknown"}
    groups = {ALL: target, **{site: [item for item in target if _site(item) == site] for site in sorted(sites)}}
    return {site: TargetLevels.measured(_load(item)[1] for item in items) for site, items in groups.items()}


def _site(item: Mapping[str, Any]) -> str:
    return str(item.get("site", "unknown"))


def _of_site(levels: Mapping[str, TargetLevels], item: Mapping[str, Any]) -> TargetLevels:
    return levels.get(_site(item), levels[ALL])


def _records(statistics: Mapping[str, RegionStatistics]) -> dict[str, Any]:
    return {structure: each.record() for structure, each in statistics.items()}


def _translation(folder: StrPath, item: Mapping[str, Any]) -> str:
    path = Path(folder) / f"{item['case']}.nii.gz"
    if not path.is_file():
        raise InputError(f"{path}: this translation does not exist. Translate the scan first.")
    return str(path)


def _load(item: Mapping[str, Any]) -> tuple[Scan, NDArray[Any], tuple[float, ...]]:
    """The scan, and its voxels and mm along L, P, S."""
    if Path(item["image"]).is_dir():
        raise InputError(f"{item['image']}: is a DICOM series. Convert the scans of a data set to NIfTI first.")
    scan = read_scan(item["image"])
    volume, spacing = in_lps(scan.voxels, scan.affine)
    return scan, volume, tuple(round(mm, 4) for mm in spacing)


def _read(item: Mapping[str, Any]) -> tuple[Scan, NDArray[Any], NDArray[np.uint8], tuple[float, ...]]:
    """:func:`_load` with the label map, which is empty where there is none, before the spacing."""
    check_scan(item)
    scan, volume, spacing = _load(item)
    if "label" not in item:
        return scan, volume, np.zeros(volume.shape, np.uint8), spacing
    return scan, volume, in_lps(read_label(item["label"], of=scan).voxels, scan.affine)[0], spacing


def _write(volume: NDArray[np.float32], scan: Scan, path: Path) -> None:
    turn = ornt_transform(axcodes2ornt("LPS"), io_orientation(scan.affine))
    with whole_file(path) as part:
        nib.save(scan.image(apply_orientation(volume, turn), np.float32), part)


def _copy(source: Path, target: Path) -> None:
    """Copy a NIfTI file, compressed where it is not, unless it is there."""
    if target.is_file() and content_of(target) == content_of(source):
        return
    with whole_file(target) as part:
        if source.suffix == ".gz":
            shutil.copyfile(source, part)
        else:
            nib.save(read_stored(source)[0], part)
