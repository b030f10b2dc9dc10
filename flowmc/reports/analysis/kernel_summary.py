"""What a run directory says about its kernels: acceptance, times, exactness checks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from flowmc.chains.storage.recorded import RecordedRun
from flowmc.estimators import weights
from flowmc.estimators.autocorrelation import Estimate, analyse, format_value
from flowmc.kernels import KernelReport

__all__ = [
    "SIGMAS",
    "energy_warnings",
    "mean_of_complete_rows",
    "summarise_kernels",
    "symmetry_pull",
]

SIGMAS = 4.0  # deviation of an exact identity that is worth a warning
WIDEST_ENERGY_ERROR = 1.0  # standard deviation of dH up to which <exp(-dH)> can be tested
FEWEST_ACCEPTED = 50  # trajectories from which the sign of dH can be
FEWEST_EFFECTIVE = 100  # proposals from which their largest weights are known
LARGEST_SHARE = 0.05  # of the largest weights in their sum
SMALLEST_COVERED = 0.7  # share of the chain's states below which a flow has dropped something
COVERAGE_SIGMAS = 5.0  # ... and the deviation from 1 that it takes; of coverage above 1 too
LARGEST_EXCESS = 0.1  # of coverage above 1
MAXIMUM_LOG_WEIGHTS = 2_000_000  # the estimators of weights hold all of them several times


def summarise_kernels(run: RecordedRun, warnings: list[str]) -> dict[str, dict[str, Any]]:
    """Return acceptance, times and diagnostics by name; add to the warnings.

    Kernels of the cycle have the times, their parts (of one replica or pair) have diagnostics.
    """
    kernels: dict[str, dict[str, Any]] = {}
    times = run.kernel_times()
    step_sizes = run.step_sizes()
    recorded = run.production.kernels
    tops = dict.fromkeys([*times, *(run.reports[name].update for name in recorded)])
    for top in tops:
        parts = run.parts_of(top)
        entry: dict[str, Any] = {
            **_acceptance([recorded[part] for part in parts]),
            "seconds": times.get(top, {}).get("seconds"),
            "calls": times.get(top, {}).get("calls"),
        }
        if top in step_sizes:
            entry["step_size"] = step_sizes[top]
        entry["values"] = {}
        kernels[top] = entry
        for part in parts:
            if part != top:
                kernels[part] = {
                    **_acceptance([recorded[part]]),
                    "seconds": None,
                    "calls": None,
                }
            kernels[part]["values"] = _values(run.reports[part], recorded[part])
            diagnostics = _diagnostics(run, part, recorded[part], warnings)
            kernels[part].update(diagnostics)
        counts = [kernels[part]["non_finite"] for part in parts if "non_finite" in kernels[part]]
        # Of a kernel that does not count them nothing is known.
        if counts:
            entry["non_finite"] = sum(counts)
        if entry["acceptance"] is not None and entry["acceptance"] == 0:
            warnings.append(f"{top}: not one proposal was accepted")
    return kernels


def _values(report: KernelReport, recorded: Mapping[str, NDArray]) -> dict[str, dict[str, Any]]:
    """Return title, unit, reduction, value and error of what the kernel declares for reports."""
    found: dict[str, dict[str, Any]] = {}
    for declared in report.values:
        if not declared.in_report or declared.name not in recorded:
            continue
        value, error = _reduced(recorded[declared.name], declared.reduce)
        found[declared.name] = {
            "title": declared.title,
            "unit": declared.unit,
            "reduction": declared.reduce,
            "value": value,
            "error": error,
        }
    return found


def _reduced(values: NDArray, reduction: str) -> tuple[float | None, float | None]:
    """Reduce the rows of all chains as an update was; means have an error."""
    known = values[np.isfinite(values)]
    if not known.size:
        return None, None
    if reduction == "sum":
        return float(known.sum()), None
    if reduction == "max":
        return float(known.max()), None
    # Of values per proposal the mean over those of a step.
    finite = np.isfinite(values).reshape(*values.shape[:2], -1)
    sums = np.where(finite, values.reshape(finite.shape), 0).sum(2)
    counts = finite.sum(2)
    means = np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)
    estimate = mean_of_complete_rows(means)
    return (float(known.mean()), None) if estimate is None else (estimate.mean, estimate.error)


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
            warnings += energy_warnings(name, values, check)
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


def energy_warnings(name: str, values: Mapping[str, NDArray], exponential: Estimate) -> list[str]:
    """Test the identities of reversible, area-preserving trajectories in equilibrium.

    Args:
        name: of the kernel.
        values: ``energy_error``, ``tried`` and ``accepted``, ``(rows, chains)`` each.
        exponential: <exp(-dH)>.

    <exp(-dH)> = 1 while sd(dH) is 1 at most: beyond that the mean hangs on trajectories so rare
    that a sound series has seen none, and errors are too small.  Where rows hold single
    trajectories, <min(1, exp(-dH))> = 2 P(dH < 0) as well, whose sides are bounded: from 50
    accepted trajectories on.
    """
    if "energy_error" not in values or "tried" not in values:
        return []
    errors, tried = values["energy_error"], values["tried"]
    spread = float(np.nanstd(errors)) * math.sqrt(max(1.0, float(tried[tried > 0].mean())))
    if (
        exponential.error > 0
        and spread <= WIDEST_ENERGY_ERROR
        and abs(exponential.mean - 1) > SIGMAS * exponential.error
    ):
        pulls = abs(exponential.mean - 1) / exponential.error
        return [
            f"{name}: <exp(-dH)> = {format_value(exponential.mean, exponential.error)} is "
            f"{pulls:.1f} standard deviations from 1: the chain is not in equilibrium, or the "
            "force is wrong"
        ]
    if values.get("accepted", np.zeros(1)).sum() < FEWEST_ACCEPTED:
        return []
    pull = symmetry_pull(errors, tried)
    if pull is None or abs(pull) <= SIGMAS:
        return []
    return [
        f"{name}: energy errors dH of either sign violate <min(1, exp(-dH))> = 2 P(dH < 0) by "
        f"{abs(pull):.1f} standard deviations: the chain is not in equilibrium, or the force is "
        "wrong"
    ]


def symmetry_pull(log_ratio: NDArray, tried: NDArray) -> float | None:
    r"""Return the pull of :math:`\langle \min(1, e^{-W}) \rangle = 2 P(W < 0)`.

    A move that is its own inverse, as an exchange or a trajectory with its momenta reversed, has
    :math:`p(-W) = e^{-W} p(W)` in equilibrium.  Both sides are bounded, unlike
    :math:`\langle e^{-W} \rangle = 1`.

    Args:
        log_ratio: W, minus the logarithm of the Metropolis ratio, ``(rows, chains)``.
        tried: moves per row and chain: known only where rows hold single moves, as W is averaged.
    """
    if tried.max() > 1:
        return None
    finite = np.isfinite(log_ratio)
    known = np.where(finite, log_ratio, 0)
    difference = np.where(finite, np.exp(-np.maximum(known, 0)) - 2 * (known < 0), np.nan)
    check = mean_of_complete_rows(difference)
    return None if check is None or not check.error > 0 else check.mean / check.error


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
        result.update(_coverage(name, sample.numpy(), ess.value, values["log_weight"], warnings))
    return result


def _coverage(
    name: str, proposed: NDArray, ess: float, held: NDArray, warnings: list[str]
) -> dict[str, Any]:
    r"""Return what the log-weights of the chain's states say beside those of proposals.

    ``coverage`` is :math:`\langle 1/w \rangle_p \langle w \rangle_q`: the probability of q where
    p is, times that of p where q is, never above 1 for a density that is one.  It is low as well
    where the flow proposes what the target has not, or where 1/w has a heavy tail; whether
    the flow has *dropped* something shows in states of weights that proposals never have:
    ``covered_share`` is :math:`P_p(w < t)`, over the same of the weighted proposals, with t such
    that the largest weights are 5 % of their sum.

    Args:
        name: of the kernel.
        proposed: log-weights of proposals, draws of q.
        ess: of these.
        held: of the chain's states, draws of p, ``(rows, chains)``.
        warnings: sentences are appended.
    """
    complete = held[np.isfinite(held).all(axis=1)]
    if not complete.size:
        return {}
    shift = float(complete.min())
    inverse = analyse(np.exp(shift - complete))
    mean = weights.log_mean_exp(torch.from_numpy(proposed)).value
    coverage = math.exp(math.log(inverse.mean) - shift + mean)
    relative = math.hypot(
        inverse.error / inverse.mean, math.sqrt(max(0.0, 1 / ess - 1) / len(proposed))
    )
    result = {"coverage": coverage, "coverage_error": coverage * relative}
    descending = np.sort(proposed)[::-1]
    shares = np.exp(descending - descending[0])
    shares /= shares.sum()
    # From too few draws of a poor flow nothing is known about its largest weights.
    if len(proposed) * ess <= FEWEST_EFFECTIVE or shares[0] >= LARGEST_SHARE:
        return result
    place = int(np.searchsorted(np.cumsum(shares), LARGEST_SHARE))
    beyond = float(shares[: place + 1].sum())
    above = np.arange(len(shares)) <= place
    beyond_error = math.sqrt(float(np.sum((shares * (above - beyond)) ** 2)))
    found = analyse((complete >= descending[place]).astype(np.float64))
    covered = (1 - found.mean) / (1 - beyond)
    error = math.hypot(found.error, covered * beyond_error) / (1 - beyond)
    result |= {"covered_share": covered, "covered_share_error": error}
    if covered < SMALLEST_COVERED and 1 - covered > COVERAGE_SIGMAS * error:
        warnings.append(
            f"{name}: the flow covers only {covered:.0%} of what the chain visits, the rest has "
            "weights that no proposal has: it has dropped a mode, do not use it without another "
            "kernel"
        )
    if coverage - 1 > max(COVERAGE_SIGMAS * coverage * relative, LARGEST_EXCESS):
        warnings.append(
            f"{name}: <1/w>_p <w>_q = {format_value(coverage, coverage * relative)} where it "
            "cannot be above 1: the chain is not in equilibrium, or the density of the flow is "
            "not that of its proposals (a wrong log-determinant)"
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
