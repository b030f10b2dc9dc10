"""A target that moves towards its couplings while the flow learns."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from flowmc.flows.models import FlowModel
from flowmc.parallel import Communicator
from flowmc.training.objectives.base import Batch, Objective, SamplerObjective
from flowmc.training.objectives.family import check_without_ensemble

__all__ = ["Annealed"]


class Annealed(Objective):
    r"""An objective whose target begins at other couplings.

    Before step t of the training the couplings are

    .. math:: \lambda(t) = \lambda_0 + \min(1, t / T)\, (\lambda - \lambda_0),

    so that easy theories come first.  The losses of different couplings differ by their ln Z.

    Args:
        objective: of samplers; its action has the couplings :math:`\lambda` of the end.
        start: :math:`\lambda_0` of those that move.
        steps: T >= 1.

    Raises:
        ConfigError: for an objective that holds configurations of one target.
    """

    def __init__(self, objective: SamplerObjective, start: Mapping[str, float], steps: int) -> None:
        check_without_ensemble(objective)
        self.objective, self.start, self.steps = objective, dict(start), steps
        self.target = objective.action

    @property
    def module(self) -> FlowModel:
        return self.objective.module

    def distribute(self, communicator: Communicator) -> None:
        self.objective.distribute(communicator)

    def begin(self, step: int) -> None:
        """Move the target to where it is before this step."""
        share = min(1.0, step / self.steps)
        if share == 1:
            self.objective.action = self.target
            return
        final = self.target.parameters
        self.objective.action = self.target.at(
            **{key: first + share * (final[key] - first) for key, first in self.start.items()}
        )

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        return self.objective.evaluate(n, rng)

    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        return self.objective.density_error(n, rng)
