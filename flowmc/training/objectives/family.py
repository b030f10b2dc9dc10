"""Objectives of flows that serve several theories: means of one objective over them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action, at_couplings
from flowmc.flows.models import FlowModel
from flowmc.parallel import Communicator
from flowmc.registry import ConfigError
from flowmc.training.objectives.base import Batch, Objective, SamplerObjective

__all__ = ["OverCouplings", "OverTheories", "check_without_ensemble", "share_weights"]


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
        if flow.conditional_on is None:
            raise TypeError(f"{type(flow).__name__} is not a conditional flow (conditional_on)")
        check_without_ensemble(objective)
        if per_batch < 1:
            raise ConfigError(f"couplings_per_batch = {per_batch}: at least one")
        self.objective, self.flow, self.per_batch = objective, flow, per_batch
        self.action = objective.action

    @property
    def module(self) -> FlowModel:
        return self.objective.module

    def distribute(self, communicator: Communicator) -> None:
        self.objective.distribute(communicator)

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        size = _share(n, self.per_batch)
        places = torch.rand(self.per_batch, dtype=torch.float64, device=rng.device, generator=rng)
        return _joined(
            [
                self._at((member + float(place)) / self.per_batch, size, rng)
                for member, place in enumerate(places)
            ],
            size,
        )

    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        """Return that at the middle of the range."""
        middle = self._theory(0.5)
        with torch.no_grad():
            z, _ = self.module.prior.sample(n, rng)
        return self.flow.at(middle).density_error(z)

    def _at(self, place: float, size: int, rng: torch.Generator) -> Batch:
        objective, model = self.objective, self.objective.model
        action = self._theory(place)
        objective.action, model.flow = action, self.flow.at(action)
        try:
            return objective.evaluate(size, rng)
        finally:
            objective.action, model.flow = self.action, self.flow

    def _theory(self, place: float) -> Action:
        """Return the theory at a place of the range, from 0 to 1."""
        assert self.flow.conditional_on is not None
        coupling, low, high = self.flow.conditional_on
        return at_couplings(self.action, {coupling: min(low + place * (high - low), high)})


class OverTheories(Objective):
    r"""The mean of an objective over some theories, usually of different lattices.

    .. math:: L = \frac{1}{M} \sum_{i=1}^{M} L_i ,

    with equal parts of a batch, for flows whose weights do not depend on the lattice (as Mate and
    Fleuret, arXiv:2401.00828, train on a mix of sizes).

    Args:
        objectives: of samplers, one per theory, whose flows share their weights
            (:func:`share_weights`).  The first one's model is what is trained and kept.

    Raises:
        ConfigError: for objectives that hold configurations of one target.
    """

    def __init__(self, objectives: Sequence[SamplerObjective]) -> None:
        for objective in objectives:
            check_without_ensemble(objective)
        self.objectives = list(objectives)

    @property
    def module(self) -> FlowModel:
        return self.objectives[0].module

    def distribute(self, communicator: Communicator) -> None:
        for objective in self.objectives:
            objective.distribute(communicator)

    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        size = _share(n, len(self.objectives))
        return _joined([objective.evaluate(size, rng) for objective in self.objectives], size)

    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        """Return that of the first theory."""
        return self.objectives[0].density_error(n, rng)


def share_weights(module: nn.Module, others: Iterable[nn.Module]) -> None:
    """Give other modules of the same kind the very parameters of one."""
    for other in others:
        for name, parameter in module.named_parameters():
            path, _, leaf = name.rpartition(".")
            setattr(other.get_submodule(path), leaf, parameter)


def check_without_ensemble(objective: SamplerObjective) -> None:
    """Raise ``ConfigError`` if an objective holds configurations of one target."""
    if getattr(objective, "ensemble", None) is not None:
        raise ConfigError(
            f"{type(objective).__name__} learns from configurations of one theory: choose "
            "another objective, e.g. reverse_kl, for a target that changes"
        )


def _share(n: int, parts: int) -> int:
    if n % parts:
        raise ConfigError(f"a batch of {n} cannot be shared evenly by {parts} theories")
    return n // parts


def _joined(batches: Sequence[Batch], size: int) -> Batch:
    """Return the batch that is made of equal parts of so many samples."""
    rows = [
        index * size + batch.rows for index, batch in enumerate(batches) if batch.rows is not None
    ]
    return Batch(
        torch.stack([batch.surrogate for batch in batches]).mean(),
        torch.stack([batch.loss for batch in batches]).mean(),
        torch.cat([batch.log_weights for batch in batches]),
        torch.cat(rows) if rows else None,
        len(batches),
    )
