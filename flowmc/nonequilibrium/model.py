r"""Stochastic normalizing flows as one more sampler with weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from flowmc.flows.base import Chain, Flow
from flowmc.flows.models import Model
from flowmc.nonequilibrium.process import Evolution, Process

__all__ = ["StochasticFlow"]


class StochasticFlow(Model, nn.Module):
    r"""A prior driven through a process: draws with the log-density of their *path*.

    ``sample(n, rng) -> (x, log q)`` as for :class:`~flowmc.flows.FlowModel`, with

    .. math:: \ln q = \ln r(x_0) - \sum_n J_n - Q , \qquad -W = -S_N(x) - \ln q ,

    so that every estimator from weights serves as it is: :math:`\langle e^{-W} \rangle = Z_N` and
    :math:`\langle O \rangle = \langle O e^{-W} \rangle / \langle e^{-W} \rangle`.  Without flow
    layers this is annealed importance sampling.

    Args:
        prior: where x_0 is drawn.
        process: from there to the target.
    """

    def __init__(self, prior: Model, process: Process) -> None:
        super().__init__()
        self.prior, self.process = prior, process

    @property
    def flow(self) -> Flow:
        """All flow layers in order, without the updates between them."""
        return Chain(layer for layer in self.process.flows if isinstance(layer, Flow))

    @property
    def log_density_is_exact(self) -> bool:  # type: ignore[override]
        """Whether the work is that of the discrete maps; see :class:`~flowmc.flows.Flow`."""
        return self.flow.log_density_is_exact and self.prior.log_density_is_exact

    def starts(self, n: int, rng: torch.Generator) -> Tensor:
        return self.prior.sample(n, rng)[0]

    def density_error(self, start: Tensor) -> Tensor:
        """Return an estimate of the error of the work of all flows, ``(n,)`` >= 0."""
        return self.flow.density_error(start) + self.prior.density_error(start)

    def sample(self, n: int, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw; return ``x (n, ...)`` and the log-density of its path ``(n,)`` float64."""
        evolution = self.evolve(n, rng)
        return evolution.field, evolution.work - evolution.action

    def evolve(self, n: int, rng: torch.Generator) -> Evolution:
        """Draw ``n`` fields of the prior and drive them to the target."""
        x, log_prior = self.prior.sample(n, rng)
        return self.process(x, log_prior, rng)

    def reverse(self, y: Tensor, rng: torch.Generator) -> Evolution:
        """Drive samples of the target back to the prior."""
        return self.process.reverse(y, self.prior.log_prob, rng)

    def log_prob(self, x: Tensor) -> Tensor:
        """Raise ``TypeError``: a field alone has no density here, only a path to it has."""
        raise TypeError(
            "a stochastic normalizing flow has no density of a field: many paths lead to it; use "
            "reverse(), whose work is what estimators from target samples need"
        )
