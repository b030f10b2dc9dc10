"""The checks behind the warnings of a report, with their numbers, also where they passed.

A check has failed where a warning of its kind is in the report: the estimators decide, here it is
only put together what they looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flowmc.estimators.autocorrelation import (
    MINIMUM_HOPS,
    MINIMUM_RATIO,
    TAIL_SIGMAS,
    Estimate,
    beyond_window,
)
from flowmc.reports.words import value_text

if TYPE_CHECKING:
    from flowmc.reports.analysis.summary import Analysis

__all__ = ["DRIFT_CHANCE", "Check", "checks_of"]

DRIFT_CHANCE = 6e-7  # of a deviation of the first fifth of the measurements: 5 standard deviations


@dataclass(frozen=True)
class Check:
    """One check.

    Attributes:
        subject: the observable or kernel.
        what: is looked at.
        value: as text.
        limit: beyond which there is a warning, as text.
        passed: whether there is none.
    """

    subject: str
    what: str
    value: str
    limit: str
    passed: bool

    def as_dict(self) -> dict[str, Any]:
        """Return the entry of the JSON document."""
        return dict(vars(self))


def checks_of(analysis: Analysis) -> list[Check]:
    """Return all checks of a report, of vectors those of the component that is worst."""

    def check(subject: str, what: str, value: str, limit: str, *words: str) -> Check:
        failed = any(
            text.startswith(f"{subject}:") and any(word in text for word in words)
            for text in analysis.warnings
        )
        return Check(subject, what, value, limit, not failed)

    found = [
        check(name, *entry)
        for name, replicas in analysis.observables.items()
        for entry in _of_observable(analysis, name, replicas[0])
    ]
    found += [
        check(name, *entry)
        for name, kernel in analysis.kernels.items()
        for entry in _of_kernel(kernel)
    ]
    if analysis.exchange is not None:
        found += [
            check(
                pair["name"],
                "asymmetry of the works of either sign",
                f"{abs(pair['symmetry_pull']):.1f} σ",
                "4 σ",
                "violate the symmetry",
            )
            for pair in analysis.exchange["pairs"]
            if pair["symmetry_pull"] is not None
        ]
        trips = f"{analysis.exchange['round_trips']:,}"
        found.append(check("exchange", "round trips", trips, "at least 1", "no walker"))
    return found


def _of_observable(
    analysis: Analysis, name: str, components: list[Estimate]
) -> Iterator[tuple[str, ...]]:
    places = [k for k, one in enumerate(components) if math.isfinite(one.tau_int) and one.error > 0]
    known = [components[k] for k in places]
    if not known:
        return
    ratio = min(one.samples / (one.tau_int + 2 * one.tau_int_error) for one in known)
    yield (
        "measurements per tau_int and two of its errors",
        f"{ratio:,.0f}",
        f"at least {MINIMUM_RATIO}",
        "are fewer than",
        "are too few",
        "the scatter of",
    )
    rows = analysis.run.production.rows
    window = max(one.window for one in known)
    yield "window of the sum", f"{window:,} of {rows:,} rows", "half the rows", "has not decayed"
    rest = max(_pull(*beyond_window(one)) for one in known)
    yield "rho beyond the window", f"{rest:+.1f} σ", f"{TAIL_SIGMAS:g} σ", "beyond the window"
    if analysis.run.chains > 1:
        scatter = max(_scatter(analysis, name, k, components[k]) for k in places)
        yield (
            "scatter of the chain means / expected",
            f"{scatter:.2f}",
            "1, by chance more",
            "disagree",
        )
    if known[0].hops is not None:
        hops = f"{known[0].hops:,}"
        yield "changes of the charge", hops, f"at least {MINIMUM_HOPS}", "is frozen"
    drift = analysis.drifts.get(name)
    if drift is not None:
        value = f"{drift[0]:.1f} σ, chance {drift[1]:.1g}"
        yield "first fifth against second half", value, f"{DRIFT_CHANCE:g}", "the first fifth"


def _of_kernel(kernel: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    if kernel["acceptance"] is not None:
        acceptance = value_text(kernel["acceptance"], kernel["acceptance_error"])
        yield "acceptance", acceptance, "above 0", "not one proposal", "are accepted"
    if "non_finite" in kernel:
        yield "proposals that were not finite", f"{kernel['non_finite']:,}", "0", "not finite"
    if "exp_minus_energy_error" in kernel:
        entry = kernel["exp_minus_energy_error"]
        value = value_text(entry["mean"], entry["error"])
        words = "<exp(-dH)> =", "energy errors dH of either sign"
        yield "⟨exp(−ΔH)⟩, or the symmetry of wide energy errors", value, "4 σ", *words
    if kernel.get("reversibility_violation") is not None:
        violation = kernel["reversibility_violation"]
        yield "way back of a trajectory", f"{violation:.0e}", "rounding", "came back"
    if "ess" in kernel:
        heavy = f"{kernel['max_weight_share']:.1%}, k = {kernel['pareto_k']:.2f}"
        limit = "5%, 0.7"
        yield "largest weight and Pareto k", heavy, limit, "heavy tail", "too few"
    if "covered_share" in kernel:
        share = value_text(kernel["covered_share"], kernel["covered_share_error"])
        yield "share of the chain that the flow covers", share, "1 within errors", "covers only"
    if "coverage" in kernel:
        coverage = value_text(kernel["coverage"], kernel["coverage_error"])
        yield "⟨1/w⟩ of the chain times ⟨w⟩ of the flow", coverage, "at most 1", "<1/w>_p"


def _pull(value: float, error: float) -> float:
    return value / error if error > 0 else 0.0


def _scatter(analysis: Analysis, name: str, component: int, estimate: Estimate) -> float:
    """Return the standard deviation of the chain means over what the error of the mean implies."""
    values = analysis.series[name][1][:, :, 0]
    values = values.reshape(*values.shape[:2], -1)[:, :, component]
    means = values.mean(axis=0)
    return float(means.std(ddof=1)) / (estimate.error * math.sqrt(len(means)))
