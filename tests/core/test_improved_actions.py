"""Improved gauge actions against their definition, the continuum limit, and an own Metropolis."""

import functools
import itertools
import math

import numba
import numpy as np
import pytest
import torch
from exactness import assert_mean
from flowmc_adapters.observables import measure_links
from scipy.special import i0, i1
from scipy.stats import ttest_ind

from flowmc.actions import DBW2, ImprovedGauge, Iwasaki, LuescherWeisz, Symanzik, Wilson
from flowmc.actions.theory import build_action, describe_theory, theory_table
from flowmc.io import field_to_file_order
from flowmc.kernels import HMC
from flowmc.native import torch_only, why_in_torch
from flowmc.observables import plaquette, wilson_loop
from flowmc.registry import ConfigError, resolve
from flowmc.testing import check_action

BOX = {"defect": 0.4, "defect_axis": 1, "defect_extents": [2, 1, 3]}
ACTIONS = [
    Iwasaki("U(1)", [4, 3], beta=1.2, anisotropy=1.6),
    Symanzik("SU(2)", [3, 2, 4], beta=2.2, defect=0.0, defect_extents=[2, 1]),
    DBW2("SU(3)", [2, 3], beta=0.9, anisotropy=0.7, defect=1.4, defect_axis=0),
    ImprovedGauge("SU(3)", [3, 4, 2, 3], beta=5.0, c1=-0.2, anisotropy=2.0, **BOX),
    ImprovedGauge("SU(2)", [2, 3, 4], beta=1.1, c1=0.3, c3=-0.15, c0=0.7, defect=0.5),
    LuescherWeisz("SU(3)", [2, 3, 2, 3], beta=7.3, u0=0.87, flavors=4, **BOX),
    Iwasaki("SU(3)", [2, 3, 2, 4], beta=2.1, time_boundary="open", c_g=1.3),
    ImprovedGauge("U(1)", [3, 5], beta=1.1, c1=-0.2, time_boundary="open", anisotropy=1.5),
    Symanzik(
        "SU(2)", [3, 2, 3], beta=2.0, time_boundary="open", defect=0.3, defect_axis=0, c_g=0.8
    ),
]


def by_hand(action, links):
    """S of one chain as its definition reads: a walk along every loop of every site."""
    lattice, d = action.lattice, action.dimensions
    axis = action.defect_axis
    others = [nu for nu in range(d) if nu != axis]
    is_u1 = not links.is_complex()

    def ahead(x, mu, steps=1):
        return tuple((x[nu] + steps * (nu == mu)) % lattice[nu] for nu in range(d))

    def coefficient(mu, x):
        inside = all(x[nu] < e for nu, e in zip(others, action.defect_extents, strict=True))
        return action.defect if mu == axis and x[axis] == lattice[axis] - 1 and inside else 1.0

    def walk(x, steps):
        product, weight = (0.0 if is_u1 else torch.eye(action.group.n).to(links.dtype)), 1.0
        if action.has_open_time and not any(mu == d - 1 for mu, _ in steps):
            weight = action.c_g / 2 if x[-1] in (0, lattice[-1] - 1) else 1.0
        for mu, sign in steps:
            at = x if sign > 0 else ahead(x, mu, -1)
            link = links[(mu, *at)]
            if is_u1:
                product = product + sign * float(link)
            else:
                product = product @ (link if sign > 0 else link.mH)
            weight *= coefficient(mu, at)
            if action.has_open_time and mu == d - 1 and at[-1] == lattice[-1] - 1:
                weight = 0.0
            x = ahead(x, mu, sign)
        trace = math.cos(product) if is_u1 else float(product.trace().real) / action.group.n
        times = any(mu == d - 1 for mu, _ in steps)
        return weight * (action.anisotropy if times else 1 / action.anisotropy) * trace

    total = 0.0
    for x in itertools.product(*map(range, lattice)):
        for mu, nu in itertools.combinations(range(d), 2):
            m, n, back_m, back_n = (mu, 1), (nu, 1), (mu, -1), (nu, -1)
            total += action.c0 * walk(x, [m, n, back_m, back_n])
            total += action.c1 * walk(x, [m, m, n, back_m, back_m, back_n])
            total += action.c1 * walk(x, [m, n, n, back_m, back_n, back_n])
        for mu, nu, rho in itertools.combinations(range(d), 3) if action.c3 else ():
            # Four body diagonals, around each of which a hexagon runs.
            for s, t in itertools.product((1, -1), repeat=2):
                way = [(mu, 1), (nu, s), (rho, t)]
                total += action.c3 * walk(x, [*way, *((axis, -sign) for axis, sign in way)])
    return -action.beta * total


@pytest.mark.parametrize("action", ACTIONS, ids=repr)
def test_action_is_its_definition(action, rng):
    field = action.hot(1, rng)
    expected = by_hand(action, field[0])
    assert float(action(field)) == pytest.approx(expected, rel=1e-12)
    with torch_only():
        assert float(action(field)) == pytest.approx(expected, rel=1e-12)
    assert why_in_torch(action) is None
    check_action(action)
    again = build_action(theory_table(describe_theory(action)))
    assert torch.equal(again(field), action(field)) and again.settings == action.settings


def test_a_wrong_weight_is_caught(rng):
    action = ACTIONS[3]
    field = action.hot(1, rng)
    for change in ({"anisotropy": 1.9}, {"defect": 0.41}, {"c1": -0.21}):
        assert abs(float(action.at(**change)(field)) - by_hand(action, field[0])) > 1e-3


def test_without_rectangles_it_is_the_wilson_action(rng):
    for group, lattice in (("U(1)", [4, 3]), ("SU(3)", [2, 3, 2, 3])):
        action = ImprovedGauge(group, lattice, beta=2.3, c1=0.0)
        wilson = Wilson(group, lattice, beta=2.3)
        field = action.hot(2, rng)
        assert torch.equal(action(field), wilson(field))
        assert torch.equal(action.force(field), wilson.force(field))


@pytest.mark.parametrize("d", [2, 3, 4])
def test_weak_fields_have_the_energy_of_the_continuum(d):
    """Per site beta F^2/2 of a constant field strength, with whatever coefficients."""
    lattice = [24, 24, 2, 2][:d]
    strength = 2 * math.pi / 24**2
    actions = [kind("U(1)", lattice, beta=1.7) for kind in (Symanzik, Iwasaki, DBW2)]
    if d > 2:
        actions.append(ImprovedGauge("U(1)", lattice, beta=1.7, c1=-0.1, c3=0.3))
    for action in actions:
        field = action.cold(1)
        x = torch.arange(24.0, dtype=torch.float64)
        # One quantum of flux: constant plaquettes.
        field[:, 1] = strength * x.reshape(-1, *[1] * (d - 1))
        field[:, 0, -1] = -strength * 24 * x.reshape(-1, *[1] * (d - 2))
        energy = float(action(field) - action(action.cold(1))) / action.volume
        assert energy == pytest.approx(1.7 * strength**2 / 2, rel=1e-3)


def test_waves_are_improved_at_tree_level():
    """Of a wave of momentum k, S is k^2 (1 - k^2 / 12 + ...) without, and k^2 with improvement."""
    k = 2 * math.pi / 24
    x = torch.arange(24.0, dtype=torch.float64)
    for action, error in (
        (ImprovedGauge("U(1)", [24, 2], beta=1.0, c1=0.0), -(k**2) / 12),
        (Symanzik("U(1)", [24, 2], beta=1.0), 0.0),
    ):
        field = action.cold(1)
        field[:, 1] = 1e-4 * torch.sin(k * x)[:, None]
        energy = float(action.in_torch(field) - action.in_torch(action.cold(1))) / action.volume
        assert energy / (1e-8 * k**2 / 4) - 1 == pytest.approx(error, abs=k**4 / 40)


def test_coefficients_of_luescher_and_weisz():
    """Written out with the numbers of hep-lat/9507010, in terms of alpha = -4 ln(u0) / 3.0684."""
    u0 = 0.8677
    alpha = -4 * math.log(u0) / 3.0684
    action = LuescherWeisz("SU(3)", [2, 2, 2, 2], beta=7.3, u0=u0)
    assert action.c0 == 1
    assert action.c1 == pytest.approx(-(1 + 0.4805 * alpha) / (20 * u0**2), rel=1e-4)
    assert action.c3 == pytest.approx(-0.03325 * alpha / u0**2, rel=2e-3)
    tree = LuescherWeisz("SU(2)", [4, 4], beta=1.0, u0=1.0, one_loop=False)
    symanzik = Symanzik("SU(2)", [4, 4], beta=0.6)
    field = tree.hot(2, torch.Generator().manual_seed(1))
    assert torch.allclose(tree(field), symanzik(field), rtol=1e-14)


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"action": "iwasaki", "c1": -0.331}, "unknown key 'c1'"),
        ({"action": "improved"}, "missing key 'c1'"),
        ({"action": "improved", "c1": 0.0, "c3": 0.1}, "three directions"),
        ({"action": "dbw2", "anisotropy": 0.0}, "anisotropy"),
        ({"action": "symanzik", "defect": -1.0}, "defect"),
        ({"action": "symanzik", "defect_extents": [9]}, "defect_extents"),
        ({"action": "symanzik", "time_boundary": "closed"}, "time_boundary"),
        ({"action": "symanzik", "c_g": 1.1}, "c_g"),
        ({"action": "symanzik", "time_boundary": "open", "defect": 0.5}, "defect"),
        ({"action": "luescher_weisz", "u0": 0.9}, "SU\\(3\\) in four dimensions"),
        ({"action": "luescher_weisz", "u0": 0.0}, "u0"),
        ({"action": "luescher_weisz", "u0": 0.9, "one_loop": False, "flavors": 3}, "flavors"),
    ],
)
def test_refused_tables(table, message):
    with pytest.raises(ConfigError, match=message):
        build_action({"group": "U(1)", "lattice": [4, 4], "beta": 1.0, **table})


def test_an_open_lattice_ends(rng):
    """Nothing depends on the links that are not there, and what runs across them is refused."""
    for action in ACTIONS[-3:]:
        field, d = action.hot(2, rng), action.dimensions
        moved = field.clone()
        last = moved[:, d - 1].select(d, -1)
        last.copy_(action.group.haar(last.shape[:d], field.dtype, rng))
        assert torch.equal(action(moved), action(field))
        assert not action.force(field)[:, d - 1].select(d, -1).any()
        for name, options in (
            ("plaquette", {}),
            ("action", {}),
            ("wilson_loop", {"extents": (2, 1)}),
            ("polyakov_loop", {"axis": 0}),
        ):
            observable = functools.partial(resolve("observables", name), **options)
            assert torch.allclose(observable(moved, action), observable(field, action), atol=1e-14)
        cold = action.cold(1)
        assert float(plaquette(cold, action)) == pytest.approx(1, abs=1e-14)
        assert float(wilson_loop(cold, action, extents=(1, 2))) == pytest.approx(1, abs=1e-14)
        # Spatial plaquettes count on both ends by half: as in files of HiRep.
        if d == 4:
            array = field_to_file_order(field[0].numpy(), action)
            array[-1, ..., -1, :, :] = 0
            expected = measure_links(array).weighted_plaquette
            assert float(plaquette(field, action)[0]) == pytest.approx(expected, abs=1e-14)
        for name in (
            *("polyakov_loop", "topological_charge", "energy_density", "gradient_flow"),
            "plaquette_correlator",
        ):
            with pytest.raises(ConfigError, match="time, which is open"):
                options = {"flow_time": 0.1} if "flow" in name else {}
                resolve("observables", name)(field, action, **options)
        with pytest.raises(ConfigError, match="longer than the open lattice"):
            wilson_loop(field, action, extents=(1, 5))


def test_open_plaquettes_in_two_dimensions_are_independent(rng):
    """The exact mean I_1(beta) / I_0(beta) by HMC, from exact draws; 5.5 sigma."""
    action = ImprovedGauge("U(1)", [4, 5], beta=1.3, c1=0.0, time_boundary="open")
    kernel = HMC(action, steps=6)
    state, means = kernel.init(action.hot(400, rng)), []
    for update in range(40):
        state, _ = kernel.step(state, rng)
        if update >= 15:
            means.append(plaquette(state.field, action))
    assert_mean(torch.stack(means).mean(0), float(i1(1.3) / i0(1.3)))


# An independent Metropolis: all loops by enumeration, and the links one after the other, each with
# the sum of what closes the loops that it belongs to.


def loops_of(shape, d):
    """Every plaquette, rectangle or parallelogram as (direction, sign) steps."""
    planes = list(itertools.permutations(range(d), 2))
    if shape == "plaquette":
        return [[(m, 1), (n, 1), (m, -1), (n, -1)] for m, n in planes if m < n]
    if shape == "rectangle":
        return [[(m, 1), (m, 1), (n, 1), (m, -1), (m, -1), (n, -1)] for m, n in planes]
    ways = [
        [(m, 1), (n, s), (r, t)]
        for m, n, r in itertools.combinations(range(d), 3)
        for s, t in itertools.product((1, -1), repeat=2)
    ]
    return [[*way, *((axis, -sign) for axis, sign in way)] for way in ways]


def mean_trace(links, shape):
    """Mean of Re tr / N over all loops of a shape, per chain; links ``(chains, d, *L, N, N)``."""
    d, n = links.shape[1], links.shape[-1]
    total, count = 0.0, 0
    for steps in loops_of(shape, d):
        product, position = np.eye(n), [0] * d
        for mu, sign in steps:
            position[mu] -= sign < 0
            link = np.roll(links[:, mu], [-p for p in position], tuple(range(1, d + 1)))
            product = product @ (link if sign > 0 else np.conj(np.swapaxes(link, -1, -2)))
            position[mu] += sign > 0
        trace = np.trace(product, axis1=-2, axis2=-1).real / n
        total, count = total + trace.mean(tuple(range(1, d + 1))), count + 1
    return total / count


def near_one(rng, number, n, width):
    """SU(N), or U(1) for n = 1: exp of Gaussian antihermitian matrices, and as many inverses."""
    a = rng.normal(size=(number, n, n)) + 1j * rng.normal(size=(number, n, n))
    hermitian = width * (a + np.conj(np.swapaxes(a, -1, -2))) / 2
    if n > 1:
        hermitian -= np.trace(hermitian, axis1=-2, axis2=-1)[:, None, None] * np.eye(n) / n
    values, vectors = np.linalg.eigh(hermitian)
    phases = np.exp(1j * np.concatenate([values, -values]))[:, None, :]
    vectors = np.concatenate([vectors, vectors])
    return (vectors * phases) @ np.conj(np.swapaxes(vectors, -1, -2))


def open_loops(lattice, coefficients):
    """What remains of every loop without a link, for all links of a periodic lattice.

    Args:
        lattice: extents, each > 2: then no loop runs through a link twice.
        coefficients: by shape.

    Returns:
        ``(links, loops, 5)`` of +-(link + 1) in the order that closes the link, 0 behind the last
        step, and ``(loops,)`` the coefficients.
    """
    assert min(lattice) > 2
    d = len(lattice)
    sites = {x: k for k, x in enumerate(itertools.product(*map(range, lattice)))}
    found = [[] for _ in range(d * len(sites))]
    for shape, number in coefficients.items():
        for steps, start in itertools.product(loops_of(shape, d), sites):
            x, loop = list(start), []
            for mu, sign in steps:
                before = tuple(x)
                x[mu] = (x[mu] + sign) % lattice[mu]
                loop.append(sign * (mu * len(sites) + sites[before if sign > 0 else tuple(x)] + 1))
            for place, step in enumerate(loop):
                rest = loop[place + 1 :] + loop[:place]
                if step < 0:
                    rest = [-one for one in reversed(rest)]
                found[abs(step) - 1].append((number, rest + [0] * (5 - len(rest))))
    numbers = np.array([number for number, _ in found[0]])
    return np.array([[rest for _, rest in one] for one in found]), numbers


@numba.njit
def sweep(links, rests, numbers, moves, choices, thresholds, beta):  # pragma: no cover
    """Metropolis in every chain for every link, by moves that are drawn from a symmetric set.

    Args:
        links: ``(chains, links, N, N)``, changed in place.
        rests, numbers: of :func:`open_loops`.
        moves: ``(number, N, N)``.
        choices: of moves, ``(chains, links, proposals)``.
        thresholds: of the tests, likewise.
        beta: coupling.
    """
    n = links.shape[-1]
    memory = np.empty((3, n, n), np.complex128)
    one, other, closing = memory[0], memory[1], memory[2]
    for number in range(links.shape[0]):
        chain = links[number]
        for link in range(links.shape[1]):
            for i in range(n):
                for j in range(n):
                    closing[i, j] = 0
            for loop in range(len(numbers)):
                for i in range(n):
                    for j in range(n):
                        one[i, j] = i == j
                for place in range(5):
                    step = rests[link, loop, place]
                    if step == 0:
                        break
                    u = chain[abs(step) - 1]
                    for i in range(n):
                        for j in range(n):
                            other[i, j] = 0
                            for k in range(n):
                                # Backwards along a link: its inverse.
                                factor = u[k, j] if step > 0 else np.conj(u[j, k])
                                other[i, j] += one[i, k] * factor
                    one, other = other, one
                for i in range(n):
                    for j in range(n):
                        closing[i, j] += numbers[loop] * one[i, j]
            for hit in range(choices.shape[2]):
                move = moves[choices[number, link, hit]]
                change = 0.0
                for i in range(n):
                    for j in range(n):
                        other[i, j] = 0
                        for k in range(n):
                            other[i, j] += move[i, k] * chain[link, k, j]
                        change -= (
                            beta / n * ((other[i, j] - chain[link, i, j]) * closing[j, i]).real
                        )
                if thresholds[number, link, hit] < np.exp(-change):
                    for i in range(n):
                        for j in range(n):
                            chain[link, i, j] = other[i, j]


def metropolis(action, chains, sweeps, width, seed):
    """Means of plaquette and rectangle per chain, over the second half of the sweeps."""
    rng = np.random.default_rng(seed)
    d, lattice, n = action.dimensions, action.lattice, getattr(action.group, "n", 1)
    shapes = {"plaquette": action.c0, "rectangle": action.c1, "parallelogram": action.c3}
    table = open_loops(lattice, {shape: number for shape, number in shapes.items() if number})
    links = np.empty((chains, d * math.prod(lattice), n, n), complex)
    links[:] = np.eye(n)
    means = []
    for number in range(sweeps):
        moves = near_one(rng, 500, n, width)
        draws = (*links.shape[:2], 10)
        choices = rng.integers(len(moves), size=draws)
        sweep(links, *table, moves, choices, rng.random(draws), action.beta)
        if number >= sweeps // 2:
            field = links.reshape(chains, d, *lattice, n, n)
            means.append([mean_trace(field, shape) for shape in ("plaquette", "rectangle")])
    return np.mean(means, axis=0)


def by_hmc(action, chains, updates, steps):
    rng = torch.Generator().manual_seed(4)
    kernel = HMC(action, trajectory=1.0, steps=steps)
    state, means = kernel.init(action.hot(chains, rng)), []
    for update in range(updates):
        state, _ = kernel.step(state, rng)
        if update >= updates // 2:
            links = state.field.numpy()
            if not np.iscomplexobj(links):
                links = np.exp(1j * links)[..., None, None]
            means.append([mean_trace(links, shape) for shape in ("plaquette", "rectangle")])
    return np.mean(means, axis=0)


# Chains and sweeps of the Metropolis, the width of its moves, and chains and updates of HMC.
METROPOLIS = [
    (Iwasaki("U(1)", [3, 4], beta=0.8), (200, 20, 0.9), (400, 40)),
    *(
        pytest.param(*case, marks=pytest.mark.slow)
        for case in (
            (DBW2("SU(2)", [3, 3], beta=0.6), (200, 100, 0.5), (300, 300)),
            (
                ImprovedGauge("SU(2)", [3, 3, 3], beta=1.5, c1=-0.1, c3=-0.08),
                (60, 100, 0.6),
                (60, 200),
            ),
            (Symanzik("SU(3)", [3, 3, 3, 3], beta=3.6), (10, 120, 0.35), (12, 150)),
            (LuescherWeisz("SU(3)", [3, 3, 3, 3], beta=6.5, u0=0.85), (10, 120, 0.35), (12, 150)),
        )
    ),
]


@pytest.mark.parametrize(("action", "theirs", "ours"), METROPOLIS)
def test_means_are_those_of_an_own_metropolis(action, theirs, ours):
    """Two means with chains as independent draws; a false alarm each of 4e-8 (Welch's t-test)."""
    pairs = zip(metropolis(action, *theirs, 11), by_hmc(action, *ours, 10), strict=True)
    for one, other in pairs:
        assert ttest_ind(one, other, equal_var=False).pvalue > 4e-8
        assert math.sqrt(one.var(ddof=1) / len(one) + other.var(ddof=1) / len(other)) < 0.01


def test_a_wrong_rectangle_is_caught_by_the_metropolis():
    action, theirs, ours = METROPOLIS[0]
    wrong = ImprovedGauge(action.group, action.lattice, beta=0.8, c0=action.c0, c1=-0.2)
    pairs = zip(metropolis(action, *theirs, 11), by_hmc(wrong, *ours, 10), strict=True)
    assert all(ttest_ind(one, other, equal_var=False).pvalue < 4e-8 for one, other in pairs)
