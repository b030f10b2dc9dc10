r"""ln Z, and ratios of partition functions, from samples of one or of both ends.

Everything here is an average of exponentials of *works* W between a start 0 and an end 1 with
:math:`\langle e^{-W} \rangle_0 = Z_1 / Z_0`:

- draws x of a normalised density q (a flow): :math:`Z_0 = 1`, :math:`-W = \ln w = -S(x) - \ln q(x)`
  (:func:`q_estimator`; Nicoli et al., arXiv:2007.07115);
- samples of the target: :math:`-W = -\ln w(x)` from 1 to 0 (:func:`p_estimator`);
- trajectories of a driven process (:func:`jarzynski`; Phys. Rev. Lett. 78 (1997) 2690);
- both directions at once (:func:`bennett`; C.H. Bennett, J. Comput. Phys. 22 (1976) 245).

Samples are ``(n,)`` if they are independent draws, ``(measurements, chains)`` if they come from
Markov chains; then errors are those of the Gamma method
(:func:`flowmc.estimators.autocorrelation.analyse`).

An estimate that cannot be believed is marked as a bound, and says why.  The mean of an exponential
over samples that miss its tail is too small: ln Z from q is then a lower bound, from p an upper
one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import brentq
from scipy.special import expit

from flowmc.estimators.autocorrelation import analyse, format_value
from flowmc.estimators.reweighting import judge_weights
from flowmc.estimators.weights import log_mean_exp

__all__ = [
    "Bridge",
    "ChainOfEnsembles",
    "FreeEnergy",
    "ModeCoverage",
    "bennett",
    "chain_of_ensembles",
    "compare",
    "jarzynski",
    "mode_coverage",
    "p_estimator",
    "q_estimator",
]

SMALLEST_OVERLAP = 0.03  # of the two ends of a bridge
UNSEEN = 3.0  # factor by which the other end's samples find the ESS smaller, before it is refused
DISAGREEMENT = 4.0  # standard deviations between ln Z from q and from p; false alarm 6e-5

Bound = Literal["none", "lower", "upper", "both"]


@dataclass(frozen=True)
class FreeEnergy:
    r"""An estimate of ln Z, or of :math:`\ln Z_1 / Z_0`.

    Attributes:
        value: the plain estimate.
        error: one standard deviation.
        bias: expected value - truth, to O(1/N); it is not subtracted from ``value``.
        samples: N.
        ess: effective sample size of the weights, in (0, 1]; NaN for a bridge.
        tau_int: of the averaged weights in measurements; 0.5 for independent draws.
        pareto_k: tail index of the weights; NaN if it is not known.
        max_weight_share: of the largest weight in the sum.
        bound: "lower" or "upper" if value is only that, "both" if it can be off either way.
        error_is_bound: the error is a lower bound (autocorrelations are not resolved).
        warnings: sentences that say why.
        fluctuations: :math:`e^{-W} / \langle e^{-W} \rangle - 1` per sample, shaped like the
            works: whose mean's error is the error of the value.
    """

    value: float
    error: float
    bias: float
    samples: int
    ess: float = math.nan
    tau_int: float = 0.5
    pareto_k: float = math.nan
    max_weight_share: float = math.nan
    bound: Bound = "none"
    error_is_bound: bool = False
    warnings: tuple[str, ...] = ()
    fluctuations: NDArray[np.float64] = field(
        default_factory=lambda: np.zeros(0), repr=False, compare=False
    )

    def __str__(self) -> str:
        text = format_value(self.value, self.error)
        mark = {"none": "", "lower": ">= ", "upper": "<= ", "both": "~ "}[self.bound]
        return mark + text

    def shifted(self, constant: float) -> FreeEnergy:
        """Return the estimate plus a known constant, such as the exact ln Z of the start."""
        return replace(self, value=self.value + constant)

    def warned(self, *sentences: str, bound: Bound = "none") -> FreeEnergy:
        """Return this estimate with further warnings, and marked as a bound if one is given."""
        merged = self.bound
        if bound != "none":
            merged = bound if self.bound in ("none", bound) else "both"
        return replace(self, warnings=self.warnings + sentences, bound=merged)


@dataclass(frozen=True)
class Bridge:
    """A bidirectional estimate and what it was made of.

    Attributes:
        estimate: Bennett's, of ln(Z_1 / Z_0).
        forward: the one-sided estimate from the start, from below.
        reverse: the one-sided estimate from the end, from above.
        overlap: of the two ends: 1 if they are equal, 0 if no sample tells anything about the
            other end.
        forward_fluctuations, reverse_fluctuations: shaped like the works; the estimate's
            fluctuation is the sum of their means.
    """

    estimate: FreeEnergy
    forward: FreeEnergy
    reverse: FreeEnergy
    overlap: float
    forward_fluctuations: NDArray[np.float64] = field(repr=False, compare=False)
    reverse_fluctuations: NDArray[np.float64] = field(repr=False, compare=False)


@dataclass(frozen=True)
class ChainOfEnsembles:
    """ln Z along a line of couplings.

    Attributes:
        bridges: between neighbours.
        estimates: of ln(Z_k / Z_0) for k = 1, 2, ...; errors know that neighbouring bridges share
            an ensemble.
    """

    bridges: tuple[Bridge, ...]
    estimates: tuple[FreeEnergy, ...]


@dataclass(frozen=True)
class ModeCoverage:
    r"""The mode-dropping estimator, arXiv:2302.14082.

    .. math:: \hat w = \Big\langle \frac{q}{e^{-S}} \Big\rangle_p
              \Big\langle \frac{e^{-S}}{q} \Big\rangle_q \in (0, 1]

    is the share of the target's probability that lies where q has any: 1 if all modes are covered,
    1/2 for a flow that knows one of two equal wells.  The reverse ESS, from draws of q alone,
    cannot see what q does not draw.

    Attributes:
        share: the estimate.
        error: from both factors.
        log_z_q, log_z_p: the factors as estimates of ln Z; share = exp(log_z_q - log_z_p).
        reverse_ess: :math:`\langle w \rangle_q^2 / \langle w^2 \rangle_q`.
        forward_ess: :math:`1 / (\langle w \rangle_p \langle 1/w \rangle_p)`: the same from samples
            of the target, which do see missing modes.
        warnings: sentences that say what not to trust.
    """

    share: float
    error: float
    log_z_q: FreeEnergy
    log_z_p: FreeEnergy
    reverse_ess: float
    forward_ess: float
    warnings: tuple[str, ...] = ()

    def __str__(self) -> str:
        return format_value(self.share, self.error)


def q_estimator(log_weights: ArrayLike) -> FreeEnergy:
    r"""Return :math:`\ln \hat Z = \ln \tfrac1N \sum_i w_i` from draws of q, from below.

    For independent draws the variance is :math:`\mathrm{Var}(w) / N \langle w \rangle^2` and the
    bias :math:`-\mathrm{Var}(w) / 2N \langle w \rangle^2`, to O(1/N) (arXiv:2007.07115); error and
    bias are from the delete-one jackknife, which agrees with these and is right a little longer.

    Args:
        log_weights: ln w = -S(x) - ln q(x) of draws x of q, ``(n,)``, or ``(measurements, chains)``
            if the draws are those of Markov chains.  Minus infinity counts as zero weight.

    Raises:
        ValueError: for another shape, NaN, or if no weight is above zero.
    """
    return _exponential_mean(log_weights, "lower", "weights of the flow's draws")


def p_estimator(log_weights: ArrayLike) -> FreeEnergy:
    r"""Return :math:`\ln \hat Z = -\ln \tfrac1N \sum_i 1 / w_i` from target samples, from above.

    It needs ln q of samples of the target, from the inverse flow.  The bias is
    :math:`+\mathrm{Var}(1/w) / 2N \langle 1/w \rangle^2`.

    Args:
        log_weights: ln w = -S(x) - ln q(x) of samples x of the target, usually
            ``(measurements, chains)``.
    """
    return _negative(
        _exponential_mean(-_series(log_weights), "lower", "inverse weights of the target's samples")
    )


def jarzynski(work: ArrayLike) -> FreeEnergy:
    r"""Return :math:`\ln Z_1 / Z_0 = \ln \langle e^{-W} \rangle`, from below.

    Args:
        work: W of trajectories from the start, ``(n,)``, or ``(measurements, chains)`` if they
            begin at successive configurations of Markov chains.  Infinity counts as no weight.
    """
    return _exponential_mean(-_series(work), "lower", "weights from the start")


def bennett(forward_work: ArrayLike, reverse_work: ArrayLike) -> Bridge:
    r"""Return Bennett's estimate of :math:`\ln Z_1 / Z_0` from works in both directions.

    It solves

    .. math:: \sum_F \frac{1}{1 + e^{M + W_F - \Delta F}}
              = \sum_R \frac{1}{1 + e^{-M + W_R + \Delta F}}, \qquad M = \ln (n_F / n_R),

    the maximum-likelihood solution given Crooks' relation
    :math:`P_F(W) / P_R(-W) = e^{W - \Delta F}` (M.R. Shirts, E. Bair, G. Hooker, V.S. Pande, Phys.
    Rev. Lett. 91 (2003) 140601), and :math:`\ln Z_1 / Z_0 = -\Delta F`.  The error is that of the
    two sums, linearised; for independent works it is Bennett's formula.

    Args:
        forward_work: of trajectories from 0 to 1 (or -ln w of draws of q), as in :func:`jarzynski`.
        reverse_work: from 1 to 0 (or +ln w of samples of the target).

    Raises:
        ValueError: as :func:`q_estimator`.
    """
    forward, reverse = _series(forward_work), _series(reverse_work)
    ratio = math.log(forward.size / reverse.size)
    both = np.concatenate([forward[np.isfinite(forward)], -reverse[np.isfinite(reverse)]])
    if not np.isfinite(forward).any() or not np.isfinite(reverse).any():
        raise ValueError("a bridge needs finite works in both directions")

    def excess(shift: float) -> float:
        left = expit(-(ratio + forward - shift)).sum()
        return float(left - expit(-(reverse + shift - ratio)).sum())

    edge = abs(ratio) + math.log(forward.size + reverse.size) + 10.0
    low, high = float(both.min()) - edge, float(both.max()) + edge
    shift = float(brentq(excess, low, high, xtol=1e-12, rtol=1e-14))

    on_forward = expit(-(ratio + forward - shift))
    on_reverse = expit(-(reverse + shift - ratio))
    slope = (on_forward * (1 - on_forward)).sum() + (on_reverse * (1 - on_reverse)).sum()
    # Of ln Z_1/Z_0 = -shift; excess grows with the shift, at this slope.
    forward_part = (on_forward - on_forward.mean()) * (forward.size / slope)
    reverse_part = -(on_reverse - on_reverse.mean()) * (reverse.size / slope)
    parts = [_mean_error(forward_part), _mean_error(reverse_part)]
    error = math.hypot(parts[0].error, parts[1].error)
    overlap = float(on_forward.sum() * (1 / forward.size + 1 / reverse.size))
    estimate = FreeEnergy(
        -shift,
        error,
        0.0,
        forward.size + reverse.size,
        tau_int=max(part.tau_int for part in parts),
        error_is_bound=any(part.is_bound for part in parts),
        warnings=tuple(text for part in parts for text in part.warnings),
    )
    one_sided = (
        _cross_examined(jarzynski(forward), reverse),
        _negative(
            _cross_examined(
                _exponential_mean(-reverse, "lower", "weights from the target"), forward
            )
        ),
    )
    if overlap < SMALLEST_OVERLAP:
        estimate = estimate.warned(
            f"the two ends overlap by {overlap:.2g} only (below {SMALLEST_OVERLAP}): few samples "
            f"of either tell anything about the other, and the truth is somewhere between "
            f"{one_sided[0].value:.6g} and {one_sided[1].value:.6g}; put more steps or ensembles "
            "between them",
            bound="both",
        )
    return Bridge(estimate, *one_sided, overlap, forward_part, reverse_part)


def chain_of_ensembles(
    forward_works: Sequence[ArrayLike], reverse_works: Sequence[ArrayLike]
) -> ChainOfEnsembles:
    r"""Return ln(Z_k / Z_0) along a line of ensembles, by a bridge between neighbours.

    Bridge k joins ensemble k and k + 1.  Both bridges of an ensemble use the same samples, so their
    errors are correlated: the fluctuations are added sample by sample before the error is taken.

    Args:
        forward_works: one per bridge: :math:`S_{k+1}(x) - S_k(x)` of the samples of ensemble k.
        reverse_works: :math:`S_k(x) - S_{k+1}(x)` of the samples of ensemble k + 1, in the order in
            which its forward works are.

    Raises:
        ValueError: for lists of different length, or works of one ensemble of different shapes.
    """
    if len(forward_works) != len(reverse_works) or not forward_works:
        raise ValueError("a chain needs one list of works each way for every pair of neighbours")
    bridges = [bennett(f, r) for f, r in zip(forward_works, reverse_works, strict=True)]
    estimates = []
    variance, total, count = 0.0, 0.0, bridges[0].forward_fluctuations.size
    known = _mean_error(bridges[0].forward_fluctuations)
    notes, error_is_bound, tau = list(known.warnings), known.is_bound, known.tau_int
    variance += known.error**2
    bound: Bound = "none"
    for index, bridge in enumerate(bridges):
        total += bridge.estimate.value
        if bridge.estimate.bound != "none":
            bound = "both"
            notes += [f"between ensembles {index} and {index + 1}: {bridge.estimate.warnings[-1]}"]
        count += bridge.reverse_fluctuations.size
        last = _mean_error(bridge.reverse_fluctuations)
        estimates.append(
            FreeEnergy(
                total,
                math.sqrt(variance + last.error**2),
                0.0,
                count,
                tau_int=max(tau, last.tau_int),
                bound=bound,
                error_is_bound=error_is_bound or last.is_bound,
                warnings=tuple([*notes, *last.warnings]),
            )
        )
        if index + 1 < len(bridges):
            onward = bridges[index + 1].forward_fluctuations
            if onward.shape != bridge.reverse_fluctuations.shape:
                raise ValueError(
                    f"ensemble {index + 1} has works of shape {bridge.reverse_fluctuations.shape} "
                    f"towards one neighbour and {onward.shape} towards the other"
                )
            both = _mean_error(bridge.reverse_fluctuations + onward)
            variance += both.error**2
            tau = max(tau, both.tau_int)
            error_is_bound = error_is_bound or both.is_bound
            notes += both.warnings
    return ChainOfEnsembles(tuple(bridges), tuple(estimates))


def mode_coverage(log_weights_q: ArrayLike, log_weights_p: ArrayLike) -> ModeCoverage:
    """Return the share of the target that a flow covers; see :class:`ModeCoverage`.

    Args:
        log_weights_q: ln w of draws of the flow, as in :func:`q_estimator`.
        log_weights_p: ln w of samples of the target.  They must themselves be right between the
            modes: start chains in every mode, or let them tunnel often.  What both miss, no
            estimator sees.
    """
    on_q, on_p = _series(log_weights_q), _series(log_weights_p)
    log_z_q, log_z_p = compare(
        _cross_examined(q_estimator(on_q), on_p),
        _negative(_cross_examined(_negative(p_estimator(on_p)), -on_q)),
    )
    share = math.exp(log_z_q.value - log_z_p.value)
    texts = dict.fromkeys(log_z_q.warnings + log_z_p.warnings)
    return ModeCoverage(
        share,
        share * math.hypot(log_z_q.error, log_z_p.error),
        log_z_q,
        log_z_p,
        log_z_q.ess,
        _ess_seen_from(on_p),
        tuple(texts),
    )


def compare(q: FreeEnergy, p: FreeEnergy) -> tuple[FreeEnergy, FreeEnergy]:
    """Return the estimates from q and from p, marked where they contradict each other."""
    spread = math.hypot(q.error, p.error)
    gap = q.value - p.value
    if not math.isfinite(spread) or abs(gap) <= DISAGREEMENT * spread:
        return q, p
    numbers = (
        f"ln Z from the flow's draws, {format_value(q.value, q.error)}, and from the target's "
        f"samples, {format_value(p.value, p.error)}, differ by {abs(gap) / spread:.1f} standard "
        "deviations"
    )
    if gap < 0:
        text = (
            f"{numbers}: the flow misses {1 - math.exp(gap):.0%} of the target (a mode, or its "
            "tails); the first is a lower and the second an upper bound"
        )
        return q.warned(text, bound="lower"), p.warned(text, bound="upper")
    text = (
        f"{numbers}, the wrong way round, which no flow can cause: the samples of the target are "
        "not equilibrated over all its modes, or belong to another action"
    )
    return q.warned(text, bound="both"), p.warned(text, bound="both")


@dataclass(frozen=True)
class _MeanError:
    error: float
    tau_int: float = 0.5
    is_bound: bool = False
    warnings: tuple[str, ...] = ()


def _series(values: ArrayLike) -> NDArray[np.float64]:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in (1, 2) or not array.size:
        raise ValueError(
            f"works and log-weights are (n,) or (measurements, chains), not {np.shape(values)}"
        )
    if np.isnan(array).any():
        raise ValueError(
            f"{int(np.isnan(array).sum())} of {array.size} works or log-weights are NaN: a density "
            "or action is not finite there; count such samples as weight zero, or find out why"
        )
    return array


def _mean_error(values: NDArray) -> _MeanError:
    """Return the error of the mean of ``(n,)`` independent or ``(measurements, chains)`` values."""
    if values.ndim == 1:
        if values.size < 2:
            return _MeanError(math.nan)
        return _MeanError(float(values.std(ddof=1)) / math.sqrt(values.size))
    if not float(np.ptp(values)):
        return _MeanError(0.0)
    found = analyse(values)
    return _MeanError(found.error, found.tau_int, found.is_bound, found.warnings)


def _log_mean(logs: NDArray) -> float:
    largest = float(logs.max())
    return largest + math.log(float(np.exp(logs - largest).mean()))


def _exponential_mean(logs: ArrayLike, bound: Bound, source: str) -> FreeEnergy:
    """Return ln <exp(logs)>, judged."""
    array = _series(logs)
    flat = torch.from_numpy(np.ascontiguousarray(array).reshape(-1))
    plain = log_mean_exp(flat)
    fluctuations = np.exp(array - plain.value) - 1
    if array.ndim == 1:
        error, bias, known = plain.error, plain.bias, _MeanError(plain.error)
    else:
        known = _mean_error(fluctuations)
        error = known.error
        # The delta method: the logarithm of a mean with this error, tau_int included.
        bias = -0.5 * error**2
    tau = known.tau_int if math.isfinite(known.tau_int) else 0.5
    verdict = judge_weights(flat, tau_int=tau)
    estimate = FreeEnergy(
        plain.value,
        error,
        bias,
        array.size,
        verdict.ess,
        known.tau_int,
        verdict.pareto_k,
        verdict.max_share,
        error_is_bound=known.is_bound,
        warnings=known.warnings,
        fluctuations=fluctuations,
    )
    if not verdict.is_bound:
        return estimate
    return estimate.warned(*(f"{source}: {text}" for text in verdict.warnings), bound=bound)


def _ess_seen_from(logs: NDArray) -> float:
    r"""Return the ESS of weights w of one end from their logarithms on samples of the other.

    The other end's density is proportional to w times the first's, so that
    :math:`\langle w \rangle^2 / \langle w^2 \rangle
    = 1 / (\langle w \rangle \langle 1/w \rangle)` there.
    """
    finite = logs[np.isfinite(logs)]
    return math.exp(min(0.0, -_log_mean(finite) - _log_mean(-finite)))


def _cross_examined(estimate: FreeEnergy, logs: NDArray) -> FreeEnergy:
    """Mark a one-sided estimate if the samples of the other end know of a tail it has not seen.

    Args:
        estimate: from below, ``ln <w>``.
        logs: ln w on samples of the other end.
    """
    seen = _ess_seen_from(logs)
    if not seen < estimate.ess / UNSEEN:
        return estimate
    return estimate.warned(
        f"the weights have ESS {estimate.ess:.2g} on their own samples, but {seen:.1g} by those of "
        "the other end, which reach where these have not been: the error is too small",
        bound="lower",
    )


def _negative(estimate: FreeEnergy) -> FreeEnergy:
    flipped: dict[Bound, Bound] = {
        "none": "none",
        "lower": "upper",
        "upper": "lower",
        "both": "both",
    }
    return replace(
        estimate,
        value=-estimate.value,
        bias=-estimate.bias,
        bound=flipped[estimate.bound],
        fluctuations=-estimate.fluctuations,
    )
