"""Scans on their way through a network: which are left to do, its weights, progress, and how volumes reach the disk."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import nibabel as nib
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import Dataset
from monai.handlers import CheckpointLoader

from plugins.data.checks import check_scan
from plugins.data.scans import read_grid
from plugins.errors import InputError, sentence_of
from plugins.files import whole_file
from plugins.finite import refuse_broken_weights
from plugins.locks import hold
from plugins.progress import Progress
from plugins.state import read_tensors
from plugins.store import Store, check_output_dir, check_weights, digest_of

StrPath = str | os.PathLike[str]
FAILED = "failed"
_logger = logging.getLogger(__name__)


class ScansToDo:
    """Those scans of a list that can be used and lack an output that was made from the same, see :mod:`plugins.store`.

    The output folder is held until the process ends.

    Args:
        items: ``{"case", "image", optional "label"}`` each.
        output_dir: of the outputs.
        weights: file of the network's weights.
        settings: other values on which an output depends.
        name: of an output, with ``{case}``.
        done: what happens to a scan, for messages.
        others: further files on which an output depends; those that are not there are left out.

    Attributes:
        all: the scans, each with ``made_from``, see :func:`plugins.store.digest_of`.
        items: those of them that are left to do.
        refused: case to a sentence why it cannot be done.

    Raises:
        InputError: if scans lie in the output folder, nothing can be written there, or another run is at work there.
    """

    def __init__(
        self,
        items: Sequence[Mapping[str, Any]],
        output_dir: StrPath,
        weights: StrPath,
        settings: Any = None,
        name: str = "{case}.nii.gz",
        done: str = "translated",
        others: Sequence[StrPath] = (),
    ):
        check_output_dir(output_dir, [item["image"] for item in items])
        hold(output_dir)
        self.store, self._done, self._name = Store(output_dir), done, name
        self.all: list[dict[str, Any]] = [{**item, "case": str(item["case"])} for item in items]
        self.items: list[dict[str, Any]] = []
        self.refused: dict[str, str] = {}
        shared = [path for path in (weights, *others) if Path(path).exists()]
        with Progress(total=len(self.all), description="checking scans") as progress:
            for item in self.all:
                try:
                    files = [item[key] for key in ("image", "label") if key in item]
                    item["made_from"] = digest_of([*files, *shared], settings)
                    current = [self.store.is_current(path, item["made_from"]) for path in self.outputs(item)]
                    if not all(current):
                        check_scan(item)
                        self.items.append(item)
                except InputError as error:  # one bad scan must not cost the others
                    self.refused[item["case"]] = str(error)
                    _logger.error(f"left out: {error}")
                progress.advance()
        before = len(self.all) - len(self.items) - len(self.refused)
        if before:
            _logger.info(f"{before} of {len(self.all)} scans are {done} already in {output_dir}.")

    def output(self, item: Mapping[str, Any]) -> Path:
        """Where the output of a scan lies."""
        return self.store.folder / self._name.format(case=item["case"])

    def outputs(self, item: Mapping[str, Any]) -> list[Path]:
        """Where all that is wanted of a scan lies."""
        return [self.output(item)]

    def finish(self, failed: Mapping[str, str] | None = None) -> None:
        """Say which scans were left out.

        Args:
            failed: case to a sentence, of those that failed since.

        Raises:
            InputError: if there are any.
        """
        told = {**self.refused, **(failed or {})}
        if told:
            count = sum(item["case"] in told for item in self.all)
            counts = f"{count} of {len(self.all)} scans were not {self._done}: " if count else ""
            raise InputError(f"{counts}{' '.join(told.values())}")


class ScanDataset(Dataset):
    """MONAI's ``Dataset``; a scan whose transform fails becomes ``{"case", "failed": sentence}``."""

    def _transform(self, index: int) -> Any:
        try:
            return super()._transform(index)
        except Exception as error:
            case = self.data[index]["case"]
            return {"case": case, FAILED: sentence_of(error, case)}


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
        load_path: file of a plain dictionary of tensors, or a checkpoint to go on from.
        network: which receives them, when the engine starts.
        map_location: device on which the tensors are read.
        settings: that must be those of the training, see :func:`plugins.store.check_weights`.
        name: of the network in a checkpoint; ``None`` for plain weights.

    Raises:
        InputError: when the engine starts, if the file is missing, broken, not finite or of another network.
    """

    def __init__(
        self,
        load_path: StrPath,
        network: torch.nn.Module,
        map_location: Any = None,
        settings: Mapping[str, Any] | None = None,
        name: str | None = None,
    ):
        self._path, self._network, self._settings = Path(load_path), network, settings or {}
        self._name, self._device = name, map_location
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
            if self._name is None:
                self._loader(engine)
            else:
                objects = read_tensors(self._path, "Copy it again or train again", self._device)["objects"]
                self._network.load_state_dict(objects[self._name])
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
