r"""Independence Metropolis with a flow: proposals that do not depend on the current state."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.flows.models import Model, as_model
from flowmc.kernels.base import Info, Kernel, State, action_of, value_in_torch
from flowmc.kernels.reporting import Reported
from flowmc.random import Randomness, own_stream, shared_stream, stream
from flowmc.registry import ConfigError

__all__ = ["DrawnHere", "Independence", "Proposals", "Supplied", "Supply", "check_precision"]


@dataclass(frozen=True)
class Proposals:
    """Draws of a flow model.

    Attributes:
        fields: ``(n, ...)``.
        action: S of them, ``(n,)`` float64.
        log_q: their log-density, ``(n,)`` float64.
    """

    fields: Tensor
    action: Tensor
    log_q: Tensor


class Supplied(Protocol):
    """The proposals of one step of one block, wherever they have been drawn."""

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return S and ln q of all proposals, each ``(chains * proposals,)`` float64."""

    def take(self, index: Tensor) -> Tensor:
        """Return the fields of some proposals, ``(len(index), ...)``; called once."""


class Supply(Protocol):
    """Has the proposals drawn, on this rank or on others."""

    def __call__(
        self, kernel: Independence, key: int, chains: int, like: Tensor, rng: Randomness
    ) -> Supplied:
        """Return the proposals that ``key`` stands for; ``like`` has their device and dtype."""


class Independence(Kernel):
    r"""Metropolised independence sampling (Hastings 1970; with flows: arXiv:1904.12072).

    With :math:`\ln w(x) = -S(x) - \ln q(x)` a proposal :math:`x' \sim q` is accepted with
    probability :math:`\min(1, w(x') / w(x))`.  Proposals are drawn in batches, each from a random
    stream of its own, and scanned in order; the state and its log weight are carried from step to
    step.  After another kernel has moved the field, :math:`\ln q(x)` comes from the inverse flow.

    A trained flow may have lost its inverse to rounding in parts of the space.  Let G be the fields
    whose density rounding leaves known (:meth:`~flowmc.flows.Model.known_log_prob`).  A
    chain outside G stays; a step that would end outside G is rejected as a whole.  So the kernel is
    that of all proposals of a step, which is reversible, restricted to G, and still reversible.

    Args:
        action: the target.
        model: a flow model or any other :class:`~flowmc.flows.Model`, or what has the methods of
            one, in the precision of the chains.
        proposals: proposals per chain and step.
        batch_size: most fields in one call of the flow, and what ranks share the work by; None
            draws all proposals of a block at once.  The proposals depend on it as on the seed.

    Attributes:
        supply: has the proposals drawn; here and now by default.

    ``info.values`` holds ``log_weights (chains, proposals)`` of the proposals (-inf where not
    finite), ``log_weight (chains,)`` of the final state, and ``non_finite (chains,)``, the number
    of proposals rejected because their weight was not finite, or the density of the field that the
    step began or ended with is not known.
    """

    name = "independence"
    title = "flow proposals"
    takes_streams = True

    def __init__(
        self,
        action: Action,
        model: Model,
        *,
        proposals: int = 16,
        batch_size: int | None = None,
    ) -> None:
        self.check_keys(proposals=proposals, batch_size=batch_size)
        self.action = action
        self.model = as_model(model)
        if isinstance(self.model, nn.Module):
            self.model.eval().requires_grad_(False)
        self.proposals = proposals
        self.batch_size = batch_size
        self.supply: Supply = DrawnHere
        self._key = self.model.fingerprint()
        self.reports = (
            Reported(
                "log_weights",
                "ln w of the proposals",
                reduce="last",
                per_proposal=proposals,
                in_report=False,
            ),
            Reported("log_weight", "ln w of the state", reduce="last", in_report=False),
            Reported("non_finite", "proposals not finite", reduce="sum", in_report=False),
        )

    @staticmethod
    def check_keys(*, proposals: int = 16, batch_size: int | None = None) -> None:
        """Raise ConfigError for values out of range; a configuration is checked without a flow."""
        if proposals < 1:
            raise ConfigError(f"independence needs proposals >= 1, got {proposals}")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"independence needs batch_size >= 1, got {batch_size}")

    def init(self, field: Tensor) -> State:
        self.action.check_field(field)
        return State(field, value_in_torch(self.action, field))

    def key(self, rng: Randomness) -> int:
        """Draw the number from which the proposals of one step follow."""
        common = shared_stream(rng, self.name)
        return int(torch.randint(2**62, (), device=common.device, generator=common))

    def batches(self, chains: int) -> list[int]:
        """Return the sizes of the batches in which the proposals of a block are drawn."""
        total = chains * self.proposals
        size = self.batch_size or total
        return [min(size, total - start) for start in range(0, total, size)]

    @torch.no_grad()
    def draw(self, key: int, batch: int, size: int, device: torch.device) -> Proposals:
        """Draw one batch; the same fields come out wherever this is called."""
        fields, log_q = self.model.sample(size, stream(key, batch, self.name, device))
        return Proposals(fields, value_in_torch(self.action, fields), log_q)

    @torch.no_grad()
    def step(self, state: State, rng: Randomness) -> tuple[State, Info]:
        key, own = self.key(rng), own_stream(rng)
        supplied = self.supply(self, key, state.chains, state.field, rng)
        current_action = action_of(self.action, state)
        log_q = state.log_q.get(self._key)
        if log_q is None:
            log_q = self.model.known_log_prob(state.field, self.action.group)
        log_weight = -current_action - log_q

        shape = (state.chains, self.proposals)
        proposal_action, proposal_log_q = (value.reshape(shape) for value in supplied.weights())
        proposal_weights = -proposal_action - proposal_log_q
        finite = torch.isfinite(proposal_weights)
        proposal_weights = torch.where(finite, proposal_weights, -torch.inf)
        uniform = torch.rand(shape, dtype=torch.float64, device=own.device, generator=own)
        chosen, is_accepted = scan(log_weight, proposal_weights, uniform.log())

        moved = (chosen >= 0).nonzero()[:, 0]
        index = moved * self.proposals + chosen[moved]
        fields = supplied.take(index)
        unknown = torch.isnan(log_weight)
        if len(moved):
            is_known = torch.isfinite(self.model.known_log_prob(fields, self.action.group))
            unknown[moved[~is_known]] = True
            moved, index, fields = moved[is_known], index[is_known], fields[is_known]
            is_accepted = is_accepted & ~unknown[:, None]
        new_action, new_log_q, kept = current_action, log_q, state
        if len(moved):
            new_action = new_action.index_copy(0, moved, proposal_action.reshape(-1)[index])
            new_log_q = new_log_q.index_copy(0, moved, proposal_log_q.reshape(-1)[index])
            # Other flows' densities of a chain that stayed are still right, but a state caches all
            # chains or none.
            kept = state.moved(state.field.index_copy(0, moved, fields), new_action)
        kept = replace(kept, action=new_action).with_log_q(self._key, new_log_q)
        return kept, Info(
            is_accepted,
            {
                "log_weights": proposal_weights,
                "log_weight": -new_action - new_log_q,
                "non_finite": (~finite | unknown[:, None]).sum(1),
            },
        )


class DrawnHere:
    """All proposals of a step, drawn where the chains live; a :class:`Supply` and its result.

    Raises:
        ConfigError: the model has another precision than the chains.
    """

    def __init__(
        self, kernel: Independence, key: int, chains: int, like: Tensor, rng: Randomness
    ) -> None:
        drawn = [
            kernel.draw(key, batch, size, like.device)
            for batch, size in enumerate(kernel.batches(chains))
        ]
        self._fields = torch.cat([batch.fields for batch in drawn])
        self._action = torch.cat([batch.action for batch in drawn])
        self._log_q = torch.cat([batch.log_q for batch in drawn])
        check_precision(self._fields, like)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return S and ln q of all proposals."""
        return self._action, self._log_q

    def take(self, index: Tensor) -> Tensor:
        """Return the fields of some proposals."""
        return self._fields[index]


def check_precision(fields: Tensor, like: Tensor) -> None:
    """Raise ConfigError if proposals have another dtype than the chains."""
    if fields.dtype != like.dtype:
        raise ConfigError(
            f"the flow draws {fields.dtype} fields but the chains are {like.dtype}: convert the "
            "model to the precision of the run, or its log-densities would be those of other fields"
        )


def scan(log_weight: Tensor, proposals: Tensor, log_uniform: Tensor) -> tuple[Tensor, Tensor]:
    """Run the Metropolis scan over a batch of proposals.

    Args:
        log_weight: of the current states, ``(chains,)``.  NaN (density unknown) accepts nothing.
        proposals: log weights, ``(chains, proposals)``.
        log_uniform: logarithms of uniform draws, same shape.

    Returns:
        The index of the proposal each chain ends on (-1: the old state), and ``is_accepted``.
    """
    # Scalars per chain: numpy on the host steps through them faster than kernels on a device.
    current = log_weight.cpu().numpy().copy()
    weights, thresholds = proposals.cpu().numpy(), log_uniform.cpu().numpy()
    chosen = np.full(current.shape, -1, dtype=np.int64)
    accepted = np.zeros(weights.shape, dtype=bool)
    for k in range(weights.shape[1]):
        with np.errstate(invalid="ignore"):  # -inf - -inf and NaN compare as "reject"
            accept = thresholds[:, k] < weights[:, k] - current
        accepted[:, k] = accept
        current = np.where(accept, weights[:, k], current)
        chosen = np.where(accept, k, chosen)
    device = proposals.device
    return torch.from_numpy(chosen).to(device), torch.from_numpy(accepted).to(device)
