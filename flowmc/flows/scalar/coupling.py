r"""Affine coupling flow (real NVP) for scalar fields on checkerboard masks.

One layer freezes a colour of the checkerboard and moves the other,

.. math:: \phi_x \to t_x + \phi_x\, e^{s_x}, \qquad \ln|\det| = \sum_x s_x,

with s and t computed by one small convolutional network from the frozen colour.  The colours take
turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from flowmc.actions import Action
from flowmc.flows.parts.convolution import LatticeConvolution
from flowmc.flows.scalar.checkerboard import CheckerboardFlow, NetworkInputs

__all__ = ["AffineCouplingFlow"]


class AffineCouplingFlow(CheckerboardFlow):
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
        layers: number of coupling layers, >= 1; the colours move in turn.
        hidden: channels of the hidden layers.
        kernel_size: extent of the convolutions in every direction, odd.
        odd: make the flow equivariant under a global sign flip.
        masks: which sites move together: the colours of a checkerboard, or the positions in a
            block of two sites in every direction
            (:class:`~flowmc.flows.scalar.checkerboard.CheckerboardFlow`).

    Raises:
        ValueError: for a gauge theory, an odd extent or an even kernel size.
    """

    def __init__(
        self,
        action: Action,
        *,
        layers: int = 16,
        hidden: Sequence[int] = (8, 8),
        kernel_size: int = 3,
        odd: bool = False,
        masks: Literal["checkerboard", "blocks"] = "checkerboard",
    ) -> None:
        super().__init__(action, layers=layers, hidden=hidden, kernel_size=kernel_size, masks=masks)
        self.odd = odd
        network = _OddNetwork if odd else _Network
        self.networks = nn.ModuleList(network(list(hidden), self.offsets) for _ in range(layers))

    def _forward_layer(
        self, network: nn.Module, inputs: NetworkInputs, moving: Tensor
    ) -> tuple[Tensor, Tensor]:
        s, t = (value.to(moving.dtype) for value in network(*inputs))
        return torch.addcmul(t, moving, torch.exp(s)), s

    def _inverse_layer(
        self, network: nn.Module, inputs: NetworkInputs, moved: Tensor
    ) -> tuple[Tensor, Tensor]:
        s, t = (value.to(moved.dtype) for value in network(*inputs))
        return (moved - t) * torch.exp(-s), s


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
