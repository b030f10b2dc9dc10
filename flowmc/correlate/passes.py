"""What is measured on every configuration of an ensemble, and what all of it says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.chains.measuring import measure_field
from flowmc.config.entries import ObservableEntry
from flowmc.correlate.measurement import Columns, Context, Measurement, Sample, Section, Series
from flowmc.correlate.source_section import SourceSection
from flowmc.ensembles.stored import Member
from flowmc.random import stream
from flowmc.registry import ConfigError

__all__ = ["SOURCE", "Passes", "disordered_field", "observe"]

SOURCE = "source"
# Beside the columns below the labels of measurements.
_OWN = ("observables", "action")


class Passes:
    """The passes of an ensemble through its measurements.

    Args:
        context: the theory of the ensemble and the observables.
        measurements: what to measure beside these.

    Raises:
        ConfigError: two measurements have one label.
    """

    def __init__(self, context: Context, measurements: Sequence[Measurement]) -> None:
        self.context, self.measurements = context, list(measurements)
        labels = [SOURCE, *_OWN, *(one.label for one in self.measurements)]
        twice = [label for label in labels if labels.count(label) > 1]
        if twice:
            raise ConfigError(
                f"two measurements are called {twice[0]!r}, or it is a reserved word: give them "
                "other labels"
            )

    @property
    def has_survey(self) -> bool:
        """Whether a pass with :meth:`survey` comes first, and then :meth:`settle`."""
        return any(one.has_survey for one in self.measurements)

    def survey(self, members: Sequence[Member], field: Tensor) -> Columns:
        """Return the columns of the first pass of a few configurations, ``(n, ...)``."""
        with torch.no_grad():
            energy = self.context.action(field)
        sample = Sample(members, field, energy, {})
        return {
            f"{measurement.label}/{path}": array
            for measurement in self.measurements
            for path, array in measurement.survey(sample).items()
        }

    def settle(self, survey: Series) -> None:
        """Let the measurements learn from the first pass."""
        for measurement in self.measurements:
            if measurement.has_survey:
                measurement.settle(survey)

    def measure(self, members: Sequence[Member], field: Tensor) -> Columns:
        """Return the columns of a few configurations, ``(n, ...)``."""
        action = self.context.action
        with torch.no_grad():
            energy = action(field)
        values: dict[str, NDArray[np.float64]] = {
            entry.label: observe(entry, action, field) for entry in self.context.observables
        }
        sample = Sample(members, field, energy, values)
        columns = {f"observables/{label}": array for label, array in values.items()}
        columns["action"] = energy.cpu().numpy()
        for measurement in self.measurements:
            for path, array in measurement.measure(sample).items():
                columns[f"{measurement.label}/{path}"] = array
        return columns

    def analyse(self, series: Series, doubts: Sequence[str] = ()) -> list[Section]:
        """Return the results, the ensemble's own first.

        Args:
            series: of all configurations.
            doubts: about the ensemble.
        """
        source = SourceSection(SOURCE, self.context).analyse(series)
        return [
            replace(source, warnings=[*doubts, *source.warnings]),
            *(measurement.analyse(series) for measurement in self.measurements),
        ]


def disordered_field(action: Action, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return one field, ``(1, ...)``, on which measurements can be tried out."""
    return action.hot(1, stream(0, 0, "rehearsal"), dtype).to(device)


def observe(entry: ObservableEntry, action: Action, field: Tensor) -> NDArray[np.float64]:
    """Return an observable of fields ``(configurations, ...)``.

    Raises:
        ConfigError: naming the observable that cannot be measured.
    """
    try:
        return measure_field(entry, action, field)
    except (ConfigError, ValueError, TypeError, IndexError, RuntimeError) as error:
        raise ConfigError(f"[measure]: {entry.label}: {error}") from error
