"""The Wilson action with different couplings in space and time."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flowmc.actions.gauge import Wilson
from flowmc.groups import Group
from flowmc.plaquettes import planes

__all__ = ["AnisotropicWilson"]


class AnisotropicWilson(Wilson):
    r"""The Wilson plaquette action with a bare anisotropy.

    .. math:: S = -\frac{\beta}{N} \Big[ \frac{1}{\xi} \sum_{x,\,i<j} \mathrm{Re\,tr}\,P_{ij}(x)
              + \xi \sum_{x,\,i} \mathrm{Re\,tr}\,P_{it}(x) \Big]

    (F. Karsch, Nucl. Phys. B205 (1982) 285; U(1): cosines).  The time direction t is the last.  At
    :math:`\xi = 1` it is the Wilson action, and its derivative with respect to :math:`\xi` is the
    bare lattice form of the energy-momentum tensor's diagonal component,
    :math:`\partial_\xi S = \tfrac{\beta}{N} [\sum P_{ij} - \sum P_{it}]`.

    Args:
        group: "U(1)" or "SU(N)", or a :class:`~flowmc.groups.Group`.
        lattice: extents, d >= 2, each >= 2.
        beta: inverse coupling.
        anisotropy: :math:`\xi > 0`.

    Raises:
        ValueError: for values out of range.
    """

    name = "wilson_anisotropic"
    title = "anisotropic Wilson action"
    same_as: ClassVar = {"wilson": {"anisotropy": 1.0}}

    def __init__(
        self, group: str | Group, lattice: Sequence[int], *, beta: float, anisotropy: float
    ) -> None:
        super().__init__(group, lattice, beta=beta)
        self.anisotropy = float(anisotropy)
        if not 0 < self.anisotropy < float("inf"):
            raise ValueError(f"anisotropy = {anisotropy}: should be positive and finite")
        self.parameters = {"beta": self.beta, "anisotropy": self.anisotropy}

    def at(self, **couplings: float) -> AnisotropicWilson:
        unknown = set(couplings) - set(self.parameters)
        if unknown:
            raise ValueError(
                "the anisotropic Wilson action has the couplings beta and anisotropy, not "
                f"{sorted(unknown)}"
            )
        return AnisotropicWilson(self.group, self.lattice, **(self.parameters | couplings))

    def plaquette_weights(self) -> Tensor:
        """Return the weight of every plaquette, float64 ``(d(d-1)/2, *L)``, planes in order."""
        weights = [
            self.anisotropy if nu == self.dimensions - 1 else 1 / self.anisotropy
            for _, nu in planes(self.dimensions)
        ]
        ones = torch.ones((len(weights), *self.lattice), dtype=torch.float64)
        return ones * torch.tensor(weights, dtype=torch.float64).reshape(-1, *[1] * self.dimensions)
