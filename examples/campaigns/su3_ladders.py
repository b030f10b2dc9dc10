"""SU(3) on 8^4 at beta = 6: HMC and tempering in the boundary conditions, plain and with flows.

    python examples/campaigns/su3_ladders.py [--short] [--output runs/su3_ladders]

runs the configurations beside this file and prints what an independent topological charge and a
round trip through the ladder cost on one core (see ladder_costs.py), and whether the three agree.
An interrupted script goes on where it was.

The charge is that of the clover after the gradient flow, not rounded.  How near it is to integers,
and what <Q^2> is after rounding, stands in the table of agreement.
"""

from __future__ import annotations

import itertools

import numpy as np
from ladder_costs import Campaign, Measured, main, markdown, pull

from flowmc.estimators.autocorrelation import analyse, format_value


def agreement(measured: Measured, base: Measured) -> dict[str, str]:
    squared = measured.estimates["charge_squared"]
    every = measured.recorded.measure_every
    return {
        "tau_Q^2 / updates": format_value(squared.tau_int * every, squared.tau_int_error * every),
        **{
            label: format_value(measured.estimates[key].mean, measured.estimates[key].error)
            for key, label in (
                ("plaquette", "<P>"),
                ("charge", "<Q>"),
                ("charge_squared", "<Q^2>"),
            )
        },
    }


def rounded(measured: Measured) -> dict[str, str]:
    """Return how near to integers the charge of a run is, and <Q^2> of the rounded one."""
    charge = measured.recorded.production.observables[measured.charge][:, :, 0]
    square = analyse(np.round(charge) ** 2)
    return {
        "run": measured.name,
        "updates": str(measured.recorded.updates),
        "mean distance from integers": f"{np.abs(charge - np.round(charge)).mean():.3f}",
        "<Q^2> rounded": format_value(square.mean, square.error),
    }


def pulls(runs: list[Measured]) -> list[dict[str, str]]:
    """Return the differences of all pairs of runs in standard deviations."""
    return [
        {
            "pair": f"{first.name} - {second.name}",
            **{
                label: pull(
                    first.estimates[key], second.estimates[key].mean, second.estimates[key].error
                )
                for key, label in (("plaquette", "<P>"), ("charge_squared", "<Q^2>"))
            },
        }
        for first, second in itertools.combinations(runs, 2)
    ]


CAMPAIGN = Campaign("su3_8x8x8x8", ("hmc", "defect_plain", "defect_flow"), "s", agreement)

if __name__ == "__main__":
    found = main(CAMPAIGN, __doc__, "runs/su3_ladders")
    for rows in ([rounded(measured) for measured in found], pulls(found)):
        if rows:
            print("\n" + markdown(rows))
