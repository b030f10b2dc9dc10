"""The Wilson action with a defect against a loop over sites, its limits, and exact draws."""

import itertools
import math

import pytest
import torch
from exactness import assert_mean

from flowmc.actions import DefectWilson, Wilson, check_force
from flowmc.actions.exact import sample_wilson_2d
from flowmc.actions.theory import build_action, check_couplings, describe_theory
from flowmc.chains.config import read_config
from flowmc.observables import (
    action_density,
    plaquette,
    polyakov_loop,
    topological_charge,
    wilson_loop,
)
from flowmc.registry import ConfigError

ACTIONS = [
    DefectWilson("U(1)", [4, 3], beta=2.0, defect=0.3),
    DefectWilson("U(1)", [4, 3], beta=2.0, defect=0.0, defect_axis=0, defect_extents=[2]),
    DefectWilson("U(1)", [2, 3, 4], beta=1.3, defect=1.4, defect_axis=1, defect_extents=[1, 2]),
    DefectWilson("SU(2)", [2, 2], beta=2.2, defect=0.5, defect_extents=[1]),
    DefectWilson("SU(3)", [3, 4, 3, 4], beta=6.0, defect=0.4, defect_extents=[2, 1, 3]),
    DefectWilson("SU(3)", [2, 3, 2, 3], beta=6.0, defect=0.0, defect_axis=-2),
]


def by_hand(action, field):
    """The action as its definition reads, one plaquette of one chain at a time."""
    lattice, axis, d = action.lattice, action.defect_axis, action.dimensions
    others = [nu for nu in range(d) if nu != axis]

    def coefficient(mu, x):
        inside = all(x[nu] < e for nu, e in zip(others, action.defect_extents, strict=True))
        return action.defect if mu == axis and x[axis] == lattice[axis] - 1 and inside else 1.0

    def ahead(x, mu):
        return tuple((x[nu] + (nu == mu)) % lattice[nu] for nu in range(d))

    totals = []
    for links in field:
        total = 0.0
        for x in itertools.product(*map(range, lattice)):
            for mu, nu in itertools.combinations(range(d), 2):
                corners = ((mu, x), (nu, ahead(x, mu)), (mu, ahead(x, nu)), (nu, x))
                weight = math.prod(coefficient(*corner) for corner in corners)
                a, b, c, e = (links[(direction, *site)] for direction, site in corners)
                if field.is_complex():
                    trace = (a @ b @ c.mH @ e.mH).trace().real / action.group.n
                else:
                    trace = torch.cos(a + b - c - e)
                total -= action.beta * weight * float(trace)
        totals.append(total)
    return torch.tensor(totals, dtype=torch.float64)


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
def test_action_is_its_definition(action, rng):
    field = action.hot(2, rng)
    assert torch.allclose(action(field), by_hand(action, field), rtol=1e-12)


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
def test_force_is_the_derivative(action, rng):
    field = action.hot(3, rng)
    assert check_force(action, field, rng) < 1e-8
    assert (action.force(field) - action.force_by_autograd(field)).abs().max() < 1e-11


def test_a_defect_on_other_links_is_caught(rng):
    action = ACTIONS[4]
    other = DefectWilson("SU(3)", action.lattice, beta=6.0, defect=0.4, defect_extents=[1, 2, 3])
    field = action.hot(1, rng)
    assert (other(field) - by_hand(action, field)).abs() > 1e-3
    assert (other.force(field) - action.force_by_autograd(field)).abs().max() > 1e-3


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
def test_without_a_defect_it_is_the_wilson_action(action, rng):
    field = action.hot(2, rng)
    wilson = Wilson(action.group, action.lattice, beta=action.beta)
    assert torch.equal(action.at(defect=1.0)(field), wilson(field))
    assert torch.equal(action.at(defect=1.0).force(field), wilson.force(field))


def test_full_box_without_coupling_is_open(rng):
    action = DefectWilson("SU(3)", [3, 2, 4], beta=5.0, defect=0.0)
    field = action.hot(2, rng)
    # The links through the wall may be anything, and nothing pulls at them.
    moved = field.clone()
    moved[:, 2, :, :, -1] = action.group.haar((2, 3, 2), field.dtype, rng)
    assert torch.equal(action.in_torch(moved), action.in_torch(field))
    # Compiled code adds them and takes them away again.
    assert torch.allclose(action(moved), action(field), rtol=0, atol=1e-12)
    assert action.force(field)[:, 2, :, :, -1].abs().max() == 0
    assert action.force(field)[:, 0, :, :, -1].abs().max() > 0.01


def test_couplings_change_and_the_place_stays():
    action = ACTIONS[2]
    other = check_couplings(action, {"defect": 0.25}, "[ladder]")
    assert isinstance(other, DefectWilson)
    assert other.parameters == {"beta": 1.3, "defect": 0.25}
    assert other.settings == action.settings
    assert other.settings == {"defect_axis": 1, "defect_extents": [1, 2]}
    assert torch.equal(other.defect_links(), action.defect_links())
    with pytest.raises(ValueError, match="defect"):
        action.at(kappa=1.0)


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
def test_theory_comes_back_from_its_description(action):
    theory = describe_theory(action)
    table = {key: theory[key] for key in ("action", "group", "lattice")}
    again = build_action({**table, **theory["settings"], **theory["couplings"]})
    assert describe_theory(again) == theory


def test_configuration_of_a_ladder(tmp_path):
    table = {
        "theory": {
            "action": "wilson_defect", "group": "U(1)", "lattice": [6, 4], "beta": 2.0,
            "defect": 1.0, "defect_axis": 0, "defect_extents": [2],
        },
        "chains": {"count": 2, "start": "hot", "seed": 1},
        "ladder": {"defect": [1.0, 0.5, 0.0]},
        "update": [{"kernel": "hmc"}, {"kernel": "exchange"}],
        "run": {"updates": 1},
    }  # fmt: skip
    config = read_config(table, tmp_path)
    assert [action.defect for action in config.actions] == [1.0, 0.5, 0.0]
    assert {tuple(action.defect_extents) for action in config.actions} == {(2,)}
    assert config.resolved["theory"]["defect_extents"] == [2]


def test_observables_know_it(rng):
    flat = DefectWilson("U(1)", [4, 4], beta=1.0, defect=0.5)
    field = flat.hot(2, rng)
    plain = Wilson("U(1)", [4, 4], beta=1.0)
    for observable in (plaquette, topological_charge, polyakov_loop, wilson_loop):
        assert torch.equal(observable(field, flat), observable(field, plain))
    assert torch.allclose(action_density(field, flat), flat(field) / 16)
    four = DefectWilson("SU(2)", [2, 2, 2, 2], beta=1.0, defect=0.5)
    assert topological_charge(four.hot(2, rng), four).shape == (2,)


@pytest.mark.parametrize("group", ["U(1)", "SU(2)", "SU(3)"])
@pytest.mark.parametrize("extents", [[2], [3]])
def test_exact_draws_have_the_plaquettes_of_their_weights(group, extents, rng):
    """Open at defect 0: the plaquettes are independent, with known means."""
    action = DefectWilson(group, [3, 4], beta=1.5, defect=0.0, defect_extents=extents)
    field = sample_wilson_2d(action, 2000, rng)
    action.check_field(field)
    weights = action.plaquette_weights()[0]
    # One plaquette: dF/dbeta of its partition function, from many Haar draws.
    haar = action.group.haar((400_000,), field.dtype, rng)
    if field.is_complex():
        trace = torch.diagonal(haar, dim1=-2, dim2=-1).sum(-1).real / action.group.n
    else:
        trace = torch.cos(haar)
    boltzmann = torch.exp(1.5 * trace)
    mean = float((trace * boltzmann).sum() / boltzmann.sum())
    links = (
        field if field.is_complex() else torch.polar(torch.ones_like(field), field)[..., None, None]
    )
    u, v = links[:, 0], links[:, 1]
    loops = u @ torch.roll(v, -1, 1) @ torch.roll(u, -1, 2).mH @ v.mH
    traces = torch.diagonal(loops, dim1=-2, dim2=-1).sum(-1).real / loops.shape[-1]
    # 2e-3 covers six standard errors of the Haar average.
    error = traces.std(0) / 2000**0.5
    assert ((traces.mean(0) - mean * (weights > 0)).abs() < 5.5 * error + 2e-3).all()


def test_exact_draws_obey_the_schwinger_dyson_equation(rng):
    """<|F_a|^2> = <d_a F_a> link by link, for couplings in between."""
    action = DefectWilson("U(1)", [3, 3], beta=1.7, defect=0.6, defect_extents=[2])
    field = sample_wilson_2d(action, 20_000, rng)
    angle = field[:, 0] + torch.roll(field[:, 1], -1, 1) - torch.roll(field[:, 0], -1, 2)
    angle = angle - field[:, 1]
    curvature = 1.7 * action.plaquette_weights()[0] * torch.cos(angle)
    expected = torch.stack(
        [curvature + torch.roll(curvature, 1, 2), curvature + torch.roll(curvature, 1, 1)], 1
    )
    difference = action.force(field).square() - expected
    for mu, x, y in itertools.product(range(2), range(3), range(3)):
        assert_mean(difference[:, mu, x, y], 0.0)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"defect": -0.1}, "finite and >= 0"),
        ({"defect": math.inf}, "finite"),
        ({"defect": 0.5, "defect_axis": 3}, "directions 0 to 2"),
        ({"defect": 0.5, "defect_extents": [2]}, "one extent per direction"),
        ({"defect": 0.5, "defect_extents": [2, 5]}, "one extent per direction"),
        ({"defect": 0.5, "defect_extents": [0, 2]}, "one extent per direction"),
    ],
)
def test_errors(keys, message):
    with pytest.raises(ValueError, match=message):
        DefectWilson("SU(2)", [3, 4, 5], beta=1.0, **keys)
    table = {"action": "wilson_defect", "group": "SU(2)", "lattice": [3, 4, 5], "beta": 1.0}
    with pytest.raises(ConfigError, match=message):
        build_action({**table, **keys})
