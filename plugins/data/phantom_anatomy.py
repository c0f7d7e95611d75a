"""A drawn posterior fossa: tissue fractions and labels on any grid, from shapes in head mm.

Head coordinates in mm: x to the right, y forward, z up; the origin lies in the midline between the internal auditory
canals. Every shape gives a depth: the distance to its surface in mm, positive inside. Tissues are painted one over
another with an edge as wide as a voxel, which makes partial volumes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.spatial import KDTree
from scipy.spatial.transform import Rotation

from plugins.data.phantom_signal import TISSUES, Volume, smooth_noise
from plugins.data.scans import COCHLEA, VS

_VS_RADIUS_MM = {2: (4.0, 5.2), 3: (6.0, 7.8), 4: (9.0, 11.0)}
_LUMEN = 0.65
"""Fluid in the cochlea; the rest are its bony lamina and wall, far thinner than a voxel."""


@dataclass(frozen=True)
class Head:
    """What distinguishes one head from another.

    Args:
        tilt: rotation from head to world, shape (3, 3).
        size: length relative to an average head.
        side: 1 for a tumour on the right, -1 on the left.
        koos: grade 1 (within the canal) to 4 (presses on the brainstem).
        cystic: whether the tumour has cysts.
        canals: for the right and the left, from the porus to the fundus of the canal, shape (2, 2, 3).
        view: centre of the field of view.
    """

    tilt: NDArray[np.float64]
    size: float
    side: int
    koos: int
    cystic: bool
    canals: NDArray[np.float64]
    view: NDArray[np.float64]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Head:
        """A random head."""
        canal = np.array([[19.5, 6.5, 0.0], [29.5, 9.0, 0.5]])
        canals = np.stack([canal, canal * np.array([-1, 1, 1])]) + rng.normal(0, [0.8, 0.8, 0.5], (2, 2, 3))
        koos = int(rng.choice([1, 2, 3, 4], p=[0.2, 0.3, 0.3, 0.2]))
        return cls(
            tilt=Rotation.from_euler("xyz", rng.normal(0, [2.5, 2.5, 3.5]), degrees=True).as_matrix(),
            size=float(rng.uniform(0.94, 1.06)),
            side=int(rng.choice([-1, 1])),
            koos=koos,
            cystic=koos > 2 and bool(rng.random() < 0.4),
            canals=canals,
            view=np.array([0.0, -4.0, 0.0]) + rng.uniform(-2, 2, 3),
        )


def paint(
    head: Head, shape: tuple[int, int, int], spacing: tuple[float, float, float], rng: np.random.Generator
) -> tuple[dict[str, Volume], NDArray[np.uint8]]:
    """Tissue fractions and label map of a head, on a grid centred on its field of view.

    Axes run to the left, backward and up (LPS), as CrossMoDA stores them.

    Args:
        head: what to paint.
        shape: voxels (X, Y, Z).
        spacing: voxel size in mm.
        rng: for textures and small shapes.

    Returns:
        Fraction of each tissue of :data:`plugins.data.phantom_signal.TISSUES`, float32 of shape (X, Y, Z), summing to
        one; and the label map of the same shape: 0 background, 1 VS, 2 cochlea.
    """
    canvas = _Canvas(head, shape, spacing, rng)
    _paint_skull(canvas)
    _paint_brain(canvas)
    _paint_vessels(canvas)
    cochleas = [_paint_ear(canvas, porus, fundus) for porus, fundus in head.canals]
    tumour = _paint_tumour(canvas)
    labels = np.zeros(shape, np.uint8)
    labels[_any(*cochleas) > 0.4] = COCHLEA  # half a millimetre wide in places: the eye draws it wider than it is
    labels[tumour > 0.5] = VS
    return canvas.fractions(), labels


class _Canvas:
    """Layers of tissue one over another, and the head coordinates of every voxel."""

    def __init__(
        self, head: Head, shape: tuple[int, int, int], spacing: tuple[float, float, float], rng: np.random.Generator
    ):
        self.head, self.rng, self._shape, self._spacing = head, rng, shape, spacing
        axes = [(np.arange(n) - (n - 1) / 2) * step for n, step in zip(shape, spacing, strict=True)]
        world = np.stack(np.meshgrid(-axes[0], -axes[1], axes[2], indexing="ij"))
        points = np.tensordot(head.tilt.T, world, 1) / head.size + head.view[:, None, None, None]
        points += [1.0 * self.noise(28.0) for _ in range(3)]
        self.points = points.astype(np.float32)
        self._edge_mm = np.float32(np.prod(spacing) ** (1 / 3))
        self._layers: list[tuple[str, Volume]] = []

    def noise(self, scale_mm: float) -> Volume:
        return smooth_noise(self.rng, self._shape, self._spacing, scale_mm)

    def paint(self, tissue: str, depth: Volume, density: float = 1.0) -> Volume:
        """Cover what lies below with a tissue; returns how much of each voxel its shape covers."""
        cover: Volume = np.clip(0.5 + depth / self._edge_mm, 0, 1).astype(np.float32)
        self._layers.append((tissue, cover * np.float32(density)))
        return cover

    def fractions(self) -> dict[str, Volume]:
        """What shows of each tissue, from the topmost layer down to air."""
        fractions = {name: np.zeros(self._shape, np.float32) for name in TISSUES}
        uncovered = np.ones(self._shape, np.float32)
        for tissue, cover in reversed(self._layers):
            fractions[tissue] += uncovered * cover
            uncovered *= 1 - cover
        fractions["air"] += uncovered
        return fractions

    def ellipsoid(self, centre: ArrayLike, radii: ArrayLike) -> Volume:
        """Depth to first order: exact on the surface."""
        relative = self.points - _column(centre)
        scaled = relative / _column(radii)
        distance = np.sqrt((scaled**2).sum(0)) + np.float32(1e-6)
        gradient = np.sqrt(((scaled / _column(radii)) ** 2).sum(0)) + np.float32(1e-6)
        return np.asarray((1 - distance) * distance / gradient, np.float32)

    def rod(self, start: ArrayLike, end: ArrayLike, radii: tuple[float, float]) -> Volume:
        """A segment with round ends whose radius goes from the first to the second."""
        first, along = _column(start), _column(end) - _column(start)
        share = np.clip(((self.points - first) * along).sum(0) / (along**2).sum(), 0, 1)
        distance = np.sqrt(((self.points - first - share * along) ** 2).sum(0))
        return np.asarray(radii[0] + share * (radii[1] - radii[0]) - distance, np.float32)

    def tube(self, path: NDArray[np.float64], radii: ArrayLike) -> Volume:
        """A thin tube along the points of a path, shape (P, 3)."""
        radii = np.broadcast_to(np.asarray(radii, np.float32), len(path))
        depth = np.full(self._shape, -100, np.float32)
        low, high = path.min(0) - 4, path.max(0) + 4
        near = ((self.points > _column(low)) & (self.points < _column(high))).all(0)
        if near.any():
            distance, nearest = KDTree(path).query(self.points[:, near].T)
            depth[near] = radii[nearest] - distance
        return depth


def _column(vector: ArrayLike) -> Volume:
    return np.asarray(vector, np.float32)[:, None, None, None]


def _all(*depths: Volume) -> Volume:
    """Depth of the intersection."""
    depth: Volume = np.minimum.reduce(depths)
    return depth


def _any(*depths: Volume) -> Volume:
    """Depth of the union."""
    depth: Volume = np.maximum.reduce(depths)
    return depth


def _paint_skull(canvas: _Canvas) -> None:
    x, y, z = canvas.points
    cavity = _fossa(canvas)
    patches = canvas.noise(9.0)
    canvas.paint("fat", canvas.ellipsoid([0, 0, 0], [74, 76, 95]))
    canvas.paint("muscle", _all(canvas.ellipsoid([0, 0, 0], [71, 72, 92]), 8 * patches, -z - 2 + np.abs(y) / 4))
    canvas.paint("bone", _any(cavity + 7, canvas.ellipsoid([0, 14, -6], [60, 26, 24])))
    canvas.paint("fat", _all(cavity + 5, -cavity - 2.5, -y - 10, 6 * canvas.noise(14.0) + 2))
    front = _all(y + np.abs(x) * 0.45 - 24, np.abs(z + 3) + 8 * patches)
    canvas.paint("muscle", _all(front, 5 * patches - 1, -z + 2))
    canvas.paint("fat", _all(front, -5 * patches - 2))
    cells = _any(canvas.ellipsoid([42, -6, -4], [12, 14, 14]), canvas.ellipsoid([-42, -6, -4], [12, 14, 14]))
    canvas.paint("air", _all(cells, 4 * canvas.noise(4.5)))
    canvas.paint("mucosa", _all(cells, 4 * canvas.noise(6.0) - 4))
    canvas.paint("mucosa", canvas.ellipsoid([0, 44, -2], [13, 14, 11]))
    canvas.paint("air", canvas.ellipsoid([0, 44, -2], [12, 13, 10]))


def _fossa(canvas: _Canvas) -> Volume:
    """The posterior cranial fossa, open in front between the petrous ridges."""
    x, y, z = canvas.points
    ridge = (22 + 0.8 * np.maximum(z - 3, 0) - y - 0.8 * np.hypot(x, 6)) / np.float32(1.28)
    return _all(canvas.ellipsoid([0, -19, 0], [47, 37, 42]), ridge)


def _paint_brain(canvas: _Canvas) -> None:
    _, y, z = canvas.points
    canvas.paint("csf", _fossa(canvas))
    for side in (1, -1):
        temporal = _all(canvas.ellipsoid([side * 36, 26, 16], [21, 24, 18]), z - 2 + 0.1 * y + 1.5 * canvas.noise(14.0))
        canvas.paint("csf", temporal)
        _paint_cortex(canvas, temporal - 1.0, fold_mm=9.0, grey_mm=2.6)
    suprasellar = canvas.ellipsoid([0, 20, 14], [14, 11, 8])
    canvas.paint("csf", suprasellar)
    folia = _any(
        canvas.ellipsoid([22.5, -25, -4], [23, 24, 24]),
        canvas.ellipsoid([-22.5, -25, -4], [23, 24, 24]),
        canvas.ellipsoid([0, -30, 0], [12, 19, 22]),
    )
    _paint_cortex(canvas, _all(folia, _fossa(canvas) - 2.0), fold_mm=5.5, grey_mm=1.6)
    for side in (1, -1):
        canvas.paint("white", canvas.rod([side * 8, -1, 2], [side * 23, -17, -1], (7, 6)))
    stem = _any(canvas.ellipsoid([0, 3, 5], [14.5, 11.5, 17]), canvas.rod([0, -4, -30], [0, 1, -4], (7, 9)))
    canvas.paint("white", stem)
    canvas.paint("grey", _all(stem - 3, 3 * canvas.noise(6.0) - 2))
    canvas.paint("csf", canvas.ellipsoid([0, -12.5, 0], [canvas.rng.uniform(4, 7), canvas.rng.uniform(2.5, 4), 10]))


def _paint_cortex(canvas: _Canvas, depth: Volume, fold_mm: float, grey_mm: float) -> None:
    """Grey matter over white, folded along the zero level of a random field, with fluid in the folds."""
    from_fold = np.abs(canvas.noise(fold_mm)) * np.float32(fold_mm / 2)
    canvas.paint("grey", depth)
    canvas.paint("white", _all(depth - grey_mm, from_fold - grey_mm))
    canvas.paint("csf", _all(depth + 0.5, 0.25 - from_fold, 12 - depth))


def _paint_vessels(canvas: _Canvas) -> None:
    rng = canvas.rng
    basilar = np.array([[rng.normal(0, 2), 16.0, -14], [rng.normal(0, 1), 17.5, 0], [rng.normal(0, 2), 19, 14]])
    canvas.paint("artery", _any(*(canvas.rod(*pair, (1.7, 1.7)) for pair in pairwise(basilar))))
    for side in (1, -1):
        canvas.paint("artery", canvas.rod([side * 24, 20, -16], [side * 11, 29, 4], (2.6, 2.4)))
        canvas.paint("artery", canvas.rod([side * 11, 29, 4], [side * 10, 31, 16], (2.2, 2.0)))
        size = rng.uniform(3, 5)
        canvas.paint("vein", canvas.rod([side * 41, -20, -2], [side * 39, -24, 14], (size, size)))
        canvas.paint("vein", canvas.rod([side * 41, -20, -2], [side * 26, -2, -13], (size, size)))
    canvas.paint("vein", canvas.rod([0, -54, -20], [0, -55, 20], (2.5, 3.0)))


def _paint_ear(canvas: _Canvas, porus: NDArray[np.float64], fundus: NDArray[np.float64]) -> Volume:
    """Canal with its nerves, vestibule, semicircular canals and cochlea; returns the cover of the cochlea."""
    rng, side = canvas.rng, np.sign(porus[0])
    mouth = porus + (porus - fundus) * 0.15
    canvas.paint("csf", canvas.rod(mouth, fundus, (rng.uniform(2.5, 3.2), rng.uniform(1.7, 2.2))))
    for offset in (0.8, -0.8):
        canvas.paint("white", canvas.rod([side * 13, 1, offset], fundus + np.array([0, offset, 0]), (0.55, 0.35)))
    vestibule = fundus + np.array([side * 5.5, -3.0, 0.0])
    canvas.paint("csf", canvas.ellipsoid(vestibule, [1.8, 2.6, 2.2]))
    turn = np.linspace(0, 2 * np.pi, 40)
    flat, ring = np.zeros_like(turn), rng.uniform(2.8, 3.4)
    lateral = np.stack([ring * np.cos(turn) + ring, ring * np.sin(turn), flat], 1)
    posterior = np.stack([ring * np.cos(turn) * 0.7, -ring * np.cos(turn) * 0.7 - ring, ring * np.sin(turn)], 1)
    for arc in (lateral, posterior):
        canvas.paint("csf", canvas.tube(vestibule + arc * np.array([side, 1, 1]), 0.5))
    return canvas.paint("csf", canvas.tube(*_cochlea(fundus, side, rng)), _LUMEN)


def _cochlea(
    fundus: NDArray[np.float64], side: float, rng: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Path and radius of two and a half turns that rise forward, outward and down from the fundus of the canal."""
    share = np.linspace(0, 1, 80)
    angle = 5 * np.pi * share + rng.uniform(0, 2 * np.pi)
    radius = rng.uniform(2.5, 2.9) * (1 - 0.72 * share)
    spiral = np.stack([radius * np.cos(angle), radius * np.sin(angle), 3.2 * share], 1)
    axis = Rotation.align_vectors([[side * 0.6, 0.75, -0.25]], [[0, 0, 1]])[0]
    size = rng.uniform(0.92, 1.08)
    path = fundus + np.array([side * 2.6, 3.4, -0.6]) + rng.normal(0, 0.3, 3) + size * axis.apply(spiral)
    return path, size * (1.05 - 0.35 * share)


def _paint_tumour(canvas: _Canvas) -> Volume:
    """VS in the canal and, from Koos 2 on, in the cerebellopontine angle; returns its cover, cysts included."""
    head, rng = canvas.head, canvas.rng
    porus, fundus = head.canals[0 if head.side > 0 else 1]
    reach = porus + rng.uniform(0.6, 0.95) * (fundus - porus)
    tumour = canvas.rod(porus, reach, (rng.uniform(2.5, 3.2), rng.uniform(1.7, 2.2)))
    if head.koos == 1:
        return canvas.paint("schwannoma", tumour)
    radius = rng.uniform(*_VS_RADIUS_MM[head.koos])
    centre = porus + radius * np.array([-0.75 * head.side, -0.3, 0]) + rng.normal(0, 0.5, 3)
    lobes = canvas.ellipsoid(centre, radius * rng.uniform(0.85, 1.1, 3)) + 0.07 * radius * canvas.noise(radius)
    tumour = _any(tumour, _all(lobes, _fossa(canvas) + 0.5))
    canvas.paint("csf", _all(tumour + 0.7, _fossa(canvas) - 0.5))
    cover = canvas.paint("schwannoma", tumour)
    if head.cystic:
        for _ in range(rng.integers(1, 4)):
            cyst = centre + rng.uniform(-0.45, 0.45, 3) * radius
            canvas.paint("cyst", _all(canvas.ellipsoid(cyst, radius * rng.uniform(0.2, 0.4, 3)), tumour - 1))
    return cover


def lps_affine(shape: Sequence[int], spacing: Sequence[float], centre: ArrayLike) -> NDArray[np.float64]:
    """Affine (4, 4) from voxel to world mm (RAS) of an LPS grid whose middle lies at ``centre``."""
    steps = np.array([-1, -1, 1]) * spacing
    affine = np.diag([*steps, 1.0])
    affine[:3, 3] = np.asarray(centre) - steps * (np.array(shape) - 1) / 2
    return affine
