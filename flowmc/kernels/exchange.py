r"""Replica exchange in which a flow maps neighbouring replicas onto each other (T-REX).

A ladder holds R replicas of every chain, replica r with action :math:`S_r`; the joint density is
:math:`\prod_r e^{-S_r(x_r)}`.  Replica 0 is the target.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.flows.base import Flow, Identity
from flowmc.kernels.base import Info, Kernel, State, action_of
from flowmc.registry import ConfigError

__all__ = ["EachReplica", "Exchange", "LadderState"]


@dataclass(frozen=True)
class LadderState:
    """A batch of ladders.

    Attributes:
        replicas: one :class:`State` per coupling, each a batch of all chains.
        walkers: ``(chains, R)`` int64: which walker sits at replica r.  Accepted exchanges permute
            the labels, so a walker's path through the ladder can be followed even though a flow
            transforms its field.
        sweep: number of exchange steps done; the even/odd schedule continues from it.
    """

    replicas: tuple[State, ...]
    walkers: Tensor
    sweep: int = 0

    @property
    def chains(self) -> int:
        """Number of ladders in the batch."""
        return self.replicas[0].chains

    def with_replica(self, index: int, state: State) -> LadderState:
        """Return this ladder with one replica replaced."""
        replicas = list(self.replicas)
        replicas[index] = state
        return LadderState(tuple(replicas), self.walkers, self.sweep)


def init_ladder(actions: Sequence[Action], fields: Sequence[Tensor]) -> LadderState:
    """Return the state of a ladder from one batch of fields per replica."""
    if len(fields) != len(actions):
        raise ValueError(
            f"a ladder of {len(actions)} replicas needs as many fields, not {len(fields)}"
        )
    for action, field in zip(actions, fields, strict=True):
        action.check_field(field)
    replicas = tuple(
        State(field, action(field)) for action, field in zip(actions, fields, strict=True)
    )
    walkers = torch.arange(len(actions)).repeat(fields[0].shape[0], 1)
    return LadderState(replicas, walkers)


class EachReplica(Kernel):
    """Apply one kernel to every replica: ``kernels[r]`` leaves :math:`e^{-S_r}` invariant."""

    def __init__(self, kernels: Sequence[Kernel], actions: Sequence[Action]) -> None:
        self.kernels = list(kernels)
        self.actions = list(actions)
        self.name = self.kernels[0].name

    def init(self, field: Sequence[Tensor]) -> LadderState:
        return init_ladder(self.actions, field)

    def step(self, state: LadderState, rng: torch.Generator) -> tuple[LadderState, Info]:
        parts = {}
        for index, kernel in enumerate(self.kernels):
            replica, info = kernel.step(state.replicas[index], rng)
            state = state.with_replica(index, replica)
            parts[f"{kernel.name}[{index}]"] = info
        return state, Info(torch.empty(0, 0, dtype=torch.bool), parts=parts)

    def adapt(self, info, update):
        for kernel, part in zip(self.kernels, info.parts.values(), strict=True):
            kernel.adapt(part, update)

    def tuning(self):
        return {
            f"{index}/{key}": value
            for index, kernel in enumerate(self.kernels)
            for key, value in kernel.tuning().items()
        }

    def set_tuning(self, values):
        for index, kernel in enumerate(self.kernels):
            prefix = f"{index}/"
            own = {
                key.removeprefix(prefix): value
                for key, value in values.items()
                if key.startswith(prefix)
            }
            if own:
                kernel.set_tuning(own)


class Exchange(Kernel):
    r"""Exchange of neighbouring replicas through flows (T-REX, arXiv:2404.11674).

    For the pair (a, b) = (r, r + 1) with the flow f from a to b the proposal is
    :math:`(x_a, x_b) \to (f^{-1}(x_b), f(x_a))`, accepted with probability
    :math:`\min(1, e^{-(w_F + w_R)})`,

    .. math::
        w_F = S_b(f(x_a)) - J_f(x_a) - S_a(x_a), \qquad
        w_R = S_a(f^{-1}(x_b)) + J_f(f^{-1}(x_b)) - S_b(x_b),

    with :math:`J_f = \ln|\det \partial f|`.  Detailed balance: the proposal is an involution of the
    pair whose Jacobian is :math:`e^{J_f(x_a) - J_f(f^{-1}(x_b))}`.  The identity flow is plain
    parallel tempering.  A move whose inverse did not converge, or whose works are not finite, is
    rejected.

    Args:
        actions: one per replica, R >= 2.
        flows: one per neighbouring pair, mapping replica r to r + 1; R - 1 of them.
        schedule: "even_odd" alternates the pairs (0,1), (2,3), ... and (1,2), (3,4), ...
            (deterministic even/odd scheme: a cycle of two invariant kernels); "random" draws the
            parity, which also satisfies detailed balance.
        check_inverse: verify :math:`f(f^{-1}(x_b)) = x_b` and :math:`f^{-1}(f(x_a)) = x_a` to
            this tolerance and reject otherwise; None trusts the flow's own convergence flag, right
            for flows that are bijections by construction.

    ``info`` holds one part per pair, ``pair[r]``, with ``is_accepted`` of the ladders in which that
    pair was tried and ``work`` :math:`w_F + w_R` (NaN, and no proposals, for pairs of the other
    parity).
    """

    name = "exchange"

    def __init__(
        self,
        actions: Sequence[Action],
        flows: Sequence[Flow] | None = None,
        *,
        schedule: str = "even_odd",
        check_inverse: float | None = None,
    ) -> None:
        self.actions = list(actions)
        if len(self.actions) < 2:
            raise ConfigError("exchange needs a ladder of at least two replicas")
        self.flows = list(flows) if flows is not None else [Identity() for _ in actions[1:]]
        if len(self.flows) != len(self.actions) - 1:
            raise ConfigError(
                f"a ladder of {len(self.actions)} replicas has {len(self.actions) - 1} "
                f"neighbouring pairs, but {len(self.flows)} flows are given"
            )
        for flow in self.flows:
            flow.eval().requires_grad_(False)
        if schedule not in ("even_odd", "random"):
            raise ConfigError(f"exchange: schedule is 'even_odd' or 'random', not {schedule!r}")
        self.schedule = schedule
        self.check_inverse = check_inverse

    def init(self, field: Sequence[Tensor]) -> LadderState:
        return init_ladder(self.actions, field)

    @torch.no_grad()
    def step(self, state: LadderState, rng: torch.Generator) -> tuple[LadderState, Info]:
        device = state.replicas[0].field.device
        # The uniforms of all pairs are drawn whatever the parity, so that the stream does not
        # depend on it.
        uniform = torch.rand(
            (len(self.flows) + 1, state.chains), dtype=torch.float64, device=device, generator=rng
        )
        if len(self.flows) == 1:
            parity = 0
        elif self.schedule == "even_odd":
            parity = state.sweep % 2
        else:
            parity = int(uniform[-1, 0] < 0.5)
        parts = {}
        for pair in range(len(self.flows)):
            if pair % 2 == parity:
                state, parts[f"pair[{pair}]"] = self._try(state, pair, uniform[pair].log())
            else:
                parts[f"pair[{pair}]"] = Info(
                    torch.empty(state.chains, 0, dtype=torch.bool, device=device),
                    {
                        "work": torch.full_like(uniform[0], torch.nan),
                        "non_finite": torch.zeros_like(uniform[0], dtype=torch.bool),
                    },
                )
        state = LadderState(state.replicas, state.walkers, state.sweep + 1)
        return state, Info(torch.empty(0, 0, dtype=torch.bool), {}, parts)

    def _try(self, state: LadderState, pair: int, log_uniform: Tensor) -> tuple[LadderState, Info]:
        a, b = state.replicas[pair], state.replicas[pair + 1]
        action_a, action_b = self.actions[pair], self.actions[pair + 1]
        flow = self.flows[pair]
        zero = torch.zeros_like(log_uniform)

        new_b, minus_jacobian = flow.forward(a.field, zero)
        new_a, plus_jacobian = flow.inverse(b.field, zero)
        new_action_a, new_action_b = action_a(new_a), action_b(new_b)
        forward = new_action_b + minus_jacobian - action_of(action_a, a)
        reverse = new_action_a + plus_jacobian - action_of(action_b, b)
        work = forward + reverse
        allowed = torch.isfinite(work)
        if self.check_inverse is not None:
            allowed = allowed & self._returns(flow, new_a, new_b, a.field, b.field, zero)
        is_accepted = allowed & (log_uniform < -work)

        if bool(is_accepted.any()):
            select = is_accepted.reshape(-1, *[1] * (a.field.dim() - 1))
            state = state.with_replica(
                pair,
                a.moved(
                    torch.where(select, new_a, a.field),
                    torch.where(is_accepted, new_action_a, action_of(action_a, a)),
                ),
            ).with_replica(
                pair + 1,
                b.moved(
                    torch.where(select, new_b, b.field),
                    torch.where(is_accepted, new_action_b, action_of(action_b, b)),
                ),
            )
            walkers = state.walkers.clone()
            swapped = is_accepted.to(walkers.device)
            walkers[swapped, pair] = state.walkers[swapped, pair + 1]
            walkers[swapped, pair + 1] = state.walkers[swapped, pair]
            state = LadderState(state.replicas, walkers, state.sweep)
        return state, Info(
            is_accepted[:, None], {"work": work, "non_finite": ~torch.isfinite(work)}
        )

    def _returns(
        self, flow: Flow, new_a: Tensor, new_b: Tensor, a: Tensor, b: Tensor, zero: Tensor
    ) -> Tensor:
        group = self.actions[0].group
        assert self.check_inverse is not None
        back_b, _ = flow.forward(new_a, zero)
        back_a, density = flow.inverse(new_b, zero)
        close_b = group.distance(back_b, b) <= self.check_inverse
        close_a = group.distance(back_a, a) <= self.check_inverse
        return close_a & close_b & torch.isfinite(density)
