r"""The contract of families of vector fields, directional derivatives, and the check of both.

A family has K members :math:`v_k`; what is used in the end is a linear combination
:math:`\sum_k c_k v_k`, whose coefficients are fitted
(:mod:`flowmc.estimators.linear_response`).  Velocities are algebra elements shaped like the field
(:mod:`flowmc.groups`), :math:`v = \sum_a T_a v^a`, and the divergence is
:math:`\sum_{l,a} \partial^a_l v^a_l`, that of the flow :math:`\dot U = v(U)\,U` with respect to the
Haar measure.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.groups import Group
from flowmc.lattice import sum_over_sites

__all__ = [
    "VectorFields",
    "check_divergence",
    "combine",
    "directional_derivative",
    "divergences_by_differences",
    "scalar_product",
]

# Root mean square displacement per degree of freedom of a directional derivative.  The error of
# its fourth-order difference is of the order of its fourth power times that of the number of links
# in a loop, 1e-11; that of rounding 1e-12.
_DISPLACEMENT = 5e-4


class VectorFields(ABC):
    """A family of K vector fields on the fields of one theory.

    Attributes:
        names: what the members are called, K of them.
        divergence_is_exact: False if :meth:`divergences` are unbiased estimates with noise.
    """

    names: tuple[str, ...]
    divergence_is_exact: bool = True

    @abstractmethod
    def velocities(self, field: Tensor) -> list[Tensor]:
        """Return the K velocities at ``field (chains, ...)``, algebra elements like the field."""

    @abstractmethod
    def divergences(self, field: Tensor, rng: torch.Generator) -> Tensor:
        """Return the divergences, ``(chains, K)`` float64.

        Args:
            field: ``(chains, ...)``.
            rng: for stochastic estimates.
        """

    def evaluate(self, field: Tensor, rng: torch.Generator) -> tuple[list[Tensor], Tensor]:
        """Return velocities and divergences; families that share work between them override it."""
        return self.velocities(field), self.divergences(field, rng)


def combine(velocities: Sequence[Tensor], coefficients: Tensor) -> Tensor:
    """Return ``sum_k c_k v_k`` of algebra elements.

    Args:
        velocities: K tensors ``(chains, ...)``.
        coefficients: ``(K,)``, or ``(chains, K)`` for coefficients of their own for every chain.
    """
    total = torch.zeros_like(velocities[0])
    table = coefficients.expand(len(total), -1)
    for velocity, column in zip(velocities, table.unbind(1), strict=True):
        factor = column.to(velocity.real.dtype).reshape(-1, *[1] * (velocity.dim() - 1))
        total += factor * velocity
    return total


def scalar_product(group: Group, left: Tensor, right: Tensor) -> Tensor:
    r"""Return :math:`\sum_{l,a} x^a_l y^a_l` per chain, ``(chains,)`` float64."""
    coordinates = group.algebra_to_coordinates
    return sum_over_sites(coordinates(left) * coordinates(right))


def directional_derivative(
    function: Callable[[Tensor], Tensor], field: Tensor, velocity: Tensor, group: Group
) -> Tensor:
    r"""Return :math:`v \cdot \partial f = \frac{d}{ds} f(e^{s v} U)|_{s=0}` per chain.

    By a central difference of fourth order, which serves every observable, differentiable by
    autograd or not, at the price of four evaluations whatever the number of its components.  Its
    relative error is about 1e-10 for smooth functions of a double-precision field.

    Args:
        function: ``field -> (chains, ...)``.
        field: ``(chains, ...)`` in double precision.
        velocity: algebra elements like the field.
        group: of the field's elements.

    Raises:
        ValueError: for a field in single precision, whose differences would be noise.
    """
    if field.real.dtype != torch.float64:
        raise ValueError("directional derivatives need fields in double precision")
    count = group.algebra_to_coordinates(velocity[:1]).numel()
    norm = (scalar_product(group, velocity, velocity) / count).sqrt()
    # A field at rest has no direction: any step gives zero.
    step = torch.where(norm > 0, _DISPLACEMENT / norm, torch.ones_like(norm))

    def at(times: float) -> Tensor:
        factor = (times * step).to(field.real.dtype).reshape(-1, *[1] * (velocity.dim() - 1))
        return function(group.move(field, factor * velocity))

    difference = 8 * (at(1) - at(-1)) - (at(2) - at(-2))
    return difference / (12 * step).reshape(-1, *[1] * (difference.dim() - 1))


def check_divergence(fields: VectorFields, action: Action, field: Tensor) -> float:
    r"""Compare divergences with :math:`\sum_{l,a} \partial^a_l v^a_l`; return the largest error.

    Every degree of freedom is moved in turn, so use a few sites.  Errors are relative to the
    divergence where that is above 1.

    Args:
        fields: a family whose divergences are exact.
        action: the theory, for its group.
        field: ``(chains, ...)`` in double precision.
    """
    exact = fields.divergences(field, torch.Generator().manual_seed(0))
    return float(
        (
            (divergences_by_differences(fields, action, field) - exact).abs()
            / exact.abs().clamp(min=1)
        ).max()
    )


def divergences_by_differences(fields: VectorFields, action: Action, field: Tensor) -> Tensor:
    """Return the divergences ``(chains, K)`` found by moving every degree of freedom in turn."""
    group, step = action.group, 1e-3
    rows = []
    for one in field.split(1):
        shape = group.algebra_to_coordinates(fields.velocities(one)[0]).shape[1:]
        total = torch.zeros(len(fields.names), dtype=torch.float64, device=field.device)
        for units in torch.eye(shape.numel(), dtype=torch.float64, device=field.device).split(64):
            direction = group.coordinates_to_algebra(units.reshape(-1, *shape))
            copies = one.expand(len(units), *one.shape[1:])

            def along(
                times: float,
                copies: Tensor = copies,
                direction: Tensor = direction,
                units: Tensor = units,
            ) -> Tensor:
                moved = fields.velocities(group.move(copies, times * step * direction))
                parts = [(group.algebra_to_coordinates(v).flatten(1) * units).sum() for v in moved]
                return torch.stack(parts)

            total += (8 * (along(1) - along(-1)) - (along(2) - along(-2))) / (12 * step)
        rows.append(total)
    return torch.stack(rows)
