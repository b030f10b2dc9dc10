"""The same bytes for any number of ranks: chains, replicas, proposals, and resumed on others."""

from pathlib import Path

import numpy as np
import pytest
import torch

from flowmc.actions.theory import build_action, describe_theory
from flowmc.cli import main
from flowmc.flows.cards.building import build_flow
from flowmc.flows.cards.files import save_flow
from tests.mpi import launch, launch_fresh, needs_mpi
from tests.run.small_runs import config, digests, save_untrained_flow, write

PROGRAM = Path(__file__).with_name("run_all.py")
TALLY = Path(__file__).parents[1] / "run" / "tally.py"

HMC = {"kernel": "hmc", "steps": 3, "target_acceptance": 0.8}
PROPOSALS = {"kernel": "independence", "flow": "f.safetensors", "proposals": 5, "batch_size": 3}
U1 = {"action": "wilson", "group": "U(1)", "lattice": [4, 4], "beta": 1.5}
SU2 = {"action": "wilson", "group": "SU(2)", "lattice": [4, 2], "beta": 1.5}
SAVED = {"run": {"save_every": 5}, "ensemble": {"format": "npy"}}

# Every way in which work is spread, with more and with fewer ranks than blocks.
MODES = {
    "chains": config(chains={"count": 7, "block": 2}, **SAVED),
    "cyclic": config(chains={"count": 7, "block": 2}, parallel={"deal": "cyclic"}),
    "files": config(
        chains={"count": 2, "block": 1, "start": "file", "file": ["a.3.npy", "b.8.npy"]}, **SAVED
    ),
    "ladder": config(
        chains={"count": 3, "block": 2},
        ladder={"beta": [1.5, 1.3, 1.1, 0.9]},
        update=[HMC, {"kernel": "exchange"}],
        measure={"observables": ["plaquette", "polyakov_loop"]},
        **SAVED,
    )
    | {"theory": SU2},
    "one_ladder": config(
        chains={"count": 2, "block": 2},
        ladder={"beta": [1.5, 1.2, 0.9, 0.6], "flows": ["identity", "u.safetensors", "identity"]},
        update=[
            HMC | {"repeat": 2},
            {"kernel": "exchange", "schedule": "random", "check_inverse": 1e-8},
        ],
        measure={"observables": ["plaquette", "topological_charge"]},
        parallel={"deal": "cyclic"},
    )
    | {"theory": U1},
    "tuned": config(
        chains={"count": 3, "block": 2},
        ladder={"m2": [-1.0, 0.0, 0.5, 8.0], "tune": True},
        update=[HMC, {"kernel": "exchange"}],
        run={"thermalization": 16, "updates": 10},
    ),
    "proposals": config(
        chains={"count": 3, "block": 2}, update=[HMC, PROPOSALS | {"repeat": 2}], **SAVED
    ),
    "mixture": config(
        chains={"count": 3, "block": 3, "start": "flow"},
        update=[HMC, PROPOSALS, HMC | {"weight": 0.5}],
        run={"schedule": "mixture"},
    ),
    # Samplers on different replicas, which ranks that have one of them must count alike.
    "two_samplers": config(
        chains={"count": 2, "block": 2},
        update=[
            PROPOSALS | {"flow": "g.safetensors", "repeat": 2},
            HMC,
            PROPOSALS,
            {"kernel": "exchange"},
        ],
        ladder={"m2": [-1.0, -0.7, -0.5]},
        run={"updates": 10},
    ),
    # A sampler that nobody sees beside one that ranks without chains would draw for.
    "hidden": config(
        chains={"count": 2, "block": 1},
        update=[
            {"kernel": "hidden_sampler:Hidden", "flow": "f.safetensors"},
            PROPOSALS,
            {"kernel": "hidden_sampler:Twice", "flow": "f.safetensors"},
        ],
    ),
    # Replicas that another program updates, each with its own coupling and seed.
    "program": config(
        chains={"count": 1, "block": 1, "start": "hot"},
        update=[
            {
                "kernel": "external",
                "command": [
                    "python3",
                    "-S",
                    "mover.py",
                    "{input}",
                    "{output}",
                    "{seed}",
                    "{defect}",
                ],
                "format": "npy",
                "parallel": 2,
            },
            {"kernel": "exchange"},
        ],
        ladder={
            "difference": "wilson_defect",
            "beta": 1.5,
            "defect": [1.0, 0.5, 0.0],
            "defect_extents": [2],
        },
        measure={"observables": ["plaquette"]},
        run={"measure_every": 1, "updates": 5, "thermalization": 1},
    )
    | {"theory": {"action": "external", "group": "U(1)", "lattice": [4, 4]}},
    "carried": config(
        chains={"count": 3, "block": 1},
        update=[HMC, {"kernel": "carrying_tally:Tally"}, {"kernel": "exchange"}],
        ladder={"m2": [-1.0, -0.5]},
        run={"checkpoint_every": 4},
    ),
    "everything": config(
        chains={"count": 2, "block": 1},
        update=[HMC, PROPOSALS, {"kernel": "exchange"}],
        ladder={"m2": [-1.0, -0.5]},
        run={"schedule": "mixture", "checkpoint_every": 4},
    ),
}

# Standard library alone, which starts quickly; not a kernel of any theory.
MOVER = """
import math, random, struct, sys

source, destination, seed, defect = sys.argv[1:]
with open(source, "rb") as file:
    data = file.read()
numbers = random.Random(int(seed))
angles = struct.unpack("<32d", data[-256:])
width = 0.1 + float(defect)
moved = [math.remainder(angle + numbers.gauss(0, width), 2 * math.pi) for angle in angles]
with open(destination, "wb") as file:
    file.write(data[:-256] + struct.pack("<32d", *moved))
"""

HIDDEN = """
from flowmc.kernels import HMC, Cycle, Independence, Kernel
from flowmc.kernels.base import apply, begin

class Hidden(Kernel):
    name = "hidden"
    takes_streams = True
    def __init__(self, action, model, *, proposals: int = 2):
        sampler = Independence(action, model, proposals=proposals)
        self.inside = Cycle([HMC(action, steps=3), sampler])
        self.reports = sampler.reports
    def init(self, field):
        return begin(self.inside, field)
    def step(self, state, rng):
        state, info = apply(self.inside, state, rng)
        return state, info.parts["independence"]

class Twice(Kernel):
    name = "twice"
    takes_streams = True
    def __init__(self, action, model, *, proposals: int = 2):
        self.kernel = Independence(action, model, proposals=proposals)
        self.reports = self.kernel.reports
    def init(self, field):
        return begin(self.kernel, field)
    def step(self, state, rng):
        state, _ = apply(self.kernel, state, rng)
        return apply(self.kernel, state, rng)
"""


def save_exchange_flow(path):
    """Write a flow between the second and the third replica of the mode "one_ladder"."""
    theory = build_action(U1)
    flow = build_flow({"name": "residual", "initial_coefficient": 0.05}, theory)
    table = {"name": "residual", "parameters": {"initial_coefficient": 0.05}}
    card = {
        "flow": table,
        "theory": describe_theory(theory),
        "from": {"beta": 0.9},
        "to": {"beta": 1.2},
    }
    save_flow(path, flow, card)


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("configs")
    save_untrained_flow(folder / "f.safetensors")
    other = MODES["two_samplers"]["theory"] | {"m2": -0.5}
    save_untrained_flow(folder / "g.safetensors", other, seed=2)
    save_exchange_flow(folder / "u.safetensors")
    torch.manual_seed(5)
    for name in ("a.3.npy", "b.8.npy"):
        np.save(folder / name, torch.randn(4, 4, dtype=torch.float64).numpy())
    (folder / "hidden_sampler.py").write_text(HIDDEN)
    (folder / "mover.py").write_text(MOVER)
    (folder / "carrying_tally.py").write_bytes(TALLY.read_bytes())
    (folder / "parts").mkdir()
    for path in folder.glob("*.*"):
        if path.is_file():
            (folder / "parts" / path.name).symlink_to(path)
    return [write(folder / f"{name}.toml", tables) for name, tables in MODES.items()]


@pytest.fixture(scope="module")
def alone(configs, tmp_path_factory):
    """The results of one process that knows of no MPI."""
    folder = tmp_path_factory.mktemp("alone")
    for path in configs:
        assert main(["run", path, "--output", str(folder / Path(path).stem)]) == 0
    return folder


def compare(folder, alone):
    different = []
    for mode in MODES:
        found, expected = digests(folder / mode), digests(alone / mode)
        assert len(expected) >= 3
        different += [f"{mode}/{k}" for k in expected | found if found.get(k) != expected.get(k)]
    return different


@needs_mpi
@pytest.mark.parametrize(
    "ranks",
    # All take their turns in the run that is continued.
    [pytest.param(count, marks=pytest.mark.slow) for count in (1, 2, 3, 4)],
)
def test_results_do_not_depend_on_the_number_of_ranks(configs, alone, tmp_path, ranks):
    # Two interpreters of their own: strings have other hashes in each.
    start = launch_fresh if ranks == 2 else launch
    done = start(ranks, PROGRAM, tmp_path, *configs)
    assert done.returncode == 0, done.stderr
    assert compare(tmp_path, alone) == []


@needs_mpi
def test_a_run_continues_on_another_number_of_ranks(configs, alone, tmp_path):
    """A fifth of the production on 3 ranks, up to half of it on 1, the rest on 2.

    The last are two interpreters of their own: strings have other hashes in each.
    """
    for start, ranks, share in ((launch, 3, 0.2), (launch, 1, 0.5), (launch_fresh, 2, 1.0)):
        parts = []
        for mode, path in zip(MODES, configs, strict=True):
            run = MODES[mode]["run"]
            tables = MODES[mode] | {"run": run | {"updates": int(share * run["updates"])}}
            parts.append(write(Path(path).with_name("parts") / f"{mode}.toml", tables))
        done = start(ranks, PROGRAM, tmp_path, *parts)
        assert done.returncode == 0, done.stderr
    assert compare(tmp_path, alone) == []


@needs_mpi
def test_the_comparison_can_fail(configs, alone, tmp_path):
    """Streams that know of the rank are seen."""
    done = launch(2, PROGRAM, tmp_path, configs[0], FLOWMC_PLANT="1")
    assert done.returncode == 0, done.stderr
    different = compare(tmp_path, alone)
    assert "chains/measurements.h5" in different and "chains/checkpoint.h5" in different
