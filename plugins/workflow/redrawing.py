"""Stages without a network: ceT1 redrawn in the contrast of hrT2, and translations calibrated."""

from __future__ import annotations

import logging
import os
import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
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
from plugins.data.redraw import cystic, redraw_shares
from plugins.data.scans import read_stored
from plugins.data.tissue import TargetLevels, denoise, shares, tissue_modes
from plugins.errors import InputError
from plugins.files import whole_file, write_json
from plugins.progress import Progress
from plugins.state import recall_state
from plugins.store import EARLIER_NAMES, content_of, digest_of

StrPath = str | os.PathLike[str]
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
    by_site = _records(_site_levels(read_datalist(target)))
    book = _Book(folder / LEVELS, {"levels": by_site, "statistics": _plain(given)})
    items = [{**item, "translation": _translation(translations_dir, item)} for item in read_datalist(source)]
    with Progress(len(items), "calibrating translations", folder) as progress:
        for item in items:
            written = [folder / f"{item['case']}.nii.gz"]
            if not book.holds(item, written):
                levels = TargetLevels.from_record(_of_site(by_site, item))
                wanted = given.get(_site(item), given.get(ALL)) or default_statistics(levels)
                _calibrate(item, levels, wanted, written[0])
                book.add(item, {"statistics": _plain(wanted)})
            progress.advance()


def _write_redrawn(source: Items, target: Items, folder: Path, root: Path, ending: str, views: int, seed: int) -> None:
    by_site = _records(_site_levels(target))
    book = _Book(root / LEVELS, {"levels": by_site, "seed": seed})
    with Progress(len(source), "redrawing scans", root) as progress:
        for item in source:
            case = item["case"]
            names = [case, *(f"{case}_{view}" for view in range(1, views))]
            written = [folder / f"{name}{ending}.nii.gz" for name in names]
            if not book.holds(item, written):
                levels = TargetLevels.from_record(_of_site(by_site, item))
                book.add(item, _redraw(item, levels, written, seed))
            progress.advance()


def _redraw(item: Mapping[str, Any], levels: TargetLevels, written: Sequence[Path], seed: int) -> dict[str, Any]:
    scan, volume = _read(item)
    spacing, label = _spacing(scan), _label(item, scan)
    values = denoise(shares(volume))
    modes = tissue_modes(values, item["case"])
    for view, path in enumerate(written):
        random = np.random.default_rng([seed, zlib.crc32(item["case"].encode()), view]) if view else None
        _write(redraw_shares(values, label, spacing, modes, levels, random), scan, path)
    return {"modes": asdict(modes)}


def _calibrate(
    item: Mapping[str, Any], levels: TargetLevels, statistics: Mapping[str, RegionStatistics], path: Path
) -> None:
    scan, volume = _read(item)
    translation = read_scan(item["translation"])
    check_same_grid(translation, scan)
    label = _label(item, scan)
    cysts = cystic(denoise(shares(volume)), label)
    drawn = to_lps(translation.voxels, scan.affine)
    _write(calibrate(drawn, label, _spacing(scan), levels, statistics, cysts), scan, path)


class _Book:
    """A JSON file of what was made of every scan, and with which settings; it is begun anew where these differ."""

    def __init__(self, path: Path, settings: Mapping[str, Any]):
        self._path, self._content = path, {**settings, "scans": {}}
        old = recall_state(path, dict[str, Any], "All scans are made again", EARLIER_NAMES)
        if old is not None and {key: value for key, value in old.items() if key != "scans"} == dict(settings):
            self._content = old
        write_json(path, self._content)

    def holds(self, item: Mapping[str, Any], written: Iterable[Path]) -> bool:
        """Whether a scan is done: its files are there, made from what is there now."""
        record = self._content["scans"].get(item["case"], {})
        return all(path.is_file() for path in written) and record.get("made_from") == _made_from(item)

    def add(self, item: Mapping[str, Any], record: Mapping[str, Any]) -> None:
        """Note a scan whose files are written."""
        self._content["scans"][item["case"]] = {**record, "made_from": _made_from(item)}
        write_json(self._path, self._content)


def _made_from(item: Mapping[str, Any]) -> str:
    return digest_of([item[key] for key in ("image", "label", "translation") if key in item], None)


def to_lps(volume: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """The voxels with the axes nearest to L, P and S: flipped and permuted, never resampled."""
    return np.asarray(apply_orientation(volume, ornt_transform(io_orientation(affine), axcodes2ornt("LPS"))))


def from_lps(volume: NDArray[Any], affine: NDArray[np.float64]) -> NDArray[Any]:
    """The inverse of :func:`to_lps` for a scan with this affine."""
    return np.asarray(apply_orientation(volume, ornt_transform(axcodes2ornt("LPS"), io_orientation(affine))))


def _site_levels(target: Items) -> dict[str, TargetLevels]:
    """Levels of each site that is known, and of all target scans."""
    check_scans([{"image": item["image"]} for item in target])
    sites = {_site(item) for item in target} - {"unknown"}
    groups = {ALL: list(target), **{s: [item for item in target if _site(item) == s] for s in sorted(sites)}}
    return {site: TargetLevels.measured(_volumes(items)) for site, items in groups.items()}


def _volumes(items: Items) -> Iterator[NDArray[Any]]:
    for item in items:
        yield _load(item)[1]


def _site(item: Mapping[str, Any]) -> str:
    return str(item.get("site", "unknown"))


def _of_site(levels: Mapping[str, Mapping[str, float]], item: Mapping[str, Any]) -> Mapping[str, float]:
    return levels.get(_site(item), levels[ALL])


def _records(levels: Mapping[str, TargetLevels]) -> dict[str, dict[str, float]]:
    return {site: each.record() for site, each in levels.items()}


def _plain(statistics: Mapping[str, Any]) -> dict[str, Any]:
    return {k: v.record() if isinstance(v, RegionStatistics) else _plain(v) for k, v in statistics.items()}


def _translation(folder: StrPath, item: Mapping[str, Any]) -> str:
    path = Path(folder) / f"{item['case']}.nii.gz"
    if not path.is_file():
        raise InputError(f"{path}: this translation does not exist. Translate the scan first.")
    return str(path)


def _read(item: Mapping[str, Any]) -> tuple[Scan, NDArray[Any]]:
    check_scan(item)
    return _load(item)


def _load(item: Mapping[str, Any]) -> tuple[Scan, NDArray[Any]]:
    """The scan and its voxels along L, P, S."""
    if Path(item["image"]).is_dir():
        raise InputError(f"{item['image']}: is a DICOM series. Convert the scans of a data set to NIfTI first.")
    scan = read_scan(item["image"])
    return scan, to_lps(scan.voxels, scan.affine)


def _label(item: Mapping[str, Any], scan: Scan) -> NDArray[np.uint8]:
    if "label" not in item:
        return to_lps(np.zeros(scan.shape, np.uint8), scan.affine)
    return to_lps(read_label(item["label"], of=scan).voxels, scan.affine)


def _spacing(scan: Scan) -> tuple[float, float, float]:
    """Mm along the axes nearest to L, P and S."""
    axes = io_orientation(scan.affine)[:, 0].astype(int)
    spacing = np.empty(3)
    spacing[axes] = scan.spacing
    x, y, z = spacing.round(4).tolist()
    return x, y, z


def _write(volume: NDArray[np.float32], scan: Scan, path: Path) -> None:
    with whole_file(path) as part:
        nib.save(scan.image(from_lps(volume, scan.affine), np.float32), part)


def _copy(source: Path, target: Path) -> None:
    """Copy a NIfTI file, compressed where it is not, unless it is there."""
    if target.is_file() and content_of(target) == content_of(source):
        return
    with whole_file(target) as part:
        if source.suffix == ".gz":
            shutil.copyfile(source, part)
        else:
            nib.save(read_stored(source)[0], part)
