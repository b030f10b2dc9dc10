r"""What a set of log-weights says: effective sample size, ln Z, acceptance, tails.

For draws :math:`x_i \sim q` the weights are :math:`w_i = e^{-S(x_i)} / q(x_i)`.  All sums are done
with the largest log-weight taken out.  Errors come from the delete-one jackknife over bins: one
bin per draw if the draws are independent, one bin per chain (or block) if they are not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "WeightEstimate",
    "effective_sample_size",
    "independence_acceptance",
    "kullback_leibler",
    "log_mean_exp",
    "max_weight_share",
    "pareto_k",
    "swap_rate",
]


@dataclass(frozen=True)
class WeightEstimate:
    """An estimate with its jackknife error.

    Attributes:
        value: the plain estimate from all samples.
        error: one standard deviation.
        bias: jackknife estimate of the bias of ``value``; ``value - bias`` is free of it to O(1/N).
    """

    value: float
    error: float
    bias: float


def effective_sample_size(log_weights: Tensor, bins: int | None = None) -> WeightEstimate:
    r"""Return :math:`\mathrm{ESS} = \langle w \rangle^2 / \langle w^2 \rangle`, in (0, 1].

    For Gaussian ln w of standard deviation s it is :math:`e^{-s^2}`.  From fewer than about
    10 / ESS samples it is biased up.

    Args:
        log_weights: ``(N,)``, up to a common constant.
        bins: number of consecutive bins of the jackknife; None for independent draws.
    """
    weights = _scaled(log_weights)
    first, second = _bin_sums(weights, bins), _bin_sums(weights.square(), bins)
    counts = _bin_counts(len(weights), bins)

    def ess(one: Tensor, two: Tensor, count: Tensor) -> Tensor:
        return one.square() / (two * count)

    return _jackknife(ess, first, second, counts)


def log_mean_exp(log_weights: Tensor, bins: int | None = None) -> WeightEstimate:
    r"""Return :math:`\ln \tfrac1N \sum_i w_i`, the estimate of ln Z, low by about error^2 / 2.

    Args:
        log_weights: ``(N,)``.
        bins: as in :func:`effective_sample_size`.
    """
    shift = float(log_weights.max())
    weights = _scaled(log_weights)
    estimate = _jackknife(
        lambda one, two, count: (one / count).log(),
        _bin_sums(weights, bins),
        None,
        _bin_counts(len(weights), bins),
    )
    return WeightEstimate(estimate.value + shift, estimate.error, estimate.bias)


def kullback_leibler(log_weights: Tensor, bins: int | None = None) -> WeightEstimate:
    r"""Return :math:`\mathrm{KL}(q \| p) = \ln \langle w \rangle - \langle \ln w \rangle \ge 0`."""
    logs = log_weights.to(torch.float64)
    logs = logs - logs.max()
    return _jackknife(
        lambda one, two, count: (one / count).log() - two / count,
        _bin_sums(logs.exp(), bins),
        _bin_sums(logs, bins),
        _bin_counts(len(logs), bins),
    )


def independence_acceptance(log_weights: Tensor) -> WeightEstimate:
    r"""Return the mean acceptance of the independence Metropolis chain in equilibrium.

    .. math:: A = \frac{\langle \min(w, w') \rangle}{\langle w \rangle}

    over independent pairs, here over all pairs i != j of the sample.  For Gaussian ln w of standard
    deviation s it is erfc(s / 2).
    """
    weights = _scaled(log_weights).sort().values
    n = len(weights)
    if n < 2:
        raise ValueError("the acceptance needs at least two log-weights")
    rank = torch.arange(n, dtype=torch.float64, device=weights.device)
    below = weights.cumsum(0) - weights
    # In ascending order the partners with smaller weight contribute theirs, the others w_i.
    partners = below + weights * (n - 1 - rank)
    pairs, total = partners.sum(), weights.sum()

    def acceptance(pair_sum: Tensor, weight_sum: Tensor, count: float) -> Tensor:
        return pair_sum / ((count - 1) * weight_sum)

    value = acceptance(pairs, total, n)
    if n < 3:
        return WeightEstimate(float(value), math.nan, 0.0)
    # Without draw i all pairs lose those of i; a single dominating weight may round below zero.
    rest = (pairs - 2 * partners).clamp(min=0)
    without = acceptance(rest, _others(weights), n - 1)
    return _from_replicas(value, without)


def swap_rate(
    forward_work: Tensor, reverse_work: Tensor, bins: int | None = None
) -> WeightEstimate:
    r"""Return :math:`\langle \min(1, e^{-(w_F + w_R)}) \rangle` over independent pairs.

    Every forward work is paired with every reverse work; the two samples are deleted bin by bin
    separately, and their variances add.

    Args:
        forward_work: ``(N,)`` from configurations of a.
        reverse_work: ``(M,)`` from configurations of b.
        bins: number of consecutive bins of each sample.
    """
    forward = forward_work.to(torch.float64).reshape(-1, 1)
    reverse = reverse_work.to(torch.float64).reshape(-1)
    rows, columns = [], torch.zeros_like(reverse)
    # In slabs: the table of all pairs would not fit for large samples.
    for slab in forward.split(max(1, 4_000_000 // len(reverse))):
        table = (-(slab + reverse)).clamp(max=0).exp()
        rows.append(table.mean(1))
        columns += table.sum(0)
    by_forward, by_reverse = torch.cat(rows), columns / len(forward)
    variance = 0.0
    for means in (by_forward, by_reverse):
        sums, counts = _bin_sums(means, bins), _bin_counts(len(means), bins)
        part = _jackknife(lambda one, two, count: one / count, sums, None, counts)
        variance += part.error**2
    return WeightEstimate(float(by_forward.mean()), math.sqrt(variance), 0.0)


def max_weight_share(log_weights: Tensor) -> float:
    """Return the share of the largest weight in the sum of all."""
    return float(1 / _scaled(log_weights).sum())


def pareto_k(log_weights: Tensor) -> float:
    r"""Return the index k of the generalised Pareto distribution fitted to the largest weights.

    Below 0.5 the weights have a finite variance and errors can be believed; above 0.7 neither the
    ESS nor its error mean anything at this number of samples.  The tail is the largest
    :math:`\min(N/5, 3\sqrt N)` weights (Vehtari, Simpson, Gelman, Yao, Gabry, "Pareto smoothed
    importance sampling", arXiv:1507.02646), fitted as by Zhang and Stephens (Technometrics 51
    (2009) 316) with the same weak prior k ~ 0.5 of ten observations.

    Returns:
        k, or NaN if there are fewer than 25 weights or the tail has no width.
    """
    weights = _scaled(log_weights).sort().values
    n = len(weights)
    tail = int(min(n / 5, 3 * math.sqrt(n)))
    if tail < 5:
        return math.nan
    excess = weights[-tail:] - weights[-tail - 1]
    if not float(excess[-1]) > 0 or not float(excess[tail // 4]) > 0:
        return math.nan
    # Profile posterior over theta = -k / sigma on a grid set by the quartile of the tail.
    grid = 30 + int(math.sqrt(tail))
    index = torch.arange(1, grid + 1, dtype=torch.float64, device=weights.device)
    quartile = excess[int(tail / 4 + 0.5) - 1]
    theta = 1 / excess[-1] + (1 - (grid / (index - 0.5)).sqrt()) / (3 * quartile)
    shapes = torch.log1p(-theta[:, None] * excess).mean(1)
    log_likelihood = tail * ((-theta / shapes).log() - shapes - 1)
    posterior = torch.softmax(log_likelihood, 0)
    k = float(torch.log1p(-(theta * posterior).sum() * excess).mean())
    return (tail * k + 10 * 0.5) / (tail + 10)


def _scaled(log_weights: Tensor) -> Tensor:
    """Return w over the largest w, in float64."""
    if log_weights.dim() != 1 or not len(log_weights):
        raise ValueError(
            f"log-weights must be a non-empty vector, got shape {tuple(log_weights.shape)}"
        )
    logs = log_weights.to(torch.float64)
    largest = logs.max()
    if not math.isfinite(float(largest)):
        raise ValueError("log-weights must be below infinity, not NaN, and not all minus infinity")
    return (logs - largest).exp()


def _bins(n: int, bins: int | None) -> int:
    count = n if bins is None else bins
    if not 1 <= count <= n:
        raise ValueError(f"cannot make {count} bins of {n} samples")
    return count


def _bin_counts(n: int, bins: int | None) -> Tensor:
    count = _bins(n, bins)
    return torch.tensor([n // count + (i < n % count) for i in range(count)], dtype=torch.float64)


def _bin_sums(values: Tensor, bins: int | None) -> Tensor:
    if bins is None:
        return values
    counts = [int(count) for count in _bin_counts(len(values), bins)]
    return torch.stack([part.sum() for part in values.split(counts)])


def _others(values: Tensor) -> Tensor:
    """Return the sum of all but each value, without the cancellation of total - value."""
    zero = values.new_zeros(1)
    before = torch.cat([zero, values[:-1]]).cumsum(0)
    after = torch.cat([zero, values.flip(0)[:-1]]).cumsum(0).flip(0)
    return before + after


def _jackknife(function, one: Tensor, two: Tensor | None, counts: Tensor) -> WeightEstimate:
    """Apply ``function(sum of one, sum of two, count)`` to all bins and to all but each bin."""
    counts = counts.to(one.device)
    second = torch.zeros_like(one) if two is None else two
    value = function(one.sum(), second.sum(), counts.sum())
    if len(one) < 2:
        return WeightEstimate(float(value), math.nan, 0.0)
    without = function(_others(one), _others(second), counts.sum() - counts)
    return _from_replicas(value, without)


def _from_replicas(value: Tensor, without: Tensor) -> WeightEstimate:
    n = len(without)
    centre = without.mean()
    error = math.sqrt((n - 1) / n * float((without - centre).square().sum()))
    return WeightEstimate(float(value), error, (n - 1) * float(centre - value))
