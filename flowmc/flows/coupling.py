r"""Affine coupling flow (real NVP) for scalar fields on checkerboard masks.

One layer freezes a colour of the checkerboard and moves the other,

.. math:: \phi_x \to t_x + \phi_x\, e^{s_x}, \qquad \ln|\det| = \sum_x s_x,

with s and t computed by one small convolutional network from the frozen colour.  The colours take
turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowmc.actions import Action
from flowmc.flows.base import Flow
from flowmc.flows.convolution import LatticeConvolution, neighbour_table
from flowmc.lattice import check_even, checkerboard, sum_over_rows

__all__ = ["AffineCouplingFlow"]


class AffineCouplingFlow(Flow):
    r"""Real NVP on a periodic lattice of even extents, in any dimension.

    With the defaults this is the flow of the tutorial by Albergo, Boyda, Hackett, Kanwar, Cranmer,
    Racanière, Rezende and Shanahan, "Introduction to Normalizing Flows for Lattice Field Theory"
    (arXiv:2101.08176): convolutions with leaky ReLU, and a final tanh that bounds s and t by one
    per layer.  Other than there the last convolutions start at zero, so that the flow starts as the
    identity.  It commutes with the translations that preserve the checkerboard.

    With ``odd=True`` it also commutes with :math:`\phi \to -\phi`.  That takes an even s and an
    odd t: the hidden features are odd functions of the frozen field (tanh, no biases), t is a
    convolution of them without bias, and s is one of their squares.

    The field keeps its own precision; the networks run in that of their weights.

    Args:
        action: the theory; gives the lattice.
        layers: number of coupling layers, >= 1; even and odd sites move alternately.
        hidden: channels of the hidden layers.
        kernel_size: extent of the convolutions in every direction, odd.
        odd: make the flow equivariant under a global sign flip.

    Raises:
        ValueError: for a gauge theory, an odd extent or an even kernel size.
    """

    transfers_to_other_lattices = True

    def __init__(
        self,
        action: Action,
        *,
        layers: int = 16,
        hidden: Sequence[int] = (8, 8),
        kernel_size: int = 3,
        odd: bool = False,
    ) -> None:
        super().__init__()
        if action.is_gauge:
            raise ValueError(
                f"AffineCouplingFlow moves scalar fields, but the theory is {action!r}"
            )
        if layers < 1 or not hidden or min(hidden) < 1:
            raise ValueError(
                f"AffineCouplingFlow needs at least one layer and one hidden channel, got layers = "
                f"{layers}, hidden = {list(hidden)}"
            )
        check_even(action.lattice, "AffineCouplingFlow")
        self.lattice = action.lattice
        self.odd = odd
        # Sites are stored colour by colour, so that a colour is a slice.
        colour = checkerboard(action.lattice, 1).flatten().to(torch.int64)
        order = torch.argsort(colour, stable=True)
        position = torch.argsort(order)
        neighbours = position[neighbour_table(action.lattice, kernel_size)[order]]
        self.register_buffer("_order", order, persistent=False)
        self.register_buffer("_position", position, persistent=False)
        self.register_buffer("_neighbours", neighbours, persistent=False)
        offsets = neighbours.shape[1]
        network = _OddNetwork if odd else _Network
        self.networks = nn.ModuleList(network(list(hidden), offsets) for _ in range(layers))

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        colours = self._split(x)
        for layer, network in enumerate(self.networks):
            active = layer % 2
            s, t = self._scale_and_shift(network, colours[1 - active], active)
            colours[active] = torch.addcmul(t, colours[active], torch.exp(s))
            log_density = log_density - sum_over_rows(s)
        return self._join(colours), log_density

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        colours = self._split(y)
        for layer in reversed(range(len(self.networks))):
            active = layer % 2
            s, t = self._scale_and_shift(self.networks[layer], colours[1 - active], active)
            colours[active] = (colours[active] - t) * torch.exp(-s)
            log_density = log_density + sum_over_rows(s)
        return self._join(colours), log_density

    def _split(self, x: Tensor) -> list[Tensor]:
        """Return the even and the odd sites, ``(V/2, chains)`` each."""
        if tuple(x.shape[1:]) != self.lattice:
            raise ValueError(
                f"a field of shape {tuple(x.shape)} does not fit this flow, which was built for "
                f"(chains, {', '.join(map(str, self.lattice))})"
            )
        rows = x.flatten(1).t().index_select(0, self.get_buffer("_order"))
        half = rows.shape[0] // 2
        return [rows[:half], rows[half:]]

    def _join(self, colours: list[Tensor]) -> Tensor:
        rows = torch.cat(colours).index_select(0, self.get_buffer("_position"))
        return rows.t().reshape(-1, *self.lattice)

    def _scale_and_shift(
        self, network: nn.Module, frozen: Tensor, active: int
    ) -> tuple[Tensor, Tensor]:
        """Return s and t at the active sites, ``(V/2, chains)`` each, from the frozen sites."""
        half, dtype = frozen.shape[0], frozen.dtype
        inputs = frozen.to(next(network.parameters()).dtype)
        nothing = torch.zeros_like(inputs)
        h = torch.cat([nothing, inputs] if active == 0 else [inputs, nothing])[:, None]
        rows = (active * half, (active + 1) * half)
        s, t = network(h, self.get_buffer("_neighbours"), rows)
        return s.to(dtype), t.to(dtype)


class _Network(nn.Module):
    """Convolutions with leaky ReLU and a final tanh; the two output channels are s and t."""

    def __init__(self, hidden: list[int], offsets: int) -> None:
        super().__init__()
        widths = [1, *hidden, 2]
        self.convolutions = nn.ModuleList(
            LatticeConvolution(a, b, offsets=offsets, zero=layer == len(hidden))
            for layer, (a, b) in enumerate(pairwise(widths))
        )

    def forward(
        self, h: Tensor, neighbours: Tensor, rows: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        everywhere = (0, h.shape[0])
        for convolution in self.convolutions[:-1]:
            h = functional.leaky_relu(convolution(h, neighbours, everywhere))
        out = torch.tanh(self.convolutions[-1](h, neighbours, rows))
        return out[:, 0], out[:, 1]


class _OddNetwork(nn.Module):
    """Odd hidden features; t is odd in the frozen field and s is even."""

    def __init__(self, hidden: list[int], offsets: int) -> None:
        super().__init__()
        widths = [1, *hidden]
        self.convolutions = nn.ModuleList(
            LatticeConvolution(a, b, offsets=offsets, bias=False) for a, b in pairwise(widths)
        )
        self.shift = LatticeConvolution(hidden[-1], 1, offsets=offsets, bias=False, zero=True)
        self.scale = LatticeConvolution(hidden[-1], 1, offsets=offsets, zero=True)

    def forward(
        self, h: Tensor, neighbours: Tensor, rows: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        everywhere = (0, h.shape[0])
        for convolution in self.convolutions:
            h = torch.tanh(convolution(h, neighbours, everywhere))
        t = torch.tanh(self.shift(h, neighbours, rows))[:, 0]
        s = torch.tanh(self.scale(h.square(), neighbours, rows))[:, 0]
        return s, t
