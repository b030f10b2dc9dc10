"""What kernels refuse, and what they set up, in runs, steps and resumed runs."""

import h5py
import numpy as np
import pytest

from flowmc.cli import main
from tests.run.small_runs import config, digests, write

HMC = {"kernel": "hmc", "steps": 4, "trajectory": 1.0}
FLIP = {"kernel": "sign_flip"}

# phi^4 in an external field, and a kernel that its init prepares.
MODULE = """
import os
import torch
from flowmc.actions import Phi4
from flowmc.kernels import HMC
from flowmc.registry import ConfigError

class Tilted(Phi4):
    name = "tilted"
    def __init__(self, lattice, *, m2: float, lam: float, h: float = 0.0):
        super().__init__(lattice, m2=m2, lam=lam)
        self.h = h
        self.parameters = {**self.parameters, "h": h}
    def at(self, **couplings):
        known = {"lam" if k == "lambda" else k: v for k, v in (self.parameters | couplings).items()}
        return Tilted(self.lattice, **known)
    def __call__(self, field):
        phi = field.double()
        h = self.h + float(os.environ.get("FLOWMC_TEST_FIELD", "0"))
        return super().__call__(field) - h * phi.flatten(1).sum(1)
    def force(self, field):
        return super().force(field) - self.h

class Choosy(HMC):
    name = "choosy"
    def init(self, field):
        if "FLOWMC_TEST_REFUSE" in os.environ:
            raise ConfigError("choosy refuses")
        return super().init(field)

class Prepared(HMC):
    name = "prepared"
    def init(self, field):
        self.scale = torch.ones((), dtype=field.dtype)
        return super().init(field)
    def step(self, state, rng):
        state, info = super().step(state, rng)
        return state.moved(self.scale * state.field, state.action), info
"""


@pytest.fixture(autouse=True)
def _module(tmp_path, monkeypatch):
    # One name per test: modules stay imported.
    name = f"guards_{abs(hash(str(tmp_path)))}"
    (tmp_path / f"{name}.py").write_text(MODULE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return name


def tilted(module, updates, **more):
    coupling = {"m2": -1.0, "lambda": 0.5, "h": 0.3} | more.pop("theory", {})
    return config(**({"update": updates} | more)) | {
        "theory": {"action": f"{module}:Tilted", "lattice": [2], **coupling}
    }


def run(path, tables, *more, name="out"):
    return main(["run", write(path / "a.toml", tables), "--output", str(path / name), *more])


def exact_magnetization(m2, lam, h):
    """<phi_0 + phi_1> / 2 on two sites, each of which is the other's neighbour twice."""
    x = np.linspace(-5, 5, 1001)
    a, b = np.meshgrid(x, x, indexing="ij")
    action = 2 * (a - b) ** 2
    for phi in (a, b):
        action = action + m2 * phi**2 + lam * phi**4 - h * phi
    weight = np.exp(-(action - action.min()))
    return float((weight * (a + b) / 2).sum() / weight.sum())


@pytest.mark.parametrize("start", ["hot", "cold"])
def test_sign_flip_in_an_external_field(tmp_path, _module, capsys, start):
    """It made <phi> = 0.0 of what is 0.42, without a word; HMC alone is right."""
    chains = {"count": 1000, "block": 1000, "start": start}
    run_table = {"thermalization": 30, "updates": 50}
    tables = tilted(_module, [HMC, FLIP], chains=chains, run=run_table)
    assert run(tmp_path, tables) == 2
    said = capsys.readouterr().err
    assert "[[update]] 2 (sign_flip): sign_flip needs S(-phi) = S(phi)" in said
    assert not (tmp_path / "out").exists()

    assert run(tmp_path, tables | {"update": [HMC]}) == 0
    with h5py.File(tmp_path / "out" / "measurements.h5") as file:
        means = file["production/observables/magnetization"][:, :, 0].mean(0)
    error = means.std(ddof=1) / len(means) ** 0.5
    # A false alarm at 5.5 standard errors has a probability of 4e-8.
    exact = exact_magnetization(-1.0, 0.5, 0.3)
    assert abs(means.mean() - exact) < 5.5 * error < 0.5 * exact


def test_sign_flip_where_it_is_right(tmp_path, _module):
    assert run(tmp_path, tilted(_module, [HMC, FLIP], theory={"h": 0.0})) == 0


@pytest.mark.parametrize("replica", [0, 1])
def test_every_replica_of_a_ladder_is_asked(tmp_path, _module, capsys, replica):
    fields = [0.0, 0.0]
    fields[replica] = 0.1
    tables = tilted(
        _module,
        [HMC, FLIP, {"kernel": "exchange"}],
        theory={"h": fields[0]},
        ladder={"h": fields},
        chains={"start": "cold"},
    )
    assert run(tmp_path, tables) == 2
    assert "sign_flip needs" in capsys.readouterr().err


def test_step_asks_every_kernel(tmp_path, _module, capsys):
    np.save(tmp_path / "lat.4.npy", np.zeros(2))
    tables = tilted(_module, [HMC, FLIP], chains={"count": 1, "block": 1, "start": "hot"})
    path = write(tmp_path / "a.toml", tables)
    files = [str(tmp_path / f"lat.{n}.npy") for n in (4, 5)]
    assert main(["step", *files, "--config", path]) == 2
    assert "sign_flip needs" in capsys.readouterr().err
    assert not (tmp_path / "lat.5.npy").exists()


def test_a_resumed_run_asks_every_kernel(tmp_path, _module, monkeypatch, capsys):
    choosy = {"kernel": f"{_module}:Choosy", "steps": 4, "trajectory": 1.0}
    tables = tilted(_module, [HMC, choosy], run={"updates": 4})
    assert run(tmp_path, tables) == 0
    before = digests(tmp_path / "out")
    tables["run"]["updates"] = 8
    with monkeypatch.context() as patch:
        patch.setenv("FLOWMC_TEST_REFUSE", "1")
        assert run(tmp_path, tables, "--resume") == 2
    assert "choosy refuses" in capsys.readouterr().err
    assert digests(tmp_path / "out")["checkpoint.h5"] == before["checkpoint.h5"]
    assert run(tmp_path, tables, "--resume") == 0


def test_an_action_that_has_changed_behind_a_run_is_found(tmp_path, _module, monkeypatch, capsys):
    tables = tilted(_module, [HMC, FLIP], theory={"h": 0.0}, run={"updates": 4})
    assert run(tmp_path, tables) == 0
    before = digests(tmp_path / "out")
    monkeypatch.setenv("FLOWMC_TEST_FIELD", "0.1")
    tables["run"]["updates"] = 8
    assert run(tmp_path, tables, "--resume") == 2
    assert "the action of the stored fields is not the one" in capsys.readouterr().err
    assert digests(tmp_path / "out")["checkpoint.h5"] == before["checkpoint.h5"]


def test_what_init_sets_up_is_there_in_every_process(tmp_path, _module):
    prepared = [{"kernel": f"{_module}:Prepared", "steps": 4}]
    tables = tilted(_module, prepared)
    half = tilted(_module, prepared, run={"updates": 7})
    assert run(tmp_path, tables, name="whole") == 0
    assert run(tmp_path, half, name="parts") == 0
    assert run(tmp_path, tables, "--resume", name="parts") == 0
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")
