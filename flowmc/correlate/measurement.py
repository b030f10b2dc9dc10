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
from flowmc.chains.measuring import Observables, entries_of
from flowmc.config.entries import ObservableEntry
from flowmc.correlate.quantities import Derived
from flowmc.ensembles.stored import Member
from flowmc.estimators.history import History, Result
from flowmc.estimators.reweighting import WeightVerdict
from flowmc.flows.base import Flow, Identity
from flowmc.registry import ConfigError

__all__ = [
    "Columns",
    "Context",
    "Entry",
    "Measurement",
    "Sample",
    "Section",
    "Series",
    "given_flow",
]

Columns = dict[str, NDArray[np.float64]]


def given_flow(written: Any, target: Action, where: str) -> Flow:
    """Return the flow itself, or the identity for its name.

    Raises:
        ConfigError: for anything else.
    """
    if written == "identity":
        return Identity()
    if not isinstance(written, Flow):
        raise ConfigError(
            f"{where}: flow = {written!r}: should be a flowmc.flows.Flow that leads to {target!r}, "
            'or "identity"'
        )
    return written.eval()


@dataclass(frozen=True)
class Context:
    """What a measurement is built from; in Python, of :meth:`of`.

    Attributes:
        action: the theory of the ensemble.
        observables: to measure.
        derived: further quantities that are made of the means.
        dtype: of the real components of fields.
        device: where fields live.
        load_flow: ``(written, target action, where) -> flow`` from the ensemble's theory to the
            target.
    """

    action: Action
    observables: Sequence[ObservableEntry]
    derived: Derived
    dtype: torch.dtype
    device: torch.device
    load_flow: Callable[[Any, Action, str], Flow]

    @classmethod
    def of(
        cls,
        action: Action,
        observables: Observables | None = None,
        *,
        masses: Mapping[str, tuple[int, int | None]] | None = None,
        dtype: torch.dtype = torch.float64,
        device: torch.device | str = "cpu",
    ) -> Context:
        """Return the context of an ensemble in memory.

        Args:
            action: the theory of the ensemble.
            observables: as for :func:`~flowmc.chains.sampling.sample`.
            masses: effective masses by label of a correlator, with the first and last time of the
                mean mass; None for all inner times.
            dtype, device: as above.

        Raises:
            ConfigError: an observable is not known, or not among them what a mass is taken of.
        """
        entries, masses = entries_of(observables, action), masses or {}
        for label in masses:
            if label not in [entry.label for entry in entries]:
                raise ConfigError(f"masses: {label!r} is not among the observables")
        derived = Derived.of(entries, masses)
        return cls(action, entries, derived, dtype, torch.device(device), given_flow)


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

    @property
    def results(self) -> dict[str, Result]:
        """The numbers by the name of their quantity."""
        return {entry.observable: entry.result for entry in self.entries}


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
