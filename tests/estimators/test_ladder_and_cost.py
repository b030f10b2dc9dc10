"""Walkers on known paths, and costs by hand."""

import math

import numpy as np
import pytest
from scipy.special import erfc

from flowmc.estimators.autocorrelation import Estimate
from flowmc.estimators.cost import break_even, cost_per_independent_sample, gain
from flowmc.estimators.ladder import acceptance_from_work, positions, round_trips, up_fraction


def walkers_of(paths):
    """Labels by replica, one chain, from the replica of every walker."""
    return np.argsort(np.array(paths), axis=1)[:, None, :]


def test_positions_invert_walkers():
    walkers = np.array([[[2, 0, 1]]])
    np.testing.assert_array_equal(positions(walkers), [[[1, 2, 0]]])


def test_round_trips_and_up_fraction():
    # Walker 0 goes 0 -> 2 -> 0; walker 1 starts in the middle: its first end is not half a trip;
    # walker 2 goes 2 -> 0 -> 2.
    paths = [[0, 1, 2], [1, 0, 2], [2, 0, 1], [2, 1, 0], [1, 2, 0], [0, 2, 1], [0, 1, 2]]
    walkers = walkers_of(paths)
    np.testing.assert_array_equal(round_trips(walkers), [[1, 0, 1]])
    # In the middle: walker 1 of unknown origin, 0 from below, 2 from above, 1 from below,
    # 0 from above, 2 from below, 1 from above.
    np.testing.assert_allclose(up_fraction(walkers), [1, 3 / 6, 0])


def test_turning_around_is_no_round_trip():
    paths = [[0, 1, 2], [1, 0, 2], [0, 1, 2], [0, 2, 1], [0, 1, 2]]
    assert not round_trips(walkers_of(paths)).any()


def test_acceptance_of_gaussian_works():
    rng = np.random.default_rng(1)
    work = rng.normal(2.0, 2.0, size=400_000)  # variance = twice the mean
    rate = np.minimum(1, np.exp(-work)).mean()
    assert acceptance_from_work(2.0) == pytest.approx(rate, abs=5 * 0.5 / math.sqrt(400_000))
    assert acceptance_from_work(2.0) == pytest.approx(float(erfc(math.sqrt(2) / 2)))
    assert acceptance_from_work(-0.1) == 1


def test_costs():
    slow = cost_per_independent_sample(Estimate(0, 1, 50.0, 5.0, 1000, 1), 0.1)
    fast = cost_per_independent_sample(Estimate(0, 1, 1.0, 0.1, 1000, 1), 0.2, 100.0)
    assert slow.seconds == pytest.approx(10) and slow.error == pytest.approx(1)
    assert slow.seconds_with_training == slow.seconds
    assert fast.seconds == pytest.approx(0.4)
    # 500 independent samples share 100 seconds of training.
    assert fast.seconds_with_training == pytest.approx(0.6)
    assert gain(fast, slow) == pytest.approx((25, 25 * math.hypot(0.1, 0.1)))
    assert break_even(fast.seconds, slow.seconds, 100.0) == pytest.approx(100 / 9.6)
    assert break_even(slow.seconds, fast.seconds, 100.0) == math.inf
    assert break_even(slow.seconds, fast.seconds, 0.0) == 0
