"""Ladders of replicas in ``flowmc run``."""

import json

import h5py
import numpy as np
import pytest
import torch

from flowmc.actions.theory import build_action, describe_theory
from flowmc.cli import main
from flowmc.flows.cards.building import build_flow
from flowmc.flows.cards.files import save_flow
from tests.run.small_runs import config, save_untrained_flow, write

HMC = {"kernel": "hmc", "steps": 3}


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(path, tables, *more):
    return main(["run", write(path / "a.toml", tables), "--output", str(path / "out"), *more])


def save_exchange_flow(path, first, second):
    theory = config()["theory"]
    action = build_action(theory | {"m2": first})
    torch.manual_seed(3)
    flow = build_flow({"name": "affine_coupling", "layers": 2}, action)
    card = {
        "flow": {"name": "affine_coupling", "parameters": {"layers": 2}},
        "theory": describe_theory(action),
        "from": {"m2": first, "lambda": 0.5},
        "to": {"m2": second, "lambda": 0.5},
    }
    save_flow(path, flow, card)


def test_a_ladder_with_flows_between_replicas(tmp_path):
    save_exchange_flow(tmp_path / "a.safetensors", -1.0, -0.5)
    # Trained the other way round: used as its inverse.
    save_exchange_flow(tmp_path / "b.safetensors", 0.0, -0.5)
    tables = config(
        update=[HMC, {"kernel": "exchange"}],
        ladder={"m2": [-1.0, -0.5, 0.0], "flows": ["a.safetensors", "b.safetensors"]},
    )
    assert run(tmp_path, tables) == 0
    with h5py.File(tmp_path / "out" / "measurements.h5") as file:
        assert file.attrs["replicas"] == 3
        couplings = json.loads(file["replicas"].attrs["couplings"])
        assert [c["m2"] for c in couplings] == [-1.0, -0.5, 0.0]
        group = file["production"]
        # Pairs take turns: of two updates per row each pair is tried in one.
        assert (group["kernels/pair[0]/tried"][()] == 1).all()
        assert (group["kernels/pair[1]/tried"][()] == 1).all()
        assert np.isfinite(group["kernels/pair[0]/work"][()]).all()
        assert group["observables/phi2"].shape == (10, 3, 3)
        assert (np.sort(group["walkers"][()], axis=2) == [0, 1, 2]).all()
        accepted = sum(
            file[f"{phase}/kernels/pair[{pair}]/accepted"][()].sum()
            for phase in ("thermalization", "production")
            for pair in (0, 1)
        )
        assert accepted > 0
        assert (group["walkers"][()] != [0, 1, 2]).any()


def test_flows_of_other_couplings_are_refused(tmp_path, capsys):
    save_exchange_flow(tmp_path / "a.safetensors", -1.0, -0.4)
    tables = config(
        update=[HMC, {"kernel": "exchange"}],
        ladder={"m2": [-1.0, -0.5], "flows": ["a.safetensors"]},
    )
    assert run(tmp_path, tables) == 2
    said = capsys.readouterr().err
    assert "[ladder]" in said and "a.safetensors" in said and "-0.4" in said


def test_independence_acts_on_the_replica_of_its_flow(tmp_path):
    save_untrained_flow(tmp_path / "f.safetensors", config()["theory"] | {"m2": -0.5})
    tables = config(
        update=[
            HMC,
            {"kernel": "independence", "flow": "f.safetensors", "proposals": 2},
            {"kernel": "exchange"},
        ],
        ladder={"m2": [-1.0, -0.5]},
    )
    assert run(tmp_path, tables) == 0
    with h5py.File(tmp_path / "out" / "measurements.h5") as file:
        kernels = set(file["production/kernels"])
    assert kernels == {"hmc[0]", "hmc[1]", "independence[1]", "pair[0]"}


def test_replicas_sample_their_own_couplings(tmp_path):
    """Free fields: <phi^2> of every replica against the exact value, with exchanges accepted."""
    masses = [0.5, 1.0, 2.0]
    tables = {
        "theory": {"action": "free", "lattice": [4, 4], "m2": masses[0]},
        "chains": {"count": 32, "seed": 5},
        "update": [{"kernel": "hmc", "steps": 6, "trajectory": 1.0}, {"kernel": "exchange"}],
        "ladder": {"m2": masses},
        "run": {"updates": 400, "thermalization": 50, "report": False},
        "measure": {"observables": ["phi2"]},
    }
    assert run(tmp_path, tables) == 0
    with h5py.File(tmp_path / "out" / "measurements.h5") as file:
        phi2 = file["production/observables/phi2"][()]
        accepted = sum(file[f"production/kernels/pair[{r}]/accepted"][()].sum() for r in (0, 1))
    assert accepted > 1000
    # The 32 chains are independent: their means give the error.  A false alarm at 6 standard
    # errors of Student's t with 31 degrees has probability 1e-6.
    means = phi2.mean(0)
    for r, mass in enumerate(masses):
        theory = {"action": "free", "lattice": [4, 4], "m2": mass}
        exact = float(build_action(theory).propagator()[0, 0])
        error = means[:, r].std(ddof=1) / np.sqrt(len(means))
        assert error < 0.02 * exact
        assert abs(means[:, r].mean() - exact) < 6 * error


def test_a_ladder_in_the_boundaries_of_an_improved_action(tmp_path):
    """Defects of Iwasaki's action, moved by HMC in levels: a swap is decided by both actions."""
    theory = {"action": "iwasaki", "group": "U(1)", "lattice": [4, 6], "beta": 1.5}
    levels = [{"terms": ["plaquettes"], "steps": 2}]
    tables = config(
        update=[HMC | {"inner": levels}, {"kernel": "exchange"}],
        ladder={"defect": [1.0, 0.5, 0.0]},
        measure={"observables": ["plaquette", "topological_charge"]},
    )
    tables["theory"] = theory | {"defect_extents": [2]}
    assert run(tmp_path, tables) == 0
    with h5py.File(tmp_path / "out" / "measurements.h5") as file:
        couplings = json.loads(file["replicas"].attrs["couplings"])
    assert [one["defect"] for one in couplings] == [1.0, 0.5, 0.0]
