"""``flowmc run`` in one process: what it writes, and what makes it stop."""

import json
import math
import shutil
import time
import tomllib

import flowmc_adapters
import h5py
import numpy as np
import pytest
import torch

from flowmc.actions import Phi4
from flowmc.cli import main
from flowmc.kernels import HMC
from flowmc.random import stream
from tests.run.small_runs import config, digests, save_untrained_flow, write

PAIR = [{"kernel": "hmc", "steps": 3, "target_acceptance": 0.8}]


@pytest.fixture(autouse=True)
def _one_thread(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def run(path, tables, *more, name="out"):
    return main(["run", write(path / "a.toml", tables), "--output", str(path / name), *more])


def events(directory, kind):
    lines = (directory / "log.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["event"] == kind]


def test_rows_are_those_of_the_kernels_run_by_hand(tmp_path):
    """All rows, bit for bit, from the documented streams and nothing else."""
    assert run(tmp_path, config(measure={"observables": ["phi2"]})) == 0
    action = Phi4([4, 4], m2=-1.0, lam=0.5)
    kernel = HMC(action, steps=3, target_acceptance=0.8)
    states, streams = [], []
    for block, chains in enumerate((2, 1)):
        states.append(kernel.init(action.hot(chains, stream(7, block, "start"))))
        streams.append(stream(7, block, "update"))
    rows = {"thermalization": [], "production": []}
    pending = []
    for update in range(1, 26):
        infos = []
        for block in range(2):
            states[block], info = kernel.step(states[block], streams[block])
            infos.append(info)
        acceptance = torch.cat([info.values["acceptance_probability"] for info in infos])
        accepted = torch.cat([info.is_accepted[:, 0] for info in infos])
        energy_error = torch.cat([info.values["energy_error"] for info in infos])
        pending.append((accepted.numpy(), energy_error.numpy()))
        if update <= 5:
            kernel.adapt(type(info)(accepted, {"acceptance_probability": acceptance}), update - 1)
        phase, count = ("thermalization", update) if update <= 5 else ("production", update - 5)
        if count % 2 == 0:
            phi2 = torch.cat([state.field.square().mean((1, 2)) for state in states])
            rows[phase].append((update, phi2.numpy(), pending))
            pending = []
        if update == 5:
            pending = []
    with h5py.File(tmp_path / "out" / "measurements.h5") as file:
        assert file.attrs["layout"] == 1 and file.attrs["chains"] == 3
        assert file.attrs["replicas"] == 1 and file.attrs["measure_every"] == 2
        for phase, expected in rows.items():
            group = file[phase]
            assert list(group["updates"]) == [update for update, _, _ in expected]
            for index, (_, phi2, steps) in enumerate(expected):
                np.testing.assert_allclose(group["observables/phi2"][index][:, 0], phi2, rtol=1e-14)
                accepted, error = (np.array(values) for values in zip(*steps, strict=True))
                np.testing.assert_array_equal(group["kernels/hmc/accepted"][index], accepted.sum(0))
                np.testing.assert_array_equal(group["kernels/hmc/tried"][index], 2)
                np.testing.assert_allclose(
                    group["kernels/hmc/energy_error"][index], error.mean(0), rtol=1e-14
                )


def test_adaptation_is_frozen_after_thermalization(tmp_path):
    assert run(tmp_path, config()) == 0
    frozen = next(e for e in events(tmp_path / "out", "progress") if "tuning" in e)
    with h5py.File(tmp_path / "out" / "checkpoint.h5") as file:
        assert file.attrs["update"] == 25
        tuned = json.loads(file.attrs["tuning"])
    assert frozen["update"] == 5
    assert tuned == frozen["tuning"]
    assert tuned["hmc/log_step_size"] != math.log(1 / 3)


def test_a_run_is_not_overwritten(tmp_path, capsys):
    assert run(tmp_path, config()) == 0
    before = digests(tmp_path / "out")
    log = (tmp_path / "out" / "log.jsonl").read_bytes()
    assert run(tmp_path, config(chains={"seed": 8})) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("flowmc: error: ") and "--resume" in error
    assert digests(tmp_path / "out") == before
    assert (tmp_path / "out" / "log.jsonl").read_bytes() == log


def test_resume_refuses_another_configuration(tmp_path, capsys):
    assert run(tmp_path, config()) == 0
    for changed, key in (
        (config(chains={"seed": 8}), "chains.seed"),
        (config(theory={"m2": -1.5}), "theory.m2"),
        (config(update=[{"kernel": "hmc", "steps": 4, "target_acceptance": 0.8}]), "steps"),
        (config(run={"updates": 19}), "run.updates"),
        (config(run={"thermalization": 6}), "run.thermalization"),
    ):
        assert run(tmp_path, changed, "--resume") == 2
        assert key in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("first", [0, 7, 19])
def test_an_extended_run_is_the_longer_run(tmp_path, first):
    tables = config(run={"save_every": 4}, ensemble={"format": "npy"})
    tables["run"]["updates"] = 20
    assert run(tmp_path, tables, name="long") == 0
    tables["run"]["updates"] = first
    assert run(tmp_path, tables, name="grown") == 0
    tables["run"]["updates"] = 20
    assert run(tmp_path, tables, "--resume", name="grown") == 0
    assert digests(tmp_path / "grown") == digests(tmp_path / "long")
    stored = tomllib.loads((tmp_path / "grown" / "config.toml").read_text())
    assert stored["run"]["updates"] == 20


def test_time_limit_stops_with_a_checkpoint(tmp_path, capsys):
    slow = config(run={"updates": 10**6, "time_limit": "1s", "checkpoint_every": "1h"})
    slow["run"]["measure_every"] = 10**5
    begin = time.monotonic()
    assert run(tmp_path, slow) == 0
    assert time.monotonic() - begin < 20
    said = capsys.readouterr().err
    assert "time limit" in said and "--resume" in said
    stopped = events(tmp_path / "out", "stop")[-1]
    assert stopped["reason"] == "time limit"
    with h5py.File(tmp_path / "out" / "checkpoint.h5") as file:
        assert file.attrs["update"] == stopped["update"] > 0
    # Times go on from those of the checkpoint.
    assert run(tmp_path, slow, "--resume") == 0
    assert events(tmp_path / "out", "stop")[-1]["seconds"] > stopped["seconds"]
    assert events(tmp_path / "out", "stop")[-1]["update"] > stopped["update"]


def test_saved_configurations_are_numbered(tmp_path):
    np.save(tmp_path / "lat.1000.npy", np.random.default_rng(1).normal(size=(4, 4)))
    shutil.copy(tmp_path / "lat.1000.npy", tmp_path / "lat.1000")
    tables = config(
        chains={"count": 1, "block": 1, "file": "lat.1000"},
        run={"save_every": 10},
        ensemble={"format": "npy"},
    )
    assert run(tmp_path, tables, name="a") == 0
    names = sorted(path.name for path in (tmp_path / "a" / "ensemble").iterdir())
    assert names == ["lat.1010", "lat.1020"]
    tables["ensemble"]["first_number"] = 5
    tables["ensemble"]["name"] = "conf"
    tables["chains"].update(count=2, file=["lat.1000", "lat.1000.npy"])
    assert run(tmp_path, tables, name="b") == 0
    names = sorted(
        str(p.relative_to(tmp_path / "b" / "ensemble"))
        for p in (tmp_path / "b" / "ensemble").rglob("conf*")
    )
    assert names == [
        "chain0000/conf.15", "chain0000/conf.5", "chain0001/conf.15", "chain0001/conf.5",
    ]  # fmt: skip
    # The file holds the field of the last update, bit for bit, axes reversed.
    with h5py.File(tmp_path / "a" / "checkpoint.h5") as file:
        field = file["blocks/0000/replicas/0/field"][0]
    with open(tmp_path / "a" / "ensemble" / "lat.1020", "rb") as file:
        np.testing.assert_array_equal(np.load(file).T, field)


@pytest.mark.parametrize("form", ["npy", "hdf5", "ildg"])
def test_saved_files_continue_a_run_exactly(tmp_path, form):
    """A field saved by one run is the start of the next, without a changed bit."""
    tables = config(
        chains={"count": 1, "block": 1, "start": "cold"},
        run={"save_every": 20},
        ensemble={"format": form},
    )
    assert run(tmp_path, tables, name="a") == 0
    tables["chains"].update(start="file", file="a/ensemble/conf.20", seed=8)
    tables["run"].update(thermalization=0, updates=0)
    assert run(tmp_path, tables, name="b") == 0
    fields = []
    for name in "ab":
        with h5py.File(tmp_path / name / "checkpoint.h5") as file:
            fields.append(file["blocks/0000/replicas/0/field"][()])
    np.testing.assert_array_equal(*fields)
    if form != "npy":
        saved = flowmc_adapters.read_field(tmp_path / "a/ensemble/conf.20")
        assert (saved.kind, saved.number, saved.metadata["CHAIN"]) == ("scalar", 20, "0")
        assert json.loads(saved.metadata["ACTION"])["lattice"] == [4, 4]
        assert saved.metadata["RANDOM_STATE"].endswith("update 20")


def test_single_precision_and_mixture(tmp_path):
    tables = config(
        chains={"precision": 32},
        update=[
            {"kernel": "hmc", "steps": 3, "weight": 3.0},
            {"kernel": "hmc", "steps": 6, "trajectory": 2.0, "repeat": 2},
        ],
        run={"schedule": "mixture", "updates": 100, "thermalization": 0},
    )
    assert run(tmp_path, tables) == 0
    with h5py.File(tmp_path / "out" / "measurements.h5") as file:
        tried = [file[f"production/kernels/{name}/tried"][()].sum() for name in ("hmc", "hmc_2")]
    with h5py.File(tmp_path / "out" / "checkpoint.h5") as file:
        assert file["blocks/0000/replicas/0/field"].dtype == np.float32
    # Of 100 updates of 3 chains in 2 blocks, binomial(200, 3/4) per block-weighted draw: tried[0]
    # plus half of tried[1] is 300 exactly; 5 standard deviations around 225 (p < 1e-6).
    assert tried[0] + tried[1] / 2 == 300
    assert abs(tried[0] - 225) < 5 * math.sqrt(100 * (4 + 1) * 3 / 16)


@pytest.mark.parametrize("precision", [32, 64])
def test_a_slow_choice_of_precision_is_remarked(precision, tmp_path, capsys):
    theory = {"action": "phi4", "lattice": [8, 8], "m2": -4.0, "lambda": 6.008}
    tables = config(
        chains={"count": 1, "precision": precision},
        update=[{"kernel": "independence", "flow": "zoo:phi4_8x8_l6.008", "proposals": 1}],
        run={"updates": 1, "thermalization": 0, "measure_every": 1},
    )
    tables["theory"] = theory
    assert run(tmp_path, tables) == 0
    said = "zoo:phi4_8x8_l6.008: continuous flows are compiled for fields of 32 bit only"
    assert (said in capsys.readouterr().err) == (precision == 64)


OWN_ACTIONS = """
from flowmc.actions import Phi4

class Same(Phi4):
    pass

class Tilted(Phi4):
    def __call__(self, field):
        return super().__call__(field) - 0.3 * field.double().flatten(1).sum(1)
"""


def test_a_subclass_has_its_own_density_and_is_compiled_where_it_has_none(
    tmp_path, monkeypatch, capsys
):
    (tmp_path / "own_actions.py").write_text(OWN_ACTIONS)
    monkeypatch.syspath_prepend(str(tmp_path))
    rows = {}
    for name in ("phi4", "own_actions:Same", "own_actions:Tilted"):
        tables = config(measure={"observables": ["action", "magnetization"]})
        tables["theory"]["action"] = name
        kind = name.split(":")[-1]
        assert run(tmp_path, tables, name=kind) == 0
        said = "the action Tilted runs in plain torch, not compiled: it has formulas of its own"
        assert (said in capsys.readouterr().err) == (kind == "Tilted")
        with h5py.File(tmp_path / kind / "measurements.h5") as file:
            rows[kind] = {
                key: file[f"production/observables/{key}"][()]
                for key in ("action", "magnetization")
            }
        with h5py.File(tmp_path / kind / "checkpoint.h5") as file:
            last = torch.from_numpy(file["blocks/0000/replicas/0/field"][()])
            stored = torch.from_numpy(file["blocks/0000/replicas/0/action"][()])
        expected = Phi4([4, 4], m2=-1.0, lam=0.5)(last)
        if kind == "Tilted":
            expected = expected - 0.3 * last.flatten(1).sum(1)
        assert torch.allclose(stored, expected, rtol=1e-12)
    # By the same engine: bit for bit.
    for key, values in rows["phi4"].items():
        np.testing.assert_array_equal(rows["Same"][key], values)
        assert not np.allclose(rows["Tilted"][key], values)


NAN_KERNEL = """
import torch
from flowmc.kernels import Info, Kernel, State

class Spoil(Kernel):
    name = "spoil"
    def __init__(self, action, *, at: int = 10**9, chain: int = 0, cached: bool = False):
        self.calls, self.at, self.chain, self.cached = 0, at, chain, cached
    def init(self, field):
        return State(field)
    def step(self, state, rng):
        accepted = torch.ones(state.chains, 1, dtype=torch.bool)
        self.calls += 1
        if self.calls >= self.at and state.chains > self.chain:
            field = state.field.clone()
            field[self.chain, 0, 0] = float("nan")
            state = state.moved(field, state.action if self.cached else None)
        return state, Info(accepted, {})
"""


@pytest.mark.parametrize("order", ["last", "first"])
def test_a_field_that_is_not_finite_stops_the_run(tmp_path, monkeypatch, capsys, order):
    (tmp_path / f"spoil_{order}.py").write_text(NAN_KERNEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    # Block 0 has chains 0 and 1, block 1 has chains 2 and 3; one rehearsal, two calls per update:
    # update 11 spoils chain 1 of block 0.
    spoil = {"kernel": f"spoil_{order}:Spoil", "at": 22, "chain": 1}
    updates = [*PAIR, spoil] if order == "last" else [spoil, *PAIR]
    tables = config(chains={"count": 4}, update=updates, run={"checkpoint_every": 5})
    assert run(tmp_path, tables) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("flowmc: error: update 11: the field of chain 1 is not finite")
    assert "update 10" in error
    with h5py.File(tmp_path / "out" / "checkpoint.h5") as file:
        assert file.attrs["update"] == 10
        assert np.isfinite(file["blocks/0000/replicas/0/field"]).all()
    with h5py.File(tmp_path / "out" / "measurements.h5") as file:
        assert np.isfinite(file["production/observables/phi2"][:2]).all()


def test_the_chain_is_named_by_its_number_in_the_run(tmp_path, monkeypatch, capsys):
    (tmp_path / "spoil_block.py").write_text(NAN_KERNEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    tables = config(
        chains={"count": 5, "block": 2},
        update=[*PAIR, {"kernel": "spoil_block:Spoil", "at": 6, "chain": 1}],
    )
    # The rehearsal and three blocks per update: the sixth call is block 1 of update 2.
    assert run(tmp_path, tables) == 1
    assert "update 2: the field of chain 3 is not finite" in capsys.readouterr().err


def test_mistakes_leave_no_directory(tmp_path, capsys):
    np.save(tmp_path / "bad.npy", np.full((4, 4), np.nan))
    np.save(tmp_path / "shape.npy", np.zeros((4, 6)))
    (tmp_path / "short.npy").write_bytes((tmp_path / "shape.npy").read_bytes()[:-8])
    one = {"count": 1, "block": 1}
    for tables, fragment in (
        (config(chains=one | {"file": "bad.npy"}), "not a finite number"),
        (config(chains=one | {"file": "shape.npy"}), "4x4"),
        (config(chains=one | {"file": "short.npy"}), "bytes"),
        (config(chains=one | {"file": "none.npy"}), "No such file"),
        (config(measure={"observables": ["plaquette"]}), "gauge fields"),
        (config(measure={"observables": [{"name": "correlator", "axis": 5}]}), "axis 5"),
        (config(update=[{"kernel": "hmc", "trajectory": -1.0}]), "trajectory > 0"),
        (config(chains={"device": "cuda:77"}), "GPU"),
    ):
        status = run(tmp_path, tables)
        said = capsys.readouterr().err
        assert status == 2, said
        assert said.startswith("flowmc: error: ") and said.count("\n") == 1
        assert fragment in said
        assert not (tmp_path / "out").exists()


def test_a_flow_for_another_theory_is_refused(tmp_path, capsys):
    update = [*PAIR, {"kernel": "independence", "flow": "f.safetensors", "proposals": 2}]
    for other in ({"m2": -0.5}, {"lattice": [4, 4, 4]}):
        theory = config()["theory"] | other
        save_untrained_flow(tmp_path / "f.safetensors", theory)
        assert run(tmp_path, config(update=update)) == 2
        said = capsys.readouterr().err
        assert "[[update]] 2 (independence)" in said and "f.safetensors" in said
        assert not (tmp_path / "out").exists()


def test_flow_runs_resume_with_the_same_weights_only(tmp_path, capsys):
    save_untrained_flow(tmp_path / "f.safetensors")
    update = [*PAIR, {"kernel": "independence", "flow": "f.safetensors", "proposals": 2}]
    tables = config(chains={"start": "flow"}, update=update)
    assert run(tmp_path, tables) == 0
    with h5py.File(tmp_path / "out" / "measurements.h5") as file:
        group = file["production/kernels/independence"]
        assert group["log_weights"].shape == (10, 3, 2)
        assert np.isfinite(group["log_weight"]).all()
        assert (group["tried"][()] == 4).all()
    provenance = json.loads((tmp_path / "out" / "provenance.json").read_text())
    assert provenance["flows"]["f.safetensors"]["card"]["kind"] == "sampler"
    save_untrained_flow(tmp_path / "f.safetensors", seed=2)
    tables["run"]["updates"] = 30
    assert run(tmp_path, tables, "--resume") == 2
    assert "not the one" in capsys.readouterr().err


def test_two_processes_do_not_share_a_directory(tmp_path, capsys):
    from pathlib import Path

    from flowmc.chains.storage.directory import RunDirectory

    other = RunDirectory(Path(tmp_path / "out"))
    other.claim()
    assert run(tmp_path, config()) == 2
    assert "another flowmc process" in capsys.readouterr().err
    other.release()
    assert run(tmp_path, config()) == 0


def test_observables_of_users(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "import torch\n"
        "def fourier(field, action, *, mode: int = 1):\n"
        "    return torch.fft.fft(field.sum(2))[:, mode]\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    observables = ["mine:fourier", {"name": "mine:fourier", "mode": 2}]
    assert run(tmp_path, config(measure={"observables": observables})) == 0
    with h5py.File(tmp_path / "out" / "measurements.h5") as file:
        group = file["production/observables"]
        assert set(group) == {"fourier", "fourier(mode=2)"}
        assert group["fourier"].shape == (10, 3, 1, 2)
        assert json.loads(group["fourier(mode=2)"].attrs["parameters"]) == {"mode": 2}


def test_a_damaged_checkpoint_is_one_sentence(tmp_path, capsys):
    assert run(tmp_path, config()) == 0
    checkpoint = tmp_path / "out" / "checkpoint.h5"
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    capsys.readouterr()
    assert run(tmp_path, config(run={"updates": 40}), "--resume") == 2
    error = capsys.readouterr().err
    assert "is not a sound checkpoint" in error and error.count("\n") == 1


@pytest.mark.parametrize("form", ["hdf5", "ildg", "npy"])
def test_a_run_does_not_repeat_the_numbers_of_the_one_it_starts_from(tmp_path, capsys, form):
    """With the same seed its chain would become that of the earlier run."""
    one = {"count": 1, "block": 1}
    saved = {"run": {"save_every": 20, "measure_every": 1}, "ensemble": {"format": form}}
    assert run(tmp_path, config(chains=one | {"seed": 7}, **saved), name="a") == 0
    first = one | {"file": "a/ensemble/conf.20"}
    second = one | {"file": "b/ensemble/conf.40"}
    for chains, seed, name, expected in (
        (first, 7, "b", 2),
        (first, 8, "b", 0),
        # Two runs back, and one.
        (second, 7, "c", 2),
        (second, 8, "c", 2),
        (second, 9, "c", 0),
    ):
        status = run(tmp_path, config(chains=chains | {"seed": seed}, **saved), name=name)
        said = capsys.readouterr().err
        assert status == expected, said
        assert status == 0 or f"[chains]: seed = {seed} is one that" in said
        assert status == 0 or not (tmp_path / name).exists()


def test_a_start_file_of_another_theory_is_refused(tmp_path, capsys):
    one = {"count": 1, "block": 1}
    saved = {"run": {"save_every": 20}, "ensemble": {"format": "hdf5"}}
    assert run(tmp_path, config(chains=one, **saved), name="a") == 0
    other = config(chains=one | {"file": "a/ensemble/conf.20", "seed": 8})
    other["theory"]["m2"] = -0.5
    assert run(tmp_path, other) == 2
    said = capsys.readouterr().err
    assert "m2 = -1.0, [theory] has -0.5" in said and "--force" in said
    assert not (tmp_path / "out").exists()
    assert run(tmp_path, other, "--force") == 0
    assert "made with another theory" in capsys.readouterr().err
    assert any("another theory" in event["text"] for event in events(tmp_path / "out", "warning"))


def test_what_a_configuration_can_know_is_refused_when_it_is_read(tmp_path, capsys, monkeypatch):
    """Before a flow is loaded, a file read or a rank asked."""

    def never(*args, **more):
        raise AssertionError("too late")

    monkeypatch.setattr("flowmc.commands.run.open_run", never)
    hmc, flow = {"kernel": "hmc"}, {"kernel": "independence", "flow": "none.safetensors"}
    ladder = {"ladder": {"m2": [-1.0, -0.5]}}
    for tables, fragment in (
        (config(update=[hmc | {"steps": -3}]), "[[update]] 1 (hmc): hmc needs steps >= 1, got -3"),
        (config(update=[hmc | {"integrator": "omelyan3"}]), "did you mean 'omelyan"),
        (config(update=[hmc | {"trajectory": -1.0}]), "trajectory > 0"),
        (config(update=[flow | {"proposals": 0}]), "[[update]] 1 (independence): independence"),
        (config(update=[hmc, {"kernel": "exchange", "schedule": "x"}], **ladder), "schedule"),
        (config(update=[hmc | {"weight": math.inf}], run={"schedule": "mixture"}), "weight = inf"),
        (config(update=[hmc | {"weight": 1e200}], run={"schedule": "mixture"}), "weight = 1e+200"),
        (config(run={"measure_every": 21}), "measure_every = 21 is above updates = 20"),
    ):
        assert run(tmp_path, tables) == 2
        assert fragment in capsys.readouterr().err
