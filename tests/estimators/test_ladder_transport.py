"""Walkers of simulated ladders, whose exchanges are accepted independently of each other."""

import math

import numpy as np
import pytest

from flowmc.estimators.ladder import (
    diffusivity,
    expected_round_trip_rate,
    expected_up_fraction,
    optimal_round_trip_rate,
    relaxation_rows,
    round_trip_rate,
    round_trips,
    transition_matrix,
    up_fraction,
)


def simulate(rejection, rows, chains, schedule="even_odd", seed=1):
    """One sweep per row; a ladder of two has an empty sweep of the odd parity, as all others."""
    rng = np.random.default_rng(seed)
    pairs = len(rejection)
    walkers = np.tile(np.arange(pairs + 1), (chains, 1))
    rows_of = []
    for row in range(rows):
        random = rng.integers(2, size=chains)
        parity = np.full(chains, row % 2) if schedule == "even_odd" else random
        for pair in range(pairs):
            swap = (rng.random(chains) >= rejection[pair]) & (parity == pair % 2)
            walkers[swap, pair], walkers[swap, pair + 1] = (
                walkers[swap, pair + 1],
                walkers[swap, pair],
            )
        rows_of.append(walkers.copy())
    return np.array(rows_of)


def rate_of(walkers):
    return round_trip_rate(round_trips(walkers), len(walkers))


LADDERS = [
    ([0.0, 0.0, 0.0, 0.0], "even_odd"),
    ([0.4], "even_odd"),
    ([0.5, 0.2, 0.7, 0.3], "even_odd"),
    ([0.5, 0.2, 0.7, 0.3], "random"),
]


@pytest.mark.parametrize(("rejection", "schedule"), LADDERS)
def test_rates_of_independent_exchanges(rejection, schedule):
    walkers = simulate(rejection, 4000, 60, schedule)
    rate, error = rate_of(walkers)
    expected = expected_round_trip_rate(rejection, schedule)
    # A walker's first trip is counted from its first end on: a loss of about a trip per walker.
    edge = 1.5 * (len(rejection) + 1) / 4000
    assert -5 * error - edge < rate - expected < 5 * error
    assert error < 0.05 * rate
    assert optimal_round_trip_rate(rejection) >= expected


@pytest.mark.parametrize(("rejection", "schedule"), LADDERS)
def test_up_fraction_of_independent_exchanges(rejection, schedule):
    walkers = simulate(rejection, 6000, 100, schedule)
    expected = expected_up_fraction(rejection, schedule)
    # Thousands of round trips: the shares are known to better than 0.005.
    np.testing.assert_allclose(up_fraction(walkers), expected, atol=0.02)
    assert expected_up_fraction([1.0, 0.5])[1] < 1e-6


def test_the_optimum_is_reached_by_many_replicas():
    barrier = 2.0
    rates = [expected_round_trip_rate(np.full(n, barrier / n)) for n in (4, 40, 4000)]
    assert rates[0] < rates[1] < rates[2]
    assert rates[2] == pytest.approx(optimal_round_trip_rate([barrier]), rel=1e-3)
    assert expected_round_trip_rate([0.2, 1.0]) == 0


def test_errors_of_the_rate():
    """The scatter of repeated runs, for one ladder and for many."""
    for chains, rows in ((1, 300), (16, 300)):
        results = [
            rate_of(simulate([0.6, 0.4, 0.5], rows, chains, seed=seed)) for seed in range(60)
        ]
        rates, errors = np.array(results).T
        # Poisson is generous: walkers of one ladder cannot all be lucky at a time.
        assert 0.8 * rates.std(ddof=1) < errors.mean() < 4 * rates.std(ddof=1)
    walkers = simulate([1.0, 0.0], 50, 3)
    assert rate_of(walkers) == (0.0, 1 / 150)
    # Ladders that differ, some of them stuck: the scatter is larger than that of counts.
    mixed = np.concatenate(
        [simulate([0.9, 0.9], 4000, 10), simulate([0.0, 0.0], 4000, 10, seed=2)], axis=1
    )
    trips = round_trips(mixed).sum(axis=1)
    rate, error = rate_of(mixed)
    assert error == pytest.approx(trips.std(ddof=1) / math.sqrt(20) / 4000)
    assert rate == pytest.approx(trips.mean() / 4000)


def test_diffusivity_of_a_random_walk():
    r"""Random parities without memory: D = acceptance / 2 between any two replicas."""
    rejection = [0.2, 0.8, 0.2, 0.5]
    walkers = simulate(rejection, 6000, 100, "random")
    # A pair is tried in every second sweep, and moves its two walkers by one: D = (1 - r) / 2.
    expected = (1 - np.array(rejection)) / 2
    np.testing.assert_allclose(
        diffusivity(up_fraction(walkers), rate_of(walkers)[0]), expected, rtol=0.1
    )
    fraction = up_fraction(walkers)
    assert np.argmax(-np.diff(fraction)) == 1


def test_transition_matrix():
    rejection = [0.2, 0.6]
    walkers = simulate(rejection, 3000, 50, "random")
    matrix = transition_matrix(walkers)
    np.testing.assert_allclose(matrix.sum(axis=0), 1, atol=1e-3)
    np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-12)
    exact = np.array([[0.6, 0.4, 0.0], [0.4, 0.4, 0.2], [0.0, 0.2, 0.8]])
    # 150000 transitions from each replica, one standard error below 0.0013.
    np.testing.assert_allclose(matrix, exact, atol=0.008)
    values = np.sort(np.linalg.eigvalsh(exact))
    assert relaxation_rows(matrix) == pytest.approx(-1 / math.log(values[-2]), rel=0.05)
    # Two rows of a walk without memory: the matrix is squared.
    np.testing.assert_allclose(transition_matrix(walkers[::2]), exact @ exact, atol=0.01)
    assert relaxation_rows(np.eye(3)) == math.inf
    assert relaxation_rows(np.full((3, 3), 1 / 3)) < 0.1
    with pytest.raises(ValueError, match="two rows"):
        transition_matrix(walkers[:1])
