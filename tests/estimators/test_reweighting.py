"""Reweighting and correlated differences against exact answers, with pulls of unit width.

False alarms: every pull test fails a correct estimator with probability below 2e-5 (mean and sum
of squares of 200 independent pulls, each at 1e-5 two-sided).
"""

import math

import numpy as np
import pytest
import torch
from scipy.signal import lfilter
from scipy.special import ive
from scipy.stats import chi2, norm

from flowmc.actions import FreeScalar, Wilson
from flowmc.actions.exact import sample_wilson_2d
from flowmc.estimators.history import History, result_of
from flowmc.estimators.reweighting import (
    block_jackknife,
    judge_weights,
    log_partition_ratio,
    log_weights_of,
    reweight,
)
from flowmc.flows import Flow, Identity
from flowmc.groups import U1
from flowmc.observables import phi2, plaquette

REPETITIONS = 200


class Scaling(Flow):
    """phi -> s phi: the simplest flow that changes volumes."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def _log_det(self, field):
        return math.log(self.factor) * field[0].numel()

    def forward(self, x, log_density):
        return self.factor * x, log_density - self._log_det(x)

    def inverse(self, y, log_density):
        return y / self.factor, log_density + self._log_det(y)


def pull_p_value(pulls):
    """Return the smaller p-value of mean and width of pulls that should be standard normal."""
    pulls = np.asarray(pulls)
    mean = 2 * norm.sf(abs(pulls.mean()) * len(pulls) ** 0.5)
    total = np.sum(pulls**2)
    width = 2 * min(chi2.sf(total, len(pulls)), chi2.cdf(total, len(pulls)))
    return min(mean, width)


def exact_phi2(m2, lattice):
    return float((0.5 / FreeScalar(lattice, m2=m2).mode_action()).mean())


def free_chain(action, length, rho, rng):
    """Return an exactly stationary chain of the free field with autocorrelation rho^t."""
    draws = action.sample(length, rng).numpy()
    draws[1:] *= (1 - rho**2) ** 0.5
    return torch.from_numpy(lfilter([1.0], [1.0, -rho], draws, axis=0))


def free_pulls(correct):
    """Return pulls of <phi^2> and ln Z_b / Z_a by a scaling flow and of their central difference.

    Args:
        correct: ``(log_weights, log_det) -> log_weights``, the identity for the right estimator.
    """
    lattice, m2, step, length = (4, 4), 1.0, 0.1, 400
    action = FreeScalar(lattice, m2=m2)
    history = History.regular("free", length)
    rng = torch.Generator().manual_seed(11)
    pulls = {"value": [], "log_z": [], "slope": []}
    for _ in range(REPETITIONS):
        field = free_chain(action, length, 0.6, rng)
        ends = {}
        for sign in (1, -1):
            target = action.at(m2=m2 + sign * step)
            # Towards the width of the target: not exact, since modes differ.
            flow = Scaling(1 - 0.05 * sign)
            mapped, logs = log_weights_of(flow, field, action, target)
            logs = correct(logs, math.log(flow.factor) * action.volume)
            values = phi2(mapped, target).numpy()
            ends[sign] = reweight(history, values, logs.numpy())[()]
            if sign == 1:
                log_z = result_of("z", log_partition_ratio(history, logs.numpy()))
                exact = target.log_partition() - action.log_partition()
                # Without weights there is no error at all.
                pulls["log_z"].append((log_z.value - exact) / max(log_z.error, 1e-12))
        value = result_of("value", ends[1])
        pulls["value"].append((value.value - exact_phi2(m2 + step, lattice)) / value.error)
        slope = result_of("slope", (ends[1] - ends[-1]) / (2 * step))
        exact = exact_phi2(m2 + step, lattice) - exact_phi2(m2 - step, lattice)
        pulls["slope"].append((slope.value - exact / (2 * step)) / slope.error)
    return pulls


def test_free_field_pulls_have_unit_width():
    for name, pulls in free_pulls(lambda logs, log_det: logs).items():
        assert pull_p_value(pulls) > 1e-5, (name, np.mean(pulls), np.std(pulls))


@pytest.mark.parametrize(
    ("mistake", "caught"),
    [
        (lambda logs, log_det: torch.zeros_like(logs), {"value", "slope", "log_z"}),
        # A wrong sign of a constant J cancels in ratios and shows in the partition function.
        (lambda logs, log_det: logs - 2 * log_det, {"log_z"}),
    ],
    ids=["weights dropped", "wrong sign of J"],
)
def test_planted_errors_are_caught(mistake, caught):
    for name, pulls in free_pulls(mistake).items():
        assert (pull_p_value(pulls) < 1e-5) == (name in caught), name


class Stretch(Flow):
    """phi -> phi + e phi^3 / (1 + phi^2) site by site: its J depends on the field."""

    def __init__(self, strength):
        super().__init__()
        self.strength = strength

    def forward(self, x, log_density):
        square = x.square()
        slope = 1 + self.strength * square * (3 + square) / (1 + square).square()
        y = x + self.strength * x * square / (1 + square)
        return y, log_density - slope.log().reshape(len(x), -1).sum(1)

    def inverse(self, y, log_density):
        raise NotImplementedError


@pytest.mark.parametrize("sign", [1, -1])
def test_wrong_sign_of_a_varying_jacobian_biases_observables(sign):
    """20,000 independent draws: right within 5 sigma, wrong by more than 20."""
    action = FreeScalar((3, 3), m2=1.0)
    target = action.at(m2=0.8)
    field = action.sample(20000, torch.Generator().manual_seed(2))
    mapped, logs = log_weights_of(Stretch(0.3), field, action, target)
    zero = torch.zeros(len(field), dtype=torch.float64)
    log_det = -Stretch(0.3).forward(field, zero)[1]
    if sign < 0:
        logs = logs - 2 * log_det
    history = History.regular("free", len(field))
    result = result_of("phi2", reweight(history, phi2(mapped, target).numpy(), logs.numpy())[()])
    deviation = abs(result.value - exact_phi2(0.8, (3, 3))) / result.error
    assert deviation < 5 if sign > 0 else deviation > 20


def exact_plaquette(beta, volume):
    """<cos P> = sum_n I_n^(V-1) I_n' / sum_n I_n^V on the torus."""
    n = np.arange(-40, 41)
    ratio = ive(n, beta) / ive(0, beta)
    slope = 0.5 * (ive(n - 1, beta) + ive(n + 1, beta)) / ive(0, beta)
    return float(np.sum(ratio ** (volume - 1) * slope) / np.sum(ratio**volume))


def test_u1_pulls_of_values_and_central_differences():
    """Two steps and their extrapolation: the fit in h^2 removes the bias of the larger step."""
    action, length = Wilson(U1(), (4, 4), beta=2.0), 150
    rng = torch.Generator().manual_seed(5)
    draws = sample_wilson_2d(action, REPETITIONS * length, rng)
    history = History.regular("u1", length)
    slope = (exact_plaquette(2.0 + 1e-4, 16) - exact_plaquette(2.0 - 1e-4, 16)) / 2e-4
    pulls = {"value": [], "step 0.1": [], "extrapolated": []}
    for field in draws.split(length):
        ends = {}
        for shift in (0.1, -0.1, 0.2, -0.2):
            target = action.at(beta=2.0 + shift)
            mapped, logs = log_weights_of(Identity(), field, action, target)
            ends[shift] = reweight(history, plaquette(mapped, target).numpy(), logs.numpy())[()]
        value = result_of("v", ends[0.2])
        pulls["value"].append((value.value - exact_plaquette(2.2, 16)) / value.error)
        small = (ends[0.1] - ends[-0.1]) / 0.2
        large = (ends[0.2] - ends[-0.2]) / 0.4
        one = result_of("d", small)
        exact = (exact_plaquette(2.1, 16) - exact_plaquette(1.9, 16)) / 0.2
        pulls["step 0.1"].append((one.value - exact) / one.error)
        both = result_of("e", (4 * small - large) / 3)
        pulls["extrapolated"].append((both.value - slope) / both.error)
    for name, of_name in pulls.items():
        assert pull_p_value(of_name) > 1e-5, (name, np.mean(of_name), np.std(of_name))


def test_block_jackknife_agrees():
    action = FreeScalar((4, 4), m2=1.0)
    field = free_chain(action, 4000, 0.6, torch.Generator().manual_seed(3))
    target = action.at(m2=1.15)
    mapped, logs = log_weights_of(Identity(), field, action, target)
    history = History.regular("free", 2000, 2)
    values = phi2(mapped, target).numpy()
    result = result_of("x", reweight(history, values, logs.numpy())[()])
    value, error, bias = block_jackknife(history, values, logs.numpy(), 20)
    assert value == pytest.approx(result.value, rel=1e-12)
    # 200 blocks: the error of the error is 5 %.
    assert error == pytest.approx(result.error, rel=0.25)
    assert abs(bias) < 0.3 * error


def test_verdicts():
    rng = np.random.default_rng(1)
    sound = judge_weights(0.3 * rng.normal(size=2000))
    assert not sound.warnings and "sound" in str(sound)
    slow = judge_weights(0.3 * rng.normal(size=2000), tau_int=200.0)
    assert slow.is_bound and "5 independent configurations" in slow.warnings[0]
    few = judge_weights(3.0 * rng.normal(size=60))
    assert few.is_bound and any("fewer than 10 / ESS" in text for text in few.warnings)
    heavy = judge_weights(np.where(np.arange(2000) == 7, 9.0, 0.0) + 0.1 * rng.normal(size=2000))
    assert any("a single configuration" in text for text in heavy.warnings)
    tail = judge_weights(1.5 * rng.exponential(size=2000))  # Pareto with k = 1.5
    assert any("heavy tail" in text for text in tail.warnings)
    lost = judge_weights(np.where(np.arange(100) == 3, -np.inf, 0.1 * rng.normal(size=100)))
    assert any("weight zero" in text for text in lost.warnings)
    equal = judge_weights(np.zeros(5))
    assert not equal.warnings and equal.ess == 1
    with pytest.raises(ValueError, match="not NaN"):
        judge_weights([0.0, math.nan])


def test_importance_sampling_with_a_flow_of_the_zoo():
    """Draws of a trained flow, weighted: the susceptibility of long HMC runs, 0.7450(21)."""
    from flowmc.flows.cards.files import load_flow
    from flowmc.observables import susceptibility
    from flowmc.random import stream

    loaded = load_flow("zoo:phi4_8x8_tutorial")
    with torch.no_grad():
        field, log_q = loaded.model.sample(4000, stream(1, 0, "importance"))
    log_weights = -loaded.action(field) - log_q
    history = History.regular("flow", len(field))
    values = susceptibility(field, loaded.action)
    result = result_of("chi2", reweight(history, values, log_weights)[()])
    assert not judge_weights(log_weights).warnings
    assert abs(result.value - 0.7450) < 5 * math.hypot(result.error, 0.0021)
    assert result.error < 0.05
