"""Sign mixtures: their density, and every objective's gradient against quadrature.

Means over independent batches are compared with exact gradients of five weights and exact losses at
5.5 standard errors: 4e-8 each, below 2e-6 for all of them, on fixed seeds.
"""

import copy
import tomllib

import pytest
import torch

from flowmc.actions import Action, Phi4
from flowmc.commands import train
from flowmc.flows import FlowModel, GaussianPrior, SignMixture
from flowmc.flows.cards.building import build_model
from flowmc.flows.cards.files import load_flow, read_card
from flowmc.kernels import Independence
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.training import AlphaTwo, ForwardKL, LogVariance, Reinforce, ReverseKL
from flowmc.training.density import MixtureAt, ModelDensity
from flowmc.training.plan import make_plan
from tests.training import exact_gaussian as exact
from tests.training.test_commands import CHAINS, SAMPLER

N = 8
LIMIT = 5.5


def mixture():
    """Two overlapping peaks, none of them the target's."""
    flow = exact.Linear(scales=(-0.9, -0.9), shear=0.2, shift=(0.4, 0.3))
    return SignMixture(GaussianPrior(exact.ACTION), flow).to(torch.float64)


def exact_reverse(model):
    z, weight = exact.quadrature(torch.zeros(2, dtype=torch.float64), torch.eye(2).double())
    x, _ = model.flow.forward(z, torch.zeros(len(z), dtype=torch.float64))
    return (weight * (model.log_prob(x) + exact.ACTION(x))).sum()


def exact_forward(model):
    x, weight = exact.points_of_target()
    return -(weight * exact.g_of(model, x)).sum()


CASES = {
    "reverse": (lambda m: ReverseKL(m, exact.ACTION), exact_reverse),
    "reverse path": (lambda m: ReverseKL(m, exact.ACTION, gradient="path"), exact_reverse),
    "reinforce": (lambda m: Reinforce(m, exact.ACTION), exact_reverse),
    "forward path": (lambda m: ForwardKL(m, exact.ExactDraws()), exact_forward),
    "forward score": (lambda m: ForwardKL(m, exact.ExactDraws(), gradient="score"), exact_forward),
    "log variance": (
        lambda m: LogVariance(m, exact.ACTION, exact.ExactDraws()),
        lambda m: exact.exact_log_variance(m, 0.5, N),
    ),
}


def pulls(name):
    make, closed_form = CASES[name]
    model = mixture()
    return exact.pulls(make(model), closed_form(model), model, N)


# Of a plain model every objective is tested in test_sampler_objectives.py.
FAST = ("reverse path", "forward score", "log variance")
assert set(FAST) <= set(CASES)


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in CASES]
)
def test_gradient_and_loss_are_unbiased(name):
    assert max(pulls(name)) < LIMIT


@pytest.mark.parametrize("name", ["reverse path", "forward score"])
def test_without_the_mirror_image_the_gradient_is_wrong(name, monkeypatch):
    monkeypatch.setattr(MixtureAt, "path", lambda at, force: at.sides[0].path(force))
    monkeypatch.setattr(MixtureAt, "score", lambda at, c: at.sides[0].score(c))
    gradient, loss = pulls(name)
    assert gradient > 8 > LIMIT > loss


class TwoPeaks(Action):
    """The action of a mixture."""

    name = "two_peaks"

    def __init__(self, model):
        self.model = copy.deepcopy(model).requires_grad_(False)
        self.lattice, self.parameters = (2,), {}

    def __call__(self, field):
        return -self.model.log_prob(field)


@pytest.mark.parametrize("name", CASES)
def test_noise_where_the_mixture_is_perfect(name):
    model = mixture()
    action = TwoPeaks(model)

    class Draws(exact.ExactDraws):
        def draw_share(self, n):
            return model.sample(n, stream(1, 0, "draws"))[0].detach(), torch.arange(n)

    draws = Draws()
    draws.action = action
    objective = {
        "reverse": lambda: ReverseKL(model, action),
        "reverse path": lambda: ReverseKL(model, action, gradient="path"),
        "reinforce": lambda: Reinforce(model, action),
        "forward path": lambda: ForwardKL(model, draws),
        "forward score": lambda: ForwardKL(model, draws, gradient="score"),
        "log variance": lambda: LogVariance(model, action, draws),
    }[name]()
    gradients, losses = exact.sample_gradients(objective, 2, N)
    assert losses.abs().max() < 1e-12
    if name in ("reverse", "forward score"):
        assert gradients.abs().max() > 1e-2
    else:
        assert gradients.abs().max() < 1e-12


def test_density_of_draws_and_of_fields():
    model = mixture()
    with torch.no_grad():
        x, log_q = model.sample(4000, stream(2, 0, "x"))
        torch.testing.assert_close(model.log_prob(x), log_q)
        torch.testing.assert_close(model.log_prob(-x), log_q)
        sides = [FlowModel(model.prior, model.flow).log_prob(side).exp() for side in (x, -x)]
        torch.testing.assert_close(log_q.exp(), (sides[0] + sides[1]) / 2)
        # Half of the draws are flipped: the means vanish, 5.5 errors each.
        assert bool((x.mean(0).abs() < 5.5 * x.std(0) / 4000**0.5).all())
        points, weight = exact.points_of_target()
        density = (-exact.ACTION(points) - exact.LOG_Z).exp()
        total = (weight * (model.log_prob(points).exp() / density)).sum()
    # Quadrature with the target's weight, for a mixture narrower than it.
    assert float(total) == pytest.approx(1, abs=1e-6)
    assert model.fingerprint() != FlowModel(model.prior, model.flow).fingerprint()


def test_shares_and_force():
    model = mixture()
    start, _ = model.prior.sample(5, stream(3, 0, "x"))
    at = ModelDensity(model, exact.ACTION.group).at(start)
    assert isinstance(at, MixtureAt)
    x = at.field.detach().requires_grad_(True)
    (expected,) = torch.autograd.grad(-model.log_prob(x).sum(), x)
    torch.testing.assert_close(at.force, expected)
    torch.testing.assert_close(at.log_q, model.log_prob(x).detach())
    torch.testing.assert_close(at.shares.sum(0), torch.ones(5, dtype=torch.float64))


def test_proposals_of_a_perfect_mixture_are_all_accepted():
    """From a field of either peak: the density of the current field is that of the mixture too."""
    model = mixture()
    kernel = Independence(TwoPeaks(model), model, proposals=4)
    start = torch.tensor([[0.5, 0.4], [-0.5, -0.4]], dtype=torch.float64).repeat(50, 1)
    state, info = kernel.step(kernel.init(start), stream(5, 0, "x"))
    assert bool(info.is_accepted.all())
    positive = float((state.field.sum(1) > 0).double().mean())
    assert 0.2 < positive < 0.8  # 6 standard deviations of a half


MIXTURE = """[mixture]
symmetry = "sign_flip"
[training]"""


@pytest.mark.parametrize("objective", ["reverse_kl", "forward_kl"])
def test_train_a_mixture(objective, tmp_path):
    text = SAMPLER.replace("[training]", MIXTURE)
    if objective == "forward_kl":
        text = text.replace("[training]", CHAINS)
    output = tmp_path / "f.safetensors"
    plan = make_plan(tomllib.loads(text + f'objective = "{objective}"\n'))
    assert train.train(plan, output)
    assert read_card(output)["mixture"] == "sign_flip"
    model = load_flow(output).model
    assert isinstance(model, SignMixture)
    x, log_q = model.sample(20, stream(4, 0, "x"))
    torch.testing.assert_close(model.log_prob(-x), log_q)


def test_refused():
    def plan(old, new):
        text = SAMPLER.replace("[training]", MIXTURE).replace(old, new)
        return make_plan(tomllib.loads(text))

    with pytest.raises(ConfigError, match=r"\[mixture\]: symmetry = 'flip'"):
        plan("sign_flip", "flip")
    with pytest.raises(ConfigError, match=r"\[mixture\]: missing key 'symmetry'"):
        plan('symmetry = "sign_flip"', "")
    with pytest.raises(ConfigError, match="alpha_two anneals in the coordinates"):
        plan("steps = 12", 'steps = 12\nobjective = "alpha_two"')

    class Tilted(Phi4):
        def __call__(self, field):
            return super().__call__(field) + field.flatten(1).sum(1)

    model = mixture()
    with pytest.raises(ConfigError, match=r"\[mixture\]: a sign_flip mixture needs S\(-phi\)"):
        build_model(model.prior, model.flow, Tilted([4, 4], m2=1.0, lam=1.0), "sign_flip")
    with pytest.raises(ConfigError, match="unknown mixture 'z3'"):
        build_model(model.prior, model.flow, exact.ACTION, "z3")
    with pytest.raises(ValueError, match="does not have"):
        AlphaTwo(model, exact.ACTION)
