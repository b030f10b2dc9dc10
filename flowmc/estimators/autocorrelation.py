r"""Means of Markov chains with honest errors: the Gamma method.

U. Wolff, Comput. Phys. Commun. 156 (2004) 143, hep-lat/0306017.
The integrated autocorrelation time

.. math:: \tau_{int} = \frac12 + \sum_{t=1}^{W} \rho(t)

is in units of measurements and 0.5 for independent draws; the window W is chosen automatically
(S = 2).  Several chains are replica of one ensemble whose *pooled* mean is subtracted: chains stuck
in different places then show as a long autocorrelation instead of as small errors.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.fft import irfft, next_fast_len, rfft
from scipy.special import chdtrc, fdtrc

__all__ = [
    "Estimate",
    "Within",
    "analyse",
    "analyse_topological_charge",
    "beyond_window",
    "compare_chain_means",
    "count_hops",
    "format_value",
    "from_few_rows",
    "judge_length",
    "rho_error",
    "within",
]

WINDOW_PARAMETER = 2.0  # S of hep-lat/0306017, section 3.3
MINIMUM_LENGTH = 8  # measurements per chain below which no autocorrelation function is formed
MINIMUM_RATIO = 100  # measurements per tau_int, and two of its errors, below which it is a bound
NEAR_INTEGERS = 0.15  # mean distance to them beyond which a charge has no hops
MINIMUM_HOPS = 20  # changes of the topological charge below which its tau_int counts as a bound
DECAY = 5  # tau_int after which an autocorrelation cut off by the chains' length has decayed
TAIL = 6  # windows up to which rho is looked at
TAIL_SIGMAS = 5.0  # standard deviations of that rest of tau_int, in one of 3.5 million sound series
TAIL_SHARE = 0.1  # ... and its share in tau_int that it takes to matter
CHAINS_FOR_SPREAD = 8  # chains from which the spread of chain means alone gives an error
DISAGREEMENT = 1e-5  # probability of the chain means' variance ratio below which chains disagree
DISAGREEMENT_RATIO = 1.5  # ... and the ratio it takes to matter
LARGEST_LOSS = 0.5  # share of a chain's own long-run variance that its own mean may take away
BLOCK = 2**22  # numbers per Fourier transform


@dataclass(frozen=True)
class Estimate:
    r"""The mean of one observable over all chains.

    Attributes:
        mean: over all measurements and chains.
        error: one standard deviation, :math:`\sqrt{2 \tau_{int} \sigma^2 / N}`; NaN if unknown.
        tau_int: integrated autocorrelation time in units of measurements, 0.5 if independent.
        tau_int_error: its standard deviation, hep-lat/0306017 equation (42).
        samples: N, the number of measurements of all chains together.
        window: summation window W in units of measurements.
        variance: of a single measurement.
        warnings: sentences about what not to trust.
        is_bound: tau_int and the error are lower bounds only; a warning says why.
        rho: normalised autocorrelation function, ``(lags,)`` beginning with 1, for plots.
        hops: changes of the rounded charge; None for other observables.
    """

    mean: float
    error: float
    tau_int: float
    tau_int_error: float
    samples: int
    window: int
    variance: float = math.nan
    warnings: tuple[str, ...] = ()
    is_bound: bool = False
    rho: NDArray[np.float64] = field(default_factory=lambda: np.ones(1), repr=False, compare=False)
    hops: int | None = None

    def __str__(self) -> str:
        return format_value(self.mean, self.error)

    def warned(self, *sentences: str, is_bound: bool = True) -> Estimate:
        """Return this estimate with further warnings, by default marked as a lower bound."""
        return replace(self, warnings=self.warnings + sentences, is_bound=self.is_bound or is_bound)


def analyse(series: ArrayLike) -> Estimate:
    r"""Estimate the mean of a series with its error and integrated autocorrelation time.

    The numbers are those of ``pyerrors``.  What the Gamma method cannot see by itself is tested
    (:func:`compare_chain_means` and :func:`judge_length`): where the chain means scatter more than
    the autocorrelation within the chains explains, error and tau_int are enlarged to the observed
    scatter; where the series is too short, or correlated beyond the window, the estimate is marked
    as a bound.

    Args:
        series: ``(measurements, chains)``, or ``(measurements,)`` for one chain.  Trailing rows of
            NaN are rows not written yet and are dropped silently; other rows with values that are
            not finite are dropped with a warning.

    Raises:
        ValueError: for another shape, or if no finite row is left.
    """
    values = np.asarray(series, dtype=np.float64)
    if values.ndim == 1:
        values = values[:, None]
    if values.ndim != 2 or values.shape[1] == 0:
        raise ValueError(
            f"a series has the shape (measurements, chains), not {np.shape(series)}; analyse the "
            "components of a vector observable one by one"
        )
    values, warnings = _finite_rows(values)
    length, chains = values.shape
    if length == 0:
        raise ValueError("the series has no finite measurement: there is nothing to average")
    mean = float(values.mean())
    deltas = values - mean
    largest = float(np.abs(deltas).max())
    if largest > 1e100:
        # Squares would overflow, as for exp(-dH) of trajectories that diverged.
        scaled = analyse(values / largest)
        return replace(
            scaled,
            mean=mean,
            error=scaled.error * largest,
            variance=scaled.variance * largest * largest,
        )
    variance = float(np.mean(deltas**2))
    # A sum of many equal numbers has a mean that differs by rounding.
    if math.sqrt(variance) <= 8 * np.finfo(float).eps * abs(mean):
        estimate = Estimate(mean, 0.0, 0.5, 0.0, values.size, 0, 0.0, tuple(warnings))
        return estimate.warned(
            "constant: all measurements are equal, so nothing is known about error and "
            "autocorrelation"
        )
    lengths = np.full(chains, length)
    if length < MINIMUM_LENGTH:
        return from_few_rows(deltas.mean(axis=0), lengths, mean, variance, warnings)

    error, tau, tau_error, window, rho = _gamma_method(deltas)
    estimate = Estimate(
        mean, error, tau, tau_error, values.size, window, variance, tuple(warnings), False, rho
    )
    if chains > 1:
        means = deltas.mean(axis=0)
        estimate = compare_chain_means(estimate, means, lengths, within(deltas - means))
    return judge_length(estimate, length)


def judge_length(estimate: Estimate, length: int) -> Estimate:
    r"""Return an estimate with a warning if the run was too short for its autocorrelation time.

    Three tests.  The window must have closed before half the length of the chains.  There must be
    100 measurements per :math:`\tau_{int} + 2 \Delta\tau_{int}`: with fewer, series whose tau_int
    comes out too small are the ones whose mean is far off.  And the rest of the sum beyond the
    window W,

    .. math:: A = \sum_{t=W+1}^{6W} \hat\rho(t), \qquad
              \sigma_A = 2 \tau_{int} \sqrt{5 W / N}

    (Bartlett's formula for t beyond the range of correlations), must not be 5 standard deviations
    above zero and 10 % of tau_int at once: a slow mode of small amplitude hides behind the window.

    Args:
        estimate: from the Gamma method.
        length: measurements of the longest chain.
    """
    if estimate.window >= length // 2 - 1 and estimate.window < DECAY * estimate.tau_int:
        return estimate.warned(
            f"the autocorrelation has not decayed within half the length of the chains "
            f"({length} measurements): tau_int is a lower bound, run longer"
        )
    upper = estimate.tau_int + 2 * estimate.tau_int_error
    if estimate.samples < MINIMUM_RATIO * upper:
        return estimate.warned(
            f"{estimate.samples} measurements are fewer than {MINIMUM_RATIO} times what tau_int "
            f"may be (tau_int = {estimate.tau_int:.3g}, with two of its errors {upper:.3g}): take "
            "tau_int as a lower bound and the error as uncertain, run longer"
        )
    rest, error = beyond_window(estimate)
    if rest > max(TAIL_SIGMAS * error, TAIL_SHARE * estimate.tau_int):
        return estimate.warned(
            f"rho is still {rest / error:.0f} standard deviations above zero beyond the window of "
            f"{estimate.window} measurements (a slow mode of small amplitude): tau_int is a lower "
            f"bound, at least {estimate.tau_int + rest:.3g} with the next {TAIL - 1} windows, and "
            "the error is too small"
        )
    return estimate


def beyond_window(estimate: Estimate) -> tuple[float, float]:
    """Return the sum of rho over the next windows, and its standard deviation if rho is zero."""
    end = min(TAIL * estimate.window, len(estimate.rho) - 1)
    count = end - estimate.window
    if count < 1:
        return 0.0, math.inf
    rest = float(np.sum(estimate.rho[estimate.window + 1 : end + 1]))
    return rest, 2 * estimate.tau_int * math.sqrt(count / estimate.samples)


def analyse_topological_charge(series: ArrayLike) -> Estimate:
    """Analyse a topological charge, whose freezing hides from the Gamma method.

    A charge that hopped once or never shows a small *apparent* tau_int.  With fewer than 20 hops in
    all chains together tau_int is therefore marked as a lower bound.  A charge that is not near
    integers has no hops (None); a warning says so.

    Args:
        series: as for :func:`analyse`.
    """
    values = np.asarray(series, dtype=np.float64)
    estimate = analyse(values)
    values, _ = _finite_rows(values.reshape(values.shape[0], -1))
    hops = count_hops(values)
    if float(np.mean(np.abs(values - np.round(values)))) > NEAR_INTEGERS:
        return estimate.warned(
            "the charge is not near integers (a rough field, not smoothed), so its changes cannot "
            "be counted and freezing cannot be ruled out: measure it at a larger flow_time",
            is_bound=False,
        )
    estimate = replace(estimate, hops=hops)
    if hops < MINIMUM_HOPS:
        length = values.shape[0]
        return estimate.warned(
            f"the topological charge {_changes(hops)} in {length} measurements of "
            f"{values.shape[1]} chain{'s' if values.shape[1] > 1 else ''}: it is frozen, tau_int "
            f"is a lower bound and the error means nothing (at least {MINIMUM_HOPS} changes needed)"
        )
    return estimate


def count_hops(series: ArrayLike) -> int:
    """Return how often the rounded value changes from one measurement to the next, all chains."""
    values = np.round(np.asarray(series, dtype=np.float64))
    return int(np.count_nonzero(np.diff(values, axis=0)))


def rho_error(
    rho: NDArray[np.float64], samples: int, window: int, lags: ArrayLike
) -> NDArray[np.float64]:
    r"""Return the standard deviation of an autocorrelation function at some lags.

    .. math:: (\delta\rho(t))^2 = \frac1N \sum_{k=1}^{t+W}
        [\rho(k+t) + \rho(k-t) - 2 \rho(t) \rho(k)]^2

    M. Luescher, hep-lat/0409106, equation (E.11), with the window as the cutoff.

    Args:
        rho: normalised autocorrelation function, beginning with 1; taken as 0 beyond its end.
        samples: N, measurements of all chains together.
        window: W, in measurements.
        lags: t, in measurements.
    """
    lags = np.asarray(lags, dtype=np.int64)
    largest = int(lags.max(initial=0))
    padded = np.zeros(max(len(rho), 2 * largest + window + 1))
    padded[: len(rho)] = rho
    errors = np.empty(len(lags))
    for place, t in enumerate(lags):
        k = np.arange(1, t + window + 1)
        terms = padded[k + t] + padded[np.abs(k - t)] - 2 * padded[t] * padded[k]
        errors[place] = math.sqrt(float(np.sum(terms**2)) / samples)
    return errors


def format_value(value: float, error: float, digits: int = 2) -> str:
    """Return ``"0.31498(72)"``: the error in units of the last digits of the value.

    Errors of 1 and more keep their decimal point, ``"12.3(1.4)"``; numbers far from 1 get an
    exponent, ``"1.23(45)e-12"``.  Without an error (all measurements equal) there is none to
    print: ``"1 (constant)"``.
    """
    if not math.isfinite(value):
        return str(value)
    if not math.isfinite(error):
        return f"{value:.6g}(?)"
    if error == 0:
        return f"{value:.6g} (constant)"
    scale = math.floor(math.log10(max(abs(value), error)))
    if not -5 <= scale < 7:
        return f"{format_value(value / 10.0**scale, error / 10.0**scale, digits)}e{scale:+03d}"
    leading = math.floor(math.log10(float(f"{error:.{digits - 1}e}")))
    decimals = max(0, digits - 1 - leading)
    rounded = round(error, decimals)
    if rounded >= 1:
        return f"{value:.{decimals}f}({rounded:.{decimals}f})"
    return f"{value:.{decimals}f}({round(rounded * 10**decimals)})"


def _finite_rows(values: NDArray) -> tuple[NDArray, list[str]]:
    """Drop the unwritten tail, then incomplete rows with a warning."""
    finite = np.isfinite(values)
    written = np.flatnonzero(~np.isnan(values).all(axis=1))
    end = int(written[-1]) + 1 if written.size else 0
    values, complete = values[:end], finite[:end].all(axis=1)
    dropped = int(end - np.count_nonzero(complete))
    if not dropped:
        return values, []
    return values[complete], [
        f"{dropped} of {end} measurements hold values that are not finite and were left out"
    ]


def _gamma_method(deltas: NDArray) -> tuple[float, float, float, int, NDArray]:
    """Return error, tau_int, its error, window and rho of fluctuations ``(measurements, chains)``.

    From one spectrum summed over the chains, to rounding the numbers of ``pyerrors``.  The chains
    are not given means of their own: that would hide those stuck in different places.
    """
    length, chains = deltas.shape
    samples = deltas.size
    lags = length // 2
    padded = next_fast_len(length + lags, real=True)
    power = np.zeros(padded // 2 + 1)
    for block in _blocks(deltas, max(1, BLOCK // padded)):
        power += (np.abs(rfft(block, padded, axis=0)) ** 2).sum(axis=1)
    gamma = irfft(power, padded)[:lags] / (chains * (length - np.arange(lags)))
    rho = gamma / gamma[0]

    # Partial sums below 1/2, from anticorrelation or noise, count as 1/2, as in pyerrors.
    tau = np.maximum(np.cumsum(np.concatenate(([0.5], rho[1:]))), 0.5 + np.finfo(float).eps)
    lag = np.arange(1, lags)
    scale = WINDOW_PARAMETER / np.log((2 * tau[1:] + 1) / (2 * tau[1:] - 1))
    criterion = np.exp(-lag / scale) - scale / np.sqrt(lag * samples)
    negative = np.flatnonzero(criterion < 0)
    window = int(lag[negative[0]]) if negative.size else lags - 1
    # Bias of the mean subtraction, hep-lat/0306017 equation (49).
    tau_int = tau[window] * (1 + (2 * window + 1) / samples) / (1 + 1 / samples)
    # Equation (42).
    tau_error = 2 * tau[window] * math.sqrt(abs(window + 0.5 - tau[window]) / samples)
    error = math.sqrt(2 * tau_int * gamma[0] * (1 + 1 / samples) / samples)
    return error, float(tau_int), float(tau_error), window, rho


def _blocks(deltas: NDArray, size: int) -> Iterator[NDArray]:
    for start in range(0, deltas.shape[1], size):
        yield deltas[:, start : start + size]


@dataclass(frozen=True)
class Within:
    """The autocorrelation of chains about their own means.

    Attributes:
        tau_int: without the bias correction for a common mean.
        window: summation window.
        variance: of a single measurement about the mean of its chain.
    """

    tau_int: float
    window: int
    variance: float

    @classmethod
    def of(cls, tau_int: float, window: int, variance: float, samples: int) -> Within:
        """Take the bias correction of the Gamma method (equation (49)) out of tau_int."""
        return cls(tau_int * (1 + 1 / samples) / (1 + (2 * window + 1) / samples), window, variance)


def within(own: NDArray) -> Within | None:
    """Analyse chains that have lost their own means, ``(measurements, chains)``.

    Returns:
        None if they do not move.
    """
    variance = float(np.mean(own**2))
    if not variance > 0:
        return None
    _, tau, _, window, _ = _gamma_method(own)
    return Within.of(tau, window, variance, own.size)


def compare_chain_means(
    estimate: Estimate, means: NDArray, lengths: NDArray, own: Within | None
) -> Estimate:
    r"""Enlarge the error to the scatter of the chain means where the two disagree.

    Analysis of variance with the long-run variance in place of the plain one: the mean of a chain
    of T measurements has variance D / T with :math:`D = 2 \tau_{int} \sigma^2`, estimated within
    the chains, whose own means take the part :math:`(2 W + 1) / T` of it away.  If all chains have
    one mean, then for C chains

    .. math:: F = \frac{\sum_c T_c (\bar x_c - \bar x)^2}{(C - 1) D}

    follows Fisher's distribution of C - 1 and :math:`N / (2 W + 1) - C` degrees of freedom (as for
    batches of 2 W + 1 measurements).  Chains disagree where its probability is below 1e-5, which
    is the rate of false alarms, and F is above 1.5.  The pooled tau_int would not do: chains around
    different means inflate it by just what is to be found.  Where chains are shorter than
    2 (2 W + 1) there is no other.

    Args:
        estimate: from the Gamma method.
        means: of every chain, less the mean of all measurements, ``(chains,)``.
        lengths: measurements of every chain, ``(chains,)``.
        own: of the chains about their own means; None if each is constant.
    """
    chains = len(means)
    if chains < 2:
        return estimate
    freedom = chains - 1
    scatter = float(np.sum(lengths * means**2)) / freedom
    width = 0 if own is None else 2 * own.window + 1
    loss = chains * width / estimate.samples
    if own is not None and loss <= LARGEST_LOSS:
        expected = 2 * own.tau_int * own.variance / (1 - loss)
        ratio = scatter / expected
        chance = fdtrc(freedom, estimate.samples / width - chains, ratio)
    else:
        expected = 2 * estimate.tau_int * estimate.variance
        ratio = scatter / expected
        chance = chdtrc(freedom, ratio * freedom)
    if ratio < DISAGREEMENT_RATIO or chance > DISAGREEMENT:
        return estimate
    # The pooled error may have seen part of the scatter, or more.
    enlarged = max(1.0, scatter / estimate.samples / estimate.error**2)
    tau = estimate.tau_int * enlarged
    return replace(
        estimate,
        error=estimate.error * math.sqrt(enlarged),
        tau_int=tau,
        tau_int_error=max(estimate.tau_int_error * enlarged, tau * math.sqrt(2 / freedom)),
    ).warned(
        f"the {chains} chains disagree: their means scatter {math.sqrt(ratio):.2g} times more than "
        "their autocorrelation explains (chains too short, stuck or not thermalised); error and "
        "tau_int are from the scatter, and lower bounds"
    )


def from_few_rows(
    means: NDArray, lengths: NDArray, mean: float, variance: float, warnings: list[str]
) -> Estimate:
    """Use chains that are too short for an autocorrelation function as independent samples.

    Args:
        means: of every chain, less the mean of all measurements, ``(chains,)``.
        lengths: measurements of every chain, ``(chains,)``.
        mean: of all measurements.
        variance: of a single measurement.
        warnings: so far.
    """
    chains, length, samples = len(means), int(lengths.max()), int(lengths.sum())
    few = f"{length} measurement{'s' if length > 1 else ''} per chain"
    if chains < CHAINS_FOR_SPREAD:
        nothing = Estimate(
            mean, math.nan, math.nan, math.nan, samples, 0, variance, tuple(warnings)
        )
        return nothing.warned(f"{few} are too few for an error: run longer", is_bound=False)
    # Variance of the weighted mean of all chains.
    spread = float(np.sum((lengths / samples * means) ** 2)) * chains / (chains - 1)
    tau = max(0.5, samples * spread / (2 * variance))
    estimate = Estimate(
        mean,
        math.sqrt(spread),
        tau,
        tau * math.sqrt(2 / (chains - 1)),
        samples,
        0,
        variance,
        tuple(warnings),
    )
    return estimate.warned(
        f"{few}: the error is from the scatter of {chains} chains, and tau_int a lower bound"
    )


def _changes(count: int) -> str:
    words = {0: "never changed", 1: "changed once", 2: "changed twice"}
    return words.get(count, f"changed {count} times")
