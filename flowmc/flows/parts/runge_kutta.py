r"""Explicit Runge-Kutta maps of a flow's field and log-density, with their exact gradients.

A method is its Butcher tableau.  The gradient is that of the discrete map (every stage is kept,
nothing else), not a discretisation of the adjoint equation, so that it is exact to round-off for
any step size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["TABLEAUS", "Tableau", "integrate", "integrate_back"]


@dataclass(frozen=True)
class Tableau:
    """An explicit method: stage i is evaluated at ``t + nodes[i] h`` from ``stages[i]``."""

    nodes: tuple[float, ...]
    stages: tuple[tuple[float, ...], ...]
    weights: tuple[float, ...]
    order: int

    @property
    def distinct_nodes(self) -> tuple[float, ...]:
        """The nodes without repetition."""
        return tuple(dict.fromkeys(self.nodes))


TABLEAUS = {
    "euler": Tableau((0.0,), ((),), (1.0,), 1),
    "midpoint": Tableau((0.0, 0.5), ((), (0.5,)), (0.0, 1.0), 2),
    "rk4": Tableau(
        (0.0, 0.5, 0.5, 1.0),
        ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0)),
        (1 / 6, 1 / 3, 1 / 3, 1 / 6),
        4,
    ),
}


def integrate(
    velocity: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    x: Tensor,
    tableau: Tableau,
    step: float,
    steps: int,
    keep: list[Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    r"""Return the field after ``steps`` steps and :math:`\int dt\,\mathrm{div}\,v` along the way.

    Args:
        velocity: ``(x, node) -> (v, div)`` with div ``(chains,)`` float64; nodes count the distinct
            times, step after step.
        x: ``(V, chains)``.
        tableau: the method.
        step: the step size h, of either sign.
        steps: number of steps.
        keep: list to which every stage is appended, for :func:`integrate_back`.
    """
    total = torch.zeros(x.shape[1], dtype=torch.float64, device=x.device)
    distinct = tableau.distinct_nodes
    for index in range(steps):
        slopes: list[Tensor] = []
        for node, row in zip(tableau.nodes, tableau.stages, strict=True):
            stage = x
            for coefficient, slope in zip(row, slopes, strict=True):
                if coefficient:
                    stage = torch.add(stage, slope, alpha=coefficient * step)
            if keep is not None:
                keep.append(stage)
            v, divergence = velocity(stage, index * len(distinct) + distinct.index(node))
            slopes.append(v)
            weight = tableau.weights[len(slopes) - 1]
            if weight:
                total = torch.add(total, divergence, alpha=weight * step)
        for weight, slope in zip(tableau.weights, slopes, strict=True):
            if weight:
                x = torch.add(x, slope, alpha=weight * step)
    return x, total


def integrate_back(
    product: Callable[[Tensor, int, Tensor, Tensor], Tensor],
    gradient_x: Tensor,
    gradient_total: Tensor,
    tableau: Tableau,
    step: float,
    steps: int,
    kept: list[Tensor],
) -> Tensor:
    """Return the gradient with respect to the initial field, given those of :func:`integrate`.

    Args:
        product: ``(stage, node, gradient_v, gradient_div) -> gradient_stage``; it may accumulate
            gradients of parameters on the side.
        gradient_x: with respect to the final field, ``(V, chains)``.
        gradient_total: with respect to the integral of the divergence, ``(chains,)``.
        tableau: the method.
        step: the step size.
        steps: number of steps.
        kept: the stages.
    """
    distinct = tableau.distinct_nodes
    count = len(tableau.nodes)
    for index in reversed(range(steps)):
        gradients: dict[int, Tensor] = {}
        total = gradient_x
        for i in reversed(range(count)):
            weight = tableau.weights[i]
            slope = gradient_x * (weight * step)
            for later in range(i + 1, count):
                coefficient = tableau.stages[later][i]
                if coefficient:
                    slope = torch.add(slope, gradients[later], alpha=coefficient * step)
            node = index * len(distinct) + distinct.index(tableau.nodes[i])
            stage = kept[index * count + i]
            gradients[i] = product(stage, node, slope, gradient_total * (weight * step))
            total = total + gradients[i]
        gradient_x = total
    return gradient_x
