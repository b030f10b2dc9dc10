"""Every registered flow and prior keeps its contract, and a user's models are treated like ours.

A name that is added to the registry is tested without a change here; :data:`KEYS` holds what
classes cannot be built without or are fast with, :data:`THEORIES` what one of them may be of.
"""

import math

import pytest
import torch
from torch import nn

from flowmc.actions import DefectWilson, FreeScalar, Phi4, Wilson
from flowmc.actions.theory import describe_theory
from flowmc.cli import main
from flowmc.commands.train import train
from flowmc.config.toml_text import toml_text
from flowmc.evaluation import evaluate_sampler
from flowmc.evaluation.files import evaluate
from flowmc.flows import BetweenCouplings, FlowModel, GaussianPrior, Identity, Prior
from flowmc.flows.base import Flow
from flowmc.flows.cards.building import build_flow, build_local_model, build_prior
from flowmc.flows.cards.files import FlowFileError, load_flow, read_card, save_flow
from flowmc.flows.cards.matching import orient
from flowmc.identity import identity
from flowmc.kernels import Independence
from flowmc.registry import BUILTIN, ConfigError, resolve
from flowmc.testing import ContractError, check_flow, check_model
from flowmc.training.objectives import AlphaTwo, OverCouplings
from flowmc.training.plan import make_plan
from tests.run.small_runs import PHI4, write

THEORIES = (
    Phi4([4, 4], m2=-1.0, lam=1.0),
    DefectWilson("U(1)", [4, 4], beta=1.0, defect=0.5, defect_axis=0, defect_extents=[2]),
    Wilson("SU(2)", [4, 4], beta=1.0),
)
SMALL = {"frequencies": 3, "site_channels": 2, "time_channels": 2, "steps": 6}
KEYS = {
    "continuous": SMALL,
    "conditional_continuous": {"coupling": "lambda", "low": 0.5, "high": 2.0, **SMALL},
    "multi_lattice": {"coarsest": 4, **SMALL},
    "free_field": {"m2": 1.0},
    "transform": {"transform": "tests.flows.scaled:Scaled"},
    "super_resolution": {"m2": 1.0, "base": {"prior": {"name": "gaussian"}}},
}
# Parts of local models, which are built and compared as one.
LOCAL = {"block_coupling", "block_gaussian"}


def built(build, name):
    """Return a component of the registry with small weights, and a theory that it is for."""
    torch.manual_seed(1)
    for action in THEORIES:
        try:
            component = build({"name": name, **KEYS.get(name, {})}, action)
        except ConfigError as error:
            refusal = error
            continue
        if isinstance(component, nn.Module):
            component = component.double()
            for parameter in component.parameters():
                nn.init.normal_(parameter, std=0.02)
        return component, action
    raise refusal


@pytest.mark.parametrize("name", sorted(set(BUILTIN["flows"]) - LOCAL))
def test_registered_flows(name):
    flow, action = built(build_flow, name)
    check_flow(flow, action)
    assert flow.fingerprint() == identity(built(build_flow, name)[0])
    assert flow.transfers_to_other_lattices == resolve("flows", name).transfers_to_other_lattices
    if flow.fixed_steps is not None:
        flow.fixed_steps = 7
        assert flow.fixed_steps == 7
    weights = flow.weights_from(built(build_flow, name)[0], action)
    flow.load_state_dict(weights)
    with pytest.raises(ValueError, match="is a Plain, not a"):
        flow.weights_from(Plain(action), action)


@pytest.mark.parametrize("name", sorted(set(BUILTIN["priors"]) - LOCAL))
def test_registered_priors(name):
    prior, action = built(build_prior, name)
    check_model(prior, action)
    assert prior.at(action) is prior
    assert not prior.density_error(prior.starts(3, torch.Generator())).any()
    assert prior.fingerprint() == built(build_prior, name)[0].fingerprint()


def test_registered_local_parts():
    assert {*BUILTIN["flows"], *BUILTIN["priors"]} >= LOCAL
    tables = {
        "block": {"extents": [2, 2]},
        "prior": {"name": "block_gaussian"},
        "flow": {"name": "block_coupling"},
    }
    model = build_local_model(tables, THEORIES[0]).double()
    patch = THEORIES[0].on_lattice(model.block.patch).hot(3, torch.Generator().manual_seed(1))
    x, log_q = model.sample(patch, torch.Generator().manual_seed(4))
    assert torch.allclose(log_q, model.log_prob(x, patch), atol=1e-9)
    assert model.at(THEORIES[0]) is model and len(model.fingerprint()) == 32


class Plain(Flow):
    def __init__(self, action):
        super().__init__()

    def forward(self, x, log_density):
        return x, log_density

    inverse = forward


class Mine:
    """A user's model: of no class of ours, and no module."""

    def __init__(self, action, scale=0.5):
        self.action, self.scale = action, scale

    def sample(self, n, rng):
        x = self.scale * torch.randn(n, *self.action.lattice, dtype=torch.float64, generator=rng)
        return x, self.log_prob(x)

    def log_prob(self, x):
        constant = x[0].numel() * math.log(self.scale * math.sqrt(2 * math.pi))
        return -0.5 * (x / self.scale).square().flatten(1).sum(1) - constant

    def fingerprint(self):
        return f"mine {self.scale!r}"

    def at(self, action):
        return type(self)(action, self.scale)


class WrongInverse(Plain):
    def inverse(self, y, log_density):
        return 1.01 * y, log_density


class WrongJacobian(Plain):
    def forward(self, x, log_density):
        return 1.01 * x, log_density

    def inverse(self, y, log_density):
        return y / 1.01, log_density


class Coarse(Plain):
    """Says that it is exact, and by how much it is not."""

    def density_error(self, x):
        return torch.full((len(x),), 1e-3, dtype=torch.float64)


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        (WrongInverse, "its inverse is off"),
        (WrongJacobian, r"forward\(\) is off the full Jacobian"),
        (Coarse, r"density_error\(\) is not"),
    ],
)
def test_a_broken_flow_is_found(kind, sentence):
    with pytest.raises(ContractError, match=sentence):
        check_flow(kind(THEORIES[0]), THEORIES[0])


class Unnormalised(Mine):
    def sample(self, n, rng):
        x, log_q = super().sample(n, rng)
        return x, log_q + 0.1


def test_a_broken_model_is_found():
    action = FreeScalar([2, 3], m2=1.0)
    check_model(Mine(action), action)
    with pytest.raises(ContractError, match="two densities"):
        check_model(Unnormalised(action), action)


def steps_of(model, action, updates=4):
    kernel = Independence(action, model, proposals=3, batch_size=5)
    rng = torch.Generator().manual_seed(5)
    state = kernel.init(action.hot(8, rng))
    for _ in range(updates):
        # As after another kernel: the density of the field is asked for.
        state, info = kernel.step(kernel.init(state.field), rng)
    return state, info


def test_a_model_of_no_class_of_ours_is_sampled_and_evaluated():
    action = FreeScalar([2, 3], m2=1.0)
    gaussian = GaussianPrior(action, scale=0.5).double()
    expected, info = steps_of(FlowModel(gaussian, Identity()), action)
    assert bool(info.is_accepted.any()) and not bool(info.is_accepted.all())
    for model in (Mine(action), gaussian):
        state, _ = steps_of(model, action)
        torch.testing.assert_close(state.field, expected.field, rtol=1e-14, atol=1e-14)
        result, _ = evaluate_sampler(model, action, 64)
        reference, _ = evaluate_sampler(FlowModel(gaussian, Identity()), action, 64)
        assert result["log_z"] == pytest.approx(reference["log_z"], abs=1e-12)
        assert "density_error" not in result


def test_what_a_model_lacks_is_named():
    class Half:
        def sample(self, n, rng):
            raise NotImplementedError

    with pytest.raises(ConfigError, match=r"Half is no model: it lacks log_prob\(\), fingerprint"):
        Independence(THEORIES[0], Half())


class Inexact(Mine):
    log_density_is_exact = False


def test_an_inexact_density_is_measured_or_refused():
    action = FreeScalar([2, 3], m2=1.0)
    with pytest.raises(ConfigError, match=r"define density_error\(x\)"):
        evaluate_sampler(Inexact(action), action, 16)

    class Told(Inexact):
        def density_error(self, start):
            return torch.full((len(start),), 2e-4, dtype=torch.float64)

    assert evaluate_sampler(Told(action), action, 16)[0]["density_error"] == 2e-4


class Normal(Prior):
    """A user's prior, which is no module: a sampler by itself."""

    def __init__(self, action):
        self.mine = Mine(action)

    def sample(self, n, rng):
        return self.mine.sample(n, rng)

    def log_prob(self, x):
        return self.mine.log_prob(x)


def test_a_user_s_sampler_comes_in_by_a_flow_file(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    action = THEORIES[0].at(m2=-1.0, **{"lambda": 0.5})
    card = {
        "flow": {"name": "identity", "parameters": {}},
        "prior": {"name": f"{__name__}:Normal", "parameters": {}},
        "theory": describe_theory(action),
    }
    save_flow(tmp_path / "f.safetensors", FlowModel(Normal(action), Identity()), card)
    tables = {**PHI4, "update": [{"kernel": "independence", "flow": "f.safetensors"}]}
    config = write(tmp_path / "a.toml", tables)
    out = ["--output", str(tmp_path / "out"), "--trust", __name__]
    assert main(["run", config, *out]) == 0
    assert evaluate(str(tmp_path / "f.safetensors"), samples=64)[0]["acceptance"] > 0.01


class Drift(Flow):
    r"""A user's continuous flow, of no class of ours: Euler steps along :math:`w \sin\phi`."""

    log_density_is_exact = False

    def __init__(self, action, *, steps: int, strength: float = 0.0):
        super().__init__()
        self.w = nn.Parameter(torch.tensor(strength))
        self.fixed_steps = steps

    def _run(self, x):
        total, exact = 0.0, 0.0
        step = self.w / self.fixed_steps
        for _ in range(self.fixed_steps):
            slope = step * torch.cos(x.double())
            total = total + slope.flatten(1).sum(1)
            exact = exact + torch.log1p(slope).flatten(1).sum(1)
            x = x + step * torch.sin(x)
        return x, total, exact

    def forward(self, x, log_density):
        y, total, _ = self._run(x)
        return y, log_density - total

    def inverse(self, y, log_density):
        """Invert every step by iteration: what differs from the map is the density alone."""
        step, total = self.w / self.fixed_steps, 0.0
        for _ in range(self.fixed_steps):
            x = y
            for _ in range(60):
                x = y - step * torch.sin(x)
            total = total + (step * torch.cos(x.double())).flatten(1).sum(1)
            y = x
        return y, log_density + total

    def density_error(self, x):
        with torch.no_grad():
            _, total, exact = self._run(x)
        return (total - exact).abs()


def tables_of(flow, **training):
    return {
        "theory": {"action": "free", "lattice": [3, 4], "m2": 1.0},
        "prior": {"name": "gaussian", "scale": 0.4},
        "flow": flow,
        "training": {
            **{"steps": 2, "batch": 16, "learning_rate": 1e-3, "precision": 64},
            **{"evaluate_samples": 64, **training},
        },
    }


def test_a_user_s_continuous_flow_is_held_to_its_density(tmp_path, monkeypatch, capsys):
    """It is trained, refined and measured as ours is; too coarse steps are refused."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def trained(name, steps, strength, **training):
        flow = {"name": f"{__name__}:Drift", "steps": steps, "strength": strength}
        path = tmp_path / f"{name}.toml"
        path.write_text(toml_text(tables_of(flow, **training)))
        return main(["train", str(path), "--output", str(tmp_path / f"{name}.safetensors")])

    assert trained("fine", 20, 0.01, refined_steps=40) == 0
    card = read_card(tmp_path / "fine.safetensors")
    assert card["flow"]["parameters"]["steps"] == 40
    assert 0 < card["measured"]["density_error"] < 1e-3
    assert load_flow(tmp_path / "fine.safetensors").flow.fixed_steps == 40
    assert trained("fewer", 20, 0.01, refined_steps=10) == 2
    assert "should be at least the 20 steps" in capsys.readouterr().err
    assert trained("coarse", 1, 0.6) == 1
    assert "too coarse" in capsys.readouterr().err
    action = FreeScalar([3, 4], m2=1.0)
    wrong = Drift(action, steps=1, strength=0.6)
    save_flow(tmp_path / "w.safetensors", FlowModel(GaussianPrior(action, scale=0.4), wrong), {
        "flow": {"name": f"{__name__}:Drift", "parameters": {"steps": 1}},
        "prior": {"name": "gaussian", "parameters": {"scale": 0.4}},
        "theory": describe_theory(action),
    })  # fmt: skip
    assert main(["evaluate", str(tmp_path / "w.safetensors"), "--samples", "64"]) == 1
    assert "its integrator is too coarse" in capsys.readouterr().err


class Tuned(Flow):
    """A user's conditional flow, of no class of ours: one factor, a line in m2."""

    def __init__(self, action, *, low: float, high: float):
        super().__init__()
        self.conditional_on = ("m2", low, high)
        self.volume, self.value = action.volume, action.parameters["m2"]
        self.line = nn.Parameter(torch.zeros(2))

    def at(self, action):
        return TunedAt(self, action.parameters["m2"])

    def log_factor(self, value):
        return self.line[0] + self.line[1] * value

    def forward(self, x, log_density):
        return self.at_own.forward(x, log_density)

    def inverse(self, y, log_density):
        return self.at_own.inverse(y, log_density)

    @property
    def at_own(self):
        return TunedAt(self, self.value)


class TunedAt(Flow):
    def __init__(self, flow, value):
        super().__init__()
        self.flow, self.value = flow, value

    def forward(self, x, log_density):
        s = self.flow.log_factor(self.value)
        return x * s.exp(), log_density - s * self.flow.volume

    def inverse(self, y, log_density):
        s = self.flow.log_factor(self.value)
        return y / s.exp(), log_density + s * self.flow.volume


def test_a_user_s_conditional_flow_is_trained_over_its_range(tmp_path):
    flow = {"name": f"{__name__}:Tuned", "low": 0.5, "high": 2.0}
    plan = make_plan(tables_of(flow, couplings_per_batch=4, learning_rate=0.01, steps=60, batch=64))
    assert train(plan, tmp_path / "t.safetensors")
    loaded = load_flow(tmp_path / "t.safetensors")
    line = loaded.flow.line.detach()
    assert float(line[1]) < -0.02, "narrower where the mass is larger: it has seen the range"
    config = tmp_path / "e.toml"
    config.write_text('[theory]\naction = "free"\nlattice = [3, 4]\nm2 = 1.7\n')
    path = str(tmp_path / "t.safetensors")
    one, _ = evaluate(path, config=str(config), samples=64)
    config.write_text('[theory]\naction = "free"\nlattice = [3, 4]\nm2 = 0.6\n')
    assert one["kl"] != evaluate(path, config=str(config), samples=64)[0]["kl"]
    config.write_text('[theory]\naction = "free"\nlattice = [3, 4]\nm2 = 2.1\n')
    with pytest.raises(FlowFileError, match=r"conditional: m2 = 0.5 ... 2"):
        evaluate(path, config=str(config), samples=64)
    ends = [FreeScalar([3, 4], m2=m2) for m2 in (0.5, 2.0)]
    between = orient(loaded.card, loaded.flow, *ends)
    assert isinstance(between, BetweenCouplings)
    x = torch.ones(1, 3, 4, dtype=torch.float64)
    y, _ = between.forward(x, torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(y, x * (1.5 * line[1].double()).exp())


def test_annealing_goes_to_the_coupling_of_the_batch(monkeypatch):
    """alpha_two over couplings: flow and target of the annealing are those of each part."""
    action = FreeScalar([3, 4], m2=1.0)
    flow = Tuned(action, low=0.5, high=2.0).double()
    model = FlowModel(GaussianPrior(action, scale=0.4).double(), flow)
    objective = AlphaTwo(model, action)
    seen = []
    anneal = AlphaTwo._anneal

    def noted(self, *arguments):
        seen.extend((b.action.m2, b.model.flow.value) for b in self.bridges)
        return anneal(self, *arguments)

    monkeypatch.setattr(AlphaTwo, "_anneal", noted)
    OverCouplings(objective, 2).evaluate(8, torch.Generator().manual_seed(1))
    assert len(seen) == 8 and all(target == of_flow for target, of_flow in seen)
    assert len({target for target, _ in seen}) == 2 and model.flow is flow
