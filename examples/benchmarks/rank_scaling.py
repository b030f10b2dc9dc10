"""A farm of HMC chains on several MPI ranks: throughput, messages, and what follows for many ranks.

    python examples/benchmarks/rank_scaling.py [--quick] [--rounds 3]

Starts ``mpirun`` itself.  Every rank has one thread and the same number of chains; the throughput
is that of the production, start-up excluded, from the run's own log.  One rank, two ranks, and two
runs of one rank side by side without MPI alternate: the last is what the machine gives at most, by
the mean of the two if work could move from one core to the other, by the slower if not, as here.
With more ranks than cores only messages and bytes are of interest.  The model at the end is

    efficiency(P) = t / (t + P a + (P m + 2 c log2 P) t / s)

for an update of t seconds: rank 0 takes a seconds to put together and write one rank's part of a
row (measured here with 10,000 parts); every s = max(t, 2) seconds ranks agree on going on and hand
in their rows, which costs a message to rank 0 each (m = 2 us assumed) and two reductions (c = 5 us
per level assumed).
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import print_header, print_row, processor

from flowmc.chains.diagnostics import Piece
from flowmc.chains.storage.measurements import MeasurementFile, MeasurementLayout
from flowmc.chains.storage.rows import Packer, RowBuilder

CONFIG = """
[theory]
action = "wilson"
group = "SU(3)"
lattice = [{extent}, {extent}, {extent}, {extent}]
beta = 6.0
[chains]
count = {chains}
block = {block}
seed = 1
start = "cold"
[[update]]
kernel = "hmc"
steps = 8
[run]
thermalization = 1
updates = {updates}
checkpoint_every = 1000000
report = false
"""
LATENCY, MESSAGE = 5e-6, 2e-6


def start(folder: Path, ranks: int, updates: int, extent: int, block: int) -> subprocess.Popen:
    """Start one block of chains per rank; without a launcher for one rank."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = CONFIG.format(chains=ranks * block, block=block, updates=updates, extent=extent)
    (folder / "run.toml").write_text(config)
    command = [sys.executable, "-m", "flowmc.cli", "run", "run.toml", "--output", "out"]
    if ranks > 1:
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        launcher = shutil.which("mpirun", path=path)
        if launcher is None:
            raise SystemExit("no mpirun here: pip install 'flowmc-lattice[test]'")
        command = [launcher, "-n", str(ranks), *command]
    return subprocess.Popen(
        command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.DEVNULL
    )


def finish(folder: Path, process: subprocess.Popen, ranks: int, updates: int) -> dict:
    """Wait for a run; return what its log says of production."""
    if process.wait():
        raise SystemExit(f"a run on {ranks} ranks failed")
    events = [json.loads(line) for line in (folder / "out" / "log.jsonl").read_text().splitlines()]
    begin = next(event for event in events if "thermalization done" in event.get("text", ""))
    end = next(event for event in events if event["event"] == "checkpoint")
    total = events[-1].get("communication_of_all_ranks", {})
    return {
        "seconds": (end["seconds"] - begin["seconds"]) / updates,
        "messages": sum(entry["messages"] for entry in total.values()) / updates,
        "bytes": sum(entry["bytes"] for entry in total.values()) / updates,
        "agreements": total.get("agreement", {}).get("messages", 0) / ranks,
    }


def run(folder: Path, ranks: int, updates: int, extent: int, block: int) -> dict:
    """Run one block of chains per rank; return what the log says of production."""
    return finish(folder, start(folder, ranks, updates, extent, block), ranks, updates)


def side_by_side(folder: Path, updates: int, extent: int, block: int) -> tuple[float, float]:
    """Return the seconds per update of two runs of one rank at the same time: mean and slower."""
    parts = [folder / "1", folder / "2"]
    processes = [start(part, 1, updates, extent, block) for part in parts]
    found = [
        finish(part, process, 1, updates) for part, process in zip(parts, processes, strict=True)
    ]
    seconds = [entry["seconds"] for entry in found]
    return statistics.mean(seconds), max(seconds)


def seconds_per_part(folder: Path) -> float:
    """Return what rank 0 needs for one rank's part of a row, with 10,000 of them, on disk."""
    ranks, rows = 10_000, 5
    values = ("energy_error", "exp_minus_energy_error", "acceptance_probability")
    values += ("non_finite", "reversibility_violation")
    paths = [f"kernels/hmc/{name}" for name in values]
    paths += ["observables/action", "observables/plaquette"]
    counts = ["kernels/hmc/accepted", "kernels/hmc/tried"]
    blank = {path: np.full(ranks, np.nan) for path in paths}
    blank |= {path: np.zeros(ranks, np.int64) for path in counts}
    columns = {path: (value.shape, value.dtype.str) for path, value in blank.items()}
    columns["updates"] = ((), "<i8")
    layout = MeasurementLayout({"thermalization": 0, "production": rows}, columns, {})
    file = MeasurementFile.create(folder / "rows.h5", layout)
    builder = RowBuilder(blank, ranks)
    packers = [Packer() for _ in range(ranks)]
    for _ in range(2):  # the first tells what the words mean
        for rank, packer in enumerate(packers):
            for _row in range(rows):
                pieces = [Piece(path, rank, rank + 1, None, np.ones(1)) for path in paths]
                pieces += [Piece(path, rank, rank + 1, None, np.ones(1, int)) for path in counts]
                packer.add(pieces)
        messages = [packer.take() for packer in packers]
        begin = time.perf_counter()
        for index, row in enumerate(builder.rows(messages)):
            file.write_row("production", index, row | {"updates": np.asarray(index)})
        seconds = time.perf_counter() - begin
    file.close()
    return seconds / ranks / rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--quick", action="store_true", help="a minute, rough numbers")
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    extent, block, updates = (4, 8, 40) if args.quick else (8, 2, 60)
    print(f"{processor()}; SU(3) {extent}^4, {block} chains per rank, 8 omelyan2 steps\n")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        rounds = 1 if args.quick else args.rounds
        times: dict[int, list[float]] = {1: [], 2: []}
        apart: list[tuple[float, float]] = []
        for _ in range(rounds):
            for ranks in times:
                seconds = run(folder / "a", ranks, updates, extent, block)["seconds"]
                times[ranks].append(seconds)
            apart.append(side_by_side(folder / "c", updates, extent, block))
        ratios = [2 * one / two for one, two in zip(times[1], times[2], strict=True)]
        one = statistics.median(times[1])
        print_header(["ranks", "seconds per update", "throughput against one rank"])
        print_row(["1", f"{one:.4f}", "1"])
        print_row(
            [
                "2",
                f"{statistics.median(times[2]):.4f}",
                f"{statistics.median(ratios):.3f} ({', '.join(f'{r:.3f}' for r in ratios)})",
            ]
        )
        for name, column in (("two runs of one rank", 0), ("the slower of the two", 1)):
            seconds = [pair[column] for pair in apart]
            limits = [2 * one / two for one, two in zip(times[1], seconds, strict=True)]
            print_row(
                [
                    name,
                    f"{statistics.median(seconds):.4f}",
                    f"{statistics.median(limits):.3f} ({', '.join(f'{r:.3f}' for r in limits)})",
                ]
            )
        print("\nMessages and bytes of all ranks together, per update (start and end included):\n")
        print_header(["ranks", "messages", "bytes", "agreements in the run"])
        for ranks in (2, 4, 8):
            found = run(folder / "b", ranks, updates, extent, block)
            print_row(
                [
                    str(ranks),
                    f"{found['messages']:.2f}",
                    f"{found['bytes']:.0f}",
                    f"{found['agreements']:.0f}",
                ]
            )
        part = seconds_per_part(folder)
    print(f"\nRank 0 needs {1e6 * part:.2f} us for one rank's part of a row.\n")
    print_header(["update", "100 ranks", "512", "1,000", "10,000"])
    for update in (0.1, 1.0, 10.0, 100.0):
        between = max(update, 2.0)
        row = [f"{update:g} s"]
        for ranks in (100, 512, 1000, 10_000):
            agreement = (ranks * MESSAGE + 2 * LATENCY * math.log2(ranks)) * update / between
            row.append(f"{update / (update + ranks * part + agreement):.1%}")
        print_row(row)


if __name__ == "__main__":
    main()
