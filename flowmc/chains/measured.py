"""What chains have measured, in memory: phases of rows, estimates, and other analyses' formats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmc.estimators.autocorrelation import Estimate, analyse
from flowmc.estimators.history import History
from flowmc.registry import ConfigError, nearest

__all__ = ["Measured", "Phase"]


@dataclass(frozen=True)
class Phase:
    """What one phase of a run, thermalisation or production, has written so far.

    Attributes:
        updates: ``(rows,)``, the number of the update after which each row was measured.
        observables: by name, each ``(rows, chains, replicas, ...)``.
        kernels: by name of the kernel and of the value, each ``(rows, chains, ...)``.
        walkers: ``(rows, chains, replicas)``, which walker sits at replica r; None without ladder.
        planned_rows: number of rows when the phase is complete.
        couplings: of a tuned ladder, by name, each ``(rows, replicas)``.
        parameters: keys of the observables that have some, by name.
    """

    updates: NDArray[np.int64]
    observables: Mapping[str, NDArray] = field(default_factory=dict)
    kernels: Mapping[str, Mapping[str, NDArray]] = field(default_factory=dict)
    walkers: NDArray[np.int64] | None = None
    planned_rows: int = 0
    couplings: Mapping[str, NDArray] = field(default_factory=dict)
    parameters: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether all planned rows are written."""
        return self.rows >= self.planned_rows

    @property
    def rows(self) -> int:
        """Number of measurements per chain."""
        return len(self.updates)

    def part(self, rows: slice) -> Phase:
        """Return some of the rows; those that are not written yet count as behind the last."""
        own = len(self.updates[rows])
        return replace(
            self,
            updates=self.updates[rows],
            observables={name: data[rows] for name, data in self.observables.items()},
            kernels={
                name: {key: data[rows] for key, data in values.items()}
                for name, values in self.kernels.items()
            },
            walkers=None if self.walkers is None else self.walkers[rows],
            couplings={name: data[rows] for name, data in self.couplings.items()},
            planned_rows=own if rows.stop is not None else self.planned_rows - self.rows + own,
        )

    def followed_by(self, other: Phase) -> Phase:
        """Return the rows of this phase and then those of another; what only one has is dropped."""

        def both(own: Mapping[str, NDArray], more: Mapping[str, NDArray]) -> dict[str, NDArray]:
            return {k: np.concatenate([own[k], more[k]]) for k in own if k in more}

        if not self.rows:
            return other
        has_walkers = self.walkers is not None and other.walkers is not None
        return Phase(
            np.concatenate([self.updates, other.updates]),
            both(self.observables, other.observables),
            {
                name: both(values, other.kernels[name])
                for name, values in self.kernels.items()
                if name in other.kernels
            },
            np.concatenate([self.walkers, other.walkers]) if has_walkers else None,
            self.planned_rows + other.planned_rows,
            both(self.couplings, other.couplings),
            {**other.parameters, **self.parameters},
        )


class Measured:
    """Chains with what was measured on them; runs on disk and samples of a notebook alike.

    Attributes:
        thermalization: what was measured before adaptation was frozen.
        production: what counts.
    """

    thermalization: Phase
    production: Phase

    @property
    def observables(self) -> tuple[str, ...]:
        """Names of what was measured in production."""
        return tuple(self.production.observables)

    def series(self, name: str, replica: int = 0, *, thermalization: bool = False) -> NDArray:
        """Return the measurements of an observable, ``(rows, chains, ...)``.

        Args:
            name: of the observable.
            replica: of a ladder.
            thermalization: those before production instead.

        Raises:
            ConfigError: it was not measured, or there is no such replica.
        """
        known = (self.thermalization if thermalization else self.production).observables
        if name not in known:
            raise ConfigError(f"{name} was not measured{nearest(name, known)}")
        values = known[name]
        if not 0 <= replica < values.shape[2]:
            raise ConfigError(f"replica {replica}: there are {values.shape[2]}, counted from 0")
        return values[:, :, replica]

    def estimate(
        self, name: str, replica: int = 0, *, estimator: Callable[[NDArray], Estimate] = analyse
    ) -> Any:
        """Return mean, error and tau_int of an observable in production.

        Args:
            name: of the observable.
            replica: of a ladder.
            estimator: what is made of a series ``(rows, chains)``; charges that hop have
                :func:`~flowmc.estimators.autocorrelation.analyse_topological_charge`.

        Returns:
            An :class:`~flowmc.estimators.autocorrelation.Estimate`; for an observable with
            components an array of them.

        Raises:
            ConfigError: as :meth:`series`.
            ValueError: nothing finite was measured.
        """
        values = self.series(name, replica)
        if values.ndim == 2:
            return estimator(values)
        flat = values.reshape(*values.shape[:2], -1)
        found = np.empty(flat.shape[2], dtype=object)
        found[:] = [estimator(flat[:, :, k]) for k in range(flat.shape[2])]
        return found.reshape(values.shape[2:])

    def to_pyerrors(
        self, ensemble: str, replica: int = 0, *, names: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return the observables of production for pyerrors, each chain a replica of an ensemble.

        Fluctuations are about the mean of all chains.  The configuration numbers are those of the
        updates, so that what else was measured on the same chains stays correlated with them.

        Args:
            ensemble: its name; of different chains it must differ.
            replica: of a ladder.
            names: of observables; all by default.

        Returns:
            By name a :class:`pyerrors.Obs`, or an array of them for components.

        Raises:
            ConfigError: as :meth:`series`.
            ValueError: a measurement is not finite, or none is there.
        """
        digits = len(str(max(self._chains_measured - 1, 0)))
        history = History(
            ensemble,
            {f"r{i:0{digits}d}": self.production.updates for i in range(self._chains_measured)},
        )
        found: dict[str, Any] = {}
        for name in self.observables if names is None else names:
            by_chain = self.series(name, replica).swapaxes(0, 1)
            values = history.observables(by_chain.reshape(-1, *by_chain.shape[2:]))
            found[name] = values if values.ndim else values.item()
        return found

    def to_arviz(self, replica: int = 0) -> Any:
        """Return an ``arviz.InferenceData``: thermalization is its warm-up.

        ``posterior`` holds the observables, ``sample_stats`` what kernels reported, as
        ``KERNEL_VALUE``; draws have the numbers of the updates.  Needs ArviZ, the extra ``arviz``.

        Args:
            replica: of a ladder.

        Raises:
            ConfigError: ArviZ is not installed, or there is no such replica.
        """
        try:
            import arviz
        except ImportError as error:
            raise ConfigError(
                "ArviZ is not installed: pip install 'flowmc-lattice[arviz]'"
            ) from error
        phases = {"": self.production, "warmup_": self.thermalization}
        groups: dict[str, Any] = {}
        for prefix, phase in phases.items():
            if not phase.rows:
                continue
            is_warmup = phase is self.thermalization
            groups[f"{prefix}posterior"] = {
                name: self.series(name, replica, thermalization=is_warmup).swapaxes(0, 1)
                for name in phase.observables
            }
            groups[f"{prefix}sample_stats"] = {
                f"{kernel}_{key}": values.swapaxes(0, 1)
                for kernel, reported in phase.kernels.items()
                for key, values in reported.items()
            }
        data = arviz.from_dict(**groups, save_warmup=True)
        for prefix, phase in phases.items():
            own = [name for name in data.groups() if name.startswith("warmup_") == bool(prefix)]
            if own:
                data = data.assign_coords({"draw": phase.updates}, groups=own)
        return data

    @property
    def _chains_measured(self) -> int:
        return next(iter(self.production.observables.values())).shape[1]
