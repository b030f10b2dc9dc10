r"""What an independent sample costs, so that two ways of sampling can be compared.

A measurement of one chain costs c seconds; neighbouring measurements are correlated, so that
:math:`N` of them are worth :math:`N / 2 \tau_{int}` independent ones, at :math:`2 \tau_{int} c`
each.  A trained flow costs its training once: amortised over the ensemble, it adds
:math:`t_{train} \, 2 \tau_{int} / N`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from flowmc.estimators.autocorrelation import Estimate

__all__ = [
    "Cost",
    "average",
    "break_even",
    "break_even_bound",
    "cost_per_independent_sample",
    "gain",
    "gain_bound",
]


@dataclass(frozen=True)
class Cost:
    """Seconds per independent sample of one observable.

    Attributes:
        seconds: without training.
        error: standard deviation of ``seconds``, from that of tau_int.
        seconds_with_training: with the training amortised over the ensemble at hand.
        independent_samples: what the ensemble at hand is worth.
        is_bound: tau_int is a lower bound, and so are the seconds.
    """

    seconds: float
    error: float
    seconds_with_training: float
    independent_samples: float
    is_bound: bool


def cost_per_independent_sample(
    estimate: Estimate, seconds_per_measurement: float, training_seconds: float = 0.0
) -> Cost:
    """Return the cost of an independent sample of one observable.

    Args:
        estimate: of the observable.
        seconds_per_measurement: wall time of the run per measurement *of one chain*: the time of a
            row divided by the number of chains that were updated in it.
        training_seconds: of all flows used; 0 without flows.
    """
    correlated = 2 * estimate.tau_int
    independent = estimate.samples / correlated
    seconds = correlated * seconds_per_measurement
    return Cost(
        seconds,
        2 * estimate.tau_int_error * seconds_per_measurement,
        seconds + training_seconds / independent,
        independent,
        estimate.is_bound,
    )


def average(costs: Sequence[Cost]) -> Cost:
    """Return the mean cost of the components of a vector observable.

    The largest would be that of the component whose tau_int is overestimated most: with many
    components or short runs, a number that is biased upwards.  Components are measured on the same
    configurations, so their errors are averaged as fully correlated ones.
    """
    count = len(costs)
    return Cost(
        sum(cost.seconds for cost in costs) / count,
        sum(cost.error for cost in costs) / count,
        sum(cost.seconds_with_training for cost in costs) / count,
        count / sum(1 / cost.independent_samples for cost in costs),
        any(cost.is_bound for cost in costs),
    )


def break_even(cost: float, other_cost: float, training_seconds: float) -> float:
    """Return how many independent samples repay a training: ``t / (other_cost - cost)``.

    Args:
        cost: seconds per independent sample with the flow, without its training.
        other_cost: seconds per independent sample of the method it replaces.
        training_seconds: of the flow.

    Returns:
        0 without training, infinity if the flow is not cheaper.
    """
    if training_seconds <= 0:
        return 0.0
    return training_seconds / (other_cost - cost) if other_cost > cost else math.inf


def gain(cost: Cost, other: Cost) -> tuple[float, float]:
    """Return how many times cheaper ``cost`` is than ``other``, with the error of the ratio."""
    ratio = other.seconds / cost.seconds
    return ratio, ratio * math.hypot(cost.error / cost.seconds, other.error / other.seconds)


def gain_bound(cost: Cost, other: Cost) -> str:
    """Return what :func:`gain` is where a cost is only a lower bound.

    Returns:
        "none" for an estimate, "upper" or "lower" for a bound, "unknown" if both costs are bounds.
    """
    if cost.is_bound and other.is_bound:
        return "unknown"
    if cost.is_bound:
        return "upper"
    return "lower" if other.is_bound else "none"


def break_even_bound(cost: Cost, other: Cost) -> str:
    """Return the same of :func:`break_even`: what makes the gain larger makes it smaller."""
    bound = gain_bound(cost, other)
    if bound == "upper" and cost.seconds >= other.seconds:
        return "none"  # never, and all the more so
    return {"upper": "lower", "lower": "upper"}.get(bound, bound)
