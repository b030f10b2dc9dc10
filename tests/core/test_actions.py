import math

import pytest
import torch
from exactness import assert_mean

from flowmc.actions import DoubleWell, FreeScalar, Phi4, Wilson, check_force
from flowmc.actions.exact import sample_phi4, sample_wilson_2d
from flowmc.native import torch_only
from flowmc.observables import (
    correlator,
    phi2,
    plaquette,
    polyakov_loop,
    susceptibility,
    topological_charge,
    wilson_loop,
)

ACTIONS = [
    Phi4([8], m2=-1.0, lam=1.0),
    Phi4([4, 6], m2=-4.0, lam=8.0),
    Phi4([3, 5], kappa=0.25, lam=0.022),
    Phi4([2, 3, 4], m2=0.5, lam=0.3),
    Phi4([2, 2, 4, 3], kappa=0.1, lam=0.5),
    FreeScalar([3, 4], m2=0.3),
    DoubleWell([6], m0=2.75, spacing=0.5),
    DoubleWell([5], m0=1.3, mu2=0.7, lam=0.2, spacing=0.8),
    Wilson("U(1)", [4, 3], beta=2.0),
    Wilson("U(1)", [2, 3, 4], beta=1.3),
    Wilson("SU(2)", [4, 3], beta=2.2),
    Wilson("SU(3)", [2, 4, 3, 5], beta=6.0),
    Wilson("SU(4)", [3, 2, 3], beta=9.0),
    Wilson("SU(3)", [2, 2, 4], beta=5.0) + 0.5 * Wilson("SU(3)", [2, 2, 4], beta=2.0),
]


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
def test_force_is_the_derivative(action, rng):
    field = action.hot(3, rng)
    assert check_force(action, field, rng) < 1e-8
    automatic = action.force_by_autograd(field)
    assert (action.force(field) - automatic).abs().max() < 1e-11
    with torch_only():
        assert check_force(action, field, rng) < 1e-8
        assert (action.force(field) - automatic).abs().max() < 1e-11


def test_check_force_catches_a_wrong_sign(rng):
    class Wrong(Phi4):
        def force(self, field):
            return -super().force(field)

    action = Wrong([4, 4], m2=1.0, lam=1.0)
    assert check_force(action, action.hot(2, rng), rng) > 0.1


def test_phi4_conventions():
    """Both parametrisations written out, on one site against its neighbours."""
    lattice = [3, 4]
    field = torch.arange(12.0, dtype=torch.float64).reshape(1, 3, 4) / 7
    m2, lam, kappa = -0.7, 0.9, 0.21
    kinetic = sum((torch.roll(field, -1, d) - field).square().sum() for d in (1, 2))
    hopping = sum((torch.roll(field, -1, d) * field).sum() for d in (1, 2))
    bare = kinetic + m2 * field.square().sum() + lam * field.pow(4).sum()
    hop = -2 * kappa * hopping + (1 - 2 * lam) * field.square().sum() + lam * field.pow(4).sum()
    assert math.isclose(Phi4(lattice, m2=m2, lam=lam)(field), bare, rel_tol=1e-13)
    assert math.isclose(Phi4(lattice, kappa=kappa, lam=lam)(field), hop, rel_tol=1e-13)


def test_wilson_action_counts_every_plaquette_once():
    for group, d in (("U(1)", 2), ("SU(3)", 4), ("SU(2)", 3)):
        action = Wilson(group, [3] * d, beta=2.5)
        expected = -2.5 * 3**d * d * (d - 1) / 2
        assert math.isclose(action(action.cold(1)), expected, rel_tol=1e-13)


@pytest.mark.parametrize("group", ["U(1)", "SU(2)", "SU(3)"])
def test_gauge_invariance(group, rng):
    action = Wilson(group, [4, 2, 3], beta=2.0)
    field = action.hot(2, rng)
    rotation = action.group.haar((2, 4, 2, 3), field.dtype, rng)
    times, dagger = action.group.compose, action.group.inverse
    moved = torch.stack(
        [
            times(times(rotation, field[:, mu]), dagger(torch.roll(rotation, -1, 1 + mu)))
            for mu in range(3)
        ],
        1,
    )
    assert torch.allclose(action(field), action(moved), rtol=1e-12)
    for observable in (plaquette, polyakov_loop):
        assert torch.allclose(observable(field, action), observable(moved, action), atol=1e-12)
    loops = [wilson_loop(f, action, extents=(2, 3)) for f in (field, moved)]
    assert torch.allclose(*loops, atol=1e-12)


def test_wilson_loop_of_size_one_is_the_plaquette(rng):
    action = Wilson("SU(3)", [2, 3, 4, 2], beta=6.0)
    field = action.hot(2, rng)
    assert torch.allclose(wilson_loop(field, action), plaquette(field, action), atol=1e-14)


def test_free_field_is_solved(rng):
    action = FreeScalar([6, 4], m2=0.7)
    field = action.sample(20_000, rng)
    assert_mean(phi2(field, action), float(action.propagator()[0, 0]))
    assert_mean(susceptibility(field, action), 0.5 / 0.7)
    # <S> = V/2 by equipartition.
    assert_mean(action(field), 12.0)
    time_slices = correlator(field, action, axis=0)
    exact = action.propagator().sum(1)
    for t in range(4):
        assert_mean(time_slices[:, t], float(exact[t]))


def test_correlator_sums_to_the_susceptibility(rng):
    action = Phi4([4, 6], m2=1.0, lam=1.0)
    field = action.hot(3, rng)
    c = correlator(field, action)
    total = c[:, 0] + 2 * c[:, 1] + 2 * c[:, 2] + c[:, 3]
    assert torch.allclose(total, susceptibility(field, action), rtol=1e-12)


@pytest.mark.parametrize(
    ("group", "beta", "lattice", "expected"),
    [
        ("U(1)", 2.0, [8, 8], 0.69777466),
        ("SU(2)", 1.8, [4, 4], None),
        ("SU(3)", 2.0, [4, 4], 0.12862779),
    ],
)
def test_exact_gauge_draws(group, beta, lattice, expected, rng):
    action = Wilson(group, lattice, beta=beta)
    draws = 1000
    field = sample_wilson_2d(action, draws, rng)
    action.check_field(field)
    if expected is not None:
        assert_mean(plaquette(field, action), expected)
    if group == "U(1)":
        assert_mean(topological_charge(field, action).square(), 1.239299)


def test_exact_phi4_draws_obey_the_schwinger_dyson_equation(rng):
    action = Phi4([2, 2], m2=-4.0, lam=8.0)
    field = sample_phi4(action, 4000, rng)
    # <phi_x dS/dphi_x> = 1 for every site.
    assert_mean((field * action.force(field)).mean((1, 2)), 1.0)


def test_topological_charge_of_an_instanton_like_u1_field():
    """Constant field strength 2 pi Q / V has charge Q exactly."""
    action = Wilson("U(1)", [4, 6], beta=1.0)
    field = action.cold(1)
    x = torch.arange(4.0, dtype=torch.float64)
    field[0, 1] = (2 * math.pi * 3 / 24) * x[:, None]
    # Rolling x = 3 -> 0 needs the twist on the links that cross it.
    field[0, 0, 3] = -(2 * math.pi * 3 / 6) * torch.arange(6.0, dtype=torch.float64)
    assert topological_charge(field, action).item() == 3


def test_clover_charge_of_constant_abelian_su3_field():
    """A diagonal SU(3) field with constant F_01 and F_23 has a charge known in closed form."""
    lattice = [4, 4, 4, 4]
    action = Wilson("SU(3)", lattice, beta=6.0)
    flux = 2 * math.pi / 16
    phase = torch.zeros(4, *lattice, dtype=torch.float64)
    x = torch.arange(4.0, dtype=torch.float64)
    phase[1] += flux * x[:, None, None, None]
    phase[0, 3] += -(flux * 4) * x[:, None, None]
    phase[3] += flux * x[None, None, :, None]
    phase[2, :, :, 3] += -(flux * 4) * x[None, None, :]
    diagonal = torch.stack([phase, -phase, torch.zeros_like(phase)], -1)
    field = torch.diag_embed(torch.polar(torch.ones_like(diagonal), diagonal))[None]
    # F_01 = F_23 = i sin(flux) diag(1, -1, 0): Q = 8 * 2 sin^2(flux) V / (32 pi^2).
    expected = 8 * 2 * math.sin(flux) ** 2 * 256 / (32 * math.pi**2)
    assert math.isclose(topological_charge(field, action).item(), expected, rel_tol=1e-12)


def test_observables_refuse_other_theories():
    scalar, gauge = Phi4([4, 4], m2=1.0, lam=1.0), Wilson("SU(2)", [4, 4], beta=1.0)
    with pytest.raises(ValueError, match="gauge fields"):
        plaquette(scalar.cold(1), scalar)
    with pytest.raises(ValueError, match="scalar fields"):
        phi2(gauge.cold(1), gauge)
    with pytest.raises(ValueError, match="two-dimensional U\\(1\\)"):
        topological_charge(gauge.cold(1), gauge)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Phi4([4], m2=1.0, kappa=0.2, lam=1.0), "exactly one of m2 and kappa"),
        (lambda: Phi4([4], m2=1.0, lam=-1.0), "lambda >= 0"),
        (lambda: Phi4([1, 4], m2=1.0, lam=1.0), "at least 2"),
        (lambda: FreeScalar([4], m2=0.0), "m2 > 0"),
        (lambda: Wilson("SU(3)", [4], beta=6.0), "at least two directions"),
        (lambda: Wilson("R", [4, 4], beta=6.0), "U\\(1\\) and SU\\(N\\)"),
        (lambda: Wilson("U(1)", [4, 4], beta=1.0).at(kappa=1.0), "coupling beta"),
        (lambda: Wilson("U(1)", [4, 4], beta=1.0) + Wilson("U(1)", [4, 6], beta=1.0), "add"),
    ],
)
def test_actions_refuse_what_they_cannot_mean(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "action",
    [
        Phi4([8, 8], m2=-4.0, lam=8.0),
        Phi4([8, 8], m2=-6.0, lam=0.5),
        Phi4([8, 8], kappa=0.3, lam=0.022),
        FreeScalar([8, 8], m2=0.5),
    ],
    ids=repr,
)
def test_hot_scalar_fields_are_those_without_hopping(action, rng):
    """<phi (2 a phi + 4 lambda phi^3)> = 1 for every site of e^(-a phi^2 - lambda phi^4)."""
    field = action.hot(400, rng)
    local = field * (2 * action.a * field + 4 * action.quartic * field**3)
    assert_mean(local.flatten(), 1.0)
    assert_mean(field.flatten(), 0.0)


def test_dtype_of_a_cold_start_is_that_of_components_or_of_the_field():
    links, angles = Wilson("SU(3)", [2, 2], beta=1.0), Wilson("U(1)", [2, 2], beta=1.0)
    for dtype in (torch.float64, torch.complex128):
        assert links.cold(1, dtype).dtype == torch.complex128
    for dtype in (torch.float32, torch.complex64):
        assert links.cold(1, dtype).dtype == torch.complex64
    with pytest.raises(ValueError, match="real components"):
        angles.cold(1, torch.complex128)
    with pytest.raises(ValueError, match="complex components"):
        links.cold(1, torch.int64)


class Tilted(Phi4):
    """Another density, and no word of its force."""

    def __call__(self, field):
        return super().__call__(field) + 0.3 * field.flatten(1).sum(1).double()


def test_the_force_of_another_density_is_its_own(rng):
    action = Tilted([4, 4], m2=-1.0, lam=0.5)
    assert check_force(action, action.hot(2, rng), rng) < 1e-7
