"""``[[target]]``: the ensemble at other couplings, with weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from flowmc.actions.base import Action
from flowmc.correlate.measurement import (
    Columns,
    Context,
    Entry,
    Measurement,
    Sample,
    Section,
    Series,
)
from flowmc.correlate.quantities import against, component_label, components, judged
from flowmc.correlate.shift import LOG_WEIGHT, Shift
from flowmc.correlate.writing import CorrelatedWriter
from flowmc.estimators.autocorrelation import Estimate
from flowmc.estimators.gain import block_length
from flowmc.estimators.history import Result
from flowmc.estimators.reweighting import block_jackknife, log_partition_ratio
from flowmc.flows.base import Flow

__all__ = ["Target"]


class Target(Measurement):
    r"""All observables in the theory b, and their differences to those of the ensemble.

    Args:
        label: of the target.
        context: the theory of the ensemble and the observables.
        action: the theory b.
        flow: from the ensemble's theory to b.
        writer: of the correlated configurations; None to keep only numbers.
    """

    def __init__(
        self,
        label: str,
        context: Context,
        action: Action,
        flow: Flow,
        writer: CorrelatedWriter | None = None,
    ) -> None:
        self.label, self.context, self.writer = label, context, writer
        self.shift = Shift(context, action, flow)

    @torch.no_grad()
    def measure(self, sample: Sample) -> Columns:
        mapped, columns = self.shift.apply(sample)
        if self.writer is not None:
            self.writer.write(sample.members, mapped, columns[LOG_WEIGHT])
        return columns

    def analyse(self, series: Series) -> Section:
        columns, history = series.under(self.label), series.history
        verdict = self.shift.verdict(columns, history)
        source = series.means()
        source = {**source, **self.context.derived.values(source)}
        target = self.shift.means(columns, series)
        plain = None if self.shift.is_plain else self.shift.plain_means(columns, series)
        ratio = log_partition_ratio(history, columns[LOG_WEIGHT])
        entries = [Entry("ln Z_b / Z_a", judged("ln Z_b / Z_a", ratio, *verdict.warnings))]
        for label, index in components(target):
            name = component_label(label, index)
            value = judged(name, target[label][index], *verdict.warnings)
            check = self._cross_check(series, columns, label, index, value)
            there = _at(source, label, index)
            if there is None:
                entries.append(Entry(name, value, check))
                continue
            change = judged(f"change of {name}", target[label][index] - there, *verdict.warnings)
            without = None if plain is None else _at(plain, label, index)
            compared = against(
                history,
                change,
                ensembles=(there, target[label][index]),
                independent=(there, 2.0),
                reweighting=None if without is None else without - there,
            )
            entries += [Entry(name, value, check), Entry(f"change of {name}", change, compared)]
        logs = columns[LOG_WEIGHT]
        details = {"log_weight_mean": float(np.mean(logs)), "log_weight_spread": verdict.spread}
        return Section(self.label, f"at {self.label}", entries, {self.label: verdict}, details)

    def _cross_check(
        self,
        series: Series,
        columns: Columns,
        label: str,
        index: tuple[int, ...],
        value: Result,
    ) -> dict[str, Result]:
        """Return value and error by the block jackknife, of observables that are means."""
        values = columns.get(f"observables/{label}")
        if values is None or not value.error > 0:
            return {}
        history = series.history
        block = block_length(history, value.tau_int)
        component = values.reshape(len(values), -1)[:, _flat(values.shape[1:], index)]
        mean, error, bias = block_jackknife(history, component, columns[LOG_WEIGHT], block)
        estimate = Estimate(mean - bias, error, 0.5, 0.0, len(history) // block, 0)
        return {"jackknife": Result("jackknife", estimate)}


def _at(quantities: dict[str, Any], label: str, index: tuple[int, ...]) -> Any:
    array = quantities.get(label)
    return None if array is None else array[index]


def _flat(shape: tuple[int, ...], index: tuple[int, ...]) -> int:
    return int(np.ravel_multi_index(index, shape)) if index else 0
