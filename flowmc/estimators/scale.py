r"""Scales from the gradient flow: t0 and w0, with errors by the Gamma method.

.. math:: t^2 \langle E(t) \rangle \big|_{t = t_0} = 0.3, \qquad
          t \frac{d}{dt} t^2 \langle E(t) \rangle \Big|_{t = w_0^2} = 0.3

(M. Luescher, arXiv:1006.4518; S. Borsanyi et al., arXiv:1203.4469), in units of the
lattice spacing: :math:`t_0 / a^2` and :math:`w_0 / a`.  Near the crossing :math:`t^2 E` is
interpolated by the polynomial through the nearest flow times, and through 0 at t = 0.

Errors are propagated as for every derived observable (U. Wolff, hep-lat/0306017): each
measurement enters through its fluctuation, weighted with the derivative of the scale by
:math:`t^2 E` at every flow time, so that the correlation of the flow times and the autocorrelation
of the projected series are all in.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.polynomial import Polynomial
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq

from flowmc.estimators.autocorrelation import Estimate, analyse

__all__ = ["REFERENCE", "find_t0", "find_w0"]

REFERENCE = 0.3
NODES = 5  # flow times that the polynomial goes through


def find_t0(flow_times: ArrayLike, energies: ArrayLike, reference: float = REFERENCE) -> Estimate:
    r"""Return :math:`t_0 / a^2`.

    Args:
        flow_times: ``(points,)``, positive and rising, in units of the lattice spacing squared.
        energies: :math:`t^2 E` of each measurement, ``(measurements, chains, points)``.
        reference: value of :math:`t^2 \langle E \rangle` at t0.

    Returns:
        Mean and error of t0; ``tau_int`` is that of the projected series.

    Raises:
        ValueError: if the mean does not reach the reference within the flow times, or for other
            shapes.
    """

    def value(curve: Polynomial) -> Polynomial:
        return curve

    crossing, series = _crossing(flow_times, energies, reference, value, "t^2 E")
    return analyse(crossing + series)


def find_w0(flow_times: ArrayLike, energies: ArrayLike, reference: float = REFERENCE) -> Estimate:
    r"""Return :math:`w_0 / a`, a length.

    Args:
        flow_times, energies, reference: as for :func:`find_t0`; here the reference is the value
            of :math:`t \frac{d}{dt} t^2 \langle E \rangle` at :math:`t = w_0^2`.

    Raises:
        ValueError: as for :func:`find_t0`.
    """
    time = Polynomial([0.0, 1.0])

    def slope(curve: Polynomial) -> Polynomial:
        return time * curve.deriv()

    crossing, series = _crossing(flow_times, energies, reference, slope, "t d/dt t^2 E")
    root = math.sqrt(crossing)
    return analyse(root + series / (2 * root))


def _crossing(
    flow_times: ArrayLike,
    energies: ArrayLike,
    reference: float,
    function: Callable[[Polynomial], Polynomial],
    what: str,
) -> tuple[float, NDArray]:
    """Return where a linear function of the curve first reaches the reference, and fluctuations.

    Returns:
        The time, and its fluctuations to first order, ``(measurements, chains)``, of mean 0.
    """
    times = np.asarray(flow_times, dtype=np.float64)
    values = np.asarray(energies, dtype=np.float64)
    if times.ndim != 1 or values.ndim != 3 or values.shape[2] != times.size or times.size < 2:
        raise ValueError(
            "flow times are (points,), at least two, and energies (measurements, chains, points), "
            f"not {times.shape} and {values.shape}"
        )
    if not (times[0] > 0 and (np.diff(times) > 0).all()):
        raise ValueError("flow times should be positive and rise")
    finite = np.isfinite(values).all(axis=(1, 2))
    if not finite.any():
        raise ValueError("no measurement of the flow is finite")
    # At t = 0, t^2 E is exactly 0.
    nodes = np.concatenate([[0.0], times])
    mean = np.concatenate([[0.0], values[finite].mean(axis=(0, 1))])
    levels = np.array([_at_node(nodes, mean, k, function) for k in range(nodes.size)])
    above = np.flatnonzero(levels >= reference)
    if not above.size:
        raise ValueError(
            f"{what} reaches {levels.max():.3g} at most and not {reference:g} up to the flow time "
            f"{times[-1]:g}: measure gradient_flow with a larger flow_time"
        )
    last = int(above[0])
    if last == 0:
        raise ValueError(f"the reference {reference:g} should be positive")
    near = _nearest(nodes, 0.5 * (nodes[last - 1] + nodes[last]))
    bases = [function(basis) for basis in _lagrange(nodes[near])]
    curve = sum(
        (level * basis for level, basis in zip(mean[near], bases, strict=True)), 0 * bases[0]
    )
    crossing = _root(curve, reference, nodes[last - 1], nodes[last])
    # d crossing / d y_k = - basis_k / curve' at the crossing.
    gradient = np.array([-basis(crossing) for basis in bases]) / curve.deriv()(crossing)
    projected = np.full(values.shape[:2], np.nan)
    projected[finite] = 0.0
    for k, weight in zip(near, gradient, strict=True):
        if k:
            projected[finite] += weight * (values[finite, :, k - 1] - mean[k])
    return crossing, projected


def _at_node(
    nodes: NDArray, mean: NDArray, k: int, function: Callable[[Polynomial], Polynomial]
) -> float:
    near = _nearest(nodes, nodes[k])
    bases = _lagrange(nodes[near])
    return float(
        sum(
            level * function(basis)(nodes[k])
            for level, basis in zip(mean[near], bases, strict=True)
        )
    )


def _nearest(nodes: NDArray, time: float) -> NDArray[np.intp]:
    return np.sort(np.argsort(np.abs(nodes - time), kind="stable")[:NODES])


def _lagrange(nodes: NDArray) -> list[Polynomial]:
    """Return the polynomials that are 1 at one node and 0 at the others."""
    bases = []
    for k, node in enumerate(nodes):
        others = np.delete(nodes, k)
        bases.append(Polynomial.fromroots(others) / np.prod(node - others))
    return bases


def _root(curve: Polynomial, reference: float, low: float, high: float) -> float:
    """Return the crossing between two flow times."""

    def difference(time: float) -> float:
        return float(curve(time)) - reference

    # The polynomial of the interval may miss levels that were read off at its ends by others.
    for _ in range(8):
        if difference(low) * difference(high) <= 0:
            return float(brentq(difference, low, high, xtol=1e-14, rtol=1e-14))
        low, high = max(0.0, low - 0.25 * (high - low)), high + 0.25 * (high - low)
    raise ValueError(
        "the flow times are too far apart to find the scale: measure gradient_flow with more points"
    )
