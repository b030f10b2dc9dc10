"""Actions between two time slices that are held fixed."""

import itertools
import math

import pytest
import torch
from exactness import assert_mean
from scipy.special import iv

from flowmc.actions import SchroedingerFunctional
from flowmc.actions.theory import build_action, describe_theory, theory_table
from flowmc.kernels import HMC
from flowmc.kernels.integrators import trajectory
from flowmc.native import torch_only, why_in_torch
from flowmc.observables import plaquette, wilson_loop
from flowmc.registry import ConfigError
from flowmc.splitting import INTEGRATORS
from flowmc.testing import check_action

# The phases of hep-lat/9309005.
A = {
    "phases": [-math.pi / 3, 0, math.pi / 3],
    "end_phases": [-math.pi, math.pi / 3, 2 * math.pi / 3],
}
SU2 = {"end_phases": [-math.pi, math.pi], "eta": math.pi / 4}
ACTIONS = [
    SchroedingerFunctional("U(1)", [4, 5], beta=1.3, phases=[0.4], end_phases=[-1.1]),
    SchroedingerFunctional("SU(2)", [3, 4], beta=2.0, c_t=0.8, **SU2),
    SchroedingerFunctional("SU(2)", [2, 3, 3], beta=2.0, c1=-0.15, c_t_rectangle=1.2, **SU2),
    SchroedingerFunctional("SU(3)", [3, 2, 4, 4], beta=6.0, c1=-1 / 12, eta=0.2, **A),
    SchroedingerFunctional("SU(3)", [2, 3, 2, 5], beta=6.0, c_t=0.9, **A),
]


def by_hand(action, links):
    """S of one chain by a walk along every loop between the slices, with the boundary's links."""
    lattice, d, last = action.lattice, action.dimensions, action.lattice[-1] - 1
    is_u1, n = not links.is_complex(), len(action.phases)

    def link(mu, x):
        if mu < d - 1 and x[-1] in (0, last):
            phases = action.boundary_phases[x[-1] == last]
            if is_u1:
                return phases[0] / lattice[mu]
            return torch.diag(torch.exp(1j * torch.tensor(phases, dtype=float) / lattice[mu]))
        return links[(mu, *x)]

    def trace(x, steps):
        product = 0.0 if is_u1 else torch.eye(n, dtype=links.dtype)
        for mu, sign in steps:
            ahead = list(x)
            ahead[mu] += sign
            if mu == d - 1 and not 0 <= ahead[mu] <= last:
                return None
            ahead = tuple(one % extent for one, extent in zip(ahead, lattice, strict=True))
            u = link(mu, x if sign > 0 else ahead)
            if is_u1:
                product += sign * float(u)
            else:
                product = product @ (u if sign > 0 else u.mH)
            x = ahead
        return math.cos(product) if is_u1 else float(product.trace().real) / n

    total = 0.0
    for x in itertools.product(*map(range, lattice)):
        for mu, nu in itertools.permutations(range(d), 2):
            for long, number in ((1, (1 - 8 * action.c1) / 2), (2, action.c1)):
                way = [(mu, 1)] * long + [(nu, 1)] + [(mu, -1)] * long + [(nu, -1)]
                value = trace(x, way)
                if value is None:
                    continue
                weight = 1.0
                if d - 1 not in (mu, nu):
                    weight = 0.5 if x[-1] in (0, last) else 1.0
                elif (long == 1 or nu == d - 1) and (x[-1] == 0 or x[-1] + 1 == last):
                    weight = action.c_t if long == 1 else action.c_t_rectangle
                total += number * weight * value
    return -action.beta * total


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
def test_action_is_its_definition(action, rng):
    field = action.hot(1, rng)
    expected = by_hand(action, field[0])
    assert float(action(field)) == pytest.approx(expected, rel=1e-12)
    with torch_only():
        assert float(action(field)) == pytest.approx(expected, rel=1e-12)
    assert float(action.in_torch(field)) == pytest.approx(expected, rel=1e-12)
    assert why_in_torch(action) is None
    check_action(action)
    again = build_action(theory_table(describe_theory(action)))
    assert torch.equal(again(field), action(field)) and again.settings == action.settings


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
def test_fixed_links_are_fixed(action, rng):
    """Nothing depends on what a field has in their place, and no trajectory moves it."""
    field, fixed = action.hot(2, rng), action.fixed_links
    other = torch.where(
        fixed.where[(None, ..., *[None] * (field.dim() - 1 - fixed.where.dim()))],
        action.hot(2, rng),
        field,
    )
    assert not torch.equal(other, field)
    assert torch.equal(action(field), action(other))
    assert torch.equal(action.force(field), action.force(other))
    for observable in (plaquette, wilson_loop):
        assert torch.equal(observable(field, action), observable(other, action))
    assert not action.force(field)[:, fixed.where].any()
    momentum = action.group.draw_algebra(field, rng)
    size = torch.full((2,), 0.1, dtype=torch.float64)
    arguments = action, action.group, field, momentum, INTEGRATORS["omelyan2"], size, 3
    end, end_momentum = trajectory(*arguments)
    with torch_only():
        in_torch, momentum_in_torch = trajectory(*arguments)
    assert torch.allclose(end, in_torch, atol=1e-12)
    assert torch.allclose(end_momentum, momentum_in_torch, atol=1e-12)
    for moved, start in ((end, field), (end_momentum, momentum)):
        assert torch.equal(moved[:, fixed.where], start[:, fixed.where])
        assert not torch.equal(moved[:, ~fixed.where], start[:, ~fixed.where])


@pytest.mark.parametrize("c1", [0.0, -1 / 12, -0.331])
def test_the_classical_field_is_stationary(c1):
    """With the weight 3/2 of rectangles; the action is that of hep-lat/9207009 for c1 = 0."""
    action = SchroedingerFunctional("SU(3)", [4, 4, 4, 5], beta=6.0, c1=c1, eta=0.1, **A)
    field = action.cold(1)
    assert float(action.force(field).abs().max()) < 1e-13
    if c1:
        keys = action.parameters | action.settings | {"c_t_rectangle": 1.0}
        off = SchroedingerFunctional("SU(3)", action.lattice, **keys)
        assert float(off.force(field).abs().max()) > 1e-3
    else:
        start, end = (torch.tensor(one, dtype=torch.float64) for one in action.boundary_phases)
        sines = torch.sin((end - start) / (2 * 4 * 4)).square().sum()
        # All plaquettes in time are the same.
        unit = SchroedingerFunctional("SU(3)", [4, 4, 4, 5], beta=6.0)
        expected = 6.0 / 3 * 2 * 3 * 4**4 * sines
        assert float(action(field) - unit(unit.cold(1))) == pytest.approx(float(expected))
    # A wave on top costs.
    moved = action.group.move(
        field, 1e-2 * action.group.draw_algebra(field, torch.Generator().manual_seed(1))
    )
    assert float(action(moved)) > float(action(field))


def test_derivative_by_eta(rng):
    """The derivative that defines the coupling, by differences and by another way: S is even."""
    action = SchroedingerFunctional("SU(3)", [2, 2, 2, 4], beta=6.0, **A)
    field = action.hot(3, rng)
    step = 1e-4
    numeric = (action.at(eta=step)(field) - action.at(eta=-step)(field)) / (2 * step)
    assert torch.allclose(action.coupling_derivative("eta", field), numeric, rtol=1e-6, atol=1e-6)
    classical = action.cold(1)
    start, end = (torch.tensor(one, dtype=torch.float64) for one in action.boundary_phases)
    angle = (end - start) / (2 * 3)
    v = torch.tensor([1, -0.5, -0.5], dtype=torch.float64)
    # Only the plaquettes at the two boundaries know of eta at fixed field.
    expected = 6.0 / 3 * 3 * 2**3 * 2 * (-v / 2 * torch.sin(angle)).sum()
    assert float(action.coupling_derivative("eta", classical)) == pytest.approx(float(expected))


def exact_plaquette(action):
    """In two dimensions: Z is a sum over representations, of the boundaries' characters."""
    area = action.lattice[0] * (action.lattice[1] - 1)
    start, end = (phases[-1] for phases in action.boundary_phases)

    def log_z(beta):
        if action.group.name == "U(1)":
            charges = range(-20, 21)
            terms = [iv(n, beta) ** area * math.cos(n * (end - start)) for n in charges]
        else:
            sine = [math.sin(one) for one in (start, end)]
            terms = [
                (2 * iv(k + 1, beta) / beta) ** area
                * (math.sin((k + 1) * start) / sine[0] if sine[0] else (k + 1))
                * (math.sin((k + 1) * end) / sine[1] if sine[1] else (k + 1))
                for k in range(30)
            ]
        return math.log(sum(terms))

    step = 1e-4
    return (log_z(action.beta + step) - log_z(action.beta - step)) / (2 * step * area)


@pytest.mark.parametrize(
    ("action", "chains", "updates"),
    [
        (SchroedingerFunctional("U(1)", [2, 3], beta=1.3, phases=[0.4], end_phases=[3.0]), 400, 40),
        (SchroedingerFunctional("SU(2)", [2, 3], beta=2.0, eta=0.2, end_phases=[-3, 3]), 300, 40),
    ],
    ids=repr,
)
def test_plaquettes_are_exact_in_two_dimensions(action, chains, updates, rng):
    """By HMC; 5.5 sigma, and boundaries of another phase are many more away."""
    kernel = HMC(action, steps=6)
    state, means = kernel.init(action.hot(chains, rng)), []
    for update in range(updates):
        state, _ = kernel.step(state, rng)
        if update >= 15:
            means.append(plaquette(state.field, action))
    mean = torch.stack(means).mean(0)
    assert_mean(mean, exact_plaquette(action))
    with pytest.raises(AssertionError):
        assert_mean(mean, exact_plaquette(action.at(eta=1.4)))


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"lattice": [4, 2]}, "three time slices"),
        ({"phases": [0.1, 0.2]}, "add up to zero"),
        ({"end_phases": [0.1]}, "2 phases"),
        ({"c_t": math.inf}, "finite"),
        ({"c3": 0.1}, "unknown key 'c3'"),
    ],
)
def test_refused_tables(keys, message):
    table = {"action": "schroedinger_functional", "group": "SU(2)", "lattice": [4, 4], "beta": 1.0}
    with pytest.raises(ConfigError, match=message):
        build_action(table | keys)


def test_sums_hold_the_same_links(rng):
    one, other = ACTIONS[0], ACTIONS[0].at(eta=0.3)
    field = one.hot(2, rng)
    assert torch.allclose((one + 0.5 * one)(field), 1.5 * one(field))
    assert not (one + 0.5 * one).force(field)[:, one.fixed_links.where].any()
    with pytest.raises(ValueError, match="different links"):
        one + other
