"""Flows near a defect: which links move, the map and its Jacobian, over groups and boxes."""

import math

import pytest
import torch

from flowmc.actions import DefectWilson, Wilson
from flowmc.flows import DefectFlow
from flowmc.flows.base import check_equivariance, check_inverse, check_log_det
from flowmc.flows.cards.building import build_flow
from flowmc.flows.cards.files import FlowFileError, load_flow, save_flow
from flowmc.flows.cards.matching import orient
from flowmc.flows.gauge import link_jacobian, masked_links
from flowmc.flows.gauge.defect_masks import defect_layers, link_shells, path_classes
from flowmc.groups import U1
from flowmc.lattice import shift

# (group, lattice, axis, extents, width): boxes inside, around the lattice, of odd extents; odd
# lattices; lattices so small that both sides of the wall meet.
CASES = [
    ("U(1)", (4, 6), 1, (2,), 1),
    ("U(1)", (5, 7), 0, (3,), 2),
    ("U(1)", (6, 4, 4), 2, (3, 1), 3),
    ("SU(2)", (3, 4), 1, (3,), 1),
    ("SU(3)", (4, 4), 0, (1,), 0),
    ("SU(3)", (6, 6, 4, 4), 3, (3, 2, 1), 2),
    ("SU(3)", (3, 3, 3, 4), 3, (2, 2, 2), 1),
    ("SU(2)", (2, 2, 2, 2), 1, (2, 2, 2), 2),
]
# Cheap enough for a full Jacobian.
SMALL = [
    ("U(1)", (4, 6), 1, (2,), 1),
    ("U(1)", (3, 5), 0, (3,), 2),
    ("SU(2)", (3, 3), 1, (2,), 1),
    ("SU(3)", (3, 3), 1, (1,), 1),
    ("SU(2)", (2, 2, 2), 2, (1, 2), 2),
]


def make_action(group, lattice, axis, extents):
    return DefectWilson(
        group, lattice, beta=2.0, defect=0.5, defect_axis=axis, defect_extents=extents
    )


def make(group, lattice, axis, extents, width, *, scale=0.1, seed=5, **keys):
    """A flow with random parameters, and Haar-random links."""
    rng = torch.Generator().manual_seed(seed)
    action = make_action(group, lattice, axis, extents)
    flow = DefectFlow(action, width=width, **keys)
    with torch.no_grad():
        flow.weight.copy_(scale * torch.randn(flow.weight.shape, generator=rng).double())
    return flow, action, action.hot(2, rng)


def zeros(field):
    return torch.zeros(len(field), dtype=torch.float64)


def plaquette_sets(action):
    """Sets of the indices (mu, *x) of the links of every plaquette, by loops."""
    lattice, d = action.lattice, action.dimensions
    found = []
    for x in torch.cartesian_prod(*map(torch.arange, lattice)).tolist():
        for mu in range(d):
            for nu in range(mu + 1, d):
                ahead = [
                    tuple((x[k] + (k == step)) % lattice[k] for k in range(d)) for step in (mu, nu)
                ]
                found.append(frozenset([(mu, *x), (nu, *ahead[0]), (mu, *ahead[1]), (nu, *x)]))
    return found


@pytest.mark.parametrize("case", CASES, ids=str)
def test_shells_by_loops(case):
    action = make_action(*case[:4])
    shells = 3
    expected = {tuple(index.tolist()): 0 for index in action.defect_links().nonzero()}
    every = plaquette_sets(action)
    for current in range(shells - 1):
        touched = [p for p in every if any(expected.get(link) == current for link in p)]
        for link in set().union(*touched):
            expected.setdefault(link, current + 1)
    shell = link_shells(action, shells)
    for index in torch.cartesian_prod(*map(torch.arange, shell.shape)).tolist():
        assert shell[tuple(index)] == expected.get(tuple(index), shells)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_layers_move_every_link_of_the_shells_once_with_frozen_paths(case):
    action, width = make_action(*case[:4]), case[4]
    layers, links, moved = defect_layers(action, width + 1)
    active = torch.cat([layer.active for layer in layers])
    assert torch.equal(active.sort().values, torch.arange(moved))
    shell = link_shells(action, width + 1).reshape(-1)
    assert torch.equal(links[:moved], (shell <= width).nonzero().squeeze(1))
    for layer in layers:
        (paths,) = layer.paths.values()
        assert paths.shape == (3, len(layer.active), 2 * (action.dimensions - 1))
        assert not torch.isin(paths % len(links), layer.active).any()
        assert layer.classes.shape == paths.shape[1:]
        # Every path closes to a plaquette with its link.
        loops = torch.cat([paths % len(links), layer.active.expand(paths.shape[2], -1).T[None]])
        volume = action.volume
        known = {
            frozenset(
                link[0] * volume
                + sum(x * math.prod(action.lattice[k + 1 :]) for k, x in enumerate(link[1:]))
                for link in plaquette
            )
            for plaquette in (plaquette_sets(action) if volume < 100 else [])
        }
        if known:
            for loop in links[loops].reshape(4, -1).T.tolist():
                assert frozenset(loop) in known


def test_two_colours_of_an_odd_lattice_would_not_do(monkeypatch):
    from flowmc.flows.gauge import defect_masks

    monkeypatch.setattr(defect_masks, "_colours", lambda sites, lattice: sites.sum(0) % 2)
    action = make_action("U(1)", (3, 5), 0, (5,))
    layers, links, _ = defect_layers(action, 2)
    assert any(
        torch.isin(layer.paths["plaquette"] % len(links), layer.active).any() for layer in layers
    )


def test_number_of_classes():
    assert [len(path_classes(width + 1)) for width in range(4)] == [2, 8, 14, 20]
    assert len(set(path_classes(4))) == 20
    # Fewer shells have the first of the classes of more: their meaning never changes.
    assert path_classes(4)[:8] == path_classes(2)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_inverse(case):
    flow, _, x = make(*case, sweeps=2)
    field, density = check_inverse(flow, x)
    assert field < 1e-13
    assert density < 1e-12 * x.numel()


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_log_density_is_the_jacobian(case):
    flow, action, x = make(*case, scale=0.3, sweeps=2)
    assert check_log_det(flow, x[:1], action.group) < 1e-11
    assert check_log_det(flow, x[:1], action.group, inverse=True) < 1e-11


def test_a_wrong_jacobian_is_caught(monkeypatch):
    flow, action, x = make(*SMALL[2], scale=0.5)
    true = link_jacobian.log_determinant
    monkeypatch.setattr(masked_links, "log_determinant", lambda g, m, n: true(g, -m, n))
    assert check_log_det(flow, x[:1], action.group) > 1e-4


@pytest.mark.parametrize("case", CASES, ids=str)
def test_links_away_from_the_defect_are_untouched(case):
    flow, action, x = make(*case)
    shell = link_shells(action, flow.width + 2)
    before = x.clone()
    for y in (flow.forward(x, zeros(x))[0], flow.inverse(x, zeros(x))[0]):
        assert torch.equal(x, before)
        away = shell > flow.width
        assert torch.equal(y[:, away], x[:, away])
        distance = (y - x).abs().reshape(*x.shape[: 2 + len(action.lattice)], -1).amax(-1)
        assert (distance[:, ~away] > 1e-6).all()


@pytest.mark.parametrize("case", CASES, ids=str)
def test_gauge_equivariance(case):
    flow, action, x = make(*case)
    rng = torch.Generator().manual_seed(11)
    sites = action.group.haar((len(x), *action.lattice), x.dtype, rng)

    def transform(links):
        compose, inverse = action.group.compose, action.group.inverse
        moved = [
            compose(compose(sites, links[:, mu]), inverse(shift(sites, mu)))
            for mu in range(action.dimensions)
        ]
        return action.group.project(torch.stack(moved, dim=1))

    if isinstance(action.group, U1):
        with torch.no_grad():
            y, density = flow.forward(x, zeros(x))
            z, density_moved = flow.forward(transform(x), zeros(x))
        assert action.group.distance(z, transform(y)).max() < 1e-13
        assert (density_moved - density).abs().max() < 1e-11
    else:
        field, change = check_equivariance(flow, x, transform)
        assert field < 1e-13
        assert change < 1e-11


@pytest.mark.parametrize("group", ["U(1)", "SU(2)", "SU(3)"])
def test_one_layer_is_a_step_along_the_force_of_the_weakened_plaquettes(group):
    """Coefficients in the ratio of the weights move the first links as the force of the defect."""
    action = make_action(group, (4, 4, 4), 2, (2, 3))
    flow = DefectFlow(action, width=0)
    # So small that the bound is not felt.
    coefficient = 1e-6
    with torch.no_grad():
        for index, key in enumerate(flow.classes):
            flow.weight[:, index] = coefficient * 0.5**key.defect_links
    x = action.hot(2, torch.Generator().manual_seed(3))
    size = 1 if group == "U(1)" else 2 * action.group.n
    step = -coefficient * size / action.beta * action.force(x)
    expected = action.group.project(action.group.move(x, step))
    with torch.no_grad():
        y, _ = flow.forward(x, zeros(x))
    first = defect_layers(action, 1)[0][0]
    index = defect_layers(action, 1)[1][first.active]
    shape = (len(x), -1, *action.group.element_shape)
    difference = (y.reshape(shape) - expected.reshape(shape))[:, index]
    assert difference.abs().max() < 2e-15


def test_weights_mean_the_same_on_another_lattice(tmp_path):
    """Where only the surroundings of the defect matter, so do they for the map."""
    small, action, _ = make("SU(2)", (6, 6, 6), 2, (2, 2), 1)
    path = tmp_path / "flow.safetensors"
    ends = {"from": {"beta": 2.0, "defect": 1.0}, "to": {"beta": 2.0, "defect": 0.5}}
    theory = {
        "action": "wilson_defect", "group": "SU(2)", "lattice": [6, 6, 6],
        "couplings": {"beta": 2.0, "defect": 0.5}, "settings": action.settings,
    }  # fmt: skip
    save_flow(path, small, {"flow": {"name": "defect", "parameters": {}}, "theory": theory, **ends})
    loaded = load_flow(path, lattice=(8, 6, 10))
    big = make_action("SU(2)", (8, 6, 10), 2, (2, 2))
    first, second = (big.at(**ends[end]) for end in ("from", "to"))
    assert orient(loaded.card, loaded.flow, first, second) is loaded.flow
    # A field that is 1 but in the neighbourhood of the box, which both lattices hold.
    rng = torch.Generator().manual_seed(1)
    patch = action.group.haar((1, 3, 4, 4, 4), torch.complex128, rng)
    results = []
    for flow, theory in ((small, action), (loaded.flow, big)):
        x = theory.cold(1)
        x[:, :, :4, :4, :4] = patch
        rolled = torch.roll(x, (-1, -1, -2), dims=(2, 3, 4))
        y, density = flow.forward(rolled, zeros(x))
        back = torch.roll(y, (1, 1, 2), dims=(2, 3, 4))
        results.append((back[:, :, :4, :4, :4], density))
    assert (results[0][0] - results[1][0]).abs().max() < 1e-14
    assert (results[0][1] - results[1][1]).abs().max() < 1e-13
    elsewhere = DefectWilson("SU(2)", (8, 6, 10), beta=2.0, defect=1.0, defect_extents=(2, 3))
    with pytest.raises(FlowFileError, match="defect_extents"):
        orient(loaded.card, loaded.flow, elsewhere, elsewhere.at(defect=0.5))


def test_zero_parameters_are_the_identity():
    action = make_action("SU(3)", (3, 4, 4), 2, (2, 2))
    flow = build_flow({"name": "defect", "width": 2}, action)
    x = action.hot(2, torch.Generator().manual_seed(1))
    y, density = flow.forward(x, zeros(x))
    assert torch.equal(x, y)
    assert torch.equal(density, zeros(x))


@pytest.mark.parametrize("map_name", ["forward", "inverse"])
def test_gradient_of_the_work(map_name):
    flow, action, x = make("SU(3)", (3, 4, 4), 2, (2, 2), 1)
    apply = getattr(flow, map_name)

    def loss():
        y, change = apply(x, zeros(x))
        return (action(y) + change).mean()

    loss().backward()
    direction = torch.randn(flow.weight.shape, generator=torch.Generator().manual_seed(2)).double()
    analytic = float((flow.weight.grad * direction).sum())

    def along(step):
        with torch.no_grad():
            flow.weight.add_(step * direction)
            value = float(loss())
            flow.weight.sub_(step * direction)
        return value

    h = 1e-4
    numeric = (8 * (along(h) - along(-h)) - along(2 * h) + along(-2 * h)) / (12 * h)
    assert abs(analytic - numeric) < 1e-7 * max(1, abs(numeric))


def test_the_bound_holds_link_by_link():
    flow, action, _ = make("SU(2)", (4, 4), 1, (2,), 1, scale=100.0, bound=0.8)
    for _, number, layer in flow._schedule(torch.device("cpu")):
        shape = (1, *layer.classes.shape, 2, 2)
        paths = torch.eye(2, dtype=torch.complex128).expand(shape)
        _, kappa = flow._closing(paths, 0, number, layer)
        assert 0.79 < kappa <= 0.8
    x = action.hot(1, torch.Generator().manual_seed(1))
    field, density = check_inverse(flow, x)
    assert field < 1e-10 and density < 1e-10


@pytest.mark.parametrize(
    ("keys", "message"),
    [({"width": -1}, "0 or more"), ({"sweeps": 0}, "at least one"), ({"bound": 1.0}, "between 0")],
)
def test_errors(keys, message):
    with pytest.raises(ValueError, match=message):
        DefectFlow(make_action("U(1)", (4, 4), 0, (2,)), **keys)


def test_it_needs_a_defect():
    with pytest.raises(ValueError, match="wilson_defect"):
        DefectFlow(Wilson("U(1)", (4, 4), beta=1.0))
