"""Actions and kernels of one's own, as `examples/extending` shows them: in one file each."""

import contextlib
import importlib.util
import json
import math
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch
from scipy.special import iv

from flowmc.actions import FreeScalar, Wilson
from flowmc.cli import main
from flowmc.config.toml_text import toml_text
from flowmc.flows import (
    GaussianPrior,
    HaarPrior,
    PlaquetteFlow,
    ResidualFlow,
    check_equivariance,
    check_inverse,
    check_log_det,
)
from flowmc.flows.cards.files import read_card
from flowmc.kernels import HMC, Exchange, SignFlip
from flowmc.lattice import sum_over_sites
from flowmc.loops import SHAPES, images, loop_trace
from flowmc.native import torch_only, why_in_torch
from flowmc.observables import topological_charge
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.testing import (
    ContractError,
    check_action,
    check_flow,
    check_kernel,
    check_steps,
    gauge_transformation,
    statistics_of,
)
from flowmc.vector_fields import KernelFields

EXTENDING = Path(__file__).parents[2] / "examples" / "extending"


def module(name):
    spec = importlib.util.spec_from_file_location(f"extending_{name}", EXTENDING / f"{name}.py")
    loaded = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = loaded
    spec.loader.exec_module(loaded)
    return loaded


@pytest.mark.parametrize("group", ["U(1)", "SU(2)", "SU(3)"])
def test_improved_action(group):
    rng = torch.Generator().manual_seed(1)
    lattice, improved = [3, 3, 4], module("improved_action").Improved
    field = Wilson(group, lattice, beta=1.0).hot(2, rng)
    # Without rectangles it is Wilson's, of a cold field there are d(d-1)/2 and d(d-1) loops a site.
    plain = improved(group, lattice, beta=2.0, c1=0.0)
    assert torch.allclose(plain(field), Wilson(group, lattice, beta=2.0)(field), rtol=1e-12)
    action = improved(group, lattice, beta=2.0)
    cold = float(action(action.cold(1, torch.float64 if group == "U(1)" else torch.complex128))[0])
    assert cold == pytest.approx(-2.0 * 36 * ((1 + 8 / 12) * 3 - 6 / 12), rel=1e-12)
    check_action(action)
    assert action.at(beta=1.0).c1 == action.c1


class InTorch(Wilson):
    """The improved action in plain torch, with autograd's force: the other way to write one."""

    c1 = -1 / 12

    def __call__(self, field):
        total = 0.0
        for shape, weight in (("plaquette", 1 - 8 * self.c1), ("rectangle", self.c1)):
            trace = loop_trace(field, images(SHAPES[shape], self.dimensions), self.group)
            total = total + weight * sum_over_sites(trace)
        # U(1) has N = 1, and loop_trace gives its cosines.
        return -self.beta / getattr(self.group, "n", 1) * total


@pytest.mark.parametrize("group", ["U(1)", "SU(2)", "SU(3)", "SU(4)"])
def test_improved_action_by_both_engines_and_in_plain_torch(group):
    lattice = [3, 2, 4]
    plain, action = (
        InTorch(group, lattice, beta=2.0),
        module("improved_action").Improved(group, lattice, beta=2.0),
    )
    assert "formulas of its own" in why_in_torch(plain)
    assert (why_in_torch(action) is None) == (group != "SU(4)")
    rng = stream(2, 0, "test")
    field = action.hot(2, rng)
    moved, _ = HMC(action, steps=4).step(HMC(action).init(field), stream(5, 0, "test"))
    expected, _ = HMC(plain, steps=4).step(HMC(plain).init(field), stream(5, 0, "test"))
    assert (moved.field - expected.field).abs().max() < 1e-12
    assert not torch.equal(moved.field, field)
    assert torch.allclose(action(field), plain(field), rtol=1e-12)
    assert (action.force(field) - plain.force(field)).abs().max() < 1e-12
    with torch_only():
        assert torch.allclose(action(field), plain(field), rtol=1e-12)
        assert (action.force(field) - plain.force(field)).abs().max() < 1e-12


def exact_nearest(group, beta, sites):
    """Return d ln Z / d beta / L of a ring of L spins, by characters.

    Z = sum_n lambda_n^L d_n^2 with lambda_n the eigenvalue of exp(beta Re tr U / N) on the
    representation n: I_n(beta) of U(1), 2 I_n(beta) / beta of SU(2), of dimension n.
    """

    def log_z(b):
        if group == "U(1)":
            return math.log(sum(iv(abs(n), b) ** sites for n in range(-30, 31)))
        return math.log(sum(n**2 * (2 * iv(n, b) / b) ** sites for n in range(1, 30)))

    return (log_z(beta + 1e-4) - log_z(beta - 1e-4)) / 2e-4 / sites


@pytest.mark.parametrize(("group", "beta"), [("U(1)", 1.5), ("SU(2)", 2.5)])
def test_spins_on_a_ring(group, beta):
    """5 errors of independent chains: false alarms 6e-7; 15 % of beta are seen."""
    chains, sites, spins = 2500, 5, module("spin_action")
    action = spins.Chiral(group, [sites], beta=beta)
    rng = stream(7, 0, "test")
    field = action.hot(chains, rng)
    assert tuple(field.shape[1:]) == (sites, *action.group.element_shape)
    kernel = HMC(action, trajectory=1.5, steps=5)
    state = kernel.init(field)
    for _ in range(18):
        state, info = kernel.step(state, rng)
    assert float(info.is_accepted.double().mean()) > 0.8
    found = spins.nearest(state.field, action)
    error = float(found.std()) / math.sqrt(chains)
    assert abs(float(found.mean()) - exact_nearest(group, beta, sites)) < 5 * error
    assert abs(float(found.mean()) - exact_nearest(group, 1.15 * beta, sites)) > 5 * error


def test_spins_are_where_they_say():
    spins = module("spin_action").Chiral("SU(3)", [4, 6], beta=1.0)
    assert not spins.is_gauge and not spins.is_scalar and spins.volume == 24
    check_action(spins)
    check_steps(lambda: HMC(spins), spins)
    field = spins.hot(3, torch.Generator().manual_seed(1))
    assert statistics_of(spins, field).shape == (3, 1 + 2 * 18)
    both = 0.5 * spins + spins.on_lattice([4, 6])
    assert both.space == spins.space and both.field_shape(2) == (2, 4, 6, 3, 3)
    assert both.cold(2, torch.float32).dtype == torch.complex64
    with pytest.raises(ValueError, match="cannot add"):
        spins + Wilson("SU(3)", [4, 6], beta=1.0)
    with pytest.raises(ConfigError, match="observable of gauge fields"):
        topological_charge(spins.cold(1), spins)
    for refused in (GaussianPrior, PlaquetteFlow, ResidualFlow, KernelFields, SignFlip):
        with pytest.raises((ValueError, ConfigError), match=r"the theory is|links"):
            refused(spins)
    prior = HaarPrior(spins)
    x, log_q = prior.sample(3, stream(1, 0, "test"))
    assert x.shape == spins.field_shape(3) and torch.equal(log_q, torch.zeros(3))


def spin_run(tmp_path, monkeypatch, **changes):
    shutil.copy(EXTENDING / "spin_action.py", tmp_path)
    tables = tomllib.loads((EXTENDING / "spin_action.toml").read_text())
    tables["theory"]["lattice"] = [4, 4]
    tables["run"] = {"thermalization": 2, "updates": 4, "report": False}
    for name, table in changes.items():
        tables[name] = tables.get(name, {}) | table
    (tmp_path / "a.toml").write_text(toml_text(tables))
    monkeypatch.chdir(tmp_path)


def test_spins_from_a_configuration(tmp_path, monkeypatch, capsys):
    """Checkpoints, resumed bit for bit; and what no file holds is refused."""
    spin_run(tmp_path, monkeypatch, run={"checkpoint_every": 1})
    assert main(["run", "a.toml", "--output", "whole"]) == 0
    stopped = []

    def stop(*arguments, **keywords):
        stopped.append(0)
        if len(stopped) == 3:
            raise KeyboardInterrupt
        return step(*arguments, **keywords)

    step = HMC.step
    monkeypatch.setattr(HMC, "step", stop)
    with contextlib.suppress(KeyboardInterrupt):
        main(["run", "a.toml", "--output", "parts"])
    monkeypatch.setattr(HMC, "step", step)
    assert len(stopped) == 3
    assert main(["run", "a.toml", "--output", "parts", "--resume"]) == 0
    for name in ("checkpoint.h5", "measurements.h5"):
        whole, parts = ((tmp_path / part / name).read_bytes() for part in ("whole", "parts"))
        assert whole == parts
    capsys.readouterr()
    for changes, message in (
        (
            {"ensemble": {"format": "npy"}, "run": {"save_every": 2}},
            "no file format holds SU(2) on the sites of a 4x4",
        ),
        ({"chains": {"start": "file", "file": "x.npy"}}, "no file format holds SU(2) on the sites"),
    ):
        spin_run(tmp_path, monkeypatch, **changes)
        assert main(["run", "a.toml", "--output", "other"]) == 2
        assert message in capsys.readouterr().err


class FewerSites(FreeScalar):
    """Counts twelve of sixteen sites: a wrong Jacobian."""

    volume = 12


def test_rescaling_keeps_its_contract():
    rescale, action = module("rescale").Rescale, FreeScalar([4, 4], m2=0.5)
    check_kernel(lambda: rescale(action, width=0.2), action)
    wrong = FewerSites([4, 4], m2=0.5)
    with pytest.raises(ContractError, match="does not leave the density"):
        check_kernel(lambda: rescale(wrong, width=0.2), wrong)


@pytest.mark.parametrize("name", ["improved_action", "rescale", "spin_action"])
def test_example_runs(name, tmp_path, capsys, monkeypatch):
    for path in EXTENDING.glob("*.py"):
        shutil.copy(path, tmp_path)
    tables = tomllib.loads((EXTENDING / f"{name}.toml").read_text())
    tables["run"] |= {"thermalization": 2, "updates": 4, "report": False}
    tables["theory"]["lattice"] = [4, 4]
    (tmp_path / "a.toml").write_text(toml_text(tables))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "a.toml", "--output", "out"]) == 0
    assert ("not compiled" in capsys.readouterr().err) == (name == "spin_action")
    assert main(["report", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["updates"] == 4
    if name == "rescale":
        assert found["kernels"]["rescale"]["values"]["factor"]["title"] == "factor of the field"
        # What a kernel does not count has not passed a check.
        assert "non_finite" in found["kernels"]["hmc"]
        assert "non_finite" not in found["kernels"]["rescale"]


@pytest.mark.parametrize("lattice", [[4, 2], [2, 2, 4]])
def test_smearing_keeps_its_contract(lattice):
    action = Wilson("U(1)", lattice, beta=1.0)
    flow = module("smearing").Smearing(action).double()
    torch.manual_seed(1)
    torch.nn.init.normal_(flow.weights)
    check_flow(flow, action)
    x = action.hot(3, torch.Generator().manual_seed(2))
    links, _ = gauge_transformation(action, 3, torch.Generator().manual_seed(3))
    assert max(check_inverse(flow, x)) < 1e-12
    assert check_log_det(flow, x, action.group) < 1e-12
    assert check_log_det(flow, x, action.group, inverse=True) < 1e-12
    assert max(check_equivariance(flow, x, links)) < 1e-12
    # By two sites, as the colours have it.
    assert max(check_equivariance(flow, x, lambda links: links.roll(2, 2))) < 1e-12
    # As steep as a map that can be inverted is.
    torch.nn.init.constant_(flow.weights, 8.0)
    assert check_inverse(flow, x)[0] < 1e-6


def test_smearing_is_trained_and_proposes(tmp_path, capsys, monkeypatch):
    """It learns, its flow file is used by independence and exchange, and only if it is trusted."""
    for path in EXTENDING.glob("*.py"):
        shutil.copy(path, tmp_path)
    monkeypatch.chdir(tmp_path)
    training = tomllib.loads((EXTENDING / "smearing_train.toml").read_text())
    training["theory"]["lattice"] = [4, 4]
    training["training"] |= {"steps": 30, "batch": 64, "evaluate_samples": 1024}
    Path("train.toml").write_text(toml_text(training))
    assert main(["train", "train.toml", "--output", "smearing.safetensors"]) == 0
    assert read_card("smearing.safetensors")["measured"]["ess"] > 0.3
    tables = tomllib.loads((EXTENDING / "smearing.toml").read_text())
    tables["run"] |= {"thermalization": 2, "updates": 10, "report": False}
    tables["theory"]["lattice"] = [4, 4]
    tables["update"][1]["flow"] = "smearing.safetensors"
    Path("run.toml").write_text(toml_text(tables))
    command = ["run", "run.toml", "--output", "out"]
    monkeypatch.setattr("flowmc.registry._TRUSTED", {"flowmc"})
    assert main(command) == 2
    assert "--trust smearing" in capsys.readouterr().err
    assert main([*command, "--trust", "smearing"]) == 0
    capsys.readouterr()
    assert main(["report", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert 0.2 < found["kernels"]["independence"]["acceptance"] < 1

    action = Wilson("U(1)", [4, 2], beta=1.0)
    ladder = [action, action.at(beta=1.4)]
    smearing = module("smearing").Smearing

    def exchange():
        flow = smearing(action, sweeps=1).double()
        torch.nn.init.constant_(flow.weights, 0.3)
        return Exchange(ladder, [flow])

    check_kernel(exchange, ladder, draws=1000)
