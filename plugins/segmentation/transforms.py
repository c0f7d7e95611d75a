"""nnU-Net's normalisation and clean-up, and how label maps reach the disk."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.transforms import SaveImaged
from numpy.typing import NDArray
from scipy.ndimage import binary_fill_holes, generate_binary_structure, label

from plugins.data import WINDOWS, read_grid
from plugins.data.dicom import is_series, write_segmentation
from plugins.files import whole_file, write_json
from plugins.segmentation.anatomy import choose_components, read_settings
from plugins.segmentation.sizes import grow_to_size
from plugins.state import recall_state
from plugins.store import Store

StrPath = str | os.PathLike[str]


class ZScored:
    """Subtract the mean and divide by the standard deviation of the whole volume, or of its non-zero part.

    The non-zero part has its holes filled; what lies outside is still 0. This is nnU-Net's z-score for MR.

    Args:
        keys: of the image, :math:`(C, X, Y, Z)`.
        nonzero: leave out what is zero at the border.
    """

    def __init__(self, keys: str, nonzero: bool = False):
        self._key, self._nonzero = keys, nonzero

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``item`` with the image normalised."""
        image = item[self._key].clone()
        for channel in image:
            if self._nonzero:
                inside = torch.from_numpy(binary_fill_holes(channel.cpu().numpy() != 0)).to(channel.device)
                channel[inside] = _z_scored(channel[inside])
            else:
                channel.copy_(_z_scored(channel))
        return {**item, self._key: image}


def _z_scored(values: torch.Tensor) -> torch.Tensor:
    return (values - values.mean()) / values.std(correction=0).clamp_min(1e-8)


def keep_largest_component(labels: NDArray[np.uint8], of: Sequence[int]) -> NDArray[np.uint8]:
    """Make background of all but the largest component of some labels together; components touch at corners too.

    Args:
        labels: label map of any shape.
        of: labels that count as one.

    Returns:
        a label map; of equally large components all are kept.
    """
    mask = np.isin(labels, of)
    components, count = label(mask, generate_binary_structure(labels.ndim, labels.ndim))
    if count < 2:
        return labels
    sizes = np.bincount(components.ravel())[1:]
    keep = np.isin(components, 1 + np.flatnonzero(sizes == sizes.max()))
    return np.where(mask & ~keep, 0, labels).astype(labels.dtype)


class KeepLargestComponentsd:
    """:func:`keep_largest_component`, step by step, as the cross-validation has chosen.

    Args:
        keys: of the label map :math:`(1, X, Y, Z)`.
        steps: labels of each step.
    """

    def __init__(self, keys: str, steps: Sequence[Sequence[int]]):
        self._key, self._steps = keys, steps

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``item`` with the label map cleaned."""
        found = item[self._key]
        labels = found[0].cpu().numpy().astype(np.uint8)
        for step in self._steps:
            labels = keep_largest_component(labels, step)
        return {**item, self._key: _with_values(found, labels)}


class PlausibleComponentsd:
    """:func:`plugins.segmentation.choose_components` of a label map: one VS and two cochleae, one a side.

    Where the settings say how large cochleae are, both structures grow as far as
    :func:`plugins.segmentation.sizes.grow_to_size` tells.

    Args:
        keys: of the label map :math:`(1, X, Y, Z)`, with its affine.
        settings: of :class:`plugins.segmentation.AnatomySettings`, those that differ from the defaults; ``None`` leaves
            every label map as it is.
        probabilities: key of the probabilities :math:`(3, X, Y, Z)` on the same grid; where an item has none, parts
            are weighted by size.

    Raises:
        InputError: for an unknown or impossible setting.
    """

    def __init__(self, keys: str, settings: Mapping[str, Any] | None = None, probabilities: str = "probabilities"):
        self._key, self._probabilities = keys, probabilities
        self._settings = None if settings is None else read_settings(settings)

    def __call__(self, item: Mapping[str, Any]) -> dict[str, Any]:
        """Return ``item`` with the label map cleaned."""
        found = item[self._key]
        if self._settings is None:
            return {**item}
        chances = item.get(self._probabilities)
        affine = np.asarray(found.affine, dtype=np.float64)
        labels = found[0].cpu().numpy().astype(np.uint8)
        if chances is None:
            labels = choose_components(labels, affine, None, self._settings)
        else:
            likely = chances.cpu().numpy()
            labels = choose_components(labels, affine, likely, self._settings)
            labels = grow_to_size(labels, likely, affine, self._settings)
        return {**item, self._key: _with_values(found, labels)}


def _with_values(found: torch.Tensor, labels: NDArray[np.uint8]) -> torch.Tensor:
    """A label map in the type, on the device and with the meta data of another one."""
    cleaned = found.clone()
    cleaned[0] = torch.from_numpy(labels).to(found)
    return cleaned


def label_path(output_dir: StrPath, case: str) -> Path:
    """Where the label map of a case lies."""
    return Path(output_dir) / f"{case}_Label.nii.gz"


def segmentation_path(output_dir: StrPath, case: str) -> Path:
    """Where the DICOM Segmentation of a case lies."""
    return Path(output_dir) / f"{case}_Label.dcm"


def probabilities_path(output_dir: StrPath, case: str) -> Path:
    """Where the probabilities of a case lie."""
    return Path(output_dir) / f"{case}_Probabilities.nii.gz"


class SaveLabelMapd(SaveImaged):
    """Write ``<output_dir>/<case>_Label.nii.gz``, uint8, on exactly the grid of the scan.

    Where a locator cut a window, ``windows.json`` tells which. Files appear whole or not at all. As a kind of
    ``SaveImaged`` it is left out by tools that write results themselves, such as MONAI Label.

    Args:
        keys: of the label map :math:`(1, X, Y, Z)`, on the grid of ``image`` as it was read.
        output_dir: created if missing.
        dicom_seg: of a DICOM series also write ``<case>_Label.dcm``, a DICOM Segmentation that refers to the series.

    Attributes:
        refused: case to a sentence, of those DICOM Segmentations that could not be written.

    Raises:
        ValueError: if the label map is not on the scan's grid.
    """

    def __init__(self, keys: str, output_dir: StrPath, dicom_seg: bool = True):
        super().__init__(keys=keys, output_dir=output_dir)
        self._key, self._output_dir, self._dicom_seg = keys, output_dir, dicom_seg
        self.refused: dict[str, str] = {}

    def __call__(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the label map and return ``item`` as it is."""
        labels = item[self._key][0].cpu().numpy().astype(np.uint8)
        source, case = item["image"].meta["filename_or_obj"], item["case"]
        file = label_path(self._output_dir, case)
        affine = np.asarray(item[self._key].affine)
        _save(partial(nib.save, _on_grid_of(source, labels, affine, np.uint8)), file, item)
        if "made_from" in item:
            for place in (segmentation_path, probabilities_path):
                Store(self._output_dir).remove_older(place(self._output_dir, case), item["made_from"])
        if self._dicom_seg and is_series(source):
            try:
                write = partial(write_segmentation, labels, affine, source)
                _save(write, segmentation_path(self._output_dir, case), item)
            except Exception as error:  # the label map is there, and other scans wait
                fault = f"{source}: no DICOM Segmentation can be made ({type(error).__name__}: {error})"
                self.refused[case] = f"{fault}; take {file.name}."
        self._record_window(case, item["image"].meta.get("window"))
        return item

    def _record_window(self, case: str, window: str | None) -> None:
        file = Path(self._output_dir) / WINDOWS
        before = recall_state(file, dict[str, Any], "It is begun anew") or {}
        after = {name: record for name, record in before.items() if name != case}
        if window is not None:
            after[case] = json.loads(window)
        if after != before:
            write_json(file, after)


class SaveProbabilitiesd:
    """Write ``<output_dir>/<case>_Probabilities.nii.gz``: float32, the last axis is background, VS, cochlea.

    Args:
        keys: of the probabilities :math:`(3, X, Y, Z)`; where all three are 0, outside the crop, it is background.
        output_dir: created if missing.
    """

    def __init__(self, keys: str, output_dir: StrPath):
        self._key, self._output_dir = keys, output_dir

    def __call__(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the probabilities and return ``item`` as it is."""
        values = item[self._key].cpu().numpy().astype(np.float32)
        values[0] += values.sum(0) == 0
        scan, affine = item["image"].meta["filename_or_obj"], np.asarray(item[self._key].affine)
        image = _on_grid_of(scan, np.moveaxis(values, 0, -1), affine, np.float32)
        _save(partial(nib.save, image), probabilities_path(self._output_dir, item["case"]), item)
        return item


def _save(write: Callable[[Path], Any], file: Path, item: Mapping[str, Any]) -> None:
    """Write an output, with its record where it is known what it is made from."""
    if "made_from" in item:
        Store(file.parent).write(file, item["made_from"], write)
    else:
        with whole_file(file) as part:
            write(part)


def _on_grid_of(source: str, voxels: NDArray[Any], affine: NDArray[Any], dtype: type) -> nib.Nifti1Image:
    """An image on the grid of the scan that lies in ``source``, to be saved."""
    grid = read_grid(source)
    if voxels.shape[:3] != grid.shape or not np.allclose(affine, grid.affine, atol=1e-4):
        raise ValueError(f"{source}: the result left the scan's grid {grid.shape}: {voxels.shape}")
    return grid.image(voxels, dtype)
