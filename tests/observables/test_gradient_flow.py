"""The gradient flow against loops over sites, its equation, and exact solutions."""

import itertools
import math

import numpy as np
import pytest
import torch
from scipy.linalg import expm

from flowmc.actions import DefectWilson, Phi4, Wilson
from flowmc.observables import (
    energy_density,
    gradient_flow,
    plaquette,
    topological_charge,
    wilson_flow,
)
from flowmc.observables.flowed import flow_table
from flowmc.registry import ConfigError, resolve, validate

# (lattice, chains): odd extents and extents of 2, lanes filled by chains, sites or both.
CASES = [((4, 4), 1), ((2, 3, 4), 9), ((2, 3, 2, 4), 3), ((4, 4, 4, 4), 1), ((2, 2, 2, 3, 2), 2)]
GROUPS = ["U(1)", "SU(2)", "SU(3)"]


def rough(group, lattice, chains, seed=1, size=0.6):
    action = Wilson(group, lattice, beta=1.0)
    rng = torch.Generator().manual_seed(seed)
    cold = action.cold(chains)
    return action, action.group.move(cold, size * action.group.draw_algebra(cold, rng))


def in_torch(function, *arguments, **keys):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWMC_NATIVE", "0")
        return function(*arguments, **keys)


class Loops:
    """One configuration in numpy, everything by loops over sites."""

    def __init__(self, links, lattice):
        self.u, self.lattice = links, lattice
        self.d, self.n = len(lattice), links.shape[-1]

    def link(self, mu, site, sign=1):
        """The matrix of a step from ``site``; a step back is the adjoint of the link behind."""
        if sign > 0:
            return self.u[(mu, *site)]
        return self.u[(mu, *self.moved(site, mu, -1))].conj().T

    def moved(self, site, mu, sign):
        site = list(site)
        site[mu] = (site[mu] + sign) % self.lattice[mu]
        return tuple(site)

    def path(self, site, steps):
        product = np.eye(self.n, dtype=complex)
        for mu, sign in steps:
            product = product @ self.link(mu, site, sign)
            site = self.moved(site, mu, sign)
        return product

    def sites(self):
        return itertools.product(*map(range, self.lattice))

    def energy_plaquette(self):
        """g0^2 times the Wilson action, per site."""
        total = 0.0
        for site in self.sites():
            for mu, nu in itertools.combinations(range(self.d), 2):
                loop = self.path(site, [(mu, 1), (nu, 1), (mu, -1), (nu, -1)])
                total += 2 * np.trace(np.eye(self.n) - loop).real
        return total / math.prod(self.lattice)

    def strength(self, site, mu, nu):
        total = 0
        # Four leaves, all in the sense of a turn from mu to nu.
        first, second = (mu, 1), (nu, 1)
        for _ in range(4):
            back = [(axis, -sign) for axis, sign in (first, second)]
            total = total + self.path(site, [first, second, *back])
            first, second = second, (first[0], -first[1])
        anti = (total - total.conj().T) / 8
        return anti - np.trace(anti) / self.n * np.eye(self.n)

    def energy_clover(self):
        total = 0.0
        for site in self.sites():
            for mu, nu in itertools.product(range(self.d), repeat=2):
                if mu != nu:
                    f = self.strength(site, mu, nu)
                    # 1/4 F^a F^a with tr F^2 = -1/2 F^a F^a.
                    total += -0.5 * np.trace(f @ f).real
        return total / math.prod(self.lattice)

    def charge(self):
        total = 0.0
        for site in self.sites():
            f = {p: self.strength(site, *p) for p in itertools.permutations(range(4), 2)}
            for order in itertools.permutations(range(4)):
                sign = np.linalg.det(np.eye(4)[list(order)])
                total += sign * np.trace(f[order[:2]] @ f[order[2:]]).real
        return -total / (32 * math.pi**2)

    def gradient(self, generators, step=1e-4):
        """-g0^2 dS by central differences, T_a times the derivative of each link."""
        z = np.zeros_like(self.u)
        volume = math.prod(self.lattice)
        for mu, *site in np.ndindex(*self.u.shape[:-2]):
            where = (mu, *site)
            kept = self.u[where].copy()
            for t in generators:
                values = []
                for s in (step, -step, 2 * step, -2 * step):
                    self.u[where] = expm(s * t) @ kept
                    values.append(volume * self.energy_plaquette())
                derivative = (8 * (values[0] - values[1]) - (values[2] - values[3])) / (12 * step)
                z[where] -= derivative * t
            self.u[where] = kept
        return z

    def move(self, z):
        moved = self.u.copy()
        for where in np.ndindex(*self.u.shape[:-2]):
            moved[where] = expm(z[where]) @ self.u[where]
        self.u = moved


@pytest.mark.parametrize(("group", "lattice"), [("SU(3)", (2, 3)), ("SU(2)", (2, 2, 2))])
def test_one_step_against_loops(group, lattice):
    """Luescher's scheme as it stands in the paper, with a numerical derivative of the action."""
    action, field = rough(group, lattice, 1)
    ours = wilson_flow(field, action, 0.1, 0.1)
    loops = Loops(field[0].numpy().copy(), lattice)
    generators = action.group.generators(torch.complex128).numpy()
    z0 = 0.1 * loops.gradient(generators)
    loops.move(z0 / 4)
    z1 = 0.1 * loops.gradient(generators)
    loops.move(8 / 9 * z1 - 17 / 36 * z0)
    z2 = 0.1 * loops.gradient(generators)
    loops.move(3 / 4 * z2 - 8 / 9 * z1 + 17 / 36 * z0)
    np.testing.assert_allclose(ours[0].numpy(), loops.u, atol=1e-9)
    assert np.abs(loops.u - field[0].numpy()).max() > 0.01
    energies = [energy_density(ours, action, definition=d).item() for d in ("plaquette", "clover")]
    np.testing.assert_allclose(energies, [loops.energy_plaquette(), loops.energy_clover()])


@pytest.mark.parametrize("group", ["SU(2)", "SU(3)"])
def test_four_dimensions_against_loops(group):
    lattice = (2, 3, 2, 3)
    action, field = rough(group, lattice, 2)
    for chain in range(2):
        loops = Loops(field[chain].numpy(), lattice)
        one = field[chain : chain + 1]
        assert energy_density(one, action).item() == pytest.approx(loops.energy_clover(), rel=1e-12)
        assert topological_charge(one, action).item() == pytest.approx(loops.charge(), abs=1e-13)
        assert in_torch(topological_charge, one, action).item() == pytest.approx(
            loops.charge(), abs=1e-13
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("lattice", "chains"), CASES)
@pytest.mark.parametrize("group", GROUPS)
def test_compiled_flow_agrees_with_torch(group, lattice, chains, dtype):
    action, field = rough(group, lattice, chains)
    field = field.to(action.group.field_dtype(dtype))
    ours = flow_table(field, action, 0.4, 0.1, 2, "test")
    theirs = in_torch(flow_table, field, action, 0.4, 0.1, 2, "test")
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == b.dtype and a.shape == b.shape
        assert (a - b).abs().max() < (1e-13 if dtype == torch.float64 else 1e-5)
    assert (ours[0] - field).abs().max() > 0.1


@pytest.mark.parametrize("group", [*GROUPS, "SU(4)"])
def test_scheme_is_of_third_order(group):
    action, field = rough(group, (4, 4, 2), 1)
    exact = wilson_flow(field, action, 0.48, 0.48 / 384)
    errors = [
        (wilson_flow(field, action, 0.48, 0.48 / n) - exact).abs().max() for n in (12, 24, 48)
    ]
    # 8 in the limit, approached from above; 4 for the second and 16 for the fourth order.
    for coarse, fine in itertools.pairwise(errors):
        assert 7.5 < coarse / fine < 9.5
    assert errors[-1] < 2e-6


def test_default_step_is_accurate():
    action, field = rough("SU(3)", (4, 4, 4, 4), 1)
    fine = gradient_flow(field, action, flow_time=1.0, points=2, step=0.0025)
    default = gradient_flow(field, action, flow_time=1.0, points=2)
    assert ((default - fine).abs()[..., :2] / fine[..., :2]).max() < 1e-4


@pytest.mark.parametrize("group", GROUPS)
def test_energy_falls_as_the_square_of_the_force(group):
    r"""V dE/dt = - sum_a Z_a^2 with E from the plaquette: g0^2 S_W falls along its gradient."""
    action, field = rough(group, (4, 3, 2, 4), 2)
    unit = Wilson(group, action.lattice, beta=1.0 if group == "U(1)" else 2.0 * action.group.n)
    time, h = 0.3, 0.001
    energies = [
        energy_density(field, action, flow_time=t, step=0.005, definition="plaquette")
        for t in (time - h, time + h)
    ]
    slope = (energies[1] - energies[0]) / (2 * h)
    force = unit.force(wilson_flow(field, action, time, 0.005))
    square = action.group.algebra_to_coordinates(force).square().reshape(2, -1).sum(1)
    torch.testing.assert_close(slope, -square / action.volume, rtol=2e-3, atol=0)
    table = gradient_flow(field, action, flow_time=1.0, points=10)
    times = torch.linspace(0.1, 1.0, 10, dtype=torch.float64)
    assert (torch.diff(table[..., 1] / times**2, dim=1) < 0).all()


@pytest.mark.parametrize("group", [*GROUPS, "SU(4)"])
def test_weak_waves_decay_with_their_momentum(group):
    """A transverse wave decays as exp(-p_hat^2 t): this fixes the unit of time."""
    lattice = (6, 4, 4)
    action = Wilson(group, lattice, beta=3.7)
    x, y = torch.meshgrid(torch.arange(6), torch.arange(4), indexing="ij")
    phase = 2 * math.pi * (x / 6 + y / 4)
    squared = 4 * math.sin(math.pi / 6) ** 2 + 4 * math.sin(math.pi / 4) ** 2
    wave = torch.zeros(1, 3, *lattice, action.group.algebra_dimension, dtype=torch.float64)
    # Along the third direction, on which the phase does not depend.
    wave[0, 2, ..., 0] = 1e-6 * torch.cos(phase.double())[..., None]
    start = action.group.coordinates_to_algebra(wave)
    field = action.group.move(action.cold(1), start)
    time = 0.7
    flowed = wilson_flow(field, action, time)
    left = action.group.coordinates_to_algebra(wave * math.exp(-squared * time))
    expected = action.group.move(action.cold(1), left)
    assert (flowed - expected).abs().max() < 1e-10
    # Constant fields do not decay, and E is 1/2 (d_mu A)^2: <cos^2> = 1/2.
    energy = energy_density(field, action, definition="plaquette").item()
    assert energy == pytest.approx(0.25 * squared * 1e-12, rel=1e-4)


@pytest.mark.parametrize("group", GROUPS)
def test_gauge_invariance_and_batches(group):
    action, field = rough(group, (4, 2, 4, 3), 3)
    rng = torch.Generator().manual_seed(5)
    compose, inverse = action.group.compose, action.group.inverse
    gauge = action.group.haar((3, *action.lattice), field.dtype, rng)
    turned = torch.stack(
        [
            compose(compose(gauge, field[:, mu]), inverse(torch.roll(gauge, -1, 1 + mu)))
            for mu in range(4)
        ],
        1,
    )
    keys = {"flow_time": 0.5, "points": 3}
    table = gradient_flow(field, action, **keys)
    assert table.shape == (3, 3, 2 if group == "U(1)" else 3)
    torch.testing.assert_close(gradient_flow(turned, action, **keys), table, rtol=1e-9, atol=1e-11)
    for chain in range(3):
        one = gradient_flow(field[chain : chain + 1], action, **keys)
        torch.testing.assert_close(one[0], table[chain], rtol=1e-12, atol=1e-14)


def test_columns_are_the_single_observables():
    action, field = rough("SU(3)", (4, 2, 4, 2), 2)
    table = gradient_flow(field, action, flow_time=0.6, points=3)
    for k, time in enumerate((0.2, 0.4, 0.6)):
        keys = {"flow_time": time}
        clover = energy_density(field, action, **keys)
        plaquettes = energy_density(field, action, definition="plaquette", **keys)
        expected = [
            time**2 * clover,
            time**2 * plaquettes,
            topological_charge(field, action, **keys),
        ]
        torch.testing.assert_close(table[:, k], torch.stack(expected, 1), rtol=1e-12, atol=1e-14)
    mean = plaquette(field, action)
    # Six planes of 2 N (1 - Re tr P / N).
    torch.testing.assert_close(
        energy_density(field, action, definition="plaquette"), 36 * (1 - mean)
    )


def test_flow_is_that_of_the_plain_action():
    plain, field = rough("SU(3)", (4, 4), 1)
    defect = DefectWilson("SU(3)", (4, 4), beta=9.0, defect=0.0)
    assert torch.equal(wilson_flow(field, plain, 0.3), wilson_flow(field, defect, 0.3))
    summed = plain + 0.5 * plain
    assert torch.equal(wilson_flow(field, plain, 0.3), wilson_flow(field, summed, 0.3))


def test_u1_charge_along_the_flow():
    action, field = rough("U(1)", (6, 6), 4, size=2.0)
    table = gradient_flow(field, action, flow_time=2.0, points=4)
    charges = table[..., 2]
    assert torch.equal(charges, charges.round())
    flowed = wilson_flow(field, action, 2.0)
    assert torch.equal(topological_charge(flowed, action), charges[:, -1])
    assert not torch.signbit(charges[charges == 0]).any()
    # In three dimensions there is no charge.
    action, field = rough("U(1)", (3, 3, 3), 4)
    assert gradient_flow(field, action, flow_time=0.1, points=1).shape == (4, 1, 2)


def test_constant_abelian_field_keeps_its_charge():
    """A solution of the field equations: the flow leaves it alone."""
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
    expected = 8 * 2 * math.sin(flux) ** 2 * 256 / (32 * math.pi**2)
    assert topological_charge(field, action, flow_time=1.0).item() == pytest.approx(expected)
    # E = sum over two planes of |F|^2.
    energy = energy_density(field, action, flow_time=1.0).item()
    assert energy == pytest.approx(4 * math.sin(flux) ** 2)


def test_the_largest_step_is_stable_and_a_larger_one_is_refused():
    """At step = 0.25 in four dimensions E was off by a factor of twelve."""
    action, field = rough("SU(3)", (4, 4, 4, 4), 1)
    fine = gradient_flow(field, action, flow_time=1.0, points=1)
    coarse = gradient_flow(field, action, flow_time=1.0, points=1, step=0.125)
    assert coarse[0, 0, 0].item() == pytest.approx(fine[0, 0, 0].item(), rel=0.02)
    with pytest.raises(ConfigError, match=r"step = 0\.25: .*unstable in 4 dim.* at most 0\.125"):
        gradient_flow(field, action, flow_time=1.0, points=1, step=0.25)


def test_gradients_pass_through():
    action, field = rough("SU(2)", (3, 2, 2, 2), 1)
    leaf = field.clone().requires_grad_(True)
    energy_density(leaf, action, flow_time=0.1, step=0.1).sum().backward()
    assert leaf.grad is not None and leaf.grad.abs().max() > 0


def test_unusable_keys():
    scalar, gauge = Phi4([4, 4], m2=1.0, lam=1.0), Wilson("SU(2)", [4, 4], beta=1.0)
    field = gauge.cold(1)
    abelian = Wilson("U(1)", [4, 4], beta=1.0)
    for call, words in [
        (lambda: gradient_flow(scalar.cold(1), scalar, flow_time=1.0), "gauge fields"),
        (lambda: gradient_flow(field, gauge, flow_time=0.0), "flow_time = 0.0"),
        (lambda: gradient_flow(field, gauge, flow_time=math.inf), "flow_time = inf"),
        (lambda: gradient_flow(field, gauge, flow_time=1.0, points=0), "points = 0"),
        (lambda: energy_density(field, gauge, flow_time=-1.0), "flow_time = -1.0"),
        (lambda: energy_density(field, gauge, flow_time=1.0, step=0.0), "step = 0.0"),
        (lambda: gradient_flow(field, gauge, flow_time=1.0, points=1, step=0.4), "at most 0.25"),
        (lambda: topological_charge(field, gauge, flow_time=1.0), "two-dimensional U\\(1\\)"),
        (lambda: topological_charge(abelian.cold(1), abelian, flow_time=1.0), "leave out"),
    ]:
        with pytest.raises(ConfigError, match=words):
            call()
    with pytest.raises(ConfigError, match="missing key 'flow_time'"):
        validate(resolve("observables", "gradient_flow"), {}, "[measure] gradient_flow")
    with pytest.raises(ConfigError, match="definition"):
        keys = {"definition": "cloverleaf"}
        validate(resolve("observables", "energy_density"), keys, "[measure] energy_density")


@pytest.mark.parametrize("chains", [1, 20])
def test_the_same_bits_for_any_number_of_threads(chains):
    action, field = rough("SU(3)", (8, 4, 4, 8) if chains == 1 else (4, 4, 2, 4), chains)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 3):
            torch.set_num_threads(threads)
            results.append(flow_table(field, action, 0.2, 0.1, 2, "test"))
    finally:
        torch.set_num_threads(before)
    for one, three in zip(*results, strict=True):
        assert torch.equal(one, three)
