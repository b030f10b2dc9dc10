r"""Derivatives of expectation values from one ensemble, exact at zero step: linear response.

For any vector field v on the fields of a theory, integration by parts turns the derivative with
respect to a coupling into

.. math:: \frac{d\langle O\rangle}{d\lambda} = \langle v \cdot \partial O \rangle
          + \mathrm{cov}(O, B), \qquad
          B = -\frac{\partial S}{\partial\lambda} + \sum_k c_k
          \left(\mathrm{div}\,v_k - v_k \cdot \partial S\right), \quad v = \sum_k c_k v_k .

It is the limit of small steps of a finite difference with a flow
:math:`U \to U + \lambda v(U) U` (arXiv:2401.10874, where the finite step is taken).  Every term in
brackets has mean zero, so that any coefficients give the same expectation value: c = 0 is plain
reweighting, and the least squares fit that minimises Var[B] takes out of B what the family of
vector fields can.  Coefficients are fitted on other configurations than those they are used on
(cross-fitting), which keeps the estimate unbiased.  What is left of bias is that of any covariance,
:math:`-2\tau_{int}\,\mathrm{cov}/N`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.estimators.history import History
from flowmc.vector_fields.base import (
    VectorFields,
    combine,
    directional_derivative,
    scalar_product,
)

__all__ = [
    "advection",
    "bracket",
    "bracket_terms",
    "cross_fit",
    "fit_coefficients",
    "linear_derivative",
]

# Directions of the family in which B varies less than this, relative to the largest, are left out
# of a fit.  They are linearly dependent up to what divergences may be off, and a fit would use that
# error to make B constant, with a v that vanishes: a derivative of zero with no noise at all.
_RANK = 1e-5


@torch.no_grad()
def bracket_terms(
    action: Action,
    coupling: str,
    fields: Sequence[VectorFields],
    field: Tensor,
    rng: torch.Generator,
) -> tuple[Tensor, Tensor]:
    r"""Return what B is made of, for a batch of configurations.

    Args:
        action: the theory.
        coupling: :math:`\lambda`.
        fields: families of vector fields, K members in all; none for plain reweighting.
        field: ``(chains, ...)``.
        rng: for stochastic divergences.

    Returns:
        :math:`-\partial S/\partial\lambda`, ``(chains,)``, and
        :math:`\mathrm{div}\,v_k - v_k \cdot \partial S`, ``(chains, K)``, both float64.
    """
    insertion = -action.coupling_derivative(coupling, field)
    force = action.force(field)
    columns = [torch.zeros(len(field), 0, dtype=torch.float64, device=field.device)]
    for family in fields:
        velocities, divergences = family.evaluate(field, rng)
        products = [scalar_product(action.group, velocity, force) for velocity in velocities]
        columns.append(divergences - torch.stack(products, 1))
    return insertion, torch.cat(columns, 1)


@torch.no_grad()
def advection(
    action: Action,
    fields: Sequence[VectorFields],
    coefficients: Tensor,
    field: Tensor,
    observables: Callable[[Tensor], Tensor],
) -> Tensor:
    r"""Return :math:`v \cdot \partial O` for all observables at once, shaped like them.

    Args:
        action: the theory.
        fields: the families.
        coefficients: ``(K,)`` or ``(chains, K)``.
        field: ``(chains, ...)`` in double precision.
        observables: ``field -> (chains, ...)``.
    """
    velocities = [velocity for family in fields for velocity in family.velocities(field)]
    if not velocities:
        return torch.zeros_like(observables(field))
    velocity = combine(velocities, coefficients)
    return directional_derivative(observables, field, velocity, action.group)


def fit_coefficients(insertion: ArrayLike, terms: ArrayLike) -> NDArray[np.float64]:
    """Return the coefficients that minimise the variance of B, ``(K,)``.

    Args:
        insertion: ``(configurations,)``.
        terms: ``(configurations, K)``.
    """
    x = np.asarray(terms, dtype=np.float64)
    y = np.asarray(insertion, dtype=np.float64)
    if not x.shape[1] or len(y) < 2:
        return np.zeros(x.shape[1])
    x = x - x.mean(0)
    y = y - y.mean()
    scale = np.sqrt(np.mean(x * x, axis=0))
    scale[scale == 0] = 1.0
    solution, *_ = np.linalg.lstsq(x / scale, -y, rcond=_RANK)
    return solution / scale


def cross_fit(
    history: History, insertion: ArrayLike, terms: ArrayLike, folds: int = 2
) -> NDArray[np.float64]:
    """Return coefficients for every configuration, fitted without its own part of the ensemble.

    Every replica is cut into contiguous parts, one per fold; with autocorrelation only the
    configurations next to a cut know of the other side.

    Args:
        history: of the configurations.
        insertion: ``(configurations,)``.
        terms: ``(configurations, K)``.
        folds: number of parts.

    Returns:
        ``(configurations, K)``.

    Raises:
        ValueError: for fewer configurations outside a fold than there are coefficients.
    """
    x = np.asarray(terms, dtype=np.float64)
    y = np.asarray(insertion, dtype=np.float64)
    fold = np.concatenate([np.arange(n) * folds // n for n in history.lengths])
    result = np.zeros_like(x)
    for number in range(folds):
        own = fold == number
        if (~own).sum() <= x.shape[1] + 1:
            raise ValueError(
                f"{len(y)} configurations are too few to fit {x.shape[1]} coefficients on a part "
                f"of them: use fewer vector fields or more configurations"
            )
        result[own] = fit_coefficients(y[~own], x[~own])
    return result


def bracket(insertion: ArrayLike, terms: ArrayLike, coefficients: ArrayLike) -> NDArray[np.float64]:
    """Return B, ``(configurations,)``; coefficients as from a fit, ``(K,)``, or a cross-fit."""
    x = np.asarray(terms, dtype=np.float64)
    return np.asarray(insertion, dtype=np.float64) + (x * np.asarray(coefficients)).sum(1)


def linear_derivative(
    history: History, values: ArrayLike, advected: ArrayLike, brackets: ArrayLike
) -> NDArray:
    r"""Return :math:`d\langle O\rangle/d\lambda` as an array of ``pyerrors`` observables.

    Args:
        history: of the configurations.
        values: O, ``(configurations, ...)``.
        advected: :math:`v \cdot \partial O`, the same shape; 0 for plain reweighting.
        brackets: B, ``(configurations,)``.

    Returns:
        Observables of the shape of one measurement.
    """
    o = np.asarray(values, dtype=np.float64)
    b = np.asarray(brackets, dtype=np.float64)
    b = (b - b.mean()).reshape(-1, *[1] * (o.ndim - 1))
    projected = (o - o.mean(0)) * b + np.asarray(advected, dtype=np.float64)
    result: NDArray = np.empty(o.shape[1:], dtype=object)
    for index in np.ndindex(*result.shape):
        series = projected[(slice(None), *index)]
        mean = float(series.mean())
        result[index] = history.from_fluctuations(mean, series - mean)
    return result
