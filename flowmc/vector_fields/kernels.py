"""Convolutions of powers of a scalar field: vector fields with exact divergences."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.flows.scalar.symmetric_kernels import point_group_orbits
from flowmc.lattice import sum_over_sites
from flowmc.vector_fields.base import VectorFields

__all__ = ["KernelFields"]


class KernelFields(VectorFields):
    r"""The fields :math:`v_x = \sum_{r \in o} \phi_{x+r}^p`, one for every power p and orbit o.

    Orbits are those of offsets under the point group of the lattice, so that every combination is
    equivariant under translations, rotations and reflections, and under :math:`\phi \to -\phi` for
    odd powers.  Only the zero offset has a divergence, :math:`p \sum_x \phi_x^{p-1}`.  With power 1
    the free field is solved exactly.

    Args:
        action: a scalar theory.
        powers: the p, positive.
        reach: largest distance of an offset in lattice units; by default the whole lattice.

    Raises:
        ValueError: for a gauge theory, or powers below 1.
    """

    def __init__(
        self, action: Action, *, powers: Sequence[int] = (1, 3), reach: float | None = None
    ) -> None:
        if not action.is_scalar:
            raise ValueError(f"kernels move scalar fields, but the theory is {action!r}")
        if not powers or min(powers) < 1:
            raise ValueError(f"powers = {list(powers)}: should be positive integers")
        self.lattice = action.lattice
        orbit, representatives = point_group_orbits(action.lattice)
        distance = representatives.to(torch.float64).square().sum(1).sqrt()
        near = distance <= (float("inf") if reach is None else reach)
        self._members: list[tuple[int, Tensor]] = []
        names = []
        for power in powers:
            for number in near.nonzero()[:, 0].tolist():
                kernel = (orbit == number).to(torch.float64).reshape(self.lattice)
                # Kernels are even, so that their spectra are real.
                self._members.append((power, torch.fft.fftn(kernel).real))
                offset = ",".join(map(str, representatives[number].tolist()))
                names.append(f"phi^{power}({offset})")
        self.names = tuple(names)

    def velocities(self, field: Tensor) -> list[Tensor]:
        axes = tuple(range(1, field.dim()))
        spectra = {
            power: torch.fft.fftn(field.pow(power), dim=axes)
            for power in {power for power, _ in self._members}
        }
        return [
            torch.fft.ifftn(spectra[power] * kernel.to(field), dim=axes).real
            for power, kernel in self._members
        ]

    def divergences(self, field: Tensor, rng: torch.Generator) -> Tensor:
        columns = []
        seen = set()
        for power, _ in self._members:
            # The zero offset comes first for every power.
            if power in seen:
                columns.append(torch.zeros(len(field), dtype=torch.float64, device=field.device))
                continue
            seen.add(power)
            columns.append(power * sum_over_sites(field.to(torch.float64).pow(power - 1)))
        return torch.stack(columns, 1)
