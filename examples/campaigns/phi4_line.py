"""phi^4 along the line m_p L = 4: HMC, proposals of the zoo's flows, and both in turns.

    python examples/campaigns/phi4_line.py [--sizes 8 12 20] [--kinds hmc flow] [--scale 1] ...

runs the three ways of sampling at every size and prints, for one core: the integrated
autocorrelation time of the magnetization in updates, processor time per update, the cost of an
independent magnetization (2 tau times the cost of an update), and after how many of these the
training of the flow is paid.  <phi^2> is compared with the HMC of the table.  An interrupted script
goes on where it was.

An update of HMC is a trajectory of unit length; of the flow, a proposal; of both, one of each.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ladder_costs import markdown, run

from flowmc import zoo
from flowmc.cli import main as flowmc
from flowmc.estimators.autocorrelation import format_value

FLOWS = {
    8: "phi4_8x8_l6.008",
    12: "phi4_12x12_l5.276",
    20: "phi4_20x20_l4.807",
    32: "phi4_32x32_l4.572",
    64: "phi4_64x64_l4.398",
}
LEAPFROG_STEPS = {8: 10, 12: 10, 20: 11, 32: 14, 64: 18}
# Twenty times tau(m) of HMC or more.
HMC_THERMALIZATION = {8: 200, 12: 500, 20: 1500, 32: 3000, 64: 12000}
# Dear where a flow is, and tau(m) hardly more than a half.
FLOW_UPDATES = {8: 1500, 12: 600, 20: 300, 32: 150, 64: 60}
KINDS = ("hmc", "flow", "hmc + flow")
CHAINS = 32


@dataclass(frozen=True)
class Measured:
    """One way of sampling one size: estimates with their errors, seconds per update of a chain."""

    size: int
    kind: str
    updates: int
    acceptance: float
    tau: tuple[float, float]
    phi2: tuple[float, float]
    seconds: tuple[float, float]

    @property
    def cost(self) -> tuple[float, float]:
        """Seconds per independent magnetization."""
        (tau, tau_error), (seconds, error) = self.tau, self.seconds
        return 2 * tau * seconds, 2 * math.hypot(tau_error * seconds, tau * error)


def configuration(size: int, kind: str, updates: int) -> dict[str, Any]:
    """Return the tables of a run."""
    theory = zoo.card(FLOWS[size])["theory"]
    hmc = {
        "kernel": "hmc",
        "trajectory": 1.0,
        "steps": LEAPFROG_STEPS[size],
        "integrator": "leapfrog",
    }
    flow = {"kernel": "independence", "flow": f"zoo:{FLOWS[size]}", "proposals": 1}
    start = "hot" if kind == "hmc" else "flow"
    thermalization = HMC_THERMALIZATION[size] if kind == "hmc" else 10
    return {
        "theory": {"action": "phi4", "lattice": [size, size], **theory["couplings"]},
        "chains": {
            **{"count": CHAINS, "block": CHAINS, "seed": size},
            **{"precision": 32, "start": start},
        },
        "update": {"hmc": [hmc], "flow": [flow], "hmc + flow": [hmc, flow]}[kind],
        "run": {"thermalization": thermalization, "updates": updates, "report": False},
        "measure": {"observables": ["magnetization", "phi2"]},
    }


def seconds_per_update(size: int, kind: str, updates: int) -> float:
    """Return the processor time of an update of one chain, without measurements."""
    times = []
    base = max(1, updates // 10)
    for count in (base, base + updates):
        table = configuration(size, kind, count)
        table["run"] |= {"thermalization": 0, "measure_every": count}
        with tempfile.TemporaryDirectory() as folder:
            times.append(run(table, Path(folder) / "timing"))
    return (times[1] - times[0]) / updates / CHAINS


def timings(size: int, output: Path, kinds: Sequence[str] = KINDS) -> dict[str, list[float]]:
    """Return three times of ways of sampling a size, taken in turns, or what is stored.

    Enough updates for starting the program, some seconds that differ by one, to matter little.
    """
    file = output / f"timings_{size}.json"
    found: dict[str, list[float]] = json.loads(file.read_text()) if file.exists() else {}
    missing = [kind for kind in kinds if kind not in found]
    if not missing:
        return found
    times: dict[str, list[float]] = {kind: [] for kind in missing}
    for _ in range(3):
        for kind in missing:
            count = 200 * (8 / size) ** 2 if kind != "hmc" else 6000 * min(1, (32 / size) ** 2)
            times[kind].append(seconds_per_update(size, kind, round(count)))
    found |= times
    file.write_text(json.dumps(found) + "\n")
    return found


def measure(
    size: int, kind: str, output: Path, scale: float, kinds: Sequence[str] = KINDS
) -> Measured:
    """Run, or go on with, one way of sampling; the time is measured in turns with other kinds."""
    updates = 20000 if kind == "hmc" else FLOW_UPDATES[size]
    updates = max(30, round(scale * updates))
    folder = output / f"{size}_{kind.replace(' + ', '_')}"
    print(folder.name, file=sys.stderr, flush=True)
    run(configuration(size, kind, updates), folder)
    text = io.StringIO()
    with contextlib.redirect_stdout(text):
        flowmc(["report", str(folder), "--json"])
    report = json.loads(text.getvalue())
    magnetization, phi2 = (report["observables"][key] for key in ("magnetization", "phi2"))
    times = timings(size, output, kinds)[kind]
    kernel = report["kernels"]["hmc" if kind == "hmc" else "independence"]
    return Measured(
        size,
        kind,
        updates,
        kernel["acceptance"],
        (magnetization["tau_int"], magnetization["tau_int_error"]),
        (phi2["mean"], phi2["error"]),
        (statistics.median(times), statistics.stdev(times) / math.sqrt(len(times))),
    )


def row(measured: Measured, base: Measured, training: float) -> dict[str, str]:
    """Return one line of the table."""
    (cost, error), saved = measured.cost, base.cost[0] - measured.cost[0]
    deviation = math.hypot(measured.phi2[1], base.phi2[1])
    paid = f"{training / saved:.2g}" if saved > 0 else "never"
    return {
        "L": str(measured.size),
        "update": measured.kind,
        "updates": f"{CHAINS} x {measured.updates}",
        "acceptance": f"{measured.acceptance:.3f}",
        "tau(m) / updates": format_value(*measured.tau),
        "ms / update": format_value(*(1e3 * value for value in measured.seconds)),
        "ms / independent m": format_value(1e3 * cost, 1e3 * error),
        "training / s": "-" if measured is base else f"{training:.0f}",
        "paid after": "-" if measured is base else paid,
        "<phi^2>": format_value(*measured.phi2),
        "pull": "-"
        if measured is base
        else f"{(measured.phi2[0] - base.phi2[0]) / deviation:+.1f}",
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [size for size, name in FLOWS.items() if name in zoo.zoo_list()]
    parser.add_argument("--sizes", type=int, nargs="+", choices=known, default=known)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="hmc among them")
    parser.add_argument("--scale", type=float, default=1.0, help="this share of the statistics")
    parser.add_argument("--output", type=Path, default=Path("runs/phi4_line"))
    arguments = parser.parse_args()
    if "hmc" not in arguments.kinds:
        parser.error("--kinds: the others are compared with hmc")
    kinds = [kind for kind in KINDS if kind in arguments.kinds]
    arguments.output.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, str]] = []
    for size in arguments.sizes:
        # A flow begins as that of the next smaller size, whose training is part of its cost.
        training = sum(
            zoo.card(name)["training"]["seconds"]
            for other, name in FLOWS.items()
            if other <= size and name in zoo.zoo_list()
        )
        found = [measure(size, kind, arguments.output, arguments.scale, kinds) for kind in kinds]
        rows += [row(measured, found[0], training) for measured in found]
    print(markdown(rows))


if __name__ == "__main__":
    main()
