"""Two-dimensional U(1) on 16x16 at beta = 7: HMC, plain tempering and flows, on equal terms.

    python examples/campaigns/u1_ladders.py [--short] [--output runs/u1_ladders]

runs the configurations beside this file and prints what an independent topological charge and a
round trip through the ladder cost on one core (see ladder_costs.py), and how far plaquette and
charge are from their exact values.  An interrupted script goes on where it was.
"""

from __future__ import annotations

import math

from ladder_costs import Campaign, Measured, main, pull

from flowmc.actions.solved import TorusSolution, u1_torus
from flowmc.estimators.autocorrelation import format_value


def agreement(measured: Measured, base: Measured) -> dict[str, str]:
    theory = measured.recorded.config["theory"]
    return compared(measured, u1_torus(theory["beta"], math.prod(theory["lattice"])))


def compared(measured: Measured, exact: TorusSolution) -> dict[str, str]:
    """Return entries of the table that compare a run with exact values."""
    found = measured.estimates
    return {
        "<P>": format_value(found["plaquette"].mean, found["plaquette"].error),
        "pull": pull(found["plaquette"], exact.plaquette),
        "<Q^2>": format_value(found["charge_squared"].mean, found["charge_squared"].error),
        "pull of <Q^2>": pull(found["charge_squared"], exact.charge_squared),
    }


CAMPAIGN = Campaign("u1_16x16_b7", ("hmc", "plain", "residual", "flow", "sampler"), "ms", agreement)

if __name__ == "__main__":
    main(CAMPAIGN, __doc__, "runs/u1_ladders")
