r"""What is made of the means of a correlator: connected parts, effective masses, and how they
change with a coupling.

Each quantity is a function of the vector of means, written with ``autograd.numpy`` so that errors
and derivatives follow from it by propagation::

    masses = apply(effective_mass, correlator)                 # arrays of pyerrors observables
    slopes = apply_derivative(effective_mass, correlator, correlator_slopes)

For correlators that are symmetric about half of the periodic extent L, given at t = 0 ... L / 2,

.. math:: m(t) = \mathrm{arccosh} \frac{C(t - 1) + C(t + 1)}{2\,C(t)}, \qquad 0 < t < L / 2,

which is the mass where one state dominates.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import autograd.numpy as anp
import numpy as np
from autograd import jacobian
from numpy.typing import NDArray

__all__ = ["apply", "apply_derivative", "connected", "effective_mass", "mean_mass"]

Function = Callable[[NDArray], NDArray]


def effective_mass(correlator: NDArray) -> NDArray:
    """Return m(t) for the inner times, ``(times - 2,)``; NaN where the arccosh has no value."""
    with np.errstate(invalid="ignore"):
        return anp.arccosh((correlator[:-2] + correlator[2:]) / (2 * correlator[1:-1]))


def mean_mass(first: int, last: int) -> Function:
    """Return the function that averages m(t) over ``first <= t <= last``, as an array ``(1,)``."""

    def function(correlator: NDArray) -> NDArray:
        return anp.mean(effective_mass(correlator)[first - 1 : last], keepdims=True)

    return function


def connected(values: NDArray) -> NDArray:
    """Return C(t) less the squared vacuum expectation value, which is the last element.

    For observables like :func:`flowmc.observables.plaquette_correlator`.
    """
    return values[:-1] - values[-1] ** 2


def apply(function: Function, means: NDArray[Any]) -> NDArray[Any]:
    """Return a function of a vector of observables, None where it has no finite value.

    Args:
        function: ``(k,) -> (n,)``, written with ``autograd.numpy``.
        means: ``(k,)`` observables.
    """
    return _derived(function, means)


def apply_derivative(function: Function, means: NDArray[Any], slopes: NDArray[Any]) -> NDArray[Any]:
    r"""Return :math:`\sum_k (\partial F / \partial a_k)\, da_k / d\lambda`, as :func:`apply`.

    Args:
        function: F.
        means: a, ``(k,)`` observables.
        slopes: :math:`da / d\lambda`, ``(k,)`` observables.
    """
    count = len(means)

    def total(both: NDArray) -> NDArray:
        return anp.dot(jacobian(function)(both[:count]), both[count:])

    return _derived(total, np.concatenate([means, slopes]))


def _derived(function: Function, observables: NDArray[Any]) -> NDArray[Any]:
    import pyerrors

    values = np.array([one.value for one in observables])
    with np.errstate(invalid="ignore", divide="ignore"):
        found = function(values)
        result = np.empty(len(found), dtype=object)
        good = np.flatnonzero(np.isfinite(found))
        if good.size:
            # Only finite components: a derivative of one that is not would spoil its neighbours.
            derived = pyerrors.derived_observable(lambda x: function(x)[good], list(observables))
            result[good] = derived
    return result
