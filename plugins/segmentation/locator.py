"""Where the inner ears lie in a whole scan: a small network on coarse voxels, and the window around them."""

from __future__ import annotations

import filecmp
import json
import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.nets import UNet
from monai.transforms import Crop, Cropd, CropForeground, EnsureChannelFirst, Orientation
from nibabel.affines import apply_affine, voxel_sizes
from numpy.typing import NDArray
from pydantic import PositiveFloat, PositiveInt
from scipy.ndimage import center_of_mass, uniform_filter
from torch import Tensor, nn
from torch.nn.functional import interpolate, pad
from typing_extensions import TypedDict

from plugins.config.ranges import Pair, Share, Triple
from plugins.data import WINDOW_MM, Window, as_tensor, read_scan, voxel_box, whole_scan
from plugins.errors import InputError
from plugins.files import whole_file
from plugins.progress import Progress
from plugins.state import SUM, copy_weights, read_state, read_tensors

StrPath = str | os.PathLike[str]
WEIGHTS, DESCRIPTION = "locator.pt", "locator.json"
SIDES = 2  # right, left
CUBE_MM = 20.0  # around a place, whose share of the heat is its score
DISTANCE_MM = (45.0, 95.0)  # between two cochleae; in the sources of CrossMoDA 60 to 80
LEVEL_MM = (25.0, 20.0)  # by which one cochlea may lie behind, and above, the other
HALF_DISTANCE_MM = 35.0
CANDIDATES, LEAST_SHARE = 6, 1e-3  # places of one map
GAMMAS = (1.0, 0.6, 0.35)  # as where cerebrospinal fluid leaves all else dark
_logger = logging.getLogger(__name__)


class LocatorNetwork(UNet):
    """MONAI's ``UNet`` for scans of any size: one map of logits for the right cochlea and one for the left.

    Args:
        channels: of each level.
        strides: between the levels, along L, P, S.
        num_res_units: convolutions of a residual unit.

    Shape:
        - input: :math:`(N, 1, X, Y, Z)` with axes L, P, S.
        - output: :math:`(N, 2, X, Y, Z)`.
    """

    def __init__(
        self,
        channels: Sequence[PositiveInt] = (8, 16, 32, 64),
        strides: Sequence[Sequence[int]] = ((2, 2, 1), (2, 2, 2), (2, 2, 2)),
        num_res_units: int = 1,
    ):
        super().__init__(3, 1, SIDES, channels, strides, num_res_units=num_res_units, norm="instance")
        self.arguments = {
            "channels": list(channels),
            "strides": [list(stride) for stride in strides],
            "num_res_units": num_res_units,
        }
        self.divisors = [int(np.prod([stride[axis] for stride in strides])) for axis in range(3)]

    def forward(self, x: Tensor) -> Tensor:
        """Logits; the scan is padded with zeros to what the strides divide."""
        size = x.shape[2:]
        after = [-length % divisor for length, divisor in zip(size, self.divisors, strict=True)]
        # a level of one voxel has no variance to normalise by
        after = [max(gap, 2 * by - length) for length, gap, by in zip(size, after, self.divisors, strict=True)]
        logits: Tensor = super().forward(pad(x, [0, after[2], 0, after[1], 0, after[0]]))
        return logits[..., : size[0], : size[1], : size[2]]


def coarse(volume: Tensor, spacing: Sequence[float], target: float) -> Tensor:
    """Mean over the voxels of a coarser grid that spans the same field.

    Args:
        volume: :math:`(C, X, Y, Z)`.
        spacing: mm along its axes.
        target: mm that the coarse voxels come as near to as whole numbers of them allow.
    """
    lengths = zip(volume.shape[1:], spacing, strict=True)
    size = [max(1, round(count * mm / target)) for count, mm in lengths]
    return interpolate(volume[None].float(), size=size, mode="area")[0]


def normalised(volume: Tensor, percentiles: Sequence[float]) -> Tensor:
    """The volume between two percentiles of its non-zero part as 0 to 1, clipped."""
    values = volume[volume != 0].float().cpu().numpy()
    if not values.size:
        return torch.zeros_like(volume, dtype=torch.float32)
    low, high = np.percentile(values, percentiles)
    return ((volume.float() - low) / max(high - low, 1e-8)).clamp(0, 1)


@dataclass(frozen=True)
class Place:
    """What a heat map says: voxel coordinates of the middle between the ears, how sure, and how it was found."""

    centre: NDArray[np.float64]
    score: float
    how: str


def read_heat_map(heat: NDArray[np.float64], spacing: Sequence[float], threshold: float) -> Place | None:
    """The middle between the two cochleae.

    The score of a place is the share of its map's heat in a cube of 20 mm around it. Taken is the pair with the largest
    product of scores whose distance is plausible (45 to 95 mm) and which is about level. Where the geometric mean of
    the two is below the threshold, the best single place counts if its own score is twice the threshold; the middle is
    then half of a usual distance beside it.

    Args:
        heat: :math:`(2, X, Y, Z)` with axes L, P, S; each map adds up to 1: of the right cochlea, and of the left.
        spacing: mm along X, Y, Z.
        threshold: from 0 to 1.

    Returns:
        ``None`` where neither is found.
    """
    mm = np.asarray(spacing, np.float64)
    right, left = ([*_candidates(each, mm)] for each in heat)
    pairs = [(a, b) for a in right for b in left if _is_plausible((b[0] - a[0]) * mm)]
    if pairs:
        (first, one), (second, other) = max(pairs, key=lambda pair: pair[0][1] * pair[1][1])
        if np.sqrt(one * other) >= threshold:
            return Place((first + second) / 2, float(np.sqrt(one * other)), "two ears")
    sided = [(place, score, side) for side, found in ((1, right), (-1, left)) for place, score in found]
    if sided:
        place, score, side = max(sided, key=lambda each: each[1])
        if score >= 2 * threshold:
            beside = place + np.array([side * HALF_DISTANCE_MM, 0, 0]) / mm
            return Place(beside, float(score), "one ear")
    return None


def _candidates(heat: NDArray[np.float64], mm: NDArray[np.float64]) -> list[tuple[NDArray[np.float64], float]]:
    """The hottest places of a map, and the share of heat in the cube around each."""
    cube = [2 * int(CUBE_MM / 2 / length) + 1 for length in mm]
    share = uniform_filter(heat, cube, mode="constant") * np.prod(cube)
    found = []
    for _ in range(CANDIDATES):
        peak = np.unravel_index(int(share.argmax()), share.shape)
        score = float(share[peak])
        if score < LEAST_SHARE:
            break
        box = _around(peak, [side // 2 for side in cube])
        found.append((np.add(center_of_mass(heat[box]), [edge.start for edge in box]), min(1.0, score)))
        share[_around(peak, cube)] = 0
    return found


def _around(place: Sequence[Any], reach: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(max(0, int(at) - far), int(at) + far + 1) for at, far in zip(place, reach, strict=True))


def _is_plausible(apart: NDArray[np.float64]) -> bool:
    """Whether a left ear may lie this many mm (L, P, S) from the right one."""
    level = bool((np.abs(apart[1:]) <= LEVEL_MM).all())
    return bool(apart[0] > 0 and level and DISTANCE_MM[0] <= np.linalg.norm(apart) <= DISTANCE_MM[1])


class Description(TypedDict):
    """``locator.json``: what, beside the weights, makes the same locator again."""

    network: dict[str, Any]
    spacing: PositiveFloat
    window_size: Triple[PositiveFloat]
    threshold: Share
    percentiles: Pair[float]


class Locator:
    """Finds the inner ears in a scan with any field of view, and says how sure it is.

    What is zero at the border of a scan is left out first, so that the same head in a larger field gives the same
    place. Where the score is too low, the window is the whole scan, and the log says so.

    Args:
        network: gives two maps of logits, see :class:`LocatorNetwork`.
        spacing: mm of the coarse voxels that it sees.
        window_size: mm along L, P, S.
        threshold: of the score.
        percentiles: of the non-zero voxels, which become 0 and 1.
    """

    def __init__(
        self,
        network: nn.Module,
        spacing: PositiveFloat = 4.0,
        window_size: Triple[PositiveFloat] = WINDOW_MM,
        threshold: Share = 0.25,
        percentiles: Pair[float] = (1.0, 99.5),
    ):
        self.network, self.spacing, self.threshold = network, spacing, threshold
        self.window_size = (float(window_size[0]), float(window_size[1]), float(window_size[2]))
        self.percentiles = [float(each) for each in percentiles]

    def description(self) -> Description:
        """What, beside the weights, makes the same locator again; JSON."""
        return {
            "network": dict(getattr(self.network, "arguments", {})),
            "spacing": self.spacing,
            "window_size": list(self.window_size),
            "threshold": self.threshold,
            "percentiles": self.percentiles,
        }

    @torch.no_grad()
    def __call__(self, volume: MetaTensor, name: str = "a scan") -> Window:
        """The window of one scan.

        Args:
            volume: :math:`(1, X, Y, Z)` with an affine to the world of NIfTI (R, A, S), any orientation.
            name: for the log.
        """
        shape, affine = tuple(volume.shape[1:]), np.asarray(volume.affine, np.float64)
        if not volume.any():
            _logger.warning(f"{name}: is empty; the whole scan is taken.")
            return whole_scan(shape, affine)
        part = Orientation(axcodes="LPS", labels=None)(CropForeground(lambda values: values != 0)(volume))
        place, ratio = self._place(part)
        if place is None:
            _logger.warning(f"{name}: the inner ears could not be located; the whole scan is taken.")
            return whole_scan(shape, affine, score=0.0)
        if place.how == "one ear":
            _logger.warning(f"{name}: one inner ear was located only; the window is placed beside it.")
        voxel = (place.centre + 0.5) * ratio - 0.5
        x, y, z = (round(float(each), 2) for each in apply_affine(np.asarray(part.affine, np.float64), voxel))
        return Window((x, y, z), self.window_size, "locator", round(place.score, 4))

    def _place(self, part: MetaTensor) -> tuple[Place | None, NDArray[np.float64]]:
        """The place in coarse voxels, and how many of the part's voxels one of them spans."""
        mm = voxel_sizes(np.asarray(part.affine, np.float64))
        small = coarse(normalised(part.as_tensor(), self.percentiles), mm, self.spacing)
        ratio = np.asarray(part.shape[1:]) / np.asarray(small.shape[1:])
        return read_heat_map(self._heat_map(small), ratio * mm, self.threshold), ratio

    def _heat_map(self, small: Tensor) -> NDArray[np.float64]:
        """The mean over some gammas and both mirrors; those of one mirror have right and left exchanged."""
        device = next(self.network.parameters()).device
        views = torch.stack([small**gamma for gamma in GAMMAS]).to(device)
        was_training = self.network.training
        self.network.eval()
        maps = [self.network(views), self.network(views.flip(2)).flip(1, 2)]
        self.network.train(was_training)
        logits = torch.cat(maps).double().cpu()
        heat: NDArray[np.float64] = logits.flatten(2).softmax(2).mean(0).reshape(logits.shape[1:]).numpy()
        return heat


def read_locator(model_dir: StrPath, device: Any = "cpu", enabled: bool = True) -> Locator | None:
    """The locator in a folder, or ``None`` where there is none, as in folders of older trainings.

    Args:
        model_dir: with ``locator.pt`` and ``locator.json``.
        device: on which the network will be; the CPU needs a second a scan, and processes of a loader can use it.
        enabled: where it is not, ``None`` is returned.

    Raises:
        InputError: if the files cannot be read or do not belong together.
    """
    weights, description = Path(model_dir) / WEIGHTS, Path(model_dir) / DESCRIPTION
    cure = f"Copy {WEIGHTS} and {DESCRIPTION} of one training there"
    if enabled and not weights.is_file() and any(path.exists() for path in (description, Path(f"{weights}{SUM}"))):
        raise InputError(f"{weights} is missing, but files of a locator are there. {cure}, or remove them.")
    if not (enabled and weights.is_file()):
        return None
    content, state = read_state(description, Description, cure), read_tensors(weights, cure, device)
    try:
        network = LocatorNetwork(**content["network"]).to(device)
        network.load_state_dict(state)
        return Locator(
            network.eval(), content["spacing"], content["window_size"], content["threshold"], content["percentiles"]
        )
    except (RuntimeError, ValueError, TypeError, LookupError) as error:
        raise InputError(f"{model_dir} holds no locator ({type(error).__name__}). {cure}.") from error


def check_locator(locator_dir: StrPath) -> None:
    """Refuse a folder without a locator, and one whose locator cannot be read.

    Raises:
        InputError: naming the folder or file.
    """
    if read_locator(locator_dir) is None:
        raise InputError(f"{locator_dir}: holds no {WEIGHTS}. Train the locator first, or set locator_dir to null.")


def copy_locator(locator_dir: StrPath, model_dir: StrPath) -> None:
    """Copy the files of a locator, each whole, the weights last.

    Raises:
        InputError: see :func:`check_locator`.
    """
    check_locator(locator_dir)
    with whole_file(Path(model_dir) / DESCRIPTION) as part:
        shutil.copyfile(Path(locator_dir) / DESCRIPTION, part)
    copy_weights(Path(locator_dir) / WEIGHTS, Path(model_dir) / WEIGHTS)


def is_copied(locator_dir: StrPath, model_dir: StrPath) -> bool:
    """Whether the files of a locator lie in ``model_dir`` already."""
    names = [DESCRIPTION, WEIGHTS]
    return filecmp.cmpfiles(locator_dir, model_dir, names, shallow=False)[0] == names


class LocateWindowd(Cropd):
    """Crop a scan to the window that a locator finds; ``Invertd`` pastes back.

    The window and its voxels in the scan's own file are left in the image's meta data, JSON under ``window``.

    Args:
        keys: of the image, a ``MetaTensor`` :math:`(1, X, Y, Z)` of any orientation.
        locator: ``None`` leaves the scan whole.
    """

    def __init__(self, keys: str, locator: Locator | None):
        super().__init__(keys, Crop())
        self.locator = locator

    def __call__(self, data: Mapping[Any, Tensor], lazy: bool | None = None) -> dict[Any, Tensor]:
        """Return ``data`` with the image cropped."""
        item = dict(data)
        for key in self.key_iterator(item):
            image: Any = item[key]
            if self.locator is None:  # cut all the same, as there will be an inversion
                item[key] = self.cropper(image, (slice(None),) * 3, lazy=lazy)
                continue
            affine = np.asarray(image.affine, np.float64)
            window = self.locator(image, str(image.meta.get("filename_or_obj", "a scan")))
            shape = [int(each) for each in image.meta.get("spatial_shape", image.shape[1:])]
            file_affine = np.asarray(image.meta.get("original_affine", affine), np.float64)
            record = window.record(voxel_box(window, shape, file_affine))
            item[key] = self.cropper(image, voxel_box(window, image.shape[1:], affine), lazy=lazy)
            item[key].meta["window"] = json.dumps(record)
        return item


def locate_scans(scans: Sequence[Mapping[str, Any]], locator_dir: StrPath, device: Any = "cpu") -> dict[str, Window]:
    """The window of every scan.

    Args:
        scans: ``{"case", "image"}`` each.
        locator_dir: with a locator.
        device: on which it runs.

    Raises:
        InputError: if there is no locator.
    """
    locator = read_locator(locator_dir, device)
    if locator is None:
        raise InputError(f"{locator_dir}: holds no {WEIGHTS}. Train the locator first.")
    windows = {}
    with Progress(len(scans), "locating") as progress:
        for scan in scans:
            windows[str(scan["case"])] = locator(
                EnsureChannelFirst()(as_tensor(read_scan(scan["image"]))), str(scan["case"])
            )
            progress.advance()
    return windows
