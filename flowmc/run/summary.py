"""What a run directory says: estimates, kernel diagnostics, exchange, cost, and what to doubt."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowmc.estimators import weights
from flowmc.estimators.autocorrelation import (
    Estimate,
    analyse,
    analyse_topological_charge,
    format_value,
)
from flowmc.estimators.cost import Cost, cost_per_independent_sample
from flowmc.estimators.ladder import acceptance_from_work, round_trips, up_fraction
from flowmc.run.recorded import RecordedRun

__all__ = ["Analysis", "analyse_run"]

SIGMAS = 4.0  # deviation of an exact identity that is worth a warning
DRIFT_SIGMAS = 5.0  # ... and of the first fifth of the measurements from the rest
MAXIMUM_LOG_WEIGHTS = 2_000_000  # the estimators of weights hold all of them several times
_PART = re.compile(r"^(?P<name>.+?)\[\d+\](?P<suffix>_\d+)?$")


@dataclass
class Analysis:
    """Everything ``flowmc report`` knows about a run.

    Attributes:
        run: the directory it was read from.
        observables: estimates by name; ``[replica][component]``, one component for scalars.
        is_vector: by name, whether the observable has components.
        kernels: acceptance, times and diagnostics by name.
        exchange: pairs and round trips; None without ladder.
        costs: per observable of the target, one per component; empty without timings.
        warnings: sentences, the gravest first.
    """

    run: RecordedRun
    observables: dict[str, list[list[Estimate]]] = field(default_factory=dict)
    is_vector: dict[str, bool] = field(default_factory=dict)
    kernels: dict[str, dict[str, Any]] = field(default_factory=dict)
    exchange: dict[str, Any] | None = None
    costs: dict[str, list[Cost]] = field(default_factory=dict)
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
        }
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
            worst = max(costs, key=lambda cost: cost.seconds)
            document["observables"][name] = {
                "seconds_per_independent_sample": worst.seconds,
                "error": worst.error,
                "with_training": worst.seconds_with_training,
                "independent_samples": worst.independent_samples,
                "is_lower_bound": worst.is_bound,
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
    _kernels(analysis, exactness)
    if run.production.walkers is not None:
        _exchange(analysis, exactness)
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
    progress = []
    if not run.production.is_complete:
        total = run.attributes.get("updates", "?")
        progress.append(f"the run is not complete: {run.updates} of {total} updates are done")
    analysis.warnings = exactness + doubts + progress
    return analysis


def _observables(analysis: Analysis) -> list[str]:
    run, warnings = analysis.run, []
    for name, values in run.production.observables.items():
        rows, chains, replicas = values.shape[:3]
        components = values.reshape(rows, chains, replicas, -1)
        analysis.is_vector[name] = values.ndim > 3
        if not np.isfinite(components).all(axis=1).any(axis=0).all():
            warnings.append(f"{name}: no measurement is finite, so it is left out")
            continue
        estimate = analyse_topological_charge if _is_charge(name) else analyse
        analysis.observables[name] = [
            [estimate(components[:, :, r, k]) for k in range(components.shape[3])]
            for r in range(replicas)
        ]
        warnings += [f"{name}: {text}" for text in _collect(analysis.observables[name][0])]
        warnings += _drifts(name, components[:, :, 0], estimate)
        for r in range(1, replicas):
            bound = [estimate for estimate in analysis.observables[name][r] if estimate.is_bound]
            if bound:
                warnings.append(f"{name} at replica {r}: tau_int is only a lower bound")
    return warnings


def _is_charge(name: str) -> bool:
    """Return whether an observable is the topological charge, ours or a user's own."""
    return name.startswith("topological_charge")


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


def _drifts(name: str, values: NDArray, estimator: Callable[[NDArray], Estimate]) -> list[str]:
    """Compare the first fifth of the rows with the second half: was thermalisation too short?

    Fluctuations and tau_int are those of the second half: a drift would hide in its own variance.
    """
    rows, _, components = values.shape
    if rows < 50:
        return []
    worst = 0.0
    for k in range(components):
        late = estimator(values[rows // 2 :, :, k])
        early = values[: rows // 5, :, k]
        if late.is_bound or not late.error > 0 or not np.isfinite(early).all():
            continue
        early_error = late.error * math.sqrt(late.samples / early.size)
        pull = (float(early.mean()) - late.mean) / math.hypot(late.error, early_error)
        worst = max(worst, abs(pull))
    if worst < DRIFT_SIGMAS:
        return []
    return [
        f"{name}: the first fifth of the production is {worst:.1f} standard deviations away from "
        "its second half: the thermalisation was too short"
    ]


def _kernels(analysis: Analysis, warnings: list[str]) -> None:
    run = analysis.run
    times = run.kernel_times()
    step_sizes = run.step_sizes()
    recorded = run.production.kernels
    groups: dict[str, list[str]] = {name: [] for name in times}
    for name in recorded:
        groups.setdefault(_top_name(name, times), []).append(name)
    for top, parts in groups.items():
        entry: dict[str, Any] = {
            **_acceptance([recorded[part] for part in parts]),
            "seconds": times.get(top, {}).get("seconds"),
            "calls": times.get(top, {}).get("calls"),
        }
        if top in step_sizes:
            entry["step_size"] = step_sizes[top]
        analysis.kernels[top] = entry
        for part in parts:
            if part != top:
                analysis.kernels[part] = {
                    **_acceptance([recorded[part]]),
                    "seconds": None,
                    "calls": None,
                }
            diagnostics = _diagnostics(run, part, recorded[part], warnings)
            analysis.kernels[part].update(diagnostics)
        entry["non_finite"] = sum(analysis.kernels[part].get("non_finite", 0) for part in parts)
        if entry["acceptance"] is not None and entry["acceptance"] == 0:
            warnings.append(f"{top}: not one proposal was accepted")


def _top_name(part: str, tops: Mapping[str, Any]) -> str:
    """Return the kernel of the cycle that a recorded part belongs to."""
    match = _PART.match(part)
    if part in tops or match is None:
        return part
    name = match["name"]
    stem = re.sub(r"^pair(?=$|_)", "exchange", name) + (match["suffix"] or "")
    return stem


def _acceptance(parts: Sequence[Mapping[str, NDArray]]) -> dict[str, Any]:
    """Return accepted over tried proposals, with the error of the ratio of correlated counts."""
    counted = [part for part in parts if "accepted" in part and "tried" in part]
    accepted = sum((part["accepted"] for part in counted), start=np.zeros((1, 1)))
    tried = sum((part["tried"] for part in counted), start=np.zeros((1, 1)))
    if not counted or tried.sum() == 0:
        return {"acceptance": None, "acceptance_error": None}
    ratio = float(accepted.sum() / tried.sum())
    residual = analyse(accepted - ratio * tried)
    return {"acceptance": ratio, "acceptance_error": residual.error / float(tried.mean())}


def _diagnostics(
    run: RecordedRun, name: str, values: Mapping[str, NDArray], warnings: list[str]
) -> dict[str, Any]:
    result: dict[str, Any] = {}
    if "non_finite" in values:
        count = int(np.nansum(values["non_finite"]))
        result["non_finite"] = count
        if count:
            warnings.append(
                f"{name}: {count} proposals were not finite and were rejected: the step size is "
                "too large or the flow diverges"
            )
    if "exp_minus_energy_error" in values:
        check = _mean_of_complete_rows(values["exp_minus_energy_error"])
        if check is not None:
            result["exp_minus_energy_error"] = {"mean": check.mean, "error": check.error}
            if check.error > 0 and abs(check.mean - 1) > SIGMAS * check.error:
                pulls = abs(check.mean - 1) / check.error
                warnings.append(
                    f"{name}: <exp(-dH)> = {format_value(check.mean, check.error)} is "
                    f"{pulls:.1f} standard deviations from 1: the chain is not in equilibrium, "
                    "the energy errors are too wide to average, or the force is wrong"
                )
    if "energy_error" in values:
        check = _mean_of_complete_rows(values["energy_error"])
        if check is not None:
            result["energy_error"] = {"mean": check.mean, "error": check.error}
    if "reversibility_violation" in values:
        violation = values["reversibility_violation"]
        checked = violation[np.isfinite(violation)]
        largest = float(checked.max()) if checked.size else None
        result["reversibility_violation"] = largest
        tolerance = 1e-2 if run.config.get("chains", {}).get("precision") == 32 else 1e-5
        if largest is not None and largest > tolerance:
            warnings.append(
                f"{name}: a trajectory came back {largest:.1e} away from its start: it is not "
                "reversible to rounding, use a smaller step size or double precision"
            )
    if "log_weights" in values:
        result.update(_weights(name, values, warnings))
    return result


def _weights(name: str, values: Mapping[str, NDArray], warnings: list[str]) -> dict[str, Any]:
    """Return what the recorded log-weights of an independence kernel say about its flow."""
    proposals = values["log_weights"]
    flat = proposals[~np.isnan(proposals) & (proposals < np.inf)]
    if not flat.size or not np.isfinite(flat.max()):
        return {}
    # Later rows rather than a stride: the latest parameters of an adapting kernel.
    sample = torch.from_numpy(np.ascontiguousarray(flat[-MAXIMUM_LOG_WEIGHTS:]))
    ess = weights.effective_sample_size(sample)
    share = weights.max_weight_share(sample)
    k = weights.pareto_k(sample)
    result: dict[str, Any] = {
        "ess": ess.value,
        "ess_error": ess.error,
        "log_weights": len(sample),
        "max_weight_share": share,
        "pareto_k": k,
        "longest_rejection_run": _longest_rejection_run(values),
    }
    if len(sample) * ess.value < 10:
        warnings.append(
            f"{name}: {len(sample)} recorded weights are too few for an ESS of {ess.value:.2g}, "
            "which is biased up: the flow may be worse than it looks"
        )
    elif share > 0.05 or k > 0.7:
        warnings.append(
            f"{name}: the weights have a heavy tail (largest share {share:.1%}, Pareto k "
            f"{k:.2f}): the chain will stick, the ESS cannot be believed"
        )
    if "log_weight" in values:
        held = values["log_weight"][np.isfinite(values["log_weight"])]
        if held.size:
            # mean_p[1 / w] mean_q[w] is 1 where q covers p: states of the chain are draws of p.
            inverse = weights.log_mean_exp(torch.from_numpy(-held)).value
            coverage = math.exp(min(0.0, inverse + weights.log_mean_exp(sample).value))
            result["coverage"] = coverage
            # From too few draws of a poor flow mean_q[w] is low, whatever the flow covers.
            if coverage < 0.7 and len(sample) * ess.value > 100 and share < 0.05:
                warnings.append(
                    f"{name}: the flow covers only about {coverage:.0%} of what the chain visits: "
                    "it has dropped a mode, do not use it without another kernel"
                )
    return result


def _longest_rejection_run(values: Mapping[str, NDArray]) -> int | None:
    """Return the most consecutive proposals one chain rejected, at least, counted in whole rows."""
    if "accepted" not in values or "tried" not in values:
        return None
    tried, moved = values["tried"], values["accepted"] > 0
    total = np.cumsum(np.where(moved, 0, tried), axis=0)
    since = np.maximum.accumulate(np.where(moved, total, 0), axis=0)
    return int((total - since).max())


def _exchange(analysis: Analysis, warnings: list[str]) -> None:
    run = analysis.run
    walkers = run.production.walkers
    assert walkers is not None
    couplings = run.couplings
    pairs = []
    for name, values in run.production.kernels.items():
        match = re.match(r"^pair\[(\d+)\]", name)
        if match is None:
            continue
        pair = int(match[1])
        work = _mean_of_complete_rows(values["work"]) if "work" in values else None
        acceptance = analysis.kernels[name]["acceptance"]
        entry = {
            "pair": pair,
            "name": name,
            "couplings": list(couplings[pair : pair + 2]) or None,
            "acceptance": acceptance,
            "error": analysis.kernels[name]["acceptance_error"],
            "work_mean": None if work is None else work.mean,
            "work_mean_error": None if work is None else work.error,
            "erfc_estimate": None if work is None else acceptance_from_work(work.mean),
        }
        pull = _symmetry_pull(values)
        entry["symmetry_pull"] = pull
        if pull is not None and abs(pull) > SIGMAS:
            warnings.append(
                f"{name}: works of either sign violate the symmetry of an exact exchange by "
                f"{abs(pull):.1f} standard deviations: the replicas are not in equilibrium, or "
                "the Jacobian of the flow is wrong"
            )
        if acceptance is not None and acceptance < 0.01:
            warnings.append(
                f"{name}: only {acceptance:.2%} of the exchanges are accepted: this pair is a "
                "bottleneck, add a replica or train a flow for it"
            )
        pairs.append(entry)
    trips = round_trips(walkers)
    total = int(trips.sum())
    analysis.exchange = {
        "pairs": sorted(pairs, key=lambda entry: (entry["pair"], entry["name"])),
        "round_trips": total,
        "round_trips_per_walker": float(trips.mean()),
        "updates_per_round_trip": run.updates * trips.size / total if total else None,
        "replica_diffusion": {"up_fraction": up_fraction(walkers).tolist()},
    }
    if total == 0:
        warnings.append(
            "exchange: no walker has made a round trip through the ladder, so the target has not "
            "profited from the other replicas yet"
        )


def _symmetry_pull(values: Mapping[str, NDArray]) -> float | None:
    r"""Return the pull of :math:`\langle \min(1, e^{-W}) \rangle = 2 P(W < 0)`.

    The exchange is an involution, so that in equilibrium :math:`p(-W) = e^{-W} p(W)`.  Both sides
    are bounded, unlike :math:`\langle e^{-W} \rangle = 1`.  Known only where each row records
    a single exchange, as works are averaged over the updates of a row.
    """
    if "work" not in values or values.get("tried", np.full(1, 2)).max() > 1:
        return None
    work = values["work"]
    finite = np.isfinite(work)
    difference = np.where(
        finite, np.exp(-np.maximum(np.where(finite, work, 0), 0)) - 2 * (work < 0), np.nan
    )
    check = _mean_of_complete_rows(difference)
    return None if check is None or not check.error > 0 else check.mean / check.error


def _mean_of_complete_rows(values: NDArray) -> Estimate | None:
    """Analyse a diagnostic; rows in which the kernel was not applied hold NaN."""
    complete = values[np.isfinite(values).all(axis=1)]
    return analyse(complete) if len(complete) else None
