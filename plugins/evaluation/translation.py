"""How good a translation is where no scan shows what it should look like.

All images are in [0, 1], air to bright; volumes are :math:`(H, W, Z)`, slices along the last axis.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine
from ignite.exceptions import NotComputableError
from ignite.metrics import Metric
from monai.data.utils import affine_to_spacing
from monai.metrics import FIDMetric
from monai.utils import convert_to_numpy
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt
from torch import Tensor
from torch.nn import functional as F

from plugins.config.names import refuse_unknown
from plugins.errors import InputError
from plugins.evaluation.metrics import STRUCTURES, case_metrics

SHELL_MM = 3.0
AIR = 0.1
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
SCALES = 3
RANGE = (0.5, 99.5)
# of real hrT2: tumours are about as bright as what surrounds them, cochleae brighter
TARGET_CONTRAST = {"vs": (-0.15, 0.05), "cochlea": (0.2, 0.4)}

Volume = NDArray[np.floating[Any]]
Labels = NDArray[np.integer[Any]]
Segmenter = Callable[[Volume], Labels]


def structure_contrast(
    volume: Volume, label: Labels, spacing: Sequence[float], shell_mm: float = SHELL_MM
) -> dict[str, float | None]:
    """How much brighter VS and cochlea are than what surrounds them.

    The surroundings of a structure are the unlabelled voxels at most ``shell_mm`` away from it.

    Args:
        volume: image, :math:`(H, W, Z)`.
        label: 0 background, 1 VS, 2 cochlea, of the same shape.
        spacing: mm per voxel along each axis.
        shell_mm: thickness of the surroundings.

    Returns:
        Structure to the difference of the two means; ``None`` where there is no structure or no surroundings.

    Example:
        >>> label = np.zeros((5, 5, 5), dtype=int)
        >>> label[2, 2, 2] = 1
        >>> structure_contrast(np.where(label == 1, 0.75, 0.5), label, (1, 1, 1))
        {'vs': 0.25, 'cochlea': None}
    """
    contrast: dict[str, float | None] = {}
    for name, value in STRUCTURES.items():
        inside = label == value
        contrast[name] = None
        if inside.any():
            shell = (distance_transform_edt(~inside, sampling=spacing) <= shell_mm) & (label == 0)
            if shell.any():
                contrast[name] = float(volume[inside].mean(dtype=np.float64) - volume[shell].mean(dtype=np.float64))
    return contrast


def slice_jump(volume: Volume, of: Volume | None = None) -> float | None:
    """Mean absolute difference between neighbouring slices, over the voxels where either is no air.

    Args:
        volume: in [0, 1], slices along the last axis.
        of: on the same grid, says what is air; ``None`` is the volume itself.

    Returns:
        ``None`` for a single slice or where all is air.
    """
    seen = volume if of is None else of
    body = (seen[..., 1:] > AIR) | (seen[..., :-1] > AIR)
    if not body.any():
        return None
    return float(np.abs(np.diff(volume, axis=2))[body].mean(dtype=np.float64))


def slice_features(slices: Tensor) -> Tensor:
    """Statistics of brightness and of edges at three scales: features for a Fréchet distance that need no download.

    They know no anatomy: an image and the same image upside down have nearly the same.

    At each scale, the next being half as fine: mean, standard deviation and quantiles of the intensities; mean and
    standard deviation of the gradient's length.

    Shape:
        - slices: :math:`(N, 1, H, W)`, each axis at least 8 pixels.
        - output: :math:`(N, 30)`.
    """
    slices = slices.to(torch.float64)
    at = torch.tensor(QUANTILES, dtype=slices.dtype, device=slices.device)
    features = []
    for _ in range(SCALES):
        values = slices.flatten(1)
        steps = [slices[..., 1:, :-1] - slices[..., :-1, :-1], slices[..., :-1, 1:] - slices[..., :-1, :-1]]
        edges = torch.stack(steps).square().sum(dim=0).sqrt().flatten(1)
        features += [values.mean(1), values.std(1, correction=0), *torch.quantile(values, at, dim=1)]
        features += [edges.mean(1), edges.std(1, correction=0)]
        slices = F.avg_pool2d(slices, 2)
    return torch.stack(features, dim=1)


def frechet_distance(translated: Tensor, real: Tensor) -> float:
    """Fréchet distance of two sets of features, each feature in standard deviations of the real ones.

    Args:
        translated: :math:`(N, F)`.
        real: :math:`(M, F)`.
    """
    centre, spread = real.mean(0), real.std(0, correction=0).clamp_min(1e-6)
    return float(FIDMetric()((translated - centre) / spread, (real - centre) / spread))


def features_of(volume: Volume) -> Tensor:
    """Features of the slices of a volume, :math:`(Z, 30)`."""
    slices = torch.from_numpy(np.moveaxis(np.asarray(volume, dtype=np.float32), 2, 0).copy()).unsqueeze(1)
    return torch.cat([slice_features(batch) for batch in slices.split(16)])


class SliceSegmenter:
    """A segmentation network for slices, applied to volumes.

    Args:
        path: TorchScript that takes slices :math:`(N, 1, H, W)` in [-1, 1] to logits :math:`(N, 3, H, W)`.
        batch_size: slices a forward pass.
    """

    def __init__(self, path: str, batch_size: int = 8):
        self._network = torch.jit.load(path, map_location="cpu").eval()
        self._batch_size = batch_size

    def __call__(self, volume: Volume) -> Labels:
        """Label map of a volume in [0, 1]."""
        slices = torch.from_numpy(np.moveaxis(np.asarray(volume, dtype=np.float32), 2, 0).copy()).unsqueeze(1) * 2 - 1
        with torch.no_grad():
            labels = [self._network(batch).argmax(1) for batch in slices.split(self._batch_size)]
        return np.moveaxis(torch.cat(labels).numpy().astype(np.uint8), 0, 2)


class TranslationQuality(Metric):
    """Quality of translated volumes, for MONAI's and ignite's evaluators.

    Puts into ``engine.state.metrics``

    * ``statistics_distance``: Fréchet distance of :func:`slice_features` to the slices of real scans, and
      ``statistics_distance_floor``: the same between two halves of the real slices. Both once more for each site of the
      real scans, ``statistics_distance_<site>`` and ``statistics_distance_<site>_floor``. Halves are every other scan,
      or every other slice of a single one;
    * ``slice_jump``: :func:`slice_jump` as a multiple of that of real scans;
    * ``vs_contrast``, ``cochlea_contrast``: :func:`structure_contrast` as a share of the volume's range from the 0.5th
      to the 99.5th percentile;
    * ``vs_contrast_error``, ``cochlea_contrast_error``: mean distance of the volumes' contrasts to the range of the
      target, 0 inside it. Where real scans have label maps, the range is their mean contrast, give or take its standard
      deviation; elsewhere it is ``target_contrast``;
    * with a segmenter ``vs_dice``, ``cochlea_dice``, ``mean_dice``: target preservation, the Dice of its label map on
      the translation with that of the source;
    * under the metric's own name the score, larger for better translations: ``mean_dice`` with a segmenter, else
      minus the mean of the contrasts' errors; without any structure -1.

    What is undefined is left out.

    Args:
        reals: real scans of the target, ``{"image", optional "label" and "site"}``, read once.
        segmenter: of target images; ``None`` leaves target preservation out.
        target_contrast: lowest and highest contrast of real ``vs`` and ``cochlea``.
        output_transform: takes the engine's output to items ``{"pred", "label"}``, one for each volume.

    Shape:
        - image, pred: :math:`(1, H, W, Z)` in [-1, 1]; images and labels are MONAI's ``MetaTensor``, which knows the
          spacing.

    Raises:
        InputError: if ``target_contrast`` is not a range for each structure.
    """

    def __init__(
        self,
        reals: Iterable[Mapping[str, Any]],
        segmenter: Segmenter | None = None,
        target_contrast: Mapping[str, Sequence[float]] = TARGET_CONTRAST,
        output_transform: Callable[[Any], Any] = lambda output: output,
    ):
        _check_ranges(target_contrast)
        self._segmenter = segmenter
        self._real_features: dict[str, list[Tensor]] = {}
        jumps: list[float | None] = []
        contrasts: list[dict[str, float | None]] = []
        for item in reals:
            volume = _to_unit(item["image"])
            self._real_features.setdefault(str(item.get("site", "unknown")), []).append(features_of(volume))
            jumps.append(slice_jump(volume))
            if "label" in item:
                contrasts.append(_contrast_share(volume, _label(item["label"]), _spacing(item["label"])))
        self._real_jump = _mean(jumps)
        self._targets = {
            name: _spread([each[name] for each in contrasts]) or tuple(target_contrast[name]) for name in STRUCTURES
        }
        super().__init__(output_transform=output_transform)

    def reset(self) -> None:
        """Forget all translations."""
        self._features: list[Tensor] = []
        self._values: dict[str, list[float | None]] = {}

    def update(self, output: Sequence[Mapping[str, Any]]) -> None:
        """Take the translations of one batch."""
        for item in output:
            volume, label, spacing = _to_unit(item["pred"]), _label(item["label"]), _spacing(item["label"])
            self._features.append(features_of(volume))
            self._add("slice_jump", slice_jump(volume))
            for name, value in _contrast_share(volume, label, spacing).items():
                self._add(f"{name}_contrast", value)
                self._add(f"{name}_contrast_error", None if value is None else _outside(value, *self._targets[name]))
            if self._segmenter is not None:
                for name, row in case_metrics(self._segmenter(volume), label, spacing).items():
                    self._add(f"{name}_dice", row["dice"])

    def compute(self) -> dict[str, float]:
        """Values over all translations."""
        if not self._features:
            raise NotComputableError("no volume was translated")
        values = {name: _mean(each) for name, each in self._values.items()}
        values |= self._statistics_distances()
        if values["slice_jump"] is not None and self._real_jump:
            values["slice_jump"] /= self._real_jump
        if self._segmenter is not None:
            values["mean_dice"] = _mean([values[f"{name}_dice"] for name in STRUCTURES])
        return {name: value for name, value in values.items() if value is not None}

    def completed(self, engine: Engine, name: str) -> None:
        """Report all values, and the score under ``name``."""
        values = self.compute()
        engine.state.metrics |= values
        errors = _mean([values.get(f"{structure}_contrast_error") for structure in STRUCTURES])
        engine.state.metrics[name] = values.get("mean_dice", -1.0 if errors is None else -errors)

    def _statistics_distances(self) -> dict[str, float]:
        translated, sites = torch.cat(self._features), self._real_features
        groups = {"": [scan for scans in sites.values() for scan in scans]}
        groups |= {f"_{site}": scans for site, scans in sites.items()}
        distances = {}
        for suffix, scans in groups.items():
            halves = (scans[::2], scans[1::2]) if len(scans) > 1 else ([scans[0][::2]], [scans[0][1::2]])
            distances[f"statistics_distance{suffix}"] = frechet_distance(translated, torch.cat(scans))
            distances[f"statistics_distance{suffix}_floor"] = frechet_distance(*(torch.cat(half) for half in halves))
        return distances

    def _add(self, name: str, value: Any) -> None:
        self._values.setdefault(name, []).append(value)


def _check_ranges(target_contrast: Mapping[str, Sequence[float]]) -> None:
    refuse_unknown(target_contrast, tuple(STRUCTURES), "target_contrast")
    for name in STRUCTURES:
        limits = target_contrast.get(name, ())
        if len(limits) != 2 or limits[0] > limits[1]:
            raise InputError(f"target_contrast: {name} has {list(limits)}. Give the lowest and the highest contrast.")


def _contrast_share(volume: Volume, label: Labels, spacing: Sequence[float]) -> dict[str, float | None]:
    low, high = np.percentile(volume, RANGE)
    contrast = structure_contrast(volume, label, spacing)
    return {name: None if value is None else value / max(high - low, 1e-6) for name, value in contrast.items()}


def _spread(values: Iterable[float | None]) -> tuple[float, float] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return float(np.mean(known) - np.std(known)), float(np.mean(known) + np.std(known))


def _outside(value: float, low: float, high: float) -> float:
    return max(low - value, value - high, 0.0)


def _to_unit(image: Any) -> Volume:
    return (convert_to_numpy(image[0], dtype=np.float32) + 1) / 2


def _label(label: Any) -> Labels:
    return np.rint(convert_to_numpy(label[0])).astype(np.uint8)


def _spacing(label: Any) -> list[float]:
    return [float(mm) for mm in affine_to_spacing(label.affine)]


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if known else None
