"""Native gauge kernels against the torch path, itself tested against finite differences."""

import pytest
import torch

from flowmc.actions import DefectWilson, Wilson, check_force
from flowmc.kernels.integrators import trajectory
from flowmc.native import find_action, find_force, find_projection, find_trajectory
from flowmc.observables import action_density, plaquette
from flowmc.splitting import INTEGRATORS

# (lattice, chains): lanes filled by chains, by cuts, by both, with padding; odd extents, extents
# of 2 (where both neighbours coincide), unequal, two to five dimensions.
CASES = [
    ((4, 4, 4, 4), 1),
    ((2, 3, 4, 2), 3),
    ((3, 3), 1),
    ((2, 2), 9),
    ((5, 4), 2),
    ((4, 2, 6), 1),
    ((3, 2, 5), 17),
    ((2, 2, 2, 3, 2), 1),
]
GROUPS = ["U(1)", "SU(2)", "SU(3)"]
PLAIN = [name for name in INTEGRATORS if name != "force_gradient"]
TOLERANCE = {torch.float64: 2e-14, torch.float32: 2e-5}


# As the cases above: (axis, extents of the box), inside and at the rim of the sublattices.
PLACES = {
    (4, 4, 4, 4): (3, (3, 2, 4)),
    (2, 3, 4, 2): (0, (2, 4, 1)),
    (3, 3): (1, (3,)),
    (2, 2): (0, (1,)),
    (5, 4): (1, (4,)),
    (4, 2, 6): (2, (3, 2)),
    (3, 2, 5): (1, (2, 3)),
    (2, 2, 2, 3, 2): (4, (1, 2, 2, 2)),
}


def draw(action, chains, dtype, seed=0):
    rng = torch.Generator().manual_seed(seed)
    field = action.hot(chains, rng)
    momentum = action.group.draw_algebra(field, rng)
    step_size = 0.02 + 0.05 * torch.rand(chains, dtype=torch.float64, generator=rng)
    kind = action.group.field_dtype(dtype)
    return field.to(kind), momentum.to(kind), step_size


def in_torch(action, field, momentum, integrator, step_size, steps):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FLOWMC_NATIVE", "0")
        return trajectory(action, action.group, field, momentum, integrator, step_size, steps)


def cases(shift):
    """Every group on every lattice with one scheme, all schemes on every lattice.

    Kernels read the operations of a scheme as data.
    """
    return [
        (group, *case, PLAIN[(g + c + shift) % len(PLAIN)])
        for g, group in enumerate(GROUPS)
        for c, case in enumerate(CASES)
    ]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("group", "lattice", "chains", "scheme"), cases(0))
def test_agrees_with_torch(group, lattice, chains, scheme, dtype):
    check_agreement(Wilson(group, lattice, beta=2.3), chains, dtype, scheme)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("group", "lattice", "chains", "scheme", "defect"),
    [(*case, defect) for shift, defect in enumerate((0.0, 0.7), 1) for case in cases(shift)],
)
def test_agrees_with_torch_with_a_defect(group, lattice, chains, scheme, dtype, defect):
    axis, extents = PLACES[lattice]
    action = DefectWilson(
        group, lattice, beta=2.3, defect=defect, defect_axis=axis, defect_extents=extents
    )
    check_agreement(action, chains, dtype, scheme)
    # A defect elsewhere is caught.
    field, _, _ = draw(action, chains, dtype)
    expected = action.force_in_torch(field)
    other = action.at(defect=defect + 0.1)
    assert (find_force(other, field)(field) - expected).abs().max() > 1e-4
    assert (find_action(other, field)(field) - action.in_torch(field)).abs().max() > 1e-4


def check_agreement(action, chains, dtype, scheme):
    integrator = INTEGRATORS[scheme]
    field, momentum, step_size = draw(action, chains, dtype)
    run = find_trajectory(action, field, integrator)
    ours = run(field, momentum, step_size, 4)
    theirs = in_torch(action, field, momentum, integrator, step_size, 4)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == field.dtype and a.shape == b.shape
        assert (a - b).abs().max() < TOLERANCE[dtype] * b.abs().max()
    force = action.force_in_torch(field)
    difference = (find_force(action, field)(field) - force).abs().max()
    assert difference < TOLERANCE[dtype] * force.abs().max()
    value = find_action(action, field)(field)
    assert value.dtype == torch.float64 and value.shape == (chains,)
    scale = action.beta * 10 * action.volume
    assert (value - action.in_torch(field)).abs().max() < TOLERANCE[dtype] * scale


@pytest.mark.parametrize("group", GROUPS)
def test_without_a_defect_it_is_the_wilson_action(group):
    action = DefectWilson(group, (4, 3, 4), beta=2.3, defect=1.0, defect_extents=(2, 2))
    plain = Wilson(group, (4, 3, 4), beta=2.3)
    field, momentum, step_size = draw(action, 3, torch.float64)
    leapfrog = INTEGRATORS["leapfrog"]
    ours, theirs = (
        find_trajectory(a, field, leapfrog)(field, momentum, step_size, 3) for a in (action, plain)
    )
    assert torch.equal(ours[0], theirs[0]) and torch.equal(ours[1], theirs[1])
    assert torch.equal(find_action(action, field)(field), find_action(plain, field)(field))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("group", GROUPS)
def test_measured_action_and_plaquette(group, dtype, monkeypatch):
    """What a run measures after every update; the plaquette knows of no defect."""
    action = DefectWilson(group, (4, 3, 4), beta=2.3, defect=0.4, defect_extents=(2, 2))
    field, _, _ = draw(action, 3, dtype)
    ours = action_density(field, action), plaquette(field, action)
    monkeypatch.setenv("FLOWMC_NATIVE", "0")
    theirs = action_density(field, action), plaquette(field, action)
    for a, b in zip(ours, theirs, strict=True):
        assert a.dtype == torch.float64 and a.shape == (3,)
        assert (a - b).abs().max() < 0.1 * TOLERANCE[dtype] * action.beta * 10


@pytest.mark.parametrize("group", GROUPS)
def test_force_is_the_derivative_of_the_action(group):
    class Native(Wilson):
        def __call__(self, field):
            return find_action(exact, field)(field)

        def force(self, field):
            return find_force(exact, field)(field)

    exact = Wilson(group, (3, 4, 2), beta=1.7)
    rng = torch.Generator().manual_seed(4)
    assert check_force(Native(group, (3, 4, 2), beta=1.7), exact.hot(3, rng), rng) < 1e-8


@pytest.mark.parametrize("group", GROUPS)
def test_reversible_and_on_the_group(group):
    action = Wilson(group, (4, 4, 2, 3), beta=5.5)
    field, momentum, step_size = draw(action, 2, torch.float64)
    run = find_trajectory(action, field, INTEGRATORS["omelyan2"])
    there, final = run(field, momentum, step_size, 15)
    back, returned = run(there, -final, step_size, 15)
    assert (back - field).abs().max() < 1e-13
    assert (returned + momentum).abs().max() < 1e-12
    if group != "U(1)":
        unit = torch.eye(action.group.n, dtype=there.dtype)
        assert (there @ there.mH - unit).abs().max() < 5e-15
        assert (torch.linalg.det(there) - 1).abs().max() < 5e-15
    # The energy is conserved to the order of the step, which no wrong force would do.
    before = action(field) + action.group.kinetic_energy(momentum)
    after = action(there) + action.group.kinetic_energy(final)
    assert (after - before).abs().max() < 0.05 * action(field).abs().max()
    assert (there - field).abs().mean() > 0.05


def test_large_momenta_are_moved_exactly():
    action = Wilson("SU(3)", (2, 2), beta=1.0)
    rng = torch.Generator().manual_seed(1)
    field = action.hot(1, rng)
    # Mixed norms side by side in the lanes, up to ten squarings of the exponential.
    sizes = torch.logspace(-6, 2.5, 8, dtype=torch.float64).reshape(1, 2, 2, 2, 1, 1)
    momentum = sizes * action.group.draw_algebra(field, rng)
    drift = INTEGRATORS["leapfrog"].__class__("drift", 1, (("drift", 1.0),))
    moved, _ = find_trajectory(action, field, drift)(field, momentum, torch.ones(1), 1)
    exact = torch.linalg.matrix_exp(momentum) @ field
    assert ((moved - exact).abs() / (1 + sizes)).max() < 2e-14


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 1e200])
def test_divergence_ends_and_stays_in_its_chain(bad):
    action = Wilson("SU(3)", (2, 3), beta=1.0)
    field, momentum, step_size = draw(action, 3, torch.float64)
    run = find_trajectory(action, field, INTEGRATORS["leapfrog"])
    expected = run(field, momentum, step_size, 3)
    momentum[1, 0, 0, 0] *= bad
    links, momenta = run(field, momentum, step_size, 3)
    for chain in (0, 2):
        assert torch.equal(links[chain], expected[0][chain])
        assert torch.equal(momenta[chain], expected[1][chain])
    energy = action(links) + action.group.kinetic_energy(momenta)
    assert not energy[1] < 1e100


# From on the group to far away, where torch takes over.
@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-5, 1e-2, 0.1])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_projection(dtype, size):
    action = Wilson("SU(3)", (3, 4), beta=1.0)
    rng = torch.Generator().manual_seed(2)
    field = action.hot(3, rng)
    noise = torch.randn(field.shape, dtype=field.dtype, generator=rng)
    kind = action.group.field_dtype(dtype)
    drifted = (field + size * noise).to(kind)
    projected = find_projection(action, drifted)(drifted)
    assert projected.dtype == kind
    expected = action.group.project(drifted)
    scale = expected.abs().max()
    assert (projected - expected).abs().max() <= (1e-14 if dtype == torch.float64 else 2e-6) * scale
    if size < 1e-4:
        unit = torch.eye(3, dtype=kind)
        error = 3e-15 if dtype == torch.float64 else 2e-6
        assert (projected @ projected.mH - unit).abs().max() < error
        assert (torch.linalg.det(projected) - 1).abs().max() < error
