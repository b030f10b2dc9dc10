r"""Does it pay?  What an error of ln Z costs, and what to change next.

Errors fall like one over the root of the time, so that error squared times seconds is the cost by
which two methods are compared.
"""

from __future__ import annotations

import math
from typing import Any

from flowmc.free_energy.config import FreeEnergyConfig
from flowmc.free_energy.outcome import Outcome
from flowmc.reports.words import duration

__all__ = ["payoff_of_outcome"]

SMALL_OVERLAP = 0.3  # of neighbours on a line
MUCH_WORK = 2.0  # dissipated, beyond which weights spread by factors
TARGET_ERROR = 0.01  # of ln Z, for which the time is told
OTHERS = {
    "q": 'a line of HMC ensembles (method = "chain")',
    "p": 'a line of HMC ensembles (method = "chain")',
    "both": 'a line of HMC ensembles (method = "chain")',
    "snf": 'the same protocol without its flow (method = "annealing")',
    "annealing": 'the same protocol with trained layers (method = "snf")',
    "chain": 'a trained flow (method = "q")',
}


def payoff_of_outcome(config: FreeEnergyConfig, outcome: Outcome) -> dict[str, Any]:
    """Return the entry ``pays`` of the JSON document: ``verdict``, ``cost``, ``answer``, ``next``.

    ``cost`` is error squared times seconds, None where the error is not known.
    """
    best, method = outcome.best.estimate, config.table.method
    other = OTHERS[method]
    is_hmc = method in ("chain", "annealing")
    cost = best.error**2 * outcome.seconds
    if best.bound != "none" or best.error_is_bound or not 0 < cost < math.inf:
        answer = [
            f"not decided: the estimate of {duration(outcome.seconds)} is a bound, or its error is "
            "one, and has no cost yet"
        ]
        found = None
    else:
        found = cost
        answer = [
            f"an error of {best.error:.2g} took {duration(outcome.seconds)}; one of "
            f"{TARGET_ERROR:g} would take {duration(cost / TARGET_ERROR**2)}"
        ]
    kind = "this is HMC alone" if is_hmc else "HMC alone is the reference"
    answer.append(
        f"{kind}; one run cannot tell which pays: the smaller error² x seconds decides, "
        f"{'' if found is None else f'{found:.3g} s here, '}against that of {other} on the same "
        "theory"
    )
    return {
        "verdict": "hmc alone" if is_hmc else "undecided",
        "cost": found,
        "answer": answer,
        "next": _next(method, outcome),
    }


def _next(method: str, outcome: Outcome) -> list[str]:
    found = []
    known = [
        (overlap, place)
        for place, (_, _, overlap) in enumerate(outcome.line)
        if math.isfinite(overlap)
    ]
    if known and min(known)[0] < SMALL_OVERLAP:
        overlap, place = min(known)
        couplings = ", ".join(f"{k} = {v:g}" for k, v in outcome.line[place][0].items())
        found.append(
            f"the ensemble at {couplings} overlaps with the one before by {overlap:.2g} only, the "
            "bottleneck of the line: put another between them"
        )
    process = outcome.process
    if process is not None and process.dissipated > MUCH_WORK:
        found.append(
            f"the processes dissipate a work of {process.dissipated:.2g} in "
            f"{len(process.step_work)} steps: take more of them"
        )
    ess = outcome.best.estimate.ess
    if method in ("q", "both") and math.isfinite(ess) and ess < 0.1:
        found.append(f"the flow has an ESS of {ess:.2g}: train it longer, or a larger one")
    return found
