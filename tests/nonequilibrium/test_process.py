"""Processes against exact partition functions; planted errors of the usual kinds are caught."""

import math

import pytest
import torch
from exactness import assert_mean
from torch import nn

from flowmc.actions import DoubleWell, FreeScalar, Phi4, Wilson
from flowmc.actions.solved import double_well, log_partition
from flowmc.estimators.free_energy import (
    bennett,
    chain_of_ensembles,
    jarzynski,
    p_estimator,
)
from flowmc.evaluation import evaluate_sampler
from flowmc.flows import GaussianPrior, HaarPrior, ResidualFlow
from flowmc.flows.base import Flow
from flowmc.kernels import HMC, SignFlip, State
from flowmc.lattice import sum_over_sites
from flowmc.nonequilibrium import (
    ExactStart,
    MarkovStart,
    Process,
    StochasticFlow,
    line_of_actions,
)
from flowmc.nonequilibrium.starts import begin
from flowmc.observables import phi2
from flowmc.registry import ConfigError
from flowmc.training.work import MeanWork

SIGMAS = 5.0  # of a normal error: a false alarm of 6e-7 per comparison


class Rescaling(Flow):
    """y = s x: the simplest flow whose Jacobian matters."""

    def __init__(self, scale=1.0):
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor(math.log(scale), dtype=torch.float64))

    def forward(self, x, log_density):
        return x * self.log_scale.exp(), log_density - x[0].numel() * self.log_scale

    def inverse(self, y, log_density):
        return y * (-self.log_scale).exp(), log_density + y[0].numel() * self.log_scale


class WrongJacobian(Rescaling):
    def inverse(self, y, log_density):
        return y * (-self.log_scale).exp(), log_density - y[0].numel() * self.log_scale


def hmc(actions, **options):
    settings = {"trajectory": 0.7, "steps": 3, "jitter": 0.3, "check_reversibility": 0.0}
    return [[HMC(action, **{**settings, **options})] for action in actions]


def free_line(steps):
    return line_of_actions(FreeScalar([4, 3], m2=0.4), {"m2": [2.0, 0.4]}, steps)


def quadratic_process(steps=6, scale=None):
    start, *actions = free_line(steps)
    flows = None if scale is None else [Rescaling(scale) for _ in actions]
    return ExactStart(start), Process(actions, hmc(actions), flows)


def assert_close(estimate, exact):
    pull = (estimate.value - estimate.bias - exact) / estimate.error
    assert abs(pull) < SIGMAS, f"{estimate} against {exact}: {pull:+.1f}"
    assert estimate.bound == "none"


@pytest.mark.parametrize("scale", [None, 1.04])
def test_work_both_ways_against_the_exact_free_field(scale, rng):
    prior, process = quadratic_process(scale=scale)
    target = process.target
    model = StochasticFlow(prior, process)
    forward = model.evolve(4000, rng)
    reverse = model.reverse(target.sample(4000, rng), rng)
    exact = target.log_partition()
    bridge = bennett(forward.work, reverse.work)
    for estimate in (jarzynski(forward.work), bridge.forward, bridge.reverse, bridge.estimate):
        assert_close(estimate, exact)
    # Dissipation: <W> >= -ln Z, both ways.
    assert forward.work.mean() > -exact and reverse.work.mean() > exact
    weights = (-forward.work - exact).exp()
    assert_mean(weights * phi2(forward.field, target), float(target.propagator()[0, 0]))
    assert_mean((-reverse.work + exact).exp() * phi2(reverse.field, target), mean_phi2(prior))


def mean_phi2(prior):
    return float(prior.action.propagator()[0, 0])


def test_work_is_action_minus_jacobian_minus_heat(rng):
    prior, process = quadratic_process(scale=1.1)
    x, log_prior = prior.sample(50, rng)
    end = process(x, log_prior, rng)
    expected = process.target(end.field) + log_prior - end.log_det - end.heat
    assert torch.allclose(end.work, expected, atol=1e-11)
    assert torch.allclose(end.step_work.sum(), end.work.mean(), atol=1e-11)
    assert torch.allclose(end.log_det, torch.full_like(end.work, 6 * 12 * math.log(1.1)))
    assert (end.heat.abs() > 0.1).any()
    back = process.reverse(end.field, prior.log_prob, rng)
    expected = -prior.log_prob(back.field) - process.target(end.field)
    assert torch.allclose(back.work, expected + back.log_det - back.heat, atol=1e-11)
    assert torch.allclose(back.action, -prior.log_prob(back.field))


def test_swapped_order_is_caught(rng):
    """Update with the new action first, then count its change on the updated configuration."""
    start, *actions = free_line(6)
    x, log_prior = ExactStart(start).sample(20_000, rng)
    right = Process(actions, hmc(actions))(x, log_prior, rng).work
    wrong, previous = torch.zeros_like(right), start
    for action, (kernel,) in zip(actions, hmc(actions), strict=True):
        state, _ = kernel.step(kernel.init(x), rng)
        x = state.field
        wrong = wrong + action(x) - previous(x)
        previous = action
    exact = actions[-1].log_partition()
    assert_close(jarzynski(right), exact)
    swapped = jarzynski(wrong).shifted(start.log_partition())
    assert abs(swapped.value - exact) > 10 * swapped.error


def test_wrong_jacobian_of_the_reverse_process_is_caught(rng):
    start, *actions = free_line(4)
    process = Process(actions, hmc(actions), [WrongJacobian(1.02) for _ in actions])
    model = StochasticFlow(ExactStart(start), process)
    forward = model.evolve(3000, rng).work
    reverse = model.reverse(process.target.sample(3000, rng), rng).work
    exact = process.target.log_partition()
    assert_close(jarzynski(forward), exact)
    wrong = bennett(forward, reverse)
    assert abs(wrong.reverse.value - exact) > 10 * wrong.reverse.error
    # The pair notices by itself, whatever the exact answer is.
    assert wrong.forward.bound != "none"


@pytest.mark.parametrize(
    ("group", "beta", "steps"),
    [
        ("U(1)", 1.0, 8),
        pytest.param("SU(2)", 1.5, 16, marks=pytest.mark.slow),
        ("SU(3)", 2.0, 8),
    ],
)
def test_gauge_theories_from_haar(group, beta, steps, rng):
    action = Wilson(group, [4, 4], beta=beta)
    start, *actions = line_of_actions(action, {"beta": [0.0, beta]}, steps)
    model = StochasticFlow(HaarPrior(action), Process(actions, hmc(actions, steps=4)))
    chains = MarkovStart(action, hmc([action])[0], chains=32, thermalization=40, separation=2)
    reverse = [model.reverse(field, rng).work for field in chains.configurations(10, rng)]
    bridge = bennett(model.evolve(400, rng).work, torch.stack(reverse))
    assert log_partition(start) == pytest.approx(
        -float(HaarPrior(action).log_prob(action.hot(1, rng)))
    )
    for estimate in (bridge.forward, bridge.estimate):
        assert_close(estimate, log_partition(action))


def test_stochastic_flow_of_gauge_layers(rng):
    action = Wilson("U(1)", [4, 4], beta=2.0)
    _, *actions = line_of_actions(action, {"beta": [0.0, 2.0]}, 6)
    flows = [ResidualFlow(action, initial_coefficient=0.05).double() for _ in actions]
    model = StochasticFlow(HaarPrior(action), Process(actions, hmc(actions, steps=4), flows))
    result, _ = evaluate_sampler(model, action, 600)
    assert abs(result["log_z"] - log_partition(action)) < SIGMAS * result["log_z_error"]
    plain = StochasticFlow(HaarPrior(action), Process(actions, hmc(actions, steps=4)))
    with torch.no_grad():
        gain = plain.evolve(600, rng).work.mean() - model.evolve(600, rng).work.mean()
    assert gain > 0.5  # the layers do part of the work


def test_phi4_from_independent_sites_in_both_directions(rng):
    """ln Z at kappa = 0.2 on 16x8 is 80.0999(34), by thermodynamic integration."""
    action = Phi4([16, 8], kappa=0.2, lam=0.022)
    start, *actions = line_of_actions(action, {"kappa": [0.0, 0.2]}, 24)
    model = StochasticFlow(ExactStart(start), Process(actions, hmc(actions)))
    chains = MarkovStart(action, hmc([action])[0], chains=100, thermalization=60, separation=5)
    reverse = [model.reverse(field, rng).work for field in chains.configurations(8, rng)]
    estimate = bennett(model.evolve(800, rng).work, torch.stack(reverse)).estimate
    assert abs(estimate.value - 80.0999) < SIGMAS * math.hypot(estimate.error, 0.0034)


@pytest.mark.parametrize(
    "action",
    [
        FreeScalar([4, 3], m2=0.5),
        Phi4([3, 2], kappa=0.0, lam=0.3),
        DoubleWell([5], m0=1.3, mu2=0.7, lam=0.0, spacing=0.8),
        Wilson("U(1)", [3, 2], beta=1.5),
        Wilson("SU(2)", [2, 3, 2], beta=0.0),
    ],
    ids=repr,
)
def test_exact_starts_are_drawn_from_their_density(action, rng):
    """<r'/r> = Z'/Z with a nearby density r': normalisation and draws fit each other."""
    start = ExactStart(action)
    x, log_prior = start.sample(4000, rng)
    assert torch.allclose(log_prior, start.log_prob(x))
    name = next(key for key in ("beta", "lambda", "m2", "mu2") if key in action.parameters)
    if isinstance(action, DoubleWell):
        name = "mu2"
    near = action.at(**{name: action.parameters[name] + 0.1})
    # phi4 has the coefficient 1 - 2 lambda too; both are known exactly.
    exact = log_partition(near)
    if exact is not None:
        assert_close(jarzynski(near(x) + log_prior), exact)


def test_what_cannot_be_drawn_is_refused():
    with pytest.raises(ValueError, match="kappa = 0"):
        ExactStart(Phi4([4, 4], kappa=0.2, lam=0.1))
    with pytest.raises(ValueError, match="kernels and flows"):
        Process([FreeScalar([4], m2=1.0)], [])
    with pytest.raises(ValueError, match="at least two"):
        line_of_actions(FreeScalar([4], m2=1.0), {"m2": [1.0]}, 3)
    with pytest.raises(TypeError, match="reverse"):
        StochasticFlow(*quadratic_process()).log_prob(torch.zeros(1, 4, 3))


def test_lines_pass_through_the_given_values():
    action = Phi4([4, 4], kappa=0.3, lam=0.1)
    line = line_of_actions(action, {"kappa": [0.0, 0.25, 0.3], "lambda": [0.1, 0.2, 0.1]}, 4)
    assert [a.parameters["kappa"] for a in line] == [0.0, 0.125, 0.25, 0.275, 0.3]
    assert line[2].parameters["lambda"] == 0.2
    plain = line_of_actions(action, {"kappa": [0.0, 0.3]})
    assert [a.parameters["kappa"] for a in plain] == [0.0, 0.3]


def test_gradient_of_the_mean_work(rng):
    """One layer: the loss is S(f(x)) - J + ln r with x given, differentiated numerically."""
    start, *actions = free_line(1)
    flow = Rescaling(1.2)
    model = StochasticFlow(ExactStart(start), Process(actions, hmc(actions), [flow]))
    objective = MeanWork(model)

    def loss(shift):
        with torch.no_grad():
            flow.log_scale += shift
            value = float(objective.evaluate(500, torch.Generator().manual_seed(1)).loss)
            flow.log_scale -= shift
        return value

    batch = objective.evaluate(500, torch.Generator().manual_seed(1))
    batch.surrogate.backward()
    numeric = (loss(1e-5) - loss(-1e-5)) / 2e-5
    assert float(flow.log_scale.grad) == pytest.approx(numeric, rel=1e-6)


def test_training_lowers_the_dissipation(rng):
    prior, process = quadratic_process(steps=3, scale=1.0)
    objective = MeanWork(StochasticFlow(prior, process))
    optimiser = torch.optim.SGD(objective.module.parameters(), lr=0.02)
    before = dissipation(objective, rng)
    for step in range(90):
        optimiser.param_groups[0]["lr"] = 0.02 if step < 30 else 0.004
        optimiser.zero_grad()
        batch = objective.evaluate(200, rng)
        batch.surrogate.backward()
        optimiser.step()
    scales = [float(flow.log_scale.detach().exp()) for flow in process.flows]
    # The first layer sees exact draws of S_0: s^2 = V / 2 <S_1>_0, a lighter field being wider.
    first, second, *_ = free_line(3)
    ratio = (second.mode_action() / first.mode_action()).mean()
    assert scales[0] == pytest.approx(float(ratio) ** -0.5, rel=0.01)
    assert min(scales) > 1.03
    assert 0 < dissipation(objective, rng) < 0.75 * before


def dissipation(objective, rng):
    """<W> + ln Z."""
    target = objective.model.process.target
    return float(objective.evaluate(4000, rng).loss) + target.log_partition()


def test_a_layer_that_fails_has_no_weight(rng):
    class Failing(Rescaling):
        def forward(self, x, log_density):
            y, log_density = super().forward(x, log_density)
            return y, torch.where(x.flatten(1)[:, 0] > 0.5, math.nan, log_density)

    start, *actions = free_line(2)
    process = Process(actions, hmc(actions), [Failing(), Rescaling()])
    work = process(*ExactStart(start).sample(100, rng), rng).work
    assert 0 < int(work.isnan().sum()) < 100


def test_double_well_both_wells_by_sign_flips(rng):
    """p-estimator with a Gaussian q that covers both wells: the chains must weigh them equally."""
    action = DoubleWell([8], m0=2.75)
    kernels = [HMC(action, trajectory=1.0, steps=6), SignFlip(action)]
    chains = MarkovStart(action, kernels, chains=64, thermalization=60, start="cold")
    fields = torch.cat(list(chains.configurations(40, rng)))
    sign = torch.sign(sum_over_sites(fields))
    assert_mean(sign, 0.0)
    # Hot starts fall into either well and stay there, whatever the single chains do.
    start, *actions = line_of_actions(action, {"lambda": [0.0, 1.0], "mu2": [1.0, -1.0]}, 60)
    model = StochasticFlow(ExactStart(start), Process(actions, hmc(actions, trajectory=1.0)))
    evolution = model.evolve(1500, rng)
    exact = double_well(action)
    assert_close(jarzynski(evolution.work), exact.log_z)
    weights = (-evolution.work - exact.log_z).exp()
    assert_mean(weights * phi2(evolution.field, action), exact.x2)


def test_sign_flip_refuses_what_is_not_even(rng):
    with pytest.raises(ConfigError, match="scalar fields"):
        SignFlip(Wilson("U(1)", [4, 4], beta=1.0))

    class Tilted(Phi4):
        def __call__(self, field):
            return super().__call__(field) + 0.1 * sum_over_sites(field)

    action = Tilted([4, 4], m2=1.0, lam=1.0)
    with pytest.raises(ConfigError, match="S\\(-phi\\)"):
        SignFlip(action).init(action.hot(2, rng))
    flipped, info = SignFlip(Phi4([4, 4], m2=1.0, lam=1.0)).step(State(torch.ones(200, 4, 4)), rng)
    assert torch.equal(flipped.field[:, 0, 0] < 0, info.is_accepted[:, 0])
    assert 60 < int(info.is_accepted.sum()) < 140


def test_gaussian_prior_serves_as_a_start(rng):
    """A normalised prior gives ln Z itself; here the first step carries all the mismatch."""
    action = Phi4([4, 4], kappa=0.1, lam=0.1)
    _, *actions = line_of_actions(action, {"kappa": [0.0, 0.1]}, 8)
    prior = GaussianPrior(action, scale=0.7).double()
    forward = StochasticFlow(prior, Process(actions, hmc(actions))).evolve(3000, rng)
    other = StochasticFlow(ExactStart(action.at(kappa=0.0)), Process(actions, hmc(actions))).evolve(
        3000, rng
    )
    first, second = jarzynski(forward.work), jarzynski(other.work)
    assert abs(first.value - second.value) < SIGMAS * math.hypot(first.error, second.error)
    # The p-estimator of the prior alone agrees, from chains.
    chains = MarkovStart(action, hmc([action])[0], chains=64, thermalization=40)
    logs = [-action(x) - prior.log_prob(x) for x in chains.configurations(20, rng)]
    third = p_estimator(torch.stack(logs))
    assert abs(third.value - second.value) < SIGMAS * math.hypot(third.error, second.error)


def test_kinks_of_disordered_starts_are_seen(rng):
    """Broken phase on a long lattice: <|m|> = 2.087 from an ordered start, kinks from a hot one."""
    line = [Phi4([32, 8], kappa=kappa, lam=0.022) for kappa in (0.298, 0.3)]
    found = {}
    for start in ("ordered", "mixed"):
        forward, reverse = [], []
        for index, action in enumerate(line):
            kernels = [HMC(action, steps=5, check_reversibility=0.0), SignFlip(action)]
            chains = MarkovStart(action, kernels, chains=16, thermalization=60, start=start)
            fields = list(chains.configurations(60, rng))
            works = [line[1 - index](x) - action(x) for x in fields]
            (reverse if index else forward).append(torch.stack(works))
        found[start] = chain_of_ensembles(forward, reverse).estimates[-1]
        m = (sum_over_sites(fields[-1]) / line[1].volume).abs()
        if start == "ordered":
            assert m.min() > 1.9
        else:
            assert m[::2].min() > 1.9 > m[1::2].min()
    assert not found["ordered"].error_is_bound
    assert found["mixed"].error_is_bound
    assert found["mixed"].error > 3 * found["ordered"].error


def test_ordered_starts():
    rng = torch.Generator().manual_seed(1)
    action = Phi4([4, 4], kappa=0.3, lam=0.022)
    field = begin(action, 2, "ordered", rng)
    assert action.force(field).abs().max() < 1e-12
    assert action(field).max() < action(1.01 * field).max() < 0
    assert Phi4([4, 4], kappa=0.1, lam=0.1).vacuum == 0.0
    gauge = Wilson("SU(3)", [2, 2], beta=1.0)
    assert torch.equal(begin(gauge, 3, "ordered", rng), gauge.cold(3))
    with pytest.raises(ValueError, match="ordered field"):
        begin(2.0 * action, 2, "mixed", rng)
    with pytest.raises(ValueError, match="hot, cold, ordered, mixed"):
        MarkovStart(action, [], chains=1, thermalization=0, start="tepid")
