"""The stand-alone HMC of the examples, driven by flowmc, and functions in the style of packages."""

import importlib
import math
import sys
import tomllib

import numpy as np
import pytest

import flowmc
from flowmc.actions import ExternalAction
from flowmc.actions.solved import su_n_torus, u1_torus
from flowmc.cli import main
from flowmc.config.toml_text import toml_text
from flowmc.io import field_to_file_order
from flowmc.kernels import Request
from flowmc.random import stream
from tests.examples.test_examples import EXAMPLES, shortened

SOLVED = {
    "U(1)": (2.0, u1_torus),
    "SU(2)": (2.2, lambda beta, volume: su_n_torus(2, beta, volume)),
}


def exact(group, extent):
    """Return mean and standard deviation of the plaquette of a configuration, from ln Z."""
    beta, solve = SOLVED[group]
    volume, step = extent**2, 1e-3
    above, here, below = (solve(b, volume) for b in (beta + step, beta, beta - step))
    slope = (above.plaquette - below.plaquette) / (2 * step)
    return here.plaquette, math.sqrt(slope / volume)


def plaquettes(tmp_path, group, extent, chains, updates, trajectories):
    """Return the plaquettes of a run, (updates, chains), the first update left out."""
    table = tomllib.loads((EXAMPLES / "external/u1.toml").read_text())
    table["theory"] |= {"group": group, "lattice": [extent, extent]}
    table["theory"]["couplings"]["beta"] = SOLVED[group][0]
    table["chains"]["count"] = chains
    table["update"][0]["command"][-1] = str(trajectories)
    table["run"] |= {"thermalization": 1, "updates": updates, "report": False}
    table["measure"]["observables"] = ["plaquette"]
    path = EXAMPLES / "external"
    (tmp_path / "a.toml").write_text(toml_text(table))
    (tmp_path / "hmc.py").symlink_to(path / "hmc.py")
    assert main(["run", str(tmp_path / "a.toml"), "--output", str(tmp_path / "out")]) == 0
    return flowmc.read_run(tmp_path / "out").production.observables["plaquette"][:, :, 0]


@pytest.mark.parametrize("group", SOLVED)
def test_the_plaquette_is_exact(tmp_path, group):
    """Updates of 30 trajectories leave nothing of the one before; a false alarm in 10^6."""
    found = plaquettes(tmp_path, group, 24, chains=2, updates=3, trajectories=30)
    mean, deviation = exact(group, 24)
    assert abs(found.mean() - mean) < 4.9 * deviation / math.sqrt(found.size)


@pytest.mark.slow
@pytest.mark.parametrize("group", SOLVED)
def test_plaquettes_of_many_updates_have_pulls_of_unit_width(tmp_path, group):
    """The mean, and the width of the distribution; false alarms in 10^6."""
    found = plaquettes(tmp_path, group, 8, chains=4, updates=200, trajectories=20)
    mean, deviation = exact(group, 8)
    pulls = (found - mean) / deviation
    assert abs(pulls.mean()) < 4.9 / math.sqrt(pulls.size)
    assert abs(pulls.var() - 1) < 4.9 * math.sqrt(2 / pulls.size) * 1.5


@pytest.mark.parametrize("name", sorted(p.name for p in EXAMPLES.glob("external/*.toml")))
def test_run_example(tmp_path, name):
    path = shortened(f"external/{name}", tmp_path, report=False)
    assert main(["run", str(path), "--output", str(tmp_path / "out")]) == 0
    for kernel, values in flowmc.read_run(tmp_path / "out").production.kernels.items():
        if "energy_error" in values:
            assert np.isfinite(values["energy_error"]).all(), kernel


def test_functions_give_what_the_program_gives(tmp_path):
    """Of the same links, beta and seed, in the shapes of both packages: bit for bit."""
    sys.path.append(str(EXAMPLES / "external"))
    packages = importlib.import_module("packages")
    action = ExternalAction("SU(3)", [2, 4, 2, 6])
    links = field_to_file_order(action.hot(1, stream(1, 0, "links"))[0].numpy(), action)
    request = Request(1, 2**62 + 5, 0, 0, {}, tmp_path)
    found = [
        kind(action, beta=5.5).update(links, request) for kind in (packages.Gpt, packages.PyQuda)
    ]
    inside = np.moveaxis(links, 4, 0)
    expected, change, accepted = packages.one_trajectory(inside, 5.5, request.seed)
    for result, values in found:
        assert np.array_equal(result, np.moveaxis(expected, 0, 4))
        assert values == {"energy_error": change, "accepted": accepted}
