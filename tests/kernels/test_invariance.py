"""Every kernel leaves exact draws of its target distributed as they were.

Each case starts from exact independent draws, applies the kernel, and compares; see
`flowmc.testing.p_value_of_change` for the tests and their false-alarm rate (1e-6 per case).  The
planted errors below show the power: each must be caught at the same threshold.  Every kernel that
is registered is tested with its defaults in `tests/testing/test_kernels.py`; here are what keys,
theories and compositions add.
"""

import math
from dataclasses import replace

import pytest
import torch
from exactness import THRESHOLD

from flowmc.actions import (
    DefectWilson,
    FreeScalar,
    ImprovedGauge,
    Phi4,
    SchroedingerFunctional,
    Symanzik,
    Wilson,
)
from flowmc.flows import (
    AffineCouplingFlow,
    Block,
    BlockCouplingFlow,
    BlockGaussian,
    ContinuousFlow,
    DefectFlow,
    FreeFieldPrior,
    GaussianPrior,
    HaarPrior,
    LocalFlowModel,
    ResidualFlow,
    SignMixture,
    SplineCouplingFlow,
)
from flowmc.flows.base import Chain, Flow, Identity, Inverse
from flowmc.flows.models import FlowModel
from flowmc.kernels import (
    HMC,
    INTEGRATORS,
    Cycle,
    EachReplica,
    Exchange,
    Independence,
    LocalFlow,
    Mixture,
    Repeat,
    SignFlip,
)
from flowmc.kernels.base import begin
from flowmc.kernels.integrators import trajectory
from flowmc.registry import ConfigError
from flowmc.terms import Plaquettes
from flowmc.testing import p_value_of_change, statistics_of
from flowmc.testing.exact import exact_draws

PHI4 = Phi4([2, 2], m2=-4.0, lam=8.0)
HOPPING = Phi4([4], kappa=0.3, lam=0.4)
FREE = FreeScalar([4, 4], m2=0.5)
U1 = Wilson("U(1)", [4, 4], beta=1.0)
SU2 = Wilson("SU(2)", [4, 4], beta=1.2)
SU3 = Wilson("SU(3)", [4, 4], beta=1.5)
OPEN = {
    group: DefectWilson(group, [4, 4], beta=beta, defect=0.0, defect_extents=[2])
    for group, beta in (("U(1)", 1.0), ("SU(2)", 1.2), ("SU(3)", 1.5))
}


def slow(*values):
    """One of a family that runs with the slow tests only."""
    return pytest.param(*values, marks=pytest.mark.slow)


DRAWS = {"R": 3000, "U(1)": 2000, "SU(2)": 1000, "SU(3)": 400}


def draw(action, rng, draws=None):
    return exact_draws(action, draws or DRAWS[action.group.name], rng)


class Scale(Flow):
    """y = factor * x: the simplest flow that changes volumes."""

    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, x, log_density):
        return self.factor * x, log_density - x[0].numel() * math.log(self.factor)

    def inverse(self, y, log_density):
        return y / self.factor, log_density + y[0].numel() * math.log(self.factor)


def randomised(flow, rng, size=0.3):
    """Give a flow parameters that are anything but the identity's."""
    with torch.no_grad():
        for parameter in flow.parameters():
            noise = torch.randn(parameter.shape, dtype=torch.float64, generator=rng)
            parameter.add_((size * noise).to(parameter.dtype))
    return flow.double()


def scalar_model(action, rng, **options):
    flow = randomised(AffineCouplingFlow(action, layers=2, hidden=[4], **options), rng, 0.15)
    return FlowModel(GaussianPrior(action, scale=0.6), flow).double()


def gauge_model(action, rng):
    return FlowModel(HaarPrior(action), randomised(ResidualFlow(action), rng, 0.3)).double()


def check(action, kernel, rng, steps=3):
    before, fresh = draw(action, rng), draw(action, rng)
    state = begin(kernel, before)
    for _ in range(steps):
        state, _ = kernel.step(state, rng)
    if state.action is not None:
        assert torch.allclose(state.action, action(state.field), rtol=1e-12)
    return p_value_of_change(
        *(statistics_of(action, field) for field in (before, state.field, fresh))
    )


@pytest.mark.parametrize(
    ("action", "integrator"),
    [
        # Half of the pairs: every action with two integrators, every integrator with three actions.
        (action, name) if (a + i) % 2 else slow(action, name)
        for a, action in enumerate([PHI4, HOPPING, FREE, U1, SU2, SU3])
        for i, name in enumerate(INTEGRATORS)
    ],
    ids=repr,
)
def test_hmc(action, integrator, rng):
    # Coarse enough that a good share of the proposals is rejected.
    steps = {"leapfrog": 4, "omelyan2": 2, "omelyan4": 1, "force_gradient": 1}[integrator]
    kernel = HMC(action, steps=steps, integrator=integrator, jitter=0.3)
    assert check(action, kernel, rng) > THRESHOLD


@pytest.mark.parametrize("group", OPEN)
@pytest.mark.parametrize("defect", [0.0, 0.6])
def test_hmc_with_a_defect(group, defect, rng):
    action = OPEN[group].at(defect=defect)
    assert check(action, HMC(action, steps=2, jitter=0.3), rng) > THRESHOLD


@pytest.mark.parametrize(
    ("action", "odd"),
    [(PHI4, False), (HOPPING, True), slow(PHI4, True), slow(HOPPING, False)],
    ids=repr,
)
def test_independence_with_coupling_flow(action, odd, rng):
    kernel = Independence(action, scalar_model(action, rng, odd=odd), proposals=8)
    assert check(action, kernel, rng) > THRESHOLD


@pytest.mark.slow
def test_independence_with_continuous_flow(rng):
    # The log-density is that of the continuous flow; 20 steps leave an error of 0.002 on average
    # (10 leave 0.12), far below the resolution of this test.
    small = FreeScalar([4], m2=0.5)
    flow = randomised(ContinuousFlow(small, steps=20), rng, 0.02)
    model = FlowModel(FreeFieldPrior(small, m2=0.8), flow).double()
    kernel = Independence(small, model, proposals=4)
    assert check(small, kernel, rng) > THRESHOLD


class Forgetful(Scale):
    """Has lost its inverse where the first site is above 0.2."""

    def inverse(self, y, log_density):
        x, log_density = super().inverse(y, log_density)
        lost = (y[:, :1, :1] > 0.2).to(x.dtype)
        return x * (1 - 0.6 * lost), log_density


@pytest.mark.parametrize("composition", [lambda kernels: kernels[1], Cycle])
def test_independence_where_a_flow_has_lost_its_inverse(composition, rng):
    """The density of such a field is not known: from there the kernel does not move, nor to it."""
    model = FlowModel(GaussianPrior(PHI4, scale=0.6), Forgetful(0.8)).double()
    kernel = composition([HMC(PHI4, steps=3), Independence(PHI4, model, proposals=4)])
    assert check(PHI4, kernel, rng) > THRESHOLD


def test_moves_of_unknown_density_are_counted(rng):
    model = FlowModel(GaussianPrior(PHI4, scale=0.6), Forgetful(0.8)).double()
    kernel = Independence(PHI4, model, proposals=4)
    field = draw(PHI4, rng)
    state, info = kernel.step(kernel.init(field), rng)
    unknown = field[:, 0, 0] > 0.2
    stuck = info.values["non_finite"] == 4
    assert bool(stuck[unknown].all()) and not bool(stuck.all())
    assert torch.equal(state.field[stuck], field[stuck])
    assert not bool(info.is_accepted[stuck].any())
    moved = (state.field != field).flatten(1).any(1)
    assert bool(moved.any()) and bool((state.field[moved][:, 0, 0] <= 0.2).all())


@pytest.mark.parametrize("mixture", [FlowModel, SignMixture])
def test_a_spline_that_rounding_cannot_invert(mixture, rng):
    """Weights far too large: ln q by the inverse is off by more than one, and not known there."""
    flow = randomised(SplineCouplingFlow(PHI4, layers=4, hidden=[4]), rng, 0.7)
    model = mixture(GaussianPrior(PHI4, scale=0.6), flow).double()
    with torch.no_grad():
        x, log_q = model.sample(2000, rng)
        known = model.known_log_prob(x, PHI4.group)
        error = (model.log_prob(x) - log_q).abs()
    assert float(error.max()) > 1
    assert float((known - log_q).abs().nan_to_num(0).max()) < 1e-3
    assert 20 < int(known.isfinite().sum()) < 1900


@pytest.mark.parametrize("action", [U1, slow(SU2), slow(SU3)], ids=repr)
def test_independence_with_residual_flow(action, rng):
    kernel = Independence(action, gauge_model(action, rng), proposals=8)
    assert check(action, kernel, rng) > THRESHOLD


@pytest.mark.parametrize(
    ("action", "composition"),
    [
        *[(PHI4, Cycle), (PHI4, Mixture), (U1, Cycle), (SU3, Mixture)],
        *[slow(U1, Mixture), slow(SU3, Cycle)],
    ],
    ids=repr,
)
def test_hmc_mixed_with_independence(action, composition, rng):
    model = gauge_model(action, rng) if action.is_gauge else scalar_model(action, rng)
    kernel = composition(
        [
            Repeat(HMC(action, steps=2), 2),
            Independence(action, model, proposals=4, batch_size=1000),
        ]
    )
    assert check(action, kernel, rng, steps=4) > THRESHOLD


@pytest.mark.parametrize("composition", [Cycle, Mixture])
@pytest.mark.parametrize("action", [PHI4, HOPPING], ids=repr)
def test_sign_flip_mixed_with_hmc(action, composition, rng):
    kernel = composition([HMC(action, steps=2), Repeat(SignFlip(action), 3)])
    assert check(action, kernel, rng) > THRESHOLD


# Blocks of one site and of several, many blocks at once, and collars that are of two sides at once.
LOCAL = [
    (PHI4, [1, 1], 0.3),
    (HOPPING, [2], 0.3),
    (HOPPING, [3], 0.2),
    (Phi4([2, 4], m2=-4.0, lam=8.0), [1, 3], 0.2),
    (FREE, [2, 3], 0.1),
    (FreeScalar([6, 4], m2=0.5), [2, 1], 0.2),
]


def local_model(action, extents, rng, size):
    block = Block.of(action, extents)
    flow = randomised(BlockCouplingFlow(block, layers=3, hidden=[4], bins=2), rng, size)
    return LocalFlowModel(block, BlockGaussian(action, block, m2=1.5), flow).double()


@pytest.mark.parametrize(("action", "extents", "size"), LOCAL, ids=repr)
def test_local_flow(action, extents, size, rng):
    kernel = LocalFlow(action, local_model(action, extents, rng, size))
    assert check(action, kernel, rng) > THRESHOLD


@pytest.mark.parametrize("composition", [Cycle, Mixture])
def test_local_flow_mixed_with_others(composition, rng):
    local = LocalFlow(PHI4, local_model(PHI4, [1, 1], rng, 0.3))
    independence = Independence(PHI4, scalar_model(PHI4, rng), proposals=4)
    kernel = composition([HMC(PHI4, steps=2), Repeat(local, 2), independence])
    assert check(PHI4, kernel, rng, steps=4) > THRESHOLD


def check_ladder(actions, kernel, rng, steps=4):
    before = [draw(action, rng) for action in actions]
    state = begin(kernel, before)
    for _ in range(steps):
        state, _ = kernel.step(state, rng)
    p_values = []
    for action, start, replica in zip(actions, before, state.replicas, strict=True):
        assert torch.allclose(replica.action, action(replica.field), rtol=1e-12)
        batches = (start, replica.field, draw(action, rng))
        p_values.append(p_value_of_change(*(statistics_of(action, batch) for batch in batches)))
    assert (state.walkers.sort(1).values == torch.arange(len(actions))).all()
    return len(p_values) * min(p_values)


SCALAR_LADDER = [PHI4, PHI4.at(**{"lambda": 5.0}), PHI4.at(m2=-2.0)]
GAUGE_LADDERS = [
    [U1, U1.at(beta=1.8), U1.at(beta=0.6)],
    [SU2, SU2.at(beta=2.0), SU2.at(beta=0.7)],
    [SU3, SU3.at(beta=2.2), SU3.at(beta=1.0)],
]


@pytest.mark.parametrize("schedule", ["even_odd", "random"])
def test_exchange_of_scalars_with_rescaling_flows(schedule, rng):
    kernel = Exchange(SCALAR_LADDER, [Scale(1.2), Scale(0.8)], schedule=schedule)
    assert check_ladder(SCALAR_LADDER, kernel, rng) > THRESHOLD


@pytest.mark.parametrize(
    "actions",
    [SCALAR_LADDER, *GAUGE_LADDERS[:2], slow(GAUGE_LADDERS[2])],
    ids=lambda a: repr(a[0]),
)
def test_plain_exchange(actions, rng):
    assert check_ladder(actions, Exchange(actions), rng) > THRESHOLD


@pytest.mark.parametrize(
    "actions",
    [GAUGE_LADDERS[0], *map(slow, GAUGE_LADDERS[1:])],
    ids=lambda a: repr(a[0]),
)
def test_exchange_with_residual_flows_and_hmc(actions, rng):
    flows = [
        randomised(ResidualFlow(actions[0], sweeps=2), rng, 0.2),
        Inverse(randomised(ResidualFlow(actions[0]), rng, 0.2)),
    ]
    kernel = Cycle(
        [
            EachReplica([HMC(action, steps=3) for action in actions], actions),
            Exchange(actions, flows, check_inverse=1e-9),
        ]
    )
    assert check_ladder(actions, kernel, rng) > THRESHOLD


@pytest.mark.parametrize("with_flows", [False, True])
@pytest.mark.parametrize("group", ["U(1)", slow("SU(2)"), slow("SU(3)")])
def test_exchange_between_defects(group, with_flows, rng):
    actions = [OPEN[group].at(defect=defect) for defect in (1.0, 0.5, 0.0)]
    flows = [
        randomised(DefectFlow(actions[0], width=1), rng, 0.2),
        Inverse(randomised(DefectFlow(actions[0], sweeps=2, width=2), rng, 0.1)),
    ]
    kernel = Cycle(
        [
            EachReplica([HMC(action, steps=3) for action in actions], actions),
            Exchange(actions, flows if with_flows else None, check_inverse=1e-9),
        ]
    )
    assert check_ladder(actions, kernel, rng) > THRESHOLD


def test_the_wrong_weight_of_a_defect_is_caught(rng):
    """A plaquette with two defect links that counts one of them only."""

    class Wrong(DefectWilson):
        def plaquette_weights(self):
            return super().plaquette_weights().sqrt()

    right = DefectWilson("U(1)", [4, 4], beta=2.5, defect=0.3)
    wrong = Wrong("U(1)", [4, 4], beta=2.5, defect=0.3)
    before, fresh = draw(right, rng), draw(right, rng)
    kernel = HMC(wrong, steps=4)
    state = begin(kernel, before)
    for _ in range(6):
        state, _ = kernel.step(state, rng)
    batches = (before, state.field, fresh)
    assert p_value_of_change(*(statistics_of(right, batch) for batch in batches)) < THRESHOLD


def test_exchange_with_a_coupling_flow(rng):
    flows = [
        Chain([Scale(1.1), randomised(AffineCouplingFlow(PHI4, layers=2, hidden=[4]), rng, 0.1)]),
        Scale(1.1),
    ]
    assert check_ladder(SCALAR_LADDER, Exchange(SCALAR_LADDER, flows), rng) > THRESHOLD


# --- planted errors: each must be caught ---


class FlippedJacobian(Scale):
    """The reverse work carries the Jacobian with the wrong sign."""

    def inverse(self, y, log_density):
        x, density = super().inverse(y, torch.zeros_like(log_density))
        return x, log_density - density


def test_a_flipped_jacobian_in_exchange_is_caught(rng):
    # Invisible to volume-preserving flows, hence the rescaling one.
    kernel = Exchange(SCALAR_LADDER[:2], [FlippedJacobian(1.1)])
    assert check_ladder(SCALAR_LADDER[:2], kernel, rng) < THRESHOLD


def test_a_local_proposal_that_is_taken_for_symmetric_is_caught(rng):
    class Symmetric(LocalFlowModel):
        def log_prob(self, x, patch):
            return torch.zeros(len(x), dtype=torch.float64)

        def sample(self, patch, rng):
            x, log_q = super().sample(patch, rng)
            return x, torch.zeros_like(log_q)

    model = local_model(PHI4, [1, 1], rng, 0.3)
    kernel = LocalFlow(PHI4, Symmetric(model.block, model.prior, model.flow))
    assert check(PHI4, kernel, rng, steps=6) < THRESHOLD


def test_blocks_without_frozen_sites_between_them_are_caught(rng):
    """Neighbouring blocks that both move: each is accepted given what the other no longer is."""
    action = FreeScalar([4, 4], m2=0.5)
    kernel = LocalFlow(action, local_model(action, [1, 1], rng, 0.0))
    assert check(action, kernel, rng, steps=6) > THRESHOLD

    class Touching(type(kernel.tiling)):
        def patches(self, shift):
            here = super().patches(shift)
            return torch.cat([here, super().patches(shift + torch.tensor([1, 0]))])

    kernel.tiling = Touching(action.lattice, kernel.block)
    kernel.tiling.count *= 2
    with pytest.raises(ConfigError, match="local updates need"):
        kernel.init(action.cold(1))
    kernel._check_locality = lambda device: None
    assert check(action, kernel, rng, steps=6) < THRESHOLD


def test_stale_log_q_after_hmc_is_caught(rng):
    class KeepsLogQ(HMC):
        def step(self, state, rng):
            moved, info = super().step(state, rng)
            return replace(moved, log_q=state.log_q), info

    # A narrow q makes ln q vary over the target, and long trajectories make the kept one wrong.
    model = FlowModel(GaussianPrior(PHI4, scale=0.3), Identity()).double()
    independence = Independence(PHI4, model, proposals=2)
    honest = Cycle([HMC(PHI4, steps=4, trajectory=2.0), independence])
    stale = Cycle([KeepsLogQ(PHI4, steps=4, trajectory=2.0), independence])
    assert check(PHI4, honest, rng, steps=10) > THRESHOLD
    assert check(PHI4, stale, rng, steps=10) < THRESHOLD


def test_a_dropped_rejection_is_caught(rng):
    class ThinsToAccepted(Independence):
        """Repeats the scan for chains that rejected until they have moved."""

        def step(self, state, rng):
            moved, info = super().step(state, rng)
            for _ in range(20):
                stayed = ~info.is_accepted.any(1)
                if not stayed.any():
                    break
                again, info = super().step(moved, rng)
                select = stayed.reshape(-1, 1, 1)
                moved = moved.moved(torch.where(select, again.field, moved.field))
                info = replace(info, is_accepted=info.is_accepted | ~stayed[:, None])
            return moved, info

    kernel = ThinsToAccepted(PHI4, scalar_model(PHI4, rng), proposals=1)
    assert check(PHI4, kernel, rng, steps=3) < THRESHOLD


def test_an_unmetropolised_trajectory_is_caught(rng):
    class AlwaysAccepts(HMC):
        def step(self, state, rng):
            momentum = self.action.group.draw_algebra(state.field, rng)
            size = torch.full((state.chains,), self.step_size, dtype=torch.float64)
            end, _ = trajectory(
                self.action, self.action.group, state.field, momentum, self.integrator, size, 3
            )
            return state.moved(end), None

    kernel = AlwaysAccepts(FREE, steps=3, integrator="leapfrog")
    assert check(FREE, kernel, rng, steps=4) < THRESHOLD


def test_a_stale_action_after_exchange_is_caught(rng):
    class KeepsActions(Exchange):
        def step(self, state, rng):
            before = state
            state, info = super().step(state, rng)
            for r, replica in enumerate(state.replicas):
                stale = replace(replica, action=before.replicas[r].action)
                state = state.with_replica(r, stale)
            return state, info

    kernel = KeepsActions(SCALAR_LADDER[:2], [Scale(1.2)])
    before = [draw(action, rng) for action in SCALAR_LADDER[:2]]
    state = begin(kernel, before)
    for _ in range(8):
        state, _ = kernel.step(state, rng)
    action = SCALAR_LADDER[0]
    batches = (before[0], state.replicas[0].field, draw(action, rng))
    assert p_value_of_change(*(statistics_of(action, batch) for batch in batches)) < THRESHOLD


def by_rejection(action, draws, rng):
    """Exact draws of an action on a few sites, from links that are drawn independently."""
    numbers = [
        number
        for term in action.as_data()
        for number in (
            [term.coupling] * (action.dimensions * (action.dimensions - 1) // 2)
            if isinstance(term, Plaquettes)
            else term.by_word
        )
    ]
    lowest, kept = -sum(map(abs, numbers)) * action.volume, []
    while sum(map(len, kept)) < draws:
        field = action.hot(20_000, rng)
        uniform = torch.rand(len(field), dtype=torch.float64, generator=rng)
        kept.append(field[uniform.log() < lowest - action(field)])
    return torch.cat(kept)[:draws]


@pytest.mark.parametrize("group", ["U(1)", slow("SU(2)"), slow("SU(3)")])
@pytest.mark.parametrize("inner", [None, [{"terms": ["plaquettes"], "steps": 2}]])
@pytest.mark.parametrize("wrong", [False, True])
def test_hmc_of_improved_actions(group, inner, wrong, rng):
    action = Symanzik(group, [2, 2], beta=0.3)
    # Planted: the trajectories of another coupling.
    target = action.at(beta=0.6) if wrong else action
    kernel = HMC(target, trajectory=1.5, steps=2, inner=inner, jitter=0.3)
    before, fresh = (by_rejection(action, 2000, rng) for _ in range(2))
    state = kernel.init(before)
    for _ in range(3):
        state, _ = kernel.step(state, rng)
    statistics = [statistics_of(action, field) for field in (before, state.field, fresh)]
    assert (p_value_of_change(*statistics) > THRESHOLD) != wrong


def ending(group, boundary):
    """A lattice that ends in time, and one of another theory."""
    if boundary == "open":
        action = ImprovedGauge(group, [2, 4], beta=0.4, c1=-0.05, time_boundary="open")
        return action, action.at(beta=1.2)
    numbers = {"U(1)": [2.0], "SU(2)": [2.0, -2.0], "SU(3)": [2.0, -0.5, -1.5]}[group]
    action = SchroedingerFunctional(group, [2, 4], beta=0.5, c_t=0.9, end_phases=numbers)
    return action, action.at(beta=2.0)


@pytest.mark.parametrize("group", ["U(1)", slow("SU(2)"), slow("SU(3)")])
@pytest.mark.parametrize("boundary", ["open", "fixed"])
@pytest.mark.parametrize("wrong", [False, True])
def test_lattices_that_end_in_time(group, boundary, wrong, rng):
    """HMC and a flow, and exchanges between two theories; planted: the HMC of another one."""
    action, other = ending(group, boundary)
    ladder = [action, action.at(beta=0.2)]
    before = [by_rejection(one, 2000, rng) for one in ladder]
    second = HMC(ladder[1], steps=3)
    flow = Independence(action, gauge_model(action, rng), proposals=4)
    kernel = Cycle(
        [
            EachReplica([HMC(action, steps=3), second], ladder),
            EachReplica([flow, second], ladder),
            Exchange(ladder),
        ]
    )
    if wrong:
        kernel = EachReplica([HMC(other, steps=3), second], [other, ladder[1]])
    state = begin(kernel, before)
    for _ in range(3):
        state, _ = kernel.step(state, rng)
    p_values = []
    for one, start, replica in zip(ladder, before, state.replicas, strict=True):
        batches = (start, replica.field, by_rejection(one, 2000, rng))
        p_values.append(p_value_of_change(*(statistics_of(one, batch) for batch in batches)))
    assert (2 * min(p_values) > THRESHOLD) != wrong
