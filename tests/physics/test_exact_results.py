"""Whole chains against exact answers and long independent runs.

Each comparison allows 5 standard deviations of the chain's own error (combined with that of the
reference where it has one): a false alarm of 6e-7 for a normal error, and below 1e-6 with the
uncertainty of the error itself at the sample sizes used.  Exact values: lattice sums over
characters (two-dimensional gauge theories), FFT (free field).  The phi^4 value is that of a long
independent HMC run.
"""

import pytest
import torch

from flowmc.actions import FreeScalar, Phi4, Wilson
from flowmc.estimators.autocorrelation import analyse
from flowmc.flows import Identity, Inverse, ResidualFlow
from flowmc.kernels import HMC, Cycle, EachReplica, Exchange, Repeat
from flowmc.observables import (
    abs_magnetization,
    action_density,
    correlator,
    phi2,
    plaquette,
    susceptibility,
    topological_charge,
)
from flowmc.random import stream

SIGMAS = 5.0


def measure(action, kernel, start, observables, updates, thermalization, rng):
    """Run chains and return series ``(updates, chains)`` per observable, of replica 0."""
    state = kernel.init(start)
    series = {observable.__name__: [] for observable in observables}
    for update in range(thermalization + updates):
        state, info = kernel.step(state, rng)
        if update < thermalization:
            kernel.adapt(info, update)
            continue
        field = state.replicas[0].field if hasattr(state, "replicas") else state.field
        for observable in observables:
            series[observable.__name__].append(observable(field, action))
    return {name: torch.stack(values).numpy() for name, values in series.items()}


def assert_agrees(series, expected, reference_error=0.0):
    estimate = analyse(series)
    error = (estimate.error**2 + reference_error**2) ** 0.5
    pull = (estimate.mean - expected) / error
    assert abs(pull) < SIGMAS, f"{estimate.mean}({estimate.error}) against {expected}: {pull:.1f}"
    return estimate


def charge_squared(field, action):
    return topological_charge(field, action).square()


@pytest.mark.parametrize("start", ["cold", pytest.param("hot", marks=pytest.mark.slow)])
def test_u1_by_hmc(start, rng):
    action = Wilson("U(1)", [8, 8], beta=2.0)
    field = action.cold(64) if start == "cold" else action.hot(64, rng)
    kernel = HMC(action, steps=6, target_acceptance=0.85)
    series = measure(action, kernel, field, [plaquette, charge_squared], 800, 200, rng)
    assert_agrees(series["plaquette"], 0.69777466)
    assert_agrees(series["charge_squared"], 1.239299)


@pytest.mark.parametrize("updates", [150, pytest.param(300, marks=pytest.mark.slow)])
def test_u1_by_exchange_with_flows(updates, rng):
    """T-REX from beta = 2 up to 4, where HMC is slow, and down to 1, by flows made by hand."""
    betas = [2.0, 4.0]
    actions = [Wilson("U(1)", [8, 8], beta=beta) for beta in betas]
    flow = ResidualFlow(actions[0], initial_coefficient=0.08)
    kernel = Cycle(
        [
            EachReplica([HMC(action, steps=6) for action in actions], actions),
            Exchange(actions, [flow]),
        ]
    )
    start = [action.hot(48, rng) for action in actions]
    observables = [plaquette, charge_squared]
    series = measure(actions[0], kernel, start, observables, updates, 60, rng)
    assert_agrees(series["plaquette"], 0.69777466)
    assert_agrees(series["charge_squared"], 1.239299)


@pytest.mark.slow
def test_exchange_mixes_the_topology_of_the_cold_replica(rng):
    """At beta = 4 HMC alone hardly tunnels; the ladder reproduces <Q^2> = 0.482016 there."""
    betas = [4.0, 3.0, 2.0]
    actions = [Wilson("U(1)", [8, 8], beta=beta) for beta in betas]
    flows = [
        Inverse(ResidualFlow(actions[0], initial_coefficient=0.05)) for _ in range(len(betas) - 1)
    ]
    kernel = Cycle(
        [
            EachReplica([HMC(action, steps=8) for action in actions], actions),
            Exchange(actions, flows),
        ]
    )
    series = measure(
        actions[0],
        kernel,
        [action.hot(32, rng) for action in actions],
        [plaquette, charge_squared],
        1000,
        300,
        rng,
    )
    assert_agrees(series["plaquette"], 0.86353004)
    assert_agrees(series["charge_squared"], 0.482016)


@pytest.mark.parametrize(
    ("group", "beta", "exact"),
    [
        pytest.param("SU(2)", 2.2, 0.46447903, marks=pytest.mark.slow),
        ("SU(2)", 4.0, 0.65804727),
        pytest.param("SU(3)", 4.0, 0.27961915, marks=pytest.mark.slow),
        pytest.param("SU(3)", 6.0, 0.42253174, marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize("start", ["cold", pytest.param("hot", marks=pytest.mark.slow)])
def test_su_n_in_two_dimensions(group, beta, exact, start, rng):
    # The exact plaquettes are those of 16x16; at 8x8 they are the same to 1e-8.
    action = Wilson(group, [8, 8], beta=beta)
    field = action.cold(16) if start == "cold" else action.hot(16, rng)
    kernel = HMC(action, steps=8, target_acceptance=0.85)
    series = measure(action, kernel, field, [plaquette], 300, 100, rng)
    assert_agrees(series["plaquette"], exact)


def test_phi4_tutorial_couplings(rng):
    action = Phi4([8, 8], m2=-4.0, lam=8.0)
    kernel = HMC(action, steps=8, target_acceptance=0.85)
    series = measure(action, kernel, action.hot(256, rng), [susceptibility, phi2], 600, 100, rng)
    assert_agrees(series["susceptibility"], 0.7450, 0.0021)
    assert_agrees(series["phi2"], 0.143466, 0.000044)


@pytest.mark.slow
def test_phi4_in_the_hopping_parametrisation(rng):
    """kappa = 0.2, lambda = 0.022 on 16x8: <phi^2> of 64x8 differs by less than 1e-3 there."""
    action = Phi4([16, 8], kappa=0.2, lam=0.022)
    kernel = HMC(action, steps=8, target_acceptance=0.85)
    cold = measure(action, kernel, action.cold(128), [phi2, abs_magnetization], 300, 200, rng)
    hot = measure(action, kernel, action.hot(128, rng), [phi2, abs_magnetization], 300, 200, rng)
    for name in cold:
        one, two = analyse(cold[name]), analyse(hot[name])
        error = (one.error**2 + two.error**2) ** 0.5
        assert abs(one.mean - two.mean) < SIGMAS * error


@pytest.mark.slow
def test_free_field_propagator(rng):
    action = FreeScalar([8, 6], m2=0.3)
    kernel = HMC(action, steps=6, target_acceptance=0.85)
    series = measure(action, kernel, action.cold(128), [correlator, action_density], 500, 100, rng)
    exact = action.propagator().sum(0)
    for t in range(4):
        assert_agrees(series["correlator"][:, :, t], float(exact[t]))
    assert_agrees(series["action_density"], 0.5)


@pytest.mark.parametrize("jitter", [0.0, pytest.param(0.3, marks=pytest.mark.slow)])
def test_errors_are_honest(jitter):
    """Pulls of 200 short runs have unit width.

    The width of 200 unit pulls is 1 +- 0.05; the window allows 5 of these standard deviations and
    10 % for the uncertainty of the errors themselves at 40 autocorrelation times per run.
    """
    rng = stream(7, 0, f"pulls {jitter}")
    action = FreeScalar([4, 4], m2=0.4)
    kernel = Repeat(HMC(action, steps=3, trajectory=0.6, jitter=jitter), 1)
    series = measure(action, kernel, action.sample(200, rng), [phi2], 500, 0, rng)["phi2"]
    exact = float(action.propagator()[0, 0])
    pulls = torch.tensor(
        [
            (estimate.mean - exact) / estimate.error
            for estimate in (analyse(series[:, chain : chain + 1]) for chain in range(200))
        ]
    )
    assert 0.75 < pulls.std() < 1.35
    assert abs(pulls.mean()) < SIGMAS / 200**0.5 * 1.2


@pytest.mark.slow
def test_plain_and_flow_exchange_agree_in_four_dimensions(rng):
    """SU(3) on 4^4: both marginals of a two-replica ladder against separate HMC."""
    betas = [6.0, 5.7]
    actions = [Wilson("SU(3)", [4, 4, 4, 4], beta=beta) for beta in betas]
    flow = Inverse(ResidualFlow(actions[0], initial_coefficient=0.3 / 64))
    ladder = Cycle(
        [
            EachReplica([HMC(action, steps=8) for action in actions], actions),
            Exchange(actions, [flow]),
        ]
    )
    starts = [action.cold(8) for action in actions]
    state = ladder.init(starts)
    measured = [[], []]
    for update in range(160):
        state, _ = ladder.step(state, rng)
        if update >= 40:
            for r, action in enumerate(actions):
                measured[r].append(plaquette(state.replicas[r].field, action))
    for action, values in zip(actions, measured, strict=True):
        alone = measure(action, HMC(action, steps=8), action.cold(8), [plaquette], 200, 40, rng)
        one, two = analyse(torch.stack(values).numpy()), analyse(alone["plaquette"])
        assert abs(one.mean - two.mean) < SIGMAS * (one.error**2 + two.error**2) ** 0.5


def test_identity_flow_is_plain_tempering(rng):
    """The same stream gives the same chain with no flows and with identity flows."""
    actions = [Phi4([4, 4], m2=m2, lam=1.0) for m2 in (-1.0, -0.8)]
    fields = [action.hot(8, rng) for action in actions]
    ends = []
    for flows in (None, [Identity()]):
        kernel = Exchange(actions, flows)
        state = kernel.init(fields)
        numbers = stream(3, 0, "exchange")
        for _ in range(5):
            state, _ = kernel.step(state, numbers)
        ends.append(state)
    assert torch.equal(ends[0].replicas[0].field, ends[1].replicas[0].field)
    assert torch.equal(ends[0].walkers, ends[1].walkers)
