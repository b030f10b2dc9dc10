"""A farm of HMC chains on several MPI ranks: throughput, messages, and what follows for many ranks.

    python examples/benchmarks/rank_scaling.py [--quick] [--rounds 3]

Starts ``mpirun`` itself.  Every rank has one thread and the same number of chains; the throughput
is that of the production, start-up excluded, from the run's own log.  One and two ranks alternate.
With more ranks than cores only messages and bytes are of interest.  The model at the end is

    efficiency(P) = t / (t + P a + (b + c log2 P) t / s)

for an update of t seconds: rank 0 takes a seconds for the measurements of one rank and row
(measured here with 10,000 parts), ranks agree every s = max(t, 2) seconds on going on, which costs
b + c log2 P (measured at 1 to 8 ranks; a latency of 5 us per level is assumed beyond).
"""

import argparse
import json
import math
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import print_header, print_row, processor

from flowmc.run.diagnostics import Piece

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
LATENCY = 5e-6


def run(folder: Path, ranks: int, updates: int, extent: int, block: int) -> dict:
    """Run one block of chains per rank; return what the log says of production."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = CONFIG.format(chains=ranks * block, block=block, updates=updates, extent=extent)
    (folder / "run.toml").write_text(config)
    launcher = shutil.which("mpirun", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if launcher is None:
        raise SystemExit("no mpirun here: pip install 'flowmc-lattice[test]'")
    command = [sys.executable, "-m", "flowmc.cli", "run", "run.toml", "--output", "out"]
    subprocess.run(
        [launcher, "-n", str(ranks), *command],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        capture_output=True,
    )
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


def seconds_per_part() -> float:
    """Return what rank 0 needs for the row of one rank, with 10,000 of them."""
    ranks = 10_000
    values = ("accepted", "tried", "energy_error", "exp_minus_energy_error", "non_finite")
    paths = [f"kernels/hmc/{name}" for name in values]
    paths += ["kernels/hmc/acceptance_probability", "kernels/hmc/reversibility_violation"]
    paths += ["observables/action", "observables/plaquette"]
    row = {path: np.zeros(ranks) for path in paths}
    parts = [
        pickle.dumps([Piece(path, r, r + 1, None, np.ones(1)) for path in paths])
        for r in range(ranks)
    ]
    begin = time.perf_counter()
    for part in parts:
        for piece in pickle.loads(part):
            piece.put(row)
    return (time.perf_counter() - begin) / ranks


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
        for _ in range(rounds):
            for ranks in times:
                seconds = run(folder / "a", ranks, updates, extent, block)["seconds"]
                times[ranks].append(seconds)
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
    part = seconds_per_part()
    print(f"\nRank 0 needs {1e6 * part:.1f} us for the measurements of one rank and row.\n")
    print_header(["update", "100 ranks", "512", "1,000", "10,000"])
    for update in (0.1, 1.0, 10.0, 100.0):
        between = max(update, 2.0)
        row = [f"{update:g} s"]
        for ranks in (100, 512, 1000, 10_000):
            agreement = 2 * LATENCY * math.log2(ranks) * update / between
            row.append(f"{update / (update + ranks * part + agreement):.1%}")
        print_row(row)


if __name__ == "__main__":
    main()
