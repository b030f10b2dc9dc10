r"""How much smaller the variance of one estimator is than that of another, on the same
configurations, and how strongly two ensembles are correlated.

.. math:: \mathrm{Var}[A - B] = \mathrm{Var}\,A + \mathrm{Var}\,B
          - 2 \rho \sqrt{\mathrm{Var}\,A\;\mathrm{Var}\,B}

Variances are those of the means, from the sums of projected fluctuations over blocks longer than
the autocorrelation time; errors from the jackknife over these blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from flowmc.estimators.autocorrelation import Estimate
from flowmc.estimators.history import History, Result

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
    block: int,
    factor: float = 1.0,
) -> Result:
    r"""Return the gain ``factor`` Var(reference) / Var(improved).

    Args:
        name: of the result.
        history: of the configurations.
        reference, improved: projected fluctuations, ``(configurations,)``.
        block: consecutive configurations per block.
        factor: 2 for a difference of two independent ensembles of which ``reference`` is one.
    """
    first, second = (_block_sums(history, one, block) for one in (reference, improved))

    def ratio(a: NDArray, b: NDArray) -> NDArray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return factor * a / b

    return _jackknifed(name, ratio, first**2, second**2)


def correlation(name: str, history: History, first: NDArray, second: NDArray, block: int) -> Result:
    """Return the correlation coefficient of two means, ``(configurations,)`` fluctuations each."""
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
