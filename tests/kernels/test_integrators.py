import functools

import pytest
import torch

from flowmc.actions import FreeScalar, Phi4, Wilson
from flowmc.kernels import HMC, INTEGRATORS
from flowmc.kernels.integrators import trajectory

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
