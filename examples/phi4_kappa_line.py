"""ln Z of phi^4 along a line of kappa from one conditional flow, beside thermodynamic integration.

    python examples/phi4_kappa_line.py [--flow zoo:phi4_64x8_kappa] [--samples 4000] [--steps N]

draws from the flow at every kappa of the table for its lattice (lambda = 0.022; 16x8 or 64x8) and
prints ln Z with its error.  The reference integrates <sum phi phi_mu> over kappa from the exact ln
Z at kappa = 0, with 28 nodes of 32 Markov chains each.  A kappa at which the density error is not
small against the spread of the log-weights is refused.
"""

from __future__ import annotations

import argparse
import math

from flowmc.estimators.autocorrelation import format_value
from flowmc.flows.conditional import ConditionalContinuousFlow
from flowmc.flows.files import load_flow
from flowmc.run.evaluate import DensityError, evaluate_sampler

# Lattice: kappa: ln Z and its error by thermodynamic integration.
REFERENCE = {
    (16, 8): {
        0.2: (80.0999, 0.0034),
        0.25: (85.7494, 0.0055),
        0.26: (87.8194, 0.0068),
        0.27: (91.4314, 0.0116),
        0.275: (94.8934, 0.0141),
        0.28: (100.0140, 0.0155),
    },
    (64, 8): {
        0.2: (320.4130, 0.0108),
        0.25: (342.9609, 0.0162),
        0.26: (351.2315, 0.0185),
        0.27: (365.0698, 0.0301),
        0.275: (377.9362, 0.0453),
        0.28: (398.0760, 0.0629),
    },
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--flow", default="zoo:phi4_64x8_kappa", help="a flow file")
    parser.add_argument("--samples", type=int, default=4000, help="per kappa")
    parser.add_argument("--steps", type=int, help="of the integrator; the flow's own by default")
    arguments = parser.parse_args()
    loaded = load_flow(arguments.flow)
    references = REFERENCE.get(loaded.action.lattice)
    if loaded.model is None or references is None:
        parser.error(f"{arguments.flow}: needs a sampler on 16x8 or 64x8")
    assert isinstance(loaded.flow, ConditionalContinuousFlow)
    loaded.flow.steps = arguments.steps or loaded.flow.steps
    print("| kappa | ESS | ln Z, flow | ln Z, reference | pull | largest weight | density error |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for kappa, (reference, error) in references.items():
        action = loaded.action.at(kappa=kappa)
        try:
            found, warnings = evaluate_sampler(loaded.model.at(action), action, arguments.samples)
        except DensityError as error:
            print(f"  kappa = {kappa}: {error}")
            continue
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
        print(f"| {' | '.join(entries)} |", flush=True)
        for warning in warnings:
            print(f"  {warning}")


if __name__ == "__main__":
    main()
