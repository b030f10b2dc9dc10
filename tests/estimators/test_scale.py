"""t0 and w0 of curves for which they are known, and their errors."""

import math

import numpy as np
import pytest

from flowmc.estimators.autocorrelation import analyse
from flowmc.estimators.scale import _crossing, find_t0, find_w0

TIMES = np.linspace(0.2, 4.0, 20)


def smooth(times):
    """Like t^2 E of SU(3): quadratic at small t, then nearly linear."""
    return 0.11 * times**2 / (times + 0.3)


def exact_t0():
    # 0.11 t^2 = 0.3 t + 0.09.
    return (0.3 + math.sqrt(0.09 + 4 * 0.11 * 0.09)) / 0.22


def exact_w0():
    # t d/dt = 0.11 t^2 (t + 0.6) / (t + 0.3)^2 = 0.3.
    roots = np.roots([0.11, 0.066 - 0.3, -0.18, -0.027])
    (time,) = roots[(np.abs(roots.imag) < 1e-12) & (roots.real > 0)].real
    return math.sqrt(time)


def series(rng, rows, chains, coefficient=0.0, points=TIMES):
    """Curves with an amplitude and a tilt that fluctuate, correlated in time and flow time."""
    noise = rng.normal(size=(rows, chains, 2))
    for row in range(1, rows):
        noise[row] = coefficient * noise[row - 1] + math.sqrt(1 - coefficient**2) * noise[row]
    amplitude = 1 + 0.05 * noise[..., :1] + 0.02 * noise[..., 1:] * np.log(points / 2)
    return smooth(points) * amplitude


def test_exact_curve():
    curve = np.tile(smooth(TIMES), (10, 2, 1))
    t0, w0 = find_t0(TIMES, curve), find_w0(TIMES, curve)
    assert t0.mean == pytest.approx(exact_t0(), rel=1e-5) and t0.error == 0
    assert w0.mean == pytest.approx(exact_w0(), rel=1e-4) and w0.error == 0
    # Few points, scales in the first interval.
    coarse = np.array([2.0, 4.0])
    line = np.tile(0.3 * coarse / 1.7, (10, 2, 1))
    assert find_t0(coarse, line).mean == pytest.approx(1.7)
    assert find_w0(coarse, line).mean == pytest.approx(math.sqrt(1.7))


@pytest.mark.parametrize("find", [find_t0, pytest.param(find_w0, marks=pytest.mark.slow)])
def test_errors_are_the_spread_of_repeated_runs(find):
    rng = np.random.default_rng(1)
    estimates = [find(TIMES, series(rng, 200, 3, 0.6)) for _ in range(120)]
    means = np.array([estimate.mean for estimate in estimates])
    error = np.mean([estimate.error for estimate in estimates])
    # The spread of 120 runs is known to 6.5 per cent; 5 of these and 10 per cent of the errors.
    assert error == pytest.approx(means.std(ddof=1), rel=0.42)
    expected = exact_t0() if find is find_t0 else exact_w0()
    assert abs(means.mean() - expected) < 5 * means.std(ddof=1) / math.sqrt(120) + 1e-3 * expected
    taus = np.mean([estimate.tau_int for estimate in estimates])
    assert taus == pytest.approx(0.5 * 1.6 / 0.4, rel=0.2)


@pytest.mark.parametrize("function", [lambda curve: curve, lambda curve: curve.deriv() + curve])
def test_projection_is_the_derivative_of_the_crossing(function):
    rng = np.random.default_rng(2)
    data = series(rng, 50, 2) + 1e-3 * rng.normal(size=(50, 2, TIMES.size))
    fluctuations = (data - data.mean(axis=(0, 1))).reshape(-1, TIMES.size)
    _, projected = _crossing(TIMES, data, 0.3, function, "it")
    gradient = np.linalg.lstsq(fluctuations, projected.ravel())[0]
    kick = 1e-6 * rng.normal(size=TIMES.size)
    there, back = (_crossing(TIMES, data + s * kick, 0.3, function, "it")[0] for s in (1, -1))
    assert (there - back) / 2 == pytest.approx(gradient @ kick, rel=1e-5)


def test_agrees_with_pyerrors():
    """The same through its own root of a polynomial, differentiated automatically."""
    import pyerrors

    rng = np.random.default_rng(3)
    data = series(rng, 400, 1, 0.5)
    inside = range(12, 17)
    nodes = TIMES[inside.start : inside.stop]

    def above(time, levels):
        total = -0.3
        for k, level in zip(range(5), levels, strict=True):
            for j in range(5):
                if j != k:
                    level = level * (time - nodes[j]) / (nodes[k] - nodes[j])
            total = total + level
        return total

    observables = [pyerrors.Obs([data[:, 0, k]], ["run"]) for k in inside]
    root = pyerrors.roots.find_root(observables, above, guess=3.0)
    root.gamma_method(S=2.0)
    ours = find_t0(TIMES, data)
    assert ours.mean == pytest.approx(root.value, rel=1e-5)
    assert ours.error == pytest.approx(root.dvalue, rel=1e-3)


def test_incomplete_measurements_are_left_out():
    rng = np.random.default_rng(4)
    data = series(rng, 100, 2)
    clean = find_t0(TIMES, data)
    data = np.concatenate([data, np.full((20, 2, TIMES.size), np.nan)])
    assert find_t0(TIMES, data).mean == clean.mean
    assert find_t0(TIMES, data).error == pytest.approx(clean.error)
    data[7, 1, 3] = np.inf
    estimate = find_t0(TIMES, data)
    assert estimate.samples == 198 and any("not finite" in text for text in estimate.warnings)


@pytest.mark.parametrize(
    ("times", "values", "words"),
    [
        (TIMES, np.full((5, 1, 20), 0.1), "larger flow_time"),
        (TIMES, np.full((5, 1, 20), np.nan), "finite"),
        (TIMES, np.ones((5, 20)), "measurements, chains, points"),
        (-TIMES, np.ones((5, 1, 20)), "positive"),
        (TIMES[:1], np.ones((5, 1, 1)), "at least two"),
    ],
)
def test_unusable_series(times, values, words):
    with pytest.raises(ValueError, match=words):
        find_t0(times, values)


def test_reference_is_free():
    curve = np.tile(smooth(TIMES), (10, 2, 1))
    value = find_t0(TIMES, curve, reference=0.2).mean
    assert smooth(value) == pytest.approx(0.2, rel=1e-6)
    assert analyse(np.ones(10)).mean == 1
