r"""Partition functions and means of theories that are solved, to hold estimates against.

All ln Z are with respect to the measure of :mod:`flowmc.groups`: prod dphi, prod dtheta (U(1)
angles), normalised Haar (SU(N)).
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import ive, kve, logsumexp

from flowmc.actions.base import Action
from flowmc.actions.gauge import Wilson
from flowmc.actions.path import DoubleWell
from flowmc.actions.scalar import FreeScalar, HoppingAction, Phi4
from flowmc.groups import SUN, U1

__all__ = [
    "PathSolution",
    "TorusSolution",
    "double_well",
    "log_partition",
    "su_n_torus",
    "u1_torus",
    "without_hopping",
]


@dataclass(frozen=True)
class TorusSolution:
    r"""Gauge theory on a two-dimensional torus.

    Attributes:
        log_z: ln Z.
        plaquette: :math:`\langle \tfrac1N \mathrm{Re\,tr} P \rangle`.
        charge_squared: :math:`\langle Q^2 \rangle` of the geometric charge; NaN for SU(N).
    """

    log_z: float
    plaquette: float
    charge_squared: float = math.nan


@dataclass(frozen=True)
class PathSolution:
    r"""A path of :class:`~flowmc.actions.DoubleWell`.

    Attributes:
        log_z: ln Z, measure prod dx.
        x2: :math:`\langle x^2 \rangle`.
        barrier: density of x at 0 over its maximum: 1 for a single well, small for two.
    """

    log_z: float
    x2: float
    barrier: float


def log_partition(action: Action) -> float | None:
    """Return the exact ln Z of an action, or None if it is not known in closed form.

    Known are the free field, Wilson actions of U(1) and SU(N) in two dimensions and at beta = 0,
    phi^4 at kappa = 0, and double wells.  Only the built-in classes themselves are recognised: a
    subclass may have changed the density.
    """
    if type(action) is FreeScalar:
        return action.log_partition()
    if type(action) is DoubleWell:
        return double_well(action).log_z
    if type(action) is Phi4 and action.k == 0:
        return without_hopping(action)
    if type(action) is Wilson:
        links = action.dimensions * action.volume
        if action.beta == 0:
            return links * math.log(2 * math.pi) if isinstance(action.group, U1) else 0.0
        if action.dimensions == 2 and isinstance(action.group, U1):
            return u1_torus(action.beta, action.volume).log_z
        if action.dimensions == 2 and isinstance(action.group, SUN):
            return su_n_torus(action.group.n, action.beta, action.volume).log_z
    return None


def u1_torus(beta: float, volume: int) -> TorusSolution:
    r"""Return ln Z, <P> and <Q^2> of U(1) on a two-dimensional torus.

    :math:`Z(\theta) = (2\pi)^{2V} \sum_n J(n + \theta / 2\pi)^V` with
    :math:`J(\nu) = \frac{1}{2\pi} \int e^{\beta \cos\varphi} \cos(\nu \varphi) d\varphi`
    (:math:`J(n) = I_n(\beta)`), and :math:`\langle Q^2 \rangle = -\partial_\theta^2 \ln Z` at 0;
    :math:`\langle P \rangle = \partial_\beta \ln Z / V`.

    Args:
        beta: inverse coupling, >= 0.
        volume: number of plaquettes, which is that of sites.
    """
    orders = np.arange(-_orders(beta), _orders(beta) + 1)
    bessel = ive(np.abs(orders), beta) / ive(0, beta)
    slope = (ive(np.abs(orders - 1), beta) + ive(np.abs(orders + 1), beta)) / (2 * ive(0, beta))
    total = (bessel**volume).sum()
    plaquette = (bessel ** (volume - 1) * slope).sum() / total
    log_z = volume * (math.log(ive(0, beta)) + beta) + math.log(total)

    # The integrand is not periodic for fractional nu: Gauss-Legendre points instead of equal ones.
    points, weights = np.polynomial.legendre.leggauss(200)
    phi, weights = np.pi * points, weights * np.exp(beta * (np.cos(np.pi * points) - 1))
    wave = np.cos(orders[:, None] * phi)
    moments = (weights * wave).sum(1)
    slopes = -(weights * phi * np.sin(orders[:, None] * phi)).sum(1)
    bends = -(weights * phi**2 * wave).sum(1)
    # d^2 (J^V) = V J^(V-1) J'' + V (V-1) J^(V-2) J'^2, over J(0)^V; J(n) may vanish.
    unit = weights.sum()
    share, slopes, bends = moments / unit, slopes / unit, bends / unit
    curvature = volume * share ** (volume - 1) * bends
    if volume > 1:
        curvature = curvature + volume * (volume - 1) * share ** (volume - 2) * slopes**2
    charge = -curvature.sum() / (share**volume).sum() / (2 * math.pi) ** 2
    return TorusSolution(
        float(log_z + 2 * volume * math.log(2 * math.pi)), float(plaquette), float(charge)
    )


def su_n_torus(n: int, beta: float, volume: int) -> TorusSolution:
    r"""Return ln Z and <P> of SU(N) on a two-dimensional torus.

    .. math:: Z = \sum_r \Big(\frac{c_r}{d_r}\Big)^V, \qquad
              c_r = \int dU\, \chi_r(U)^* e^{(\beta/N) \mathrm{Re\,tr} U}
                  = \sum_{q = -\infty}^{\infty} \det_{ij} I_{\lambda_j - j + i + q}(\beta / N),

    over the representations with N - 1 rows of boxes :math:`\lambda_1 \ge \dots \ge \lambda_{N-1}`,
    :math:`\lambda_N = 0`, of dimension
    :math:`d_r = \prod_{i<j} (\lambda_i - \lambda_j + j - i) / (j - i)`.

    Args:
        n: N, from 2 to 5 or so: the number of representations grows as a power of N - 1.
        beta: inverse coupling, >= 0.
        volume: number of plaquettes, which is that of sites.
    """
    x = beta / n
    rows = max(2, {2: 40, 3: 24, 4: 12}.get(n, 6))
    logs, slopes = [], []
    for boxes in itertools.combinations_with_replacement(range(rows + 1), n - 1):
        shape = (*sorted(boxes, reverse=True), 0)
        value, slope = _coefficient(shape, x)
        if value <= 0:
            continue  # underflow of a representation that does not matter
        dimension = math.prod(
            (shape[i] - shape[j] + j - i) / (j - i) for i in range(n) for j in range(i + 1, n)
        )
        logs.append(volume * (math.log(value) - math.log(dimension)))
        slopes.append(slope / value / n)
    total = logsumexp(logs)
    plaquette = float((np.exp(np.array(logs) - total) * slopes).sum())
    return TorusSolution(float(total) + volume * beta, plaquette)


def _coefficient(shape: tuple[int, ...], x: float) -> tuple[float, float]:
    """Return c_r and its derivative with respect to x, both times exp(-N x)."""
    n = len(shape)
    reach = _orders(x) + shape[0] + n
    q = np.arange(-reach, reach + 1)
    i, j = np.meshgrid(np.arange(n), np.arange(n), indexing="ij")
    order = np.array(shape)[j] - j + i + q[:, None, None]
    matrix = ive(np.abs(order), x)
    derivative = (ive(np.abs(order - 1), x) + ive(np.abs(order + 1), x)) / 2
    value = np.linalg.det(matrix).sum()
    slope = 0.0
    for column in range(n):
        changed = matrix.copy()
        changed[:, :, column] = derivative[:, :, column]
        slope += np.linalg.det(changed).sum()
    return float(value), float(slope)


def _orders(x: float) -> int:
    """Return an order from which I_n(x) / I_0(x), about exp(-n^2 / 2x), is below rounding."""
    return int(20 + 9 * math.sqrt(x))


def without_hopping(action: HoppingAction) -> float:
    r"""Return the exact ln Z of a scalar action without its hopping term: V independent sites.

    .. math:: z_0 = \int d\phi\, e^{-a\phi^2 - \lambda\phi^4}
              = \tfrac12 \sqrt{a/\lambda}\; e^{x} K_{1/4}(x), \qquad x = \frac{a^2}{8\lambda},

    for a > 0 (where the chain of ensembles of arXiv:2007.07115 is anchored),
    :math:`\tfrac12 \Gamma(\tfrac14) \lambda^{-1/4}` for a = 0, and for double wells, a < 0,
    :math:`\tfrac\pi2 \sqrt{|a|/2\lambda}\; e^{x} (I_{1/4}(x) + I_{-1/4}(x))` (Abramowitz and Stegun
    9.6.2: what K is made of, at the other sign of a).

    Raises:
        ValueError: if the integral diverges: :math:`\lambda = 0` and a <= 0.
    """
    a, quartic = action.a, action.quartic
    if quartic == 0:
        if a <= 0:
            raise ValueError(f"independent sites need a positive coefficient of phi^2, not {a}")
        return action.volume * 0.5 * math.log(math.pi / a)
    x = a / quartic * a / 8  # a^2 alone may overflow
    # kve(v, x) = e^x K_v(x), ive(v, x) = e^-x I_v(x) for x > 0.
    if a > 0:
        one = math.log(0.5 * math.sqrt(a / quartic) * kve(0.25, x))
    elif a == 0:
        one = math.log(math.gamma(0.25) / 2) - math.log(quartic) / 4
    else:
        both = ive(0.25, x) + ive(-0.25, x)
        one = math.log(math.pi / 2 * math.sqrt(-a / (2 * quartic)) * both) + 2 * x
    return action.volume * one


def double_well(action: DoubleWell) -> PathSolution:
    r"""Return ln Z and <x^2> of a path from its transfer matrix.

    :math:`Z = \mathrm{tr}\,T^N` with :math:`T(x, y) = e^{-V(x)/2 - m_0 (x-y)^2 / 2a - V(y)/2}` and
    :math:`V(x) = a\,(m_0\mu^2 x^2/2 + \lambda x^4/4)`, discretised by equal steps, for which the
    sums converge faster than any power.
    """
    a, n = action.spacing, action.lattice[0]
    square, quartic = a * action.m0 * action.mu2 / 2, a * action.lam / 4
    if quartic:
        lowest = max(0.0, -square / (2 * quartic))
        depth = 60.0 + quartic * lowest**2 if square < 0 else 60.0
        edge = math.sqrt((-square + math.sqrt(square**2 + 4 * quartic * depth)) / (2 * quartic))
        if square < 0:
            edge = math.sqrt(lowest + math.sqrt(60.0 / quartic))
        curvature = 2 * abs(square) + 12 * quartic * lowest + 2 * math.sqrt(quartic)
    else:
        edge, curvature = math.sqrt(60.0 / square), 2 * square
    width = min(math.sqrt(a / action.m0), 1 / math.sqrt(curvature))
    points = 2 * math.ceil(edge / (width / 8)) + 1
    x = np.linspace(-edge, edge, points)
    potential = square * x**2 + quartic * x**4
    exponent = (
        -0.5 * (potential[:, None] + potential) - (action.m0 / (2 * a)) * (x[:, None] - x) ** 2
    )
    shift = float(exponent.max())
    values: NDArray[Any]
    values, vectors = np.linalg.eigh(np.exp(exponent - shift) * (x[1] - x[0]))
    top = values.max()
    powers = (values / top) ** n
    density = (vectors**2 * powers).sum(1) / powers.sum()
    log_z = n * (math.log(top) + shift) + math.log(powers.sum())
    return PathSolution(
        float(log_z), float((density * x**2).sum()), float(density[points // 2] / density.max())
    )
