"""Contrast randomisation: a segmentation that has seen every contrast needs none of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from batchgeneratorsv2.transforms.base.basic_transform import BasicTransform, ImageOnlyTransform
from torch import Tensor
from torch.nn import functional as F

from plugins.nnunet.patches import around, soft, some, through, uniform, with_statistics_of
from plugins.segmentation import LABELS

CONV = {2: F.conv2d, 3: F.conv3d}
STRUCTURES = tuple(label for label in LABELS.values() if label)
KNOTS = 512
ROUNDS = 20
_T = np.linspace(0, 1, KNOTS)
BERNSTEIN = np.stack([(1 - _T) ** 3, 3 * _T * (1 - _T) ** 2, 3 * _T**2 * (1 - _T), _T**3], 1)
"""The four cubic Bernstein polynomials at the knots."""
GRID = np.linspace(0, 1, 1025)


class RandomCurves(BasicTransform):
    r"""Sends the brightness of a patch through a random cubic Bezier curve, and each structure through one of its own.

    The curve is :math:`(x, y)(t) = \sum_i B_i(t) P_i` with :math:`P_0 = (0, 0)`, :math:`P_3 = (1, 1)` and two random
    points of the unit square between; it never falls. An inverted one has :math:`1 - y` in place of :math:`y`; one that
    need not be monotone has four random ordinates. 0 and 1 are the .5 and 99.5 % quantiles of the patch; beyond them
    the curve goes on as a line. Mean and standard deviation of the patch do not change.

    Source: the idea is that of SLAug (Su et al., AAAI 2023): location-scale augmentation of the whole image and of each
    class.

    Args:
        inverted: share of the curves that are inverted.
        monotone: share of the curves that are monotone.
        per_structure: give VS and cochlea curves of their own, which fade out over one voxel at the border.

    Shape:
        - image: :math:`(C, ...)`, one channel or more, 2 or 3 axes.
        - segmentation: :math:`(1, ...)`; unchanged.
    """

    def __init__(self, inverted: float = 0.5, monotone: float = 1.0, per_structure: bool = False):
        super().__init__()
        self.inverted, self.monotone, self.per_structure = inverted, monotone, per_structure

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """The four points of the curve of each label; label 0 stands for the whole patch."""
        labels = (0, *STRUCTURES) if self.per_structure else (0,)
        draws = torch.rand(len(labels), 8)
        return {"curves": {label: self._points(each) for label, each in zip(labels, draws, strict=True)}}

    def _points(self, draws: Tensor) -> Tensor:
        x = torch.tensor([0.0, draws[0], draws[1], 1.0])
        y = torch.tensor([0.0, draws[2], draws[3], 1.0])
        if draws[4] >= self.monotone:
            y[[0, 3]] = draws[5:7]
        return torch.stack([x, 1 - y if draws[7] < self.inverted else y], 1)

    def apply(self, data_dict: dict[str, Any], **params: Any) -> dict[str, Any]:
        """Change the image."""
        segmentation = data_dict["segmentation"][0]
        channels = [self._changed(channel, segmentation, params["curves"]) for channel in data_dict["image"]]
        return {**data_dict, "image": torch.stack(channels)}

    def _changed(self, image: Tensor, segmentation: Tensor, curves: dict[int, Tensor]) -> Tensor:
        values = np.sort(some(image).numpy())
        low, high = (float(values[int(at * (len(values) - 1))]) for at in (0.005, 0.995))
        if low == high:
            return image
        position = (image - low) / (high - low)
        changed = on_curve(position, curves[0])
        for label in [*curves][1:]:
            inside = segmentation == label
            if inside.any():
                box = around(inside)
                own = on_curve(position[box], curves[label])
                changed[box] = torch.lerp(changed[box], own, soft(inside[box], image.dtype))
        return with_statistics_of(changed, image)


def on_curve(values: Tensor, points: Tensor) -> Tensor:
    """Ordinates of a cubic Bezier curve at abscissae, by a table; beyond the curve a line of slope 1 or -1.

    Shape:
        - values: any, points: :math:`(4, 2)` with abscissae from 0 to 1; output: as values.
    """
    knots = BERNSTEIN @ points.numpy().astype(np.float64)
    table = torch.from_numpy(np.interp(GRID, knots[:, 0], knots[:, 1])).to(values.dtype)
    inner = values.clamp(0, 1)
    place = inner * (len(table) - 1)
    left = place.to(torch.int32).clamp_max_(len(table) - 2)
    slope = 1.0 if points[3, 1] >= points[0, 1] else -1.0
    return table[left] + (place - left) * table.diff()[left] + slope * (values - inner)


class RandomConvolutions(ImageOnlyTransform):
    r"""Blends a patch with the output of a shallow network of random weights: :math:`a\,g(x) + (1 - a)\,x`.

    :math:`g` has convolutions with standard normal weights and shifts and leaky rectifiers between; the blend is scaled
    to the norm of :math:`x`, so that brightness and texture change and shapes do not.

    Source: global intensity non-linear augmentation (GIN) of Ouyang et al., IEEE Transactions on Medical Imaging 2022.

    Args:
        layers: convolutions.
        channels: between them.
        kernel_sizes: of which each convolution takes one; odd.
        blend: range of :math:`a`.

    Shape:
        - image: :math:`(C, ...)`, 2 or 3 axes.
    """

    def __init__(
        self,
        layers: int = 4,
        channels: int = 2,
        kernel_sizes: Sequence[int] = (1, 3),
        blend: Sequence[float] = (0.0, 1.0),
    ):
        super().__init__()
        self.layers, self.channels, self.kernel_sizes, self.blend = layers, channels, kernel_sizes, blend

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """Weights and shifts of each convolution, and the share of the network."""
        ends, axes = len(data_dict["image"]), data_dict["image"].dim() - 1
        widths = [ends, *[self.channels] * (self.layers - 1), ends]
        sizes = [self.kernel_sizes[at] for at in torch.randint(len(self.kernel_sizes), (self.layers,)).tolist()]
        kernels = [
            (torch.randn(after, before, *[size] * axes), torch.randn(after))
            for before, after, size in zip(widths, widths[1:], sizes, strict=False)
        ]
        return {"kernels": kernels, "share": uniform(*self.blend)}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        kernels, axes = params["kernels"], img.dim() - 1
        margin = sum(weight.shape[-1] // 2 for weight, _ in kernels)
        changed = F.pad(img[None], [margin] * 2 * axes, mode="replicate")
        for number, (weight, shift) in enumerate(kernels):
            if number > 0:
                changed = F.leaky_relu(changed)
            changed = CONV[axes](changed, weight, shift)
        blended = torch.lerp(img, changed[0], params["share"])
        norm = blended.norm()
        return blended * (img.norm() / norm) if norm > 0 else blended


class ClusterRedraw(ImageOnlyTransform):
    """Gives the clusters of brightness of a patch other means: at random, or those of clusters of the target domain.

    The means of k-means clusters are knots; each gets a new height, and brightness between two knots goes in a line, so
    that no edge appears where there was none. With random heights between the outermost means, mean and standard
    deviation of the patch do not change; given heights are taken as they are.

    Args:
        number: of clusters.
        targets: means of clusters of z-scored scans of the target domain, of which each cluster gets one at random;
            ``None`` for random heights. :func:`cluster_means` gives those of a scan.
        jitter: standard deviation of normal noise on given heights.

    Shape:
        - image: :math:`(C, ...)`.
    """

    def __init__(self, number: int = 6, targets: Sequence[float] | None = None, jitter: float = 0.1):
        super().__init__()
        self.number, self.targets, self.jitter = number, targets, jitter

    def get_parameters(self, **data_dict: Any) -> dict[str, Any]:
        """New heights: shares of the range between the outermost means, or brightnesses."""
        if self.targets is None:
            return {"heights": torch.rand(self.number)}
        chosen = torch.tensor(self.targets, dtype=torch.float32)[torch.randint(len(self.targets), (self.number,))]
        return {"heights": chosen + self.jitter * torch.randn(self.number)}

    def _apply_to_image(self, img: Tensor, **params: Any) -> Tensor:
        return torch.stack([self._changed(channel, params["heights"]) for channel in img])

    def _changed(self, image: Tensor, heights: Tensor) -> Tensor:
        means = cluster_means(image, self.number)
        if len(means) < 2:
            return image
        heights = heights[: len(means)]
        if self.targets is not None:
            return through(image, means, heights)
        changed = through(image, means, means[0] + heights * (means[-1] - means[0]))
        return with_statistics_of(changed, image)


def cluster_means(values: Tensor, number: int) -> Tensor:
    """Means of k-means clusters of brightness (Lloyd's algorithm from equally spaced quantiles), in order.

    Args:
        values: any shape; of many, every n-th is taken.
        number: of clusters; fewer come back where fewer values differ.

    Shape:
        - output: :math:`(K)`.
    """
    ordered = np.sort(some(values).numpy().astype(np.float64))
    sums = np.concatenate([[0.0], ordered.cumsum()])
    means = np.unique(ordered[((np.arange(number) + 0.5) / number * len(ordered)).astype(int)])
    for _ in range(ROUNDS):
        ends = np.searchsorted(ordered, (means[1:] + means[:-1]) / 2)
        ends = np.concatenate([[0], ends, [len(ordered)]])
        counts = np.diff(ends)
        moved = np.where(counts > 0, np.diff(sums[ends]) / np.maximum(counts, 1), means)
        if np.array_equal(moved, means):
            break
        means = moved
    return torch.from_numpy(np.unique(means)).to(values.dtype)
