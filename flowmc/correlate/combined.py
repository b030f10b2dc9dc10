"""Several ensembles as one: what was measured on them, means and free energies in any theory."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmc.actions.base import Action
from flowmc.correlate.measurement import Columns, Series
from flowmc.correlate.quantities import Derived, Means
from flowmc.correlate.source_section import tunnelling
from flowmc.estimators.history import Result, result_of
from flowmc.estimators.multi_ensemble import MultiEnsemble
from flowmc.registry import ConfigError

__all__ = ["ACTIONS", "EXPLICIT", "Combination", "MeasuredEnsemble"]

# Columns: S of all theories; observables that depend on the couplings themselves, in all theories.
ACTIONS, EXPLICIT = "actions", "explicit"


@dataclass(frozen=True)
class MeasuredEnsemble:
    """One ensemble and what was measured on it.

    Attributes:
        label: its name.
        action: the theory that it was made with.
        series: ``actions`` are S of all theories, ``(configurations, theories)``,
            ``observables/LABEL`` the observables, and ``explicit/LABEL`` those that depend on the
            couplings themselves, ``(configurations, theories, ...)``.
        doubts: about its files.
    """

    label: str
    action: Action
    series: Series
    doubts: Sequence[str] = ()


class Combination:
    """All ensembles, and means in their theories and in those of the targets by number.

    Args:
        ensembles: in the order of the theories.
        labels: of all theories: first the ensembles, then the targets.
        derived: further quantities that are made of the means.

    Attributes:
        tau_int: of every ensemble, from its action.
        multi: the estimator.
        frozen: by ensemble and quantity, why a topological charge cannot be trusted.

    Raises:
        ConfigError: ensembles do not overlap at all.
    """

    def __init__(
        self, ensembles: Sequence[MeasuredEnsemble], labels: Sequence[str], derived: Derived
    ) -> None:
        self.ensembles, self.labels, self.derived = list(ensembles), list(labels), derived
        self.actions = np.concatenate([one.series.columns[ACTIONS] for one in ensembles]).T
        self.observables = self._joined()
        self.tau_int = [self._tau_int(k) for k in range(len(self.ensembles))]
        histories = [one.series.history for one in ensembles]
        own = self.actions[: len(self.ensembles)]
        # Of too few configurations nothing is known.
        times = [one.tau_int if math.isfinite(one.tau_int) else 0.5 for one in self.tau_int]
        try:
            self.multi = MultiEnsemble(histories, own, times)
        except ValueError as error:
            raise ConfigError(f"[[ensemble]]: {error}") from error
        self.frozen = [tunnelling(self.own_series(k)) for k in range(len(self.ensembles))]

    def own_series(self, k: int) -> Series:
        """Return the observables of one ensemble in its own theory."""
        place = self.places[k]
        columns = {
            f"observables/{label}": self.values(label, k)[place] for label in self.observables
        }
        return Series(self.ensembles[k].series.history, columns)

    def own_means(self, k: int) -> dict[str, NDArray[Any]]:
        """Return the plain means of one ensemble, with derived quantities."""
        means = self.own_series(k).means()
        return {**means, **self.derived.values(means)}

    def means(self, theory: int) -> dict[str, NDArray[Any]]:
        """Return the means of all ensembles combined in a theory, with derived quantities."""
        means: Means = {
            label: self.multi.mean(self.values(label, theory), self.actions[theory])
            for label in self.observables
        }
        return {**means, **self.derived.values(means)}

    def values(self, label: str, theory: int) -> NDArray[np.float64]:
        """Return an observable on all configurations, ``(configurations, ...)``."""
        columns, is_explicit = self.observables[label]
        return columns[:, theory] if is_explicit else columns

    @property
    def places(self) -> list[NDArray[np.int64]]:
        """Places of the configurations of every ensemble among all."""
        edges = np.cumsum([len(one.series.history) for one in self.ensembles])
        return np.split(np.arange(edges[-1]), edges[:-1])

    def without(self, k: int) -> Combination:
        """Return the combination of all other ensembles, without targets."""
        rest = [m for m in range(len(self.ensembles)) if m != k]

        def reduced(columns: Columns) -> Columns:
            return {
                path: values[:, rest] if path == ACTIONS or path.startswith(EXPLICIT) else values
                for path, values in columns.items()
            }

        parts = [
            MeasuredEnsemble(
                one.label,
                one.action,
                Series(one.series.history, reduced(dict(one.series.columns))),
            )
            for one in (self.ensembles[m] for m in rest)
        ]
        return Combination(parts, [self.labels[m] for m in rest], self.derived)

    def _joined(self) -> dict[str, tuple[NDArray[np.float64], bool]]:
        """Return the columns of all observables of all ensembles, and whether they are explicit."""
        found = {}
        for path in self.ensembles[0].series.columns:
            kind, _, label = path.partition("/")
            if label:
                parts = [one.series.columns[path] for one in self.ensembles]
                found[label] = (np.concatenate(parts), kind == EXPLICIT)
        return found

    def _tau_int(self, k: int) -> Result:
        """Return the mean action of an ensemble, whose tau_int says what a configuration counts."""
        own = self.actions[k][self.places[k]]
        return result_of("action", self.ensembles[k].series.history.observable(own))
