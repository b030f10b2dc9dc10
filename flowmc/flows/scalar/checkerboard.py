"""What coupling flows of scalar fields share: colours of sites that take turns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from flowmc.actions import Action
from flowmc.flows.base import Flow
from flowmc.flows.parts.convolution import neighbour_table
from flowmc.lattice import check_even, coordinates, sum_over_rows

__all__ = ["CheckerboardFlow", "NetworkInputs"]

NetworkInputs = tuple[Tensor, Tensor, tuple[int, int]]
"""Of a layer's network: the frozen field on all sites ``(V, 1, chains)``, with zeros at the sites
that move, the table of neighbours, and the range of rows of the sites that move."""


class CheckerboardFlow(Flow):
    r"""Layers that move one colour of sites, site by site, and freeze the others.

    With the masks "checkerboard" the colours are the two of x_0 + x_1 + ... modulo 2.  With
    "blocks" they are the :math:`2^d` positions in a block of two sites in every direction; such a
    flow commutes with the translations by two sites only, and can do what distinguishes a block
    from its neighbours: what a :class:`~flowmc.flows.SuperResolutionPrior` leaves to do.

    A subclass fills :attr:`networks`, one for each layer, and says what a layer does with what its
    network makes of the frozen colours.

    The field keeps its own precision; the networks run in that of their weights.

    Args:
        action: the theory; gives the lattice.
        layers: number of coupling layers, >= 1; the colours move in turn.
        hidden: channels of the hidden layers, as the subclass uses them.
        kernel_size: extent of the convolutions in every direction, odd.
        masks: "checkerboard" or "blocks".

    Attributes:
        networks: one module per layer, called with :data:`NetworkInputs`.
        offsets: number of kernel offsets.
        colours: number of colours.

    Raises:
        ValueError: for a gauge theory, an odd extent, an even kernel size or unknown masks.
    """

    transfers_to_other_lattices = True
    networks: nn.ModuleList

    def __init__(
        self,
        action: Action,
        *,
        layers: int,
        hidden: Sequence[int],
        kernel_size: int,
        masks: Literal["checkerboard", "blocks"],
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if not action.is_scalar:
            raise ValueError(f"{name} moves scalar fields, but the theory is {action!r}")
        if layers < 1 or not hidden or min(hidden) < 1:
            raise ValueError(
                f"{name} needs at least one layer and one hidden channel, got layers = "
                f"{layers}, hidden = {list(hidden)}"
            )
        check_even(action.lattice, name)
        self.lattice = action.lattice
        # Sites are stored colour by colour, so that a colour is a slice.
        if masks == "checkerboard":
            self.colours = 2
            colour = torch.stack(coordinates(action.lattice)).sum(0).flatten() % 2
        elif masks == "blocks":
            self.colours = 2**action.dimensions
            colour = torch.zeros(action.volume, dtype=torch.int64)
            for site in coordinates(action.lattice):
                colour = 2 * colour + site.flatten() % 2
        else:
            raise ValueError(f"unknown masks {masks!r}: use 'checkerboard' or 'blocks'")
        order = torch.argsort(colour, stable=True)
        position = torch.argsort(order)
        neighbours = position[neighbour_table(action.lattice, kernel_size)[order]]
        self.register_buffer("_order", order, persistent=False)
        self.register_buffer("_position", position, persistent=False)
        self.register_buffer("_neighbours", neighbours, persistent=False)
        self.offsets = neighbours.shape[1]

    @abstractmethod
    def _forward_layer(
        self, network: nn.Module, inputs: NetworkInputs, moving: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Move sites ``(V/colours, chains)``; return them and ln of the derivative of each."""

    @abstractmethod
    def _inverse_layer(
        self, network: nn.Module, inputs: NetworkInputs, moved: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Move the sites back; return them and ln of the derivative *of the forward map*."""

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        colours = self._split(x)
        for layer, network in enumerate(self.networks):
            active = layer % self.colours
            inputs = self._inputs(network, colours, active)
            colours[active], log_derivative = self._forward_layer(network, inputs, colours[active])
            log_density = log_density - sum_over_rows(log_derivative)
        return self._join(colours), log_density

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        colours = self._split(y)
        for layer in reversed(range(len(self.networks))):
            network, active = self.networks[layer], layer % self.colours
            inputs = self._inputs(network, colours, active)
            colours[active], log_derivative = self._inverse_layer(network, inputs, colours[active])
            log_density = log_density + sum_over_rows(log_derivative)
        return self._join(colours), log_density

    def _split(self, x: Tensor) -> list[Tensor]:
        """Return the sites of each colour, ``(V/colours, chains)``."""
        if tuple(x.shape[1:]) != self.lattice:
            raise ValueError(
                f"a field of shape {tuple(x.shape)} does not fit this flow, which was built for "
                f"(chains, {', '.join(map(str, self.lattice))})"
            )
        rows = x.flatten(1).t().index_select(0, self.get_buffer("_order"))
        return list(rows.chunk(self.colours))

    def _join(self, colours: list[Tensor]) -> Tensor:
        rows = torch.cat(colours).index_select(0, self.get_buffer("_position"))
        return rows.t().reshape(-1, *self.lattice)

    def _inputs(self, network: nn.Module, colours: list[Tensor], active: int) -> NetworkInputs:
        size = colours[active].shape[0]
        dtype = next(network.parameters()).dtype
        frozen = [colour.to(dtype) for colour in colours]
        frozen[active] = torch.zeros_like(frozen[active])
        h = torch.cat(frozen)[:, None]
        return h, self.get_buffer("_neighbours"), (active * size, (active + 1) * size)
