r"""Convolutions on a periodic lattice of any dimension, with the chains in the last axis.

Coupling flows evaluate many tiny networks.  With a handful of channels the library convolutions
spend their time on padding and reordering; here sites are rows, :math:`h_{x,c,n}` with the chains
``n`` contiguous, so that gathering the neighbours of all sites is a copy of whole rows and the rest
is one batched matrix product.  Nothing depends on the number of lattice dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowmc.flows.parts.products import multiply
from flowmc.lattice import coordinates

__all__ = ["LatticeConvolution", "neighbour_table"]


def neighbour_table(lattice: Sequence[int], kernel_size: int, *, periodic: bool = True) -> Tensor:
    """Return the site index of ``x + o`` for all sites x and kernel offsets o, ``(V, k^d)`` int64.

    Sites and offsets are in C order; offsets run over ``-(k - 1)/2 .. (k - 1)/2`` per direction,
    so that reversing the order of a row negates its offsets.  Without periodic boundaries a
    neighbour that is outside has the index V.

    Raises:
        ValueError: if ``kernel_size`` is not odd and positive.
    """
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise ValueError(
            f"kernel_size = {kernel_size}: a convolution centred on its site needs an odd size"
        )
    reach = kernel_size // 2
    offsets = [grid.flatten() - reach for grid in coordinates([kernel_size] * len(lattice))]
    table = torch.zeros(math.prod(lattice), kernel_size ** len(lattice), dtype=torch.int64)
    outside = torch.zeros_like(table, dtype=torch.bool)
    for extent, site, offset in zip(lattice, coordinates(lattice), offsets, strict=True):
        at = site.reshape(-1, 1) + offset
        outside |= (at < 0) | (at >= extent)
        table = table * extent + at % extent
    return table if periodic else torch.where(outside, math.prod(lattice), table)


class LatticeConvolution(nn.Module):
    r"""A convolution :math:`(Wh)_{x,c} = b_c + \sum_{o,c'} W_{c,o,c'} h_{x+o,c'}`, periodic.

    The weights are ``(out, k^d, in)`` with the offsets in the order of :func:`neighbour_table`, and
    start uniform in :math:`\pm 1/\sqrt{k^d \cdot \mathrm{in}}`, as do the biases, or at zero.

    Args:
        channels_in: channels of the input.
        channels_out: channels of the output.
        offsets: number of kernel offsets ``k^d``.
        bias: whether a constant is added; without one the map is odd.
        zero: start as the zero map.
    """

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        *,
        offsets: int,
        bias: bool = True,
        zero: bool = False,
    ) -> None:
        super().__init__()
        bound = 0.0 if zero else 1 / math.sqrt(channels_in * offsets)
        weight = torch.empty(channels_out, offsets, channels_in)
        self.weight = nn.Parameter(nn.init.uniform_(weight, -bound, bound))
        self.bias = (
            nn.Parameter(nn.init.uniform_(torch.empty(channels_out), -bound, bound))
            if bias
            else None
        )

    def forward(self, h: Tensor, neighbours: Tensor, rows: tuple[int, int]) -> Tensor:
        """Return the convolution at the sites ``rows[0] <= x < rows[1]``.

        Args:
            h: ``(V, in, chains)``.
            neighbours: ``(V, k^d)`` site indices, see :func:`neighbour_table`.
            rows: range of output sites.

        Returns:
            ``(rows[1] - rows[0], out, chains)``.
        """
        return _Convolution.apply(h, self.weight, self.bias, neighbours, rows)


def _gather(h: Tensor, neighbours: Tensor) -> Tensor:
    """Return the neighbourhoods of the sites in the table, ``(rows, k^d * channels, chains)``."""
    sites, channels, chains = h.shape
    rows, offsets = neighbours.shape
    columns = h.reshape(sites, channels * chains).index_select(0, neighbours.reshape(-1))
    return columns.view(rows, offsets * channels, chains)


class _Convolution(torch.autograd.Function):
    """The product with gathered neighbourhoods, forward and backward.

    The backward pass gathers as well (with reversed offsets) where automatic differentiation would
    scatter, which is several times slower.
    """

    @staticmethod
    def forward(ctx, h, weight, bias, neighbours, rows):
        ctx.save_for_backward(h, weight, neighbours)
        ctx.rows = rows
        ctx.has_bias = bias is not None
        columns = _gather(h, neighbours[rows[0] : rows[1]])
        return multiply(weight.reshape(weight.shape[0], -1), columns, bias)

    @staticmethod
    def backward(ctx, gradient):
        h, weight, neighbours = ctx.saved_tensors
        sites, channels_in, chains = h.shape
        channels_out, offsets, _ = weight.shape
        start, stop = ctx.rows
        gradient_bias = gradient.sum((0, 2)) if ctx.has_bias else None
        if (start, stop) != (0, sites):
            before = gradient.new_zeros(start, channels_out, chains)
            after = gradient.new_zeros(sites - stop, channels_out, chains)
            gradient = torch.cat([before, gradient, after])
        # Site y feeds the outputs y - o; flipping a row of the table negates its offsets.
        columns = _gather(gradient, neighbours.flip(1))
        gradient_h = gradient_weight = None
        if ctx.needs_input_grad[1]:
            product = torch.bmm(columns, h.transpose(1, 2)).sum(0)
            product = product.view(offsets, channels_out, channels_in)
            gradient_weight = product.transpose(0, 1)
        if ctx.needs_input_grad[0]:
            matrix = weight.permute(2, 1, 0).reshape(channels_in, -1)
            gradient_h = torch.bmm(matrix.expand(sites, -1, -1), columns)
        return gradient_h, gradient_weight, gradient_bias, None, None
