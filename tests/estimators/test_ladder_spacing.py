"""Spacing of ladders for which equal rejection rates are known exactly."""

import math

import numpy as np
import pytest
from scipy.special import betainc, erfc

from flowmc.estimators.ladder import equalised


def gaussian_rejection(beta, dimensions):
    """Exact rates of exchange between exp(-beta_i |x|^2 / 2).

    By symmetry the acceptance is 2 P(E_1 < E_2) for beta_1 < beta_2, with E = G / beta and
    G ~ Gamma(d / 2), so that G_1 / (G_1 + G_2) is a Beta variable.
    """
    beta = np.sort(np.asarray(beta))
    share = beta[:-1] / (beta[:-1] + beta[1:])
    return 1 - 2 * betainc(dimensions / 2, dimensions / 2, share)


def tuned(couplings, rates, repetitions):
    for _ in range(repetitions):
        couplings = equalised(couplings, rates(couplings))
    return np.array(couplings)


def test_exact_rates_of_the_gaussian_ladder():
    radius = np.random.default_rng(1).standard_normal((2, 400_000, 3))
    energy = (radius**2).sum(-1) / 2 / np.array([[1.0], [2.5]])
    accepted = np.minimum(1, np.exp((1.0 - 2.5) * (energy[0] - energy[1]))).mean()
    # The standard error is below 0.5 / sqrt(400000).
    assert 1 - gaussian_rejection([1.0, 2.5], 3)[0] == pytest.approx(accepted, abs=0.004)


@pytest.mark.parametrize("dimensions", [2, 10, 1000])
def test_gaussian_ladders_become_geometric(dimensions):
    ends = (1.0, 1.0 + 40 / math.sqrt(dimensions))
    start = np.linspace(*ends, 8)
    geometric = np.geomspace(*ends, 8)
    new = tuned(start, lambda beta: gaussian_rejection(beta, dimensions), 12)
    np.testing.assert_allclose(new, geometric, rtol=1e-4)
    once = tuned(start, lambda beta: gaussian_rejection(beta, dimensions), 1)
    assert np.abs(np.log(once / geometric)).max() < 0.25 * np.abs(np.log(start / geometric)).max()


def test_shifted_gaussians_need_one_step():
    """exp(-(x - c)^2 / 2): the rate is erf(|dc| / 2), so equal spacing is found at once."""
    start = np.array([0.0, 4.0, 4.5, 5.0, 7.0])
    rejection = 1 - erfc(np.diff(start) / 2)
    # The barrier is linear in c, and so is its interpolation.
    new = equalised(start, rejection)
    np.testing.assert_allclose(new, np.linspace(0, 7, 5), atol=1e-10)


def test_falling_ladders_mirror_rising_ones():
    rejection = [0.9, 0.2, 0.4]
    rising = np.array(equalised([1.0, 2.0, 3.0, 5.0], rejection))
    falling = np.array(equalised([-1.0, -2.0, -3.0, -5.0], rejection))
    np.testing.assert_allclose(rising, -falling, rtol=1e-14)
    # The pair that rejected most becomes narrower.
    assert rising[1] < 2.0


@pytest.mark.parametrize(
    "rejection", [[0, 0, 0, 0], [1, 1, 1, 1], [0.3, 0.3, 0.3, 0.3], [1e-12] * 4]
)
def test_equal_rates_move_nothing(rejection):
    couplings = [6.0, 5.7, 5.5, 5.2, 4.4]
    np.testing.assert_allclose(equalised(couplings, rejection), couplings, rtol=1e-12)


def test_extreme_rates_keep_the_order():
    rng = np.random.default_rng(3)
    for _ in range(300):
        replicas = int(rng.integers(2, 30))
        couplings = np.cumsum(rng.uniform(1e-3, 1, replicas)) * rng.choice([-1, 1])
        rejection = rng.choice([0, 1, 0.5, 1e-9, 0.999], replicas - 1)
        new = np.array(equalised(couplings, rejection))
        steps = np.diff(new) * np.sign(couplings[1] - couplings[0])
        assert (steps > 0).all()
        assert new[0] == couplings[0] and new[-1] == couplings[-1]
        # A pair widens by no more than the floor allows.
        assert steps.max() <= np.abs(np.diff(couplings)).sum()


def test_noisy_rates_stay_near_the_optimum():
    """Rates from 200 tries per pair: the spread of the rates stays that of the noise."""
    rng = np.random.default_rng(4)
    couplings = list(np.linspace(1.0, 9.0, 10))
    for _ in range(20):
        exact = gaussian_rejection(couplings, 20)
        couplings = equalised(couplings, rng.binomial(200, exact) / 200)
    rates = gaussian_rejection(couplings, 20)
    # sqrt(r (1 - r) / 200) = 0.035; six of them.
    assert np.abs(rates - rates.mean()).max() < 0.21


@pytest.mark.parametrize(
    ("couplings", "rejection", "words"),
    [
        ([1.0], [], "at least two"),
        ([1.0, 2.0, 3.0], [0.5], "at least two"),
        ([1.0, 3.0, 2.0], [0.5, 0.5], "rise or fall"),
        ([1.0, 1.0, 2.0], [0.5, 0.5], "rise or fall"),
        ([1.0, math.nan, 2.0], [0.5, 0.5], "rise or fall"),
        ([1.0, 2.0], [math.nan], "between 0 and 1"),
        ([1.0, 2.0], [1.2], "between 0 and 1"),
    ],
)
def test_unusable_ladders(couplings, rejection, words):
    with pytest.raises(ValueError, match=words):
        equalised(couplings, rejection)
