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
from flowmc.estimators.autocorrelation import analyse
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


def ladder(tmp_path, name, **changes):
    table = tomllib.loads((EXAMPLES / "external/u1_ladder.toml").read_text())
    table["run"] |= {"thermalization": 2, "updates": 4, "report": False, "save_every": 2}
    table["ensemble"] = {"format": "npy"}
    for key, change in changes.items():
        table[key] = change(table[key])
    if table["ensemble"] is None:
        del table["ensemble"]
    path = tmp_path / f"{name}.toml"
    path.write_text(toml_text(table))
    if not (tmp_path / "hmc.py").exists():
        (tmp_path / "hmc.py").symlink_to(EXAMPLES / "external/hmc.py")
    return path


KEYS = {"beta": 6.0, "defect": [1.0, 0.5, 0.0], "defect_extents": [2]}


def smaller(theory):
    return theory | {"lattice": [4, 4]}


def test_a_ladder_knows_the_difference_as_well_as_the_whole(tmp_path):
    """The same program, exchanged with and without the whole action: bit for bit."""
    part = ladder(
        tmp_path, "part", theory=smaller, ladder=lambda _: {"difference": "wilson_defect", **KEYS}
    )
    settings = {key: KEYS[key] for key in ("beta", "defect_extents")}
    known = {"action": "wilson_defect", "group": "U(1)", "lattice": [4, 4], "defect": 1.0}
    whole = ladder(
        tmp_path,
        "whole",
        theory=lambda _: known | settings,
        ladder=lambda _: {"defect": KEYS["defect"]},
    )
    runs = []
    for path in (part, whole):
        assert main(["run", str(path), "--output", str(path.with_suffix(""))]) == 0
        runs.append(flowmc.read_run(path.with_suffix("")).production)
    one, other = runs
    assert one.kernels["pair[0]"]["tried"].sum() + one.kernels["pair[1]"]["tried"].sum() == 4
    assert one.kernels["pair[1]"]["accepted"].sum() + one.kernels["pair[0]"]["accepted"].sum() > 0
    assert np.array_equal(one.walkers, other.walkers)
    for key, values in one.observables.items():
        assert np.array_equal(values, other.observables[key])
    assert np.array_equal(one.kernels["pair[0]"]["work"], other.kernels["pair[0]"]["work"], True)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"flows": ["zoo:x", "identity"]}, "needs the whole action"),
        ({"difference": "wilson_defekt"}, "did you mean 'wilson_defect'"),
        ({"difference": "phi4"}, "[ladder]: difference"),
        ({"difference": "external"}, "[ladder]: difference"),
        ({"defekt": [1.0, 0.0]}, "did you mean 'defect'"),
        ({"beta": [6.0, 5.0]}, "differ in number of values"),
        ({"defect": 1.0}, "needs the values of a coupling"),
    ],
)
def test_what_is_no_difference_is_refused(tmp_path, capsys, changes, sentence):
    keys = {"difference": "wilson_defect", **KEYS, **changes}
    path = ladder(tmp_path, "a", theory=smaller, ladder=lambda _: keys)
    assert main(["run", str(path), "--output", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert sentence in said and len(said.splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_a_known_action_has_no_other_difference(tmp_path, capsys):
    known = {"action": "wilson", "group": "U(1)", "lattice": [4, 4], "beta": 6.0}
    path = ladder(tmp_path, "a", theory=lambda _: known)
    assert main(["run", str(path), "--output", str(tmp_path / "out")]) == 2
    assert "flowmc knows the action wilson" in capsys.readouterr().err


@pytest.mark.slow
def test_tempering_over_the_program_gives_the_exact_susceptibility(tmp_path):
    """<Q^2> at beta = 6 on an 8 x 8 lattice, where the program alone hardly tunnels."""
    path = ladder(
        tmp_path,
        "a",
        theory=lambda theory: theory | {"lattice": [8, 8]},
        run=lambda run: {"thermalization": 50, "updates": 1000, "report": False},
        ladder=lambda keys: keys | {"defect": [1.0, 0.6, 0.3, 0.0]},
        chains=lambda chains: chains | {"count": 2},
        ensemble=lambda _: None,
    )
    assert main(["run", str(path), "--output", str(tmp_path / "out")]) == 0
    charge = flowmc.read_run(tmp_path / "out").production.observables["topological_charge"]
    found = analyse(charge[:, :, 0].round() ** 2)
    exact_value = u1_torus(6.0, 64).charge_squared
    assert abs(found.mean - exact_value) < 5 * found.error and found.error < 0.3 * exact_value
