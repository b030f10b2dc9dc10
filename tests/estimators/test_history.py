"""Series with provenance: pooled means, irregular numbers, propagated errors, verdicts."""

from itertools import pairwise

import numpy as np
import pytest

from flowmc.estimators.autocorrelation import analyse
from flowmc.estimators.gain import block_length, correlation, variance_ratio
from flowmc.estimators.history import History, fluctuations_of, result_of


def autoregressive(rng, length, rho):
    noise = rng.normal(size=length)
    series = np.empty(length)
    series[0] = noise[0]
    for i in range(1, length):
        series[i] = rho * series[i - 1] + np.sqrt(1 - rho**2) * noise[i]
    return series


def test_regular_chains_give_what_analyse_gives():
    rng = np.random.default_rng(1)
    values = np.stack([autoregressive(rng, 400, 0.7) for _ in range(3)], 1)
    history = History.regular("e", 400, 3)
    result = result_of("x", history.observable(values.T.reshape(-1)))
    expected = analyse(values)
    assert result.value == pytest.approx(expected.mean, abs=1e-14)
    assert result.error == pytest.approx(expected.error, rel=1e-12)
    assert result.tau_int == pytest.approx(expected.tau_int, rel=1e-12)
    assert str(result) == str(expected)
    assert not result.is_bound


def test_chains_that_are_stuck_apart_are_found():
    rng = np.random.default_rng(2)
    values = np.concatenate([rng.normal(size=100) + shift for shift in (0, 5, 10)])
    history = History("e", {f"r{i}": np.arange(100) for i in range(3)})
    result = result_of("x", history.observable(values))
    assert result.is_bound and any("lower bound" in text for text in result.warnings)
    assert result.error > 1


@pytest.mark.parametrize("rest", [[], [2005]])
def test_holes_and_odd_numbers(rest):
    """Missing configurations leave holes; one close pair does not spoil the grid of the others."""
    rng = np.random.default_rng(3)
    numbers = [n for n in range(0, 2010, 10) if n % 70] + rest
    history = History("e", {"r": numbers})
    assert history.spacing == 10
    series = autoregressive(rng, 300, 0.8)[np.minimum(np.array(numbers) // 10, 299)]
    result = result_of("x", history.observable(series))
    assert 2 < result.tau_int < 10  # exact: 4.5 in units of the spacing
    index = list(result.observable.idl["e|r"])
    assert all(b - a >= 10 for a, b in pairwise(index))
    assert index[:100] == numbers[:100]


def test_a_function_of_means_keeps_correlations():
    rng = np.random.default_rng(4)
    x = rng.normal(size=1000)
    y = x + 0.1 * rng.normal(size=1000)
    history = History.regular("e", 1000)
    a, b = history.observable(x), history.observable(y)
    difference = result_of("d", a - b)
    assert difference.error == pytest.approx(0.1 / 1000**0.5, rel=0.2)
    block = block_length(history, 0.5)
    rho = correlation(
        "rho", history, fluctuations_of(a, history), fluctuations_of(b, history), block
    )
    assert rho.value == pytest.approx(1 / 1.01**0.5, abs=5 * rho.error)
    gain = variance_ratio(
        "gain", history, fluctuations_of(a, history), fluctuations_of(a - b, history), 2
    )
    assert gain.value == pytest.approx(200, abs=5 * gain.error)


def test_two_ensembles_add_their_errors():
    rng = np.random.default_rng(5)
    one, two = History.regular("one", 500), History.regular("two", 300, 2)
    a, b = one.observable(rng.normal(size=500)), two.observable(rng.normal(size=600))
    result = result_of("sum", a + b)
    expected = result_of("a", a).error ** 2 + result_of("b", b).error ** 2
    assert result.error**2 == pytest.approx(expected)
    assert result.estimate.samples == 1100


def test_too_few_configurations_have_no_error_but_a_sentence():
    history = History.regular("e", 4)
    result = result_of("x", history.observable([1.0, 2.0, 3.0, 4.0]))
    assert result.value == 2.5 and np.isnan(result.error)
    assert "too few" in result.warnings[0]
    constant = result_of("c", history.observable([1.0] * 4))
    assert constant.error == 0 and constant.is_bound


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("a|b", {"r": [1]}), "no '|'"),
        (("a", {"r": [2, 1]}), "should rise"),
        (("a", {"r": [1, 1]}), "should rise"),
        (("a", {}), "no configuration"),
    ],
)
def test_bad_histories(arguments, words):
    with pytest.raises(ValueError, match=words.replace("|", r"\|")):
        History(*arguments)


def test_bad_series():
    history = History.regular("e", 3)
    with pytest.raises(ValueError, match="3 configurations"):
        history.observable([1.0, 2.0])
    with pytest.raises(ValueError, match="not finite"):
        history.observable([1.0, np.nan, 2.0])


def test_replicas_around_two_means_are_found():
    """One standard deviation apart: their pooled autocorrelation explains it all, their own not."""
    rng = np.random.default_rng(21)
    history = History.regular("e", 1000, 4)
    series = np.repeat([0.0, 1.0, 0.0, 1.0], 1000) + rng.normal(size=4000)
    result = result_of("x", history.observable(series))
    assert result.is_bound and any("disagree" in text for text in result.warnings)
    assert result.error > 0.9 * 0.5 / np.sqrt(3)
    alike = result_of("x", history.observable(rng.normal(size=4000)))
    assert not alike.warnings


@pytest.mark.parametrize("short", [{"b": [5]}, {"b": [50], "c": [7]}])
def test_a_replica_of_one_configuration_beside_longer_ones(short):
    rng = np.random.default_rng(22)
    history = History("e", {"a": np.arange(10, 2010, 10), **short})
    result = result_of("x", history.observable(rng.normal(size=len(history))))
    # An error from 200 numbers scatters by 5 %.
    assert result.error == pytest.approx(1 / np.sqrt(200), rel=0.4)
    assert result.estimate.samples == 200 + len(short)


@pytest.mark.parametrize(("tau", "other"), [(10.0, 0.5), (0.5, 10.0), (5.0, 5.0)])
def test_the_gain_is_the_ratio_of_the_variances_of_the_means(tau, other):
    """Equal variances, other autocorrelation: blocks of four tau_int gave 14.8 for 20.

    40 runs: their mean is within 5 of its standard deviations, and pulls have the width 1 within 5
    of its own, 11 %, and the 30 % by which short windows miss; with the bias of the windows, 5 %.
    """
    rng = np.random.default_rng(23)
    history = History.regular("e", 4000)
    gains = []
    for _ in range(40):
        series = [autoregressive(rng, 4000, (2 * one - 1) / (2 * one + 1)) for one in (tau, other)]
        # Unit variance from the start.
        fluctuations = [one - one.mean() for one in series]
        gains.append(variance_ratio("gain", history, *fluctuations))
    exact = tau / other
    values = np.array([gain.value for gain in gains])
    errors = np.array([gain.error for gain in gains])
    assert abs(values.mean() / exact - 1) < 0.05 + 5 * values.std() / exact / 40**0.5
    assert 0.4 < errors.mean() / values.std() < 1.6
    assert errors.mean() < 0.35 * exact
