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
from flowmc.testing import ContractError, check_action, check_kernel

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
