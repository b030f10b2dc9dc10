"""The loop: bit-exact resume, schedules, skipped steps, and errors."""

import math
import random
import re

import pytest
import torch

from flowmc.actions import Phi4, Wilson
from flowmc.flows import AffineCouplingFlow, Flow, FlowModel, GaussianPrior, ResidualFlow
from flowmc.flows.cards.files import FlowFileError, atomic_save, load_flow, read_tensors
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.training import (
    Ensemble,
    ExchangeKL,
    ForwardKL,
    LogVariance,
    Objective,
    ReverseKL,
    Settings,
    Trainer,
    TrainingError,
    adjoint,
)
from flowmc.training.adjoint import PushedForce
from flowmc.training.optimisers import make_optimiser
from flowmc.training.schedules import SCHEDULES, learning_rate_factor


def sampler():
    torch.manual_seed(1)
    action = Phi4([4, 4], lam=1.0, m2=-0.5)
    flow = AffineCouplingFlow(action, layers=2, hidden=[2])
    return ReverseKL(FlowModel(GaussianPrior(action), flow).to(torch.float64), action)


def path_sampler():
    objective = sampler()
    return ReverseKL(objective.model, objective.action, gradient="path")


def exchange():
    torch.manual_seed(1)
    a, b = Phi4([4, 4], lam=1.0, m2=-0.5), Phi4([4, 4], lam=1.0, m2=0.5)
    flow = AffineCouplingFlow(a, layers=2, hidden=[2]).to(torch.float64)
    options = {"chains": 12, "thermalization": 5, "refresh_every": 2, "steps": 3}
    return ExchangeKL(flow, *[Ensemble(s, n, 4, **options) for s, n in ((a, "from"), (b, "to"))])


def forward():
    objective = sampler()
    options = {"chains": 12, "thermalization": 5, "refresh_every": 2, "steps": 3}
    return ForwardKL(objective.model, Ensemble(objective.action, "target", 4, **options))


def log_variance():
    objective = forward()
    return LogVariance(objective.model, objective.action, objective.ensemble)


def matrix_exchange():
    a, b = (Wilson("SU(2)", [2, 4], beta=beta) for beta in (1.0, 2.0))
    flow = ResidualFlow(a, initial_coefficient=0.02)
    options = {"chains": 12, "thermalization": 5, "refresh_every": 2, "steps": 3}
    return ExchangeKL(flow, *[Ensemble(s, n, 4, **options) for s, n in ((a, "from"), (b, "to"))])


RESUMED = [sampler, path_sampler, forward, log_variance, exchange, matrix_exchange]


@pytest.mark.parametrize(
    ("make", "optimiser"),
    [
        # One optimiser each; all pairs in the slow tests.
        pytest.param(
            make, optimiser, marks=pytest.mark.slow if o == n % 2 or make is matrix_exchange else ()
        )
        for n, make in enumerate(RESUMED)
        for o, optimiser in enumerate(("adam", "soap"))
    ],
)
def test_resumed_training_gives_the_same_bytes(make, optimiser, tmp_path):
    settings = Settings(
        steps=20,
        batch=8,
        optimiser=optimiser,
        learning_rate=1e-2,
        warmup=5,
        seed=3,
        gradient_clip=5.0,
    )
    whole, half = tmp_path / "whole.safetensors", tmp_path / "half.safetensors"
    assert Trainer(make(), settings, checkpoint=str(whole)).run()
    first = Trainer(make(), settings, checkpoint=str(half))
    assert not first.run(stop=lambda: first.step == 10)
    at_ten = half.read_bytes()
    second = Trainer(make(), settings, checkpoint=str(half))
    second.load(str(half))
    assert second.step == 10
    assert second.run()

    def tensors(path):
        data = path.read_bytes()
        return data[8 + int.from_bytes(data[:8], "little") :]

    assert tensors(whole) == tensors(half)
    # The comparison can fail: ten steps are not twenty.
    half.write_bytes(at_ten)
    assert tensors(whole) != tensors(half)


def test_checkpoint_of_another_optimiser_is_refused(tmp_path):
    path = str(tmp_path / "checkpoint.safetensors")
    for one, other in (("adam", "soap"), ("soap", "adam")):
        Trainer(sampler(), Settings(steps=2, batch=4, optimiser=one), checkpoint=path).run()
        trainer = Trainer(sampler(), Settings(steps=2, batch=4, optimiser=other), checkpoint=path)
        with pytest.raises(FlowFileError, match="optimiser"):
            trainer.load(path)


def test_soap_follows_a_valley_across_the_axes():
    """A quadratic whose axes are those of neither weights nor Adam, but of a product of bases."""
    torch.manual_seed(4)
    left, right = (torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64))[0] for _ in range(2))
    curvature = torch.logspace(0, -3, 36, dtype=torch.float64).reshape(6, 6)
    start = torch.randn(6, 6, dtype=torch.float64)
    reached = {}
    for name in ("adam", "soap"):
        weight = torch.nn.Parameter(start.clone())
        optimiser = make_optimiser(name, [weight], 0.03, (0.9, 0.99))
        for _ in range(300):
            optimiser.zero_grad()
            loss = (curvature * (left.T @ weight @ right) ** 2).sum()
            loss.backward()
            optimiser.step()
        reached[name] = float(loss.detach())
    assert reached["soap"] < reached["adam"] / 10


def test_a_weight_too_long_for_soap_is_told():
    with pytest.raises(ConfigError, match="5000 entries"):
        make_optimiser("soap", [torch.nn.Parameter(torch.zeros(2, 5000))], 0.1, (0.9, 0.99))


def test_training_lowers_the_loss():
    objective = sampler()

    def measured():
        batch = objective.evaluate(2000, stream(9, 0, "measure"))
        return float(batch.loss), float(batch.log_weights.std()) / 2000**0.5

    before, error_before = measured()
    assert Trainer(objective, Settings(steps=100, batch=64, learning_rate=1e-2)).run()
    after, error_after = measured()
    assert before - after > 6 * (error_before + error_after)


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name):
    factors = [learning_rate_factor(name, step, 100, 10, 0.05) for step in range(100)]
    assert factors[0] == pytest.approx(1 / 11)
    assert factors[10] == 1.0
    assert max(factors) == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[-1] == pytest.approx(1.0 if name == "constant" else 0.05, rel=0.05)


class Broken(Objective):
    """An objective whose gradient is NaN on chosen steps."""

    def __init__(self, bad):
        self.inner, self.bad, self.calls = sampler(), bad, 0

    @property
    def module(self):
        return self.inner.module

    def evaluate(self, n, rng):
        batch = self.inner.evaluate(n, rng)
        self.calls += 1
        if self.calls in self.bad:
            return type(batch)(batch.surrogate * math.nan, batch.loss, batch.log_weights)
        return batch

    def density_error(self, n, rng):
        return self.inner.density_error(n, rng)


def test_non_finite_gradients_are_skipped_and_counted():
    objective = Broken({3, 4})
    trainer = Trainer(objective, Settings(steps=6, batch=8))
    assert trainer.run()
    assert trainer.skipped == 2
    assert all(bool(torch.isfinite(p).all()) for p in objective.module.parameters())


def test_many_non_finite_gradients_stop_the_training():
    trainer = Trainer(Broken(set(range(5, 100))), Settings(steps=50, batch=8))
    with pytest.raises(TrainingError, match=r"step 13: 10 batches in a row"):
        trainer.run()


class Drifting(AffineCouplingFlow):
    """A flow that reports a density error as large as a coarse integrator's."""

    log_density_is_exact = False

    def density_error(self, x):
        return torch.full((x.shape[0],), 50.0, dtype=torch.float64)


def test_density_error_stops_the_training():
    action = Phi4([4, 4], lam=1.0, m2=-0.5)
    model = FlowModel(GaussianPrior(action), Drifting(action, layers=2, hidden=[2]))
    with pytest.raises(TrainingError, match="too coarse"):
        Trainer(ReverseKL(model, action), Settings(steps=100, batch=8)).run()


def test_checkpoint_of_another_flow_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"
    trainer = Trainer(sampler(), Settings(steps=1, batch=8), checkpoint=str(path))
    trainer.run()
    with pytest.raises(FlowFileError, match="another flow"):
        Trainer(exchange(), Settings(steps=1, batch=8)).load(str(path))
    atomic_save(path, {"a": torch.zeros(1)}, {"format": 1})
    with pytest.raises(FlowFileError, match="not a training checkpoint"):
        trainer.load(str(path))


def test_a_damaged_checkpoint_is_refused(tmp_path):
    path = tmp_path / "c.safetensors"

    def trainer():
        return Trainer(path_sampler(), Settings(steps=2, batch=4), checkpoint=str(path))

    trainer().run()
    sound = path.read_bytes()
    trainer().load(str(path))
    start = 8 + int.from_bytes(sound[:8], "little")
    chosen = random.Random(1)
    # As many bits of the header as of the numbers.
    places = [chosen.randrange(8, start) for _ in range(60)]
    places += [chosen.randrange(start, len(sound)) for _ in range(60)]
    for place in places:
        damaged = bytearray(sound)
        damaged[place] ^= 1 << chosen.randrange(8)
        path.write_bytes(damaged)
        with pytest.raises(FlowFileError, match=re.escape(str(path))):
            trainer().load(str(path))
    # Of earlier versions: without checksums.
    tensors, card = read_tensors_of(sound, path)
    del card["checksums"], card["checkpoint"]["layout"]
    atomic_save(path, tensors, card)
    trainer().load(str(path))


def read_tensors_of(data, path):
    path.write_bytes(data)
    return read_tensors(path)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("batch", 0),
        ("checkpoint_every", 0),
        ("learning_rate", 0.0),
        ("learning_rate", math.nan),
        ("warmup", 10),
        ("final_fraction", 0.0),
        ("beta1", 1.0),
        ("gradient_clip", -1.0),
        ("seed", -1),
    ],
)
def test_settings_out_of_range_name_the_key(key, value):
    with pytest.raises(ConfigError, match=f"^{key} = "):
        Settings(**{"steps": 10, "batch": 8, key: value})


def test_flow_without_weights_is_refused():
    class Still(Flow):
        def forward(self, x, log_density):
            return x, log_density

        inverse = forward

    action = Phi4([4, 4], lam=1.0, m2=-0.5)
    with pytest.raises(ConfigError, match="nothing to train"):
        Trainer(
            ReverseKL(FlowModel(GaussianPrior(action), Still()), action), Settings(steps=1, batch=2)
        )


def test_ensemble_continues_from_its_state():
    action = Phi4([4, 4], lam=1.0, m2=-0.5)

    def make():
        return Ensemble(action, "x", 1, chains=5, thermalization=3, steps=2)

    one = make()
    draws = [one.draw(7) for _ in range(6)]
    assert draws[0].shape == (7, 4, 4)
    assert len(torch.unique(draws[0][:5].flatten(1), dim=0)) == 5
    two = make()
    for _ in range(3):
        two.draw(7)
    three = make()
    three.load_state_dict(two.state_dict())
    for index in (3, 4, 5):
        assert torch.equal(three.draw(7), draws[index])
    assert three.kernel.tuning() == one.kernel.tuning()


def test_ensemble_has_the_right_distribution():
    action = Phi4([2], lam=0.0, m2=1.0)
    ensemble = Ensemble(action, "x", 2, chains=4000, thermalization=30, trajectory=0.7, steps=3)
    # (At trajectory length 1.0 the odd mode, of frequency sqrt(10), would turn by pi every time.)
    # Covariance of e^{-S}: half the inverse of the matrix [[3, -2], [-2, 3]] of two sites.
    exact = 0.5 * torch.linalg.inv(torch.tensor([[3.0, -2.0], [-2.0, 3.0]], dtype=torch.float64))
    x = ensemble.draw(4000)
    measured = x.T @ x / len(x)
    # Errors are below sqrt(2 / 4000) * 0.3 = 0.0067; six of these.
    assert (measured - exact).abs().max() < 0.04


@pytest.mark.parametrize("make", [path_sampler, exchange])
def test_a_resumed_training_keeps_to_its_way_to_a_force(make, tmp_path):
    path = str(tmp_path / "checkpoint.safetensors")
    first, second = (Trainer(make(), Settings(steps=1, batch=8), checkpoint=path) for _ in range(2))
    (force,) = PushedForce.all_of(first.objective)
    force.direct_way_holds = False
    first.save()
    second.load(path)
    assert [one.direct_way_holds for one in PushedForce.all_of(second.objective)] == [False]


class Forgetful(Flow):
    """x -> e^s x with s = 0 at first; what autograd takes for its inverse is wrong by a part s."""

    log_density_is_exact = True

    def __init__(self):
        super().__init__()
        self.s = torch.nn.Parameter(torch.zeros((), dtype=torch.float64))

    def forward(self, x, log_density):
        return x * self.s.exp(), log_density - x[0].numel() * self.s

    def inverse(self, y, log_density):
        x = y / self.s.exp()
        return x + self.s * (x.detach() - x), log_density + y[0].numel() * self.s


def test_a_way_to_a_force_that_goes_wrong_in_training_is_left(tmp_path):
    """A flow that begins as the identity does not show on its first batch what it does later."""
    action = Phi4([4, 4], lam=1.0, m2=-0.5)

    def trainer(name, steps):
        model = FlowModel(GaussianPrior(action), Forgetful())
        settings = Settings(steps=steps, batch=8, schedule="constant", learning_rate=1e-2)
        return Trainer(
            ReverseKL(model, action, gradient="path"), settings, checkpoint=str(tmp_path / name)
        )

    whole = trainer("whole", 6)
    ways = []
    whole.progress = lambda _: ways.append(whole.objective.density.pushed_force.direct_way_holds)
    whole.run()
    assert ways == [True] + [False] * 5
    for stop in (1, 2):
        parts = trainer(f"parts{stop}", 6)
        assert not parts.run(stop=lambda trainer=parts, stop=stop: trainer.step == stop)
        parts = trainer(f"parts{stop}", 6)
        parts.load(parts.checkpoint)
        parts.run()
        assert torch.equal(parts.module.flow.s, whole.module.flow.s)


@pytest.mark.parametrize("is_right", [True, False])
def test_the_error_of_an_integrator_is_not_taken_for_a_wrong_way(is_right, monkeypatch):
    """Trained continuous flows err by some 0.002 of the force, with few steps."""
    model = load_flow("zoo:phi4_8x8_l6.008").model.double()
    model.flow.steps = 16
    force = PushedForce(model.flow, Phi4([8, 8], lam=6.008, m2=-4.0).group)
    force.direct_way_holds = True
    z, _ = model.prior.sample(1, stream(1, 0, "z"))
    z, zero = z.requires_grad_(True), torch.zeros(1, dtype=torch.float64)
    if not is_right:
        right = model.flow.forward_with_force

        def wrong(x, log_density, v):
            y, log_density, v = right(x, log_density, v)
            return y, log_density, 1.1 * v

        model.flow.forward_with_force = wrong
    # Of no interest here, and it takes long.
    monkeypatch.setattr(adjoint, "solve_linear", lambda operator, target, start, tolerance: start)
    force.check_again()
    force.forward(z, zero, z.detach())
    assert force.direct_way_holds == is_right
