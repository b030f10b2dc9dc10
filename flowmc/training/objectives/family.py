"""The objective of a conditional flow: the mean of another one over a range of couplings."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.flows.base import FlowModel
from flowmc.flows.conditional import ConditionalContinuousFlow
from flowmc.parallel import Communicator
from flowmc.registry import ConfigError
from flowmc.training.objectives.base import Batch, Objective, SamplerObjective

__all__ = ["OverCouplings"]


class OverCouplings(Objective):
    r"""The mean of an objective over the couplings of a conditional flow.

    .. math:: L = \frac{1}{\lambda_{\max} - \lambda_{\min}}
              \int_{\lambda_{\min}}^{\lambda_{\max}} d\lambda\, L_\lambda ,

    with a batch shared by M couplings, one drawn uniformly from each of M equal parts of the range
    (as Gerdes et al., arXiv:2207.00283, do with M = 4).  Losses of different couplings differ by
    their ln Z: of the loss only changes mean something.

    Args:
        objective: of samplers, for a model with a conditional flow.
        per_batch: M.

    Raises:
        ConfigError: for an objective that holds configurations of one target.
    """

    def __init__(self, objective: SamplerObjective, per_batch: int = 4) -> None:
        flow = objective.model.flow
        if not isinstance(flow, ConditionalContinuousFlow):
            raise TypeError(f"{type(flow).__name__} is not a conditional flow")
        if getattr(objective, "ensemble", None) is not None:
            raise ConfigError(
                f"{type(objective).__name__} learns from configurations of one theory: train a "
                "conditional flow by another objective, e.g. reverse_kl"
            )
        if per_batch < 1:
            raise ConfigError(f"couplings = {per_batch}: at least one per batch")
        self.objective, self.flow, self.per_batch = objective, flow, per_batch
        self.action = objective.action

    @property
    def module(self) -> FlowModel:
        return self.objective.module

    def distribute(self, communicator: Communicator) -> None:
        self.objective.distribute(communicator)

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        members = self.per_batch
        if n % members:
            raise ConfigError(f"a batch of {n} cannot be shared by {members} couplings evenly")
        size = n // members
        places = torch.rand(members, dtype=torch.float64, device=rng.device, generator=rng)
        batches = [
            self._at((member + float(place)) / members, size, rng)
            for member, place in enumerate(places)
        ]
        rows = [
            index * size + batch.rows
            for index, batch in enumerate(batches)
            if batch.rows is not None
        ]
        return Batch(
            torch.stack([batch.surrogate for batch in batches]).mean(),
            torch.stack([batch.loss for batch in batches]).mean(),
            torch.cat([batch.log_weights for batch in batches]),
            torch.cat(rows) if rows else None,
            members,
        )

    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        """Return that at the middle of the range."""
        middle = self.action.at(**{self.flow.coupling: (self.flow.low + self.flow.high) / 2})
        with torch.no_grad():
            z, _ = self.module.prior.sample(n, rng)
        return self.flow.at(middle).density_error(z)

    def _at(self, place: float, size: int, rng: torch.Generator) -> Batch:
        flow, objective = self.flow, self.objective
        value = flow.low + place * (flow.high - flow.low)
        own = flow.value
        objective.action, flow.value = self.action.at(**{flow.coupling: value}), value
        try:
            return objective.evaluate(size, rng)
        finally:
            objective.action, flow.value = self.action, own
