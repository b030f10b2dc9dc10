"""A run that is killed at any instant and resumed leaves the bytes of one that was not."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from flowmc.chains.storage.checkpoint import read_checkpoint, write_checkpoint
from flowmc.parallel import Communicator
from tests.processes import environment, flowmc, forked
from tests.run.small_runs import config, digests, save_untrained_flow, write

DRIVER = Path(__file__).with_name("crash_driver.py")

PLAIN = config(run={"save_every": 5}, ensemble={"format": "npy"})
LADDER = config(
    chains={"count": 3, "block": 2, "start": "flow"},
    update=[
        {"kernel": "hmc", "steps": 3, "repeat": 2, "target_acceptance": 0.8},
        {"kernel": "independence", "flow": "f.safetensors", "proposals": 3},
        {"kernel": "exchange"},
        {"kernel": "hmc", "steps": 2, "check_reversibility": 0.5},
    ],
    ladder={"m2": [-1.0, -0.5, 0.0]},
    run={"save_every": 5, "measure_every": 3},
    ensemble={"format": "npy"},
)
# Checksums in the place of configurations, and checkpoints that stay, which begin at update 0.
SEEDS = config(
    run={"save_every": 2, "thermalization": 0},
    ensemble={"format": "seeds", "keep_every": 2},
)


# Updates are those of a program, and most of the time is spent in it.
EXTERNAL = {
    "theory": {"action": "external", "group": "R", "lattice": [4, 4]},
    "chains": {"count": 3, "seed": 7, "block": 2},
    "update": [
        {
            "kernel": "external",
            "command": ["python3", "-I", "-S", "move.py", "{input}", "{output}", "{seed}"],
            "format": "npy",
            "values": {"last": "last (.*)"},
            "parallel": 2,
        }
    ],
    "run": {
        "thermalization": 2,
        "updates": 8,
        "measure_every": 2,
        "save_every": 4,
        "checkpoint_every": 1,
        "report": False,
    },
    "ensemble": {"format": "npy"},
    "measure": {"observables": ["phi2"]},
}
# Sixteen numbers behind the header of the file, by the standard library alone.
MOVE = """import random, struct, sys
source, destination, seed = sys.argv[1:]
data = open(source, "rb").read()
head, values = data[:-128], struct.unpack("<16d", data[-128:])
chosen = random.Random(int(seed))
values = [0.9 * value + chosen.gauss(0, 0.3) for value in values]
open(destination, "wb").write(head + struct.pack("<16d", *values))
print("last", values[-1])
"""


def drive(mode, path, work, *rest, command="run", start=forked):
    words = start(DRIVER, command, mode, path, work, *rest)
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1])


def own(*words):
    """The command line of an own process; a forked one touches the disk at other instants."""
    return [sys.executable, *map(str, words)]


def check_all(tmp_path, expected_deaths, deaths):
    reference = digests(tmp_path / "reference")
    others = [p for p in tmp_path.iterdir() if p.is_dir() and p.name != "reference"]
    assert others
    changed = [directory.name for directory in others if digests(directory) != reference]
    assert not changed
    assert deaths >= expected_deaths


def kill_at_instants(tmp_path, tables, count, seed):
    save_untrained_flow(tmp_path / "f.safetensors")
    path = write(tmp_path / "a.toml", tables)
    assert drive("reference", path, tmp_path) == 0
    deaths = drive("instants", path, tmp_path, count, seed)
    check_all(tmp_path, count - 1, deaths)


def test_killed_at_an_instant_and_resumed(tmp_path):
    kill_at_instants(tmp_path, PLAIN, 6, seed=1)


def test_a_ladder_killed_at_an_instant_and_resumed(tmp_path):
    kill_at_instants(tmp_path, LADDER, 3, seed=2)


def test_seeds_killed_at_an_instant_and_resumed(tmp_path):
    """The file of seeds and the kept checkpoints are those of a run never killed."""
    kill_at_instants(tmp_path, SEEDS, 4, seed=4)
    names = [*digests(tmp_path / "reference" / "ensemble")]
    kept = [f"checkpoints/{count:08d}.h5" for count in range(0, 21, 4)]
    assert names == [*kept, "conf.seeds"]


@pytest.mark.slow
def test_killed_again_and_again(tmp_path):
    path = write(tmp_path / "a.toml", PLAIN | {"run": PLAIN["run"] | {"checkpoint_every": 1}})
    assert drive("reference", path, tmp_path) == 0
    check_all(tmp_path, 2, drive("again", path, tmp_path, 3, 0.5))


def test_external_updates_killed_again_and_again(tmp_path):
    """With seeds, values and fields: the same bytes as without a kill."""
    (tmp_path / "move.py").write_text(MOVE)
    path = write(tmp_path / "a.toml", EXTERNAL)
    assert drive("reference", path, tmp_path) == 0
    check_all(tmp_path, 2, drive("again", path, tmp_path, 5, 0.5))


@pytest.mark.slow
def test_external_updates_killed_at_many_instants(tmp_path):
    (tmp_path / "move.py").write_text(MOVE)
    kill_at_instants(tmp_path, EXTERNAL, 40, seed=6)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tables", "count"),
    [(PLAIN, 80), (LADDER, 30), (SEEDS, 80)],
    ids=["plain", "ladder", "seeds"],
)
def test_killed_at_many_instants(tmp_path, tables, count, share):
    # Every fourth tears a row.
    kill_at_instants(tmp_path, tables, max(8, count // share), seed=3)


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["cycle", "mixture"])
def test_a_ladder_killed_again_and_again(tmp_path, schedule):
    save_untrained_flow(tmp_path / "f.safetensors")
    tables = LADDER | {"run": LADDER["run"] | {"updates": 60, "schedule": schedule}}
    path = write(tmp_path / "a.toml", tables)
    assert drive("reference", path, tmp_path) == 0
    check_all(tmp_path, 5, drive("again", path, tmp_path, 4, 1.0))


@pytest.mark.slow
@pytest.mark.parametrize("what", ["ensembles", "processes"])
def test_a_free_energy_killed_at_many_instants(tmp_path, what):
    """Of a line of ensembles, and of processes from chains: the same numbers and works."""
    hmc = {"kernel": "hmc", "trajectory": 1.0, "steps": 3}
    tables = {
        "theory": {"action": "free", "lattice": [4, 2], "m2": 0.5},
        "free_energy": {"method": "chain", "seed": 5, "checkpoint_every": "0.01s"},
        "chains": {"count": 6, "measurements": 10, "thermalization": 10, "separation": 2},
        "protocol": {"m2": [3.0, 1.2, 0.5]},
        "update": [hmc | ({"target_acceptance": 0.8} if what == "ensembles" else {})],
    }
    if what == "processes":
        tables["free_energy"] |= {"method": "annealing", "batch": 10}
        tables["protocol"] = {"m2": [3.0, 0.5], "steps": 4, "start": "chains"}
    path = write(tmp_path / "a.toml", tables)
    assert drive("reference", path, tmp_path, command="free-energy") == 0
    deaths = drive("instants", path, tmp_path, 20, 6, command="free-energy")
    # Rows that are torn elsewhere are not written here, and checkpoints come by the clock.
    assert deaths >= 10
    reference, *others = sorted((p for p in tmp_path.iterdir() if p.is_dir()), reverse=True)[1:]
    assert reference.name == "reference" and len(others) == 20
    for directory in others:
        assert numbers_of(directory) == numbers_of(reference), directory.name
        for name in ("works.npz", "results.csv"):
            assert (directory / name).exists() == (reference / name).exists()
            if (reference / name).exists():
                assert (directory / name).read_bytes() == (reference / name).read_bytes()


def numbers_of(directory):
    found = json.loads((directory / "summary.json").read_text())
    page = found["page"]
    del found["seconds"], found["pays"], page["title"], page["facts"]["wall time"]
    assert page["sections"].pop(0)["title"] == "Does it pay?"
    return found


def test_the_comparison_can_fail(tmp_path):
    """A slight change of the state in a checkpoint is seen in what the run leaves."""
    path = write(tmp_path / "a.toml", PLAIN)
    assert drive("reference", path, tmp_path) == 0
    early = write(tmp_path / "b.toml", PLAIN | {"run": PLAIN["run"] | {"updates": 10}})
    command = flowmc("run", early, "--output", "other")
    subprocess.run(command, env=environment(), cwd=tmp_path, check=True, capture_output=True)
    checkpoint = tmp_path / "other" / "checkpoint.h5"
    # Written anew, with the checksums of what is changed.
    stored = read_checkpoint(checkpoint, torch.device("cpu"), {0: [0], 1: [0]}, 1)
    stored.states[0].field[0, 0, 0] += 1e-12
    write_checkpoint(checkpoint, stored, Communicator())
    command = flowmc("run", path, "--output", "other", "--resume")
    subprocess.run(command, env=environment(), cwd=tmp_path, check=True, capture_output=True)
    assert digests(tmp_path / "other") != digests(tmp_path / "reference")


def test_sigterm_stops_cleanly(tmp_path):
    tables = config(run={"updates": 10**6, "checkpoint_every": "1h", "measure_every": 10**5})
    path = write(tmp_path / "a.toml", tables)
    command = flowmc("run", path, "--output", tmp_path / "out")
    process = subprocess.Popen(command, env=environment(), stderr=subprocess.PIPE, text=True)
    log = tmp_path / "out" / "log.jsonl"
    deadline = time.monotonic() + 120
    while not (log.exists() and '"start"' in log.read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    time.sleep(0.3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "SIGTERM" in said and said.strip().endswith("--resume")
    stopped = json.loads(log.read_text().splitlines()[-1])
    assert stopped["event"] == "stop" and stopped["reason"] == "SIGTERM"
    with h5py.File(tmp_path / "out" / "checkpoint.h5") as file:
        assert file.attrs["update"] == stopped["update"] > 0


def test_a_full_disk_stops_the_run_and_damages_nothing(tmp_path):
    tables = PLAIN | {"run": PLAIN["run"] | {"updates": 60, "checkpoint_every": 2}}
    path = write(tmp_path / "a.toml", tables)
    assert drive("reference", path, tmp_path) == 0
    statuses = []
    # Sizes that fail in the log, in rows, and in the middle of a checkpoint.
    for allowed, instant in ((100, 400), (2000, 100), (9000, 100)):
        statuses.append(drive("full", path, tmp_path, allowed, instant, start=own))
        with h5py.File(tmp_path / "full" / "checkpoint.h5") as file:
            assert np.isfinite(file["blocks/0000/replicas/0/field"]).all()
        assert not list((tmp_path / "full").rglob("*.partial"))
    assert statuses == [2, 2, 2]
    said = (tmp_path / "full.stderr").read_text().splitlines()
    # The first limit cuts the file that takes standard error, too.
    errors = [line for line in said if "File too large; the last good checkpoint" in line]
    assert len(errors) == 2
    assert all(line.startswith("flowmc: error: cannot write while at update") for line in errors)
    # Each names its file, and says nothing of HDF5.
    files = [name for line in errors for name in ("log.jsonl", "measurements.h5", "checkpoint.h5")
             if f"full/{name}: File too large;" in line]  # fmt: skip
    assert len(files) == 2
    assert "Traceback" not in "".join(said)
    assert drive("full", path, tmp_path, 10**9, 10**9) == 0
    check_all(tmp_path, 0, 0)
