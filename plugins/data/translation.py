"""Translated volumes: how they reach the disk."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.handlers import CheckpointLoader

from plugins.data.scans import read_grid
from plugins.errors import InputError
from plugins.files import whole_file
from plugins.finite import refuse_broken_weights
from plugins.progress import Progress
from plugins.store import Store, check_weights

StrPath = str | os.PathLike[str]


def translation_path(output_dir: StrPath, case: str) -> Path:
    """Where the translation of a case lies."""
    return Path(output_dir) / f"{case}.nii.gz"


class SaveTranslationd:
    """Write ``<output_dir>/<case>.nii.gz``, float32, with the header of the scan that ``image`` was read from.

    The file appears whole or not at all, with the scan's shape, affine, sform and qform codes and units, and its record
    with it, see :mod:`plugins.store`.

    Shape: ``item[keys]`` is ``(1, X, Y, Z)``, the scan's own grid.

    Args:
        keys: the translated volume.
        output_dir: created if missing.

    Raises:
        InputError: if the volume holds values that are not finite.
        ValueError: if the volume is not on the scan's grid.
    """

    def __init__(self, keys: str, output_dir: StrPath):
        self._key = keys
        self._output_dir = output_dir

    def __call__(self, item: Mapping[str, Any]) -> Mapping[str, Any]:
        """Write the volume and return ``item`` as it is."""
        volume = item[self._key]
        scan = read_grid(item["image"].meta["filename_or_obj"])
        voxels = volume[0].cpu().numpy()
        if voxels.shape != scan.shape or not np.allclose(volume.affine, scan.affine, atol=1e-4):
            raise ValueError(f"{item['case']}: the translation left the scan's grid {scan.shape}: {voxels.shape}")
        if not np.isfinite(voxels).all():
            raise InputError(f"{item['case']}: the network gives values that are not finite. Train it again.")
        path, result = translation_path(self._output_dir, item["case"]), scan.image(voxels, np.float32)
        if "made_from" in item:
            Store(self._output_dir).write(path, item["made_from"], lambda part: nib.save(result, part))
        else:
            with whole_file(path) as part:
                nib.save(result, part)
        return item


class WeightsLoader:
    """MONAI's ``CheckpointLoader`` of one network, for users: what is wrong with the file is said in a sentence.

    Args:
        load_path: file of a plain dictionary of tensors.
        network: which receives them, when the engine starts.
        map_location: device on which the tensors are read.
        settings: that must be those of the training, see :func:`plugins.store.check_weights`.

    Raises:
        InputError: when the engine starts, if the file is missing, broken, not finite or of another network.
    """

    def __init__(
        self,
        load_path: StrPath,
        network: torch.nn.Module,
        map_location: Any = None,
        settings: Mapping[str, Any] | None = None,
    ):
        self._path, self._network, self._settings = Path(load_path), network, settings or {}
        self._loader = CheckpointLoader(str(load_path), {"model": network}, map_location=map_location)

    def attach(self, engine: Engine) -> None:
        """Load when ``engine`` starts."""
        self._loader.logger = engine.logger
        engine.add_event_handler(Events.STARTED, self)

    def __call__(self, engine: Engine) -> None:
        """Load now."""
        if not self._path.is_file():
            raise InputError(f"{self._path}: there are no weights. Train first or set ckpt_dir to their folder.")
        check_weights(self._path, self._settings)
        try:
            self._loader(engine)
        except (RuntimeError, ValueError, TypeError, KeyError, EOFError, UnpicklingError) as error:
            fault = "cannot be read as a dictionary of tensors. Copy it again or train again"
            if "state_dict" in str(error):
                cure = "Use the config files and overrides of its training"
                fault = f"the weights belong to a network of other settings. {cure}"
            raise InputError(f"{self._path}: {fault}.") from error
        refuse_broken_weights(self._network.state_dict(), str(self._path))


class VolumeProgress:
    """Ignite handler that reports each volume that is done on the terminal and in ``<output_dir>/progress.json``.

    Args:
        output_dir: see above.
        description: what is done.
        total: volumes of the whole list, of which those of the engine are the last; ``None`` counts those only.
    """

    def __init__(self, output_dir: StrPath, description: str = "translating volumes", total: int | None = None):
        self._output_dir, self._description, self._total = output_dir, description, total
        self._progress: Progress | None = None

    def attach(self, engine: Engine) -> None:
        """Follow the iterations of ``engine``, each of them one volume."""
        engine.add_event_handler(Events.STARTED, self._start)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._advance)
        engine.add_event_handler(Events.COMPLETED, self._close)

    def _start(self, engine: Engine) -> None:
        steps = engine.state.epoch_length or 0
        total = steps if self._total is None else self._total
        self._progress = Progress(total, self._description, self._output_dir, initial=total - steps)

    def _advance(self, engine: Engine) -> None:
        if self._progress is not None:
            self._progress.advance()

    def _close(self, engine: Engine) -> None:
        if self._progress is not None:
            self._progress.close()
