"""ln Z of phi^4 along a line of kappa from flows, beside thermodynamic integration.

    python examples/phi4_kappa_line.py [--lattice 64x8] [--samples 4000] [--steps N] [--flows ...]

draws from a flow at every kappa of the table (lambda = 0.022; 16x8 or 64x8) and prints ln Z with
its error: up to kappa = 0.27 from one conditional flow, near the transition (0.275, 0.28) from
flows of their own, and in the broken phase at kappa = 0.3 from a flow of one well and its mirror
image.  The reference integrates <sum phi phi_mu> over kappa from the exact ln Z at kappa = 0, with
28 nodes of 32 Markov chains each.  A kappa at which the density error is not small against the
spread of the log-weights is refused.
"""

from __future__ import annotations

import argparse
import math

from flowmc.estimators.autocorrelation import format_value
from flowmc.evaluation import evaluate_sampler
from flowmc.evaluation.density import DensityError
from flowmc.flows.cards.files import LoadedFlow, load_flow
from flowmc.flows.scalar.conditional import ConditionalContinuousFlow

# Lattice: kappa: ln Z and its error by thermodynamic integration.
REFERENCE = {
    (16, 8): {
        0.2: (80.0999, 0.0034),
        0.25: (85.7494, 0.0055),
        0.26: (87.8194, 0.0068),
        0.27: (91.4314, 0.0116),
        0.275: (94.8934, 0.0141),
        0.28: (100.0140, 0.0155),
        0.3: (134.9389, 0.0210),
    },
    (64, 8): {
        0.2: (320.4130, 0.0108),
        0.25: (342.9609, 0.0162),
        0.26: (351.2315, 0.0185),
        0.27: (365.0698, 0.0301),
        0.275: (377.9362, 0.0453),
        0.28: (398.0760, 0.0629),
        0.3: (537.5686, 0.1005),
    },
}

# Of the names in the zoo; where several serve a kappa, the last one does.
ENDINGS = ("kappa", "k0.275", "k0.28", "k0.3")


def covers(loaded: LoadedFlow, kappa: float) -> bool:
    """Say whether a flow was made for this kappa, alone or among others."""
    if isinstance(loaded.flow, ConditionalContinuousFlow):
        return loaded.flow.low <= kappa <= loaded.flow.high
    return loaded.action.parameters["kappa"] == kappa


def row(loaded: LoadedFlow, kappa: float, samples: int) -> tuple[str, list[str]]:
    """Draw and return a line of the table, and warnings."""
    reference, error = REFERENCE[loaded.action.lattice][kappa]
    action = loaded.action.at(kappa=kappa)
    found, warnings = evaluate_sampler(loaded.model.at(action), action, samples)
    pull = (found["log_z"] - reference) / math.hypot(found["log_z_error"], error)
    entries = (
        f"{kappa}",
        format_value(found["ess"], found["ess_error"]),
        format_value(found["log_z"], found["log_z_error"]),
        format_value(reference, error),
        f"{pull:+.1f}",
        f"{100 * found['max_weight_share']:.2f} %",
        f"{found['density_error']:.4f}",
    )
    return f"| {' | '.join(entries)} |", warnings


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--lattice", choices=["16x8", "64x8"], default="64x8", help="of zoo flows")
    parser.add_argument("--flows", nargs="+", metavar="FLOW", help="flow files in their place")
    parser.add_argument("--samples", type=int, default=4000, help="per kappa")
    parser.add_argument("--steps", type=int, help="of the integrators; the flows' own by default")
    arguments = parser.parse_args()
    names = arguments.flows or [f"zoo:phi4_{arguments.lattice}_{end}" for end in ENDINGS]
    flows = [load_flow(name) for name in names]
    for name, loaded in zip(names, flows, strict=True):
        if loaded.model is None or loaded.action.lattice not in REFERENCE:
            parser.error(f"{name}: needs a sampler on 16x8 or 64x8")
        if loaded.action.lattice != flows[0].action.lattice:
            parser.error(f"{name}: is of another lattice than {names[0]}")
        loaded.flow.steps = arguments.steps or loaded.flow.steps
    print("| kappa | ESS | ln Z, flow | ln Z, reference | pull | largest weight | density error |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kappa in REFERENCE[flows[0].action.lattice]:
        serving = [loaded for loaded in flows if covers(loaded, kappa)]
        if not serving:
            continue
        try:
            line, warnings = row(serving[-1], kappa, arguments.samples)
        except DensityError as error:
            print(f"  kappa = {kappa}: {error}")
            continue
        print(line, flush=True)
        for warning in warnings:
            print(f"  {warning}")


if __name__ == "__main__":
    main()
