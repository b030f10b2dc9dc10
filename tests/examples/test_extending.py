"""Actions and kernels of one's own, as `examples/extending` shows them: in one file each."""

import importlib.util
import json
import math
import shutil
import sys
import tomllib
from pathlib import Path

import pytest
import torch

from flowmc.actions import FreeScalar, Wilson
from flowmc.actions.base import check_force
from flowmc.cli import main
from flowmc.config.toml_text import toml_text
from flowmc.nonequilibrium.starts import ExactStart
from flowmc.random import stream

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
    assert check_force(action, field, rng) < 1e-7
    assert check_force(action.at(beta=1.0), field, rng) < 1e-7
    assert action.at(beta=1.0).c1 == action.c1


class FewerSites(FreeScalar):
    """Counts twelve of sixteen sites: a wrong Jacobian."""

    volume = 12


@pytest.mark.parametrize(("action", "is_right"), [(FreeScalar, True), (FewerSites, False)])
def test_rescaling_leaves_a_gaussian_invariant(action, is_right):
    """S of V free modes has mean and variance V/2: 5 errors, false alarms 6e-7."""
    chains, rng = 40_000, stream(3, 0, "test")
    field, _ = ExactStart(FreeScalar([4, 4], m2=0.5)).sample(chains, rng)
    kernel = module("rescale").Rescale(action([4, 4], m2=0.5), width=0.2)
    state, shares = kernel.init(field), []
    for _ in range(5):
        state, info = kernel.step(state, rng)
        shares.append(float(info.is_accepted.double().mean()))
    assert 0.3 < min(shares) < 0.9
    assert (abs(float(state.action.mean()) - 8) < 5 * math.sqrt(8 / chains)) == is_right


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
