"""Objectives of samplers against closed forms.

The statistical tests compare means over independent batches with exact gradients of five weights
and exact losses at 5.5 standard errors: 4e-8 each, below 3e-6 for all of them, on fixed seeds.
"""

import math

import pytest
import torch
from torch import nn

from flowmc.actions import FreeScalar, Phi4, Wilson
from flowmc.flows import (
    AffineCouplingFlow,
    Chain,
    FlowModel,
    FreeFieldPrior,
    GaussianPrior,
    HaarPrior,
    PlaquetteFlow,
)
from flowmc.flows.models import Prior
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.training import Ensemble, ForwardKL, LogVariance, Reinforce, ReverseKL
from flowmc.training.density import DensityAt, ModelDensity
from tests.training import exact_gaussian as exact
from tests.training.test_objectives import Cubic, Neighbours, Rescale, Turn, numeric_gradient

N = 8
LIMIT = 5.5


def log_variance(model, share):
    ensemble = exact.ExactDraws() if share else None
    return LogVariance(model, exact.ACTION, ensemble, ensemble_share=share)


# name: objective of a model, exact loss with a graph
CASES = {
    "reverse": (lambda m: ReverseKL(m, exact.ACTION), exact.exact_reverse),
    "reverse path": (lambda m: ReverseKL(m, exact.ACTION, gradient="path"), exact.exact_reverse),
    "reinforce": (lambda m: Reinforce(m, exact.ACTION), exact.exact_reverse),
    "forward path": (lambda m: ForwardKL(m, exact.ExactDraws()), exact.exact_forward),
    "forward score": (
        lambda m: ForwardKL(m, exact.ExactDraws(), gradient="score"),
        exact.exact_forward,
    ),
    "log variance": (
        lambda m: log_variance(m, 0.0),
        lambda m: exact.exact_log_variance(m, 0.0, N),
    ),
    "log variance mixed": (
        lambda m: log_variance(m, 0.5),
        lambda m: exact.exact_log_variance(m, 0.5, N),
    ),
}
# Whose gradient is zero for every batch at q = p.
WITHOUT_NOISE = sorted(set(CASES) - {"reverse", "forward score"})


def pulls(name):
    make, closed_form = CASES[name]
    model = exact.model()
    return exact.pulls(make(model), closed_form(model), model, N)


@pytest.mark.parametrize("name", CASES)
def test_gradient_and_loss_are_unbiased(name):
    assert max(pulls(name)) < LIMIT


@pytest.mark.parametrize("name", ["reinforce", "forward score", "log variance mixed"])
def test_a_wrong_sign_in_the_score_is_seen(name, monkeypatch):
    right = DensityAt.score

    def wrong(at, coefficients):
        flipped = DensityAt(at.group, at.field, at.log_q, -at.force)
        return right(flipped, coefficients)

    monkeypatch.setattr(DensityAt, "score", wrong)
    gradient, loss = pulls(name)
    assert gradient > 10 > LIMIT > loss


@pytest.mark.parametrize("name", ["reverse path", "forward path"])
def test_a_wrong_sign_in_the_path_is_seen(name, monkeypatch):
    right = DensityAt.path
    monkeypatch.setattr(DensityAt, "path", lambda at, force: right(at, -force))
    gradient, loss = pulls(name)
    assert gradient > 10 > LIMIT > loss


def test_the_mean_of_the_others_leaves_the_estimate_unbiased():
    """With the mean of all samples the score gradient is (n - 1)/n of the right one."""
    model = exact.model()
    gradients, _ = exact.sample_gradients(Reinforce(model, exact.ACTION), 600, 2)
    expected = exact.flat_gradient(exact.exact_reverse(model), model)
    assert exact.largest_pull(gradients, expected) < LIMIT
    assert exact.largest_pull(0.5 * gradients, expected) > 10


@pytest.mark.parametrize("name", CASES)
def test_noise_where_the_flow_is_perfect(name):
    make, _ = CASES[name]
    model = exact.perfect()
    gradients, losses = exact.sample_gradients(make(model), 3, N)
    if name in WITHOUT_NOISE:
        assert gradients.abs().max() < 1e-12
    else:
        assert gradients.abs().max() > 1e-2
    perfect = {"forward": exact.LOG_Z, "log": 0.0}.get(name.split()[0], -exact.LOG_Z)
    assert (losses - perfect).abs().max() < 1e-12


def test_closed_forms_agree_with_the_definition():
    model = exact.model()
    for closed_form, (x, weight), sign in (
        (exact.exact_reverse, exact.points_of_flow(model), 1),
        (exact.exact_forward, exact.points_of_target(), -1),
    ):
        by_quadrature = sign * (weight * exact.g_of(model, x)).sum()
        assert float((closed_form(model) - by_quadrature).detach().abs()) < 1e-10


def test_log_variance_without_configurations_is_reinforce():
    torch.manual_seed(6)
    action = Phi4([4, 4], lam=1.0, m2=-0.5)
    model = FlowModel(GaussianPrior(action), AffineCouplingFlow(action, layers=4, hidden=[4]))
    model.to(torch.float64)
    one, two = (c(model, action).evaluate(16, stream(1, 0, "x")) for c in (Reinforce, LogVariance))
    for a, b in zip(
        *(torch.autograd.grad(batch.surrogate, list(model.parameters())) for batch in (one, two)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    assert float(two.loss) == pytest.approx(0.5 * float(one.log_weights.var()))


FLOWS = {
    "coupling": lambda action: AffineCouplingFlow(action, layers=4, hidden=[2]),
    "iterative": lambda action: Chain([Cubic(action.lattice), Neighbours(action.lattice)]),
}


def nonlinear(name):
    torch.manual_seed(7)
    action = Phi4([4, 4], lam=1.0, m2=-0.5)
    flow = FLOWS[name](action).to(torch.float64)
    for parameter in flow.parameters():
        if not parameter.any():
            nn.init.uniform_(parameter, -0.2, 0.2)
    return FlowModel(GaussianPrior(action).to(torch.float64), flow), action


def gradients_of(scalar, module):
    return torch.autograd.grad(scalar, list(module.parameters()), allow_unused=True)


@pytest.mark.parametrize("name", FLOWS)
def test_score_is_the_derivative_at_fixed_fields(name):
    model, action = nonlinear(name)
    start, _ = model.prior.sample(5, stream(2, 0, "x"))
    with torch.no_grad():
        x, log_q = model.flow.forward(start, model.prior.log_prob(start))
    coefficients = torch.tensor([1.0, -2.0, 0.5, 3.0, -1.0], dtype=torch.float64)
    at = ModelDensity(model, action.group).at(start)
    torch.testing.assert_close(at.log_q.detach(), log_q)
    for gradient, parameter in zip(
        gradients_of(at.score(coefficients), model), model.parameters(), strict=True
    ):
        expected = numeric_gradient(
            lambda: (coefficients * model.log_prob(x).detach()).sum(), parameter
        )
        torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", FLOWS)
def test_forward_path_gradient_drops_the_score_of_the_pulled_back_target(name):
    model, action = nonlinear(name)
    x = 0.7 * torch.randn(6, 4, 4, dtype=torch.float64, generator=stream(3, 0, "x"))
    zero = torch.zeros(6, dtype=torch.float64)

    class Fixed(exact.ExactDraws):
        def draw_share(self, n):
            return x, torch.arange(6)

    ensemble = Fixed()
    ensemble.action = action
    parts = {
        gradient: gradients_of(
            ForwardKL(model, ensemble, gradient=gradient).evaluate(6, None).surrogate, model
        )
        for gradient in ("path", "score")
    }
    z = model.flow.inverse(x, zero)[0].detach()
    # ln p~(z) = -S(f(z)) + J(z) at fixed z, with S differentiated by autograd.
    y, minus_j = model.flow.forward(z, zero)
    dropped = gradients_of((-action(y) - minus_j).mean(), model)
    for path, score, rest in zip(parts["path"], parts["score"], dropped, strict=True):
        torch.testing.assert_close(score, path + rest, rtol=1e-6, atol=1e-8)
        assert rest.abs().max() > 1e-3


class Wide(Prior, nn.Module):
    """A Gaussian prior whose width is trained as well."""

    def __init__(self):
        nn.Module.__init__(self)
        self.log_scale = nn.Parameter(torch.tensor(0.1, dtype=torch.float64))

    def sample(self, n, rng):
        x = torch.randn(n, 2, dtype=torch.float64, generator=rng) * self.log_scale.exp()
        return x, self.log_prob(x)

    def log_prob(self, x):
        square = (x / self.log_scale.exp()).square().sum(1)
        return -0.5 * square - 2 * self.log_scale - math.log(2 * math.pi)


def test_a_trainable_prior():
    model = FlowModel(Wide(), exact.Linear())
    gradients, _ = exact.sample_gradients(Reinforce(model, exact.ACTION), 200, N)
    # q is that of a flow without the width whose matrix is wider.
    factor = model.prior.log_scale.exp()
    matrix = model.flow.matrix() * factor
    covariance = matrix @ matrix.T
    loss = -0.5 * torch.logdet(2 * math.pi * math.e * covariance)
    loss = loss + 0.5 * (exact.PRECISION @ covariance).trace()
    loss = loss + 0.5 * model.flow.shift @ exact.PRECISION @ model.flow.shift
    assert exact.largest_pull(gradients, exact.flat_gradient(loss, model)) < LIMIT
    for refused in (
        lambda: ReverseKL(model, exact.ACTION, gradient="path"),
        lambda: ForwardKL(model, exact.ExactDraws()),
    ):
        with pytest.raises(ValueError, match="trainable parameters"):
            refused()


def test_score_and_path_on_links_with_a_flat_prior():
    """Haar's density has no derivative, and the score of a translation is zero."""
    action = Wilson("SU(3)", [2, 2], beta=2.0)
    flow = Turn(action.group, 2)
    model = FlowModel(HaarPrior(action).to(torch.float64), flow)
    start, _ = model.prior.sample(3, stream(4, 0, "x"))
    at = ModelDensity(model, action.group).at(start)
    (gradient,) = gradients_of(at.score(torch.ones(3, dtype=torch.float64)), flow)
    assert gradient.abs().max() < 1e-12
    batch = ReverseKL(model, action, gradient="path").evaluate(3, stream(4, 1, "x"))
    (gradient,) = gradients_of(batch.surrogate, flow)
    x, _ = model.prior.sample(3, stream(4, 1, "x"))
    expected = numeric_gradient(
        lambda: action(flow.forward(x, torch.zeros(3))[0].detach()).mean(), flow.theta
    )
    torch.testing.assert_close(gradient, expected, rtol=1e-6, atol=1e-8)


def test_gradients_of_a_gauge_flow_agree():
    """Path and reparametrised gradients of one flow differ by its score, which is known."""
    torch.manual_seed(8)
    action = Wilson("U(1)", [4, 4], beta=1.5)
    flow = PlaquetteFlow(action)
    model = FlowModel(HaarPrior(action), flow).to(torch.float64)
    with torch.no_grad():
        for parameter in flow.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=parameter.dtype))
    parts = {
        name: gradients_of(
            ReverseKL(model, action, gradient=name).evaluate(6, stream(5, 0, "x")).surrogate, model
        )
        for name in ("path", "reparametrised")
    }
    start, _ = model.prior.sample(6, stream(5, 0, "x"))
    at = ModelDensity(model, action.group).at(start)
    score = gradients_of(at.score(torch.full((6,), 1 / 6, dtype=torch.float64)), model)
    for path, whole, rest in zip(parts["path"], parts["reparametrised"], score, strict=True):
        torch.testing.assert_close(whole, path + rest, rtol=1e-6, atol=1e-8)


def test_forward_kl_on_hmc_configurations():
    """Where prior and target agree every batch of chains says so."""
    action = FreeScalar([4, 4], m2=0.7)
    model = FlowModel(FreeFieldPrior(action, m2=0.7), Rescale([4, 4])).to(torch.float64)
    ensemble = Ensemble(action, "target", 1, chains=32, thermalization=10)
    batch = ForwardKL(model, ensemble).evaluate(16, stream(1, 0, "unused"))
    assert float(batch.loss) == pytest.approx(action.log_partition(), abs=1e-10)
    assert float(batch.log_weights.std()) < 1e-10
    assert gradients_of(batch.surrogate, model)[0].abs().max() < 1e-12


def test_refused_values():
    model = exact.model()
    with pytest.raises(ValueError, match="'path' or 'score'"):
        ForwardKL(model, exact.ExactDraws(), gradient="reparametrised")
    with pytest.raises(ValueError, match=r"ensemble_share = 1.0: must be"):
        LogVariance(model, exact.ACTION, exact.ExactDraws(), ensemble_share=1.0)
    for ensemble, share in ((None, 0.5), (exact.ExactDraws(), 0.0)):
        with pytest.raises(ValueError, match="positive share needs configurations"):
            LogVariance(model, exact.ACTION, ensemble, ensemble_share=share)
    with pytest.raises(ConfigError, match="batch = 1: Reinforce compares"):
        Reinforce(model, exact.ACTION).evaluate(1, stream(1, 0, "x"))
