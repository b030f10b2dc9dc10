r"""Objectives that need the action's values alone, never its derivative.

Both see how the flow's density changes at fixed fields, :math:`\partial_\theta \ln q_\theta(x)`,
and the numbers :math:`g(x) = \ln q(x) + S(x) = -\ln w(x)`.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.flows.models import FlowModel
from flowmc.parallel import Communicator
from flowmc.registry import ConfigError
from flowmc.training.density import DensityAt, MixtureAt, ModelDensity
from flowmc.training.ensemble import Ensemble
from flowmc.training.objectives.base import Batch, SamplerObjective, nothing
from flowmc.training.stored import StoredConfigurations

__all__ = ["LogVariance", "Reinforce"]


class Reinforce(SamplerObjective):
    r"""The reverse Kullback-Leibler divergence up to ln Z, by the score-function gradient.

    The loss is that of :class:`~flowmc.training.ReverseKL`.  Its gradient is estimated without the
    derivative of the action,

    .. math::
        \partial_\theta L = \langle g\, \partial_\theta \ln q_\theta \rangle_q \approx
        \frac1n \sum_i \Big( g_i - \frac{1}{n - 1} \sum_{j \ne i} g_j \Big)
        \partial_\theta \ln q_\theta(x_i) , \qquad g = \ln q + S

    (P. Bialas, P. Korcyl, T. Stebel, arXiv:2202.01314).  The mean of the other samples is
    independent of sample i, so that subtracting it leaves the estimate unbiased; it makes the
    estimate zero, sample by sample, where q = p.  Use it for actions whose force is costly or does
    not exist; it has more noise than the path gradient.

    Args:
        model: prior and flow.
        action: the target; only its values are used.
    """

    def __init__(self, model: FlowModel, action: Action) -> None:
        super().__init__(model, action)
        self.density = ModelDensity(model, action.group)

    def distribute(self, communicator: Communicator) -> None:
        super().distribute(communicator)
        self.density.distribute(communicator)

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        _check_size(self, n)
        rows, at, g = _flow_samples(self, self.density, n, rng)
        centred = g - _sum(self.communicator, g) / n
        if at is None:
            return nothing(rows)
        return Batch(at.score(centred / (n - 1)), g.sum() / n, -g, rows)


class LogVariance(SamplerObjective):
    r"""Half the variance of the log-weights under a fixed distribution r of fields.

    .. math:: L = \tfrac12 \mathrm{Var}_{x \sim r} [\ln q_\theta(x) + S(x)]

    (L. Richter, A. Boustati, N. Nüsken, F.J.R. Ruiz, Ö.D. Akyildiz, arXiv:2010.10258).  It is zero
    for q = p and positive otherwise, whatever r, if that has probability everywhere; no samples
    have to come from the flow and no derivative of the action is needed.  The
    gradient, that of the sample variance with its factor 1/(n - 1), is unbiased, and zero batch by
    batch where q = p.

    r is the flow as it stands, or a mixture of it with configurations of the target,
    :math:`r = (1 - a)\, q + a\, p`, whose log-weights are compared with those of the flow's own
    samples: a mode that the flow misses contributes a variance.  Without configurations (a = 0)
    the gradient is, sample by sample, that of :class:`~flowmc.training.Reinforce` (proposition 1
    of the paper), and only the loss that is reported differs.

    The log-weights of the batches are those of the flow's own samples.

    Args:
        model: prior and flow.
        action: the target.
        ensemble: configurations of the target, or None.
        ensemble_share: a, the share of a batch that comes from the ensemble, 0 <= a < 1; with an
            ensemble 1/2 by default.

    Raises:
        ValueError: for a share out of range, or a positive one without an ensemble.
    """

    def __init__(
        self,
        model: FlowModel,
        action: Action,
        ensemble: Ensemble | StoredConfigurations | None = None,
        *,
        ensemble_share: float | None = None,
    ) -> None:
        super().__init__(model, action)
        if ensemble_share is None:
            ensemble_share = 0.0 if ensemble is None else 0.5
        if not 0 <= ensemble_share < 1:
            raise ValueError(
                f"ensemble_share = {ensemble_share}: must be >= 0 and below 1, for some samples "
                "must come from the flow"
            )
        if (ensemble is None) != (ensemble_share == 0):
            raise ValueError(
                f"ensemble_share = {ensemble_share}: a positive share needs configurations of the "
                "target, and a share of 0 has no use for them"
            )
        self.ensemble, self.ensemble_share = ensemble, ensemble_share
        self.density = ModelDensity(model, action.group)

    def distribute(self, communicator: Communicator) -> None:
        super().distribute(communicator)
        self.density.distribute(communicator)
        if self.ensemble is not None:
            self.ensemble.distribute(communicator)

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        _check_size(self, n)
        foreign = min(round(self.ensemble_share * n), n - 1)
        rows, own, own_g = _flow_samples(self, self.density, n - foreign, rng)
        parts = [(own, own_g)]
        if self.ensemble is not None and foreign:
            parts.append(self._configurations(foreign))
        every = torch.cat([g for _, g in parts])
        mean = _sum(self.communicator, every) / n
        loss = 0.5 * (every - mean).square().sum() / (n - 1)
        surrogate = torch.zeros((), dtype=torch.float64)
        for at, g in parts:
            if at is not None:
                surrogate = surrogate + at.score((g - mean) / (n - 1))
        return Batch(surrogate, loss, -own_g, rows)

    def _configurations(self, n: int) -> tuple[DensityAt | MixtureAt | None, Tensor]:
        """Return the density at this rank's share of n configurations, and g."""
        assert self.ensemble is not None
        x, _ = self.ensemble.draw_share(n)
        if not len(x):
            self.density.skip()
            return None, torch.empty(0, dtype=torch.float64, device=x.device)
        with torch.no_grad():
            zero = torch.zeros(len(x), dtype=torch.float64, device=x.device)
            z, change = self.model.flow.inverse(x, zero)
        at = self.density.at(z)
        with torch.no_grad():
            # The change is NaN where an iterative inverse did not converge.
            return at, at.log_q.detach() + 0 * change + self.action(x)

    def state_dict(self) -> dict[str, Tensor]:
        return {} if self.ensemble is None else self.ensemble.state_dict()

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        if self.ensemble is not None:
            self.ensemble.load_state_dict(tensors)


def _check_size(objective: SamplerObjective, n: int) -> None:
    if n < 2:
        raise ConfigError(
            f"batch = {n}: {type(objective).__name__} compares the samples of a batch and needs at "
            "least two"
        )


def _flow_samples(
    objective: SamplerObjective, density: ModelDensity, n: int, rng: torch.Generator
) -> tuple[Tensor, DensityAt | MixtureAt | None, Tensor]:
    """Draw n samples of the flow; return this rank's rows, their density, and g."""
    with torch.no_grad():
        start, _ = objective.model.prior.sample(n, rng)
    rows = objective.own_rows(n)
    if not len(rows):
        density.skip()
        return rows, None, torch.empty(0, dtype=torch.float64, device=start.device)
    at = density.at(start[rows])
    with torch.no_grad():
        g = at.log_q.detach() + objective.action(at.field.detach())
    return rows, at, g


def _sum(communicator: Communicator, values: Tensor) -> float:
    """Return the sum of the values of all ranks."""
    return float(communicator.sum(np.array([float(values.sum())]))[0])
