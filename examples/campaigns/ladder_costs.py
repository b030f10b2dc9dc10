"""What the ladder campaigns share: runs in turns, processor time per update, and the table.

Costs are processor time on one core of everything that makes the next configuration: all replicas,
exchanges and flows, without measurements, which are the same for each way of sampling, and without
training, which the table lists.  They are differences of two runs of each configuration, which
take turns: other programs on the machine hardly matter.
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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmc.chains.storage.recorded import RecordedRun
from flowmc.cli import main as flowmc
from flowmc.config.toml_text import toml_text
from flowmc.estimators.autocorrelation import (
    Estimate,
    analyse,
    analyse_topological_charge,
    format_value,
)

HERE = Path(__file__).parent
TIMING_SHARE = 0.1  # of the updates of a campaign, in the longer of two timed runs


@dataclass(frozen=True)
class Measured:
    """What one run says.

    Attributes:
        name: of the run.
        report: of ``flowmc report --json``.
        recorded: its run directory.
        charge: label of the topological charge.
        tau: of the charge, in updates, with its error.
        is_bound: whether tau is a lower bound.
        estimates: of "plaquette", "charge", "charge_squared" of the target.
        seconds: of an update of one chain, or of one ladder, with its error.
    """

    name: str
    report: dict[str, Any]
    recorded: RecordedRun
    charge: str
    tau: tuple[float, float]
    is_bound: bool
    estimates: dict[str, Estimate]
    seconds: tuple[float, float]

    @property
    def cost(self) -> tuple[float, float]:
        """Seconds per independent charge, with the error."""
        (tau, tau_error), (seconds, seconds_error) = self.tau, self.seconds
        return 2 * tau * seconds, 2 * math.hypot(tau_error * seconds, tau * seconds_error)


@dataclass(frozen=True)
class Campaign:
    """Runs beside this file that sample the same theory.

    Attributes:
        prefix: of the names of their configurations.
        names: of the runs, the first of which is the one that costs are compared with.
        unit: of costs in the table, "ms" or "s".
        agreement: entries of the table that compare ``<P>`` and ``<Q^2>`` of a run with what they
            must be, from the run and the first one.
    """

    prefix: str
    names: Sequence[str]
    unit: str
    agreement: Callable[[Measured, Measured], dict[str, str]]

    def configuration(self, name: str) -> dict[str, Any]:
        return tomllib.loads((HERE / f"{self.prefix}_{name}.toml").read_text())

    def continue_run(self, name: str, output: Path, share: float, scale: float) -> None:
        """Bring one run to a share of its updates."""
        table = self.configuration(name)
        every = table["run"].get("measure_every", 1)
        updates = max(30, round(share * scale * table["run"]["updates"] / every)) * every
        table["run"]["thermalization"] = max(1, round(scale * table["run"]["thermalization"]))
        table["run"]["updates"] = updates
        run(table, output / name)

    def seconds_per_update(self, name: str, updates: int) -> float:
        """Return the processor time of an update of one chain, or of one ladder."""
        table = self.configuration(name)
        times = []
        for count in (10, 10 + updates):
            table["run"] |= {"thermalization": 0, "updates": count, "measure_every": count}
            table["run"]["report"] = False
            with tempfile.TemporaryDirectory() as folder:
                times.append(run(table, Path(folder) / "timing"))
        return (times[1] - times[0]) / updates / table["chains"]["count"]

    def timings(self, names: Sequence[str], output: Path, scale: float) -> dict[str, list[float]]:
        """Return what is in ``timings.json``, or measure it: three values per run, in turns."""
        file = output / "timings.json"
        known = json.loads(file.read_text()) if file.exists() else {}
        missing = [name for name in names if name not in known]
        share = TIMING_SHARE * min(1.0, 10 * scale)
        measured: dict[str, list[float]] = {name: [] for name in missing}
        for _ in range(3):
            for name in missing:
                print(f"timing {name}", file=sys.stderr, flush=True)
                updates = max(30, round(share * self.configuration(name)["run"]["updates"]))
                measured[name].append(self.seconds_per_update(name, updates))
        file.write_text(json.dumps(known | measured, indent=2) + "\n")
        return known | measured

    def table(self, runs: Sequence[Measured]) -> str:
        """Return what the runs say as a Markdown table."""
        return markdown([self._row(measured, runs[0]) for measured in runs])

    def _row(self, measured: Measured, base: Measured) -> dict[str, str]:
        report = measured.report
        factor = {"ms": 1e3, "s": 1.0}[self.unit]
        (seconds, seconds_error), (cost, error) = measured.seconds, measured.cost
        swaps = trips = "-"
        if "exchange" in report:
            swaps = _range([pair["acceptance"] for pair in report["exchange"]["pairs"]])
            rate = report["exchange"]["round_trip_rate"]
            value = rate["per_update"] / seconds
            spread = math.hypot(
                rate["per_update_error"], rate["per_update"] * seconds_error / seconds
            )
            bound = ">= " if rate["is_lower_bound"] else ""
            trips = bound + format_value(value, spread / seconds)
        elif "independence" in report["kernels"]:
            swaps = _range([report["kernels"]["independence"]["acceptance"]])
        gain, spread = base.cost[0] / cost, math.hypot(error / cost, base.cost[1] / base.cost[0])
        bound = ">= " if measured.is_bound else ""
        # A lower bound of one of the two costs bounds their ratio from one side only.
        against = {(False, False): "", (True, False): ">= ", (False, True): "<= "}.get(
            (base.is_bound, measured.is_bound), "? "
        )
        return {
            "run": measured.name,
            "replicas": str(measured.recorded.replicas),
            "swaps": swaps,
            "round trips / s": trips,
            "tau_Q / updates": bound + format_value(*measured.tau),
            f"{self.unit} / update": format_value(factor * seconds, factor * seconds_error),
            f"{self.unit} / independent Q": bound + format_value(factor * cost, factor * error),
            "gain": "1" if measured is base else against + format_value(gain, gain * spread),
            "training / s": f"{report['cost']['training_seconds']:.0f}",
            **self.agreement(measured, base),
        }


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


def read(name: str, output: Path, times: Sequence[float]) -> Measured:
    """Read a run whose updates take ``times`` seconds per chain."""
    seconds = statistics.median(times)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        flowmc(["report", str(output / name), "--json"])
    report = json.loads(text.getvalue())
    recorded = RecordedRun.open(output / name)
    (label,) = (key for key in report["observables"] if key.startswith("topological_charge"))
    every = recorded.measure_every
    plaquette, charge = (
        recorded.production.observables[key][:, :, 0] for key in ("plaquette", label)
    )
    estimates = {
        "plaquette": analyse(plaquette),
        "charge": analyse_topological_charge(charge),
        "charge_squared": analyse(charge**2),
    }
    found = estimates["charge"]
    return Measured(
        name,
        report,
        recorded,
        label,
        (found.tau_int * every, found.tau_int_error * every),
        found.is_bound,
        estimates,
        (seconds, statistics.stdev(times) / math.sqrt(len(times))),
    )


def markdown(rows: Sequence[Mapping[str, str]]) -> str:
    """Return rows with the same keys as a Markdown table."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *(list(row.values()) for row in rows)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def pull(value: Estimate, mean: float, error: float = 0.0) -> str:
    """Return the difference of an estimate from a number in standard deviations."""
    deviation = math.hypot(value.error, error)
    return f"{(value.mean - mean) / deviation:+.1f}" if deviation > 0 else "?"


def main(campaign: Campaign, documentation: str | None, output: str) -> list[Measured]:
    """Do what the command line asks for, print the table, and return what the runs say."""
    parser = argparse.ArgumentParser(
        description=documentation, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--short", action="store_true", help="a thirtieth of the statistics")
    parser.add_argument("--scale", type=float, help="this share of the statistics")
    parser.add_argument("--output", type=Path, default=Path(output))
    parser.add_argument("--rounds", type=int, default=4, help="parts in which the runs take turns")
    parser.add_argument("--only", nargs="+", choices=campaign.names, help="which runs")
    arguments = parser.parse_args()
    scale = arguments.scale or (1 / 30 if arguments.short else 1.0)
    names = [name for name in campaign.names if name in (arguments.only or campaign.names)]
    arguments.output.mkdir(parents=True, exist_ok=True)
    rounds = arguments.rounds
    for share in range(1, rounds + 1):
        for name in names:
            print(f"{name}: part {share} of {rounds}", file=sys.stderr, flush=True)
            campaign.continue_run(name, arguments.output, share / rounds, scale)
    times = campaign.timings(names, arguments.output, scale)
    runs = [read(name, arguments.output, times[name]) for name in names]
    print(campaign.table(runs))
    return runs


def _range(rates: Sequence[float]) -> str:
    low, high = f"{100 * min(rates):.0f}", f"{100 * max(rates):.0f}"
    return f"{low} %" if low == high else f"{low}-{high} %"
