r"""Measurements of an ensemble with their provenance: replicas, configuration numbers, errors.

A :class:`History` says which configurations were measured; with it, series become ``pyerrors``
observables that know ensemble, replica and configuration of every fluctuation.  Functions of
several means are propagated linearly (U. Wolff, hep-lat/0306017), so that quantities measured on
the same configurations stay correlated, and the autocorrelation of the *projected* series enters
the error.  :func:`result_of` applies the Gamma method and says what not to trust.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from flowmc.estimators.autocorrelation import (
    MINIMUM_LENGTH,
    WINDOW_PARAMETER,
    Estimate,
    Within,
    compare_chain_means,
    format_value,
    from_few_rows,
    judge_length,
    within,
)

if TYPE_CHECKING:
    from pyerrors import Obs

__all__ = ["History", "Result", "fluctuations_of", "result_of"]


@dataclass(frozen=True)
class Result:
    """A number with its error, where it comes from, and what not to trust about it.

    Attributes:
        name: what it is.
        estimate: value, error and autocorrelation time.
        observable: the ``pyerrors`` observable with all fluctuations; None if there are too few
            configurations for an error.
    """

    name: str
    estimate: Estimate
    observable: Obs | None = field(default=None, repr=False, compare=False)

    @property
    def value(self) -> float:
        """The estimate from all configurations."""
        return self.estimate.mean

    @property
    def error(self) -> float:
        """One standard deviation; NaN if unknown."""
        return self.estimate.error

    @property
    def tau_int(self) -> float:
        """Integrated autocorrelation time in units of the usual distance of configurations."""
        return self.estimate.tau_int

    @property
    def tau_int_error(self) -> float:
        """Standard deviation of :attr:`tau_int`."""
        return self.estimate.tau_int_error

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about what not to trust."""
        return self.estimate.warnings

    @property
    def is_bound(self) -> bool:
        """Whether the error is a lower bound only; a warning says why."""
        return self.estimate.is_bound

    def warned(self, *sentences: str, is_bound: bool = True) -> Result:
        """Return this result with further warnings, by default marked as a bound."""
        return replace(self, estimate=self.estimate.warned(*sentences, is_bound=is_bound))

    def __str__(self) -> str:
        return format_value(self.value, self.error)


class History:
    """Which configurations of an ensemble were measured, in which order.

    Series that belong to a history are arrays whose first axis runs through the configurations of
    the first replica, then of the second, and so on.

    Args:
        ensemble: its name; must not contain ``|``.
        numbers: configuration numbers, rising, by replica.  They need not be equidistant: missing
            configurations leave a hole in the autocorrelation function.

    Raises:
        ValueError: for numbers that do not rise, no configuration, or a name with ``|``.
    """

    def __init__(self, ensemble: str, numbers: Mapping[str, ArrayLike]) -> None:
        self.ensemble = ensemble
        self.numbers = {name: np.asarray(n, dtype=np.int64) for name, n in numbers.items()}
        for name in (ensemble, *self.numbers):
            if "|" in name or not name:
                raise ValueError(f"the name {name!r} of an ensemble or replica: must have no '|'")
        for name, of_replica in self.numbers.items():
            if of_replica.ndim != 1 or not of_replica.size or (np.diff(of_replica) <= 0).any():
                raise ValueError(
                    f"replica {name!r} of {ensemble!r}: configuration numbers should rise, and "
                    "there should be one at least"
                )
        if not self.numbers:
            raise ValueError(f"the ensemble {ensemble!r} has no configuration")
        self.spacing = _usual_spacing(list(self.numbers.values()))

    @classmethod
    def regular(cls, ensemble: str, length: int, replicas: int = 1) -> History:
        """Return the history of ``replicas`` chains of ``length`` configurations 1, 2, ..."""
        digits = len(str(max(replicas - 1, 0)))
        return cls(
            ensemble, {f"r{i:0{digits}d}": np.arange(1, length + 1) for i in range(replicas)}
        )

    @property
    def lengths(self) -> list[int]:
        """Number of configurations of every replica."""
        return [len(numbers) for numbers in self.numbers.values()]

    def __len__(self) -> int:
        return sum(self.lengths)

    def __repr__(self) -> str:
        parts = ", ".join(f"{name}: {len(numbers)}" for name, numbers in self.numbers.items())
        return f"History({self.ensemble!r}, {parts}; spacing {self.spacing})"

    def split(self, values: NDArray) -> list[NDArray]:
        """Return the part of a series, ``(configurations, ...)``, of every replica."""
        return np.split(values, np.cumsum(self.lengths)[:-1])

    def observable(self, values: ArrayLike) -> Obs:
        """Return the mean of a series ``(configurations,)`` as a ``pyerrors`` observable.

        The *pooled* mean is subtracted from all replicas, so that replicas stuck in different
        places show as a long autocorrelation instead of as small errors.

        Raises:
            ValueError: for another shape, or values that are not finite.
        """
        series = np.asarray(values, dtype=np.float64)
        if series.shape != (len(self),):
            raise ValueError(f"{len(self)} configurations, but a series of shape {series.shape}")
        if not np.isfinite(series).all():
            bad = int(np.flatnonzero(~np.isfinite(series))[0])
            raise ValueError(f"measurement {bad} of {self.ensemble!r} is not finite")
        mean = float(series.mean())
        return self.from_fluctuations(mean, series - mean)

    def observables(self, values: ArrayLike) -> NDArray[Any]:
        """Return the means of a series ``(configurations, ...)`` as an array of observables."""
        series = np.asarray(values, dtype=np.float64)
        result = np.empty(series.shape[1:], dtype=object)
        for index in np.ndindex(*series.shape[1:]):
            result[index] = self.observable(series[(slice(None), *index)])
        return result

    def from_fluctuations(self, value: float, fluctuations: NDArray) -> Obs:
        r"""Return an observable from its value and its projected fluctuations.

        Args:
            value: the estimate F.
            fluctuations: ``(configurations,)`` of mean 0:
                :math:`\sum_\alpha (\partial F / \partial \bar a_\alpha)
                (a_{\alpha i} - \bar a_\alpha)`.
        """
        # Imported here: it loads autograd and pyplot.
        import pyerrors

        names = [f"{self.ensemble}|{name}" for name in self.numbers]
        observable = pyerrors.Obs(
            [np.ascontiguousarray(part) for part in self.split(np.asarray(fluctuations, float))],
            names,
            idl=[_index(numbers, self.spacing) for numbers in self.numbers.values()],
            means=[value] * len(names),
        )
        # The constructor fills in the value only where it has computed the means itself.
        observable._value = value
        return observable

    def combine(
        self,
        function: Callable[[NDArray], float],
        means: NDArray,
        gradient: NDArray,
        series: NDArray,
    ) -> Obs:
        """Return a function of several means, given its gradient.

        Args:
            function: of ``means``.
            means: ``(k,)``.
            gradient: ``(k,)``, at the means.
            series: ``(configurations, k)``.
        """
        return self.from_fluctuations(float(function(means)), (series - means) @ gradient)


def result_of(name: str, observable: Obs) -> Result:
    """Apply the Gamma method to an observable and judge what comes out.

    Observables of several ensembles are allowed; tau_int then is that of the ensemble that
    contributes most to the error.

    Args:
        name: of the result.
        observable: as from :meth:`History.observable` or any function of such.
    """
    parts = _by_ensemble(observable)
    samples = sum(len(deltas) for replicas in parts.values() for deltas in replicas)
    estimates = {}
    # Where one ensemble is too short for an autocorrelation function, the others are on their own.
    is_long = all(max(map(len, replicas)) >= MINIMUM_LENGTH for replicas in parts.values())
    if is_long:
        observable.gamma_method(S=WINDOW_PARAMETER, tau_exp=0)
    for ensemble, replicas in parts.items():
        own = observable if is_long else _only(observable, ensemble, replicas)
        estimates[ensemble] = _of_ensemble(own, ensemble, replicas)
    variance = sum(estimate.error**2 for estimate in estimates.values())
    worst = max(estimates.values(), key=lambda one: one.error if one.error == one.error else np.inf)
    warnings = [
        f"{ensemble}: {text}" if len(estimates) > 1 else text
        for ensemble, estimate in estimates.items()
        for text in estimate.warnings
        # A quantity that does not depend on one of its ensembles is no reason to worry.
        if not (len(estimates) > 1 and text.startswith("constant"))
    ]
    estimate = replace(
        worst,
        mean=float(observable.value),
        error=math.sqrt(variance),
        samples=samples,
        warnings=tuple(warnings),
        is_bound=any(e.is_bound for e in estimates.values() if e.error or len(estimates) == 1),
    )
    return Result(name, estimate, observable)


def fluctuations_of(observable: Obs, history: History) -> NDArray[np.float64]:
    """Return the projected fluctuations of an observable, ``(configurations,)``.

    Raises:
        ValueError: if the observable does not belong to the history.
    """
    parts = []
    for name, length in zip(history.numbers, history.lengths, strict=True):
        deltas = observable.deltas.get(f"{history.ensemble}|{name}")
        if deltas is None or len(deltas) != length:
            raise ValueError(f"the observable was not measured on {history!r}")
        parts.append(np.asarray(deltas, dtype=np.float64))
    return np.concatenate(parts)


def _of_ensemble(observable: Obs, ensemble: str, replicas: Sequence[NDArray]) -> Estimate:
    """Return the estimate from the fluctuations of one ensemble."""
    value = float(observable.value)
    deltas = np.concatenate(replicas)
    variance = float(np.mean(deltas**2))
    if math.sqrt(variance) <= 8 * np.finfo(float).eps * abs(value):
        return Estimate(value, 0.0, 0.5, 0.0, deltas.size, 0, 0.0).warned(
            "constant: all measurements are equal, so nothing is known about error and "
            "autocorrelation"
        )
    longest = max(map(len, replicas))
    means = np.array([part.mean() for part in replicas])
    lengths = np.array([len(part) for part in replicas])
    if longest < MINIMUM_LENGTH:
        return from_few_rows(means, lengths, value, variance, [])
    estimate = Estimate(
        value,
        float(observable.e_dvalue[ensemble]),
        float(observable.e_tauint[ensemble]),
        float(observable.e_dtauint[ensemble]),
        deltas.size,
        int(observable.e_windowsize[ensemble]),
        variance,
        rho=np.asarray(observable.e_rho[ensemble]),
    )
    if len(replicas) > 1:
        own = _within(observable, ensemble, replicas, means)
        estimate = compare_chain_means(estimate, means, lengths, own)
    return judge_length(estimate, longest)


def _within(
    observable: Obs, ensemble: str, replicas: Sequence[NDArray], means: NDArray
) -> Within | None:
    """Analyse the replicas of one ensemble about their own means; None if they do not move."""
    own = [part - mean for part, mean in zip(replicas, means, strict=True)]
    indices = [observable.idl[name] for name in observable.names if _is_of(name, ensemble)]
    if len({(len(one), getattr(one, "step", None)) for one in indices}) == 1 and isinstance(
        indices[0], range
    ):
        return within(np.stack(own, 1))
    joined = np.concatenate(own)
    variance = float(np.mean(joined**2))
    if not variance > 0:
        return None
    part = _only(observable, ensemble, own)
    tau, window = part.e_tauint[ensemble], part.e_windowsize[ensemble]
    return Within.of(float(tau), int(window), variance, len(joined))


def _only(observable: Obs, ensemble: str, replicas: Sequence[NDArray]) -> Obs:
    """Return the part of an observable that one ensemble contributes, analysed where it can be."""
    import pyerrors

    names = [name for name in observable.names if _is_of(name, ensemble)]
    idl = [observable.idl[name] for name in names]
    part = pyerrors.Obs(list(replicas), names, idl=idl, means=[0.0] * len(names))
    part._value = observable.value
    if max(map(len, replicas)) >= MINIMUM_LENGTH:
        part.gamma_method(S=WINDOW_PARAMETER, tau_exp=0)
    return part


def _is_of(name: str, ensemble: str) -> bool:
    return name.partition("|")[0] == ensemble


def _by_ensemble(observable: Obs) -> dict[str, list[NDArray]]:
    parts: dict[str, list[NDArray]] = {}
    for name in observable.names:
        parts.setdefault(name.partition("|")[0], []).append(np.asarray(observable.deltas[name]))
    return parts


def _usual_spacing(numbers: Sequence[NDArray]) -> int:
    """Return the most frequent distance of neighbouring configurations, the smallest if several."""
    steps = Counter(int(step) for of_replica in numbers for step in np.diff(of_replica))
    return max(steps, key=lambda step: (steps[step], -step)) if steps else 1


def _index(numbers: NDArray[np.int64], spacing: int) -> list[int] | range:
    """Return rising numbers whose distances are multiples of the spacing.

    Regular numbers, with or without holes, come back as they are.  Others are moved to the nearest
    free place: ``pyerrors`` sorts fluctuations into a grid of the *smallest* distance, in which a
    single close pair would leave all other lags empty.
    """
    if len(numbers) == 1:
        # A list of one number has no distances, which pyerrors needs.
        return range(int(numbers[0]), int(numbers[0]) + spacing, spacing)
    places = np.floor((numbers - numbers[0]) / spacing + 0.5).astype(np.int64)
    # places[i] >= places[i - 1] + 1
    offsets = np.arange(len(places))
    places = np.maximum.accumulate(places - offsets) + offsets
    return [int(number) for number in numbers[0] + spacing * places]
