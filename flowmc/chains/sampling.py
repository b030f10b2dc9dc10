"""Chains in memory, from objects: for notebooks and scripts."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.chains.assembly import Assembly
from flowmc.chains.diagnostics import Diagnostics, leaves, reports_of
from flowmc.chains.measured import Measured, Phase
from flowmc.chains.measuring import Observables, entries_of, measure_field
from flowmc.chains.start import first_state, purpose_of
from flowmc.chains.stepper import action_of_kernel, check_finite, composed
from flowmc.chains.storage.checkpoint import settled
from flowmc.config.entries import ObservableEntry
from flowmc.kernels import Cycle, Info, Kernel, KernelReport, Mixture, NonFiniteStateError, State
from flowmc.kernels.base import apply
from flowmc.random import Streams, stream
from flowmc.registry import ConfigError

__all__ = ["Samples", "sample"]

Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Samples(Measured):
    """What :func:`sample` returns; see there.

    Attributes:
        thermalization, production: what was measured, and what kernels reported: series by name.
        state: of all chains after the last update.
    """

    thermalization: Phase
    production: Phase
    state: State
    _chains: _Chains

    @property
    def field(self) -> Tensor:
        """The fields after the last update, ``(chains, ...)``."""
        return self.state.field

    @property
    def updates(self) -> int:
        """Updates of production."""
        return self._chains.update - self._chains.thermalization

    @property
    def acceptance(self) -> dict[str, float]:
        """Accepted over tried by kernel, over all measured updates of production."""
        kernels = self.production.kernels
        sums = {
            name: (int(k["accepted"].sum()), int(k["tried"].sum())) for name, k in kernels.items()
        }
        return {name: accepted / tried for name, (accepted, tried) in sums.items() if tried}

    @property
    def tuning(self) -> dict[str, float]:
        """What the kernels adapted in thermalization."""
        return self._chains.kernel.tuning()

    def more(self, updates: int, *, progress: Progress | None = None) -> Samples:
        """Go on where these chains stand: the samples of one call with that many more updates.

        These samples stay as they are.
        """
        chains = self._chains.copy()
        chains.advance(updates, progress)
        return chains.samples()


def sample(
    kernel: Kernel | Sequence[Kernel] | Assembly,
    field: Tensor,
    updates: int,
    *,
    thermalization: int = 0,
    measure_every: int = 1,
    observables: Observables | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> Samples:
    """Run chains in memory, without files.

    The chains are those of ``flowmc run`` with the same kernels, fields and seed if the run has all
    of them in its first block: bit for bit.

    Args:
        kernel: a kernel, several that are applied in turn, or what
            :func:`~flowmc.chains.assembly.assemble` made of a configuration without a ladder.
            Its tuning is moved by the thermalization, as in a run.
        field: where the chains start, ``(chains, ...)``; it stays as it is.
        updates: of production.
        thermalization: updates before, in which kernels adapt; afterwards they are frozen.
        measure_every: updates from one measurement to the next.
        observables: names as in ``[measure]``, tables with ``name`` and keys, or functions
            ``(field, action) -> (chains, ...)``; None measures what a run does by default.
        seed: of the random numbers.  Another one where chains go on from fields that were made with
            it; :meth:`Samples.more` goes on without a seed.
        progress: called after every update with the updates done and all there are.

    Raises:
        ConfigError: the start is not finite, an observable is not known or not defined, or from a
            kernel that is not right for the field.
        ValueError, TypeError: the field is not one of this theory.
        NonFiniteStateError: a field became not finite.
    """
    if updates < 0 or thermalization < 0 or measure_every < 1 or seed < 0:
        raise ConfigError(
            f"updates = {updates}, thermalization = {thermalization}, seed = {seed} should be 0 or "
            f"more, measure_every = {measure_every} 1 or more"
        )
    if not isinstance(field, Tensor) or (isinstance(kernel, Assembly) and kernel.is_ladder):
        raise ConfigError(
            "one field per chain is sampled, a tensor (chains, ...); a ladder has one per replica: "
            "use flowmc run"
        )
    action = kernel.actions[0] if isinstance(kernel, Assembly) else None
    whole = composed(kernel.kernel if isinstance(kernel, Assembly) else kernel)
    action = action or action_of_kernel(whole)
    entries = _entries(observables, action)
    state = settled(first_state(whole, [action], {0: field.clone()}, 0, where=""))
    assert isinstance(state, State)
    chains = _Chains(whole, action, entries, state, seed, thermalization, measure_every)
    chains.advance(thermalization + updates, progress)
    return chains.samples()


class _Chains:
    """A block of chains that moves."""

    def __init__(
        self,
        kernel: Cycle | Mixture,
        action: Action | None,
        entries: Sequence[ObservableEntry],
        state: State,
        seed: int,
        thermalization: int,
        measure_every: int,
    ) -> None:
        self.kernel, self.action, self.entries, self.state = kernel, action, entries, state
        self.seed, self.thermalization, self.measure_every = seed, thermalization, measure_every
        self.rng = stream(seed, 0, purpose_of("update", 0), state.field.device)
        self.update = 0
        self.reported = _Reported(reports_of(kernel.parts), state.chains)
        self.phases = {"thermalization": _Rows(), "production": _Rows()}

    def copy(self) -> _Chains:
        """Return chains that go on from here by themselves; states are never changed."""
        other = copy.copy(self)
        other.rng = torch.Generator(device=self.rng.device)
        other.rng.set_state(self.rng.get_state())
        other.reported = copy.deepcopy(self.reported)
        other.phases = copy.deepcopy(self.phases)
        return other

    def advance(self, updates: int, progress: Progress | None) -> None:
        total = self.update + updates
        while self.update < total:
            self._advance()
            if progress is not None:
                progress(self.update, total)

    def _advance(self) -> None:
        update = self.update + 1
        rng = Streams(self.seed, 0, update, {0: self.rng})
        try:
            state, info = apply(self.kernel, self.state, rng)
            state = settled(state)
            assert isinstance(state, State)
            check_finite(state.field)
        except NonFiniteStateError as error:
            raise NonFiniteStateError(f"update {update}: {error}", error.chain) from error
        self.state, self.update = state, update
        for name, leaf in leaves(info, self.kernel.parts):
            try:
                self.reported.add(name, leaf)
            except ConfigError as error:
                raise ConfigError(f"update {update}: {error}") from error
        is_thermal = update <= self.thermalization
        if is_thermal and self.kernel.adapts:
            self.kernel.adapt(info, update - 1)
        count = update if is_thermal else update - self.thermalization
        if count % self.measure_every == 0:
            rows = self.phases["thermalization" if is_thermal else "production"]
            measured = {entry.label: self._measure(entry) for entry in self.entries}
            rows.add(update, measured, self.reported.row())
        if update == self.thermalization:
            # What is left of an unfinished row must not enter the first row of production.
            self.reported.reset()

    def _measure(self, entry: ObservableEntry) -> NDArray:
        assert self.action is not None
        try:
            # The second axis is that of replicas, of which there is one.
            return measure_field(entry, self.action, self.state.field)[:, None]
        except (ConfigError, ValueError, TypeError, IndexError, RuntimeError) as error:
            raise ConfigError(f"{entry.label}: {error}") from error

    def samples(self) -> Samples:
        found = {name: rows.phase(self.reported.empty()) for name, rows in self.phases.items()}
        return Samples(**found, state=self.state, _chains=self)


class _Reported:
    """The row of diagnostics that is being accumulated."""

    def __init__(self, reports: Mapping[str, KernelReport], chains: int) -> None:
        self._reports, self._chains = reports, chains
        self._row = Diagnostics(reports, chains)

    def add(self, name: str, info: Info) -> None:
        self._row.add(0, self._chains, name, info)

    def row(self) -> dict[str, NDArray]:
        """Return the row and begin a new one."""
        found = _by_kernel(self._row)
        self._row.reset()
        return found

    def reset(self) -> None:
        self._row.reset()

    def empty(self) -> dict[str, NDArray]:
        """Return the row of updates in which no kernel is applied."""
        return _by_kernel(Diagnostics(self._reports, self._chains))


def _by_kernel(row: Diagnostics) -> dict[str, NDArray]:
    return {path.removeprefix("kernels/"): value.copy() for path, value in row.row().items()}


class _Rows:
    """The rows of one phase."""

    def __init__(self) -> None:
        self.updates: list[int] = []
        self.observables: list[dict[str, NDArray]] = []
        self.kernels: list[dict[str, NDArray]] = []

    def add(
        self, update: int, observables: dict[str, NDArray], kernels: dict[str, NDArray]
    ) -> None:
        self.updates.append(update)
        self.observables.append(observables)
        self.kernels.append(kernels)

    def phase(self, empty: Mapping[str, NDArray]) -> Phase:
        if not self.updates:
            return Phase(np.empty(0, np.int64))
        kernels: dict[str, dict[str, NDArray]] = {}
        for path, nothing in empty.items():
            name, _, key = path.rpartition("/")
            series = np.stack([row.get(path, nothing) for row in self.kernels])
            kernels.setdefault(name, {})[key] = series
        return Phase(
            np.array(self.updates),
            {
                label: np.stack([row[label] for row in self.observables])
                for label in self.observables[0]
            },
            kernels,
            planned_rows=len(self.updates),
        )


def _entries(observables: Observables | None, action: Action | None) -> list[ObservableEntry]:
    """Return what is measured, by labels."""
    if action is None:
        if observables:
            raise ConfigError(
                "observables are functions of field and action, but no kernel has an action: let "
                "one have an attribute action"
            )
        return []
    return entries_of(observables, action)
