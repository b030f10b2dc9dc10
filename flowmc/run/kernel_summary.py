"""What a run directory says about its kernels: acceptance, times, exactness checks."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowmc.estimators import weights
from flowmc.estimators.autocorrelation import Estimate, analyse, format_value
from flowmc.run.recorded import RecordedRun

__all__ = ["SIGMAS", "mean_of_complete_rows", "summarise_kernels"]

SIGMAS = 4.0  # deviation of an exact identity that is worth a warning
MAXIMUM_LOG_WEIGHTS = 2_000_000  # the estimators of weights hold all of them several times
_PART = re.compile(r"^(?P<name>.+?)\[(?P<index>\d+)\](?P<suffix>_\d+)?$")


def summarise_kernels(run: RecordedRun, warnings: list[str]) -> dict[str, dict[str, Any]]:
    """Return acceptance, times and diagnostics by name; add to the warnings.

    Kernels of the cycle have the times, their parts (of one replica or pair) have diagnostics.
    """
    kernels: dict[str, dict[str, Any]] = {}
    times = run.kernel_times()
    step_sizes = run.step_sizes()
    recorded = run.production.kernels
    groups: dict[str, list[str]] = {name: [] for name in times}
    for name in recorded:
        groups.setdefault(_top_name(name, times), []).append(name)
    for top, parts in groups.items():
        parts.sort(key=_index)
        entry: dict[str, Any] = {
            **_acceptance([recorded[part] for part in parts]),
            "seconds": times.get(top, {}).get("seconds"),
            "calls": times.get(top, {}).get("calls"),
        }
        if top in step_sizes:
            entry["step_size"] = step_sizes[top]
        kernels[top] = entry
        for part in parts:
            if part != top:
                kernels[part] = {
                    **_acceptance([recorded[part]]),
                    "seconds": None,
                    "calls": None,
                }
            diagnostics = _diagnostics(run, part, recorded[part], warnings)
            kernels[part].update(diagnostics)
        entry["non_finite"] = sum(kernels[part].get("non_finite", 0) for part in parts)
        if entry["acceptance"] is not None and entry["acceptance"] == 0:
            warnings.append(f"{top}: not one proposal was accepted")
    return kernels


def _top_name(part: str, tops: Mapping[str, Any]) -> str:
    """Return the kernel of the cycle that a recorded part belongs to."""
    match = _PART.match(part)
    if part in tops or match is None:
        return part
    name = match["name"]
    stem = re.sub(r"^pair(?=$|_)", "exchange", name) + (match["suffix"] or "")
    return stem


def _index(part: str) -> int:
    """Return the replica or pair of a part; -1 for a kernel without parts."""
    match = _PART.match(part)
    return -1 if match is None else int(match["index"])


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
        check = mean_of_complete_rows(values["exp_minus_energy_error"])
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
        check = mean_of_complete_rows(values["energy_error"])
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
    if "divergence" in values:
        check = mean_of_complete_rows(values["divergence"])
        if check is not None:
            result["divergence"] = {"mean": check.mean, "error": check.error}
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


def mean_of_complete_rows(values: NDArray) -> Estimate | None:
    """Analyse a diagnostic; rows in which the kernel was not applied hold NaN."""
    complete = values[np.isfinite(values).all(axis=1)]
    return analyse(complete) if len(complete) else None
