"""What is measured of states: observables of fields, as arrays of numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.config.entries import ObservableEntry, read_observables
from flowmc.kernels import LadderState, State
from flowmc.registry import ConfigError

__all__ = [
    "Observables",
    "entries_of",
    "measure",
    "measure_field",
    "measure_replica",
    "observable_shapes",
    "replicas_of",
]

# Names as in [measure], tables with name and keys, or functions (field, action) -> (chains, ...).
Observables = Sequence[str | Mapping[str, Any] | Callable[..., Tensor]]


def entries_of(observables: Observables | None, action: Action) -> list[ObservableEntry]:
    """Return what is measured, by labels; None for what a run measures by default.

    Raises:
        ConfigError: an observable is not known, or listed twice.
    """
    if observables is None:
        return read_observables({}, action)
    found: list[ObservableEntry] = []
    for one in observables:
        if callable(one):
            label = getattr(one, "__name__", type(one).__name__)
            found.append(ObservableEntry(label, one, {}, label))
        else:
            found += read_observables({"observables": [one]}, action)
    labels = [entry.label for entry in found]
    twice = [label for label in labels if labels.count(label) > 1]
    if twice:
        raise ConfigError(f"observables: {twice[0]} is listed twice")
    return found


def observable_shapes(
    entries: Sequence[ObservableEntry], actions: Sequence[Action], state: State | LadderState
) -> dict[str, tuple[int, ...]]:
    """Return the shape of every observable behind the axes (chains, replicas).

    Args:
        entries: the observables.
        actions: of all replicas.
        state: of any chains, a single one will do; with all replicas.

    Raises:
        ConfigError: an observable is not defined for the theory, or its keys do not fit.
    """
    shapes = {}
    for entry in entries:
        try:
            shapes[entry.label] = measure(entry, actions, state).shape[2:]
        except (ConfigError, ValueError, TypeError, IndexError, RuntimeError) as error:
            raise ConfigError(f"[measure]: {entry.label}: {error}") from error
    return shapes


def measure(
    entry: ObservableEntry, actions: Sequence[Action], state: State | LadderState
) -> np.ndarray:
    """Return an observable of one block of chains, ``(chains, replicas, ...)`` float64.

    Complex observables get a last axis of real and imaginary part.
    """
    values = [
        measure_replica(entry, action, replica)
        for action, replica in zip(actions, replicas_of(state), strict=True)
    ]
    return np.stack(values, axis=1)


def measure_replica(entry: ObservableEntry, action: Action, state: State) -> np.ndarray:
    """Return an observable of one replica of one block of chains, ``(chains, ...)`` float64."""
    return measure_field(entry, action, state.field)


@torch.no_grad()
def measure_field(entry: ObservableEntry, action: Action, field: Tensor) -> np.ndarray:
    """Return an observable of fields ``(chains, ...)``, one value or array per chain, float64.

    Complex observables get a last axis of real and imaginary part.

    Raises:
        ConfigError: if it does not return one value per chain.
    """
    value = entry.function(action.with_fixed_links(field), action, **entry.keys)
    value = torch.view_as_real(value.resolve_conj()) if value.is_complex() else value
    if value.dim() == 0 or value.shape[0] != field.shape[0]:
        raise ConfigError(
            f"{entry.label} should return one value per chain, an array (chains, ...), not of "
            f"shape {tuple(value.shape)}"
        )
    return value.to(torch.float64).cpu().numpy()


def replicas_of(state: State | LadderState) -> tuple[State, ...]:
    """Return the replicas of a ladder that live on this rank, or the one of a plain state."""
    return tuple(state.here.values()) if isinstance(state, LadderState) else (state,)
