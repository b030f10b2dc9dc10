"""Estimators on log-weights against the exact formulas of Gaussian log-weights."""

import math

import pytest
import torch

from flowmc.estimators.weights import (
    effective_sample_size,
    independence_acceptance,
    kullback_leibler,
    log_mean_exp,
    max_weight_share,
    pareto_k,
    swap_rate,
)
from flowmc.random import stream

N = 40_000


def gaussian(s: float, seed: int = 1, n: int = N) -> torch.Tensor:
    """Draw ln w of standard deviation s under q, with mean -s^2/2 so that ln Z = 0."""
    rng = stream(seed, 0, "weights")
    return s * torch.randn(n, dtype=torch.float64, generator=rng) - 0.5 * s * s


# Each comparison is at 6 jackknife standard deviations: false alarm about 2e-9 each.
@pytest.mark.parametrize("s", [0.1, 0.5, 1.0])
def test_gaussian_weights(s):
    log_weights = gaussian(s) + 500.0
    exact = [
        (effective_sample_size(log_weights), math.exp(-s * s)),
        (independence_acceptance(log_weights), math.erfc(s / 2)),
        (log_mean_exp(log_weights), 500.0),
        (kullback_leibler(log_weights), 0.5 * s * s),
    ]
    for estimate, truth in exact:
        assert abs(estimate.value - truth) < 6 * estimate.error
        assert estimate.error < 0.1 * max(abs(truth), 1.0)


@pytest.mark.parametrize(
    "estimator", [effective_sample_size, independence_acceptance, log_mean_exp, kullback_leibler]
)
def test_jackknife_error_is_the_spread_over_repetitions(estimator):
    estimates = [estimator(gaussian(0.7, seed, 500)) for seed in range(400)]
    spread = torch.tensor([e.value for e in estimates]).std()
    error = torch.tensor([e.error for e in estimates]).mean()
    # The spread over 400 repetitions is known to 3.5 %: 25 % is seven standard deviations.
    assert abs(error / spread - 1) < 0.25


@pytest.mark.slow
def test_bias_of_log_z_is_half_its_variance():
    estimates = [log_mean_exp(gaussian(1.0, seed, 100)) for seed in range(2000)]
    mean = torch.tensor([e.value for e in estimates]).mean()
    corrected = torch.tensor([e.value - e.bias for e in estimates]).mean()
    expected = -0.5 * (math.e - 1) / 100
    # One estimate has error 0.13, their mean 0.003; six of these.
    assert abs(mean - expected) < 0.018
    assert abs(corrected) < 0.018


@pytest.mark.parametrize("n", [2, 3, 50])
def test_acceptance_is_the_sum_over_all_pairs(n):
    weights = gaussian(1.0, n=n).exp()
    pairs = torch.minimum(weights[:, None], weights[None, :])
    off_diagonal = pairs.sum() - weights.sum()
    expected = off_diagonal / ((n - 1) * weights.sum())
    assert independence_acceptance(weights.log()).value == pytest.approx(float(expected))


def test_acceptance_is_that_of_a_simulated_chain():
    log_weights = gaussian(1.0)
    uniforms = torch.rand(N, dtype=torch.float64, generator=stream(3, 0, "chain")).log().tolist()
    current, accepted = -math.inf, 0
    for proposal, uniform in zip(log_weights.tolist(), uniforms, strict=True):
        if uniform < proposal - current:
            current, accepted = proposal, accepted + 1
    # Binomial error 0.0025, times about 2 for the autocorrelation; six of these.
    assert abs(accepted / N - math.erfc(0.5)) < 0.03


def test_swap_rate_of_gaussian_works():
    # Jeffreys divergence J = s^2 and acceptance erfc(s / 2), s^2 the variance of either work.
    s = 1.2
    forward = -gaussian(s, 1, 3000)
    reverse = -gaussian(s, 2, 3000)
    estimate = swap_rate(forward, reverse)
    assert abs(estimate.value - math.erfc(s / 2)) < 6 * estimate.error
    rates = [swap_rate(-gaussian(s, a, 200), -gaussian(s, a + 1000, 200)) for a in range(300)]
    spread = torch.tensor([e.value for e in rates]).std()
    assert abs(torch.tensor([e.error for e in rates]).mean() / spread - 1) < 0.25


def test_bins_see_correlations():
    # 100 chains of 50 identical entries are 100 measurements, not 5,000.
    log_weights = gaussian(0.7, n=100).repeat_interleave(50)
    naive = effective_sample_size(log_weights).error
    honest = effective_sample_size(log_weights, bins=100).error
    assert honest / naive == pytest.approx(math.sqrt(50), rel=0.15)


def test_max_weight_share():
    assert max_weight_share(torch.tensor([0.0, math.log(3.0)])) == pytest.approx(0.75)


@pytest.mark.parametrize("k", [0.3, 0.7, 1.2])
def test_pareto_k_of_pareto_tails(k):
    uniform = torch.rand(50_000, dtype=torch.float64, generator=stream(5, 0, "tail"))
    # w = u^-k has the tail index k; 670 tail points give an error of about (1 + k) / 26.
    assert abs(pareto_k(-k * uniform.log()) - k) < 6 * (1 + k) / 26
    assert pareto_k(torch.zeros(1000)) != pareto_k(torch.zeros(1000))  # NaN: no tail


def test_dominating_weight_gives_finite_numbers():
    log_weights = torch.zeros(100, dtype=torch.float64)
    log_weights[3] = 60.0
    for estimator in (effective_sample_size, independence_acceptance, log_mean_exp):
        estimate = estimator(log_weights)
        assert math.isfinite(estimate.value) and math.isfinite(estimate.error)


@pytest.mark.parametrize("bad", [torch.tensor([math.nan, 0.0]), torch.full((3,), -math.inf)])
def test_useless_log_weights_are_refused(bad):
    with pytest.raises(ValueError, match="log-weights"):
        effective_sample_size(bad)
