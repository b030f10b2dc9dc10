"""Closed forms against independently computed numbers, brute force and each other."""

import math

import numpy as np
import pytest
import torch
from exactness import assert_mean

from flowmc.actions import DoubleWell, FreeScalar, Phi4, Wilson
from flowmc.actions.exact import sample_phi4, sample_wilson_2d
from flowmc.actions.solved import double_well, log_partition, su_n_torus, u1_torus, without_hopping
from flowmc.actions.theory import build_action
from flowmc.observables import phi2, plaquette
from flowmc.registry import ConfigError

# By direct Fourier inversion of the V-fold convolution (U(1)), sums over characters (SU(N)).
U1 = [
    (1.0, 256, 60.394076, 0.44638997, 10.402876),
    (2.0, 256, 210.942347, 0.69777466, 4.957196),
    (3.0, 256, 405.838751, 0.80998529, 2.831565),
    (7.0, 256, 1312.638186, 0.92553221, 1.006414),
    (2.0, 64, None, 0.69777466, 1.239299),
    (7.0, 64, None, 0.92570036, 0.217111),
]
SUN = [
    (2, 1.8, 256, 97.496041, 0.39937238),
    (2, 2.7, 256, 205.788816, 0.53297073),
    (2, 4.0, 256, 405.783147, 0.65804727),
    (3, 1.0, 64, 1.875803, 0.06012655),
    (3, 4.0, 256, 135.659112, 0.27961915),
    (3, 6.0, 256, 316.387863, 0.42253174),
    (3, 8.0, 64, 140.781981, 0.53575399),
]
WELLS = [
    (2.75, 8, 0.5, 6.17202597, 2.46327702, 0.0112),
    (2.75, 16, 0.25, 1.12293430, 2.45241104, 0.0118),
    (2.75, 64, 1.0, 107.99209680, 2.50165675, 0.0066),
    (2.75, 8, 1.0, 14.10330971, 2.50539454, 0.0056),
    (3.0, 8, 0.5, 7.23249590, 2.74640040, 0.0032),
    (3.0, 16, 0.25, 1.83444240, 2.73650827, 0.0034),
    (3.0, 64, 1.0, 127.82097748, 2.78282180, 0.0015),
    (3.0, 8, 1.0, 16.58402515, 2.78313803, 0.0014),
]


@pytest.mark.parametrize(("beta", "volume", "log_z", "mean", "charge"), U1)
def test_u1(beta, volume, log_z, mean, charge):
    found = u1_torus(beta, volume)
    assert abs(found.plaquette - mean) < 1e-8
    assert abs(found.charge_squared - charge) < 1e-6
    if log_z is not None:
        # The table normalises the Haar measure; our angles have the measure dtheta.
        assert abs(found.log_z - 2 * volume * math.log(2 * math.pi) - log_z) < 1e-6


@pytest.mark.parametrize(("n", "beta", "volume", "log_z", "mean"), SUN)
def test_su_n(n, beta, volume, log_z, mean):
    found = su_n_torus(n, beta, volume)
    assert abs(found.log_z - log_z) < 1e-6
    assert abs(found.plaquette - mean) < 1e-8


@pytest.mark.parametrize(
    ("group", "beta"), [("U(1)", 3.0), ("SU(2)", 3.0), ("SU(3)", 3.0), ("SU(4)", 1.5)]
)
def test_small_torus_where_many_representations_count(group, beta, rng):
    """2x2, where ln Z is not V times that of a plaquette; the draws know nothing of characters."""
    action = Wilson(group, [2, 2], beta=beta)
    exact = u1_torus(beta, 4) if group == "U(1)" else su_n_torus(action.group.n, beta, 4)
    assert_mean(plaquette(sample_wilson_2d(action, 600, rng), action), exact.plaquette)
    # d ln Z / d beta = V <P>.
    step = 1e-3
    above, below = (log_partition(action.at(beta=beta + sign * step)) for sign in (1, -1))
    assert (above - below) / (2 * step) == pytest.approx(4 * exact.plaquette, abs=1e-6)


@pytest.mark.parametrize(("m0", "extent", "spacing", "log_z", "x2", "barrier"), WELLS)
def test_double_well(m0, extent, spacing, log_z, x2, barrier):
    found = double_well(DoubleWell([extent], m0=m0, spacing=spacing))
    assert abs(found.log_z - log_z) < 1.5e-8
    assert abs(found.x2 - x2) < 1e-8
    assert abs(found.barrier - barrier) < 6e-5


def test_double_well_without_quartic_term_is_harmonic():
    action = DoubleWell([6], m0=1.3, mu2=0.7, lam=0.0, spacing=0.6)
    momenta = 4 * np.sin(np.pi * np.arange(6) / 6) ** 2
    modes = 1.3 / (2 * 0.6) * momenta + 0.6 * 1.3 * 0.7 / 2
    assert log_partition(action) == pytest.approx(0.5 * np.log(np.pi / modes).sum(), abs=1e-10)
    assert double_well(action).x2 == pytest.approx((0.5 / modes).mean(), abs=1e-10)


def test_double_well_draws(rng):
    action = DoubleWell([4], m0=2.75)
    draws = sample_phi4(action, 4000, rng)
    assert_mean(phi2(draws, action), double_well(action).x2)
    written_out = (
        2.75 / 2 * (draws.roll(-1, 1) - draws).square().sum(1)
        - 2.75 / 2 * draws.square().sum(1)
        + draws.pow(4).sum(1) / 4
    )
    assert torch.allclose(action(draws), written_out, rtol=1e-12)


def test_independent_sites():
    # Nicoli et al.: z0 = 1.7829654778 at lambda = 0.022.
    action = Phi4([16, 8], kappa=0.0, lam=0.022)
    assert without_hopping(action) == pytest.approx(128 * math.log(1.7829654778), abs=1e-7)
    assert log_partition(action) == without_hopping(action)
    grid = np.linspace(-9, 9, 4001)
    density = np.exp(-0.956 * grid**2 - 0.022 * grid**4)
    assert without_hopping(action) / 128 == pytest.approx(
        math.log(density.sum() * (grid[1] - grid[0])), abs=1e-12
    )


@pytest.mark.parametrize("lam", [0.3, 0.5, 0.8, 2.0, 40.0])
def test_independent_sites_of_either_sign(lam):
    """a = 1 - 2 lambda: single wells, none, and double wells; 1e-12 is rounding of the sum."""
    action = Phi4([4], kappa=0.0, lam=lam)
    grid = np.linspace(-9, 9, 40001)
    exponent = -(1 - 2 * lam) * grid**2 - lam * grid**4
    top = exponent.max()
    one = top + math.log(np.exp(exponent - top).sum() * (grid[1] - grid[0]))
    assert without_hopping(action) == pytest.approx(4 * one, rel=1e-12, abs=1e-11)


def test_what_is_not_solved_is_none():
    assert log_partition(Phi4([4, 4], m2=-4.0, lam=8.0)) is None
    assert log_partition(Wilson("SU(3)", [2, 2, 2], beta=1.0)) is None
    assert log_partition(Wilson("SU(3)", [2, 2, 2], beta=0.0)) == 0.0
    free = FreeScalar([4, 3], m2=0.4)
    assert log_partition(free) == free.log_partition()
    assert log_partition(2.0 * free) is None


def test_double_well_by_name_and_refusals():
    table = {"action": "double_well", "lattice": [8], "m0": 3.0, "lambda": 1.0, "spacing": 0.5}
    assert build_action(table).parameters["mu2"] == -1.0
    for change, said in (
        ({"lattice": [4, 4]}, "one extent"),
        ({"m0": -1.0}, "m0 > 0"),
        ({"lambda": 0.0}, "normalisable"),
    ):
        with pytest.raises(ConfigError, match=said):
            build_action({**table, **change})
