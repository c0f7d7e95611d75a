"""Unpaired slices for training, read from volumes prepared once on disk: memory does not grow with the data."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from pydantic import NonNegativeInt, PositiveInt
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset
from torch.utils.data.distributed import DistributedSampler
from typing_extensions import TypedDict

from plugins.config.ranges import Pair, Share
from plugins.data.checks import check_scans, refuse_empty_labels
from plugins.data.scans import read_slice
from plugins.errors import InputError
from plugins.files import whole_file, write_json
from plugins.progress import Progress
from plugins.state import read_state, recall_state
from plugins.store import digest_of

FORMAT = 2  # of the prepared files: raise it when their content changes for the same settings


class SliceRecord(TypedDict):
    """What is kept of a prepared volume: for each slice, whether it holds foreground, and the sizes of the files."""

    foreground: list[bool]
    bytes: dict[str, int]


@dataclass(frozen=True)
class PreparedVolume(Dataset[tuple[Tensor, Tensor]]):
    """A transformed volume on disk, read slice by slice.

    Attributes:
        case: the scan it was made from.
        image: uncompressed float32 NIfTI, ``(H, W, slices)``.
        label: uncompressed uint8 NIfTI of the same grid, where the scan has a label.
        record: JSON file, written last, that tells which slices hold foreground.
        site: of the scan, as in its datalist.
    """

    case: str
    image: Path
    label: Path | None
    record: Path
    site: str = "unknown"

    @property
    def files(self) -> list[Path]:
        """Image and, where there is one, label."""
        return [path for path in (self.image, self.label) if path is not None]

    @property
    def is_complete(self) -> bool:
        """Whether all files are there, and as long as they were written."""
        record = recall_state(self.record, SliceRecord, "The scan is prepared again")
        return record is not None and all(
            path.is_file() and path.stat().st_size == record["bytes"].get(path.name) for path in self.files
        )

    @cached_property
    def foreground(self) -> list[bool]:
        """For each slice, whether its label holds anything."""
        return read_state(self.record, SliceRecord, "Remove its folder, and give the command again")["foreground"]

    def __len__(self) -> int:
        return len(self.foreground)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """Image and label map of an axial slice; the label map is zero where the volume has none."""
        image = read_slice(self.image, index)
        return image, torch.zeros_like(image) if self.label is None else read_slice(self.label, index)


def prepare_volumes(
    items: Sequence[Mapping[str, Any]],
    transform: Callable[[Mapping[str, Any]], Mapping[str, Any]],
    cache_dir: str | Path,
    output_dir: str | Path | None = None,
) -> list[PreparedVolume]:
    """Transform each scan once and keep the result in ``cache_dir``.

    A prepared volume is found again as long as the transform's settings and the scan's files (size and time of change)
    are the same; it is written whole or not at all. The folder may be removed at any time between runs.

    Args:
        items: scans ``{"case", "image", optional "label"}``.
        transform: gives ``(1, H, W, Z)`` tensors and has ``settings``: :func:`plugins.data.translation_transforms`.
        cache_dir: where the prepared volumes go, 4 bytes a voxel and 1 more with a label.
        output_dir: where ``progress.json`` goes; none is written if omitted.

    Raises:
        InputError: if a new scan fails :func:`plugins.data.check_scans` or is refused by the transform.
    """
    volumes = [_volume(item, transform, Path(cache_dir)) for item in items]
    missing = [(item, volume) for item, volume in zip(items, volumes, strict=True) if not volume.is_complete]
    if missing:
        check_scans([item for item, _ in missing])
    with Progress(len(items), "preparing volumes", output_dir, initial=len(items) - len(missing)) as progress:
        for item, volume in missing:
            _prepare(item, transform, volume)
            progress.advance(case=volume.case)
    return volumes


def _volume(item: Mapping[str, Any], transform: Any, cache_dir: Path) -> PreparedVolume:
    stem = cache_dir / f"{item['case']}-{_key(item, transform)}"
    label = Path(f"{stem}_label.nii") if "label" in item else None
    return PreparedVolume(
        item["case"], Path(f"{stem}_image.nii"), label, Path(f"{stem}.json"), item.get("site", "unknown")
    )


def _prepare(item: Mapping[str, Any], transform: Callable[[Any], Any], volume: PreparedVolume) -> None:
    tensors = transform(item)
    foreground = [False] * tensors["image"].shape[-1]
    _write(tensors["image"], volume.image, np.float32)
    if volume.label is not None:
        _write(tensors["label"], volume.label, np.uint8)
        foreground = (tensors["label"] > 0).any(0).any(0).any(0).tolist()
    sizes = {path.name: path.stat().st_size for path in volume.files}
    write_json(volume.record, {"foreground": foreground, "bytes": sizes})


def _key(item: Mapping[str, Any], transform: Any) -> str:
    facts = [FORMAT, transform.settings, bool(item.get("pseudo")), item.get("window")]
    return digest_of([item[name] for name in ("image", "label") if name in item], facts)[:16]


def _write(volume: Any, path: Path, dtype: type) -> None:
    with whole_file(path) as part:
        nib.save(nib.Nifti1Image(np.asarray(volume[0], dtype), np.asarray(volume.affine)), part)


class UnpairedSlices(Dataset[dict[str, Any]]):
    """Pairs of a source slice and a target slice that have nothing to do with each other.

    The index is ``(source slice, target slice, seed)``, as :class:`UnpairedSampler` draws it. An item depends on
    nothing else, so batches are the same for any number of workers. The volumes are prepared on construction.

    Shape: items hold float32 tensors ``(1, H, W)``: ``image`` and ``label`` of the source slice, ``reals`` and
    ``reals_label`` of the target slice. A label map is zero where the scan has none. ``reals_site`` is the name of the
    target scan's site.

    Args:
        data: ``{"source": scans, "target": scans}``, see :func:`plugins.data.unpaired_datalist`.
        transform: see :func:`prepare_volumes`.
        cache_dir: see :func:`prepare_volumes`.
        augment: flip source and target slices left to right, each half of the time.
        output_dir: where ``progress.json`` of the preparation goes; none is written if omitted.
        roi_size: window ``(H, W)`` cut from both slices at the same place, around a random foreground pixel of the
            source slice where it has one; ``None`` keeps whole slices.
        divisor: of ``roi_size``: 4 for a network that halves its maps twice.

    Attributes:
        source_foreground: for each source slice, whether its label holds VS or cochlea.
        target_foreground: the same for target slices; all false without pseudo-labels.

    Raises:
        InputError: if there is no source or no target scan, if no source label holds a structure, if the window is
            larger than the slices or cannot be divided, or as :func:`prepare_volumes`.
    """

    def __init__(
        self,
        data: Mapping[str, Sequence[Mapping[str, Any]]],
        transform: Any,
        cache_dir: str | Path,
        augment: bool = True,
        output_dir: str | Path | None = None,
        roi_size: Pair[PositiveInt] | None = None,
        divisor: int = 1,
    ):
        for domain in ("source", "target"):
            if not data[domain]:
                raise InputError(f"there are no {domain} scans to train on. Check dataset_dir")
        shape = transform.settings["patch_size"]
        if roi_size is not None and any(
            part > full or part % divisor for part, full in zip(roi_size, shape, strict=True)
        ):
            raise InputError(f"roi_size is {list(roi_size)}. Give multiples of {divisor} up to {list(shape)}.")
        volumes = prepare_volumes([*data["source"], *data["target"]], transform, cache_dir, output_dir)
        self._volumes = {"source": volumes[: len(data["source"])], "target": volumes[len(data["source"]) :]}
        self._source: ConcatDataset[Any] = ConcatDataset(self._volumes["source"])
        self._target: ConcatDataset[Any] = ConcatDataset(self._volumes["target"])
        self.source_foreground, self.target_foreground = (
            np.concatenate([volume.foreground for volume in volumes]) for volumes in self._volumes.values()
        )
        if any("label" in item for item in data["source"]) and not self.source_foreground.any():
            refuse_empty_labels(data["source"])
        self._augment, self._roi_size = augment, roi_size

    def scans(self, domain: str, count: int) -> list[dict[str, str]]:
        """``count`` prepared volumes, or all if there are fewer, evenly spread over those of a domain.

        Args:
            domain: ``"source"`` or ``"target"``.
            count: how many.

        Returns:
            ``{"case", "site", "image", optional "label"}`` with files, for :func:`plugins.data.prepared_transforms`.
        """
        volumes = self._volumes[domain]
        chosen = np.linspace(0, len(volumes) - 1, min(count, len(volumes))).round().astype(int)
        return [
            {"case": volume.case, "site": volume.site, "image": str(volume.image)}
            | ({"label": str(volume.label)} if volume.label else {})
            for volume in (volumes[index] for index in chosen)
        ]

    def __len__(self) -> int:
        return len(self.source_foreground)

    def __getitem__(self, index: tuple[int, int, int]) -> dict[str, Any]:
        source, target, seed = index
        image, label = self._source[source]
        reals, reals_label = self._target[target]
        random = np.random.default_rng(seed)
        if self._augment:
            flip_source, flip_target = random.random(2) < 0.5
            if flip_source:
                image, label = image.flip(1), label.flip(1)
            if flip_target:
                reals, reals_label = reals.flip(1), reals_label.flip(1)
        item = {"image": image, "label": label, "reals": reals, "reals_label": reals_label}
        if self._roi_size is not None:
            rows, columns = _window(label[0], self._roi_size, random)
            item = {key: value[:, rows, columns] for key, value in item.items()}
        volume = self._volumes["target"][bisect_right(self._target.cumulative_sizes, target)]
        return {**item, "reals_site": volume.site}


def _window(label: Tensor, size: Sequence[int], random: np.random.Generator) -> tuple[slice, slice]:
    """A random window of ``size``, around a random foreground pixel if there is one, shifted to lie in the slice."""
    places = torch.nonzero(label)
    inside = [int(random.integers(full - part + 1)) for full, part in zip(label.shape, size, strict=True)]
    if len(places):
        place = places[int(random.integers(len(places)))].tolist()
        shifts = [int(random.integers(part)) for part in size]
        inside = [
            min(max(at - s, 0), full - part) for at, s, full, part in zip(place, shifts, label.shape, size, strict=True)
        ]
    rows, columns = (slice(start, start + part) for start, part in zip(inside, size, strict=True))
    return rows, columns


class UnpairedSampler(DistributedSampler[dict[str, Any]]):
    """Draws ``(source slice, target slice, seed)``: a pure function of the seed, the epoch and the rank.

    An epoch goes through random orders of the source slices and, apart from them, of the target slices, beginning anew
    when one is exhausted. MONAI's trainers call ``set_epoch`` because this is a ``DistributedSampler``.

    Args:
        dataset: what is drawn from.
        seed: of the draws; ``None`` counts as 0.
        slices_per_epoch: over all ranks; ``None`` is the number of source slices, each once.
        foreground_probability: share of the slices that hold VS or cochlea, in source slices and, where there are
            pseudo-labels, in target slices; ``None`` takes all slices alike.
        num_replicas: processes that share an epoch; ``None`` asks ``torch.distributed``, which is 1 without it.
        rank: of this process; ``None`` asks ``torch.distributed``, which is 0 without it.
    """

    def __init__(
        self,
        dataset: UnpairedSlices,
        seed: NonNegativeInt | None = 0,
        slices_per_epoch: PositiveInt | None = None,
        foreground_probability: Share | None = None,
        num_replicas: int | None = None,
        rank: int | None = None,
    ):
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if num_replicas is None:
            num_replicas = torch.distributed.get_world_size() if distributed else 1
        if rank is None:
            rank = torch.distributed.get_rank() if distributed else 0
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, seed=seed or 0)
        self._slices = dataset
        self._foreground_probability = foreground_probability
        self.num_samples = math.ceil((slices_per_epoch or len(dataset)) / num_replicas)
        self.total_size = self.num_samples * num_replicas

    def __iter__(self) -> Iterator[tuple[int, int, int]]:  # type: ignore[override]
        random = np.random.default_rng([self.seed, self.epoch])
        draws = [
            _draw(foreground, self.total_size, self._foreground_probability, random)
            for foreground in (self._slices.source_foreground, self._slices.target_foreground)
        ]
        seeds = random.integers(2**31, size=self.total_size)
        drawn = np.stack([*draws, seeds], axis=1)[self.rank :: self.num_replicas]
        return iter([(int(source), int(target), int(seed)) for source, target, seed in drawn])


def _draw(foreground: np.ndarray, count: int, probability: float | None, random: np.random.Generator) -> np.ndarray:
    """Draw ``count`` slices, of which a share of ``probability`` from those with foreground; without such, from all."""
    chosen, others = np.flatnonzero(foreground), np.flatnonzero(~foreground)
    if probability is None or len(chosen) == 0 or len(others) == 0:
        return _orders(np.arange(len(foreground)), count, random)
    wanted = round(probability * count)
    drawn = np.concatenate([_orders(chosen, wanted, random), _orders(others, count - wanted, random)])
    return random.permutation(drawn)


def _orders(slices: np.ndarray, count: int, random: np.random.Generator) -> np.ndarray:
    """The first ``count`` of random orders of ``slices``, one after another."""
    orders = [random.permutation(slices) for _ in range(math.ceil(count / len(slices)))]
    return np.concatenate([*orders, slices[:0]])[:count]
