"""Compiled continuous flows against torch, and against their own definition."""

import itertools

import pytest
import torch

from flowmc.actions import Phi4
from flowmc.flows import ContinuousFlow
from flowmc.flows.parts.runge_kutta import TABLEAUS
from flowmc.flows.scalar.site_tables import TabulatedMap, build_tables, make_plan, spacing_for
from flowmc.native.continuous import row_length


def make(lattice, integrator="rk4", steps=6, dtype=torch.float32, size=0.5, reach=None):
    torch.manual_seed(5)
    flow = ContinuousFlow(
        Phi4(lattice, m2=-4.0, lam=6.0),
        frequencies=9,
        site_channels=5,
        time_frequencies=2,
        time_channels=3,
        integrator=integrator,
        steps=steps,
        reach=reach,
    ).to(dtype)
    # A site alone, with all of the size to itself, would be driven as no trained flow drives it.
    sites = max(9, int(flow.spectrum.multiplicity.sum()))
    torch.nn.init.normal_(flow.kernels, std=size / sites)
    return flow


def evaluate(flow, x, back=False):
    """Return field, log-density and the gradients of a random function of both."""
    torch.manual_seed(6)
    x = x.clone().requires_grad_(True)
    run = flow.inverse if back else flow.forward
    y, log_density = run(x, torch.zeros(len(x), dtype=torch.float64))
    loss = (torch.randn(y.shape) * y).sum() + (torch.randn(len(x)) * log_density).sum()
    gradients = torch.autograd.grad(loss, [x, *flow.parameters()])
    return y.detach(), log_density.detach(), gradients


def differences(found, expected):
    """Return the largest of field and log-density, and the largest relative one of gradients."""
    (y, log_density, gradients), (z, other, others) = found, expected
    return (
        float((y - z).abs().max()),
        float((log_density - other).abs().max()),
        max(float((a - b).norm() / b.norm()) for a, b in zip(gradients, others, strict=True)),
    )


WHOLE = [[2, 2], [4, 4], [4, 3], [5, 6], [16, 4], [2, 18]]
CUT = [([4, 4], 1), ([5, 9], 3), ([16, 4], 0), ([7, 7], 2), ([6, 6], 3)]


@pytest.mark.parametrize("back", [False, True])
@pytest.mark.parametrize("integrator", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize("lattice, reach", [*[(lattice, None) for lattice in WHOLE], *CUT])
def test_agrees_with_torch(lattice, reach, integrator, back, monkeypatch):
    flow, x = make(lattice, integrator, reach=reach), torch.randn(5, *lattice)
    found = evaluate(flow, x, back)
    monkeypatch.setenv("FLOWMC_NATIVE", "0")
    expected = evaluate(flow, x, back)
    assert float((expected[0] - x).abs().max()) > 0.05
    field, density, gradient = differences(found, expected)
    assert field < 1e-5 and density < 1e-4 and gradient < 1e-4
    # Of the order of rounding, which is larger for a curvature from values h = 1/16 apart.
    exact = evaluate(flow.double(), x.double(), back)
    ours, theirs = differences(found, exact), differences(expected, exact)
    margins = 1e-6, 5e-6, 2e-5
    assert all(a < 5 * b + c for a, b, c in zip(ours, theirs, margins, strict=True))


@pytest.mark.parametrize("integrator", ["euler", "midpoint", "rk4"])
@pytest.mark.parametrize("reach", [None, 1])
def test_forces_agree_with_torch(reach, integrator, monkeypatch):
    flow = make([5, 6], integrator, reach=reach)
    x, force = torch.randn(7, 5, 6), torch.randn(7, 5, 6)
    zero = torch.zeros(7, dtype=torch.float64)
    found = flow.forward_with_force(x, zero, force)
    plain = flow.forward(x, zero)
    assert all(torch.equal(a, b) for a, b in zip(found, plain, strict=False))
    monkeypatch.setenv("FLOWMC_NATIVE", "0")
    expected = flow.forward_with_force(x, zero, force)[2]
    assert float((expected - force).abs().max()) > 0.05 and not found[2].requires_grad
    assert float((found[2] - expected).abs().max()) < 2e-5


def tabulated(flow, x, spacing, largest=8.0):
    step, orbit = 1 / flow.steps, flow.spectrum.quadrant()
    plan, times = make_plan(TABLEAUS[flow.integrator], flow.steps, step, orbit, spacing)
    kernels = flow._kernels(step * times.to(flow.kernels))
    tables = build_tables(flow.frequencies, flow.site_mixing, kernels, orbit, spacing, largest)
    return TabulatedMap.apply(x, None, tables, plan, True)[:2]


@pytest.mark.slow
def test_the_interpolation_has_the_stated_order():
    """Of the velocity's slope, and so of the log-density: five; fields are better."""
    flow, x = make([4, 6], dtype=torch.float64), torch.randn(8, 4, 6, dtype=torch.float64)
    _, exact = flow.forward(x, torch.zeros(8, dtype=torch.float64))
    errors = [
        float((tabulated(flow, x, spacing)[1] + exact).detach().abs().max())
        for spacing in (1 / 4, 1 / 8, 1 / 16)
    ]
    assert errors[-1] < 1e-5
    for coarse, fine in itertools.pairwise(errors):
        assert 2**4 < coarse / fine < 2**7


def test_the_gradient_is_that_of_the_map():
    """By finite differences, with coarse tables: of fields and of every number in a table."""
    torch.manual_seed(7)
    plan, times = make_plan(TABLEAUS["midpoint"], 2, 0.5, make([3, 2]).spectrum.quadrant(), 0.5)
    functions = 2 * row_length(1, torch.float64)
    tables = 0.3 * torch.randn(len(times), 9, 3, functions, dtype=torch.float64)
    tables[:, 0, ::2] = 0  # odd functions
    fields = torch.randn(2, 3, 2, dtype=torch.float64)

    def run(fields, tables):
        # What a table has at zero is fixed by oddness.
        free = torch.cat([tables[:, :1] * torch.tensor([0.0, 1, 0])[:, None], tables[:, 1:]], 1)
        return TabulatedMap.apply(fields, None, free, plan, True)[:2]

    fields.requires_grad_(True)
    tables.requires_grad_(True)
    assert torch.autograd.gradcheck(run, (fields, tables), eps=1e-6, atol=1e-7, rtol=1e-5)


@pytest.mark.parametrize("size", [7.99, 8.0, 15.0, 60.0, 1e3])
def test_large_fields_are_mapped_like_others(size, monkeypatch):
    flow, x = make([4, 4]), torch.randn(3, 4, 4)
    x[1, 2, 3] = -size
    found = evaluate(flow, x)
    monkeypatch.setenv("FLOWMC_NATIVE", "0")
    field, density, gradient = differences(found, evaluate(flow, x))
    # Phases omega phi are rounded: this is the precision of torch there, too.
    assert field < 1e-5 * size and density < 1e-3 * max(1, size / 100)
    assert gradient < 1e-3 * max(1, size / 10)


def test_what_is_not_finite_stays_so():
    flow, x = make([4, 4]), torch.randn(3, 4, 4)
    x[1, 2, 3] = torch.nan
    with torch.no_grad():
        y, _ = flow.forward(x, torch.zeros(3, dtype=torch.float64))
    assert not torch.isfinite(y[1]).all()
    with torch.no_grad():
        flow.frequencies[0] = torch.nan
        y, _ = flow.forward(torch.randn(3, 4, 4), torch.zeros(3, dtype=torch.float64))
    assert not torch.isfinite(y).any()


def test_the_same_bits_for_any_number_of_threads_and_in_any_batch():
    flow, x = make([6, 8], steps=20), torch.randn(37, 6, 8)
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            y, log_density, gradients = evaluate(flow, x)
            found.append([y, log_density, *gradients])
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    alone, density = flow.forward(x[11:12], torch.zeros(1, dtype=torch.float64))
    assert torch.equal(alone[0], found[0][0][11]) and torch.equal(density[0], found[0][1][11])


def test_tables_that_would_be_too_large_are_not_made(monkeypatch):
    """Huge frequencies need fine tables: torch does without."""
    flow, x = make([4, 4]), torch.randn(3, 4, 4)
    with torch.no_grad():
        flow.frequencies[0] = 1e7
        found, _ = flow.forward(x, torch.zeros(3, dtype=torch.float64))
    monkeypatch.setenv("FLOWMC_NATIVE", "0")
    with torch.no_grad():
        expected, _ = flow.forward(x, torch.zeros(3, dtype=torch.float64))
    assert torch.equal(found, expected)


def test_the_spacing_follows_the_largest_frequency():
    assert spacing_for(5.0) == 1 / 16
    assert spacing_for(7.0) == 1 / 32
    assert spacing_for(0.0) <= 4
