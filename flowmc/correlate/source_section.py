"""The ensemble itself: plain means of all observables."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from flowmc.correlate.measurement import (
    Columns,
    Context,
    Entry,
    Measurement,
    Sample,
    Section,
    Series,
)
from flowmc.correlate.quantities import component_label, components, judged
from flowmc.estimators.autocorrelation import MINIMUM_HOPS, NEAR_INTEGERS, count_hops

__all__ = ["SourceSection", "tunnelling"]


class SourceSection(Measurement):
    """Means, errors and autocorrelation times in the ensemble's own theory.

    Args:
        label: of the section.
        context: the theory and the observables.
    """

    def __init__(self, label: str, context: Context) -> None:
        self.label, self.context = label, context

    def measure(self, sample: Sample) -> Columns:
        return {}

    def analyse(self, series: Series) -> Section:
        means = series.means()
        means = {**means, **self.context.derived.values(means)}
        frozen = tunnelling(series)
        entries = []
        for label, index in components(means):
            name = component_label(label, index)
            # Frozen charges have small apparent errors.
            sentences = [frozen[name]] if name in frozen else []
            entries.append(Entry(name, judged(name, means[label][index], *sentences)))
        return Section(
            self.label,
            f"the ensemble, {self.context.action!r}",
            entries,
            warnings=list(frozen.values()),
        )


def tunnelling(series: Series) -> dict[str, str]:
    """Return a warning for every topological charge that hardly ever changes.

    By the name of the quantity: an observable ``topological_charge``, or the last column of
    ``gradient_flow`` at the largest flow time.
    """
    found = {}
    for name, values in _charges(series):
        if abs(values - values.round()).mean() > NEAR_INTEGERS:
            continue  # its changes cannot be counted
        hops = sum(count_hops(part) for part in series.history.split(values))
        if hops < MINIMUM_HOPS:
            found[name] = (
                f"{name} changed {hops} times in {len(values)} configurations: the ensemble is "
                f"frozen (at least {MINIMUM_HOPS} changes needed), and errors of everything that "
                "depends on the charge are lower bounds"
            )
    return found


def _charges(series: Series) -> Iterator[tuple[str, NDArray[np.float64]]]:
    for label, values in series.under("observables").items():
        if label.startswith("topological_charge") and values.ndim == 1:
            yield label, values
        elif label.startswith("gradient_flow") and values.ndim == 3 and values.shape[2] == 3:
            yield component_label(label, (values.shape[1] - 1, 2)), values[:, -1, 2]
