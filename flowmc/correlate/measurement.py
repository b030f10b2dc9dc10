"""What the measurements of ``flowmc correlate`` have in common.

A :class:`Measurement` turns every configuration into numbers (``measure``), which are stored as
series, and all series together into results (``analyse``).  Neither knows about files.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.config.entries import ObservableEntry
from flowmc.correlate.quantities import Derived
from flowmc.ensembles.stored import Member
from flowmc.estimators.history import History, Result
from flowmc.estimators.reweighting import WeightVerdict
from flowmc.flows.base import Flow

__all__ = ["Context", "Entry", "Measurement", "Sample", "Section", "Series"]

Columns = dict[str, NDArray[np.float64]]


@dataclass(frozen=True)
class Context:
    """What a measurement is built from.

    Attributes:
        action: the theory of the ensemble.
        observables: to measure.
        dtype: of the real components of fields.
        device: where fields live.
        load_flow: ``(written, target action, where) -> flow`` from the ensemble's theory to the
            target.
        derived: further quantities that are made of the means.
    """

    action: Action
    observables: Sequence[ObservableEntry]
    dtype: torch.dtype
    device: torch.device
    load_flow: Callable[[str, Action, str], Flow]
    derived: Derived


@dataclass(frozen=True)
class Sample:
    """A few configurations of the ensemble with what is known about them already.

    Attributes:
        members: which they are.
        field: ``(configurations, ...)``.
        action: S of the ensemble's theory, ``(configurations,)`` float64.
        observables: by label, ``(configurations, ...)`` float64.
    """

    members: Sequence[Member]
    field: Tensor
    action: Tensor
    observables: Columns


@dataclass(frozen=True)
class Series:
    """Everything that was measured.

    Attributes:
        history: replicas and configuration numbers.
        columns: by path, ``(configurations, ...)``; ``observables/LABEL`` and ``action`` are those
            of the ensemble itself, ``MEASUREMENT/...`` what a measurement has added.
    """

    history: History
    columns: Mapping[str, NDArray[np.float64]]

    def under(self, prefix: str) -> Columns:
        """Return the columns below a path, by the rest of their paths."""
        start = prefix + "/"
        return {
            path.removeprefix(start): values
            for path, values in self.columns.items()
            if path.startswith(start)
        }

    def means(self, prefix: str = "observables") -> dict[str, NDArray[Any]]:
        """Return the plain means of all columns below a path as arrays of observables."""
        return {
            label: self.history.observables(values) for label, values in self.under(prefix).items()
        }


@dataclass(frozen=True)
class Entry:
    """One number of a section.

    Attributes:
        observable: its label, with the component of vectors: ``"correlator[3]"``.
        result: value and error.
        against: further results by name: ``rho``, ``gain_independent``, ``gain_reweighting``, ...
    """

    observable: str
    result: Result
    against: Mapping[str, Result] = field(default_factory=dict)


@dataclass(frozen=True)
class Section:
    """The results of one measurement.

    Attributes:
        label: of the measurement.
        title: in words.
        entries: the numbers.
        weights: what its weights are good for, by what they belong to.
        details: further plain values for ``results.json`` and plots.
        warnings: about the section as a whole.
        notes: facts in words, below the title.
    """

    label: str
    title: str
    entries: Sequence[Entry]
    weights: Mapping[str, WeightVerdict] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()
    notes: Sequence[str] = ()


class Measurement(ABC):
    """Something that is measured on every configuration of an ensemble.

    Attributes:
        label: unique; the first part of the paths of its columns.
        has_survey: whether a pass over the whole ensemble comes before the measurements.
    """

    label: str
    has_survey: bool = False

    def survey(self, sample: Sample) -> Columns:
        """Return the columns of that first pass, as :meth:`measure`."""
        return {}

    def settle(self, survey: Series) -> None:  # noqa: B027
        """Learn from the first pass; its own columns are ``survey.under(self.label)``."""

    @abstractmethod
    def measure(self, sample: Sample) -> Columns:
        """Return columns ``(configurations, ...)`` by path, without the label."""

    @abstractmethod
    def analyse(self, series: Series) -> Section:
        """Return results; the own columns are ``series.under(self.label)``."""
