"""What would stop a stage after hours, looked for before the first one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from monai.bundle import ConfigParser
from nibabel.affines import voxel_sizes
from nibabel.orientations import io_orientation

from plugins.config.command import overridden, read_configs
from plugins.data import read_label
from plugins.errors import InputError
from plugins.workflow.stage import Stage

CROP = ("spacing", "crop_size")


def check_crops(stages: Sequence[Stage], labels: Sequence[str]) -> None:
    """Refuse a ``crop_size`` of a translator that no crop around a label's structures can have.

    Args:
        stages: of which those with a ``crop_size`` are looked at.
        labels: files of the source's label maps.

    Raises:
        InputError: naming bundle, file and the size that is needed.
    """
    for stage in stages:
        if stage.bundle is None:
            continue
        config = ConfigParser(overridden(read_configs(stage.config_paths), stage.overrides))
        if all(name in config.get() for name in CROP):
            spacing, size = (config.get(name) for name in CROP)
            _check_crop(Path(stage.bundle).name, spacing, size, labels)


def _check_crop(bundle: str, spacing: Any, size: Any, labels: Sequence[str]) -> None:
    if not (_are_numbers(size, 2) and (spacing is None or _are_numbers(spacing, 3))):
        return  # an expression, or what the checks of the config tell of
    for file in labels:
        needed = [_voxels(*axis) for axis in zip(*_extent(file), spacing or (None, None), strict=False)]
        if any(have < need for have, need in zip(size, needed, strict=True)):
            enough = [max(have, 2 * -(-need // 2)) for have, need in zip(size, needed, strict=True)]
            fault = f"{bundle}: crop_size is {list(size)}, but the structures of {file} need {needed} voxels"
            raise InputError(f"{fault}. Set crop_size to {enough} or more.")


def _voxels(voxels: int, own: float, wanted: float | None) -> int:
    """The fewest voxels that an extent has after resampling; it may lose one at its border."""
    return voxels if wanted is None else max(1, int(voxels * own / wanted) - 1)


def _are_numbers(value: Any, length: int) -> bool:
    kinds = (int, float, type(None))
    return isinstance(value, Sequence) and len(value) == length and all(isinstance(each, kinds) for each in value)


@lru_cache(maxsize=4096)
def _extent(file: str) -> tuple[tuple[int, int], tuple[float, float]]:
    """Voxels of all structures along L and P, and the size of a voxel in mm."""
    label = read_label(file)
    axes = [int(np.flatnonzero(io_orientation(label.affine)[:, 0] == axis)[0]) for axis in (0, 1)]
    found, sizes = np.nonzero(label.voxels > 0), voxel_sizes(label.affine)
    spans = [int(np.ptp(found[axis])) + 1 if found[axis].size else 0 for axis in axes]
    return (spans[0], spans[1]), (float(sizes[axes[0]]), float(sizes[axes[1]]))
