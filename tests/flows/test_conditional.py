"""Conditional flows: one set of weights for a range of couplings.

The statistical checks compare with exact numbers of the free field at 5 standard errors: 6e-7 each,
8 of them, on fixed seeds.
"""

import json
import math

import pytest
import torch
from numpy.polynomial import chebyshev

from flowmc.actions import FreeScalar, Phi4
from flowmc.cli import main
from flowmc.commands.train import train
from flowmc.config.toml_text import toml_text
from flowmc.estimators.weights import effective_sample_size
from flowmc.evaluation import evaluate_sampler
from flowmc.evaluation.files import evaluate
from flowmc.flows import (
    BetweenCouplings,
    Chain,
    ConditionalContinuousFlow,
    ContinuousFlow,
    Identity,
    Inverse,
)
from flowmc.flows.cards.files import FlowFileError, load_flow
from flowmc.flows.cards.matching import check_flow_fits, orient
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.training.objectives.family import OverCouplings
from flowmc.training.plan import make_plan

SMALL = {"frequencies": 7, "site_channels": 4, "time_frequencies": 2, "time_channels": 3}
RANGE = {"coupling": "lambda", "low": 5.0, "high": 9.0}
TABLES = {
    "theory": {"action": "free", "lattice": [3, 4], "m2": 1.0},
    "prior": {"name": "gaussian", "scale": 0.4},
    "flow": {
        "name": "conditional_continuous",
        **{"coupling": "m2", "low": 0.5, "high": 2.0, "degree": 2},
        **SMALL,
        "steps": 4,
    },
    "training": {
        "steps": 120,
        "batch": 96,
        "optimiser": "soap",
        "learning_rate": 1e-2,
        "gradient": "path",
        "precision": 32,
        "refined_steps": 12,
        "evaluate_samples": 256,
    },
}


def make(lattice=(4, 3), degree=3, value=6.0):
    torch.manual_seed(1)
    action = Phi4(lattice, m2=-4.0, lam=value)
    flow = ConditionalContinuousFlow(action, **RANGE, degree=degree, **SMALL, steps=6).double()
    torch.nn.init.normal_(flow.kernels, std=0.05)
    return flow, action


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("conditional") / "free.safetensors"
    assert train(make_plan(TABLES), path)
    return path


@pytest.mark.parametrize("value", [5.0, 6.3, 9.0])
def test_weights_are_chebyshev_polynomials(value):
    flow, action = make()
    kernels = chebyshev.chebval((value - 7) / 2, flow.kernels.detach().numpy())
    plain = ContinuousFlow(action, **SMALL, steps=6).double()
    state = dict(flow.state_dict())
    plain.load_state_dict({**state, "kernels": torch.from_numpy(kernels)})
    x, zero = torch.randn(5, 4, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    for found, expected in zip(
        flow.at(action.at(**{"lambda": value})).forward(x, zero),
        plain.forward(x, zero),
        strict=True,
    ):
        assert torch.allclose(found, expected, atol=1e-12)


def test_the_flow_is_that_of_its_own_action():
    flow, action = make(value=6.0)
    x, zero = torch.randn(5, 4, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    bound, other = flow.at(action), flow.at(action.at(**{"lambda": 8.0}))
    y = flow.forward(x, zero)[0]
    assert torch.equal(bound.forward(x, zero)[0], y)
    assert not torch.allclose(other.forward(x, zero)[0], y, atol=1e-3)
    assert torch.equal(flow.forward(x, zero)[0], y), "another coupling leaves no trace"
    assert bound.distinction() != other.distinction()
    assert torch.equal(other.at(action).forward(x, zero)[0], y)


def test_there_and_back_between_couplings():
    flow, action = make()
    flow.steps = 60
    other = action.at(**{"lambda": 8.5})
    there, back = BetweenCouplings(flow, action, other), BetweenCouplings(flow, other, action)
    x, zero = torch.randn(5, 4, 3, dtype=torch.float64), torch.zeros(5, dtype=torch.float64)
    y, density = there.forward(x, zero)
    for image, total in (there.inverse(y, density), back.forward(y, density)):
        assert torch.allclose(image, x, atol=1e-6) and float(total.detach().abs().max()) < 1e-5


def test_adjoint_gradients_are_those_of_the_coupling():
    """The adjoint equation is solved when the flow is at its own coupling again."""
    grads = []
    for adjoint in (False, True):
        torch.manual_seed(1)
        action = Phi4([3, 4], m2=-4.0, lam=6.0)
        keys = {"integrator": "dopri5", "tolerance": 1e-7, "adjoint": adjoint}
        flow = ConditionalContinuousFlow(action, **RANGE, degree=1, **SMALL, **keys).double()
        torch.nn.init.normal_(flow.kernels, std=0.05)
        x, zero = torch.ones(1, 3, 4, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        y, density = flow.at(action.at(**{"lambda": 9.0})).forward(x, zero)
        (y.sum() + density.sum()).backward()
        grads.append(flow.kernels.grad)
    # T_1 is -1/2 at the coupling of the flow itself, and 1 at that of the batch.
    torch.testing.assert_close(grads[1], grads[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("value", [4.99, 9.01])
def test_out_of_range(value):
    flow, action = make()
    with pytest.raises(ValueError, match=r"made for lambda = 5 ... 9, not for"):
        flow.at(action.at(**{"lambda": value}))


@pytest.mark.parametrize(
    "keys, message",
    [
        ({"coupling": "kappa"}, "has no coupling 'kappa'; it has: m2, lambda"),
        ({"low": 9.0}, "needs low < high"),
        ({"degree": -1}, "degree >= 0"),
        ({"high": 5.5}, "not for lambda = 6"),
    ],
)
def test_refusals(keys, message):
    with pytest.raises(ValueError, match=message):
        ConditionalContinuousFlow(Phi4([4], m2=-4.0, lam=6.0), **{**RANGE, **keys})


@pytest.mark.slow
def test_one_training_serves_the_range(trained):
    """ln Z of the free field at four couplings, exactly known, and between them."""
    loaded = load_flow(trained)
    model = loaded.model.to(torch.float64)
    zs = {}
    for m2 in (0.5, 0.9, 1.4, 2.0):
        target = FreeScalar([3, 4], m2=m2)
        check_flow_fits(loaded.card, loaded.flow, target)
        with torch.no_grad():
            x, log_q = model.at(target).sample(1500, stream(1, 0, f"test {m2}"))
        log_weights = -target(x) - log_q
        assert effective_sample_size(log_weights).value > 0.95
        # The integrator's 12 steps shift ln Z by less than a quarter of this error.
        weights = (log_weights - target.log_partition()).exp()
        error = float(weights.std()) / math.sqrt(len(weights))
        assert abs(float(weights.mean()) - 1) < 5 * error
        zs[m2] = target, x
    first, x = zs[0.5]
    second, _ = zs[2.0]
    flow = orient(loaded.card, loaded.flow, first, second)
    exact = first.sample(1500, stream(2, 0, "test"))
    with torch.no_grad():
        y, change = flow.forward(exact, torch.zeros(len(x), dtype=torch.float64))
    ratio = (first(exact) - second(y) - change).exp()
    error = float(ratio.std()) / math.sqrt(len(ratio))
    plain = (first(exact) - second(exact)).exp()
    assert error < 0.2 * float(plain.std()) / math.sqrt(len(ratio))
    exact_ratio = math.exp(second.log_partition() - first.log_partition())
    assert abs(float(ratio.mean()) - exact_ratio) < 5 * error


def test_the_commands_take_any_coupling_of_the_range(trained, tmp_path):
    config = tmp_path / "evaluate.toml"
    config.write_text('[theory]\naction = "free"\nlattice = [3, 4]\nm2 = 1.7\n')
    result, _ = evaluate(str(trained), config=str(config), samples=512)
    assert result["ess"] > 0.9
    other = FreeScalar([3, 4], m2=1.7)
    found, _ = evaluate_sampler(load_flow(str(trained)).model, other, 512, purpose="objects")
    assert found["ess"] > 0.9
    config.write_text('[theory]\naction = "free"\nlattice = [3, 4]\nm2 = 2.1\n')
    with pytest.raises(FlowFileError, match=r"conditional: m2 = 0.5 ... 2"):
        evaluate(str(trained), config=str(config), samples=512)


def test_starts_from_a_flow_of_one_coupling(tmp_path):
    plain = {**TABLES, "flow": {"name": "continuous", **SMALL, "steps": 8}}
    plain["training"] = {**TABLES["training"], "steps": 3}
    train(make_plan(plain), tmp_path / "plain.safetensors")
    tables = {**TABLES, "training": {**TABLES["training"], "start_from": ""}}
    tables["training"]["start_from"] = str(tmp_path / "plain.safetensors")
    flow = make_plan(tables).build("cpu").module.flow
    old = load_flow(tmp_path / "plain.safetensors").flow
    assert torch.equal(flow.kernels[0], old.kernels) and not flow.kernels[1:].any()
    assert old.kernels.any()


@pytest.mark.parametrize(
    "table, keys, message",
    [
        ("training", {"couplings_per_batch": 5}, "cannot be shared evenly"),
        ("training", {"couplings_per_batch": 0}, "at least one"),
        ("training", {"objective": "forward_kl"}, "configurations"),
        ("flow", {"name": "continuous"}, "unknown key"),
    ],
)
def test_configurations_that_cannot_work(table, keys, message):
    tables = {**TABLES, table: {**TABLES[table], **keys}}
    if keys.get("objective"):
        tables["training"].pop("gradient")
        tables["chains"] = {"count": 8}
        message = "learns from configurations of one theory"
    with pytest.raises(ConfigError, match=message):
        make_plan(tables)


def chain_of(action, *ranges):
    """Return a chain with a layer of its own for every range."""
    layers = [ConditionalContinuousFlow(action, coupling="m2", **one, **SMALL) for one in ranges]
    return Chain([Identity(), Inverse(Inverse(layers[0])), *layers[1:]])


MODULE = """
from flowmc.flows import Chain, ConditionalContinuousFlow, Identity

class Mine(Chain):
    def __init__(self, action, *, low: float, high: float):
        keys = {"frequencies": 7, "site_channels": 4, "time_channels": 3, "steps": 4}
        flow = ConditionalContinuousFlow(action, coupling="m2", low=low, high=high, **keys)
        super().__init__([flow, Identity()])
"""


def test_a_conditional_flow_inside_a_chain_is_trained_over_its_range(tmp_path, monkeypatch):
    """And not at the coupling of [theory] alone, where every other would be as it began."""
    module = f"chain_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{module}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    flow = {"name": f"{module}:Mine", "low": 0.5, "high": 2.0}
    training = {k: v for k, v in TABLES["training"].items() if k != "refined_steps"}
    tables = {**TABLES, "flow": flow, "training": training}
    objective = make_plan(tables).build("cpu")
    assert isinstance(objective, OverCouplings)
    couplings = []
    inner = objective.objective.evaluate

    def evaluate(n, rng):
        couplings.append(objective.objective.action.parameters["m2"])
        return inner(n, rng)

    objective.objective.evaluate = evaluate
    objective.evaluate(8, stream(1, 0, "couplings"))
    quarters = [int(4 * (value - 0.5) / 1.5) for value in couplings]
    assert quarters == [0, 1, 2, 3]


def test_what_a_chain_is_conditional_on():
    action = FreeScalar([3, 4], m2=1.0)
    one, other = {"low": 0.5, "high": 2.0}, {"low": 0.8, "high": 3.0}
    assert chain_of(action, one, other).conditional_on == ("m2", 0.8, 2.0)
    assert chain_of(action, one).at(FreeScalar([3, 4], m2=1.5)).conditional_on == ("m2", 0.5, 2.0)
    assert Chain([Identity()]).conditional_on is None
    with pytest.raises(ConfigError, match=r"m2 = 0.5 ... 1, m2 = 1 ... 2: they should have"):
        _ = Chain(
            [
                ConditionalContinuousFlow(action, coupling="m2", low=low, high=high, **SMALL)
                for low, high in ((0.5, 1.0), (1.0, 2.0))
            ]
        ).conditional_on


def test_couplings_per_batch_of_a_plain_flow():
    tables = {**TABLES, "flow": {"name": "continuous", **SMALL}}
    tables["training"] = {**TABLES["training"], "couplings_per_batch": 2}
    with pytest.raises(ConfigError, match="would be ignored"):
        make_plan(tables)


@pytest.mark.slow
def test_derivatives_in_the_coupling(trained, tmp_path, capsys):
    """Correlated differences along the flow: d<phi^2>/dm2 of the free field is known."""
    tables = {
        "theory": {"action": "free", "lattice": [3, 4], "m2": 1.0},
        "chains": {"count": 48, "seed": 3},
        "update": [{"kernel": "hmc", "trajectory": 1.5, "steps": 8}],
        "run": {"thermalization": 20, "updates": 20},
        "measure": {"observables": ["phi2"]},
        "derivative": [
            {
                "method": "difference",
                "coupling": "m2",
                "steps": [0.2, 0.1],
                "flows": [[str(trained), str(trained)]] * 2,
            }
        ],
        "analysis": {"report": False},
    }
    config = tmp_path / "correlate.toml"
    config.write_text(toml_text(tables))
    assert main(["correlate", str(config), "--output", str(tmp_path / "out"), "--json"]) == 0
    sections = json.loads(capsys.readouterr().out)["sections"]
    (section,) = (entry for key, entry in sections.items() if "difference" in key)
    result = section["results"]["phi2"]
    momenta = [2 * math.pi * k / n for n in (3, 4) for k in range(n)]
    modes = [
        4 * math.sin(a / 2) ** 2 + 4 * math.sin(b / 2) ** 2 + 1
        for a in momenta[:3]
        for b in momenta[3:]
    ]
    exact = -sum(0.5 / mode**2 for mode in modes) / len(modes)
    assert abs(result["value"] - exact) < 5 * result["error"]
    assert result["error"] < 0.05 * abs(exact)
