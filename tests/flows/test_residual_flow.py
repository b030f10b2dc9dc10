"""Residual gauge flows: each property once, over groups, lattices, loops and coefficients."""

import math

import pytest
import torch

from flowmc.actions import Phi4, Wilson
from flowmc.flows.base import check_equivariance, check_inverse, check_log_det
from flowmc.flows.gauge import link_jacobian, masked_links
from flowmc.flows.gauge.link_masks import LOOPS, link_layers
from flowmc.flows.gauge.residual import ResidualFlow
from flowmc.groups import SUN, U1
from flowmc.lattice import shift

PLAQUETTE = ("plaquette",)
PLANAR = ("plaquette", "rectangle")
ALL = ("plaquette", "rectangle", "chair")

CASES = [
    ("U(1)", (4, 6), PLAQUETTE),
    ("U(1)", (4, 8), PLANAR),
    ("U(1)", (2, 4, 2), PLAQUETTE),
    ("SU(2)", (4, 2), PLAQUETTE),
    ("SU(3)", (4, 4), PLAQUETTE),
    ("SU(3)", (2, 2, 2, 2), PLAQUETTE),
    ("SU(2)", (4, 4, 4), ALL),
    ("SU(3)", (4, 4), PLANAR),
]
# Cheap enough for a full Jacobian.
SMALL = [
    ("U(1)", (4, 4), PLANAR),
    ("U(1)", (2, 4, 2), PLAQUETTE),
    ("SU(2)", (2, 2), PLAQUETTE),
    ("SU(3)", (2, 2), PLAQUETTE),
]


def make(group, lattice, loops=PLAQUETTE, *, scale=0.3, seed=5, **keys):
    """A flow with random parameters, and Haar-random links."""
    rng = torch.Generator().manual_seed(seed)
    action = Wilson(group, lattice, beta=2.0)
    flow = ResidualFlow(action, loops=loops, **keys)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.copy_(scale * torch.randn(parameter.shape, generator=rng).double())
    return flow, action, action.hot(2, rng)


def zeros(field):
    return torch.zeros(len(field), dtype=torch.float64)


@pytest.mark.parametrize("lattice", [(2, 2), (4, 6), (2, 4, 6), (2, 2, 2, 2)])
def test_parity_mask_moves_every_link_once_with_frozen_paths(lattice):
    check_layers(lattice, PLAQUETTE)


@pytest.mark.parametrize("lattice", [(4, 4), (4, 8), (4, 4, 8), (4, 4, 4, 4)])
def test_fine_mask_moves_every_link_once_with_frozen_paths(lattice):
    check_layers(lattice, ALL if len(lattice) > 2 else PLANAR)


def check_layers(lattice, loops):
    links = len(lattice) * math.prod(lattice)
    layers = link_layers(lattice, loops)
    moved = torch.cat([layer.active for layer in layers])
    assert torch.equal(moved.sort().values, torch.arange(links))
    for layer in layers:
        for index in layer.paths.values():
            assert not torch.isin(index % links, layer.active).any()


def test_the_parity_mask_would_not_freeze_rectangles():
    parity = link_layers((4, 4), PLAQUETTE)[0].active
    fine = link_layers((4, 4), PLANAR)[0]
    assert torch.isin(fine.active, parity).all()
    path = fine.paths["rectangle_across"] % 32
    assert torch.isin(path, parity).any()


@pytest.mark.parametrize(("loop", "number"), [("plaquette", 6), ("rectangle", 18), ("chair", 72)])
def test_number_of_paths_in_four_dimensions(loop, number):
    # Loops through a link: 6 plaquettes; 2 x 3 x (1 + 2) rectangles; chairs 24 + 48.
    paths = link_layers((4, 4, 4, 4), (loop,))[0].paths
    assert list(paths) == list(LOOPS[loop])
    index = torch.cat(list(paths.values()), dim=2)
    assert index.shape[2] == number
    sets = {tuple(sorted(path.tolist())) for path in index[:, 0].T}
    assert len(sets) == number


@pytest.mark.parametrize("coefficients", ["constant", "network"])
@pytest.mark.parametrize(("group", "lattice", "loops"), CASES)
def test_inverse(group, lattice, loops, coefficients):
    flow, _, x = make(group, lattice, loops, coefficients=coefficients, share="layer")
    field, density = check_inverse(flow, x)
    assert field < 1e-13
    assert density < 1e-12 * x.numel()


@pytest.mark.parametrize("coefficients", ["constant", "network"])
@pytest.mark.parametrize(("group", "lattice", "loops"), SMALL)
def test_log_density_is_the_jacobian(group, lattice, loops, coefficients):
    flow, action, x = make(group, lattice, loops, coefficients=coefficients, share="direction")
    assert check_log_det(flow, x[:1], action.group) < 1e-11
    assert check_log_det(flow, x[:1], action.group, inverse=True) < 1e-11


@pytest.mark.slow
def test_log_density_is_the_jacobian_with_all_loops():
    flow, action, x = make("U(1)", (4, 4, 4), ALL, coefficients="network", sweeps=2)
    assert check_log_det(flow, x[:1], action.group) < 1e-11


@pytest.mark.parametrize("error", ["no rotation", "wrong sign", "first order only"])
def test_a_wrong_jacobian_is_caught(monkeypatch, error):
    flow, action, x = make("SU(2)", (2, 2), scale=1.0)

    def wrong(group, product, degree):
        if error == "wrong sign":
            return true(group, -product, degree)
        return true(group, product, 0 if error == "no rotation" else 1)

    true = link_jacobian.log_determinant
    monkeypatch.setattr(masked_links, "log_determinant", wrong)
    assert check_log_det(flow, x[:1], action.group) > 1e-4


@pytest.mark.parametrize("group", ["U(1)", "SU(2)", "SU(3)"])
def test_mean_determinant_over_the_haar_measure_is_one(group):
    # The integral of |det| over the group is its volume.  Five standard errors: 6e-7.
    flow, action, _ = make(group, (2, 2), coefficients="network", scale=0.1)
    x = action.hot(4000, torch.Generator().manual_seed(3))
    with torch.no_grad():
        determinant = torch.exp(-flow.forward(x, zeros(x))[1])
    error = determinant.std() / math.sqrt(len(x))
    assert error < 0.05
    assert abs(determinant.mean() - 1) < 5 * error


@pytest.mark.parametrize("coefficients", ["constant", "network"])
@pytest.mark.parametrize(("group", "lattice", "loops"), CASES)
def test_gauge_equivariance(group, lattice, loops, coefficients):
    flow, action, x = make(group, lattice, loops, coefficients=coefficients, share="layer")
    rng = torch.Generator().manual_seed(11)
    sites = action.group.haar((len(x), *lattice), x.dtype, rng)

    def transform(links):
        moved = [
            action.group.compose(
                action.group.compose(sites, links[:, mu]), action.group.inverse(shift(sites, mu))
            )
            for mu in range(len(lattice))
        ]
        return action.group.project(torch.stack(moved, dim=1))

    if isinstance(action.group, U1):
        zero = zeros(x)
        with torch.no_grad():
            y, density = flow.forward(x, zero)
            z, density_moved = flow.forward(transform(x), zero)
        assert action.group.distance(z, transform(y)).max() < 1e-13
        assert (density_moved - density).abs().max() < 1e-11
    else:
        field, change = check_equivariance(flow, x, transform)
        assert field < 1e-13
        assert change < 1e-11


@pytest.mark.parametrize(
    ("group", "lattice", "loops"),
    [
        pytest.param(*case, marks=pytest.mark.slow if case[0] == "SU(2)" and case[2] == ALL else ())
        for case in CASES
    ],
)
def test_translation_equivariance(group, lattice, loops):
    flow, _, x = make(group, lattice, loops, coefficients="network")
    period = 2 if loops == PLAQUETTE else 4
    for mu in range(len(lattice)):
        field, change = check_equivariance(
            flow, x, lambda links, mu=mu: torch.roll(links, period, dims=2 + mu)
        )
        assert field < 1e-13
        assert change < 1e-11


@pytest.mark.parametrize("group", ["U(1)", "SU(2)", "SU(3)"])
def test_first_layer_is_a_step_along_the_force(group):
    _, action, x = make(group, (4, 4, 2))
    size = 1 if group == "U(1)" else 2 * action.group.n
    coefficient = 0.03
    flow = ResidualFlow(action, initial_coefficient=coefficient)
    step = -coefficient * size / action.beta * action.force(x)
    expected = action.group.project(action.group.move(x, step))
    with torch.no_grad():
        y, _ = flow.forward(x, zeros(x))
    # The links of the first layer see only unmoved ones, and move once.
    first = link_layers(action.lattice, PLAQUETTE)[0].active
    shape = (len(x), -1, *action.group.element_shape)
    difference = y.reshape(shape)[:, first] - expected.reshape(shape)[:, first]
    assert difference.abs().max() < 1e-14


@pytest.mark.parametrize("map_name", ["forward", "inverse"])
@pytest.mark.parametrize(("group", "lattice"), [("U(1)", (4, 4)), ("SU(3)", (2, 2, 2))])
def test_gradient_of_the_work(group, lattice, map_name):
    flow, action, x = make(group, lattice, coefficients="network", share="layer", scale=0.2)
    apply = getattr(flow, map_name)

    def loss():
        y, change = apply(x, zeros(x))
        return (action(y) + change).mean()

    loss().backward()
    rng = torch.Generator().manual_seed(2)
    directions = [torch.randn(p.shape, generator=rng).double() for p in flow.parameters()]
    analytic = sum(
        float((p.grad * v).sum()) for p, v in zip(flow.parameters(), directions, strict=True)
    )

    def along(step):
        with torch.no_grad():
            for p, v in zip(flow.parameters(), directions, strict=True):
                p.add_(step * v)
            value = float(loss())
            for p, v in zip(flow.parameters(), directions, strict=True):
                p.sub_(step * v)
        return value

    h = 1e-4
    numeric = (8 * (along(h) - along(-h)) - along(2 * h) + along(-2 * h)) / (12 * h)
    assert abs(analytic - numeric) < 1e-7 * max(1, abs(numeric))


@pytest.mark.parametrize(("group", "lattice"), [("U(1)", (4, 4)), ("SU(2)", (2, 2))])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_near_the_bound(group, lattice, sign):
    bound = 0.95
    flow, action, _ = make(group, lattice, bound=bound)
    with torch.no_grad():
        flow.weight.fill_(100 * sign)
    # A cold field sends all paths into one direction: C reaches the bound.
    rng = torch.Generator().manual_seed(1)
    cold = action.cold(1)
    near = action.group.move(cold, 0.1 * action.group.draw_algebra(cold, rng))
    # Each layer of the inverse may amplify rounding by 1 / (1 - bound).
    amplification = (1 - bound) ** -flow.layers_per_sweep
    for x in (near, action.hot(1, rng)):
        field, density = check_inverse(flow, x)
        assert field < 1e-14 * amplification
        assert density < 1e-13 * amplification
        assert check_log_det(flow, x, action.group) < 1e-9


@pytest.mark.parametrize("n", [2, 3, 4])
def test_singular_values_of_the_link_jacobian(n):
    rng = torch.Generator().manual_seed(n)
    group = SUN(n)
    paths = group.haar((500, 3), torch.complex128, rng)
    weights = torch.tensor([0.5, -0.3, 0.15], dtype=torch.complex128)
    product = torch.einsum("k,nkij->nij", weights, paths)
    kappa = 0.95
    matrix = link_jacobian.link_jacobian(group, product, link_jacobian.taylor_degree(kappa))
    deviation = torch.linalg.matrix_norm(
        matrix - torch.eye(group.algebra_dimension, dtype=torch.float64), ord=2
    )
    assert deviation.max() < kappa
    finer = link_jacobian.link_jacobian(group, product, 40)
    assert (matrix - finer).abs().max() < 1e-15


def test_zero_parameters_are_the_identity():
    flow = ResidualFlow(Wilson("SU(3)", (2, 2), beta=1.0), coefficients="network")
    x = Wilson("SU(3)", (2, 2), beta=1.0).hot(2, torch.Generator().manual_seed(1))
    y, density = flow.forward(x, zeros(x))
    assert torch.equal(x, y)
    assert torch.equal(density, zeros(x))


def test_forward_leaves_its_input_alone():
    flow, _, x = make("SU(2)", (4, 2))
    before = x.clone()
    flow.forward(x, zeros(x))
    flow.inverse(x, zeros(x))
    assert torch.equal(x, before)


def test_a_non_finite_chain_stays_alone():
    flow, _, x = make("SU(3)", (2, 2, 2))
    alone, alone_density = flow.inverse(x[1:], zeros(x[1:]))
    x[0, 0, 0, 0, 0] = torch.nan
    y, density = flow.inverse(x, zeros(x))
    assert torch.isnan(density[0])
    assert (y[1] - alone[0]).abs().max() < 1e-13
    assert (density[1] - alone_density[0]).abs() < 1e-12


def test_an_inverse_that_has_not_converged_has_no_density(monkeypatch):
    flow, _, x = make("SU(2)", (4, 2))
    monkeypatch.setattr(masked_links, "iteration_limit", lambda kappa, precision: 2)
    _, density = flow.inverse(x, zeros(x))
    assert torch.isnan(density).all()


@pytest.mark.parametrize("group", ["U(1)", "SU(3)"])
def test_single_precision(group):
    flow, _, x = make(group, (4, 4), coefficients="network")
    single = x.to(torch.complex64 if x.is_complex() else torch.float32)
    with torch.no_grad():
        y, density = flow.forward(x, zeros(x))
        y_single, density_single = flow.forward(single, zeros(x))
        back, round_trip = flow.inverse(y_single, density_single)
    assert y_single.dtype == single.dtype
    assert density_single.dtype == torch.float64
    assert flow.group.distance(y_single.to(y.dtype), y).max() < 1e-5
    assert (density_single - density).abs().max() < 1e-3
    assert flow.group.distance(back, single).max() < 1e-5
    assert round_trip.abs().max() < 1e-4


@pytest.mark.parametrize("native", ["1", "0"])
def test_the_inverse_in_single_precision_leaves_no_shift_of_the_action(native, monkeypatch):
    """What an iteration leaves has one sign on all links of a smooth field; roundings have both."""
    monkeypatch.setenv("FLOWMC_NATIVE", native)
    action = Wilson("SU(3)", (4, 4, 4, 4), beta=6.0)
    flow = ResidualFlow(action, initial_coefficient=1 / 64).requires_grad_(False)
    rng = torch.Generator().manual_seed(3)
    # On rough fields what is left points anywhere, and sums to no more than roundings.
    noise = 0.2 * torch.randn(2, 4, *action.lattice, 8, dtype=torch.float64, generator=rng)
    group = action.group
    x = group.exp(group.coordinates_to_algebra(noise)).to(torch.complex64)
    # In one precision, so that only the fields differ.
    shifts = action(flow.inverse(x, zeros(x))[0].to(torch.complex128)) - action(
        flow.inverse(x.to(torch.complex128), zeros(x))[0]
    )
    # 1,024 links, roundings of 1e-7: 2e-5.  Stopped in single precision: -1e-3 compiled, -8e-4 in
    # torch, and -0.02 on 8^4.
    assert float(shifts.abs().max()) < 1e-4


def test_weights_in_single_precision():
    flow, _, x = make("SU(3)", (4, 4), coefficients="network")
    y, density = flow.forward(x, zeros(x))
    single = flow.to(torch.float32).requires_grad_(False)
    y_single, density_single = single.forward(x.to(torch.complex64), zeros(x))
    assert y_single.dtype == torch.complex64
    assert flow.group.distance(y_single.to(y.dtype), y).max() < 1e-5
    assert (density_single - density).abs().max() < 1e-3
    _, round_trip = single.inverse(y_single, density_single)
    assert round_trip.abs().max() < 1e-3


@pytest.mark.parametrize("group", ["U(1)", "SU(3)"])
def test_the_jacobian_of_a_chain_does_not_feel_another_that_is_not_finite(group):
    flow, _, x = make(group, (4, 4), coefficients="network", scale=1.0)
    flow.requires_grad_(False)
    y, density = flow.forward(x, zeros(x))
    back, round_trip = flow.inverse(y, density)
    x[0], broken = torch.nan, y.clone()
    broken[0] = torch.nan
    for (field, found), image, expected in [
        (flow.forward(x, zeros(x)), y, density),
        (flow.inverse(broken, density), back, round_trip),
    ]:
        assert torch.isnan(found[0])
        assert flow.group.distance(field[1:], image[1:]).max() < 1e-12
        assert (found[1] - expected[1]).abs() < 1e-12


def test_initial_coefficient():
    action = Wilson("SU(3)", (2, 2, 2, 2), beta=5.7)
    flow = ResidualFlow(action, initial_coefficient=0.1)
    layer = link_layers(action.lattice, PLAQUETTE)[0]
    cold = torch.eye(3, dtype=torch.complex128).expand(1, 8, 6, 3, 3)
    closing, kappa = flow._closing(cold, 0, 0, layer)
    assert torch.allclose(closing, 0.6 * torch.eye(3, dtype=torch.complex128), atol=1e-14)
    assert kappa == pytest.approx(0.6)


@pytest.mark.parametrize(
    ("make_flow", "message"),
    [
        (lambda: ResidualFlow(Phi4((4, 4), m2=1.0, lam=1.0)), "has none"),
        (lambda: ResidualFlow(Wilson("U(1)", (3, 4), beta=1.0)), "even extents"),
        (lambda: ResidualFlow(Wilson("U(1)", (2, 4), beta=1.0), loops=PLANAR), "divisible by 4"),
        (lambda: ResidualFlow(Wilson("U(1)", (4, 4), beta=1.0), loops=("square",)), "square"),
        (lambda: ResidualFlow(Wilson("U(1)", (4, 4), beta=1.0), loops=("chair",)), "three"),
        (lambda: ResidualFlow(Wilson("U(1)", (4, 4), beta=1.0), bound=1.0), "between 0 and 1"),
        (lambda: ResidualFlow(Wilson("U(1)", (4, 4), beta=1.0), sweeps=0), "at least one"),
        (
            lambda: ResidualFlow(Wilson("U(1)", (4, 4), beta=1.0), initial_coefficient=0.5),
            "take it smaller",
        ),
    ],
)
def test_errors(make_flow, message):
    with pytest.raises(ValueError, match=message):
        make_flow()


def test_wrong_field_shape():
    flow, _, _ = make("U(1)", (4, 4))
    field = torch.zeros(1, 2, 4, 6, dtype=torch.float64)
    with pytest.raises(ValueError, match="does not fit"):
        flow.forward(field, zeros(field))


def test_representation_counts_parameters():
    flow, _, _ = make("U(1)", (4, 4), PLANAR, sweeps=2, share="direction")
    assert "parameters=12" in repr(flow)
