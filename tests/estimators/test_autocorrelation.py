"""The Gamma method against series whose autocorrelation is known exactly."""

import math

import numpy as np
import pyerrors
import pytest
from scipy.signal import lfilter

from flowmc.estimators import autocorrelation
from flowmc.estimators.autocorrelation import (
    analyse,
    analyse_topological_charge,
    count_hops,
    format_value,
)


def autoregressive(rng, length, chains, coefficient):
    """Stationary AR(1) with unit variance: rho(t) = a^|t|, tau_int = (1 + a) / (2 (1 - a))."""
    noise = rng.normal(size=(length, chains))
    noise[1:] *= math.sqrt(1 - coefficient**2)
    return lfilter([1], [1, -coefficient], noise, axis=0)


def exact_tau(coefficient):
    return 0.5 * (1 + coefficient) / (1 - coefficient)


@pytest.mark.parametrize("coefficient", [0.0, 0.6, 0.9])
@pytest.mark.parametrize("shape", [(2000, 2), (200, 100)])
def test_pulls_have_unit_width(coefficient, shape):
    """300 repeated runs: means and tau_int scatter as their errors say.

    The width of 300 Gaussian pulls scatters by 4.1 %: the bounds are 5 sigma and 2 % for the
    window's bias, false alarms below 1e-6.  A naive error misses them by sqrt(2 tau_int).
    """
    rng = np.random.default_rng(11)
    runs = [analyse(autoregressive(rng, *shape, coefficient)) for _ in range(300)]
    tau = exact_tau(coefficient)
    pulls = np.array([run.mean / run.error for run in runs])
    assert abs(pulls.mean()) < 5 / math.sqrt(len(runs))
    assert 0.78 < pulls.std() < 1.22
    taus = np.array([run.tau_int for run in runs])
    # The window cuts the tail of rho: the estimate is low by about exp(-W / tau).
    assert abs(taus.mean() / tau - 1) < 0.06
    if coefficient:
        claimed = np.mean([run.tau_int_error for run in runs])
        assert 0.6 < taus.std() / claimed < 1.4
    assert not any(run.is_bound for run in runs)

    naive = np.array([run.mean / math.sqrt(run.variance / run.samples) for run in runs])
    if coefficient:
        assert naive.std() > 1.5


@pytest.mark.parametrize("length", [8, 9, 57, 1000])
@pytest.mark.parametrize("chains", [1, 3])
@pytest.mark.parametrize("coefficient", [-0.5, 0.0, 0.8, 0.99])
def test_equals_pyerrors(length, chains, coefficient):
    rng = np.random.default_rng(length * chains)
    series = 3 + autoregressive(rng, length, chains, coefficient)
    deltas = series - series.mean()
    names = [f"ensemble|{chain}" for chain in range(chains)]
    # With `means` given the samples are taken as fluctuations about one common mean.
    theirs = pyerrors.Obs(list(deltas.T.copy()), names, means=[0.0] * chains)
    theirs.gamma_method(S=2.0, tau_exp=0)
    *numbers, window, rho = autocorrelation._gamma_method(deltas)
    tau, tau_error = theirs.e_tauint["ensemble"], theirs.e_dtauint["ensemble"]
    np.testing.assert_allclose(numbers, (theirs.dvalue, tau, tau_error), rtol=1e-10)
    assert window == theirs.e_windowsize["ensemble"]
    np.testing.assert_allclose(rho, theirs.e_rho["ensemble"], rtol=1e-8, atol=1e-10)


def test_blocks_of_chains_do_not_change_the_result(monkeypatch):
    series = autoregressive(np.random.default_rng(2), 50, 100, 0.5)
    whole = analyse(series)
    monkeypatch.setattr(autocorrelation, "BLOCK", 7 * 80)
    assert analyse(series).error == pytest.approx(whole.error, rel=1e-12)


def test_many_chains_are_fast_and_right():
    series = autoregressive(np.random.default_rng(3), 100, 10_000, 0.8)
    estimate = analyse(series)
    assert abs(estimate.mean) < 5 * estimate.error
    # Relative scatter sqrt(2 (2W + 1) / N) is below 1 %; the window costs up to 5 %.
    assert estimate.tau_int == pytest.approx(4.5, rel=0.08)
    assert not estimate.warnings


def test_stuck_chains_are_not_reported_as_precise():
    """Chains in different wells: with each chain's own mean subtracted they would look precise."""
    rng = np.random.default_rng(4)
    wells = np.where(np.arange(10) % 2, 1.0, -1.0)
    series = wells + 0.1 * rng.normal(size=(1000, 10))
    estimate = analyse(series)
    assert estimate.is_bound
    assert estimate.error > 0.25
    own_mean = autocorrelation._gamma_method(series - series.mean(axis=0))
    assert own_mean[0] < 0.01  # the mistake this test would catch


def test_disagreement_enlarges_the_error_to_the_scatter():
    rng = np.random.default_rng(5)
    offsets = 0.2 * rng.normal(size=200)
    estimate = analyse(offsets + rng.normal(size=(1000, 200)))
    assert "disagree" in " ".join(estimate.warnings)
    assert estimate.error == pytest.approx(0.2 / math.sqrt(200), rel=0.3)


def test_independent_chains_do_not_disagree():
    """A false alarm has probability 1e-5 per run: 1e-3 for the hundred of them."""
    rng = np.random.default_rng(6)
    for _ in range(100):
        assert not analyse(autoregressive(rng, 400, 16, 0.5)).warnings


def test_slow_series_is_marked_as_bound():
    estimate = analyse(autoregressive(np.random.default_rng(7), 300, 1, 0.98))
    assert estimate.is_bound
    assert any("run longer" in warning for warning in estimate.warnings)


def test_constant_series():
    estimate = analyse(np.full((100, 3), 0.1))
    assert (estimate.error, estimate.tau_int, estimate.samples) == (0.0, 0.5, 300)
    assert estimate.warnings[0].startswith("constant")


def test_unwritten_rows_are_dropped_silently_and_broken_ones_are_not():
    series = autoregressive(np.random.default_rng(8), 200, 2, 0.3)
    padded = np.vstack([series, np.full((50, 2), np.nan)])
    assert analyse(padded) == analyse(series)
    padded[17, 1] = np.inf
    estimate = analyse(padded)
    assert estimate.samples == 398
    assert "1 of 200" in estimate.warnings[0]


def test_short_series():
    rng = np.random.default_rng(9)
    alone = analyse(rng.normal(size=(3, 1)))
    assert math.isnan(alone.error) and "too few" in alone.warnings[0]
    many = analyse(rng.normal(size=(2, 5000)))
    assert many.error == pytest.approx(1 / 100, rel=0.08)
    assert many.is_bound


@pytest.mark.parametrize("series", [np.empty((0, 2)), np.full((5, 2), np.nan), np.zeros((2, 2, 2))])
def test_unusable_series_are_errors(series):
    with pytest.raises(ValueError, match="series"):
        analyse(series)


def test_frozen_charge_gives_a_lower_bound():
    rng = np.random.default_rng(10)
    charge = np.zeros((5000, 1))
    charge[3000:] = 1.0
    frozen = analyse_topological_charge(charge + 1e-6 * rng.normal(size=charge.shape))
    assert frozen.hops == 1 and frozen.is_bound
    assert any("changed once" in warning for warning in frozen.warnings)

    still = analyse_topological_charge(np.zeros((5000, 1)))
    assert still.hops == 0 and still.is_bound

    moving = analyse_topological_charge(np.round(autoregressive(rng, 5000, 1, 0.5)))
    assert moving.hops > 1000 and not moving.is_bound and not moving.warnings


def test_rough_charge_is_not_counted():
    rough = analyse_topological_charge(np.random.default_rng(12).normal(size=(500, 2)))
    assert "not near integers" in rough.warnings[0]
    assert rough.hops is None and not rough.is_bound


def test_hops():
    assert count_hops(np.array([[0, 1], [0, 2], [1, 2], [-1, 2]]) + 1e-3) == 3


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (0.314980, 0.000721, "0.31498(72)"),
        (-1.5, 0.0996, "-1.50(10)"),
        (12.345, 1.44, "12.3(1.4)"),
        (12.345, 0.999, "12.3(1.0)"),
        (1234.5, 99.6, "1234(100)"),
        (0.0, 0.25, "0.00(25)"),
        (1.23e-12, 4.5e-13, "1.23(45)e-12"),
        (3.2e9, 1.1e7, "3.200(11)e+09"),
        (0.5, 0.0, "0.5 (constant)"),
        (0.5, math.nan, "0.5(?)"),
        (math.nan, 0.1, "nan"),
    ],
)
def test_format(value, error, text):
    assert format_value(value, error) == text


def test_huge_numbers_do_not_overflow():
    series = np.random.default_rng(3).normal(size=(200, 4))
    small, large = analyse(series), analyse(series * 2.0**800)
    assert large.tau_int == pytest.approx(small.tau_int)
    assert large.error == pytest.approx(small.error * 2.0**800)


@pytest.mark.parametrize("chains", [2, 4, 32])
@pytest.mark.parametrize("offset", [0.5, 0.7, 1.0, 1.3, 2.0])
def test_two_populations_of_chains_are_found(chains, offset):
    """Half the chains around 0, half around d: the error of the mean is d / 2 sqrt(C - 1).

    The pooled autocorrelation time rises with the window and swallows what the chain means would
    say: around d = 1 the error came out as 0.15 without any mark, at every length.
    """
    rng = np.random.default_rng(13)
    series = offset * (np.arange(chains) % 2) + rng.normal(size=(2000, chains))
    estimate = analyse(series)
    assert estimate.is_bound
    assert any("disagree" in text for text in estimate.warnings)
    # Five standard deviations of the noise of two chain means.
    assert estimate.error > offset / 2 / math.sqrt(chains - 1) - 5 * 0.016


@pytest.mark.parametrize(("share", "tau"), [(0.1, 300.0), (0.03, 1000.0)])
def test_a_slow_mode_behind_the_window_is_found(share, tau):
    """The window closes at 73 and 8 measurements and sees a fifth and a fiftieth of tau_int."""
    rng = np.random.default_rng(14)
    coefficient = (2 * tau - 1) / (2 * tau + 1)
    series = math.sqrt(share) * autoregressive(rng, 100_000, 1, coefficient)
    estimate = analyse(series + math.sqrt(1 - share) * rng.normal(size=series.shape))
    assert estimate.tau_int < 0.4 * (share * tau + 0.5 * (1 - share))
    assert estimate.is_bound and "beyond the window" in estimate.warnings[0]


@pytest.mark.parametrize(("tau", "length", "count"), [(5.0, 100, 400), (50.0, 2500, 100)])
def test_short_series_are_marked(tau, length, count):
    """Unmarked come out 0.1 % at most, of those with the smallest tau_int and the worst means.

    Of 400 (100) at 0.1 % more than 8 (5) are found in less than 1e-6 of all cases.
    """
    rng = np.random.default_rng(15)
    coefficient = (2 * tau - 1) / (2 * tau + 1)
    estimates = [analyse(autoregressive(rng, length, 1, coefficient)) for _ in range(count)]
    assert sum(not one.is_bound for one in estimates) <= (8 if count == 400 else 5)


def test_long_series_are_not_marked():
    """N = 1000 tau_int: no test fires, at 3e-7 for the rest beyond the window."""
    rng = np.random.default_rng(16)
    for tau, length in ((0.5, 500), (5.0, 5000), (50.0, 50_000)):
        coefficient = (2 * tau - 1) / (2 * tau + 1)
        for _ in range(20):
            assert not analyse(autoregressive(rng, length, 1, coefficient)).warnings
