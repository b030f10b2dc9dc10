"""Gradients of the objectives against finite differences, and path gradients where q = p."""

import pytest
import torch
from torch import nn

from flowmc.actions import FreeScalar, Phi4, Wilson
from flowmc.flows import AffineCouplingFlow, Chain, Flow, FlowModel, FreeFieldPrior, GaussianPrior
from flowmc.groups import SUN, cotangent
from flowmc.random import stream
from flowmc.training import Ensemble, ExchangeKL, ReverseKL
from flowmc.training.adjoint import PushedForce, solve_linear


class Rescale(Flow):
    """y = e^s x with one s per site."""

    def __init__(self, lattice):
        super().__init__()
        self.s = nn.Parameter(torch.zeros(tuple(lattice), dtype=torch.float64))

    def forward(self, x, log_density):
        return x * self.s.exp(), log_density - self.s.sum()

    def inverse(self, y, log_density):
        return y * (-self.s).exp(), log_density + self.s.sum()


class Cubic(Flow):
    """y = x + c x^3 / (1 + x^2), whose inverse is a Newton iteration outside autograd."""

    def __init__(self, lattice):
        super().__init__()
        self.c = nn.Parameter(0.3 * torch.rand(tuple(lattice), dtype=torch.float64))

    def forward(self, x, log_density):
        square = x * x
        y = x + self.c * x * square / (1 + square)
        slope = 1 + self.c * square * (3 + square) / (1 + square) ** 2
        return y, log_density - slope.log().flatten(1).sum(1)

    @torch.no_grad()
    def inverse(self, y, log_density):
        x = y.clone()
        for _ in range(100):
            image, _ = self.forward(x, torch.zeros(len(x)))
            square = x * x
            slope = 1 + self.c * square * (3 + square) / (1 + square) ** 2
            x = x - (image - y) / slope
        _, change = self.forward(x, torch.zeros(len(x), dtype=torch.float64))
        return x, log_density - change


class Neighbours(Flow):
    """One colour moves by a function of the other, y = x + w tanh(neighbours): J = 0."""

    def __init__(self, lattice):
        super().__init__()
        total = sum(torch.meshgrid(*[torch.arange(n) for n in lattice], indexing="ij"))
        self.register_buffer("active", (total % 2 == 0).to(torch.float64))
        self.w = nn.Parameter(0.4 * torch.rand(tuple(lattice), dtype=torch.float64))

    def shift(self, x):
        frozen = x * (1 - self.active)
        return self.active * self.w * torch.tanh(frozen.roll(1, 1) + 2 * frozen.roll(-1, 2))

    def forward(self, x, log_density):
        return x + self.shift(x), log_density

    def inverse(self, y, log_density):
        return y - self.shift(y), log_density


def lattice_phi4(**couplings):
    return Phi4([4, 4], **{"lam": 1.0, "m2": -0.5, **couplings})


def numeric_gradient(loss, parameter, step=1e-5):
    """Central differences of a scalar function with respect to every entry of a parameter."""
    gradient = torch.zeros_like(parameter)
    flat, out = parameter.data.view(-1), gradient.view(-1)
    for index in range(flat.numel()):
        start = float(flat[index])
        flat[index] = start + step
        upper = float(loss())
        flat[index] = start - step
        lower = float(loss())
        flat[index] = start
        out[index] = (upper - lower) / (2 * step)
    return gradient


@pytest.mark.parametrize("name", ["iterative", pytest.param("coupling", marks=pytest.mark.slow)])
def test_reparametrised_gradient_is_that_of_the_loss(name):
    torch.manual_seed(1)
    action = lattice_phi4()
    flow = Chain([Cubic([4, 4]), Neighbours([4, 4])])
    if name == "coupling":
        flow = AffineCouplingFlow(action, layers=4, hidden=[2])
    model = FlowModel(GaussianPrior(action), flow).to(torch.float64)
    objective = ReverseKL(model, action)
    objective.evaluate(8, stream(1, 0, "x")).surrogate.backward()
    for parameter in flow.parameters():
        expected = numeric_gradient(
            lambda: objective.evaluate(8, stream(1, 0, "x")).loss.detach(), parameter
        )
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-6, atol=1e-7)


def test_path_gradient_vanishes_sample_by_sample_at_the_target():
    action = FreeScalar([4, 4], m2=0.7)
    model = FlowModel(FreeFieldPrior(action, m2=0.7), Rescale([4, 4])).to(torch.float64)
    flow, zero = model.flow, torch.zeros(16, dtype=torch.float64)
    x = action.sample(16, stream(2, 0, "x")).requires_grad_(True)
    y, log_density = flow.forward(x, zero)
    v = PushedForce(flow, action.group)(x, y, log_density, action.force(x.detach()))
    assert (v - action.force(y.detach())).abs().max() < 1e-12
    gradients = {}
    for name in ("path", "reparametrised"):
        model.zero_grad()
        ReverseKL(model, action, gradient=name).evaluate(16, stream(2, 1, "x")).surrogate.backward()
        gradients[name] = model.flow.s.grad.abs().max()
    assert gradients["path"] < 1e-12
    # The other estimator does fluctuate: the score term is there.
    assert gradients["reparametrised"] > 1e-2


def test_path_gradient_drops_the_score_and_nothing_else():
    torch.manual_seed(2)
    action = lattice_phi4()
    model = FlowModel(GaussianPrior(action), AffineCouplingFlow(action, layers=4, hidden=[4]))
    model.to(torch.float64)

    def gradient_of(scalar):
        model.zero_grad()
        scalar.backward()
        return torch.cat([p.grad.flatten() for p in model.parameters()])

    parts = {
        name: gradient_of(
            ReverseKL(model, action, gradient=name).evaluate(50, stream(3, 0, "x")).surrogate
        )
        for name in ("path", "reparametrised")
    }
    x, _ = model.sample(50, stream(3, 0, "x"))
    score = gradient_of(model.log_prob(x.detach()).mean())
    torch.testing.assert_close(parts["path"] + score, parts["reparametrised"])
    assert score.abs().max() > 1e-2


def test_cotangent_undoes_the_algebra_gradient():
    group = SUN(3)
    u = group.haar((2, 5), torch.complex128, stream(5, 0, "u"))
    gradient = group.draw_algebra(u, stream(5, 1, "p"))
    back = group.gradient_from_euclidean(u, cotangent(group, u, gradient))
    torch.testing.assert_close(back, gradient)


class Turn(Flow):
    """Left translation of SU(N) links by exp(theta_mu T_1): an isometry with a parameter."""

    def __init__(self, group, directions):
        super().__init__()
        self.group = group
        self.theta = nn.Parameter(torch.full((directions,), 0.2, dtype=torch.float64))

    def _element(self, like, sign):
        theta = sign * self.theta.view(-1, *[1] * (like.dim() - 4))
        coordinates = torch.zeros(*theta.shape, self.group.algebra_dimension, dtype=torch.float64)
        coordinates[..., 0] = theta
        return self.group.exp(self.group.coordinates_to_algebra(coordinates))

    def forward(self, x, log_density):
        return self._element(x, 1) @ x, log_density

    def inverse(self, y, log_density):
        return self._element(y, -1) @ y, log_density


class HaarWithWeight:
    """Haar draws with the log-density -S: only its derivatives are used."""

    def __init__(self, action):
        self.action = action

    def sample(self, n, rng):
        x = self.action.hot(n, rng)
        return x, -self.action(x)

    def log_prob(self, x):
        return -self.action(x)


def test_path_gradient_on_a_group():
    action = Wilson("SU(3)", [2, 2], beta=2.0)
    flow = Turn(action.group, 2)
    model = FlowModel(HaarWithWeight(action), flow)
    path = ReverseKL(model, Wilson("SU(3)", [2, 2], beta=3.0), gradient="path")
    path.evaluate(4, stream(6, 0, "x")).surrogate.backward()
    x, _ = model.prior.sample(4, stream(6, 0, "x"))
    start = flow.theta.detach().clone()

    def loss():
        # The path derivative moves x only: ln q is evaluated at the old weights.
        y, _ = flow.forward(x, torch.zeros(4, dtype=torch.float64))
        moved = flow.theta.detach().clone()
        flow.theta.data.copy_(start)
        log_q = model.log_prob(y)
        flow.theta.data.copy_(moved)
        return (log_q + path.action(y)).mean().detach()

    expected = numeric_gradient(loss, flow.theta)
    torch.testing.assert_close(flow.theta.grad, expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("flow_class", [Cubic, Neighbours, Rescale])
@pytest.mark.parametrize("side", ["forward", "reverse"])
def test_exchange_gradients_are_those_of_the_works(flow_class, side):
    torch.manual_seed(3)
    a, b = lattice_phi4(), lattice_phi4(m2=0.3)
    flow = Chain([flow_class([4, 4]), Neighbours([4, 4])])
    ensembles = [Ensemble(s, n, 1, chains=6, thermalization=5) for s, n in ((a, "from"), (b, "to"))]
    objective = ExchangeKL(flow, *ensembles)
    work_of = objective.forward_work if side == "forward" else objective.reverse_work
    field = ensembles[side == "reverse"].field
    work_of(field)[0].backward()
    for parameter in flow.parameters():
        expected = numeric_gradient(lambda: work_of(field)[1].mean(), parameter)
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-5, atol=1e-6)


def test_jeffreys_loss_is_zero_for_the_exact_map():
    a, b = FreeScalar([4, 4], m2=1.0), 4.0 * FreeScalar([4, 4], m2=1.0)
    flow = Rescale([4, 4])
    with torch.no_grad():
        flow.s.fill_(-torch.log(torch.tensor(2.0, dtype=torch.float64)))
    ensembles = [Ensemble(s, n, 1, chains=32, thermalization=20) for s, n in ((a, "x"), (b, "y"))]
    batch = ExchangeKL(flow, *ensembles).evaluate(32, stream(1, 0, "unused"))
    assert abs(float(batch.loss)) < 1e-10
    assert float(batch.log_weights.std()) < 1e-10


def test_solver_marks_what_does_not_converge():
    matrices = torch.randn(5, 30, 30, dtype=torch.float64, generator=stream(7, 0, "m"))
    matrices += 8 * torch.eye(30)
    matrices[3] *= torch.nan
    truth = torch.randn(5, 30, dtype=torch.float64, generator=stream(7, 1, "v"))
    right = torch.einsum("nij,nj->ni", matrices, truth)
    right[3] = 1.0

    def apply(v):
        return torch.einsum("nij,nj->ni", matrices, v)

    solution = solve_linear(apply, right, right, max_iterations=30)
    good = [0, 1, 2, 4]
    torch.testing.assert_close(solution[good], truth[good], rtol=1e-6, atol=1e-6)
    assert solution[3].isnan().all()
    assert solve_linear(apply, right, right, max_iterations=2).isnan().all()


def test_wrong_names_are_refused():
    action = lattice_phi4()
    model = FlowModel(GaussianPrior(action), Rescale([4, 4]))
    with pytest.raises(ValueError, match="reparametrised"):
        ReverseKL(model, action, gradient="pathwise")
    with pytest.raises(ValueError, match="symmetric"):
        ExchangeKL(model.flow, None, None, direction="both")


def test_path_gradient_needs_no_derivative_of_the_inverse():
    torch.manual_seed(4)
    action = lattice_phi4()
    model = FlowModel(GaussianPrior(action), Chain([Cubic([4, 4]), Neighbours([4, 4])]))
    model.to(torch.float64)
    objective = ReverseKL(model, action, gradient="path")
    objective.evaluate(8, stream(8, 0, "x")).surrogate.backward()
    assert objective.density.pushed_force.direct_way_holds is False
    z, log_prior = model.prior.sample(8, stream(8, 0, "x"))
    y, _ = model.flow.forward(z, log_prior)
    # ln q at fixed weights along a displacement of y, by finite differences through the inverse.
    step, direction = 1e-5, torch.randn(y.shape, dtype=torch.float64, generator=stream(8, 1, "x"))
    upper, lower = (model.log_prob((y + s * direction).detach()) for s in (step, -step))
    expected = -(upper - lower).detach() / (2 * step)
    leaf = z.detach().requires_grad_(True)
    image, log_density = model.flow.forward(leaf, log_prior)
    v = PushedForce(model.flow, action.group)(leaf, image, log_density, z.detach())
    torch.testing.assert_close((v * direction).flatten(1).sum(1), expected, rtol=1e-5, atol=1e-6)


def test_half_differentiable_inverse_is_not_trusted():
    class Detached(Rescale):
        def inverse(self, y, log_density):
            x, log_density = super().inverse(y, log_density)
            return x + 0.3 * y.detach() - 0.3 * y, log_density

    action = FreeScalar([4, 4], m2=0.7)
    model = FlowModel(FreeFieldPrior(action, m2=0.7), Detached([4, 4])).to(torch.float64)
    objective = ReverseKL(model, action, gradient="path")
    objective.evaluate(16, stream(2, 1, "x")).surrogate.backward()
    assert objective.density.pushed_force.direct_way_holds is False
    assert model.flow.s.grad.abs().max() < 1e-6
