"""flowmc train, evaluate and zoo: end to end on small lattices, exit statuses and messages."""

import argparse
import contextlib
import json
import math
import os
import re
import signal
import time
import tomllib

import pytest
import torch

from flowmc import arguments
from flowmc.actions import FreeScalar, Phi4
from flowmc.commands import evaluate, finishing, train, zoo
from flowmc.evaluation import evaluate_exchange, evaluate_sampler
from flowmc.evaluation.density import DensityError
from flowmc.flows import AffineCouplingFlow, Flow, FlowModel, FreeFieldPrior, Identity
from flowmc.flows.cards.files import load_flow, read_card, save_flow
from flowmc.jobs import interrupts, stopping
from flowmc.registry import ConfigError
from flowmc.training import Reinforce, loop
from flowmc.training.plan import make_plan

KEYS = {
    "flow",
    "action",
    "samples",
    "ess",
    "ess_error",
    "acceptance",
    "log_z",
    "log_z_error",
    "kl",
    "max_weight_share",
    "pareto_k",
    "seconds_per_sample",
    "warnings",
}

SAMPLER = """
[theory]
action = "phi4"
lattice = [4, 4]
m2 = -0.5
lambda = 1.0
[flow]
name = "affine_coupling"
layers = 2
hidden = [2]
[prior]
name = "gaussian"
[training]
steps = 12
batch = 8
checkpoint_every = 5
evaluate_samples = 100
seed = 3
"""

EXCHANGE = """
[theory]
action = "phi4"
lattice = [4, 4]
m2 = -0.5
lambda = 1.0
[flow]
name = "affine_coupling"
layers = 2
hidden = [2]
[exchange]
from = {m2 = -0.5}
to = {m2 = 0.5}
chains = 16
thermalization = 5
steps = 3
[training]
steps = 6
batch = 8
direction = "symmetric"
evaluate_samples = 32
"""


def call(module, *words):
    parser = argparse.ArgumentParser()
    getattr(arguments, module.__name__.rpartition(".")[2])(parser)
    return module.run(parser.parse_args([str(word) for word in words]))


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "config.toml"
    path.write_text(SAMPLER)
    return path


def test_train_and_evaluate_a_sampler(config, tmp_path, capsys):
    output = tmp_path / "new" / "flow.safetensors"
    assert call(train, config, "--output", output) == 0
    card = read_card(output)
    assert card["kind"] == "sampler" and card["training"]["steps"] == 12
    assert card["flow"]["parameters"] == {
        "layers": 2,
        "hidden": [2],
        "kernel_size": 3,
        "odd": False,
        "masks": "checkerboard",
    }
    assert set(card["measured"]) == KEYS - {"flow", "action", "seconds_per_sample"}
    log = [json.loads(line) for line in (output.parent / "flow.log.jsonl").open()]
    assert [entry["step"] for entry in log] == [10]
    assert re.search("measures the flow with [0-9]+ samples", capsys.readouterr().err)
    assert call(evaluate, output, "--samples", 200, "--batch", 64, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    assert set(result) == KEYS and result["samples"] == 200
    # With the seed of the training, other draws than those of the card.
    assert card["measured"]["samples"] == 100
    assert call(evaluate, output, "--samples", 100, "--seed", 3, "--json") == 0
    assert json.loads(capsys.readouterr().out)["log_z"] != card["measured"]["log_z"]
    # Other couplings, and another lattice for a flow that transfers.
    config.write_text(SAMPLER.replace("[4, 4]", "[6, 4]").replace("m2 = -0.5", "m2 = 0.0"))
    assert call(evaluate, output, "--samples", 50, "--config", config) == 0
    assert "Phi4(R, 6x4, m2=0, lambda=1)" in capsys.readouterr().out
    assert call(train, config, "--output", output) == 2
    assert "exists: use --resume" in capsys.readouterr().err


@pytest.mark.parametrize("text", [SAMPLER.replace("seed = 3", "gradient = 'path'"), EXCHANGE])
def test_single_precision(text, tmp_path):
    output = tmp_path / "f.safetensors"
    plan = make_plan(tomllib.loads(text.replace("batch = 8", "batch = 8\nprecision = 32")))
    assert train.train(plan, output)
    loaded = load_flow(output)
    assert loaded.card["precision"] == 32 and loaded.card["training"]["skipped"] == 0
    assert all(p.dtype == torch.float32 for p in loaded.flow.parameters())
    assert loaded.card["measured"]["ess"] > 0


def test_train_and_evaluate_an_exchange_flow(tmp_path, capsys):
    config, output = tmp_path / "c.toml", tmp_path / "flow.safetensors"
    config.write_text(EXCHANGE)
    assert call(train, config, "--output", output) == 0
    card = read_card(output)
    assert card["from"] == {"m2": -0.5, "lambda": 1.0} and card["to"]["m2"] == 0.5
    # 32 samples are too few, and the card of the flow says so as the command does.
    assert card["measured"]["warnings"]
    assert f"warning: {card['measured']['warnings'][0]}" in capsys.readouterr().err
    assert call(evaluate, output, "--samples", 64, "--json") == 0
    result = json.loads(capsys.readouterr().out)
    extra = {"swap_rate", "swap_rate_error", "jeffreys", "swap_rate_gaussian"}
    assert set(result) == KEYS | extra


def test_interrupted_training_resumes_to_the_same_weights(tmp_path):
    plan = make_plan(tomllib.loads(SAMPLER))
    assert train.train(plan, tmp_path / "whole.safetensors")
    steps = []
    output = tmp_path / "parts.safetensors"
    assert not train.train(plan, output, progress=steps.append, stop=lambda: len(steps) == 6)
    assert not output.exists()
    with pytest.raises(ConfigError, match=r"checkpoint.safetensors exists: use --resume"):
        train.train(plan, output)
    assert train.train(plan, output, resume=True)
    whole, parts = (load_flow(tmp_path / f"{name}.safetensors") for name in ("whole", "parts"))
    assert whole.model.fingerprint() == parts.model.fingerprint()
    assert whole.card["measured"] == parts.card["measured"]
    lines = (tmp_path / "parts.log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [10]


def test_resume_refuses_another_configuration_and_takes_more_steps(tmp_path):
    output = tmp_path / "f.safetensors"
    assert train.train(make_plan(tomllib.loads(SAMPLER)), output)
    changed = make_plan(tomllib.loads(SAMPLER.replace("batch = 8", "batch = 9")))
    with pytest.raises(ConfigError, match=r"\[training\] batch = 8, but the configuration says 9"):
        train.train(changed, output, resume=True)
    longer = make_plan(tomllib.loads(SAMPLER.replace("steps = 12", "steps = 15")))
    assert train.train(longer, output, resume=True)
    assert read_card(output)["training"]["steps"] == 15


class Own(Reinforce):
    """An objective of a user, with a key of its own."""

    def __init__(self, model, action, *, power: float):
        super().__init__(model, action)
        assert power == 2.0


CHAINS = """[chains]
count = 12
thermalization = 4
refresh_every = 2
steps = 3
[training]"""


@pytest.mark.parametrize(
    ("objective", "chains"),
    [
        ("objective = 'reinforce'", False),
        ("objective = 'log_variance'", False),
        ("objective = 'tests.training.test_commands:Own'\npower = 2.0", False),
        ("objective = 'alpha_two'\nannealing_steps = 2\nleapfrog_steps = 1", False),
        ("objective = 'log_variance'\nensemble_share = 0.25", True),
        ("objective = 'forward_kl'", True),
        ("objective = 'forward_kl'\ngradient = 'score'", True),
    ],
)
def test_objectives_of_samplers(objective, chains, tmp_path):
    text = SAMPLER.replace("seed = 3", f"seed = 3\n{objective}")
    if chains:
        text = text.replace("[training]", CHAINS)
    plan, output, steps = make_plan(tomllib.loads(text)), tmp_path / "f.safetensors", []
    assert not train.train(plan, output, progress=steps.append, stop=lambda: len(steps) == 6)
    assert train.train(plan, output, resume=True)
    card = read_card(output)
    assert card["kind"] == "sampler" and card["training"]["steps"] == 12
    assert set(card["measured"]) == KEYS - {"flow", "action", "seconds_per_sample"}
    assert train.train(plan, tmp_path / "whole.safetensors")
    whole, parts = (load_flow(tmp_path / f"{name}.safetensors") for name in ("whole", "f"))
    assert whole.model.fingerprint() == parts.model.fingerprint()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_leave_a_checkpoint(number, config, tmp_path, monkeypatch, capsys):
    @contextlib.contextmanager
    def display(steps):
        # The signal arrives between two steps; the next step is the last.
        yield lambda event: signal.raise_signal(number) if event.step == 6 else None

    monkeypatch.setattr(train, "_display", display)
    before = signal.getsignal(number)
    assert call(train, config, "--output", tmp_path / "f.safetensors") == 128 + number
    assert signal.getsignal(number) == before
    assert "stopped with a checkpoint" in capsys.readouterr().err
    assert read_card(tmp_path / "f.checkpoint.safetensors")["checkpoint"]["step"] == 7
    assert not (tmp_path / "f.safetensors").exists()
    monkeypatch.undo()
    checkpoint = tmp_path / "f.checkpoint.safetensors"
    sound = checkpoint.read_bytes()
    checkpoint.write_bytes(sound[:-3] + bytes([sound[-3] ^ 1]) + sound[-2:])
    assert call(train, config, "--output", tmp_path / "f.safetensors", "--resume") == 2
    assert "have changed since they were written: restore it" in capsys.readouterr().err
    checkpoint.write_bytes(sound)
    assert call(train, config, "--output", tmp_path / "f.safetensors", "--resume") == 0
    assert (tmp_path / "f.safetensors").exists()


def test_a_time_limit_stops_with_a_checkpoint_and_the_same_command_goes_on(
    config, tmp_path, monkeypatch, capsys
):
    """As a batch system would have it: submitted until the flow is there, then left alone."""
    assert call(train, config, "--output", tmp_path / "whole.safetensors") == 0
    clock = iter(range(0, 100000, 10))
    monkeypatch.setattr(train, "time", argparse.Namespace(monotonic=lambda: float(next(clock))))
    monkeypatch.setattr(stopping, "time", train.time)
    config.write_text(SAMPLER.replace("checkpoint_every = 5", 'time_limit = "1m"'))
    output = tmp_path / "f.safetensors"
    statuses = []
    while not output.exists():
        statuses.append(call(train, config, "--output", output, "--resume"))
        assert len(statuses) < 12
    assert set(statuses[:-1]) == {stopping.OUT_OF_TIME} and statuses[-1] == 0
    assert "stopped with a checkpoint (time limit)" in capsys.readouterr().err
    whole = load_flow(tmp_path / "whole.safetensors")
    assert load_flow(output).model.fingerprint() == whole.model.fingerprint()
    before = output.read_bytes()
    monkeypatch.setattr(finishing, "_measure", lambda *_: 1 / 0)
    assert call(train, config, "--output", output, "--resume") == 0
    assert "is finished" in capsys.readouterr().err and output.read_bytes() == before
    # Without its checkpoint a flow of another configuration is not overwritten.
    (tmp_path / "f.checkpoint.safetensors").unlink()
    config.write_text(SAMPLER.replace("batch = 8", "batch = 9"))
    assert call(train, config, "--output", output, "--resume") == 2
    assert "of another configuration" in capsys.readouterr().err
    assert output.read_bytes() == before


def test_checkpoints_by_time(tmp_path, monkeypatch):
    clock = argparse.Namespace(monotonic=iter(range(1000)).__next__, perf_counter=time.perf_counter)
    monkeypatch.setattr(loop, "time", clock)
    text = SAMPLER.replace("checkpoint_every = 5", "checkpoint_every = '4s'")
    checkpoint, steps = tmp_path / "f.checkpoint.safetensors", []

    def note(event):
        exists = checkpoint.exists()
        steps.append(read_card(checkpoint)["checkpoint"]["step"] if exists else 0)

    plan = make_plan(tomllib.loads(text))
    assert train.train(plan, tmp_path / "f.safetensors", progress=note)
    assert steps == [0, 0, 0, 4, 4, 4, 4, 8, 8, 8, 8, 12]


def test_a_signal_while_measuring_ends_at_once(config, tmp_path, monkeypatch, capsys):
    """All steps are in the checkpoint by then."""
    ends = []
    monkeypatch.setattr(interrupts.os, "kill", lambda *arguments: ends.append(arguments))
    monkeypatch.setattr(
        finishing, "_measure", lambda *_: signal.raise_signal(signal.SIGTERM) or 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        call(train, config, "--output", tmp_path / "f.safetensors")
    assert ends == [(os.getpid(), signal.SIGTERM)]
    monkeypatch.undo()
    capsys.readouterr()
    assert call(train, config, "--output", tmp_path / "f.safetensors", "--resume") == 0
    assert "step" not in capsys.readouterr().err
    assert read_card(tmp_path / "f.safetensors")["training"]["steps"] == 12


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[training]", "[trainning]", r"unknown table \[trainning\]; did you mean 'training'"),
        ('[prior]\nname = "gaussian"', "", r"either \[prior\]"),
        ("[theory]", "theory = 3\n[x]", "unknown table|should be a table"),
        ("steps = 12", "step = 12", r"\[training\]: unknown key 'step'; did you mean 'steps'"),
        ("steps = 12", "", r"\[training\]: missing key 'steps'"),
        ("steps = 12", "steps = 0", r"\[training\]: steps = 0"),
        ("seed = 3", "precision = 16", r"\[training\]: precision = 16"),
        ("seed = 3", "time_limit = 'soon'", r"\[training\]: time_limit = 'soon': should be sec"),
        ("checkpoint_every = 5", "checkpoint_every = '5'", r"checkpoint_every = '5': should be"),
        ("seed = 3", "schedule = 'linear'", r"\[training\]: schedule = 'linear'"),
        ("seed = 3", "direction = 'forward'", r"\[training\]: unknown key 'direction'"),
        ("seed = 3", "objective = 'exchange_kl'", r"\[training\]: objective = 'exchange_kl'"),
        ("seed = 3", "objective = 'forward'", r"unknown objective 'forward'; did you mean"),
        ("seed = 3", "objective = 1", r"\[training\]: objective = 1: should be a name"),
        ("seed = 3", "objective = 'forward_kl'", r"'forward_kl': needs configurations of the ta"),
        ("seed = 3", "objective = 'flowmc.flows:Chain'", r"takes 'layers' by position"),
        ("seed = 3", "objective = 'flowmc.flows:Identity'", r"gives no Objective"),
        ("seed = 3", "objective = 'alpha_two'\nleapfrog_steps = 0", r"leapfrog_steps = 0: must be"),
        ("seed = 3", "gradient = 'score'", r"\[training\]: gradient = 'score'"),
        ("[training]", "[chains]\n[training]", r"\[chains\] would be ignored: reverse_kl needs no"),
        (
            "[training]",
            "[chains]\nchains = 3\n[training]\nobjective = 'forward_kl'",
            r"\[chains\]: unknown key 'chains'",
        ),
        (
            "[training]",
            "[chains]\ncount = 0\n[training]\nobjective = 'forward_kl'",
            r"\[chains\]: .*chains >= 1",
        ),
        (
            "[training]",
            "[chains]\n[training]\nobjective = 'log_variance'\nensemble_share = 1.5",
            r"\[training\]: ensemble_share = 1.5",
        ),
        ("seed = 3", "evaluate_samples = 3", "evaluate_samples"),
        ("m2 = -0.5", "m3 = -0.5", r"\[theory\]: unknown key 'm3'; did you mean 'm2'"),
        ("layers = 2", "layers = 0", r"\[flow\]: "),
        ('name = "gaussian"', 'name = "haar"', r"\[prior\]: "),
        ("[theory]", "[theory", "not valid TOML.*line"),
    ],
)
def test_unusable_sampler_configurations(old, new, message, config, tmp_path, capsys):
    text = SAMPLER.replace("evaluate_samples = 100\n", "") if "evaluate" in new else SAMPLER
    config.write_text(text.replace(old, new, 1))
    assert call(train, config, "--output", tmp_path / "f.safetensors") == 2
    errors = capsys.readouterr().err
    assert len(errors.splitlines()) == 1
    assert re.search(message, errors)
    assert not (tmp_path / "f.safetensors").exists()


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("from = {m2 = -0.5}\n", "", r"\[exchange\]: needs from"),
        ("{m2 = 0.5}", "{beta = 0.5}", r"\[exchange\] to: the phi4 action has no coupling 'beta'"),
        ("{m2 = 0.5}", "{m2 = '1'}", r"\[exchange\] to: m2 = '1': should be a number"),
        ("{m2 = 0.5}", "{m2 = -0.5}", "same theory"),
        ("chains = 16", "chain = 16", r"\[exchange\]: unknown key 'chain'; did you mean 'chains'"),
        ("[training]", "[chains]\n[training]", r"\[chains\] would be ignored: the chains are"),
        ("batch = 8", "batch = 8\nobjective = 'reinforce'", r"is for a configuration with \[prior"),
        ("chains = 16", "chains = 0", r"\[exchange\]: .*chains"),
        ("chains = 16", "integrator = 'omelyan'", r"\[exchange\]: unknown integrator"),
    ],
)
def test_unusable_exchange_configurations(old, new, message):
    with pytest.raises(ConfigError, match=message):
        make_plan(tomllib.loads(EXCHANGE.replace(old, new, 1)))


def test_unusable_command_lines(config, tmp_path, capsys):
    missing = tmp_path / "missing"
    assert call(train, missing, "--output", tmp_path / "f") == 2
    assert "there is no configuration file" in capsys.readouterr().err
    assert call(train, config, "--output", tmp_path / "f", "--device", "gpu") == 2
    assert "--device gpu" in capsys.readouterr().err
    assert call(train, config, "--output", config / "f") == 2
    assert "cannot make the directory" in capsys.readouterr().err
    assert call(evaluate, missing) == 2
    assert "there is no flow file" in capsys.readouterr().err
    assert call(evaluate, "zoo:nothing_like_it", "--json") == 2
    captured = capsys.readouterr()
    assert "there is no flow 'nothing_like_it'" in captured.err and captured.out == ""
    assert call(evaluate, missing, "--samples", 1) == 2
    assert "--samples 1" in capsys.readouterr().err


def exact_sampler(m2):
    action = FreeScalar([4, 4], m2=1.0)
    return FlowModel(FreeFieldPrior(action, m2=m2), Identity()).to(torch.float64), action


def test_evaluate_is_exact_on_the_free_field():
    model, action = exact_sampler(1.0)
    result, warnings = evaluate_sampler(model, action, 100, batch=30)
    assert result["log_z"] == pytest.approx(action.log_partition(), abs=1e-10)
    assert result["ess"] == pytest.approx(1) and result["acceptance"] == pytest.approx(1)
    assert result["kl"] == pytest.approx(0, abs=1e-10) and warnings == []
    # From another mass: ln Z, ESS and KL are Gaussian integrals over the modes.
    model, action = exact_sampler(1.3)
    result, _ = evaluate_sampler(model, action, 20_000)
    p = action.mode_action()
    q = p + 0.3
    ess = float((torch.sqrt(2 * p - q) * torch.sqrt(q) / p).prod())
    kl = float(0.5 * (p / q - 1 - (p / q).log()).sum())
    # Six jackknife errors: 2e-9 each.
    assert abs(result["log_z"] - action.log_partition()) < 6 * result["log_z_error"]
    assert abs(result["ess"] - ess) < 6 * result["ess_error"]
    assert abs(result["kl"] - kl) < 0.02


def test_swap_rate_of_the_identity_between_free_fields():
    a, b = FreeScalar([2, 2], m2=1.0), FreeScalar([2, 2], m2=1.4)
    result, _ = evaluate_exchange(
        Identity(), a, b, 4096, chains=512, separation=3, thermalization=30, trajectory=0.5, steps=4
    )
    # The works are w_F = 0.4 sum x_a^2 and w_R = -0.4 sum x_b^2 on exact draws.
    rng = torch.Generator().manual_seed(1)
    x_a, x_b = a.sample(200_000, rng), b.sample(200_000, rng)
    works = 0.4 * (x_a.square().flatten(1).sum(1) - x_b.square().flatten(1).sum(1))
    exact = (-works).clamp(max=0).exp()
    spread = math.hypot(result["swap_rate_error"], float(exact.std()) / 200_000**0.5)
    # Six standard deviations: 2e-9.
    assert abs(result["swap_rate"] - float(exact.mean())) < 6 * spread
    ratio = b.log_partition() - a.log_partition()
    assert abs(result["log_z"] - ratio) < 6 * result["log_z_error"]
    assert abs(result["jeffreys"] - float(works.mean())) < 0.03
    assert result["swap_rate_gaussian"] == pytest.approx(result["swap_rate"], abs=0.03)


class Halve(Flow):
    """y = x / 2: carries e^{-S} to e^{-4 S} exactly, and shows a wrong sign of its Jacobian."""

    def forward(self, x, log_density):
        return x / 2, log_density + math.log(2) * x[0].numel()

    def inverse(self, y, log_density):
        return 2 * y, log_density - math.log(2) * y[0].numel()


def test_swap_rate_of_an_exact_map_is_one():
    a = FreeScalar([2, 2], m2=1.0)
    result, warnings = evaluate_exchange(Halve(), a, 4.0 * a, 64, chains=32, thermalization=5)
    assert result["swap_rate"] == pytest.approx(1)
    assert result["ess"] == pytest.approx(1) and result["acceptance"] == pytest.approx(1)
    assert result["jeffreys"] == pytest.approx(0, abs=1e-10)
    assert result["log_z"] == pytest.approx(-4 * math.log(2)) and warnings == []


class Coarse(AffineCouplingFlow):
    """A flow that knows its density only up to one."""

    log_density_is_exact = False
    error = 1.0

    def density_error(self, x):
        return torch.full((x.shape[0],), self.error, dtype=torch.float64)


def test_density_errors_are_reported_or_refused(tmp_path, capsys):
    action = Phi4([4, 4], lam=1.0, m2=-0.5)
    torch.manual_seed(1)
    model = FlowModel(FreeFieldPrior(action, m2=1.0), Coarse(action, layers=2, hidden=[2]))
    model.flow.error = 1e-4
    result, _ = evaluate_sampler(model, action, 64)
    assert result["density_error"] == pytest.approx(1e-4)
    model.flow.error = 1e3
    with pytest.raises(DensityError, match="integrator is too coarse"):
        evaluate_sampler(model, action, 64)
    model.flow.error = math.nan
    with pytest.raises(DensityError):
        evaluate_sampler(model, action, 64)


def test_broken_weights_are_counted_and_bad_flows_warned_about():
    model, _ = exact_sampler(40.0)
    _, warnings = evaluate_sampler(model, FreeScalar([4, 4], m2=0.01), 300)
    assert any("single sample carries" in warning for warning in warnings)

    class Holes(Identity):
        def forward(self, x, log_density):
            return x, torch.where(x[:, 0, 0] > 0, log_density, torch.nan)

    model, action = exact_sampler(1.0)
    result, warnings = evaluate_sampler(FlowModel(model.prior, Holes()), action, 300)
    assert result["ess"] == pytest.approx(0.5, abs=0.2)
    assert any("weight counts as zero" in warning for warning in warnings)


def test_zoo_command(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("flowmc.zoo.MODELS", tmp_path)
    assert call(zoo) == 0
    assert "empty" in capsys.readouterr().out
    model, _ = exact_sampler(1.0)
    theory = {"action": "free", "group": "R", "lattice": [4, 4], "couplings": {"m2": 1.0}}
    card = {
        "flow": {"name": "identity", "parameters": {}},
        "prior": {"name": "free_field", "parameters": {"m2": 1.0}},
        "theory": theory,
        "measured": {"ess": 1.0, "acceptance": 1.0},
    }
    save_flow(tmp_path / "free.safetensors", model, card)
    (tmp_path / "free.json").write_text(json.dumps(read_card(tmp_path / "free.safetensors")))
    assert call(zoo) == 0
    table = capsys.readouterr().out
    assert "free" in table and "4x4" in table and "acceptance 1" in table
    assert call(zoo, "free") == 0
    assert json.loads(capsys.readouterr().out)["kind"] == "sampler"
    assert call(zoo, "fre") == 2
    assert "did you mean 'free'" in capsys.readouterr().err
    assert call(evaluate, "zoo:free", "--samples", 20, "--json") == 0
    assert json.loads(capsys.readouterr().out)["ess"] == pytest.approx(1.0)


def test_a_finished_flow_has_a_finer_integrator(tmp_path):
    begin = SAMPLER.index("[flow]")
    end = SAMPLER.index("\n[", begin) + 1
    keys = "frequencies = 3\nsite_channels = 2\ntime_channels = 2\ntime_frequencies = 1\n"
    text = f'{SAMPLER[:begin]}[flow]\nname = "continuous"\nsteps = 4\n{keys}\n{SAMPLER[end:]}'
    refined = text.replace("batch = 8", "batch = 8\nrefined_steps = 9")
    for name, source in (("a", text), ("b", refined)):
        train.train(make_plan(tomllib.loads(source)), tmp_path / f"{name}.safetensors")
    coarse, fine = (load_flow(tmp_path / f"{name}.safetensors") for name in "ab")
    assert coarse.flow.steps == 4 and fine.flow.steps == 9
    states = coarse.flow.state_dict(), fine.flow.state_dict()
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    assert fine.card["training"]["config"]["flow"]["steps"] == 4
    assert fine.card["measured"]["density_error"] < coarse.card["measured"]["density_error"] / 4
    for old, new, message in (
        ("refined_steps = 9", "refined_steps = 3", "at least the 4 steps"),
        ("steps = 4\n", 'integrator = "dopri5"\n', "would be ignored"),
    ):
        with pytest.raises(ConfigError, match=message):
            make_plan(tomllib.loads(refined.replace(old, new)))


def test_two_processes_do_not_train_one_flow(config, tmp_path, capsys):
    output = tmp_path / "new" / "f.safetensors"
    plan, seen = make_plan(tomllib.loads(SAMPLER)), []

    def meanwhile(event):
        if event.step == 6:
            for more in ([], ["--resume"]):
                seen.append(call(train, config, "--output", output, *more))

    assert train.train(plan, output, progress=meanwhile)
    assert seen == [2, 2]
    assert capsys.readouterr().err.count("another flowmc process is training") == 2
    names = ["f.checkpoint.safetensors", "f.log.jsonl", "f.safetensors"]
    assert sorted(path.name for path in output.parent.iterdir()) == names
