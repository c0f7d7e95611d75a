"""How a locator learns from ceT1 with labels to find the inner ears in any contrast and any field of view."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.transforms import Randomizable, Transform
from nibabel.affines import voxel_sizes
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import conv3d, leaky_relu, pad

from plugins.config.ranges import Pair, Triple
from plugins.errors import InputError
from plugins.files import write_json
from plugins.segmentation.locator import DESCRIPTION, SIDES, WEIGHTS, Locator, StrPath, coarse, normalised
from plugins.segmentation.model import DESCRIPTION as MODEL
from plugins.segmentation.model import LABELS
from plugins.state import write_weights

Item = Mapping[Hashable, Any]
TWO_SIDES_MM = 30.0  # one cochlea is smaller, two are farther apart
STRUCTURES = ("VS", "cochlea")


class CoarseScand(Transform):
    """What a locator sees of a scan, and what it is to answer.

    The result is ``image``, :math:`(1, X, Y, Z)`, ``parts``, the share of VS and of cochlea in every coarse voxel,
    :math:`(2, X, Y, Z)`, and ``heat``, a Gaussian of height 1 at the right cochlea and at the left one, likewise; where
    a cochlea is not labelled, its map is 0. Axes are L, P, S.

    Args:
        locator: whose spacing and percentiles are taken.
        sigma: mm of the Gaussian.
    """

    def __init__(self, locator: Locator, sigma: float = 6.0):
        self._spacing, self._percentiles, self._sigma = locator.spacing, locator.percentiles, sigma

    def __call__(self, item: Item) -> dict[Hashable, Any]:
        """Take ``image`` and ``label``, MetaTensors :math:`(1, X, Y, Z)` with axes L, P, S, rounded labels."""
        mm = voxel_sizes(np.asarray(item["image"].affine, np.float64))
        image = coarse(normalised(item["image"].as_tensor(), self._percentiles), mm, self._spacing)
        label = item["label"].as_tensor()
        parts = torch.cat([(label == LABELS[name]).float() for name in STRUCTURES])
        ratio = np.asarray(label.shape[1:]) / np.asarray(image.shape[1:])
        heat = torch.zeros(SIDES, *image.shape[1:])
        axes = [torch.arange(length, dtype=torch.float64) for length in image.shape[1:]]
        for side, place in self._places(label[0].numpy() == LABELS["cochlea"], mm):
            apart = [
                ((axis - (at + 0.5) / by + 0.5) * by * length) ** 2
                for axis, at, by, length in zip(axes, place, ratio, mm, strict=True)
            ]
            squared = apart[0][:, None, None] + apart[1][:, None] + apart[2]
            heat[side] = torch.exp(-squared / (2 * self._sigma**2)).float()
        return {"image": image, "parts": coarse(parts, mm, self._spacing), "heat": heat}

    @staticmethod
    def _places(cochleae: NDArray[np.bool_], mm: NDArray[np.float64]) -> list[tuple[int, NDArray[np.float64]]]:
        """Side and centre of each cochlea; one alone belongs to the half of the field that it lies in."""
        places = np.argwhere(cochleae)
        if not len(places):
            return []
        low, high = places[:, 0].min(), places[:, 0].max()
        if (high - low) * mm[0] < TWO_SIDES_MM:
            return [(int(places[:, 0].mean() > (cochleae.shape[0] - 1) / 2), places.mean(0))]
        is_left = places[:, 0] > (low + high) / 2
        return [(side, places[is_left == bool(side)].mean(0)) for side in range(SIDES)]


class RandomMirrord(Randomizable, Transform):
    """Exchange left and right half of the time, and with them the maps of the two sides."""

    def __call__(self, item: Item) -> dict[Hashable, Any]:
        """Take what :class:`CoarseScand` gives."""
        if self.R.rand() < 0.5:
            return dict(item)
        flipped = {key: value.flip(1) for key, value in item.items()}
        return {**flipped, "heat": flipped["heat"].flip(0)}


class RandomContrastd(Randomizable, Transform):
    """Draw the contrast of a scan anew, so that nothing but shape and place can be learnt.

    Brightness goes through a random curve, piecewise linear and not monotone, whose knots lie at random quantiles of
    the tissue (what is black mostly stays black), then VS and cochlea are mixed with a grey and a bright value, then a
    random gamma darkens or brightens all but black and white; now and then a random shallow convolution is blended in,
    after GIN (Ouyang et al., IEEE TMI 2023).

    Args:
        curve: probability of the curve; the scans that keep theirs get the training off its first plateau.
        structures: probability, for each of the two structures, of a new brightness.
        brightness: the range of it, for ``VS`` and ``cochlea``.
        convolution: probability of the convolution.
        log_gamma: range of the logarithm of gamma.
    """

    def __init__(
        self,
        curve: float = 0.75,
        structures: float = 0.8,
        brightness: Mapping[str, Sequence[float]] | None = None,
        convolution: float = 0.15,
        log_gamma: Pair[float] = (-0.5, 1.0),
    ):
        self._curve, self._structures, self._convolution = curve, structures, convolution
        self._brightness = brightness or {"VS": (0.1, 0.8), "cochlea": (0.7, 1.0)}
        self._log_gamma = log_gamma

    def __call__(self, item: Item) -> dict[Hashable, Any]:
        """Take what :class:`CoarseScand` gives."""
        image = item["image"]
        if self.R.rand() < self._curve:
            image = self._through_curve(image)
        for part, name in zip(item["parts"], STRUCTURES, strict=True):
            if self.R.rand() < self._structures:
                share = (1.5 * part).clamp(0, 1)
                image = image * (1 - share) + share * self.R.uniform(*self._brightness[name])
        image = image.clamp(0, 1) ** float(np.exp(self.R.uniform(*self._log_gamma)))
        if self.R.rand() < self._convolution:
            share = self.R.rand()
            image = share * image + (1 - share) * self._convolved(image)
        return {**item, "image": image}

    def _through_curve(self, image: Tensor) -> Tensor:
        values = image.numpy()
        tissue = values[values > 0.02]
        count = self.R.randint(3, 8)
        inner = np.sort(np.quantile(tissue, self.R.rand(count))) if tissue.size else np.linspace(0, 1, count)
        heights = self.R.rand(count + 2)
        heights[0] *= self.R.rand() < 0.3
        return torch.from_numpy(np.interp(values, [0, *inner, 1], heights).astype(np.float32))

    def _convolved(self, image: Tensor) -> Tensor:
        first, second = (torch.from_numpy(self.R.randn(*shape)).float() for shape in ((2, 1, 3, 3, 1), (1, 2, 3, 3, 1)))
        made = conv3d(leaky_relu(conv3d(image[None], first, padding=(1, 1, 0))), second, padding=(1, 1, 0))[0]
        return (made - made.min()) / (made.max() - made.min()).clamp_min(1e-6)


class RandomFieldd(Randomizable, Transform):
    """Cut a random box that mostly holds both ears, and set it at a random place in a larger field of zeros.

    Args:
        probability: of a cut; otherwise the whole scan is set in the field.
        border: most voxels of zeros on each side, along L, P, S.
    """

    def __init__(self, probability: float = 0.5, border: Triple[int] = (3, 3, 1)):
        self._probability, self._border = probability, border

    def __call__(self, item: Item) -> dict[Hashable, Any]:
        """Take ``image`` and ``heat``; the rest is left out."""
        image, heat = item["image"], item["heat"]
        if self.R.rand() < self._probability:
            box = [self._edges(heat, axis) for axis in range(3)]
            image, heat = image[(slice(None), *box)], heat[(slice(None), *box)]
        border = [int(self.R.randint(0, most + 1)) for most in reversed(self._border) for _ in range(2)]
        return {"image": pad(image, border), "heat": pad(heat, border)}

    def _edges(self, heat: Tensor, axis: int) -> slice:
        """Where to cut one axis: each end between the border of the scan and the ears, and sometimes not at all."""
        length = heat.shape[axis + 1]
        hot = np.flatnonzero((heat > 0.5).any(0).numpy().any(tuple({0, 1, 2} - {axis})))
        low, high = (hot[0], hot[-1] + 1) if hot.size else (length // 2, length // 2 + 1)
        first = self.R.randint(0, max(1, low)) if self.R.rand() < 0.8 else 0
        last = self.R.randint(min(high + 1, length), length + 1) if self.R.rand() < 0.8 else length
        return slice(int(first), int(last))


class HeatMapLoss(nn.Module):
    r"""Kullback-Leibler divergence of the predicted place of each cochlea from the true one.

    .. math:: \frac{1}{|S|} \sum_{s \in S} \sum_v q_{sv} (\log q_{sv} - \log p_{sv})

    Where:
        - :math:`q_s` is the heat map of a side, scaled to add up to 1, and :math:`S` are the sides that have one,
        - :math:`p_s` is the softmax of its logits over all voxels :math:`v`.

    Shape: logits and heat maps are :math:`(N, 2, X, Y, Z)`.
    """

    def forward(self, logits: Tensor, heat: Tensor) -> Tensor:
        """The loss; 0 if no side has a heat map."""
        wanted = heat.flatten(2)
        total = wanted.sum(2, keepdim=True)
        wanted = wanted / total.clamp_min(1e-6)
        found = logits.flatten(2).log_softmax(2)
        divergence = (torch.xlogy(wanted, wanted) - wanted * found).sum(2)
        seen = total[..., 0] > 0
        return (divergence * seen).sum() / seen.sum().clamp_min(1)


class SaveLocator:
    """Writes ``locator.pt`` and ``locator.json`` when a training has ended, each whole, the weights last.

    Args:
        locator: with the network that is trained.
        ckpt_dir: created if missing.
        scans: that it was trained on, for the record.

    Raises:
        InputError: when the engine starts, if the folder holds a segmentation without a locator, one of whole scans.
    """

    def __init__(self, locator: Locator, ckpt_dir: StrPath, scans: Sequence[Mapping[str, Any]] = ()):
        self._locator, self._folder = locator, Path(ckpt_dir)
        self._cases = sorted(str(scan["case"]) for scan in scans)

    def attach(self, engine: Engine) -> None:
        """Register with a trainer."""
        engine.add_event_handler(Events.STARTED, self._check)
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _check(self) -> None:
        if (self._folder / MODEL).exists() and not (self._folder / WEIGHTS).exists():
            raise InputError(f"{self._folder / MODEL} is of a segmentation of whole scans. Set another ckpt_dir.")

    def _save(self, engine: Engine) -> None:
        output: Any = engine.state.output
        last = output[0] if isinstance(output, list) and output else {}
        record: dict[str, Any] = {"epochs": engine.state.epoch, "iterations": engine.state.iteration}
        if isinstance(last, Mapping) and "loss" in last:
            record["last_loss"] = round(float(last["loss"]), 4)
        record["cases"] = self._cases
        write_json(self._folder / DESCRIPTION, {**self._locator.description(), "training": record})
        weights = {name: value.cpu() for name, value in self._locator.network.state_dict().items()}
        write_weights(weights, self._folder / WEIGHTS)
