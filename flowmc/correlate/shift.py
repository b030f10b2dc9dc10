"""One ensemble carried to another theory, configuration by configuration."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.chains.measuring import measure_field
from flowmc.correlate.measurement import Columns, Context, Sample, Series
from flowmc.estimators.gain import block_length
from flowmc.estimators.history import History, result_of
from flowmc.estimators.reweighting import (
    WeightVerdict,
    judge_weights,
    log_partition_ratio,
    log_weights_of,
    reweight,
)
from flowmc.flows.base import Flow, Identity

__all__ = ["Shift"]

LOG_WEIGHT, PLAIN_LOG_WEIGHT = "log_weight", "plain/log_weight"


class Shift:
    r"""Configurations of the theory a as weighted configurations of the theory b.

    Columns: ``log_weight`` and ``observables/LABEL`` of the mapped configurations, and for plain
    reweighting at the same couplings ``plain/log_weight``, and ``plain/observables/LABEL`` of those
    observables that depend on the couplings.

    Args:
        context: the theory a and the observables.
        action: the theory b.
        flow: from a to b.
    """

    def __init__(self, context: Context, action: Action, flow: Flow) -> None:
        self.context, self.action, self.flow = context, action, flow
        self.is_plain = isinstance(flow, Identity)
        self._explicit: set[str] | None = None

    @torch.no_grad()
    def apply(self, sample: Sample) -> tuple[Tensor, Columns]:
        """Return the mapped configurations and the columns."""
        if self.is_plain:
            mapped = sample.field
            log_weight = sample.action - self.action(sample.field)
        else:
            mapped, log_weight = log_weights_of(
                self.flow, sample.field, self.context.action, self.action
            )
        # Where a density was not found, the configuration cannot be used: weight zero.
        log_weight = torch.where(torch.isnan(log_weight), -torch.inf, log_weight)
        columns = {LOG_WEIGHT: log_weight.cpu().numpy()}
        for entry in self.context.observables:
            values = measure_field(entry, self.action, mapped)
            columns[f"observables/{entry.label}"] = values
        if not self.is_plain:
            plain = sample.action - self.action(sample.field)
            columns[PLAIN_LOG_WEIGHT] = plain.cpu().numpy()
            for label in self._explicit_in_couplings(sample):
                entry = next(one for one in self.context.observables if one.label == label)
                values = measure_field(entry, self.action, sample.field)
                columns[f"plain/observables/{label}"] = values
        return mapped, columns

    def means(self, columns: Columns, series: Series) -> dict[str, NDArray[Any]]:
        """Return all observables and derived quantities of b by label.

        Args:
            columns: as from :meth:`apply`, of all configurations.
            series: of the whole measurement.
        """
        found = {
            path.removeprefix("observables/"): values
            for path, values in columns.items()
            if path.startswith("observables/")
        }
        return self._weighted(series, found, columns[LOG_WEIGHT])

    def plain_means(self, columns: Columns, series: Series) -> dict[str, NDArray[Any]]:
        """Return the same by plain reweighting."""
        if self.is_plain:
            return self.means(columns, series)
        found = dict(series.under("observables"))
        for path, values in columns.items():
            if path.startswith("plain/observables/"):
                found[path.removeprefix("plain/observables/")] = values
        return self._weighted(series, found, columns[PLAIN_LOG_WEIGHT])

    def verdict(self, columns: Columns, history: History) -> WeightVerdict:
        """Return what the weights are good for, with their autocorrelation."""
        logs = columns[LOG_WEIGHT]
        tau = result_of("weight", log_partition_ratio(history, logs)).tau_int
        tau = tau if math.isfinite(tau) else 0.5
        return judge_weights(logs, len(logs) // block_length(history, tau), tau_int=tau)

    def _weighted(
        self, series: Series, columns: Mapping[str, NDArray], log_weights: NDArray
    ) -> dict[str, NDArray[Any]]:
        means = {
            label: reweight(series.history, values, log_weights)
            for label, values in columns.items()
        }
        return {**means, **self.context.derived.values(means)}

    def _explicit_in_couplings(self, sample: Sample) -> set[str]:
        """Return the observables whose values on the same field depend on the couplings."""
        if self._explicit is None:
            self._explicit = {
                entry.label
                for entry in self.context.observables
                if not np.array_equal(
                    measure_field(entry, self.action, sample.field),
                    sample.observables[entry.label],
                )
            }
        return self._explicit
