r"""The contract of local flow models: a block of the lattice, drawn given its frozen surroundings.

The proposal density :math:`q(\phi_B | \phi_{\partial B})` is a conditional prior pushed through a
conditional flow.  Both are told the patch of a block
(:class:`~flowmc.flows.local.blocks.Block`) and look at its collar only: what a
patch holds in the middle must not change any result.  Nothing knows the extents of the lattice, so
a model trained on a small lattice serves any other.

Blocks are ``(n, *extents)``, patches ``(n, *patch)``, log-densities ``(n,)`` float64.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.flows.base import weights_of_same_class
from flowmc.flows.local.blocks import Block
from flowmc.identity import Identified, identity

__all__ = ["ConditionalFlow", "ConditionalPrior", "LocalFlowModel", "block_action_difference"]


class ConditionalFlow(Identified, nn.Module, ABC):
    """An invertible map of blocks for every patch; densities pass through as in a Flow."""

    transfers_to_other_lattices = True

    @abstractmethod
    def forward(self, x: Tensor, patch: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        """Map blocks ``x``; return ``y`` and ``log_density - log|det dy/dx|``."""

    @abstractmethod
    def inverse(self, y: Tensor, patch: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        """Map back; return ``x`` and ``log_density + log|det dy/dx|``."""


class ConditionalPrior(Identified, nn.Module, ABC):
    """A distribution of blocks for every patch, as a map of independent normal numbers."""

    @abstractmethod
    def push(self, noise: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the blocks and their log-densities.

        Args:
            noise: ``(n, *extents)`` float64, independent standard normal.
            patch: ``(n, *patch)``.
        """

    @abstractmethod
    def log_prob(self, x: Tensor, patch: Tensor) -> Tensor:
        """Return the log-densities of given blocks."""


class LocalFlowModel(Identified, nn.Module):
    r"""A conditional prior pushed through a conditional flow.

    Args:
        block: what is drawn.
        prior: where it starts.
        flow: the map.
    """

    def __init__(self, block: Block, prior: ConditionalPrior, flow: ConditionalFlow) -> None:
        super().__init__()
        self.block, self.prior, self.flow = block, prior, flow

    def push(self, noise: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
        """Return the blocks and log-densities of given noise; see :class:`ConditionalPrior`."""
        x, log_density = self.prior.push(noise, patch)
        return self.flow.forward(x, patch, log_density)

    def sample(self, patch: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw one block for every patch; return it and its log-density."""
        return self.push(self.noise(len(patch), rng), patch)

    def noise(self, n: int, rng: torch.Generator) -> Tensor:
        """Draw what :meth:`push` takes."""
        shape = (n, *self.block.extents)
        return torch.randn(shape, dtype=torch.float64, device=rng.device, generator=rng)

    def log_prob(self, x: Tensor, patch: Tensor) -> Tensor:
        """Return the log-densities of given blocks by the inverse flow."""
        zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
        start, minus_prior = self.flow.inverse(x, patch, zero)
        return self.prior.log_prob(start, patch) - minus_prior

    def at(self, action: Action) -> LocalFlowModel:
        """Return this model: a local flow is not conditional on the couplings."""
        return self

    def weights_from(self, old: nn.Module, action: Action) -> Mapping[str, Tensor]:
        """Return those of prior and flow of a trained one, as a flow does its own."""
        return weights_of_same_class(self, old)

    def fingerprint(self) -> str:
        """Return a short digest of block, prior, flow and weights."""
        return identity(self)


def block_action_difference(
    patch_action: Action, block: Block, new: Tensor, patch: Tensor
) -> Tensor:
    r"""Return :math:`S(\phi'_B, \phi_{\partial B}) - S(\phi_B, \phi_{\partial B})`, ``(n,)``.

    Both are actions of whole patches, closed periodically: the terms in which they differ from the
    action of the lattice hold frozen sites only, and cancel.

    Args:
        patch_action: the action on a lattice of the extents of the patch.
        block: where it is.
        new: the other blocks, ``(n, *extents)``.
        patch: with the old blocks in the middle.
    """
    return patch_action(block.put(new, patch)) - patch_action(patch)
