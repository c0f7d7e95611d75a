"""Which scans are to be segmented, how far it is, and the volumes that come out."""

from __future__ import annotations

import csv
import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plugins.data import check_scan, read_label
from plugins.errors import InputError
from plugins.files import whole_file, write_json
from plugins.progress import Progress
from plugins.segmentation.model import LABELS
from plugins.segmentation.transforms import label_path, read_records

StrPath = str | os.PathLike[str]
_logger = logging.getLogger(__name__)


class ScansToSegment:
    """Those scans of a list that have no label map of this scan, by these weights and settings, and can be used.

    ``<output_dir>/segmented.json`` records of what every label map was made.

    Args:
        items: ``{"case", "image"}`` each.
        output_dir: where the label maps lie.
        weights: file of the network's weights.
        settings: other values on which a result depends.
        locator: file of the locator's weights, if it is there and used.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        output_dir: StrPath,
        weights: StrPath,
        settings: Sequence[Any] = (),
        locator: StrPath | None = None,
    ):
        made = read_records(output_dir)
        located = [_stamp(locator)] if locator is not None and Path(locator).is_file() else []
        self.all = [{"case": str(item["case"]), "image": str(item["image"])} for item in items]
        for item in self.all:
            parts = [item["image"], _stamp(item["image"]), _stamp(weights), repr(list(settings)), *located]
            item["origin"] = hashlib.sha256("\n".join(parts).encode()).hexdigest()
        self._output_dir = output_dir
        self.items: list[dict[str, Any]] = []
        self.refused: list[str] = []
        with Progress(total=len(self.all), description="checking scans") as progress:
            for item in self.all:
                exists = label_path(output_dir, item["case"]).is_file()
                if not exists or made.get(item["case"]) != item["origin"]:
                    try:
                        check_scan(item)
                    except InputError as error:  # one bad scan must not cost the others
                        self.refused.append(str(error))
                        _logger.error(f"left out: {error}")
                    else:
                        self.items.append(item)
                progress.advance()
        done = len(self.all) - len(self.items) - len(self.refused)
        if done:
            _logger.info(f"{done} of {len(self.all)} scans are segmented already in {output_dir}.")

    def finish(self, refused: Sequence[str] = ()) -> None:
        """Write the volumes of all label maps, and say which scans were left out.

        Args:
            refused: a sentence for each scan that failed since.

        Raises:
            InputError: if there are any.
        """
        write_volumes(self.all, self._output_dir)
        sentences = [*self.refused, *refused]
        if sentences:
            counts = f"{len(sentences)} of {len(self.all)} scans were not segmented"
            raise InputError(f"{counts}: {' '.join(sentences)}")


def _stamp(path: StrPath) -> str:
    """Size and time of a file, or of all files in a folder."""
    files = sorted(Path(path).iterdir()) if os.path.isdir(path) else [Path(path)]
    stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files if file.is_file()]
    return repr(stamps)


def write_volumes(items: Sequence[Mapping[str, Any]], output_dir: StrPath) -> dict[str, dict[str, float]]:
    """Write ``volumes.json`` and ``volumes.csv``: mm3 of every structure in the label maps of the cases.

    Args:
        items: with ``case``; those without a label map are left out.
        output_dir: of the label maps.

    Returns:
        case to structure to mm3.
    """
    volumes = {}
    for item in items:
        file = label_path(output_dir, item["case"])
        if file.is_file():
            drawn = read_label(file)
            counts = {name: int(np.count_nonzero(drawn.voxels == value)) for name, value in LABELS.items() if value}
            found = {name: drawn.voxel_mm3 * count for name, count in counts.items()}
            volumes[str(item["case"])] = {name: round(mm3, 3) for name, mm3 in found.items()}
    write_json(Path(output_dir) / "volumes.json", {"unit": "mm3", "cases": volumes})
    with whole_file(Path(output_dir) / "volumes.csv") as part, part.open("w", newline="", encoding="utf-8") as lines:
        table = csv.writer(lines)
        table.writerow(["case", *(f"{name}_mm3" for name, value in LABELS.items() if value)])
        table.writerows([case, *found.values()] for case, found in volumes.items())
    return volumes
