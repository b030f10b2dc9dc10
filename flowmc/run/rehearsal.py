"""One application of every kernel to one chain, thrown away: what the run will report, in shape.

It also makes most mistakes of a configuration show before the run directory is made.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from flowmc.actions.base import Action
from flowmc.kernels import Info, LadderState, State
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.run.assembly import Assembly
from flowmc.run.config import ObservableEntry
from flowmc.run.diagnostics import leaves, schema_of

__all__ = ["measure", "observable_shapes", "rehearse", "replicas_of"]


def rehearse(assembly: Assembly, state: State | LadderState, seed: int) -> dict[str, dict]:
    """Return the schema of all diagnostics; see :class:`flowmc.run.diagnostics.Diagnostics`."""
    one = _first_chain(state)
    rng = stream(seed, 0, "rehearsal", assembly.device)
    parts: dict[str, Info] = {}
    for name, kernel in assembly.timed.items():
        one, parts[name] = kernel.kernel.step(one, rng)
    info = Info(torch.empty(0, 0, dtype=torch.bool), parts=parts)
    return schema_of(leaves(info, kernel_names(assembly)))


def kernel_names(assembly: Assembly) -> dict[str, str]:
    """Return the kernels' own names by their unique names in the cycle."""
    return {unique: kernel.name for unique, kernel in assembly.timed.items()}


def observable_shapes(
    entries: Sequence[ObservableEntry], actions: Sequence[Action], state: State | LadderState
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every observable behind the axes (chains, replicas).

    Raises:
        ConfigError: an observable is not defined for the theory, or its keys do not fit.
    """
    one = _first_chain(state)
    shapes = {}
    for entry in entries:
        try:
            shapes[entry.label] = measure(entry, actions, one).shape[2:]
        except (ConfigError, ValueError, TypeError, IndexError, RuntimeError) as error:
            raise ConfigError(f"[measure]: {entry.label}: {error}") from error
    return shapes


@torch.no_grad()
def measure(
    entry: ObservableEntry, actions: Sequence[Action], state: State | LadderState
) -> np.ndarray:
    """Return an observable of one block of chains, ``(chains, replicas, ...)`` float64.

    Complex observables get a last axis of real and imaginary part.
    """
    values = []
    for action, replica in zip(actions, replicas_of(state), strict=True):
        value = entry.function(replica.field, action, **entry.keys)
        value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
        if value.dim() == 0 or value.shape[0] != replica.chains:
            raise ConfigError(
                f"{entry.label} should return one value per chain, an array (chains, ...), not of "
                f"shape {tuple(value.shape)}"
            )
        values.append(value.to(torch.float64).cpu().numpy())
    return np.stack(values, axis=1)


def replicas_of(state: State | LadderState) -> tuple[State, ...]:
    """Return the replicas of a ladder, or the one of a plain state."""
    return state.replicas if isinstance(state, LadderState) else (state,)


def _first_chain(state: State | LadderState) -> State | LadderState:
    if isinstance(state, LadderState):
        replicas = tuple(_first_of(replica) for replica in state.replicas)
        return LadderState(replicas, state.walkers[:1], state.sweep)
    return _first_of(state)


def _first_of(state: State) -> State:
    action = None if state.action is None else state.action[:1]
    return State(state.field[:1], action, {key: value[:1] for key, value in state.log_q.items()})
