"""Repeated small runs: the errors of processes in both directions are those of the spread."""

import numpy as np
import pytest
import torch
from scipy import stats

from flowmc.actions import DoubleWell, Wilson
from flowmc.actions.solved import log_partition
from flowmc.estimators.free_energy import bennett, chain_of_ensembles
from flowmc.kernels import HMC, SignFlip
from flowmc.nonequilibrium import (
    ExactStart,
    MarkovStart,
    Process,
    StochasticFlow,
    line_of_actions,
)

REPETITIONS = 120
SYSTEMS = {
    "U(1)": (Wilson("U(1)", [4, 4], beta=1.2), {"beta": [0.0, 1.2]}, 8),
    "double well": (DoubleWell([4], m0=2.75), {"mu2": [1.0, -1.0], "lambda": [0.0, 1.0]}, 40),
}


def kernels(action, flip=False):
    hmc = HMC(action, trajectory=1.0, steps=5, jitter=0.3, check_reversibility=0.0)
    return [hmc, SignFlip(action)] if flip else [hmc]


def assert_unit_width(values):
    """chi^2 within its two-sided 1e-6 interval, and the mean within 5 sigma of 0."""
    low, high = stats.chi2.ppf([5e-7, 1 - 5e-7], len(values))
    width = np.sqrt((values**2).mean())
    assert low < (values**2).sum() < high, f"pulls of width {width:.3f}"
    assert abs(values.mean()) < 5 / np.sqrt(len(values))


@pytest.mark.parametrize("name", SYSTEMS)
def test_both_directions(name, rng):
    """120 runs of 60 forward processes, and 4 chains of 24 configurations sent back."""
    action, couplings, steps = SYSTEMS[name]
    start, *actions = line_of_actions(action, couplings, steps)
    model = StochasticFlow(ExactStart(start), Process(actions, [kernels(a) for a in actions]))
    forward = model.evolve(60 * REPETITIONS, rng).work.reshape(REPETITIONS, 60)
    chains = MarkovStart(
        action,
        kernels(action, flip=not action.is_gauge),
        chains=4 * REPETITIONS,
        thermalization=40,
    )
    reverse = torch.stack([model.reverse(x, rng).work for x in chains.configurations(24, rng)])
    reverse = reverse.reshape(24, REPETITIONS, 4)
    exact = log_partition(action)
    pulls = []
    for run in range(REPETITIONS):
        estimate = bennett(forward[run], reverse[:, run]).estimate
        pulls.append((estimate.value - exact) / estimate.error)
    assert_unit_width(np.array(pulls))


@pytest.mark.slow
def test_line_of_ensembles(rng):
    """120 runs of 4 chains at four couplings of U(1), autocorrelated and shared by bridges."""
    line = line_of_actions(Wilson("U(1)", [4, 4], beta=1.2), {"beta": [0.0, 1.2]}, 3)
    forward, reverse = [], []
    for index, action in enumerate(line):
        up, down = [], []
        slow = [HMC(action, trajectory=0.5, steps=3, check_reversibility=0.0)]
        chains = MarkovStart(action, slow, chains=4 * REPETITIONS, thermalization=40)
        for x in chains.configurations(60, rng):
            own = action(x)
            if index + 1 < len(line):
                up.append(line[index + 1](x) - own)
            if index:
                down.append(line[index - 1](x) - own)
        shape = (60, REPETITIONS, 4)
        forward += [torch.stack(up).reshape(shape)] if up else []
        reverse += [torch.stack(down).reshape(shape)] if down else []
    exact = log_partition(line[-1]) - log_partition(line[0])
    pulls, taus = [], []
    for run in range(REPETITIONS):
        found = chain_of_ensembles([f[:, run] for f in forward], [r[:, run] for r in reverse])
        pulls.append((found.estimates[-1].value - exact) / found.estimates[-1].error)
        taus.append(found.bridges[1].estimate.tau_int)
    assert np.mean(taus) > 0.7  # the autocorrelations matter
    assert_unit_width(np.array(pulls))
