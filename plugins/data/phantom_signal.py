"""From tissue fractions to magnitude images: relaxation times, signal equations, bias field, blur and noise.

Equations: Bernstein, King, Zhou, Handbook of MRI Pulse Sequences (Elsevier 2004), chapters 14 and 16, for tissue
of longitudinal and transverse relaxation times T1, T2 and proton density PD. Times in ms, angles in degrees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import CubicSpline
from scipy.ndimage import gaussian_filter

Volume = NDArray[np.float32]


@dataclass(frozen=True)
class Tissue:
    """Properties at 1.5 T.

    Args:
        t1: ms, before contrast agent.
        t2: ms.
        pd: proton density relative to water; 0 gives no signal.
        uptake: mmol/l of contrast agent in a ceT1 scan.
        flow: share of the signal that flow takes from a spin echo.
    """

    t1: float
    t2: float
    pd: float
    uptake: float = 0.0
    flow: float = 0.0


# Rounded from Stanisz et al., Magn Reson Med 54:507 (2005), and Bernstein et al. (2004), app. B; marrow is fat.
TISSUES: dict[str, Tissue] = {
    "air": Tissue(1000, 10, 0.0),
    "bone": Tissue(1000, 10, 0.04),
    "fat": Tissue(280, 70, 0.8),
    "muscle": Tissue(1000, 44, 0.8, uptake=0.05),
    "csf": Tissue(4000, 1800, 1.0),
    "grey": Tissue(1120, 95, 0.82),
    "white": Tissue(850, 75, 0.70),
    "artery": Tissue(1440, 250, 0.85, uptake=0.8, flow=0.95),
    "vein": Tissue(1440, 180, 0.85, uptake=0.7, flow=0.6),
    "mucosa": Tissue(1200, 110, 0.85, uptake=0.25),
    "schwannoma": Tissue(1250, 105, 0.88, uptake=0.55),
    "cyst": Tissue(2800, 700, 0.98, uptake=0.02),
}
RELAXIVITY = (4.5e-3, 5.5e-3)
"""Longitudinal and transverse relaxivity of a gadolinium chelate at 1.5 T, in l / (mmol ms)."""


def with_contrast_agent(tissue: Tissue) -> Tissue:
    r"""Relaxation times after uptake of the concentration :math:`c`: :math:`1/T_i' = 1/T_i + r_i c`."""
    r1, r2 = (relaxivity * tissue.uptake for relaxivity in RELAXIVITY)
    return replace(tissue, t1=1 / (1 / tissue.t1 + r1), t2=1 / (1 / tissue.t2 + r2))


def inversion_prepared_gradient_echo(tissue: Tissue, tr: float, te: float, ti: float, flip: float) -> float:
    r"""MPRAGE with contrast agent.

    :math:`S = PD \, |1 - 2 e^{-TI/T_1} + e^{-TR/T_1}| \, \sin\alpha \, e^{-TE/T_2}`, with TR between inversions.
    """
    tissue = with_contrast_agent(tissue)
    recovered = abs(1 - 2 * np.exp(-ti / tissue.t1) + np.exp(-tr / tissue.t1))
    return float(tissue.pd * recovered * np.sin(np.radians(flip)) * np.exp(-te / tissue.t2))


def spoiled_gradient_echo(tissue: Tissue, tr: float, te: float, flip: float) -> float:
    r"""Spoiled gradient echo with contrast agent.

    :math:`S = PD \, \frac{\sin\alpha \, (1 - E_1)}{1 - E_1 \cos\alpha} \, e^{-TE/T_2}`, :math:`E_1 = e^{-TR/T_1}`.
    """
    tissue = with_contrast_agent(tissue)
    e1, alpha = np.exp(-tr / tissue.t1), np.radians(flip)
    steady = np.sin(alpha) * (1 - e1) / (1 - e1 * np.cos(alpha))
    return float(tissue.pd * steady * np.exp(-te / tissue.t2))


def balanced_steady_state(tissue: Tissue, tr: float, flip: float) -> float:
    r"""Balanced steady-state free precession, on resonance, as CISS combines it.

    :math:`S = PD \, \frac{\sin\alpha \, (1 - E_1)}{1 - (E_1 - E_2) \cos\alpha - E_1 E_2} \, e^{-TE/T_2}`,
    :math:`TE = TR/2`. Flow costs half of what it costs a spin echo.
    """
    e1, e2, alpha = np.exp(-tr / tissue.t1), np.exp(-tr / tissue.t2), np.radians(flip)
    steady = np.sin(alpha) * (1 - e1) / (1 - (e1 - e2) * np.cos(alpha) - e1 * e2)
    return float(tissue.pd * (1 - tissue.flow / 2) * steady * np.sqrt(e2))


def turbo_spin_echo(tissue: Tissue, tr: float, te: float) -> float:
    r"""Turbo spin echo, with the contrast of a spin echo at the effective echo time.

    :math:`S = PD \, (1 - e^{-TR/T_1}) \, e^{-TE/T_2}`, less what flows away.
    """
    recovered = 1 - np.exp(-tr / tissue.t1)
    return float(tissue.pd * (1 - tissue.flow) * recovered * np.exp(-te / tissue.t2))


PROTOCOLS: dict[tuple[str, str], Callable[[Tissue], float]] = {
    ("ldn", "ceT1"): partial(inversion_prepared_gradient_echo, tr=1900, te=3, ti=1100, flip=15),
    ("etz", "ceT1"): partial(spoiled_gradient_echo, tr=25, te=2, flip=30),
    ("ldn", "hrT2"): partial(balanced_steady_state, tr=9.3, flip=65),
    ("etz", "hrT2"): partial(turbo_spin_echo, tr=2800, te=165),
}
"""By site and contrast: magnitude of a tissue's signal relative to fully relaxed water."""


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, ...], spacing: tuple[float, ...], scale_mm: float
) -> Volume:
    """A random field of mean 0 and standard deviation 1 that varies over about ``scale_mm``, of shape ``shape``."""
    coarse = [int(np.ceil(size * step / scale_mm)) + 3 for size, step in zip(shape, spacing, strict=True)]
    field: NDArray[np.float64] = rng.standard_normal(coarse)
    for size, few in zip(shape, coarse, strict=True):  # each turn interpolates the first axis and makes it the last
        to_fine = CubicSpline(np.arange(few), np.eye(few))(np.linspace(1, few - 2, size))
        field = np.tensordot(field, to_fine, ([0], [1]))
    noise: Volume = ((field - field.mean()) / field.std()).astype(np.float32)
    return noise


def acquire(
    fractions: dict[str, Volume],
    site: str,
    contrast: str,
    spacing: tuple[float, float, float],
    rng: np.random.Generator,
) -> NDArray[np.int16]:
    """Simulate one scan.

    Relaxation times and densities vary by some percent from head to head, the signal by some percent across the head;
    a bias field multiplies it, a slight blur, Rician noise and an arbitrary gain follow.

    Args:
        fractions: share of each tissue in each voxel, arrays of shape (X, Y, Z); they sum to one.
        site: ``ldn`` or ``etz``.
        contrast: ``ceT1`` or ``hrT2``.
        spacing: voxel size in mm.
        rng: source of all randomness.

    Returns:
        Magnitudes in arbitrary scanner units, shape (X, Y, Z).
    """
    signal = PROTOCOLS[site, contrast]
    shape = fractions["csf"].shape
    image = np.zeros(shape, np.float32)
    for name, fraction in fractions.items():
        image += np.float32(signal(_varied(TISSUES[name], rng))) * fraction
    brain = signal(TISSUES["white"])
    image *= np.exp(0.04 * smooth_noise(rng, shape, spacing, 4.0) + 0.08 * smooth_noise(rng, shape, spacing, 60.0))
    image = gaussian_filter(image, sigma=[0.45, 0.45, 0.3])
    sigma = brain * rng.uniform(0.05, 0.08)
    real, imaginary = sigma * rng.standard_normal((2, *shape), dtype=np.float32)
    magnitude = np.hypot(image + real, imaginary)
    gain = rng.uniform(200, 350) / brain
    scan: NDArray[np.int16] = np.rint(gain * magnitude).astype(np.int16)
    return scan


def _varied(tissue: Tissue, rng: np.random.Generator) -> Tissue:
    t1, t2, uptake = np.exp(rng.normal(0, [0.04, 0.06, 0.12]))
    return replace(tissue, t1=tissue.t1 * t1, t2=tissue.t2 * t2, uptake=tissue.uptake * uptake)
