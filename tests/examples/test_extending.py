"""Actions and kernels of one's own, as `examples/extending` shows them: in one file each."""

import importlib.util
import json
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from flowmc.actions import FreeScalar, Wilson
from flowmc.cli import main
from flowmc.config.toml_text import toml_text
from flowmc.flows import check_equivariance, check_inverse, check_log_det
from flowmc.flows.cards.files import read_card
from flowmc.kernels import Exchange
from flowmc.testing import (
    ContractError,
    check_action,
    check_flow,
    check_kernel,
    gauge_transformation,
)

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


class FewerSites(FreeScalar):
    """Counts twelve of sixteen sites: a wrong Jacobian."""

    volume = 12


def test_rescaling_keeps_its_contract():
    rescale, action = module("rescale").Rescale, FreeScalar([4, 4], m2=0.5)
    check_kernel(lambda: rescale(action, width=0.2), action)
    wrong = FewerSites([4, 4], m2=0.5)
    with pytest.raises(ContractError, match="does not leave the density"):
        check_kernel(lambda: rescale(wrong, width=0.2), wrong)


@pytest.mark.parametrize("name", ["improved_action", "rescale"])
def test_example_runs(name, tmp_path, capsys, monkeypatch):
    for path in EXTENDING.glob("*.py"):
        shutil.copy(path, tmp_path)
    tables = tomllib.loads((EXTENDING / f"{name}.toml").read_text())
    tables["run"] |= {"thermalization": 2, "updates": 4, "report": False}
    tables["theory"]["lattice"] = [4, 4]
    (tmp_path / "a.toml").write_text(toml_text(tables))
    monkeypatch.chdir(tmp_path)
    assert main(["run", "a.toml", "--output", "out"]) == 0
    capsys.readouterr()
    assert main(["report", "out", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["updates"] == 4
    if name == "rescale":
        assert found["kernels"]["rescale"]["values"]["factor"]["title"] == "factor of the field"


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
