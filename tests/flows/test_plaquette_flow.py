"""The plaquette flow of two-dimensional U(1): spline, bijection, Jacobian, symmetries, quality."""

import math

import numpy as np
import pytest
import torch
from exactness import THRESHOLD
from scipy.special import i0
from scipy.stats import vonmises

from flowmc.actions import Phi4, Wilson
from flowmc.actions.exact import sample_wilson_2d
from flowmc.estimators.weights import effective_sample_size
from flowmc.flows import FlowModel, HaarPrior, Inverse, PlaquetteFlow, check_inverse, check_log_det
from flowmc.flows.gauge import plaquette
from flowmc.flows.parts.splines import OddCircleSpline
from flowmc.groups import U1
from flowmc.kernels import Exchange
from flowmc.lattice import shift
from flowmc.observables import topological_charge
from flowmc.plaquettes import plaquette_angles
from flowmc.testing import p_value_of_change

LATTICES = [(4, 6), (3, 5), (2, 2), (16, 16)]
GROUP = U1()


def make(lattice, *, bins=6, scale=1.0, seed=5, chains=4):
    """A flow with random parameters, and links of random plaquettes."""
    rng = torch.Generator().manual_seed(seed)
    action = Wilson("U(1)", lattice, beta=1.0)
    flow = PlaquetteFlow(action, bins=bins)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=rng).double())
    return flow, action, action.hot(chains, rng)


def zeros(field):
    return torch.zeros(len(field), dtype=torch.float64)


def wrapped(links):
    return GROUP.project(plaquette_angles(links, 0, 1)).flatten(1)


@pytest.mark.parametrize("bins", [1, 3, 12])
def test_spline(bins):
    flow, _, _ = make((2, 2), bins=bins, scale=2.0)
    spline = flow.spline
    table = spline.table()
    x = torch.linspace(-math.pi, math.pi, 2001, dtype=torch.float64).requires_grad_()
    y, derivative = spline(x, table)
    assert (y + y.flip(0)).abs().max() < 1e-14
    assert (y.diff() > 0).all()
    assert (y[-1] - math.pi).abs() < 1e-14
    (automatic,) = torch.autograd.grad(y.sum(), x)
    assert (derivative - automatic).abs().max() < 1e-11 * derivative.max()
    # The derivative is continuous at the knots, where neighbouring bins meet.
    knots = table[1:, 0].detach()
    if len(knots):
        left, right = (spline(knots + s, table)[1] for s in (-1e-9, 1e-9))
        assert (left - right).abs().max() < 1e-5 * derivative.max()
    back, same = spline.inverse(y, table)
    # A flat piece of h loses digits of x.
    assert ((back - x).abs() * derivative.clamp(max=1)).max() < 1e-13
    assert ((same - derivative).abs() / derivative.square().clamp(min=1)).max() < 1e-9


@pytest.mark.parametrize("lattice", LATTICES)
def test_inverse(lattice):
    flow, _, x = make(lattice)
    field, density = check_inverse(flow, x)
    assert field < 1e-12
    assert density < 1e-12 * x[0].numel()
    with torch.no_grad():
        y, change = flow.inverse(x, zeros(x))
        back, total = flow.forward(y, change)
    assert GROUP.distance(back, x).max() < 1e-12
    assert total.abs().max() < 1e-12 * x[0].numel()


@pytest.mark.parametrize("lattice", [(2, 2), (3, 4), (4, 4)])
def test_log_density_is_the_jacobian(lattice):
    flow, action, x = make(lattice)
    assert check_log_det(flow, x, action.group) < 1e-10
    assert check_log_det(flow, x, action.group, inverse=True) < 1e-10


@pytest.mark.parametrize("error", ["constraint", "volume"])
def test_a_wrong_jacobian_is_caught(monkeypatch, error):
    flow, action, x = make((3, 4))

    def wrong(log_stretch, inverse_stretch, rate):
        if error == "constraint":
            return log_stretch.sum(1)
        return true(log_stretch, inverse_stretch, rate) + math.log(12)

    true = plaquette._log_determinant
    monkeypatch.setattr(plaquette, "_log_determinant", wrong)
    assert check_log_det(flow, x, action.group) > 1e-2


def test_the_map_is_that_of_the_plaquettes():
    """A loop over sites with a bisection of its own, against the batched map."""
    flow, _, x = make((3, 4), chains=3)
    with torch.no_grad():
        y, _ = flow.forward(x, zeros(x))
        table = flow.spline.table()
        for before, after in zip(wrapped(x), wrapped(y), strict=True):
            tangents = [math.tan(float(flow.spline(p, table)[0]) / 2) for p in before]
            low, high = -1e3, 1e3
            for _ in range(200):
                c = (low + high) / 2
                excess = sum(2 * math.atan(t + c) for t in tangents) - float(before.sum())
                low, high = (c, high) if excess < 0 else (low, c)
            for t, p in zip(tangents, after, strict=True):
                assert abs(2 * math.atan(t + c) - float(p)) < 1e-11


def test_charge_gauge_part_and_holonomies_stay():
    flow, action, x = make((4, 6), chains=16)
    with torch.no_grad():
        y, _ = flow.forward(x, zeros(x))
    before, after = topological_charge(x, action), topological_charge(y, action)
    assert before.abs().max() > 0.5
    assert (after - before).abs().max() < 1e-12
    step = GROUP.project(y - x)
    # Small parameters, so that no step wraps.
    flow, _, _ = make((4, 6), scale=0.1)
    with torch.no_grad():
        step = GROUP.project(flow.forward(x, zeros(x))[0] - x)
    assert step.abs().max() > 1e-3
    assert step.sum((2, 3)).abs().max() < 1e-12
    divergence = sum(step[:, mu] - shift(step[:, mu], mu, -1) for mu in range(2))
    assert divergence.abs().max() < 1e-13


def transformed(links, name):
    rng = torch.Generator().manual_seed(3)
    if name == "gauge":
        sites = GROUP.haar((len(links), *links.shape[2:]), links.dtype, rng)
        return torch.stack([links[:, mu] + sites - shift(sites, mu) for mu in range(2)], 1)
    if name == "charge":
        return -links
    if name == "translation":
        return torch.roll(links, (1, 2), dims=(2, 3))
    # Reflection of axis 0: U_0(x) -> U_0(-x - 1)^dagger.
    flipped = links.flip(2)
    return torch.stack([-torch.roll(flipped[:, 0], -1, dims=1), flipped[:, 1]], 1)


@pytest.mark.parametrize("name", ["gauge", "charge", "translation", "reflection"])
def test_symmetries(name):
    flow, action, x = make((4, 6))
    moved = transformed(x, name)
    assert (action(moved) - action(x)).abs().max() < 1e-12
    with torch.no_grad():
        y, density = flow.forward(x, zeros(x))
        z, density_moved = flow.forward(GROUP.project(moved), zeros(x))
    assert GROUP.distance(z, transformed(y, name)).max() < 1e-11
    assert (density_moved - density).abs().max() < 1e-10


@pytest.mark.parametrize("map_name", ["forward", "inverse"])
def test_gradient_of_the_work(map_name):
    flow, action, x = make((4, 4), scale=0.5)
    apply = getattr(flow, map_name)

    def loss():
        y, change = apply(x, zeros(x))
        return (action(y) + change).mean()

    loss().backward()
    h = 1e-5
    for parameter in flow.parameters():
        for k in range(len(parameter)):
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    parameter[k] += sign * h
                    values.append(float(loss()))
                    parameter[k] -= sign * h
            numeric = (values[0] - values[1]) / (2 * h)
            assert abs(float(parameter.grad[k]) - numeric) < 1e-6


def test_zero_parameters_are_the_identity():
    action = Wilson("U(1)", (4, 6), beta=1.0)
    x = action.hot(3, torch.Generator().manual_seed(1))
    y, density = PlaquetteFlow(action).forward(x, zeros(x))
    assert GROUP.distance(x, y).max() < 1e-14
    assert density.abs().max() < 1e-12


def test_a_non_finite_chain_stays_alone():
    flow, _, x = make((4, 6))
    with torch.no_grad():
        alone, alone_density = flow.inverse(x[1:], zeros(x[1:]))
        x[0, 0, 0, 0] = torch.nan
        y, density = flow.inverse(x, zeros(x))
    assert torch.isnan(density[0])
    assert torch.equal(y[1:], alone)
    assert torch.equal(density[1:], alone_density)


def test_an_unfinished_solution_has_no_density(monkeypatch):
    flow, _, x = make((4, 6))
    monkeypatch.setattr(plaquette, "_ITERATIONS", 2)
    for apply in (flow.forward, flow.inverse):
        _, density = apply(x, zeros(x))
        assert torch.isnan(density).all()


def test_single_precision():
    flow, _, x = make((4, 6))
    with torch.no_grad():
        y, density = flow.forward(x, zeros(x))
        y_single, density_single = flow.forward(x.float(), zeros(x))
        back, _ = flow.inverse(y_single, density_single)
    assert y_single.dtype == torch.float32
    assert density_single.dtype == torch.float64
    assert GROUP.distance(y_single.double(), y).max() < 1e-5
    assert (density_single - density).abs().max() < 1e-4
    assert GROUP.distance(back, x.float()).max() < 1e-5


@pytest.mark.parametrize("couplings", [(3.0, 7.0), (7.0, 3.0), (0.0, 2.0), (5.0, 5.0)])
def test_transport_of_single_plaquettes(couplings):
    action = Wilson("U(1)", (4, 4), beta=1.0)
    spline = PlaquetteFlow(action, bins=32, initial_transport=couplings).spline
    x = torch.linspace(-3.1, 3.1, 63, dtype=torch.float64)
    with torch.no_grad():
        y, slope = spline(x, spline.table())

    def distribution(beta, angle):
        if beta == 0:
            return angle / (2 * math.pi) + 0.5
        return vonmises.cdf(angle, beta)

    shares = [distribution(b, v.numpy()) for b, v in zip(couplings, (x, y), strict=True)]
    assert np.abs(shares[0] - shares[1]).max() < 2e-4
    typical = x.abs() < 2
    ratio = torch.exp(couplings[0] * torch.cos(x) - couplings[1] * torch.cos(y))
    norm = i0(couplings[1]) / i0(couplings[0])
    assert (slope / (ratio * norm) - 1)[typical].abs().max() < 0.04


@pytest.mark.parametrize(
    "lattice", [(8, 8), (16, 16), pytest.param((16, 32), marks=pytest.mark.slow)]
)
def test_the_swap_rate_does_not_fall_with_the_volume(lattice):
    """Transport of single plaquettes from beta = 3 to 7; plain exchange accepts under 1e-3 at 8x8.

    The rates are 0.68(1); 512 exchanges have an error of 0.021, so that the bounds are more than
    five standard deviations away (3e-7 each).
    """
    actions = [Wilson("U(1)", lattice, beta=beta) for beta in (3.0, 7.0)]
    rng = torch.Generator().manual_seed(6)
    fields = [sample_wilson_2d(action, 512, rng) for action in actions]
    flow = PlaquetteFlow(actions[0], bins=32, initial_transport=(3.0, 7.0))
    for a, b in ((0, 1), (1, 0)):
        maps = flow if a == 0 else Inverse(flow)
        kernel = Exchange([actions[a], actions[b]], [maps])
        _, info = kernel.step(kernel.init([fields[a], fields[b]]), rng)
        rate = info.parts["pair[0]"].is_accepted.double().mean()
        assert 0.57 < rate < 0.79


def change_after_exchange(flow):
    """Return the p-value of "exchange leaves exact draws of both replicas as they were"."""
    rng = torch.Generator().manual_seed(9)
    actions = [Wilson("U(1)", (4, 4), beta=beta) for beta in (1.0, 2.5)]
    before, fresh = ([sample_wilson_2d(a, 4000, rng) for a in actions] for _ in range(2))
    kernel = Exchange(actions, [flow])
    state = kernel.init(before)
    accepted = []
    for _ in range(3):
        state, info = kernel.step(state, rng)
        accepted.append(info.parts["pair[0]"].is_accepted.double().mean())
    assert min(accepted) > 0.05

    def statistics(links, action):
        loop = torch.cos(links[:, 0].sum(1)).mean(1)
        largest = wrapped(links).abs().amax(1)
        charge = topological_charge(links, action)
        return torch.stack([action(links), largest, charge, loop], 1)

    p_values = [
        p_value_of_change(*(statistics(links, action) for links in (start, replica.field, new)))
        for action, start, replica, new in zip(actions, before, state.replicas, fresh, strict=True)
    ]
    return 2 * min(p_values)


def imperfect(scale):
    """A transport with noise on its parameters."""
    action = Wilson("U(1)", (4, 4), beta=1.0)
    flow = PlaquetteFlow(action, bins=6, initial_transport=(1.0, 2.5))
    rng = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter += scale * torch.randn(parameter.shape, generator=rng).double()
    return flow


@pytest.mark.parametrize(
    "scale", [*(pytest.param(scale, marks=pytest.mark.slow) for scale in (0.0, 0.1)), 0.3]
)
def test_exchange_leaves_exact_draws_alone(scale):
    """At most 1e-6 false alarms per case; the errors below show the power."""
    assert change_after_exchange(imperfect(scale)) > THRESHOLD


@pytest.mark.parametrize("error", ["slope", "charge"])
def test_errors_of_the_flow_are_caught_in_exchange(monkeypatch, error):
    def wrong(log_stretch, inverse_stretch, rate):
        if error == "slope":
            return true(0.8 * log_stretch, inverse_stretch, rate)
        return true(log_stretch, inverse_stretch, rate)

    true = plaquette._log_determinant
    monkeypatch.setattr(plaquette, "_log_determinant", wrong)
    if error == "charge":
        # A sum that is not kept: the map is no bijection of the links any more.
        solve = plaquette._solve
        monkeypatch.setattr(plaquette, "_solve", lambda shifted, total: solve(shifted, 0 * total))
    assert change_after_exchange(imperfect(0.1)) < THRESHOLD


EVEN = torch.linspace(0, math.pi, 3, dtype=torch.float64)
TWICE = torch.tensor([0.0, 0.0, math.pi], dtype=torch.float64)


@pytest.mark.parametrize("lattice", [(8, 8), (16, 16)])
def test_a_sampler_without_training(lattice):
    """From the Haar measure to beta = 7: the widths of the charge alone give an ESS of 0.31.

    The error of the ESS is 0.01 from 2048 samples; the bounds are five of them away.
    """
    action = Wilson("U(1)", lattice, beta=7.0)
    flow = PlaquetteFlow(action, bins=48, initial_transport=(0.0, 7.0))
    model = FlowModel(HaarPrior(action), flow).double()
    with torch.no_grad():
        x, log_q = model.sample(2048, torch.Generator().manual_seed(8))
        assert (model.log_prob(x) - log_q).abs().max() < 1e-9
    ess = effective_sample_size(-action(x) - log_q).value
    assert 0.24 < ess < 0.40


def start(couplings):
    return PlaquetteFlow(Wilson("U(1)", (4, 4), beta=1.0), initial_transport=couplings)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PlaquetteFlow(Phi4((4, 4), m2=1.0, lam=1.0)), "two dimensions"),
        (lambda: PlaquetteFlow(Wilson("U(1)", (4, 4, 4), beta=1.0)), "two dimensions"),
        (lambda: PlaquetteFlow(Wilson("SU(2)", (4, 4), beta=1.0)), "two dimensions"),
        (lambda: PlaquetteFlow(Wilson("U(1)", (4, 4), beta=1.0), bins=0), "bins >= 1"),
        (lambda: start((-1.0, 2.0)), ">= 0"),
        (lambda: OddCircleSpline(2).pass_through(TWICE, EVEN, torch.ones(3)), "too many"),
        (lambda: OddCircleSpline(2).pass_through(EVEN, EVEN, torch.zeros(3)), "slopes"),
        (lambda: make((4, 4))[0].forward(torch.zeros(1, 2, 4, 6), torch.zeros(1)), "does not fit"),
    ],
)
def test_errors(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_the_identity_spline_and_its_size():
    spline = OddCircleSpline(4)
    assert sum(p.numel() for p in spline.parameters()) == 13
