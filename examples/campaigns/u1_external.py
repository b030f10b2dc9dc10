"""Two-dimensional U(1) on 8x8 at beta = 6: a program of somebody else, alone and in a ladder.

    python examples/campaigns/u1_external.py [--short] [--output runs/u1_external]

runs the configurations beside this file, in which ``examples/external/hmc.py`` makes all
trajectories, and prints what an independent topological charge costs (see ladder_costs.py), in
processor time and in trajectories of one replica.  Processor time includes a start of Python per
command: the program alone makes 100 trajectories for each, in the ladder 10.  An interrupted script
goes on where it was.
"""

from __future__ import annotations

from typing import Any

from ladder_costs import HERE, Campaign, Measured, main
from u1_ladders import compared

from flowmc.actions.solved import u1_torus
from flowmc.estimators.autocorrelation import format_value

EXACT = u1_torus(6.0, 8 * 8)


def trajectories(measured: Measured, base: Measured) -> dict[str, str]:
    """Return the cost of an independent charge in trajectories, which is free of Python's start."""
    command = measured.recorded.config["update"][0]["command"]
    count = int(command[command.index("--trajectories") + 1]) * measured.recorded.replicas
    tau, error = measured.tau
    bound = ">= " if measured.is_bound else ""
    cost = bound + format_value(2 * tau * count, 2 * error * count)
    return {"trajectories / independent Q": cost, **compared(measured, EXACT)}


class External(Campaign):
    """A campaign whose configurations run elsewhere than beside this file."""

    def configuration(self, name: str) -> dict[str, Any]:
        table = super().configuration(name)
        command = table["update"][0]["command"]
        where = [str((HERE / word).resolve()) if word[:3] == "../" else word for word in command]
        table["update"][0]["command"] = where
        return table


CAMPAIGN = External("u1_8x8_b6_external", ("hmc", "ladder"), "s", trajectories)

if __name__ == "__main__":
    main(CAMPAIGN, __doc__, "runs/u1_external")
