import functools

import pytest
import torch

from flowmc.actions import Action, FreeScalar, ImprovedGauge, Iwasaki, Phi4, Wilson
from flowmc.kernels import HMC, INTEGRATORS
from flowmc.kernels.integrators import nested_trajectory, trajectory
from flowmc.native import torch_only
from flowmc.registry import ConfigError
from flowmc.splitting import nested

THEORIES = [
    Phi4([4, 4], m2=-4.0, lam=6.0),
    Phi4([6], kappa=0.2, lam=0.5),
    Wilson("U(1)", [4, 3], beta=2.0),
    Wilson("SU(2)", [2, 4], beta=2.2),
    Wilson("SU(3)", [2, 2, 3], beta=5.7),
    Wilson("SU(4)", [2, 3], beta=8.0),
]


@functools.cache
def thermalised(number, chains=8):
    """Return fields of a theory of the list, the same for all integrators."""
    action, rng = THEORIES[number], torch.Generator().manual_seed(1)
    kernel = HMC(action, steps=16)
    state = kernel.init(action.hot(chains, rng))
    for _ in range(20):
        state, _ = kernel.step(state, rng)
    return state.field


def energy_error(action, field, momentum, integrator, length, steps):
    group = action.group
    step_size = torch.full((field.shape[0],), length / steps, dtype=torch.float64)
    end, end_momentum = trajectory(action, group, field, momentum, integrator, step_size, steps)
    before = action(field) + group.kinetic_energy(momentum)
    return (action(end) + group.kinetic_energy(end_momentum) - before).abs().mean().item()


@pytest.mark.parametrize("integrator", INTEGRATORS.values(), ids=lambda i: i.name)
@pytest.mark.parametrize("number", range(len(THEORIES)), ids=[repr(one) for one in THEORIES])
def test_energy_error_scales_with_the_order(number, integrator, rng):
    action, field = THEORIES[number], thermalised(number)
    momentum = action.group.draw_algebra(field, rng)
    coarse, fine = (
        energy_error(action, field, momentum, integrator, 0.4, steps) for steps in (24, 48)
    )
    ratio = coarse / fine
    # 2^order asymptotically; corrections of relative order step_size^2 are allowed for.
    assert 2**integrator.order * 0.8 < ratio < 2**integrator.order * 1.35


@pytest.mark.parametrize("integrator", INTEGRATORS.values(), ids=lambda i: i.name)
@pytest.mark.parametrize("number", range(len(THEORIES)), ids=[repr(one) for one in THEORIES])
def test_trajectories_are_reversible(number, integrator, rng):
    action, field = THEORIES[number], thermalised(number)
    group = action.group
    momentum = group.draw_algebra(field, rng)
    step_size = torch.full((field.shape[0],), 0.05, dtype=torch.float64)
    end, end_momentum = trajectory(action, group, field, momentum, integrator, step_size, 10)
    back, back_momentum = trajectory(action, group, end, -end_momentum, integrator, step_size, 10)
    assert group.distance(back, field).max() < 1e-12
    assert (back_momentum + momentum).abs().max() < 1e-11


@pytest.mark.parametrize("integrator", INTEGRATORS.values(), ids=lambda i: i.name)
def test_harmonic_orbit(integrator):
    """One free mode rotates in phase space: phi'' = -omega^2 phi, omega^2 = 2 m2 at p = 0."""
    action = FreeScalar([2], m2=0.5)
    field = torch.full((1, 2), 0.3, dtype=torch.float64)
    momentum = torch.full((1, 2), -0.2, dtype=torch.float64)
    steps = 400
    step_size = torch.tensor([1.0 / steps], dtype=torch.float64)
    end, end_momentum = trajectory(
        action, action.group, field, momentum, integrator, step_size, steps
    )
    time = torch.tensor(1.0, dtype=torch.float64)
    assert (end - (0.3 * torch.cos(time) - 0.2 * torch.sin(time))).abs().max() < 2e-6
    assert (end_momentum - (-0.3 * torch.sin(time) - 0.2 * torch.cos(time))).abs().max() < 2e-6


def test_end_kicks_are_merged():
    calls = 0

    class Counting(FreeScalar):
        def force(self, field):
            nonlocal calls
            calls += 1
            return super().force(field)

    action = Counting([4], m2=1.0)
    field = torch.zeros(1, 4, dtype=torch.float64)
    for integrator in INTEGRATORS.values():
        calls = 0
        trajectory(action, action.group, field, field, integrator, torch.full((1,), 0.1), 10)
        assert calls == 10 * integrator.forces_per_step + 1


IMPROVED = ImprovedGauge("SU(3)", [2, 2, 3], beta=5.0, c1=-0.1, c3=0.05, defect=0.5)
# Outermost first; the names of the schemes, and steps.
NESTINGS = [
    (("leapfrog", "leapfrog"), 2),
    (("omelyan2", "leapfrog", "omelyan2"), 2),
    (("omelyan4", "omelyan4"), 4),
    (("force_gradient", "omelyan4"), 4),
]


def levels_of(action, schemes, steps, inner=2):
    """Rectangles on the longest steps."""
    parts = list(reversed(action.parts().values()))
    parts = [*parts[: len(schemes) - 1], sum_of(parts[len(schemes) - 1 :])]
    counts = [steps, *[inner] * (len(parts) - 1)]
    integrators = [INTEGRATORS[name] for name in schemes]
    return list(zip(parts, integrators, counts, strict=True))


def sum_of(actions):
    total = actions[0]
    for action in actions[1:]:
        total = total + action
    return total


@pytest.mark.parametrize(("schemes", "order"), NESTINGS)
def test_nested_integrators(schemes, order, rng):
    """Reversible, of the order of their schemes, and compiled code does what torch does."""
    action, group = IMPROVED, IMPROVED.group
    field = thermalised_of(action)
    momentum = group.draw_algebra(field, rng)

    def run(field, momentum, steps, length=0.4):
        step_size = torch.full((len(field),), length / steps, dtype=torch.float64)
        levels = levels_of(action, schemes, steps)
        return nested_trajectory(levels, group, field, momentum, step_size)

    errors = []
    for steps in (8, 16):
        end, end_momentum = run(field, momentum, steps)
        after = action(end) + group.kinetic_energy(end_momentum)
        errors.append((after - action(field) - group.kinetic_energy(momentum)).abs().mean().item())
    assert 2**order * 0.7 < errors[0] / errors[1] < 2**order * 1.4
    back, back_momentum = run(end, -end_momentum, 16)
    assert group.distance(back, field).max() < 1e-12
    assert (back_momentum + momentum).abs().max() < 1e-11
    end, end_momentum = run(field, momentum, 4)
    with torch_only():
        plain, plain_momentum = run(field, momentum, 4)
    assert group.distance(plain, end).max() < 1e-12
    assert (plain_momentum - end_momentum).abs().max() < 1e-11


@functools.cache
def thermalised_of(action):
    rng = torch.Generator().manual_seed(2)
    kernel = HMC(action, steps=16)
    state = kernel.init(action.hot(4, rng))
    for _ in range(10):
        state, _ = kernel.step(state, rng)
    return state.field


def test_a_nested_scheme_counts_its_forces():
    leapfrog = INTEGRATORS["leapfrog"]
    operations = nested([(leapfrog, 2), (leapfrog, 3)])
    kicks = [level for level, operation in operations if operation[0] == "kick"]
    # Two steps: three kicks outside, and 3 + 1 in each drift inside.
    assert kicks.count(0) == 3 and kicks.count(1) == 8
    assert sum(o[1] for _, o in operations if o[0] == "drift") == pytest.approx(2)
    for level in (0, 1):
        total = sum(o[1] for at, o in operations if o[0] == "kick" and at == level)
        assert total == pytest.approx(2)
    assert [(n, o[0], round(o[1], 12)) for n, o in operations] == [
        (n, o[0], round(o[1], 12)) for n, o in reversed(operations)
    ]


class WithTorch(Action):
    """A term that only torch computes."""

    name = "with_torch"

    def __init__(self, group, lattice, *, beta):
        self.inside = Wilson(group, lattice, beta=beta)
        self.group, self.lattice = self.inside.group, self.inside.lattice
        self.parameters = {"beta": beta}

    def __call__(self, field):
        return self.inside.in_torch(field)


def test_levels_of_sums(rng):
    """Parts of any action, also one that is not compiled; names are told apart."""
    gauge, other = Iwasaki("U(1)", [4, 4], beta=1.0), Wilson("U(1)", [4, 4], beta=0.2)
    action = gauge + other + 2.0 * other + WithTorch("U(1)", [4, 4], beta=0.3)
    assert list(action.parts()) == ["plaquettes", "rectangles", "wilson", "scaled", "with_torch"]
    assert list((other + other).parts()) == ["wilson", "wilson_2"]
    inner = [{"terms": ["wilson", "rectangles"]}, {"terms": ["plaquettes", "scaled"], "steps": 2}]
    errors = []
    for steps in (4, 8):
        kernel = HMC(action, steps=steps, inner=inner, jitter=0.0, check_reversibility=1.0)
        field = action.hot(50, torch.Generator().manual_seed(3))
        _, info = kernel.step(kernel.init(field), torch.Generator().manual_seed(4))
        assert info.values["reversibility_violation"].max() < 1e-12
        errors.append(info.values["energy_error"].abs().mean().item())
    assert 3 < errors[0] / errors[1] < 5.5


@pytest.mark.parametrize(
    ("inner", "message"),
    [
        ([{"terms": ["plaquette"]}], "no part 'plaquette'.*did you mean 'plaquettes'"),
        ([{"terms": ["plaquettes"]}, {"terms": ["plaquettes"]}], r"inner\[1\].*another level"),
        ([{"terms": ["plaquettes", "rectangles"]}], "all parts"),
        ([{"terms": []}], "terms = \\[\\]"),
        ([{"terms": ["plaquettes"], "steps": 0}], "steps = 0"),
        ([{"terms": ["plaquettes"], "integrator": "leap"}], "did you mean 'leapfrog'"),
    ],
)
def test_levels_that_make_no_sense_are_refused(inner, message):
    with pytest.raises(ConfigError, match=message):
        HMC(Iwasaki("U(1)", [4, 4], beta=1.0), inner=inner)
