"""The stages that cut scans to the windows that everything sees."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from plugins.data import crossmoda_datalist, read_boxes, write_crop, write_datalist
from plugins.files import whole_file
from plugins.segmentation import write_windows as write_cropped
from plugins.workflow.functions import SPLITS
from plugins.workflow.redrawing import write_redrawn_dataset as redraw_dataset


def write_windows(
    source: str, target: str, validation: str, locator_dir: str, output_dir: str, seed: int = 0, device: str = "cpu"
) -> None:
    """Write what lies in the windows of a data set, and a list of each part: ``source.json`` and so on.

    Args:
        source: datalist of the ceT1 scans with labels, which their windows follow.
        target: datalist of hrT2 scans, which the locator looks at.
        validation: likewise.
        locator_dir: with ``locator.pt``.
        output_dir: receives the scans in CrossMoDA's layout, ``windows.json`` and the lists.
        seed: of the windows' jitter.
        device: of the locator.

    Raises:
        InputError: if there is no locator, or a list cannot be used.
    """
    write_cropped(source, target, validation, locator_dir, output_dir, seed=seed, device=device)
    _write_lists(output_dir)


def write_redrawn_dataset(dataset_dir: str, output_dir: str, seed: int = 0) -> None:
    """:func:`plugins.workflow.redrawing.write_redrawn_dataset`, and a list of each part of it."""
    redraw_dataset(dataset_dir, output_dir, seed)
    _write_lists(output_dir)


def _write_lists(folder: str) -> None:
    for name, split in SPLITS.items():
        write_datalist(Path(folder, f"{name}.json"), crossmoda_datalist(folder, split))


def crop_to_windows(files: Mapping[str, str], ending: str, windows_dir: str | None, output_dir: str) -> None:
    """Write what further images of some cases show in the windows of these cases, or all of it.

    Args:
        files: case to NIfTI image on the grid of the scan.
        ending: of the new files, behind the case.
        windows_dir: with ``windows.json``; ``None`` for whole images.
        output_dir: where they go.
    """
    boxes = {} if windows_dir is None else read_boxes(windows_dir)
    for case, file in files.items():
        target = Path(output_dir, case + ending)
        if windows_dir is None:
            with whole_file(target) as part:
                shutil.copyfile(file, part)
        else:
            write_crop(file, boxes[case], target)
