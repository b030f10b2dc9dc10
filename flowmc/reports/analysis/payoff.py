r"""Does it pay?  What the kernels of a run cost against its HMC part alone, what to change next.

Of one run the cost per independent sample is known, :math:`2 \tau_{int} c`, and how much of the
time c its HMC part takes.  The autocorrelation time that HMC would have alone is not recorded in
it.  What can be said is how long it must be for the other kernels to pay,

.. math:: \tau_{int}^{HMC} > \tau_{int} \, c / c^{HMC},

and, without a second run, that a kernel only costs if its accepted proposals are too few: each of
them brings one independent configuration at most, so that A of them can account for no more than A
of the independent samples, and must take no larger share of the time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from flowmc.chains.storage.recorded import RecordedRun
from flowmc.estimators.autocorrelation import Estimate, format_value
from flowmc.estimators.cost import average
from flowmc.reports.words import duration_text, kernel_title

if TYPE_CHECKING:
    from flowmc.reports.analysis.summary import Analysis

__all__ = ["Demand", "Payoff", "payoff_of"]

SIGMAS = 2.0  # by which tau_int may be larger when a kernel is said to cost only
MUCH_REST = 0.3  # share of measurements and files in the time that is worth a word
EASY_HMC = 0.97  # acceptance of HMC beyond which its steps are too small
HARD_HMC = 0.5  # ... and below which they are too large


@dataclass(frozen=True)
class Demand:
    """How slow HMC alone must be in one observable for the other kernels to pay.

    Attributes:
        observable: its name.
        seconds: per independent sample with all kernels.
        seconds_error: standard deviation, from that of tau_int.
        tau_int: that HMC alone must exceed, in measurements.
        tau_int_error: its standard deviation.
        is_bound: tau_int of the run is a lower bound, and so are the others.
    """

    observable: str
    seconds: float
    seconds_error: float
    tau_int: float
    tau_int_error: float
    is_bound: bool


@dataclass(frozen=True)
class Payoff:
    """The answer of one run.

    Attributes:
        verdict: "only costs" (decided by the run itself), "undecided", "hmc alone", "no hmc" or
            "no timings".
        hmc_share: of the wall time, what HMC of the target alone would take; None if not known.
        demands: one for each observable, of vectors the mean over the components.
        answer: sentences.
        next: sentences, what to change.
    """

    verdict: str
    hmc_share: float | None = None
    demands: tuple[Demand, ...] = ()
    answer: tuple[str, ...] = ()
    next: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """Return the entry ``pays`` of the JSON document; see docs/reports.md."""
        return {
            "verdict": self.verdict,
            "hmc_share": self.hmc_share,
            "answer": list(self.answer),
            "next": list(self.next),
            "observables": {
                one.observable: {
                    "seconds_per_independent_sample": one.seconds,
                    "error": one.seconds_error,
                    "hmc_alone_must_exceed_tau_int": one.tau_int,
                    "hmc_alone_must_exceed_tau_int_error": one.tau_int_error,
                    "is_lower_bound": one.is_bound,
                }
                for one in self.demands
            },
        }


def payoff_of(analysis: Analysis) -> Payoff:
    """Say whether the kernels of a run beside HMC pay, as far as the run can tell."""
    run, shares = analysis.run, analysis.time_shares()
    further = tuple(_next(analysis))
    kernels = [name for name in shares if name != "rest"]
    if not analysis.costs or not kernels:
        text = "the run has no timings in its log, so nothing is known about costs"
        return Payoff("no timings", answer=(text,), next=further)
    hmc = [name for name in kernels if run.kernel_of(name) == "hmc"]
    others = [name for name in kernels if name not in hmc]
    slowest = _slowest(analysis)
    cost = f"an independent sample of {slowest.observable} costs {_cost_text(slowest)}"
    if not hmc:
        return Payoff(
            "no hmc",
            demands=tuple(_demands(analysis, math.nan)),
            answer=(
                f"{cost}, without HMC; whether that pays, the same theory with HMC alone decides: "
                f"flowmc report HMC_RUN {run.path}",
            ),
            next=further,
        )
    if not others and run.replicas == 1:
        return Payoff(
            "hmc alone",
            1.0,
            tuple(_demands(analysis, 1.0)),
            (
                f"this is HMC alone: {cost}; whether a flow would pay, the same configuration with "
                f"it decides: flowmc report {run.path} FLOW_RUN",
            ),
            further,
        )
    share = _hmc_share(run, shares, hmc)
    demands = tuple(_demands(analysis, share))
    slowest = max(demands, key=lambda one: one.seconds)
    waste = [name for name in others if _only_costs(analysis, name, shares)]
    mix = " and ".join(kernel_title(name, run) for name in others) or "the other replicas"
    needed = format_value(slowest.tau_int, slowest.tau_int_error)
    if slowest.is_bound:
        needed = f"a number that is itself at least {needed}"
    answer = [
        f"with {mix} {cost}; HMC of the target alone would take {share:.0%} of the time",
        f"it pays in {slowest.observable} if tau_int of HMC alone is above {needed} measurements",
    ]
    if waste:
        return Payoff("only costs", share, demands, (*_wasted(analysis, waste), *answer), further)
    answer.append(
        "this run cannot tell; the same configuration with the HMC updates alone decides: flowmc "
        f"report HMC_RUN {run.path}"
    )
    return Payoff("undecided", share, demands, tuple(answer), further)


def _hmc_share(run: RecordedRun, shares: Mapping[str, float], hmc: Sequence[str]) -> float:
    """Return the share of the time that HMC at replica 0, its measurements and files would take.

    The replicas of a ladder take equal times, those of HMC in proportion to their steps.
    """
    sizes = run.step_sizes()
    total = shares.get("rest", 0.0) / run.replicas
    for name in hmc:
        steps = 1 / np.asarray(sizes.get(name) or [1.0] * run.replicas, dtype=float)
        if len(steps) != run.replicas:
            steps = np.ones(run.replicas)
        total += shares[name] * float(steps[0] / steps.sum())
    return total


def _demands(analysis: Analysis, share: float) -> list[Demand]:
    per_measurement = analysis.seconds_per_measurement
    assert per_measurement is not None
    factor = 1 / (2 * per_measurement * share)
    return [
        Demand(
            name,
            cost.seconds,
            cost.error,
            factor * cost.seconds,
            factor * cost.error,
            cost.is_bound,
        )
        for name, cost in ((name, average(costs)) for name, costs in analysis.costs.items())
    ]


def _slowest(analysis: Analysis) -> Demand:
    return max(_demands(analysis, math.nan), key=lambda one: one.seconds)


def _component(analysis: Analysis, name: str) -> Estimate:
    """Return the slowest component of an observable of the target."""
    known = [one for one in analysis.observables[name][0] if math.isfinite(one.tau_int)]
    return max(known, key=lambda one: one.tau_int)


def _only_costs(analysis: Analysis, name: str, shares: Mapping[str, float]) -> bool:
    """Whether the accepted proposals of a kernel are too few for its time, in every observable."""
    accepted = _accepted(analysis, name)
    if accepted is None:
        return False
    if accepted == 0:
        return True
    independent = []
    for observable in analysis.costs:
        estimate = _component(analysis, observable)
        if estimate.is_bound:
            return False  # there are fewer independent samples than it seems
        slow = estimate.tau_int + SIGMAS * estimate.tau_int_error
        independent.append(estimate.samples / (2 * slow))
    return accepted < _share(analysis.run, name, shares) * min(independent)


def _share(run: RecordedRun, name: str, shares: Mapping[str, float]) -> float:
    """Return the share of a kernel in the time; exchanges need the other replicas, too."""
    if not run.exchanges(name):
        return shares[name]
    hmc = [other for other in shares if run.kernel_of(other) == "hmc"]
    all_replicas = sum(shares[other] for other in hmc) + shares.get("rest", 0.0)
    return shares[name] + all_replicas - _hmc_share(run, shares, hmc)


def _accepted(analysis: Analysis, name: str) -> float | None:
    """Return how many proposals changed the target in production; None if that is not recorded."""
    run = analysis.run
    reports = {part: run.reports[part] for part in run.parts_of(name)}
    # Of a ladder: what replica 0 got, through its only pair.
    target = [part for part, one in reports.items() if not one.replica and not one.pair]
    if len(target) != 1:
        return None
    accepted = run.production.kernels[target[0]].get("accepted")
    return None if accepted is None else float(accepted.sum())


def _wasted(analysis: Analysis, names: Sequence[str]) -> list[str]:
    run, shares, found = analysis.run, analysis.time_shares(), []
    for name in names:
        title, accepted = kernel_title(name, run), _accepted(analysis, name) or 0
        if run.exchanges(name):
            title += " with the other replicas"
        share = f"{_share(run, name, shares):.0%} of the time"
        if accepted == 0:
            found.append(f"{title} has changed nothing in {share}: it only costs")
        else:
            found.append(
                f"{title} takes {share} for {accepted:,.0f} accepted proposals, fewer than the "
                "independent samples that the rest of the kernels would have made in it: it only "
                "costs"
            )
    return found


def _next(analysis: Analysis) -> list[str]:
    """Return what to change, from what stands out."""
    run, shares = analysis.run, analysis.time_shares()
    found = []
    for name in shares:
        if name == "rest" or run.kernel_of(name) == "hmc" or not analysis.costs:
            continue
        if _only_costs(analysis, name, shares):
            found.append(f"leave out {kernel_title(name, run)}, or train its flow further")
    exchange = analysis.exchange
    if exchange is not None and exchange["bottleneck"] is not None:
        pair = exchange["bottleneck"]["pair"]
        where = f"{run.replica_name(pair)} and {run.replica_name(pair + 1)}"
        found.append(
            f"between {where}: add a replica or train a flow for the pair; it is the bottleneck of "
            "the ladder"
        )
    for name, entry in analysis.kernels.items():
        acceptance = entry["acceptance"]
        if run.kernel_of(name) != "hmc" or acceptance is None:
            continue
        if acceptance > EASY_HMC:
            found.append(
                f"HMC accepts {acceptance:.1%}: fewer steps per trajectory would cost less"
            )
        elif acceptance < HARD_HMC:
            found.append(f"HMC accepts {acceptance:.1%} only: take more steps per trajectory")
    fastest = min((_component(analysis, name).tau_int for name in analysis.costs), default=math.nan)
    if shares.get("rest", 0.0) > MUCH_REST and fastest > 1:
        found.append(
            f"measurements and files take {shares['rest']:.0%} of the time, and tau_int of the "
            f"fastest observable is {fastest:.2g} measurements: measure every "
            f"{run.measure_every * math.ceil(fastest)} updates"
        )
    return found


def _cost_text(demand: Demand) -> str:
    """Return a cost with its error in its own unit, ``"1.28(21) s"``, marked if it is a bound."""
    return _bounded(duration_text(demand.seconds, demand.seconds_error), demand.is_bound)


def _bounded(text: str, is_bound: bool) -> str:
    return f">= {text}" if is_bound else text
