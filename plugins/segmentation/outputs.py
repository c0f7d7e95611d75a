"""Which scans are to be segmented, and the volumes that come out."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plugins.data import ScansToDo, read_label
from plugins.data.dicom import is_series
from plugins.errors import InputError
from plugins.files import whole_file, write_json
from plugins.segmentation.model import DESCRIPTION, LABELS
from plugins.segmentation.transforms import probabilities_path, segmentation_path
from plugins.store import Store

StrPath = str | os.PathLike[str]
ENDING, VOLUMES = "_Label.nii.gz", "volumes.json"


class ScansToSegment(ScansToDo):
    """Those scans of a list that can be used and lack a label map, or what is wanted beside it, made from the same.

    Args:
        items: ``{"case", "image"}`` each.
        output_dir: where the label maps lie.
        weights: file of the network's weights.
        settings: other values on which a result depends.
        locator: file of the locator's weights, if it is there and used.
        probabilities: whether they are wanted of every scan.
        dicom_seg: whether a DICOM Segmentation is wanted of every DICOM series.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        output_dir: StrPath,
        weights: StrPath,
        settings: Any = None,
        locator: StrPath | None = None,
        probabilities: bool = False,
        dicom_seg: bool = False,
    ):
        self._probabilities, self._dicom_seg = probabilities, dicom_seg
        scans = [{"case": item["case"], "image": str(item["image"])} for item in items]
        described = Path(weights).with_name(DESCRIPTION)
        others = [described, *([] if locator is None else [locator, Path(locator).with_suffix(".json")])]
        super().__init__(scans, output_dir, weights, settings, "{case}_Label.nii.gz", "segmented", others)

    def outputs(self, item: Mapping[str, Any]) -> list[Path]:
        """Where the label map of a scan lies, and what is wanted beside it."""
        found, folder = [self.output(item)], self.store.folder
        if self._dicom_seg and is_series(item["image"]):
            found.append(segmentation_path(folder, item["case"]))
        if self._probabilities:
            found.append(probabilities_path(folder, item["case"]))
        return found

    def finish(self, failed: Mapping[str, str] | None = None) -> None:
        """Write the volumes of all label maps that are recorded here, and say which scans were left out.

        Args:
            failed: case to a sentence, of those that failed since.

        Raises:
            InputError: if there are any.
        """
        try:
            write_volumes(self.store.folder)
        except InputError as error:  # a label map of an earlier run
            failed = {**(failed or {}), VOLUMES: str(error)}
        super().finish(failed)


def write_volumes(output_dir: StrPath) -> dict[str, dict[str, float]]:
    """Write ``volumes.json`` and ``volumes.csv``: mm3 of every structure in the label maps recorded in a folder.

    Args:
        output_dir: of the label maps.

    Returns:
        case to structure to mm3.
    """
    volumes = {}
    for name in sorted(Store(output_dir).records()):
        file = Path(output_dir) / name
        if file.is_file() and name.endswith(ENDING):
            drawn = read_label(file)
            counts = {name: int(np.count_nonzero(drawn.voxels == value)) for name, value in LABELS.items() if value}
            found = {name: drawn.voxel_mm3 * count for name, count in counts.items()}
            volumes[name.removesuffix(ENDING)] = {name: round(mm3, 3) for name, mm3 in found.items()}
    write_json(Path(output_dir) / VOLUMES, {"unit": "mm3", "cases": volumes})
    with whole_file(Path(output_dir) / "volumes.csv") as part, part.open("w", newline="", encoding="utf-8") as lines:
        table = csv.writer(lines)
        table.writerow(["case", *(f"{name}_mm3" for name, value in LABELS.items() if value)])
        table.writerows([case, *found.values()] for case, found in volumes.items())
    return volumes
