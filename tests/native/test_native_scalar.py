"""Native scalar kernels against the torch path, itself tested against finite differences."""

import pytest
import torch

from flowmc.actions import DoubleWell, FreeScalar, Phi4
from flowmc.kernels.integrators import trajectory
from flowmc.native import find_action, find_force, find_trajectory
from flowmc.splitting import INTEGRATORS

# (lattice, chains): lanes filled by chains, by cuts of one to four axes, by both, with padding;
# odd extents, extents of 2, one dimension, unequal.
CASES = [
    ((8, 8), 16),
    ((8, 8), 1),
    ((6, 4), 3),
    ((5, 7), 1),
    ((5, 7), 19),
    ((2, 2), 2),
    ((12,), 1),
    ((3,), 9),
    ((3, 2, 4), 2),
    ((4, 2, 6, 2), 1),
    ((3, 5, 2, 3), 5),
    ((2, 3, 4, 2, 2), 1),
]
ACTIONS = {
    "m2": lambda lattice: Phi4(lattice, m2=-0.7, lam=0.9),
    "kappa": lambda lattice: Phi4(lattice, kappa=0.21, lam=0.4),
    "free": lambda lattice: FreeScalar(lattice, m2=0.3),
    "double_well": lambda lattice: DoubleWell(lattice, m0=2.75, spacing=0.5),
}
PLAIN = [name for name in INTEGRATORS if name != "force_gradient"]
TOLERANCE = {torch.float64: 1e-13, torch.float32: 2e-5}


def draw(action, chains, dtype, seed=0):
    rng = torch.Generator().manual_seed(seed)
    shape = action.field_shape(chains)
    field = torch.randn(shape, dtype=torch.float64, generator=rng).to(dtype)
    momentum = torch.randn(shape, dtype=torch.float64, generator=rng).to(dtype)
    step_size = 0.02 + 0.03 * torch.rand(chains, dtype=torch.float64, generator=rng)
    return field, momentum, step_size


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("name", "lattice", "chains", "scheme"),
    [
        # Kernels read the operations of a scheme as data: one each, and all on every lattice.
        (name, *case, PLAIN[(n + c) % len(PLAIN)])
        for n, name in enumerate(ACTIONS)
        for c, case in enumerate(CASES)
        if name != "double_well" or len(case[0]) == 1
    ],
)
def test_agrees_with_torch(name, lattice, chains, scheme, dtype):
    action, integrator = ACTIONS[name](lattice), INTEGRATORS[scheme]
    field, momentum, step_size = draw(action, chains, dtype)
    run = find_trajectory(action, field, integrator)
    ours = run(field, momentum, step_size, 4)
    theirs = trajectory_in_torch(action, field, momentum, integrator, step_size, 4)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == dtype and a.shape == b.shape
        assert (a - b).abs().max() < TOLERANCE[dtype] * b.abs().max()
    force = find_force(action, field)(field)
    torch.testing.assert_close(
        force, action.force_in_torch(field), rtol=0, atol=TOLERANCE[dtype] * 20
    )
    value = find_action(action, field)(field)
    assert value.dtype == torch.float64
    scale = action.volume * field.square().mean()
    assert (value - action.in_torch(field)).abs().max() < TOLERANCE[dtype] * 10 * scale


def trajectory_in_torch(action, field, momentum, integrator, step_size, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWMC_NATIVE", "0")
        return trajectory(action, action.group, field, momentum, integrator, step_size, steps)
