"""From arrays of ``pyerrors`` observables to further quantities, and to entries of a section."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmc.config.entries import ObservableEntry
from flowmc.estimators.correlators import (
    apply,
    apply_derivative,
    connected,
    effective_mass,
    mean_mass,
)
from flowmc.estimators.gain import block_length, correlation, variance_ratio
from flowmc.estimators.history import History, Result, fluctuations_of, result_of

__all__ = ["Derived", "Means", "against", "component_label", "components", "judged"]


Means = Mapping[str, NDArray[Any]]


class Derived:
    """Quantities derived from the means of observables: connected correlators and masses.

    Args:
        connected: labels of correlators whose last component is the vacuum expectation value.
        masses: by label of a correlator, the first and last time of the mean mass; None for all
            inner times.
    """

    def __init__(
        self, connected: Sequence[str], masses: Mapping[str, tuple[int, int | None]]
    ) -> None:
        self.connected, self.masses = connected, masses

    @classmethod
    def of(
        cls,
        observables: Sequence[ObservableEntry],
        masses: Mapping[str, tuple[int, int | None]],
    ) -> Derived:
        """Return the quantities that observables declare, and the masses.

        Args:
            observables: those that are measured.
            masses: as for the class.
        """
        connected = [
            entry.label
            for entry in observables
            if getattr(entry.function, "has_vacuum_column", False)
        ]
        return cls(connected, masses)

    def values(self, means: Means) -> dict[str, NDArray[Any]]:
        """Return the derived quantities by label."""
        return self._all(means, apply)

    def slopes(self, means: Means, slopes: Means) -> dict[str, NDArray[Any]]:
        """Return their derivatives, given those of the observables.

        Args:
            means: of the observables.
            slopes: the derivatives of these means by a coupling, of the same shapes.
        """
        both = {label: np.stack([means[label], slopes[label]]) for label in slopes}
        return self._all(both, lambda function, pair: apply_derivative(function, *pair))

    def _all(self, inputs: Means, apply_to: Callable[..., NDArray[Any]]) -> dict[str, NDArray[Any]]:
        found: dict[str, NDArray[Any]] = {}
        for label in self.connected:
            found[f"connected {label}"] = apply_to(connected, inputs[label])
        for label, (first, last) in self.masses.items():
            inner = inputs[label].shape[-1] - (4 if label in self.connected else 3) + 1
            end = inner if last is None else last
            own: Callable[[Callable], Callable] = (
                _after_connected if label in self.connected else _as_it_is
            )
            # Component t is m(t): the ends have none.
            masses = apply_to(own(effective_mass), inputs[label])
            found[f"effective_mass {label}"] = np.concatenate([[None], masses])
            found[f"mean_mass {label}"] = apply_to(
                own(mean_mass(first, end)), inputs[label]
            ).reshape(())
        return found


def _after_connected(function: Callable) -> Callable:
    return lambda values: function(connected(values))


def _as_it_is(function: Callable) -> Callable:
    return function


def components(quantities: Mapping[str, NDArray[Any]]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield ``(label, index)`` of every component that has a value."""
    for label, array in quantities.items():
        for index in np.ndindex(*array.shape):
            if array[index] is not None:
                yield label, index


def component_label(label: str, index: tuple[int, ...]) -> str:
    """Return ``"correlator[3]"``."""
    return f"{label}[{','.join(map(str, index))}]" if index else label


def judged(name: str, observable: Any, *sentences: str) -> Result:
    """Return the result of an observable; sentences mark it as a bound."""
    result = result_of(name, observable)
    return result.warned(*sentences) if sentences else result


def against(
    history: History,
    result: Result,
    *,
    ensembles: tuple[Any, Any] | None = None,
    independent: tuple[Any, float] | None = None,
    reweighting: Any = None,
) -> dict[str, Result]:
    """Return what a difference gains, by name, for one component.

    Args:
        history: of the configurations.
        result: the correlated difference.
        ensembles: the observables of the two ensembles, for ``rho``.
        independent: the observable of one ensemble and the factor to its variance for two
            independent ensembles, for ``gain_independent``.
        reweighting: the same difference by plain reweighting, for ``gain_reweighting``.
    """
    if result.observable is None or not result.error > 0:
        return {}
    found = {}
    own = fluctuations_of(result.observable, history)
    if ensembles is not None:
        longest = max(result.tau_int, *(_tau(one) for one in ensembles))
        block = block_length(history, longest if math.isfinite(longest) else 0.5)
        a, b = (fluctuations_of(one, history) for one in ensembles)
        found["rho"] = correlation("rho", history, a, b, block)
    if independent is not None:
        observable, factor = independent
        reference = fluctuations_of(observable, history)
        found["gain_independent"] = variance_ratio(
            "gain_independent", history, reference, own, factor, known=result.estimate
        )
    if reweighting is not None:
        plain = fluctuations_of(reweighting, history)
        found["gain_reweighting"] = variance_ratio(
            "gain_reweighting", history, plain, own, known=result.estimate
        )
    return found


def _tau(observable: Any) -> float:
    tau = result_of("", observable).tau_int
    return tau if math.isfinite(tau) else 0.5
