"""Vector fields that need nothing but forces: repeated products with the Hessian of the action."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.lattice import checkerboard
from flowmc.vector_fields.base import VectorFields, scalar_product

__all__ = ["KrylovFields"]

# Root mean square displacement of the differences that make a product with the Hessian.
_DISPLACEMENT = 1e-3
# Displacement of the differences that make a divergence.
_PROBE_STEP = 2e-3


class KrylovFields(VectorFields):
    r"""The fields :math:`v_n = H^n\,\partial(\partial S/\partial\lambda)`, n = 0 ... degree.

    H is the Hessian of the action.  For a quadratic action the vector field that makes the bracket
    constant is :math:`v = -\tfrac12 H^{-1} \partial(\partial S/\partial\lambda)`, whose nonlocal
    kernel :math:`1/\hat k^2` a polynomial in H approximates, the better the higher its degree: long
    loops and far transports, at the price of 2n forces.  Any theory, group, dimension and coupling.

    Products with H are central differences of the force along the previous field, and divergences
    unbiased estimates by random signs :math:`\eta`, :math:`\mathrm{div}\,v = E[\eta \cdot \partial
    (\eta \cdot v)]`, diluted: one vector for every direction, component of the algebra and colour
    of a checkerboard (S. Bernardson et al., Comput. Phys. Commun. 78 (1993) 256 for the method; the
    nearest neighbours, which dominate its noise, then drop out).

    Args:
        action: the theory.
        coupling: with respect to which is differentiated.
        degree: largest power of H, >= 0.
        probes: sets of diluted random vectors.

    Raises:
        ValueError: for a coupling that the theory does not have, or values out of range.
    """

    divergence_is_exact = False

    def __init__(self, action: Action, coupling: str, *, degree: int = 2, probes: int = 1) -> None:
        if degree < 0 or probes < 1:
            raise ValueError(f"degree = {degree}, probes = {probes}: need degree >= 0, probes >= 1")
        if coupling not in action.parameters:
            raise ValueError(f"the {action.name} action has no coupling {coupling!r}")
        self.action, self.coupling, self.degree, self.probes = action, coupling, degree, probes
        self.names = tuple(f"krylov_{n}" for n in range(degree + 1))

    def velocities(self, field: Tensor) -> list[Tensor]:
        group, force = self.action.group, self.action.force
        slope = self.action.coupling_force(self.coupling, field)
        found = [slope]
        for _ in range(self.degree):
            direction = found[-1]
            norm = scalar_product(group, direction, direction)
            count = group.algebra_to_coordinates(direction[:1]).numel()
            step = _DISPLACEMENT / (norm / count).sqrt().clamp(min=1e-300)
            step = step.to(field.real.dtype).reshape(-1, *[1] * (field.dim() - 1))
            ahead = force(group.move(field, step * direction))
            behind = force(group.move(field, -step * direction))
            found.append((ahead - behind) / (2 * step))
        return found

    def divergences(self, field: Tensor, rng: torch.Generator) -> Tensor:
        group = self.action.group
        total = torch.zeros(len(field), self.degree + 1, dtype=torch.float64, device=field.device)
        for mask in self._dilution(field):
            for _ in range(self.probes):
                shape = (len(field), *mask.shape)
                signs = torch.randint(0, 2, shape, generator=rng, device=rng.device)
                signs = (2 * signs - 1).to(mask) * mask
                direction = group.coordinates_to_algebra(signs)
                total += self._along(field, direction)
        return total / self.probes

    def _along(self, field: Tensor, direction: Tensor) -> Tensor:
        r"""Return :math:`\eta \cdot \partial (\eta \cdot v_n)`, ``(chains, degree + 1)``.

        By a difference of fourth order: the error of a lower one is small but systematic, and a
        least squares fit would find the combination of nearly dependent fields that consists of
        nothing else.
        """
        group = self.action.group
        total = torch.zeros(len(field), self.degree + 1, dtype=torch.float64, device=field.device)
        for weight, times in ((8, 1), (-8, -1), (-1, 2), (1, -2)):
            moved = group.move(field, times * _PROBE_STEP * direction)
            products = [scalar_product(group, direction, v) for v in self.velocities(moved)]
            total = total + weight / (12 * _PROBE_STEP) * torch.stack(products, 1)
        return total

    def _dilution(self, field: Tensor) -> Iterator[Tensor]:
        """Yield masks over algebra coordinates, ``(d, *L, dim)`` or ``(*L, 1)``; they add to 1."""
        action = self.action
        components = action.group.algebra_dimension
        colours = [
            checkerboard(action.lattice, parity, field.device).to(field.real.dtype)
            for parity in (0, 1)
        ]
        directions = range(action.dimensions) if action.is_gauge else [None]
        for mu in directions:
            for component in range(components):
                for colour in colours:
                    unit = torch.zeros(
                        *field.shape[1 : field.dim() - len(action.group.element_shape)],
                        components,
                        dtype=colour.dtype,
                        device=field.device,
                    )
                    if mu is None:
                        unit[..., component] = colour
                    else:
                        unit[mu, ..., component] = colour
                    yield unit
