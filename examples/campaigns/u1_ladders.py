"""Two-dimensional U(1) on 16x16 at beta = 7: HMC, plain tempering and flows, on equal terms.

    python examples/campaigns/u1_ladders.py [--short] [--output runs/u1_ladders]

runs the configurations beside this file and prints what an independent topological charge and a
round trip through the ladder cost, on one core, everything included but the training.  Costs are
processor time, the difference of two short runs of each configuration, which take turns: other
programs on the machine hardly matter.  An interrupted script goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from flowmc.actions.solved import u1_torus
from flowmc.cli import main as flowmc
from flowmc.estimators.autocorrelation import analyse, format_value
from flowmc.estimators.ladder import round_trip_rate
from flowmc.run.recorded import RecordedRun
from flowmc.run.toml_text import toml_text

HERE = Path(__file__).parent
NAMES = ["hmc", "plain", "residual", "flow", "sampler"]


def configuration(name: str) -> dict[str, Any]:
    return tomllib.loads((HERE / f"u1_16x16_b7_{name}.toml").read_text())


def run(table: dict[str, Any], output: Path) -> float:
    """Run a configuration, or go on with it; return the processor time in seconds."""
    config = output.with_suffix(".toml")
    config.write_text(toml_text(table))
    command = [sys.executable, "-m", "flowmc.cli", "run", str(config)]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(
        [*command, "--output", str(output), "--resume"],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    if result.returncode:
        sys.exit(result.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def continue_run(name: str, output: Path, share: float, scale: float) -> None:
    """Bring one run to a share of its updates."""
    table = configuration(name)
    table["run"]["thermalization"] = max(1, round(scale * table["run"]["thermalization"]))
    table["run"]["updates"] = max(10, round(share * scale * table["run"]["updates"]))
    run(table, output / name)


def seconds_per_update(name: str, updates: int) -> float:
    """Return the processor time of an update of one chain, or of one ladder."""
    table = configuration(name)
    times = []
    for count in (20, 20 + updates):
        table["run"] |= {"thermalization": 1, "updates": count}
        with tempfile.TemporaryDirectory() as folder:
            times.append(run(table, Path(folder) / "timing"))
    return (times[1] - times[0]) / updates / table["chains"]["count"]


def timings(names: list[str], output: Path, scale: float) -> dict[str, list[float]]:
    """Return what is in ``timings.json``, or measure it: three values per run, taken in turns."""
    file = output / "timings.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    missing = [name for name in names if name not in known]
    updates = max(20, round(300 * min(1.0, 10 * scale)))
    measured: dict[str, list[float]] = {name: [] for name in missing}
    for _ in range(3):
        for name in missing:
            print(f"timing {name}", file=sys.stderr, flush=True)
            measured[name].append(seconds_per_update(name, updates))
    file.write_text(json.dumps(known | measured, indent=2) + "\n")
    return known | measured


def line(name: str, output: Path, times: list[float]) -> dict[str, str | float]:
    """Return the measured numbers of one run, whose updates take ``times`` seconds per chain."""
    seconds = statistics.median(times)
    scatter = statistics.stdev(times) / math.sqrt(len(times)) / seconds
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        flowmc(["report", str(output / name), "--json"])
    report = json.loads(text.getvalue())
    recorded = RecordedRun.open(output / name)
    charge = report["observables"]["topological_charge"]
    theory = recorded.config["theory"]
    exact = u1_torus(theory["beta"], math.prod(theory["lattice"]))
    plaquette = analyse(recorded.production.observables["plaquette"][:, :, 0])
    square = analyse(recorded.production.observables["topological_charge"][:, :, 0] ** 2)
    # Squares hide a frozen charge, whose error must not look small.
    bound = ">= " if charge["is_lower_bound"] else ""
    result: dict[str, str | float] = {
        "name": name,
        "replicas": f"{recorded.replicas}",
        "swaps": "-",
        "trips": "-",
        "tau": bound + format_value(charge["tau_int"], charge["tau_int_error"]),
        "update": f"{1e3 * seconds:.3f}",
        "independent": 2e3 * charge["tau_int"] * seconds,
        "independent_error": 2e3
        * seconds
        * math.hypot(charge["tau_int_error"], scatter * charge["tau_int"]),
        "bound": bound,
        "plaquette": format_value(plaquette.mean, plaquette.error),
        "plaquette_pull": f"{(plaquette.mean - exact.plaquette) / plaquette.error:+.1f}",
        "square": format_value(square.mean, square.error),
        "square_pull": f"{(square.mean - exact.charge_squared) / square.error:+.1f}",
        "training": f"{report['cost']['training_seconds']:.0f}",
    }
    if recorded.production.walkers is not None:
        rates = [pair["acceptance"] for pair in report["exchange"]["pairs"]]
        low, high = f"{100 * min(rates):.0f}", f"{100 * max(rates):.0f}"
        result["swaps"] = f"{low} %" if low == high else f"{low}-{high} %"
        rate, error = (
            value / recorded.measure_every for value in round_trip_rate(recorded.production.walkers)
        )
        error = math.hypot(error, scatter * rate)
        result["trips"] = format_value(rate / seconds, error / seconds)
    elif "independence" in report["kernels"]:
        result["swaps"] = f"{100 * report['kernels']['independence']['acceptance']:.0f} %"
    return result


def table(lines: list[dict[str, str | float]]) -> str:
    """Return the lines as a Markdown table."""
    head = [
        "run", "replicas", "swaps", "round trips / s", "tau_Q / updates", "ms / update",
        "ms / independent Q", "against HMC", "training / s", "<P>", "pull", "<Q^2>", "pull",
    ]  # fmt: skip
    base = lines[0]
    rows = [head, ["---"] * len(head)]
    for entry in lines:
        cost, error = float(entry["independent"]), float(entry["independent_error"])
        gain = float(base["independent"]) / cost
        spread = gain * math.hypot(
            error / cost, float(base["independent_error"]) / float(base["independent"])
        )
        rows.append(
            [
                *(str(entry[key]) for key in ("name", "replicas", "swaps", "trips", "tau")),
                str(entry["update"]),
                str(entry["bound"]) + format_value(cost, error),
                "1" if entry is base else str(base["bound"]) + format_value(gain, spread),
                *(str(entry[key]) for key in ("training", "plaquette", "plaquette_pull")),
                *(str(entry[key]) for key in ("square", "square_pull")),
            ]
        )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="a thirtieth of the statistics")
    parser.add_argument("--scale", type=float, help="this share of the statistics")
    parser.add_argument("--output", type=Path, default=Path("runs/u1_ladders"))
    parser.add_argument("--rounds", type=int, default=4, help="parts in which the runs take turns")
    parser.add_argument("--only", nargs="+", choices=NAMES, help="which runs")
    arguments = parser.parse_args()
    scale = arguments.scale or (1 / 30 if arguments.short else 1.0)
    names = [name for name in NAMES if name in (arguments.only or NAMES)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    rounds = arguments.rounds
    for share in range(1, rounds + 1):
        for name in names:
            print(f"{name}: part {share} of {rounds}", file=sys.stderr, flush=True)
            continue_run(name, arguments.output, share / rounds, scale)
    seconds = timings(names, arguments.output, scale)
    print(table([line(name, arguments.output, seconds[name]) for name in names]))


if __name__ == "__main__":
    main()
