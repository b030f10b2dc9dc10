r"""How much smaller the variance of one estimator is than that of another, on the same
configurations, and how strongly two ensembles are correlated.

.. math:: \mathrm{Var}[A - B] = \mathrm{Var}\,A + \mathrm{Var}\,B
          - 2 \rho \sqrt{\mathrm{Var}\,A\;\mathrm{Var}\,B}

The gain is the ratio of the squared errors that the Gamma method finds, so that it says what the
errors say.  Its own error follows from the terms whose means the two variances are: with a window W
each, :math:`v_i = \delta_i^2 + 2 \sum_{t=1}^{W} \delta_i \delta_{i+t}`, and by the Gamma method
again for :math:`v^A_i / \bar v^A - v^B_i / \bar v^B`, which knows that the two are correlated.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flowmc.estimators.autocorrelation import Estimate, analyse
from flowmc.estimators.history import History, Result, result_of

__all__ = ["block_length", "correlation", "variance_ratio"]

BLOCKS_PER_TAU = 4  # tau_int per block, as far as there are enough blocks
FEWEST_BLOCKS = 20


def block_length(history: History, tau_int: float) -> int:
    """Return how many configurations make a block: four tau_int, but 20 blocks at least."""
    wanted = 1 if not math.isfinite(tau_int) or tau_int <= 0.6 else BLOCKS_PER_TAU * tau_int
    return max(1, min(math.ceil(wanted), len(history) // FEWEST_BLOCKS))


def variance_ratio(
    name: str,
    history: History,
    reference: NDArray,
    improved: NDArray,
    factor: float = 1.0,
    *,
    known: Estimate | None = None,
) -> Result:
    r"""Return the gain ``factor`` Var(reference) / Var(improved) of the means.

    Args:
        name: of the result.
        history: of the configurations.
        reference, improved: projected fluctuations, ``(configurations,)``.
        factor: 2 for a difference of two independent ensembles of which ``reference`` is one.
        known: the estimate of which ``improved`` are the fluctuations, if there is one.

    Returns:
        A bound, with the reason, where one of the two errors is one; NaN where one is not known.
    """
    series = (reference, improved)
    first = result_of(name, history.from_fluctuations(0.0, reference)).estimate
    second = known or result_of(name, history.from_fluctuations(0.0, improved)).estimate
    with np.errstate(divide="ignore", invalid="ignore"):
        value = float(factor * np.divide(first.error**2, second.error**2))
    error = math.nan
    if math.isfinite(value) and value > 0:
        one, other = (
            _variance_terms(history, deltas, estimate.window)
            for deltas, estimate in zip(series, (first, second), strict=True)
        )
        terms = one / one.mean() - other / other.mean()
        # Of replicas of other lengths, in one row: neighbours of two replicas are few.
        is_even = len(set(history.lengths)) == 1
        error = value * analyse(np.stack(history.split(terms), 1) if is_even else terms).error
    estimate = Estimate(value, error, 0.5, 0.0, len(history), max(first.window, second.window))
    reasons = dict.fromkeys((*first.warnings, *second.warnings))
    if first.is_bound or second.is_bound or not math.isfinite(error):
        return Result(name, estimate.warned(*reasons))
    return Result(name, estimate)


def _variance_terms(history: History, fluctuations: NDArray, window: int) -> NDArray[np.float64]:
    """Return the terms whose mean is the long-run variance, ``(configurations,)``."""
    parts = []
    for part in history.split(fluctuations):
        # The sum of the next `window` fluctuations, fewer at the end.
        sums = np.concatenate([[0.0], np.cumsum(part)])
        places = np.arange(len(part))
        ahead = sums[np.minimum(places + window, len(part) - 1) + 1] - sums[places + 1]
        parts.append(part * (part + 2 * ahead))
    return np.concatenate(parts)


def correlation(name: str, history: History, first: NDArray, second: NDArray, block: int) -> Result:
    """Return the correlation coefficient of two means, ``(configurations,)`` fluctuations each.

    From the sums over blocks of consecutive configurations, with the error of the jackknife.
    """
    a, b = (_block_sums(history, one, block) for one in (first, second))

    def coefficient(product: NDArray, squares_a: NDArray, squares_b: NDArray) -> NDArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return product / np.sqrt(squares_a * squares_b)

    return _jackknifed(name, coefficient, a * b, a**2, b**2)


def _block_sums(history: History, fluctuations: NDArray, block: int) -> NDArray[np.float64]:
    return np.array(
        [
            piece.sum()
            for part in history.split(fluctuations)
            for piece in np.array_split(part, max(1, len(part) // block))
        ]
    )


def _jackknifed(name: str, function: Callable[..., NDArray], *terms: NDArray) -> Result:
    """Return a function of sums over blocks with its delete-one jackknife error."""
    count = len(terms[0])
    value = float(function(*(term.sum() for term in terms)))
    error = math.nan
    if count > 1 and math.isfinite(value):
        without = function(*(term.sum() - term for term in terms))
        error = math.sqrt((count - 1) / count * float(np.sum((without - without.mean()) ** 2)))
    estimate = Estimate(value, error, 0.5, 0.0, count, 0)
    if count < FEWEST_BLOCKS:
        text = f"{name} is from {count} independent blocks only: its error is uncertain"
        estimate = estimate.warned(text)
    return Result(name, estimate)
