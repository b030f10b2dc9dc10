r"""Spline coupling on a block of the lattice, conditioned on the frozen sites around it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from flowmc.flows.local.blocks import Block
from flowmc.flows.local.models import ConditionalFlow
from flowmc.flows.parts.convolution import LatticeConvolution, neighbour_table
from flowmc.flows.parts.interval_splines import IntervalSpline
from flowmc.lattice import coordinates, sum_over_rows

__all__ = ["BlockCouplingFlow"]


class BlockCouplingFlow(ConditionalFlow):
    r"""Layers that move one colour of a block's checkerboard, given the other and the collar.

    .. math:: \phi_x \to t_x + e^{s_x}\, h_x(\phi_x), \qquad
              \ln|\det| = \sum_x \big[ s_x + \ln h_x'(\phi_x) \big] ,

    with a monotone rational-quadratic spline h on [-B, B], the identity outside
    (:class:`~flowmc.flows.parts.interval_splines.IntervalSpline`).  Parameters come from
    convolutions over the patch (without wrapping around it: beyond the collar there is nothing)
    whose channels
    have a gain of their own on every site, since a site near the edge of the block is not like one
    in the middle.

    The flow commutes with the simultaneous sign flip of block and collar: hidden features are odd
    functions of what is frozen; t and the difference between the mirrored halves of h are linear
    in them, s and the mean of the halves in their squares.  It starts as the identity.

    With nearest-neighbour interactions the sites of one colour are independent given the rest, each
    with a density that depends on the sum of its neighbours only: the last layers can be exact.

    Args:
        block: the block; gives the collar.
        layers: number of coupling layers; even and odd sites move alternately.  With 0 the flow is
            the identity.
        hidden: channels of the hidden layers.
        kernel_size: extent of the convolutions in every direction, odd.
        bins: number of bins on either side of 0.
        bound: B, in units of the field.

    Raises:
        ValueError: for values out of range.
    """

    def __init__(
        self,
        block: Block,
        *,
        layers: int = 8,
        hidden: Sequence[int] = (16,),
        kernel_size: int = 3,
        bins: int = 4,
        bound: float = 2.5,
    ) -> None:
        super().__init__()
        if layers < 0 or not hidden or min(hidden) < 1:
            raise ValueError(
                "BlockCouplingFlow needs layers >= 0 and hidden channels, got layers = "
                f"{layers}, hidden = {list(hidden)}"
            )
        if bins < 1 or not 0 < bound < math.inf:
            raise ValueError(
                f"BlockCouplingFlow needs bins >= 1 and a bound > 0, got {bins} and {bound}"
            )
        self.block, self.bins, self.bound = block, bins, float(bound)
        colour = torch.stack(coordinates(block.extents)).sum(0).flatten() % 2
        # Rows: one colour of the block, the other, the collar, and one for all that is outside.
        order = torch.argsort(colour, stable=True)
        even = int((colour == 0).sum())
        rows = torch.cat([block.inside[order], block.collar])
        position = torch.full((math.prod(block.patch) + 1,), len(rows))
        position[rows] = torch.arange(len(rows))
        neighbours = position[neighbour_table(block.patch, kernel_size, periodic=False)]
        outside = torch.full_like(neighbours[:1], len(rows))
        self.register_buffer("_order", order, persistent=False)
        self.register_buffer("_position", torch.argsort(order), persistent=False)
        table = torch.cat([neighbours[rows], outside])
        self.register_buffer("_neighbours", table, persistent=False)
        # A block of one site has one colour.
        self._rows = [(0, even), (even, block.sites)] if block.sites > 1 else [(0, 1)]
        self.networks = nn.ModuleList(
            _Network(
                list(hidden), table.shape[1], len(table), self._rows[self._active(layer)], bins
            )
            for layer in range(layers)
        )

    def _active(self, layer: int) -> int:
        """Return the colour that a layer moves."""
        return layer % len(self._rows)

    def extra_repr(self) -> str:
        return f"{self.block!r}, bins={self.bins}, bound={self.bound:g}"

    def forward(self, x: Tensor, patch: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        colours, frozen = self._split(x, patch)
        for layer, network in enumerate(self.networks):
            active = self._active(layer)
            spline, s, t = self._transformation(network, colours, frozen, active)
            y, log_derivative = spline.forward(colours[active])
            colours[active] = t + s.exp() * y
            log_density = log_density - sum_over_rows(log_derivative + s)
        return self._join(colours, x), log_density

    def inverse(self, y: Tensor, patch: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        colours, frozen = self._split(y, patch)
        for layer in reversed(range(len(self.networks))):
            active = self._active(layer)
            spline, s, t = self._transformation(self.networks[layer], colours, frozen, active)
            moved = (colours[active] - t) * (-s).exp()
            colours[active], log_derivative = spline.inverse(moved)
            log_density = log_density + sum_over_rows(log_derivative + s)
        return self._join(colours, y), log_density

    def _split(self, x: Tensor, patch: Tensor) -> tuple[list[Tensor], Tensor]:
        """Return both colours ``(rows, n)`` in float64, and the collar likewise."""
        sites = x.flatten(1).double().t().index_select(0, self.get_buffer("_order"))
        even = self._rows[0][1]
        collar = self.block.collar.to(patch.device)
        return [sites[:even], sites[even:]], patch.flatten(1).double().t().index_select(0, collar)

    def _join(self, colours: list[Tensor], like: Tensor) -> Tensor:
        rows = torch.cat(colours).index_select(0, self.get_buffer("_position"))
        return rows.t().reshape(like.shape).to(like.dtype)

    def _transformation(
        self, network: nn.Module, colours: list[Tensor], frozen: Tensor, active: int
    ) -> tuple[IntervalSpline, Tensor, Tensor]:
        """Return the spline, s and t of the sites that move."""
        nothing = torch.zeros_like(colours[active])
        seen = [nothing, colours[1]] if active == 0 else [colours[0], nothing]
        h = torch.cat([*seen, frozen, torch.zeros_like(frozen[:1])])
        h = h.to(next(network.parameters()).dtype)[:, None]
        even, odd = network(h, self.get_buffer("_neighbours"))
        even, odd = even.double(), odd.double()
        spline = IntervalSpline(even[:, 1:], odd[:, 1:], self.bound)
        return spline, torch.tanh(even[:, 0]), odd[:, 0]


class _Network(nn.Module):
    """Odd hidden features of the patch; two pointwise heads at the sites that move.

    Args:
        hidden: channels.
        offsets: of the kernel.
        sites: rows of the patch, the one outside included.
        rows: range of the sites that move.
        bins: of the splines.
    """

    def __init__(
        self, hidden: list[int], offsets: int, sites: int, rows: tuple[int, int], bins: int
    ) -> None:
        super().__init__()
        widths = [1, *hidden]
        self.rows = rows
        # All but the last are needed everywhere.
        ranges = [(0, sites)] * (len(hidden) - 1) + [rows]
        self.ranges = ranges
        self.convolutions = nn.ModuleList(
            LatticeConvolution(a, b, offsets=offsets, bias=False) for a, b in pairwise(widths)
        )
        self.gains = nn.ParameterList(
            torch.ones(last - first, width)
            for (first, last), width in zip(ranges, hidden, strict=True)
        )
        moving, outputs = rows[1] - rows[0], 1 + 3 * bins
        self.even = LatticeConvolution(hidden[-1], outputs, offsets=1, bias=False, zero=True)
        self.odd = LatticeConvolution(hidden[-1], outputs, offsets=1, bias=False, zero=True)
        self.bias = nn.Parameter(torch.zeros(moving, outputs))
        self.register_buffer("_itself", torch.arange(moving)[:, None], persistent=False)

    def forward(self, h: Tensor, neighbours: Tensor) -> tuple[Tensor, Tensor]:
        """Return even and odd outputs ``(rows, 1 + 3 bins, n)`` of ``h (sites, 1, n)``."""
        for convolution, gain, rows in zip(self.convolutions, self.gains, self.ranges, strict=True):
            h = torch.tanh(gain[..., None] * convolution(h, neighbours, rows))
        itself, rows = self.get_buffer("_itself"), (0, len(h))
        even = self.even(h.square(), itself, rows) + self.bias[..., None]
        return even, self.odd(h, itself, rows)
