"""What is measured on every configuration of several ensembles that are to be combined."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.config.entries import ObservableEntry
from flowmc.correlate.combined import ACTIONS, EXPLICIT
from flowmc.correlate.measurement import Columns
from flowmc.correlate.passes import disordered_field, observe
from flowmc.ensembles.stored import Member

__all__ = ["CombineColumns"]


class CombineColumns:
    """The actions of all theories, the observables, and of those that depend on the couplings
    themselves the values in all theories.

    Args:
        action: the theory in which the other observables are measured.
        theories: of all ensembles and targets.
        observables: what to measure.

    Raises:
        ConfigError: an observable that cannot be measured.
    """

    def __init__(
        self,
        action: Action,
        theories: Sequence[Action],
        observables: Sequence[ObservableEntry],
    ) -> None:
        self.action, self.theories, self.observables = action, list(theories), list(observables)
        field = disordered_field(action, torch.float64, torch.device("cpu"))

        def is_explicit(entry: ObservableEntry) -> bool:
            here, *there = (observe(entry, one, field) for one in (action, *self.theories))
            return not all(np.array_equal(one, here) for one in there)

        self.explicit = {one.label for one in self.observables if is_explicit(one)}

    def measure(self, members: Sequence[Member], field: Tensor) -> Columns:
        """Return the columns of a few configurations, ``(n, ...)``."""
        with torch.no_grad():
            actions = [theory(field).cpu().numpy() for theory in self.theories]
        columns = {ACTIONS: np.stack(actions, axis=1)}
        for entry in self.observables:
            if entry.label in self.explicit:
                values = [observe(entry, theory, field) for theory in self.theories]
                columns[f"{EXPLICIT}/{entry.label}"] = np.stack(values, axis=1)
            else:
                columns[f"observables/{entry.label}"] = observe(entry, self.action, field)
        return columns
