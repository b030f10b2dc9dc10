"""The contract of a kernel: states and reports, resuming, and an invariant density."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.chains.diagnostics import Diagnostics, leaves, reports_of
from flowmc.kernels import Cycle, Info, Kernel, LadderState, State
from flowmc.kernels.base import apply, begin
from flowmc.registry import ConfigError
from flowmc.testing.base import random_numbers, require, require_close, single
from flowmc.testing.exact import exact_draws, p_value_of_change, statistics_of

__all__ = ["check_kernel", "check_steps"]

# False-alarm rate of the test of invariance.
_THRESHOLD = 1e-6
_CHAINS = 6
# Steps until every declared value should have been reported once.
_STEPS = 4

Draw = Callable[[Action, int, torch.Generator], Tensor]


def check_kernel(
    make: Callable[[], Kernel],
    actions: Action | Sequence[Action],
    *,
    draw: Draw = exact_draws,
    draws: int = 2000,
    steps: int = 3,
) -> None:
    """Hold a kernel to its contract, :func:`check_steps`, and test that it leaves e^-S invariant.

    Exact draws are moved by the kernel and compared with what they were, and with others
    (:func:`p_value_of_change`; false alarms below 1e-6).  Such a test sees what the draws resolve:
    take couplings at which moves are rejected often, and plant an error once to see it found.

    Args:
        make: returns the kernel, made anew like that of another process.
        actions: its target, or one per replica for a kernel of a whole ladder.
        draw: ``draw(action, chains, rng)``, exact draws of a target.
        draws: how many.
        steps: of the kernel.

    Raises:
        ContractError: naming what does not hold.
    """
    check_steps(make, actions, draw=draw)
    kernel, ladder = make(), _ladder(actions)
    rng = random_numbers("check of a kernel")
    before = [draw(action, draws, rng) for action in ladder]
    state = begin(kernel, _given(before, actions))
    for _ in range(steps):
        state, _ = apply(kernel, state, rng)
    p_values = []
    for action, start, end in zip(ladder, before, _states(state), strict=True):
        fields = (start, end.field, draw(action, draws, rng))
        p_values.append(p_value_of_change(*(statistics_of(action, field) for field in fields)))
    least = min(1.0, len(p_values) * min(p_values))
    require(
        least > _THRESHOLD,
        kernel.name,
        f"it does not leave the density of {ladder[0]!r} invariant: p = {least:.2g}",
    )


def check_steps(
    make: Callable[[], Kernel],
    actions: Action | Sequence[Action],
    *,
    draw: Draw = lambda action, chains, rng: action.hot(chains, rng),
) -> None:
    """Hold a kernel to all of its contract but the invariance; see :class:`flowmc.kernels.Kernel`.

    ``init`` refuses fields of other theories, and leaves those of its own as they are.  What a step
    reports is what the kernel declares, all of it within a few steps.  A chain without an accepted
    proposal has the field that it had; what a state knows is true of its field.  Stopped after a
    step and resumed with another kernel object, the same numbers come out.  A field in single
    precision stays one.

    Args:
        make, actions: as for :func:`check_kernel`.
        draw: fields to begin with; by default hot starts.

    Raises:
        ContractError: naming what does not hold.
    """
    kernel, ladder = make(), _ladder(actions)
    fields = [draw(action, _CHAINS, random_numbers("fields")) for action in ladder]
    given = _given(fields, actions)
    _check_refusal(kernel, given)
    whole, states = _run(kernel, begin(kernel, given), ladder)
    _check_resumed(make, kernel, given, whole[0], states)
    low = [single(field) for field in fields]
    model = getattr(kernel, "model", None)
    if model is not None and hasattr(model, "parameters"):
        return  # in the precision of its flow
    state = begin(kernel, _given(low, actions))
    for _ in range(2):
        state, _ = apply(kernel, state, random_numbers("steps"))
    for field, one in zip(low, _states(state), strict=True):
        require(one.field.dtype == field.dtype, kernel.name, "it changes the precision of fields")


def _run(kernel: Kernel, state: Any, ladder: Sequence[Action]) -> tuple[list[Any], Any]:
    """Make some steps, each checked; return the states, and the one after them."""
    top = Cycle([kernel])
    diagnostics = Diagnostics(reports_of(top.parts), _CHAINS)
    rng, seen, before = random_numbers("steps"), set(), []
    declared = {
        (name, value.name) for name, one in diagnostics.reports.items() for value in one.values
    }
    moved = torch.zeros(_CHAINS, dtype=torch.bool)
    for _ in range(_STEPS):
        before.append(state)
        after, info = apply(kernel, state, rng)
        for name, part in leaves(Info(torch.empty(0, 0), parts={kernel.name: info}), top.parts):
            try:
                diagnostics.add(0, _CHAINS, name, part)
            except ConfigError as error:
                require(False, kernel.name, str(error))
            seen |= {(name, value) for value in part.values}
        changed = [
            (one.field != other.field).flatten(1).any(1)
            for one, other in zip(_states(after), _states(state), strict=True)
        ]
        if not info.is_composed:
            rejected = ~info.is_accepted.any(1)
            require(
                not any(bool(one[rejected].any()) for one in changed),
                kernel.name,
                "a chain moves although none of its proposals is accepted",
            )
        moved |= torch.stack(changed).any(0)
        _check_knowledge(kernel, after, ladder)
        state = after
    require(bool(moved.any()), kernel.name, f"it moves none of {_CHAINS} chains in {_STEPS} steps")
    silent = declared - seen
    require(not silent, kernel.name, f"it declares values that no step reports: {sorted(silent)}")
    return before, state


def _check_knowledge(kernel: Kernel, state: Any, ladder: Sequence[Action]) -> None:
    """Check S and ln q in the state against the fields that they are of."""
    for action, one in zip(ladder, _states(state), strict=True):
        if one.action is not None:
            text = "the S in its state is not that of the field"
            require_close(one.action, action(one.field), 1e-10, kernel.name, text)
        model = getattr(kernel, "model", None)
        if model is not None and hasattr(model, "fingerprint"):
            known = one.log_q.get(model.fingerprint())
            if known is not None:
                text = "the ln q in its state is not that of the field"
                with torch.no_grad():
                    density = model.log_prob(one.field)
                require_close(known, density, 1e-6, kernel.name, text)


def _check_refusal(kernel: Kernel, given: Any) -> None:
    narrow = (
        [field[..., :1].contiguous() for field in given]
        if isinstance(given, list)
        else given[..., :1].contiguous()
    )
    try:
        kernel.init(narrow)
    except (ValueError, ConfigError):
        return
    require(False, kernel.name, "init takes fields of another shape: let it call check_field()")


def _check_resumed(
    make: Callable[[], Kernel], kernel: Kernel, given: Any, start: Any, end: Any
) -> None:
    """Do the steps again, each by a kernel object of its own from what a checkpoint holds."""
    rng, state = random_numbers("steps"), start
    for _ in range(_STEPS):
        again = make()
        again.set_tuning(kernel.tuning())
        begin(again, given)
        state, _ = apply(again, _stored(state), rng)
    for one, other in zip(_states(state), _states(end), strict=True):
        require(
            torch.equal(one.field, other.field),
            kernel.name,
            "stopped and resumed after every step it gives other fields: what it keeps of the "
            "chains belongs into the state (State.with_carried)",
        )


def _stored(state: Any) -> Any:
    """Return a state with copies of all tensors, as from a checkpoint."""
    if isinstance(state, LadderState):
        for index, one in state.here.items():
            state = state.with_replica(index, _stored(one))
        return dataclasses.replace(state, walkers=state.walkers.clone())
    carried = {
        name: dataclasses.replace(one, value=one.value.clone())
        for name, one in state.carried.items()
    }
    return State(
        state.field.clone(),
        None if state.action is None else state.action.clone(),
        {key: value.clone() for key, value in state.log_q.items()},
        carried,
    )


def _ladder(actions: Action | Sequence[Action]) -> list[Action]:
    return [actions] if isinstance(actions, Action) else list(actions)


def _given(fields: list[Tensor], actions: Action | Sequence[Action]) -> Any:
    return fields[0] if isinstance(actions, Action) else fields


def _states(state: Any) -> list[State]:
    return list(state.here.values()) if isinstance(state, LadderState) else [state]
