r"""Independence Metropolis with a flow: proposals that do not depend on the current state."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.flows.base import FlowModel
from flowmc.kernels.base import Info, Kernel, State, action_of
from flowmc.registry import ConfigError

__all__ = ["Independence"]


class Independence(Kernel):
    r"""Metropolised independence sampling (Hastings 1970; with flows: arXiv:1904.12072).

    With :math:`\ln w(x) = -S(x) - \ln q(x)` a proposal :math:`x' \sim q` is accepted with
    probability :math:`\min(1, w(x') / w(x))`.  Proposals of one step are drawn as one batch and
    scanned in order; the state and its log weight are carried from step to step.  After another
    kernel has moved the field, :math:`\ln q(x)` comes from the inverse flow.

    Args:
        action: the target.
        model: the flow model, in the precision of the chains.
        proposals: proposals per chain and step.
        batch_size: most fields in one call of the flow; None draws all proposals at once.

    ``info.values`` holds ``log_weights (chains, proposals)`` of the proposals (-inf where not
    finite), ``log_weight (chains,)`` of the final state, and ``non_finite (chains,)``, the number
    of proposals rejected because their weight was not finite.
    """

    name = "independence"

    def __init__(
        self,
        action: Action,
        model: FlowModel,
        *,
        proposals: int = 16,
        batch_size: int | None = None,
    ) -> None:
        if proposals < 1:
            raise ConfigError(f"independence needs proposals >= 1, got {proposals}")
        if batch_size is not None and batch_size < 1:
            raise ConfigError(f"independence needs batch_size >= 1, got {batch_size}")
        self.action = action
        self.model = model.eval().requires_grad_(False)
        self.proposals = proposals
        self.batch_size = batch_size
        self._key = model.fingerprint()

    def init(self, field: Tensor) -> State:
        self.action.check_field(field)
        return State(field, self.action(field))

    @torch.no_grad()
    def step(self, state: State, rng: torch.Generator) -> tuple[State, Info]:
        current_action = action_of(self.action, state)
        log_q = state.log_q.get(self._key)
        if log_q is None:
            log_q = self.model.log_prob(state.field)
        log_weight = -current_action - log_q

        fields, proposal_log_q = self._draw(state, rng)
        proposal_action = self.action(fields).reshape(state.chains, self.proposals)
        proposal_weights = -proposal_action - proposal_log_q
        finite = torch.isfinite(proposal_weights)
        proposal_weights = torch.where(finite, proposal_weights, -torch.inf)
        uniform = torch.rand(
            proposal_weights.shape, dtype=torch.float64, device=fields.device, generator=rng
        )
        chosen, is_accepted = scan(log_weight, proposal_weights, uniform.log())

        moved = chosen >= 0
        index = chosen.clamp(min=0)
        rows = torch.arange(state.chains, device=fields.device)
        picked = fields.reshape(state.chains, self.proposals, *fields.shape[1:])[rows, index]
        select = moved.reshape(-1, *[1] * (state.field.dim() - 1))
        new_action = torch.where(moved, proposal_action[rows, index], current_action)
        new_log_q = torch.where(moved, proposal_log_q[rows, index], log_q)
        # Other flows' densities of a chain that stayed are still right, but a state caches all
        # chains or none.
        kept = (
            state
            if not bool(moved.any())
            else state.moved(torch.where(select, picked, state.field), new_action)
        )
        kept = State(kept.field, new_action, kept.log_q).with_log_q(self._key, new_log_q)
        return kept, Info(
            is_accepted,
            {
                "log_weights": proposal_weights,
                "log_weight": -new_action - new_log_q,
                "non_finite": (~finite).sum(1),
            },
        )

    def _draw(self, state: State, rng: torch.Generator) -> tuple[Tensor, Tensor]:
        total = state.chains * self.proposals
        size = self.batch_size or total
        drawn = [
            self.model.sample(min(size, total - start), rng) for start in range(0, total, size)
        ]
        fields = torch.cat([field for field, _ in drawn])
        if fields.dtype != state.field.dtype:
            raise ConfigError(
                f"the flow draws {fields.dtype} fields but the chains are {state.field.dtype}: "
                "convert the model to the precision of the run, or its log-densities would be "
                "those of other fields"
            )
        log_q = torch.cat([density for _, density in drawn])
        return fields, log_q.reshape(state.chains, self.proposals)


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
