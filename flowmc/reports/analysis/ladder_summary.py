"""What a run directory says about its ladder: exchanges, and how walkers travel through it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmc.chains.storage.recorded import RecordedRun
from flowmc.estimators.autocorrelation import analyse
from flowmc.estimators.ladder import (
    MINIMUM_TRIPS,
    acceptance_from_work,
    diffusivity,
    expected_round_trip_rate,
    expected_up_fraction,
    optimal_round_trip_rate,
    positions,
    relaxation_rows,
    round_trip_rate,
    round_trips,
    transition_matrix,
    up_fraction,
)
from flowmc.reports.analysis.kernel_summary import SIGMAS, mean_of_complete_rows, symmetry_pull

__all__ = ["summarise_exchange"]

BOTTLENECK = 1.5  # times the mean share of the ladder, beyond which a pair is a bottleneck
MINIMAL_SHARE = 0.15  # ... and this share at least
FORGETTING = 1.5  # times what its rejections explain, beyond which they are not the reason


def summarise_exchange(
    run: RecordedRun, kernels: Mapping[str, Mapping[str, Any]], warnings: list[str]
) -> dict[str, Any]:
    """Return the entry ``exchange`` of the JSON document; add to the warnings.

    Args:
        run: with walkers.
        kernels: of :func:`flowmc.reports.analysis.kernel_summary.summarise_kernels`.
        warnings: sentences are appended.
    """
    walkers = run.production.walkers
    assert walkers is not None
    pairs = _pairs(run, kernels, warnings)
    trips = round_trips(walkers)
    total = int(trips.sum())
    fraction = up_fraction(walkers)
    rejection = _rejection(pairs, run.replicas)
    expected = None if not rejection else expected_up_fraction(rejection, _schedule(run)).tolist()
    rate = _rate(run, trips, rejection)
    mean_time = run.updates * trips.size / total if total else None
    exchange: dict[str, Any] = {
        "pairs": pairs,
        "round_trips": total,
        "round_trips_per_walker": float(trips.mean()),
        "updates_per_round_trip": mean_time,
        "updates_per_round_trip_error": None
        if mean_time is None
        else mean_time * rate["per_update_error"] / rate["per_update"],
        "round_trip_rate": rate,
        **_barrier(pairs, rejection),
        **_forgetting(run, walkers),
        "replica_diffusion": {
            "up_fraction": fraction.tolist(),
            "expected_up_fraction": expected,
            "diffusivity": diffusivity(fraction, rate["per_update"]).tolist(),
        },
        "bottleneck": _bottleneck(
            run, rejection, fraction, total >= MINIMUM_TRIPS and not rate["is_lower_bound"]
        ),
    }
    if total == 0:
        warnings.append(
            "exchange: no walker has made a round trip through the ladder, so the target has not "
            "profited from the other replicas yet"
        )
    return exchange


def _pairs(
    run: RecordedRun, kernels: Mapping[str, Mapping[str, Any]], warnings: list[str]
) -> list[dict[str, Any]]:
    pairs = []
    for name, values in run.production.kernels.items():
        pair = run.reports[name].pair
        if pair is None:
            continue
        work = mean_of_complete_rows(values["work"]) if "work" in values else None
        acceptance = kernels[name]["acceptance"]
        entry = {
            "pair": pair,
            "name": name,
            "couplings": list(run.couplings[pair : pair + 2]) or None,
            "acceptance": acceptance,
            "error": kernels[name]["acceptance_error"],
            "work_mean": None if work is None else work.mean,
            "work_mean_error": None if work is None else work.error,
            "erfc_estimate": None if work is None else acceptance_from_work(work.mean),
        }
        pull = None
        if "work" in values and "tried" in values:
            pull = symmetry_pull(values["work"], values["tried"])
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
    return sorted(pairs, key=lambda entry: (entry["pair"], entry["name"]))


def _rate(
    run: RecordedRun, trips: NDArray[np.int64], rejection: Sequence[float] | None
) -> dict[str, Any]:
    """Return the round trips of one ladder per update, measured and possible."""
    rate, error = round_trip_rate(trips, run.production.rows)
    per_update, per_update_error = rate / run.measure_every, error / run.measure_every
    seconds = run.seconds_per_update()
    result: dict[str, Any] = {
        "per_update": per_update,
        "per_update_error": per_update_error,
        # Of all ladders together: what the run brings in wall time.
        "per_second": None if seconds is None else per_update * run.chains / seconds,
        "expected_per_update": None,
        "optimal_per_update": None,
        "is_lower_bound": False,
    }
    sweeps = _sweeps_per_update(run)
    if rejection and sweeps:
        expected = expected_round_trip_rate(rejection, _schedule(run))
        result["expected_per_update"] = sweeps * expected
        result["optimal_per_update"] = sweeps * optimal_round_trip_rate(rejection)
        # A walker stays for at least two sweeps at an end.
        result["is_lower_bound"] = sweeps * run.measure_every > 2.5
    return result


def _sweeps_per_update(run: RecordedRun) -> float:
    """Return how often pairs of one parity were tried per update: each pair in every second."""
    tried = [
        float(values["tried"].sum())
        for name, values in run.production.kernels.items()
        if run.reports[name].pair is not None and "tried" in values
    ]
    return 2 * sum(tried) / (max(1, run.replicas - 1) * run.chains * run.updates)


def _schedule(run: RecordedRun) -> str:
    for update in run.config.get("update", []):
        if isinstance(update, Mapping) and update.get("kernel") == "exchange":
            return "random" if update.get("schedule") == "random" else "even_odd"
    return "even_odd"


def _rejection(pairs: Sequence[Mapping[str, Any]], replicas: int) -> list[float] | None:
    """Return the rejection rate of each neighbouring pair; None if any is not known."""
    rates: dict[int, list[float]] = {}
    for entry in pairs:
        if entry["acceptance"] is not None:
            rates.setdefault(entry["pair"], []).append(1 - entry["acceptance"])
    if set(rates) != set(range(replicas - 1)):
        return None
    return [float(np.mean(rates[pair])) for pair in range(replicas - 1)]


def _barrier(
    pairs: Sequence[Mapping[str, Any]], rejection: Sequence[float] | None
) -> dict[str, float | None]:
    """Return the sum of the rejection rates with its error."""
    if not rejection:
        return {"barrier": None, "barrier_error": None}
    errors = [entry["error"] for entry in pairs if entry["error"] is not None]
    return {"barrier": sum(rejection), "barrier_error": math.hypot(*errors)}


def _forgetting(run: RecordedRun, walkers: NDArray[np.int64]) -> dict[str, Any]:
    """Return how long walkers remember where they are, in updates, and their transitions."""
    if len(walkers) < 2:
        return {
            "transition_matrix": None,
            "relaxation_updates": None,
            "position_tau_int": None,
            "position_tau_int_error": None,
        }
    matrix = transition_matrix(walkers)
    # Walkers of one ladder are not independent, but their pooled autocorrelation is right.
    position = analyse(positions(walkers).reshape(len(walkers), -1))
    return {
        "transition_matrix": matrix.tolist(),
        "relaxation_updates": relaxation_rows(matrix) * run.measure_every,
        "position_tau_int": position.tau_int * run.measure_every,
        "position_tau_int_error": position.tau_int_error * run.measure_every,
    }


def _bottleneck(
    run: RecordedRun,
    rejection: Sequence[float] | None,
    fraction: NDArray[np.float64],
    is_followed: bool,
) -> dict[str, Any] | None:
    """Return the pair that slows walkers down most, and a sentence that says why.

    By the fall of the share of walkers going up, which sees everything that keeps walkers from
    passing, less what running walkers lose at the ends; where walkers cannot be followed (too few
    round trips, rows far apart) by the fall that the rejection rates imply.  None for ladders of
    two replicas and where no pair stands out.
    """
    replicas = run.replicas
    if replicas < 3 or not rejection:
        return None
    schedule = _schedule(run)
    ideal = -np.diff(expected_up_fraction(rejection, schedule))
    # A ladder that rejects nothing falls like this, in units of the fall of a resisting one.
    straight = -np.diff(expected_up_fraction(np.zeros(replicas - 1), schedule))
    running = expected_round_trip_rate(rejection, schedule) / expected_round_trip_rate(
        np.zeros(replicas - 1), schedule
    )
    is_followed = is_followed and bool(np.isfinite(fraction).all())
    fall = -np.diff(fraction) if is_followed else ideal
    lost = fall - (running * straight if schedule == "even_odd" else 0)
    pair = int(lost.argmax())
    balanced = float(lost.mean())
    if lost[pair] < max(BOTTLENECK * balanced, MINIMAL_SHARE):
        return None
    names = f"{run.replica_name(pair)} -> {run.replica_name(pair + 1)}"
    if not is_followed:
        reason = f"{rejection[pair]:.0%} of its exchanges are rejected, the most of all pairs"
    else:
        reason = (
            f"{lost[pair]:.0%} of the fall of the up-fraction lie there, {balanced:.0%} if all "
            "pairs shared it"
        )
        if fall[pair] > FORGETTING * ideal[pair]:
            reason += (
                f"; its rejections explain {ideal[pair]:.0%}, so the replicas beside it forget "
                "slowly: update them more between exchanges"
            )
    return {"pair": pair, "reason": f"{names}: {reason}"}
