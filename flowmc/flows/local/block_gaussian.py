r"""The free field of a block given its boundary: the prior of local flows."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.actions.scalar import HoppingAction
from flowmc.flows.local.blocks import Block
from flowmc.flows.local.models import ConditionalPrior
from flowmc.flows.parts.products import contract, multiply
from flowmc.lattice import sum_over_rows

__all__ = ["BlockGaussian"]


class BlockGaussian(ConditionalPrior):
    r"""The conditional Gaussian of a free field with a mass of its own on every site of the block.

    With the hopping matrix A of nearest neighbours inside the block and J between block and collar,

    .. math:: -\ln q(\phi | \phi_\partial) = \tfrac12 (\phi - \mu)^T Q\, (\phi - \mu)
              - \tfrac12 \ln\det \frac{Q}{2\pi}, \qquad
              Q = 2 \big( 2d\,|k| + M_x \big) \delta - 2 k A, \qquad Q \mu = 2 k J \phi_\partial .

    The mean is the harmonic extension of the boundary, the covariance the propagator that vanishes
    there.  For the free field of :class:`~flowmc.actions.FreeScalar` with :math:`M_x = m^2` this is
    the exact heat bath of the block.  k and the :math:`M_x > 0` are trained; the best Gaussian of
    an interacting theory has :math:`2d|k| + M = a + 6 \lambda \langle\phi^2\rangle`.

    Drawn and evaluated in float64 by the Cholesky factor of Q.

    Args:
        action: the theory; gives the first value of k (1 for actions other than of hopping form).
        block: the block.
        m2: :math:`M_x / |k|` before training, > 0.

    Raises:
        ValueError: for a mass that is not positive.
    """

    def __init__(self, action: Action, block: Block, *, m2: float = 1.0) -> None:
        super().__init__()
        if not 0 < m2 < math.inf:
            raise ValueError(f"the conditional Gaussian of a block needs m2 > 0, got {m2}")
        self.block = block
        hopping = action.k if isinstance(action, HoppingAction) and action.k else 1.0
        self.hopping = nn.Parameter(torch.tensor(hopping))
        self.log_mass = nn.Parameter(torch.full((block.sites,), math.log(m2 * abs(hopping))))
        adjacent = _adjacency(block)
        self.register_buffer("_inner", adjacent[:, block.inside], persistent=False)
        self.register_buffer("_outer", adjacent[:, block.collar], persistent=False)

    def push(self, noise: Tensor, patch: Tensor) -> tuple[Tensor, Tensor]:
        factor = self._factor()
        z = noise.flatten(1).t()
        x = self._mean(patch, factor) + multiply(_inverse(factor).mT, z[None])[0]
        x = x.t().reshape(-1, *self.block.extents).to(patch.dtype)
        return x, self._log_density(z, factor)

    def log_prob(self, x: Tensor, patch: Tensor) -> Tensor:
        factor = self._factor()
        difference = x.flatten(1).t().double() - self._mean(patch, factor)
        return self._log_density(multiply(factor.mT, difference[None])[0], factor)

    def _factor(self) -> Tensor:
        """Return the lower Cholesky factor L of Q, ``(sites, sites)`` float64."""
        hopping = self.hopping.double()
        diagonal = 2 * len(self.block.extents) * hopping.abs() + self.log_mass.double().exp()
        matrix = 2 * diagonal.diag() - 2 * hopping * self.get_buffer("_inner").double()
        return torch.linalg.cholesky(matrix)

    def _mean(self, patch: Tensor, factor: Tensor) -> Tensor:
        """Return the harmonic extension, ``(sites, n)`` float64."""
        frozen = patch.flatten(1).t()[self.block.collar.to(patch.device)].double()
        outer = 2 * self.hopping.double() * self.get_buffer("_outer").double()
        inverse = _inverse(factor)
        # Not cholesky_solve, whose rounding depends on the number of threads.
        extension = contract(inverse.mT, contract(inverse, outer))
        return multiply(extension, frozen[None])[0]

    @staticmethod
    def _log_density(z: Tensor, factor: Tensor) -> Tensor:
        """Return ln q for ``z = L^T (phi - mu)``, ``(sites, n)``."""
        norm = factor.diagonal().log().sum() - 0.5 * len(z) * math.log(2 * math.pi)
        return norm - 0.5 * sum_over_rows(z.square())

    def extra_repr(self) -> str:
        return repr(self.block)


def _inverse(factor: Tensor) -> Tensor:
    identity = torch.eye(len(factor), dtype=factor.dtype, device=factor.device)
    return torch.linalg.solve_triangular(factor, identity, upper=False)


def _adjacency(block: Block) -> Tensor:
    """Return 1 where a site of the block and one of the patch are neighbours: ``(sites, patch)``.

    Without the links that close the patch periodically: none of them meets the block.
    """
    grid = torch.arange(math.prod(block.patch)).reshape(block.patch)
    adjacent = torch.zeros(block.sites, grid.numel())
    row = torch.arange(block.sites)
    for axis in range(grid.dim()):
        for step in (1, -1):
            neighbour = grid.roll(step, axis).flatten()[block.inside]
            adjacent[row, neighbour] = 1.0
    return adjacent
