"""The odd spline itself; the flow made of it is in the table of test_scalar_flows.py."""

import math

import pytest
import torch

from flowmc.actions import DoubleWell, Phi4
from flowmc.flows import FlowModel, GaussianPrior, SplineCouplingFlow
from flowmc.flows.scalar.spline_coupling import OddIntervalSpline
from flowmc.random import stream
from flowmc.training import ReverseKL, Settings, Trainer

BOUND = 2.0


def spline(points, bins=5, rows=3):
    """Return as many splines as rows, each for many numbers."""
    generator = stream(1, 0, "spline")
    parameters = torch.randn(rows, 3 * bins, 1, dtype=torch.float64, generator=generator)
    return OddIntervalSpline(1.5 * parameters.expand(-1, -1, points), BOUND)


def line(points, rows=3, end=3.0):
    return torch.linspace(-end, end, points, dtype=torch.float64).expand(rows, -1)


def test_odd_monotone_and_the_identity_outside():
    x = line(4001)
    h = spline(4001)
    y, log_derivative = h.forward(x)
    assert torch.equal(h.forward(-x)[0], -y)
    assert bool((y.diff(dim=1) > 0).all())
    outside = x.abs() >= BOUND
    assert torch.equal(y[outside], x[outside])
    assert bool((log_derivative[outside] == 0).all())
    assert float((y - x).abs().max()) > 0.1


def test_the_derivative_is_continuous():
    edges = spline(1).widths.cumsum(1)[:, :, 0]
    knots = torch.cat([-edges, torch.zeros_like(edges[:, :1]), edges], 1)
    h = spline(knots.shape[1])
    below, above = (h.forward(knots + shift)[1] for shift in (-1e-11, 1e-11))
    assert float((below - above).abs().max()) < 1e-5


def test_derivative_and_inverse():
    h, x = spline(1000), line(1000).clone().requires_grad_(True)
    y, log_derivative = h.forward(x)
    (slope,) = torch.autograd.grad(y.sum(), x)
    torch.testing.assert_close(log_derivative, slope.log(), rtol=0, atol=1e-11)
    back, again = h.inverse(y.detach())
    assert float((back - x).detach().abs().max()) < 1e-12
    assert float((again - log_derivative).detach().abs().max()) < 1e-9


def test_starts_as_the_identity():
    flow = SplineCouplingFlow(Phi4([4, 4], m2=-4.0, lam=8.0))
    x = 2 * torch.randn(5, 4, 4, generator=stream(2, 0, "x"))
    y, density = flow.forward(x, torch.zeros(5, dtype=torch.float64))
    assert torch.equal(y, x)
    assert float(density.detach().abs().max()) < 1e-12


def test_without_the_affine_part_large_fields_stay():
    torch.manual_seed(4)
    flow = SplineCouplingFlow(Phi4([4, 4], m2=-4.0, lam=8.0), bound=1.0, affine=False).double()
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter)
    x = torch.randn(5, 4, 4, dtype=torch.float64, generator=stream(3, 0, "x"))
    y, _ = flow.forward(x, torch.zeros(5, dtype=torch.float64))
    large = x.abs() >= 1
    assert torch.equal(y[large], x[large]) and not torch.equal(y, x)


@pytest.mark.parametrize("affine", [pytest.param(True, marks=pytest.mark.slow), False])
def test_one_peak_becomes_two(affine):
    """Two independent sites in a double well: the bias of the last layers suffices."""
    action = DoubleWell([2], m0=2.0, mu2=-4.0, lam=1.0)
    torch.manual_seed(5)
    flow = SplineCouplingFlow(action, layers=2, hidden=[2], kernel_size=1, bound=4.0, affine=affine)
    objective = ReverseKL(FlowModel(GaussianPrior(action), flow).to(torch.float64), action)
    Trainer(objective, Settings(steps=150, batch=128, learning_rate=3e-2)).run()
    x, _ = objective.model.sample(2000, stream(6, 0, "x"))
    middle = float((x.abs() < 0.3).double().mean())
    assert middle < 0.1 < math.erf(0.3 / math.sqrt(2))
