r"""The Wilson action with a defect: links through a wall are coupled less, down to open boundaries.

Replica exchange between theories with and without such a defect lets topology flow in through it:
M. Hasenbusch, arXiv:1706.04443 (CP(N-1)); C. Bonanno, C. Bonati and M. D'Elia, arXiv:2012.14000
(SU(N)).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from flowmc.actions.gauge import Wilson
from flowmc.groups import Group
from flowmc.lattice import shift
from flowmc.plaquettes import planes

__all__ = ["DefectWilson", "defect_box", "defect_links"]


def defect_box(
    lattice: Sequence[int], defect_axis: int, defect_extents: Sequence[int] | None
) -> tuple[int, tuple[int, ...]]:
    """Return the axis, counted from 0, and the extents of the box of defect links.

    Raises:
        ValueError: as :class:`DefectWilson`.
    """
    dimensions = len(lattice)
    if not -dimensions <= defect_axis < dimensions:
        raise ValueError(
            f"defect_axis = {defect_axis}: the lattice has the directions 0 to {dimensions - 1}"
        )
    axis = defect_axis % dimensions
    others = [extent for nu, extent in enumerate(lattice) if nu != axis]
    extents = others if defect_extents is None else [int(extent) for extent in defect_extents]
    if len(extents) != len(others) or not all(
        1 <= extent <= largest for extent, largest in zip(extents, others, strict=True)
    ):
        raise ValueError(
            f"defect_extents = {list(extents)}: give one extent per direction other than {axis}, "
            f"each from 1 to the lattice's ({others})"
        )
    return axis, tuple(extents)


def defect_links(lattice: Sequence[int], axis: int, extents: Sequence[int]) -> Tensor:
    """Return which links are defect links of a box, bool ``(d, *L)``."""
    mask = torch.zeros((len(lattice), *lattice), dtype=torch.bool)
    where: list[int | slice] = [slice(extent) for extent in extents]
    where.insert(axis, lattice[axis] - 1)
    mask[(axis, *where)] = True
    return mask


class DefectWilson(Wilson):
    r"""The Wilson plaquette action in which some links carry a coefficient.

    .. math:: S = -\frac{\beta}{N} \sum_{x} \sum_{\mu<\nu} w_{\mu\nu}(x)\,
              \mathrm{Re\,tr}\,P_{\mu\nu}(x), \qquad
              w_{\mu\nu}(x) = K_\mu(x)\,K_\nu(x+\hat\mu)\,K_\mu(x+\hat\nu)\,K_\nu(x)

    (arXiv:2012.14000; U(1): :math:`-\beta \sum w \cos\theta_P`).  K is ``defect`` on the
    *defect links* and 1 elsewhere.  The defect links are the
    :math:`U_a(x)` of the direction a = ``defect_axis`` with :math:`x_a = L_a - 1`, which cross
    from the last to the first slice, whose other coordinates lie in the box
    :math:`0 \le x_\nu < E_\nu` of the extents ``defect_extents``.  So a plaquette with two defect
    links has the weight ``defect`` squared, one at the rim of the box, with one defect link,
    ``defect`` itself.  With ``defect = 1`` this is the Wilson action; with ``defect = 0`` and a
    box as large as the slice, the direction a has open boundaries.

    Args:
        group: "U(1)" or "SU(N)", or a :class:`~flowmc.groups.Group`.
        lattice: extents, d >= 2, each >= 2.
        beta: inverse coupling.
        defect: coefficient of the defect links, finite and >= 0 (values above 1 are allowed).
        defect_axis: direction a, the last by default; negative numbers count from the end.
        defect_extents: extents of the box in the other d - 1 directions, in their order, each from
            1 to that of the lattice; by default those of the lattice.

    Raises:
        ValueError: for values out of range.
    """

    name = "wilson_defect"
    title = "Wilson action with a defect"
    same_as: ClassVar = {"wilson": {"defect": 1.0}}

    def __init__(
        self,
        group: str | Group,
        lattice: Sequence[int],
        *,
        beta: float,
        defect: float,
        defect_axis: int = -1,
        defect_extents: Sequence[int] | None = None,
    ) -> None:
        super().__init__(group, lattice, beta=beta)
        self.defect = float(defect)
        if not (math.isfinite(self.defect) and self.defect >= 0):
            raise ValueError(
                f"defect = {defect} multiplies the coupling of links: take it finite and >= 0"
            )
        self.defect_axis, self.defect_extents = defect_box(
            self.lattice, defect_axis, defect_extents
        )
        self.parameters = {"beta": self.beta, "defect": self.defect}
        self.settings = {
            "defect_axis": self.defect_axis,
            "defect_extents": list(self.defect_extents),
        }
        # In the digests of runs that exist.
        self._weights: dict[str, float] = {}

    def at(self, **couplings: float) -> DefectWilson:
        unknown = set(couplings) - {"beta", "defect"}
        if unknown:
            raise ValueError(
                f"the Wilson action with a defect has the couplings beta and defect, not "
                f"{sorted(unknown)}"
            )
        return DefectWilson(
            self.group,
            self.lattice,
            beta=couplings.get("beta", self.beta),
            defect=couplings.get("defect", self.defect),
            defect_axis=self.defect_axis,
            defect_extents=self.defect_extents,
        )

    def defect_links(self) -> Tensor:
        """Return which links are defect links, bool ``(d, *L)``."""
        return defect_links(self.lattice, self.defect_axis, self.defect_extents)

    def plaquette_weights(self) -> Tensor:
        """Return the weight of every plaquette, float64 ``(d(d-1)/2, *L)``, planes in order."""
        links = self.defect_links()[:, None].to(torch.int64)
        counts = [
            links[mu] + shift(links[nu], mu) + shift(links[mu], nu) + links[nu]
            for mu, nu in planes(self.dimensions)
        ]
        # 0 ** 0 is 1, as it must be.
        return torch.tensor(self.defect, dtype=torch.float64) ** torch.cat(counts)
