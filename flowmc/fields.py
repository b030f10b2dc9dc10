"""What a field is: elements of a group, on the sites or on the links of a lattice."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from flowmc.groups import Group, Real

__all__ = ["FieldSpace", "FixedLinks", "Place"]

Place = Literal["sites", "links"]


@dataclass(frozen=True)
class FieldSpace:
    """The fields of a theory.

    Attributes:
        group: of one element.
        lattice: extents ``(L_0, ..., L_{d-1})``, x first.
        place: where an element lives: "sites" (scalar fields, spins) or "links" (gauge fields).
    """

    group: Group
    lattice: tuple[int, ...]
    place: Place

    @property
    def dimensions(self) -> int:
        """Number of lattice directions d."""
        return len(self.lattice)

    @property
    def volume(self) -> int:
        """Number of lattice sites V."""
        return math.prod(self.lattice)

    @property
    def elements(self) -> tuple[int, ...]:
        """How the elements of one field lie: ``(*L)`` on sites, ``(d, *L)`` on links."""
        return self.lattice if self.place == "sites" else (self.dimensions, *self.lattice)

    @property
    def is_gauge(self) -> bool:
        """Whether the elements live on links."""
        return self.place == "links"

    @property
    def is_scalar(self) -> bool:
        """Whether the elements are real numbers on sites."""
        return self.place == "sites" and isinstance(self.group, Real)

    @property
    def is_complex(self) -> bool:
        """Whether an element is a matrix of complex numbers."""
        return bool(self.group.element_shape)

    def shape(self, chains: int) -> tuple[int, ...]:
        """Return ``(chains, *L, *element)`` for sites, ``(chains, d, *L, *element)`` for links."""
        return (chains, *self.elements, *self.group.element_shape)

    def cold(
        self, chains: int, dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Return ``chains`` ordered fields: every element the unit of the group.

        Args:
            chains: how many.
            dtype: of real components, or of the field itself.
            device: where.
        """
        return self.group.identity((chains, *self.elements), self.group.field_dtype(dtype), device)

    def hot(self, chains: int, rng: torch.Generator, dtype: torch.dtype = torch.float64) -> Tensor:
        """Draw disordered fields: every element from the Haar measure; real ones unit Gaussians."""
        shape = (chains, *self.elements)
        if isinstance(self.group, Real):
            return torch.randn(shape, dtype=dtype, device=rng.device, generator=rng)
        return self.group.haar(shape, self.group.field_dtype(dtype), rng)

    def __str__(self) -> str:
        size = "x".join(map(str, self.lattice))
        return f"{self.group.name} on the {self.place} of a {size} lattice"


@dataclass(frozen=True, eq=False)
class FixedLinks:
    """Links that a theory holds at given elements of the group, such as those of a boundary.

    Attributes:
        where: which, bool ``(d, *L)``.
        values: of all links, ``(d, *L, *element)`` in double precision; the others are not read.
    """

    where: Tensor
    values: Tensor

    def put_into(self, field: Tensor) -> Tensor:
        """Return a field ``(chains, d, *L, *element)`` with these links."""
        return torch.where(self._mask(field), self.values.to(field), field)

    def zeroed(self, field: Tensor) -> Tensor:
        """Return elements of the algebra with zeros in the place of these links."""
        return field.masked_fill(self._mask(field), 0)

    def restored(self, field: Tensor, before: Tensor) -> Tensor:
        """Return a field that has in the place of these links what another one has."""
        return torch.where(self._mask(field), before, field)

    def _mask(self, field: Tensor) -> Tensor:
        return self.where.reshape(
            *self.where.shape, *[1] * (field.dim() - 1 - self.where.dim())
        ).to(field.device)
