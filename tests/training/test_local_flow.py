"""Training of local flows: the loss against a closed form, its gradient, and the commands.

One statistical test, at 5.5 standard errors (4e-8) on a fixed seed.
"""

import json
import math
import tomllib

import pytest
import torch
from exactness import assert_mean

from flowmc.actions import FreeScalar, Phi4
from flowmc.cli import main
from flowmc.flows import Block, BlockCouplingFlow, BlockGaussian, LocalFlowModel
from flowmc.flows.cards.files import load_local_flow, read_card
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.training import LocalKL
from flowmc.training.plan import make_plan

CONFIG = """
[theory]
action = "phi4"
lattice = [6, 6]
m2 = -4.0
lambda = 8.0
[block]
extents = [2, 3]
[prior]
name = "block_gaussian"
m2 = 2.0
[flow]
name = "block_coupling"
layers = 2
hidden = [4]
[chains]
count = 16
thermalization = 10
[training]
steps = 8
batch = 16
learning_rate = 1e-2
schedule = "constant"
checkpoint_every = 3
evaluate_samples = 64
seed = 3
"""


class Fixed:
    """Configurations that are given."""

    def __init__(self, action, draw):
        self.action, self.draw = action, draw

    def draw_share(self, n):
        return self.draw(n), torch.arange(n)


def test_the_loss_is_the_jeffreys_divergence(rng):
    """Two sites of a free chain, and a Gaussian with another mass and hopping parameter."""
    free = FreeScalar([6], m2=0.5)
    block = Block.of(free, [2])
    prior = BlockGaussian(free, block).double()
    masses = torch.tensor([1.5, 0.7], dtype=torch.float64)
    with torch.no_grad():
        prior.hopping.fill_(0.8)
        prior.log_mass.copy_(masses.log())
    model = LocalFlowModel(block, prior, BlockCouplingFlow(block, layers=0))
    objective = LocalKL(model, Fixed(free, lambda n: free.sample(n, rng)))

    def gaussian(hopping, masses):
        cross = torch.tensor([[0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
        precision = 2 * torch.diag(2 * hopping + masses) - 2 * hopping * cross
        # The left site hangs on the left neighbour, the right one on the right.
        return precision, 2 * hopping * torch.linalg.inv(precision)

    p, mean_p = gaussian(1.0, torch.full((2,), 0.5, dtype=torch.float64))
    q, mean_q = gaussian(0.8, masses)
    propagator = free.propagator()
    # The two sites of the collar are three apart.
    collar = torch.stack([propagator[[0, 3]], propagator[[3, 0]]])
    difference = mean_q - mean_p
    spread = difference @ collar @ difference.T
    exact = 0.5 * torch.trace(p @ torch.linalg.inv(q) + q @ torch.linalg.inv(p)) - 2
    exact = float(exact + 0.5 * torch.trace((p + q) @ spread))
    with torch.no_grad():
        log_ratios = objective.evaluate(200_000, rng).log_weights
    assert exact > 0.1
    assert_mean(-log_ratios, exact)
    # A Metropolis ratio of an involution in equilibrium: its mean is 1.
    assert_mean(log_ratios.exp(), 1.0)


def slopes(objective, rng):
    """Return the derivative of the loss of one batch along a direction, twice."""
    weights = list(objective.module.parameters())
    direction = [torch.randn(w.shape, dtype=torch.float64, generator=rng) for w in weights]

    def loss(step):
        with torch.no_grad():
            for weight, one in zip(weights, direction, strict=True):
                weight.add_(step * one)
            value = float(objective.evaluate(32, stream(2, 0, "batch")).loss)
            for weight, one in zip(weights, direction, strict=True):
                weight.sub_(step * one)
        return value

    h = 1e-5
    numeric = (8 * (loss(h) - loss(-h)) - (loss(2 * h) - loss(-2 * h))) / (12 * h)
    gradients = torch.autograd.grad(
        objective.evaluate(32, stream(2, 0, "batch")).surrogate, weights
    )
    analytic = sum(float((g * one).sum()) for g, one in zip(gradients, direction, strict=True))
    return numeric, analytic


@pytest.mark.parametrize("error", [False, True])
def test_gradient_of_a_batch(error, rng, monkeypatch):
    """With given noise and surroundings the loss is a function of the weights."""
    action = Phi4([5, 6], m2=-4.0, lam=6.0)
    block = Block.of(action, [3, 2])
    flow = BlockCouplingFlow(block, layers=3, hidden=[4, 3], bins=2)
    model = LocalFlowModel(block, BlockGaussian(action, block), flow).double()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.2 * torch.randn(weight.shape, dtype=torch.float64, generator=rng))
    fields = 0.5 * torch.randn(32, 5, 6, dtype=torch.float64, generator=rng)
    objective = LocalKL(model, Fixed(action, lambda n: fields))
    if error:
        # The force without its sign: what a wrong action would do.
        right = type(action).force
        monkeypatch.setattr(type(action), "force", lambda self, field: -right(self, field))
    numeric, analytic = slopes(objective, rng)
    assert (abs(numeric - analytic) > 1e-3 * abs(numeric)) == error
    assert error or analytic == pytest.approx(numeric, rel=1e-7)


@pytest.mark.slow
def test_training_improves_on_the_prior(tmp_path):
    text = CONFIG.replace("steps = 8", "steps = 40").replace("batch = 16", "batch = 48")
    text = text.replace("count = 16", "count = 64").replace(
        "evaluate_samples = 64", "evaluate_samples = 2000"
    )
    found = {}
    for layers in (0, 4):
        path, output = tmp_path / "c.toml", tmp_path / f"f{layers}.safetensors"
        path.write_text(text.replace("layers = 2", f"layers = {layers}"))
        assert main(["train", str(path), "--output", str(output)]) == 0
        found[layers] = read_card(output)["measured"]
    assert found[4]["jeffreys"] < 0.3 * found[0]["jeffreys"]
    assert found[4]["acceptance"] > 0.7 > found[0]["acceptance"]
    for measured in found.values():
        # Gaussian log-ratios, nearly.
        assert abs(measured["acceptance"] - measured["acceptance_gaussian"]) < 0.08


def test_train_resume_evaluate_run_and_step(tmp_path, capsys):
    config, output = tmp_path / "c.toml", tmp_path / "f.safetensors"
    config.write_text(CONFIG)
    assert main(["train", str(config), "--output", str(output)]) == 0
    card = read_card(output)
    assert card["kind"] == "local" and card["block"] == [2, 3]
    assert card["prior"] == {"name": "block_gaussian", "parameters": {"m2": 2.0}}
    expected = load_local_flow(output).model.fingerprint()

    # Stopped in the middle and resumed: the same weights.
    again = tmp_path / "g.safetensors"
    config.write_text(CONFIG.replace("steps = 8", "steps = 4"))
    assert main(["train", str(config), "--output", str(again)]) == 0
    again.unlink()
    config.write_text(CONFIG)
    assert main(["train", str(config), "--output", str(again), "--resume"]) == 0
    assert load_local_flow(again).model.fingerprint() == expected

    config.write_text(CONFIG.replace("[6, 6]", "[4, 8]"))
    capsys.readouterr()
    arguments = ["evaluate", str(output), "--config", str(config), "--samples", "100", "--json"]
    assert main(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["samples"] == 100 and result["blocks"] == 2
    assert result["action"] == "Phi4(R, 4x8, m2=-4, lambda=8)"
    assert 0 < result["acceptance"] <= 1 and math.isfinite(result["jeffreys"])

    started = CONFIG.replace("seed = 3", f'seed = 3\nstart_from = "{output}"\n')
    plan = make_plan(tomllib.loads(started))
    assert plan.build("cpu").module.fingerprint() == expected

    theory = CONFIG.split("[block]")[0].replace("[6, 6]", "[8, 4]")
    update = f'[[update]]\nkernel = "local_flow"\nflow = "{output}"\nrepeat = 2\n'
    run = theory + "[chains]\nseed = 4\n" + update + "[run]\nupdates = 4\nsave_every = 4\n"
    run += '[ensemble]\nformat = "npy"\n'
    config.write_text(run)
    assert main(["run", str(config), "--output", str(tmp_path / "run")]) == 0
    capsys.readouterr()
    assert main(["report", str(tmp_path / "run"), "--json"]) == 0
    kernel = json.loads(capsys.readouterr().out)["kernels"]["local_flow"]
    assert 0 < kernel["acceptance"] <= 1 and kernel["divergence"]["mean"] > 0

    assert main(["report", str(tmp_path / "run")]) == 0
    assert "divergence = " in capsys.readouterr().out
    first = next((tmp_path / "run" / "ensemble").iterdir())
    arguments = [str(first), str(tmp_path / "next"), "--config", str(config), "--number", "9"]
    assert main(["step", *arguments]) == 0
    assert (tmp_path / "next").exists()

    other = run.replace("lambda = 8.0", "lambda = 7.0")
    for text, message in (
        (other, "this is a flow for phi4 on 6x6 with m2 = -4, lambda = 8"),
        (
            run.replace('"local_flow"', '"independence"').replace("repeat = 2", ""),
            "is a local flow",
        ),
        (run.replace(str(output), "zoo:phi4_8x8_tutorial"), "trained with .block."),
        (run.replace("seed = 4", 'seed = 4\nstart = "flow"'), "there is none"),
        (run.replace("[8, 4]", "[2, 8]"), "does not fit on a 2x8 lattice"),
    ):
        config.write_text(text)
        capsys.readouterr()
        assert main(["run", str(config), "--output", str(tmp_path / "bad")]) == 2
        assert message.replace(".block.", "[block]") in capsys.readouterr().err


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[2, 3]", "[2, 6]", r"\[block\]: a block of 2x6 with 1 frozen"),
        ("extents", "extent", r"\[block\]: unknown key 'extent'; did you mean 'extents'"),
        ("m2 = 2.0", "m2 = 0.0", r"\[prior\]: the conditional Gaussian of a block needs m2 > 0"),
        ("layers = 2", "layers = -1", r"\[flow\]: BlockCouplingFlow needs layers >= 0"),
        ("hidden = [4]", "bins = 0", "needs bins >= 1"),
        ("hidden = [4]", "kernel_size = 2", "needs an odd size"),
        ('"block_coupling"\nlayers = 2\nhidden = [4]', '"identity"', r"with \[block\] use one for"),
        ("seed = 3", 'objective = "forward_kl"', r"with \[prior\], not with \[block\]"),
        ("[training]", "[exchange]\n[training]", r"either \[prior\]"),
        ("[training]", '[mixture]\nsymmetry = "sign_flip"\n[training]', r"have no \[mixture\]"),
        ("[chains]\ncount = 16\nthermalization = 10\n", "", r"add a table \[chains\]"),
        ("[block]\nextents = [2, 3]\n", "", r"\[chains\] would be ignored"),
    ],
)
def test_unusable_configurations(old, new, message):
    assert CONFIG.count(old) == 1
    with pytest.raises(ConfigError, match=message):
        make_plan(tomllib.loads(CONFIG.replace(old, new)))
