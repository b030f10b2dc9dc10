r"""Replica exchange in which a flow maps neighbouring replicas onto each other (T-REX).

A ladder holds R replicas of every chain, replica r with action :math:`S_r`; the joint density is
:math:`\prod_r e^{-S_r(x_r)}`.  Replica 0 is the target.  The replicas of a ladder may live on
several ranks: each works on those it has, and a :class:`Wire` leads to the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.flows.base import Flow, Identity
from flowmc.kernels.base import (
    Info,
    Kernel,
    State,
    action_of,
    apply,
    begin,
    report_of,
    title_of,
    value_in_torch,
)
from flowmc.kernels.reporting import KernelReport, Reported
from flowmc.random import Randomness, Streams, shared_stream
from flowmc.registry import ConfigError

__all__ = ["EachReplica", "Exchange", "LadderState", "OnReplica", "Wire"]


class Wire(Protocol):
    """The way to the neighbouring replicas of a block that live on other ranks."""

    def swap(self, mine: int, other: int, tensor: Tensor) -> Callable[[], Tensor]:
        """Send a tensor of replica ``mine`` to ``other``; the result waits for its counterpart.

        Both sides call this with tensors of the same shape, in the same order.
        """


@dataclass(frozen=True)
class LadderState:
    """A batch of ladders.

    Attributes:
        replicas: one :class:`State` per coupling, each a batch of all chains; None where the
            replica lives on another rank.
        walkers: ``(chains, R)`` int64: which walker sits at replica r.  Accepted exchanges permute
            the labels, so a walker's path through the ladder can be followed even though a flow
            transforms its field.  Columns of replicas that live elsewhere have no meaning.
        sweep: number of exchange steps done; the even/odd schedule continues from it.
        wire: leads to the replicas that are None; None if there are none.
    """

    replicas: tuple[State | None, ...]
    walkers: Tensor
    sweep: int = 0
    wire: Wire | None = None

    @property
    def chains(self) -> int:
        """Number of ladders in the batch."""
        return self.walkers.shape[0]

    @property
    def here(self) -> dict[int, State]:
        """The replicas that live on this rank, by index."""
        return {r: state for r, state in enumerate(self.replicas) if state is not None}

    def replica(self, index: int) -> State:
        """Return a replica that lives on this rank."""
        state = self.replicas[index]
        if state is None:
            raise ValueError(f"replica {index} lives on another rank")
        return state

    def with_replica(self, index: int, state: State) -> LadderState:
        """Return this ladder with one replica replaced."""
        replicas = list(self.replicas)
        replicas[index] = state
        return replace(self, replicas=tuple(replicas))

    def united(self, other: LadderState) -> LadderState:
        """Return this ladder with what another kernel's state of the same fields knows besides.

        Raises:
            ConfigError: as :meth:`State.united`.
        """
        found = self
        for index, state in self.here.items():
            found = found.with_replica(index, state.united(other.replica(index)))
        return found


def init_ladder(
    fields: Sequence[Tensor | None], begin_one: Callable[[int, Tensor], State]
) -> LadderState:
    """Return the state of a ladder from one batch of fields per replica that lives here.

    Args:
        fields: one per replica, None where it lives on another rank.
        begin_one: returns the state of a replica, given its index and fields.
    """
    replicas = tuple(
        None if field is None else begin_one(r, field) for r, field in enumerate(fields)
    )
    chains = next(len(field) for field in fields if field is not None)
    return LadderState(replicas, torch.arange(len(fields)).repeat(chains, 1))


def _check_count(actions: Sequence[Action], fields: Sequence[Tensor | None]) -> None:
    if len(fields) != len(actions):
        raise ValueError(
            f"a ladder of {len(actions)} replicas needs as many fields, not {len(fields)}"
        )


def _reports_at(kernel: Kernel, index: int, name: str) -> list[tuple[str, KernelReport]]:
    """Return what a kernel at one replica reports; kernels inside it do not say where they are."""
    inside = kernel.reports_of_parts()
    return list(inside) if inside else [(name, replace(report_of(kernel), replica=index))]


class EachReplica(Kernel):
    """Apply one kernel to every replica: ``kernels[r]`` leaves :math:`e^{-S_r}` invariant."""

    takes_streams = spreads = True

    def __init__(self, kernels: Sequence[Kernel], actions: Sequence[Action]) -> None:
        self.kernels = list(kernels)
        self.actions = list(actions)
        self.name, self.title = self.kernels[0].name, title_of(self.kernels[0])

    def reports_of_parts(self) -> Sequence[tuple[str, KernelReport]]:
        return [
            part
            for index, kernel in enumerate(self.kernels)
            for part in _reports_at(kernel, index, self._part(index))
        ]

    def init(self, field: Sequence[Tensor | None]) -> LadderState:
        _check_count(self.actions, field)
        return init_ladder(field, lambda r, own: begin(self.kernels[r], own))

    def step(self, state: LadderState, rng: Randomness) -> tuple[LadderState, Info]:
        parts = {}
        here = list(state.here)
        kernels = [self.kernels[index] for index in here]
        rngs = [rng.on(index) if isinstance(rng, Streams) else rng for index in here]
        moved = kernels[0].step_replicas(kernels, list(state.here.values()), rngs)
        for index, (replica, info) in zip(here, moved, strict=True):
            state = state.with_replica(index, replica)
            parts[self._part(index)] = info
        return state, Info(torch.empty(0, 0, dtype=torch.bool), parts=parts)

    def _part(self, index: int) -> str:
        return f"{self.kernels[index].name}[{index}]"

    @property
    def adapts(self):
        return any(kernel.adapts for kernel in self.kernels)

    def adapt(self, info, update):
        for index, kernel in enumerate(self.kernels):
            kernel.adapt(info.parts[self._part(index)], update)

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


class OnReplica(Kernel):
    """Apply a kernel to one replica of a ladder; the others stay, so the joint density does too."""

    takes_streams = spreads = True

    def __init__(self, kernel: Kernel, replica: int) -> None:
        self.kernel, self.replica = kernel, replica
        self.name, self.title = kernel.name, title_of(kernel)

    def reports_of_parts(self) -> Sequence[tuple[str, KernelReport]]:
        return _reports_at(self.kernel, self.replica, self._part)

    def init(self, field: Sequence[Tensor | None]) -> LadderState:
        return init_ladder(
            field, lambda r, own: begin(self.kernel, own) if r == self.replica else State(own)
        )

    def step(self, state: LadderState, rng: Randomness) -> tuple[LadderState, Info]:
        parts = {}
        if self.replica in state.here:
            own = rng.on(self.replica) if isinstance(rng, Streams) else rng
            replica, info = apply(self.kernel, state.replica(self.replica), own)
            state = state.with_replica(self.replica, replica)
            parts[self._part] = info
        return state, Info(torch.empty(0, 0, dtype=torch.bool), parts=parts)

    @property
    def _part(self) -> str:
        return f"{self.name}[{self.replica}]"

    @property
    def adapts(self):
        return self.kernel.adapts

    def adapt(self, info, update):
        (part,) = info.parts.values()
        self.kernel.adapt(part, update)

    def tuning(self):
        return self.kernel.tuning()

    def set_tuning(self, values):
        self.kernel.set_tuning(values)


@dataclass(frozen=True)
class _Half:
    """What one side of a pair contributes to an exchange.

    Attributes:
        field: its configuration mapped to the other side's coupling.
        action: of that, under the other side's action, ``(chains,)``.
        report: ``(3, chains)`` float64: the work of the map (w_F below, w_R above), whether it may
            be accepted, and the walker's label.
    """

    field: Tensor
    action: Tensor
    report: Tensor


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

    Only the differences of actions enter a plain exchange, so that these suffice where the actions
    are not known (:attr:`~flowmc.actions.Action.difference`).

    Args:
        actions: one per replica, R >= 2.
        flows: one per neighbouring pair, mapping replica r to r + 1; R - 1 of them.
        schedule: "even_odd" alternates the pairs (0,1), (2,3), ... and (1,2), (3,4), ...
            (deterministic even/odd scheme: a cycle of two invariant kernels); "random" draws the
            parity, which also satisfies detailed balance.
        check_inverse: verify :math:`f(f^{-1}(x)) = x` and :math:`f^{-1}(f(x)) = x` to this
            tolerance, both at the fields that are to be exchanged and at what they are mapped to,
            and reject otherwise, so that a move and its reverse are held to the same; None trusts
            the flow's own convergence flag, right for flows that are bijections by construction.

    ``info`` holds one part per pair, ``pair[r]``, with ``is_accepted`` of the ladders in which that
    pair was tried and ``work`` :math:`w_F + w_R` (NaN, and no proposals, for pairs of the other
    parity).
    """

    name = "exchange"
    title = "replica exchange"
    reports = (
        Reported("work", "work", in_report=False),
        Reported("non_finite", "proposals not finite", reduce="sum", in_report=False),
    )
    takes_streams = spreads = True

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
        # Those of a theory that another program knows, up to what all replicas have in common.
        self.differences = [action.difference for action in self.actions]
        is_whole = all(a is d for a, d in zip(self.actions, self.differences, strict=True))
        if not is_whole and not all(isinstance(flow, Identity) for flow in self.flows):
            raise ConfigError(
                "a flow moves a field, and its exchange needs the whole action before and after, "
                'but here only the difference of the replicas is known: use "identity"'
            )
        if schedule not in ("even_odd", "random"):
            raise ConfigError(f"exchange: schedule is 'even_odd' or 'random', not {schedule!r}")
        self.schedule = schedule
        self.check_inverse = check_inverse

    def reports_of_parts(self) -> Sequence[tuple[str, KernelReport]]:
        own = report_of(self)
        return [(f"pair[{pair}]", replace(own, pair=pair)) for pair in range(len(self.flows))]

    def init(self, field: Sequence[Tensor | None]) -> LadderState:
        _check_count(self.actions, field)

        def begin_one(r: int, own: Tensor) -> State:
            self.actions[r].check_field(own)
            value = value_in_torch(self.differences[r], own)
            return State(own, value if self.actions[r].is_known else None)

        return init_ladder(field, begin_one)

    @torch.no_grad()
    def step(self, state: LadderState, rng: Randomness) -> tuple[LadderState, Info]:
        device = next(iter(state.here.values())).field.device
        common = shared_stream(rng, self.name)
        # The uniforms of all pairs are drawn whatever the parity, so that the stream does not
        # depend on it.
        uniform = torch.rand(
            (len(self.flows) + 1, state.chains),
            dtype=torch.float64,
            device=common.device,
            generator=common,
        ).to(device)
        if len(self.flows) == 1:
            parity = 0
        elif self.schedule == "even_odd":
            parity = state.sweep % 2
        else:
            parity = int(uniform[-1, 0] < 0.5)

        # All maps first: reports are on their way while other pairs are worked on.
        tried = range(parity, len(self.flows), 2)
        halves: dict[int, _Half] = {}
        reports: dict[int, Callable[[], Tensor]] = {}
        for pair in tried:
            for mine, other in ((pair, pair + 1), (pair + 1, pair)):
                if mine in state.here:
                    halves[mine] = self._map(state, pair, mine)
                    if other not in state.here:
                        assert state.wire is not None
                        reports[mine] = state.wire.swap(mine, other, halves[mine].report)
        parts = {}
        for pair in range(len(self.flows)):
            if pair in tried and (pair in state.here or pair + 1 in state.here):
                state, info = self._decide(state, pair, halves, reports, uniform[pair].log())
                if pair in state.here:
                    parts[f"pair[{pair}]"] = info
            elif pair in state.here:
                parts[f"pair[{pair}]"] = Info(
                    torch.empty(state.chains, 0, dtype=torch.bool, device=device),
                    {
                        "work": torch.full_like(uniform[0], torch.nan),
                        "non_finite": torch.zeros_like(uniform[0], dtype=torch.bool),
                    },
                )
        state = replace(state, sweep=state.sweep + 1)
        return state, Info(torch.empty(0, 0, dtype=torch.bool), {}, parts)

    def _map(self, state: LadderState, pair: int, mine: int) -> _Half:
        """Carry the configurations of one side of a pair to the other side's coupling."""
        flow, replica = self.flows[pair], state.replica(mine)
        own, target = self.differences[mine], self.differences[2 * pair + 1 - mine]
        there, back = (flow.forward, flow.inverse) if mine == pair else (flow.inverse, flow.forward)
        zero = torch.zeros(state.chains, dtype=torch.float64, device=replica.field.device)
        field, minus_jacobian = there(replica.field, zero)
        action = target(field)
        work = action + minus_jacobian - action_of(own, replica)
        allowed = torch.ones_like(work)
        if self.check_inverse is not None:
            returned, density = back(field, zero)
            # The reverse move starts from the image, and asks the same of it.
            again, back_density = there(returned, zero)
            close = own.group.distance(returned, replica.field) <= self.check_inverse
            close &= own.group.distance(again, field) <= self.check_inverse
            close &= torch.isfinite(density) & torch.isfinite(back_density)
            allowed = close.to(work.dtype)
        label = state.walkers[:, mine].to(work)
        return _Half(field, action, torch.stack([work, allowed, label]))

    def _decide(
        self,
        state: LadderState,
        pair: int,
        halves: dict[int, _Half],
        reports: dict[int, Callable[[], Tensor]],
        log_uniform: Tensor,
    ) -> tuple[LadderState, Info]:
        """Accept or reject; both sides come to the same decision from the same numbers."""
        both = (pair, pair + 1)
        below, above = (
            halves[side].report if side in halves else reports[2 * pair + 1 - side]()
            for side in both
        )
        work = below[0] + above[0]
        is_accepted = torch.isfinite(work) & (below[1] * above[1] > 0) & (log_uniform < -work)
        if bool(is_accepted.any()):
            state = self._swap(state, both, halves, (below[2], above[2]), is_accepted)
        return state, Info(
            is_accepted[:, None], {"work": work, "non_finite": ~torch.isfinite(work)}
        )

    def _swap(
        self,
        state: LadderState,
        both: tuple[int, int],
        halves: dict[int, _Half],
        labels: tuple[Tensor, Tensor],
        is_accepted: Tensor,
    ) -> LadderState:
        """Put the mapped configurations of the accepted ladders into their new places."""
        chosen = is_accepted.nonzero()[:, 0]
        new: dict[int, tuple[Tensor, Tensor]] = {}
        waiting: dict[int, tuple[Callable[[], Tensor], Callable[[], Tensor]]] = {}
        for mine in both:
            other = both[0] + both[1] - mine
            if mine not in halves:
                continue
            if other in halves:
                new[mine] = halves[other].field[chosen], halves[other].action[chosen]
            else:
                # Only what is accepted travels.
                assert state.wire is not None
                half = halves[mine]
                waiting[mine] = (
                    state.wire.swap(mine, other, half.field[chosen]),
                    state.wire.swap(mine, other, half.action[chosen]),
                )
        new |= {mine: (field(), action()) for mine, (field, action) in waiting.items()}
        walkers = state.walkers.clone()
        for mine, (fields, actions) in new.items():
            replica = state.replica(mine)
            field = replica.field.index_copy(0, chosen, fields)
            action = None
            if self.actions[mine].is_known:
                action = action_of(self.actions[mine], replica).index_copy(0, chosen, actions)
            state = state.with_replica(mine, replica.moved(field, action))
            moved = labels[1] if mine == both[0] else labels[0]
            walkers[chosen.cpu(), mine] = moved[chosen].to(walkers)
        return replace(state, walkers=walkers)
