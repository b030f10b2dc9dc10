r"""The contract of an objective, and what objectives of samplers share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.flows.models import FlowModel
from flowmc.parallel import Communicator
from flowmc.registry import ConfigError

__all__ = ["Batch", "Objective", "SamplerObjective", "nothing"]


@dataclass(frozen=True)
class Batch:
    """One batch of an objective, or one rank's share of it.

    Surrogate and loss of a share are sums over its samples divided by the size of the whole batch,
    so that the sums over ranks are those of the batch.

    Attributes:
        surrogate: scalar with a graph; its gradient is the estimate of the loss' gradient.  (A
            share without samples has a zero without a graph.)
        loss: scalar, the estimate of the loss.
        log_weights: ``(n,)`` float64, the log-weights of the flow's output (minus the work of an
            exchange flow), up to a constant; ``(own,)`` for a share.  An objective may have them
            for some samples of its batch only.
        rows: places of the share's log-weights in the batch, ``(own,)`` int64; None for a whole
            batch.
        parts: of how many targets the log-weights are, each with a constant of its own: equal parts
            of the batch, one after the other.
    """

    surrogate: Tensor
    loss: Tensor
    log_weights: Tensor
    rows: Tensor | None = None
    parts: int = 1


class Objective(ABC):
    """A loss of a flow, estimated from random batches."""

    @property
    @abstractmethod
    def module(self) -> nn.Module:
        """What is trained."""

    @abstractmethod
    def evaluate(self, n: int, rng: torch.Generator) -> Batch:
        """Draw a batch of ``n`` and return its losses, with a graph to the weights.

        After :meth:`distribute` with several ranks, this rank's share of the batch; ``rng`` is in
        the same state on all of them.
        """

    def distribute(self, communicator: Communicator) -> None:
        """Share the batches of :meth:`evaluate` among ranks from now on.

        Raises:
            ConfigError: if an objective cannot do that and there are several ranks.
        """
        if communicator.size > 1:
            raise ConfigError(
                f"{type(self).__name__} does not say how to share its batches among "
                f"{communicator.size} ranks: train on one rank, or implement distribute()"
            )

    @abstractmethod
    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        """Return the error of the flow's log-density on ``n`` samples; zeros if it is exact."""

    def begin(self, step: int) -> None:  # noqa: B027
        """Prepare for a step of the training; called before its :meth:`evaluate`."""

    def state_dict(self) -> dict[str, Tensor]:
        """Return what a resumed training needs beside weights and optimiser, as tensors.

        Called on all ranks; that of rank 0 is kept, and must not depend on their number.
        """
        return {}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:  # noqa: B027
        """Continue from :meth:`state_dict`."""


class SamplerObjective(Objective):
    """A loss of a sampler: a prior, a flow, and the target they are to meet.

    Subclasses implement :meth:`evaluate` for the samples :meth:`own_rows` of a batch.

    Args:
        model: prior and flow.
        action: the target.
    """

    def __init__(self, model: FlowModel, action: Action) -> None:
        self.model, self.action = model, action
        self.communicator = Communicator()

    @property
    def module(self) -> FlowModel:
        return self.model

    def distribute(self, communicator: Communicator) -> None:
        self.communicator = communicator

    def own_rows(self, n: int) -> Tensor:
        """Return the samples of this rank: neighbours, as many on every rank as possible."""
        size, rest = divmod(n, self.communicator.size)
        rank = self.communicator.rank
        first = rank * size + min(rank, rest)
        return torch.arange(first, first + size + (rank < rest))

    @torch.no_grad()
    def density_error(self, n: int, rng: torch.Generator) -> Tensor:
        z, _ = self.model.prior.sample(n, rng)
        return self.model.density_error(z)


def nothing(rows: Tensor) -> Batch:
    """Return the share of a rank that has no samples."""
    zero = torch.zeros((), dtype=torch.float64)
    return Batch(zero, zero, zero.new_empty(0), rows)
