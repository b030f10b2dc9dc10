"""What a run directory says: estimates, kernel diagnostics, exchange, cost, and what to doubt."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from flowmc.chains.storage.recorded import RecordedRun
from flowmc.estimators.autocorrelation import (
    MINIMUM_HOPS,
    Estimate,
    analyse,
    analyse_topological_charge,
)
from flowmc.estimators.cost import Cost, average, cost_per_independent_sample
from flowmc.reports.analysis.checks import DRIFT_CHANCE, checks_of
from flowmc.reports.analysis.flow_summary import FlowSummary, is_flow, summarise_flow
from flowmc.reports.analysis.kernel_summary import summarise_kernels
from flowmc.reports.analysis.ladder_summary import summarise_exchange
from flowmc.reports.analysis.payoff import payoff_of

__all__ = ["Analysis", "analyse_run"]

FEWEST_FREEDOM = 4  # windows in the second half, below which its error is a guess


@dataclass
class Analysis:
    """Everything ``flowmc report`` knows about a run.

    Attributes:
        run: the directory it was read from.
        observables: estimates by name; ``[replica][component]``, one component for scalars.
        series: by name, what the estimates are of, ``(rows, chains, replicas, ...)``: of the
            thermalisation (None if it was not measured) and of production.
        is_vector: by name, whether the observable has components.
        kernels: acceptance, times and diagnostics by name.
        flows: energies and scales by name of the observable ``gradient_flow``.
        exchange: pairs and round trips; None without ladder.
        costs: per observable of the target, one per component; empty without timings.
        drifts: by name, standard deviations between the beginning and the end of production, and
            their chance.
        warnings: sentences, the gravest first.
    """

    run: RecordedRun
    observables: dict[str, list[list[Estimate]]] = field(default_factory=dict)
    series: dict[str, tuple[NDArray | None, NDArray]] = field(default_factory=dict)
    is_vector: dict[str, bool] = field(default_factory=dict)
    kernels: dict[str, dict[str, Any]] = field(default_factory=dict)
    flows: dict[str, FlowSummary] = field(default_factory=dict)
    exchange: dict[str, Any] | None = None
    costs: dict[str, list[Cost]] = field(default_factory=dict)
    drifts: dict[str, tuple[float, float]] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)

    @property
    def seconds_per_measurement(self) -> float | None:
        """Wall seconds per measurement of one chain."""
        per_update = self.run.seconds_per_update()
        if per_update is None:
            return None
        return per_update * self.run.measure_every / self.run.chains

    def as_dict(self) -> dict[str, Any]:
        """Return the document that ``flowmc report --json`` prints; see docs/reports.md."""
        run = self.run
        document: dict[str, Any] = {
            "path": str(run.path),
            "updates": run.updates,
            "updates_requested": run.attributes.get("updates"),
            "measurements": run.production.rows,
            "measure_every": run.measure_every,
            "chains": run.chains,
            "kernels": self.kernels,
            "observables": {
                name: self._entry(name, replicas[0]) for name, replicas in self.observables.items()
            },
            "warnings": self.warnings,
            "cost": self._cost(),
            "pays": payoff_of(self).as_dict(),
            "checks": [check.as_dict() for check in checks_of(self)],
        }
        if run.discarded:
            document["updates_left_out"] = run.discarded
        if self.flows:
            document["gradient_flow"] = {name: flow.as_dict() for name, flow in self.flows.items()}
        if run.replicas > 1:
            document["replicas"] = {
                "count": run.replicas,
                "couplings": list(run.couplings) or None,
                "observables": {
                    name: [self._entry(name, replica) for replica in replicas]
                    for name, replicas in self.observables.items()
                },
            }
            document["exchange"] = self.exchange
        return document

    def _entry(self, name: str, components: list[Estimate]) -> dict[str, Any]:
        def of(attribute: str) -> Any:
            values = [getattr(estimate, attribute) for estimate in components]
            return values if self.is_vector[name] else values[0]

        entry = {key: of(key) for key in ("mean", "error", "tau_int", "tau_int_error")}
        entry["samples"] = components[0].samples
        entry["window"] = of("window")
        entry["is_lower_bound"] = of("is_bound")
        if components[0].hops is not None:
            entry["hops"] = components[0].hops
        entry["warnings"] = list(_collect(components))
        return entry

    def _cost(self) -> dict[str, Any]:
        training = self.run.training_seconds()
        document: dict[str, Any] = {
            "seconds": self.run.seconds,
            "seconds_per_update": self.run.seconds_per_update(),
            "seconds_per_measurement": self.seconds_per_measurement,
            "training_seconds": training,
            "shares": self.time_shares(),
            "observables": {},
        }
        for name, costs in self.costs.items():
            cost = average(costs)
            document["observables"][name] = {
                "seconds_per_independent_sample": cost.seconds,
                "error": cost.error,
                "with_training": cost.seconds_with_training,
                "independent_samples": cost.independent_samples,
                "is_lower_bound": cost.is_bound,
            }
        return document

    def time_shares(self) -> dict[str, float]:
        """Return the share of each kernel of the cycle in the wall time, and the "rest"."""
        seconds = {
            name: float(times.get("seconds") or 0.0)
            for name, times in self.run.kernel_times().items()
        }
        total = max(self.run.seconds or 0.0, sum(seconds.values()))
        if total <= 0:
            return {}
        shares = {name: value / total for name, value in seconds.items()}
        return {**shares, "rest": max(0.0, 1 - sum(shares.values()))}


def analyse_run(run: RecordedRun) -> Analysis:
    """Analyse what a run has recorded in production so far."""
    analysis = Analysis(run)
    exactness: list[str] = []
    analysis.kernels = summarise_kernels(run, exactness)
    if run.production.walkers is not None:
        analysis.exchange = summarise_exchange(run, analysis.kernels, exactness)
    doubts = _observables(analysis)
    seconds = analysis.seconds_per_measurement
    if seconds is not None:
        training = run.training_seconds()
        analysis.costs = {
            name: [
                cost_per_independent_sample(estimate, seconds, training)
                for estimate in replicas[0]
                if math.isfinite(estimate.tau_int)
            ]
            for name, replicas in analysis.observables.items()
        }
        analysis.costs = {name: costs for name, costs in analysis.costs.items() if costs}
    progress = [
        f"the training time of {name}, from which a flow of this run was trained further, is not "
        "known: costs with training are lower bounds"
        for name in run.untold_trainings
    ]
    if not run.production.is_complete:
        total = run.attributes.get("updates", "?")
        progress.append(f"the run is not complete: {run.updates} of {total} updates are done")
    analysis.warnings = exactness + doubts + progress
    return analysis


def _observables(analysis: Analysis) -> list[str]:
    run = analysis.run
    warnings: list[str] = []
    for name, values in run.production.observables.items():
        if is_flow(name, values) and np.isfinite(values).all(axis=(1, 2, 3, 4)).any():
            analysis.flows[name] = summarise_flow(run, name, warnings)
    for name, (_, values) in _series(analysis).items():
        rows, chains, replicas = values.shape[:3]
        components = values.reshape(rows, chains, replicas, -1)
        analysis.is_vector[name] = values.ndim > 3
        if not np.isfinite(components).all(axis=1).any(axis=0).all():
            warnings.append(f"{name}: no measurement is finite, so it is left out")
            continue
        estimate = _estimator(run, name)
        analysis.observables[name] = [
            [estimate(components[:, :, r, k]) for k in range(components.shape[3])]
            for r in range(replicas)
        ]
        warnings += [f"{name}: {text}" for text in _collect(analysis.observables[name][0])]
        warnings += _drifts(analysis, name, components[:, :, 0], estimate)
        for r in range(1, replicas):
            bound = [estimate for estimate in analysis.observables[name][r] if estimate.is_bound]
            if bound:
                warnings.append(f"{name} at replica {r}: tau_int is only a lower bound")
    return warnings


def _series(analysis: Analysis) -> dict[str, tuple[NDArray | None, NDArray]]:
    """Collect what is analysed as observables: those recorded, and charges along the flow."""
    run = analysis.run

    phases = run.thermalization, run.production
    for name in run.production.observables:
        if name not in analysis.flows:
            before, values = (phase.observables.get(name) for phase in phases)
            assert values is not None
            analysis.series[name] = before, values
    for name, flow in analysis.flows.items():
        if flow.charge is not None and flow.charge not in analysis.series:
            before, values = (phase.observables.get(name) for phase in phases)
            assert values is not None
            before = None if before is None else before[..., -1, 2]
            analysis.series[flow.charge] = before, values[..., -1, 2]
    return analysis.series


def _estimator(run: RecordedRun, name: str) -> Callable[[NDArray], Estimate]:
    if not name.startswith("topological_charge"):
        return analyse
    theory, measured = run.config.get("theory", {}), run.config.get("measure", {})
    # A user's own charge has the same label and is judged by its values alone.
    is_ours = any(
        (entry.get("name") if isinstance(entry, Mapping) else entry) == "topological_charge"
        for entry in measured.get("observables", [])
    )
    is_gauge_4d = len(theory.get("lattice") or []) == 4 and str(theory.get("group")).startswith("S")
    is_flowed = bool(run.production.parameters.get(name, {}).get("flow_time"))
    if is_ours and is_gauge_4d and name in run.production.observables and not is_flowed:
        return _analyse_rough_charge
    return analyse_topological_charge


def _analyse_rough_charge(series: NDArray) -> Estimate:
    """Analyse a clover charge without flow: a number that fluctuates, not one that hops."""
    return analyse(series).warned(
        "without gradient flow the charge is not near integers, and its tau_int says nothing about "
        "freezing: measure it with a flow_time",
        is_bound=False,
    )


def _collect(components: Sequence[Estimate]) -> list[str]:
    """Return the warnings of all components, each kind once."""
    if len(components) == 1:
        return list(components[0].warnings)
    # Sentences of one kind differ in their numbers only.
    kinds: dict[str, list[str]] = {}
    for estimate in components:
        for text in estimate.warnings:
            kinds.setdefault(re.sub(r"[\d.]+", "#", text), []).append(text)
    return [
        f"in {len(texts)} of {len(components)} components, {texts[0]}" for texts in kinds.values()
    ]


def _drifts(
    analysis: Analysis, name: str, values: NDArray, estimator: Callable[[NDArray], Estimate]
) -> list[str]:
    """Compare the first fifth of the rows with the second half: was thermalisation too short?

    Fluctuations and tau_int are those of the second half: a drift would hide in its own variance.
    Of a short half the error is not well known: the deviation follows Student's distribution of
    about N / (2 W + 1) degrees of freedom, W being the window.
    """
    rows, _, components = values.shape
    if rows < 50:
        return []
    worst, least = 0.0, 1.0
    for k in range(components):
        late = estimator(values[rows // 2 :, :, k])
        early = values[: rows // 5, :, k]
        freedom = late.samples / (2 * late.window + 1)
        # A charge that hardly moved has no error at all.
        is_frozen = late.hops is not None and late.hops < MINIMUM_HOPS
        unknown = is_frozen or freedom < FEWEST_FREEDOM or not late.error > 0
        if unknown or not np.isfinite(early).all():
            continue
        early_error = late.error * math.sqrt(late.samples / early.size)
        pull = abs(float(early.mean()) - late.mean) / math.hypot(late.error, early_error)
        chance = 2 * float(stdtr(freedom, -pull))
        if chance < least:
            worst, least = pull, chance
        analysis.drifts[name] = worst, least
    if least > DRIFT_CHANCE:
        return []
    return [
        f"{name}: the first fifth of the production is {worst:.1f} standard deviations away from "
        "its second half: the thermalisation was too short"
    ]
