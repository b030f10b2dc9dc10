"""What coupling flows of scalar fields share: checkerboard colours that take turns."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowmc.actions import Action
from flowmc.flows.base import Flow
from flowmc.flows.convolution import neighbour_table
from flowmc.lattice import check_even, checkerboard, sum_over_rows

__all__ = ["CheckerboardFlow", "NetworkInputs"]

NetworkInputs = tuple[Tensor, Tensor, tuple[int, int]]
"""Of a layer's network: the frozen field on all sites ``(V, 1, chains)``, with zeros at the sites
that move, the table of neighbours, and the range of rows of the sites that move."""


class CheckerboardFlow(Flow):
    """Layers that freeze a colour of the checkerboard and move the other, site by site.

    A subclass fills :attr:`networks`, one for each layer, and says what a layer does with what its
    network makes of the frozen colour.

    The field keeps its own precision; the networks run in that of their weights.

    Args:
        action: the theory; gives the lattice.
        layers: number of coupling layers, >= 1; even and odd sites move alternately.
        hidden: channels of the hidden layers, as the subclass uses them.
        kernel_size: extent of the convolutions in every direction, odd.

    Attributes:
        networks: one module per layer, called with :data:`NetworkInputs`.
        offsets: number of kernel offsets.

    Raises:
        ValueError: for a gauge theory, an odd extent or an even kernel size.
    """

    transfers_to_other_lattices = True
    networks: nn.ModuleList

    def __init__(
        self, action: Action, *, layers: int, hidden: Sequence[int], kernel_size: int
    ) -> None:
        super().__init__()
        name = type(self).__name__
        if action.is_gauge:
            raise ValueError(f"{name} moves scalar fields, but the theory is {action!r}")
        if layers < 1 or not hidden or min(hidden) < 1:
            raise ValueError(
                f"{name} needs at least one layer and one hidden channel, got layers = "
                f"{layers}, hidden = {list(hidden)}"
            )
        check_even(action.lattice, name)
        self.lattice = action.lattice
        # Sites are stored colour by colour, so that a colour is a slice.
        colour = checkerboard(action.lattice, 1).flatten().to(torch.int64)
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
        """Move the sites ``(V/2, chains)``; return them and ln of the derivative of each."""

    @abstractmethod
    def _inverse_layer(
        self, network: nn.Module, inputs: NetworkInputs, moved: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Move the sites back; return them and ln of the derivative *of the forward map*."""

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        colours = self._split(x)
        for layer, network in enumerate(self.networks):
            active = layer % 2
            inputs = self._inputs(network, colours[1 - active], active)
            colours[active], log_derivative = self._forward_layer(network, inputs, colours[active])
            log_density = log_density - sum_over_rows(log_derivative)
        return self._join(colours), log_density

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        colours = self._split(y)
        for layer in reversed(range(len(self.networks))):
            network, active = self.networks[layer], layer % 2
            inputs = self._inputs(network, colours[1 - active], active)
            colours[active], log_derivative = self._inverse_layer(network, inputs, colours[active])
            log_density = log_density + sum_over_rows(log_derivative)
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

    def _inputs(self, network: nn.Module, frozen: Tensor, active: int) -> NetworkInputs:
        half = frozen.shape[0]
        inputs = frozen.to(next(network.parameters()).dtype)
        nothing = torch.zeros_like(inputs)
        h = torch.cat([nothing, inputs] if active == 0 else [inputs, nothing])[:, None]
        return h, self.get_buffer("_neighbours"), (active * half, (active + 1) * half)
