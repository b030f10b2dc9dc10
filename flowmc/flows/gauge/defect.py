r"""Residual flows that move the links near a defect only, at a cost that does not see the lattice.

A change of the coefficient of a defect (:mod:`flowmc.actions.defect`) changes the action near it
only, and so does a map between the two theories, to a good approximation.  Replica exchange with
such maps is that of arXiv:2404.11674; other flows at a defect: arXiv:2510.25704, arXiv:2601.20708.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.actions.defect import DefectWilson
from flowmc.flows.gauge.defect_masks import DefectLayer, defect_layers, path_classes
from flowmc.flows.gauge.link_masks import LinkLayer
from flowmc.flows.gauge.masked_links import MaskedLinkFlow
from flowmc.groups import SUN, U1

__all__ = ["DefectFlow"]


class DefectFlow(MaskedLinkFlow):
    r"""Sweeps of masked residual layers over the links near the defect of a Wilson action.

    One layer (:mod:`flowmc.flows.gauge.masked_links`) moves :math:`U' = e^{Q} U` with
    :math:`Q = -(U \sum_k c_k C_k)_{TA}`, the sum running over the 2(d-1) staples :math:`C_k` of the
    link.  The coefficient depends on where link and plaquette lie relative to the defect, by the
    classes of :mod:`flowmc.flows.gauge.defect_masks`; there are 2 of them for ``width = 0``, 8 for
    1 and 6 more for each further shell.  All other links are returned bit for bit as they came.

    Only the moved links and their staples are gathered, exponentiated, inverted and enter the
    Jacobian; of the size of the lattice is nothing but a copy of the field.

    With all parameters zero the flow is the identity, which is how it starts.  For a defect of
    SU(3) a coefficient of a few hundredths is typical.

    Args:
        action: the Wilson action with a defect; it provides group, lattice and place.
        width: largest shell of links that move: 0 for the defect links, 1 for all links of the
            plaquettes that contain a defect link, and k for all links of the plaquettes that
            contain a link of shell k - 1.
        sweeps: number of sweeps, >= 1, each with parameters of its own.
        bound: upper bound of :math:`\sum_k |c_k|`, between 0 and 1.

    Raises:
        ValueError: for an action without a defect, and values out of range.
    """

    transfers_to_other_lattices = True

    def __init__(
        self, action: Action, *, width: int = 1, sweeps: int = 1, bound: float = 0.9
    ) -> None:
        super().__init__()
        if not isinstance(action, DefectWilson):
            raise ValueError(
                "a defect flow moves links near the defect of the action wilson_defect, not of "
                f"{action!r}: give wilson_defect, or ladders of this action without flows"
            )
        if width < 0:
            raise ValueError(f"width = {width}: the largest shell that moves is 0 or more")
        if sweeps < 1:
            raise ValueError(f"a defect flow needs at least one sweep, got {sweeps}")
        if not 0 < bound < 1:
            raise ValueError(f"bound must lie between 0 and 1 for a bijection, got {bound}")
        assert isinstance(action.group, (U1, SUN))
        self.group, self.lattice = action.group, action.lattice
        self.width, self.sweeps, self.bound = width, sweeps, bound
        layers, links, moved = defect_layers(action, width + 1)
        self._places = {torch.device("cpu"): (layers, links)}
        self.moved_links = moved
        self.classes = path_classes(width + 1)
        self.weight = nn.Parameter(torch.zeros(sweeps, len(self.classes), dtype=torch.float64))

    def extra_repr(self) -> str:
        return (
            f"{self.group.name}, {'x'.join(map(str, self.lattice))}, width={self.width}, "
            f"sweeps={self.sweeps}, bound={self.bound:g}, moved_links={self.moved_links}, "
            f"parameters={self.weight.numel()}"
        )

    def _place(self, device: torch.device) -> tuple[list[DefectLayer], Tensor]:
        if device not in self._places:
            layers, links = self._places[torch.device("cpu")]
            self._places[device] = [layer.to(device) for layer in layers], links.to(device)
        return self._places[device]

    def _schedule(self, device: torch.device) -> Iterator[tuple[int, int, LinkLayer]]:
        for sweep in range(self.sweeps):
            for number, layer in enumerate(self._place(device)[0]):
                yield sweep, number, layer

    def _enter(self, links: Tensor) -> Tensor:
        return links.index_select(1, self._place(links.device)[1])

    def _leave(self, buffer: Tensor, links: Tensor) -> Tensor:
        moved = buffer[:, : self.moved_links]
        if isinstance(self.group, U1):
            moved = self.group.project(moved)
        index = self._place(links.device)[1][: self.moved_links]
        return links.index_copy(1, index, moved)

    def _coefficients(self, paths: Tensor, sweep: int, number: int, layer: LinkLayer) -> Tensor:
        assert isinstance(layer, DefectLayer)
        return self.weight[sweep][layer.classes]
