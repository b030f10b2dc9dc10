"""The alpha = 2 divergence against Gaussian integrals.

Means over independent batches at 5.5 standard errors: 4e-8 for each of a dozen numbers, below 1e-6
in all, on fixed seeds.  The bias of self-normalised weights, of the order of the inverse batch
size, is a fraction of an error.
"""

import pytest
import torch

from flowmc.actions import Phi4, Wilson, check_force
from flowmc.flows import AffineCouplingFlow, FlowModel, GaussianPrior, HaarPrior, PlaquetteFlow
from flowmc.random import stream
from flowmc.training import AlphaTwo, Settings, Trainer
from flowmc.training.objectives.alpha import LatentBridge
from tests.training import exact_gaussian as exact

BATCHES, N = 30, 256
LIMIT = 5.5


def wide():
    """A flow wide enough for its ESS not to be zero: p^2 / q has an integral."""
    return exact.model(scales=(-0.3, -0.3), shear=0.4, shift=(0.2, -0.1))


def pulls(batches=BATCHES, **keys):
    model = wide()
    loss = exact.exact_alpha_two(model)
    objective = AlphaTwo(model, exact.ACTION, **keys)
    gradients, losses = exact.sample_gradients(objective, batches, N)
    return (
        exact.largest_pull(gradients, exact.flat_gradient(loss, model)),
        exact.largest_pull(losses, float(loss.detach())),
    )


@pytest.mark.parametrize("annealing_steps", [1, pytest.param(3, marks=pytest.mark.slow)])
def test_gradient_and_loss(annealing_steps):
    assert max(pulls(annealing_steps=annealing_steps, leapfrog_steps=1)) < LIMIT


def test_annealing_reduces_the_noise():
    """One step with a trajectory is importance sampling; more of them lead to the target."""
    noise = []
    for steps in (1, 6):
        objective = AlphaTwo(wide(), exact.ACTION, annealing_steps=steps)
        _, losses = exact.sample_gradients(objective, 12, 64)
        noise.append(float(losses.std()))
    assert noise[1] < 0.6 * noise[0]


def test_a_wrong_jacobian_is_seen(monkeypatch):
    right = LatentBridge._pushed

    def wrong(bridge, field):
        y, change = right(bridge, field)
        return y, -change

    monkeypatch.setattr(LatentBridge, "_pushed", wrong)
    assert pulls(batches=20, annealing_steps=1, leapfrog_steps=1)[1] > 100


def test_a_wrong_exponent_is_seen(monkeypatch):
    right = LatentBridge.__init__
    monkeypatch.setattr(
        LatentBridge,
        "__init__",
        lambda bridge, model, action, beta: right(bridge, model, action, 0.5 * beta),
    )
    assert min(pulls(batches=20, annealing_steps=1, leapfrog_steps=1)) > 10


def test_equal_weights_where_the_flow_is_perfect():
    model = exact.perfect()
    objective = AlphaTwo(model, exact.ACTION)
    batch = objective.evaluate(64, stream(1, 0, "x"))
    assert float(batch.loss) == pytest.approx(2 * exact.LOG_Z, abs=1e-11)
    assert batch.log_weights.std() < 1e-12
    start, log_prior = model.prior.sample(64, stream(1, 0, "x"))
    _, _, minus_work = objective._anneal(start, log_prior, 5)
    assert minus_work.std() < 1e-11


def coupling():
    torch.manual_seed(3)
    action = Phi4([4, 4], lam=1.0, m2=-0.5)
    flow = AffineCouplingFlow(action, layers=4, hidden=[3])
    return FlowModel(GaussianPrior(action), flow).to(torch.float64), action


def plaquettes():
    torch.manual_seed(3)
    action = Wilson("U(1)", [4, 4], beta=1.5)
    return FlowModel(HaarPrior(action), PlaquetteFlow(action)).to(torch.float64), action


@pytest.mark.parametrize("make", [coupling, plaquettes])
@pytest.mark.parametrize("beta", [0.25, 1.0])
def test_force_of_the_bridge(make, beta):
    model, action = make()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, dtype=parameter.dtype))
    # No plaquette near the cut at pi, which this flow does not cross.
    field, _ = model.prior.sample(3, stream(2, 1, "x"))
    with torch.no_grad():
        assert check_force(LatentBridge(model, action, beta), field, stream(2, 1, "x")) < 1e-7


def test_bridge_has_the_target_in_the_middle():
    model, action = coupling()
    z, log_prior = model.prior.sample(4, stream(4, 0, "x"))
    with torch.no_grad():
        x, log_q = model.flow.forward(z, log_prior)
        jacobian = log_prior - log_q
        for beta, expected in ((0.0, -log_prior), (0.5, action(x) - jacobian)):
            torch.testing.assert_close(LatentBridge(model, action, beta)(z), expected)


def test_step_size_follows_the_acceptance_and_is_kept(tmp_path):
    model, action = coupling()
    objective = AlphaTwo(model, action, annealing_steps=2)
    path = str(tmp_path / "c.safetensors")
    trainer = Trainer(objective, Settings(steps=6, batch=16, learning_rate=1e-3), checkpoint=path)
    trainer.run(stop=lambda: trainer.step == 3)
    half = objective.step_size
    assert half > 0.2, "shorter steps than needed are all accepted"
    other = AlphaTwo(coupling()[0], action, annealing_steps=2)
    resumed = Trainer(other, trainer.settings, checkpoint=path)
    resumed.load(path)
    assert other.step_size == half
    trainer.run()
    resumed.run()
    assert objective.step_size == other.step_size != half
    assert objective.model.fingerprint() == other.model.fingerprint()


@pytest.mark.parametrize("key", ["annealing_steps", "leapfrog_steps"])
def test_refused_values(key):
    with pytest.raises(ValueError, match=f"{key} = 0"):
        AlphaTwo(exact.model(), exact.ACTION, **{key: 0})
