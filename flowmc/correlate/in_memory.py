"""Correlated ensembles from objects: an ensemble in memory, or as a stream, and its measurements.

``flowmc correlate`` is this with files, checkpoints and a configuration around it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.chains.measuring import Observables
from flowmc.correlate.combine_columns import CombineColumns
from flowmc.correlate.combine_sections import combined_sections
from flowmc.correlate.combined import Combination, MeasuredEnsemble
from flowmc.correlate.measurement import Columns, Context, Measurement, Section, Series
from flowmc.correlate.passes import Passes
from flowmc.ensembles.stored import Member, StoredEnsemble
from flowmc.estimators.history import History
from flowmc.registry import ConfigError

__all__ = ["Correlated", "Fields", "combine", "correlate"]

_BATCH = 256  # configurations that are measured at a time, at least

# A tensor (measurements, chains, ...), an iterable of (chains, ...), or configurations on disk.
Fields = Tensor | Iterable[Tensor] | StoredEnsemble


@dataclass(frozen=True)
class Correlated:
    """What :func:`correlate` and :func:`combine` return.

    Attributes:
        series: everything that was measured, by ensemble.
        sections: the results: of the ensembles, then of every measurement or target.
    """

    series: Mapping[str, Series]
    sections: Sequence[Section]

    def __getitem__(self, label: str) -> Section:
        """Return the results of a measurement; "source" are those of the ensemble itself."""
        for section in self.sections:
            if section.label == label:
                return section
        raise KeyError(f"{label!r}: there are {[section.label for section in self.sections]}")

    @property
    def warnings(self) -> list[str]:
        """All warnings, each once."""
        found: dict[str, None] = {}
        for section in self.sections:
            texts = [*section.warnings]
            texts += [text for entry in section.entries for text in entry.result.warnings]
            found |= dict.fromkeys(texts)
        return list(found)


def correlate(
    fields: Fields,
    context: Context,
    measurements: Sequence[Measurement] = (),
    *,
    name: str = "ensemble",
) -> Correlated:
    """Measure an ensemble, and what it says about theories nearby.

    Args:
        fields: of the theory of the context: a tensor ``(measurements, chains, ...)``, an iterable
            of ``(chains, ...)``, of which few are in memory at a time, or a
            :class:`~flowmc.ensembles.stored.StoredEnsemble`.  Every chain is a replica.
        context: theory and observables, made by :meth:`Context.of`.
        measurements: of the same context: :class:`~flowmc.correlate.targets.Target`,
            :class:`~flowmc.correlate.difference.Difference`,
            :class:`~flowmc.correlate.linear.Linear` or your own.
        name: of the ensemble in ``pyerrors`` observables, where equal names stand for the same
            configurations.

    Raises:
        ConfigError: fields of another theory or not finite, an observable that cannot be measured,
            or an iterator that can be read once where a measurement passes over the ensemble twice.
    """
    passes = Passes(context, measurements)
    for one in measurements:
        if getattr(one, "context", context) is not context:
            raise ConfigError(f"{one.label}: was made of another context than that of correlate()")
    ensemble = _Ensemble(fields, context.action, name, context.dtype, context.device)
    if passes.has_survey:
        if isinstance(fields, Iterator):
            raise ConfigError(
                "some measurements pass over the ensemble twice: give a tensor, a list, or what "
                "can be iterated over again, not an iterator"
            )
        passes.settle(ensemble.measure(passes.survey))
    series = ensemble.measure(passes.measure)
    return Correlated({name: series}, passes.analyse(series))


def combine(
    ensembles: Mapping[str, tuple[Action, Fields]],
    targets: Mapping[str, Action] | None = None,
    observables: Observables | None = None,
    *,
    masses: Mapping[str, tuple[int, int | None]] | None = None,
) -> Correlated:
    """Combine ensembles of one theory at several couplings, by all their weights at once.

    Args:
        ensembles: by label: the action, and fields as for :func:`correlate`.
        targets: further theories by label.
        observables, masses: as for :meth:`Context.of`.

    Raises:
        ConfigError: no ensemble, one label for two theories, ensembles that do not overlap at all,
            or as :func:`correlate`.
    """
    targets = targets or {}
    labels = [*ensembles, *targets]
    if not ensembles or len(set(labels)) < len(labels):
        raise ConfigError(f"give at least one ensemble, and labels that differ, not {labels}")
    theories = [*(action for action, _ in ensembles.values()), *targets.values()]
    context = Context.of(theories[0], observables, masses=masses)
    columns = CombineColumns(theories[0], theories, context.observables)
    measured = []
    for label, (action, fields) in ensembles.items():
        ensemble = _Ensemble(fields, action, label, context.dtype, context.device)
        measured.append(MeasuredEnsemble(label, action, ensemble.measure(columns.measure)))
    combination = Combination(measured, labels, context.derived)
    return Correlated({one.label: one.series for one in measured}, combined_sections(combination))


class _Ensemble:
    """Fields that are handed on a few at a time, and the series of what is measured on them.

    Args:
        fields: of the ensemble.
        action: its theory.
        name: of the ensemble.
        dtype, device: of the fields.
    """

    def __init__(
        self,
        fields: Fields,
        action: Action,
        name: str,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.fields, self.action, self.name = fields, action, name
        self.dtype, self.device = dtype, device

    def measure(self, compute: Callable[[Sequence[Member], Tensor], Columns]) -> Series:
        """Return the series of what is computed of a few configurations at a time.

        Args:
            compute: takes members and fields ``(n, ...)``, returns columns ``(n, ...)``.
        """
        parts: list[Columns] = []
        members: list[Member] = []
        for some, field in self._batches():
            parts.append(compute(some, field))
            members += some
        if not members:
            raise ConfigError(f"{self.name}: there is no configuration")
        # Series run through the first replica, then the second, and so on.
        order = sorted(range(len(members)), key=lambda k: (members[k].replica, members[k].number))
        columns: dict[str, NDArray[np.float64]] = {
            path: np.concatenate([part[path] for part in parts])[order] for path in parts[0]
        }
        numbers: dict[str, list[int]] = {}
        for k in order:
            numbers.setdefault(members[k].replica, []).append(members[k].number)
        return Series(History(self.name, numbers), columns)

    def _batches(self) -> Iterator[tuple[Sequence[Member], Tensor]]:
        if isinstance(self.fields, StoredEnsemble):
            for batch in self.fields.batches(
                self.action, _BATCH, dtype=self.dtype, device=self.device
            ):
                yield batch.members, batch.field
            return
        waiting: list[Tensor] = []
        members: list[Member] = []
        chains = 0
        for number, field in enumerate(self.fields, start=1):
            self._check(field, number)
            if chains and len(field) != chains:
                raise ConfigError(
                    f"{self.name}: measurement {number} has {len(field)} chains, those before "
                    f"{chains}"
                )
            chains = len(field)
            digits = len(str(chains - 1))
            members += [Member(f"r{chain:0{digits}d}", number, "") for chain in range(chains)]
            waiting.append(field.to(self.device, self.action.group.field_dtype(self.dtype)))
            if len(members) >= _BATCH:
                yield members, torch.cat(waiting)
                waiting, members = [], []
        if members:
            yield members, torch.cat(waiting)

    def _check(self, field: Tensor, number: int) -> None:
        """Refuse what is no batch of fields of the theory, or is not finite."""
        try:
            self.action.check_field(field)
        except (ValueError, TypeError, AttributeError) as error:
            raise ConfigError(
                f"{self.name}: fields come as (measurements, chains, ...), measurement {number}: "
                f"{error}"
            ) from error
        if not bool(torch.isfinite(field).all()):
            raise ConfigError(f"{self.name}: measurement {number} has a field that is not finite")
