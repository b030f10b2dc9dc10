"""The part of a report in plain text that is about the ladder."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flowmc.estimators.autocorrelation import Estimate, format_value
from flowmc.reports.analysis.summary import Analysis
from flowmc.reports.as_text import acceptance_text, bounded, number_text, table, value_text

__all__ = ["ladder_text", "slowest_observable", "transport_sentences"]


def ladder_text(analysis: Analysis) -> list[str]:
    """Return the lines about replicas, exchanges and walkers of a run with a ladder."""
    record, exchange = analysis.run, analysis.exchange
    assert exchange is not None
    lines = _replicas(analysis)
    diffusion = exchange["replica_diffusion"]
    rows = [
        [
            entry["name"],
            f"{record.replica_name(entry['pair'])} -> {record.replica_name(entry['pair'] + 1)}",
            acceptance_text({**entry, "acceptance_error": entry["error"]}),
            number_text(entry["erfc_estimate"], "{:.3f}"),
            value_text(entry["work_mean"], entry["work_mean_error"]),
            _share(diffusion["up_fraction"], entry["pair"]),
            _finite(diffusion["diffusivity"][entry["pair"]], "{:.3g}"),
        ]
        for entry in exchange["pairs"]
    ]
    header = [
        "exchange",
        "couplings",
        "acceptance",
        "Gaussian",
        "<work>",
        "going up",
        "diffusivity",
    ]
    lines += ["", *table(header, rows)]
    return [*lines, *transport_sentences(analysis)]


def transport_sentences(analysis: Analysis) -> list[str]:
    """Return how walkers travel through the ladder, in sentences without markup."""
    run, exchange = analysis.run, analysis.exchange
    assert exchange is not None
    rate = exchange["round_trip_rate"]
    trips = exchange["round_trips"]
    sentences = [f"{trips} round trips, {exchange['round_trips_per_walker']:.3g} per walker"]
    if trips:
        text = (
            f"{_at_least(rate)}{format_value(rate['per_update'], rate['per_update_error'])} per "
            f"update of a ladder, one per walker every {_round_trip_time(exchange)} updates"
        )
        if rate["per_second"] is not None:
            text += f"; {rate['per_second']:.3g} per second of all ladders"
        sentences[0] += f": {text}"
    if rate["is_lower_bound"]:
        sentences.append(
            f"rows are {run.measure_every} updates apart, between which round trips are missed"
        )
    if exchange["barrier"] is not None and rate["expected_per_update"] is not None:
        barrier = format_value(exchange["barrier"], exchange["barrier_error"])
        sentences.append(
            f"barrier (sum of the rejection rates) {barrier}: {rate['expected_per_update']:.3g} "
            "round trips per update if replicas forgot between exchanges, at most "
            f"{rate['optimal_per_update']:.3g} with more replicas in between"
        )
    if exchange["position_tau_int"] is not None:
        tau = exchange["position_tau_int"], exchange["position_tau_int_error"]
        sentences.append(f"tau_int of a walker's place in the ladder: {value_text(*tau)} updates")
    if exchange["bottleneck"] is not None:
        sentences.append(f"bottleneck: {exchange['bottleneck']['reason']}")
    elif run.replicas > 2 and trips:
        sentences.append("no pair stands out as a bottleneck")
    return sentences


def slowest_observable(analysis: Analysis) -> str | None:
    """Return the scalar observable whose tau_int tells replicas apart: a charge, or the slowest."""
    scalars = {
        name: replicas
        for name, replicas in analysis.observables.items()
        if not analysis.is_vector[name]
    }
    charges = [
        name for name, replicas in scalars.items() if any(r[0].hops is not None for r in replicas)
    ]
    if charges:
        return charges[0]

    def tau(name: str) -> float:
        value = scalars[name][0][0].tau_int
        return value if math.isfinite(value) else -math.inf

    return max(scalars, key=tau, default=None)


def _replicas(analysis: Analysis) -> list[str]:
    """Return the table of all scalar observables at all replicas."""
    scalars = [name for name in analysis.observables if not analysis.is_vector[name]]
    slowest = slowest_observable(analysis)
    header = ["replica", *scalars]
    if slowest is not None:
        header.append(f"tau_int of {slowest}")
    rows = []
    for index in range(analysis.run.replicas):
        name = analysis.run.replica_name(index) + (" (target)" if index == 0 else "")
        estimates = {scalar: analysis.observables[scalar][index][0] for scalar in scalars}
        row = [name, *map(str, estimates.values())]
        if slowest is not None:
            row.append(_tau(estimates[slowest]))
        rows.append(row)
    for label, flow in analysis.flows.items():
        replicas = flow.scales.get("clover", {}).get("t0")
        if replicas:
            header.append(f"t0/a^2 of {label}" if len(analysis.flows) > 1 else "t0/a^2")
            for row, estimate in zip(rows, replicas, strict=True):
                row.append("-" if estimate is None else str(estimate))
    return table(header, rows)


def _tau(estimate: Estimate) -> str:
    return bounded(estimate, format_value(estimate.tau_int, estimate.tau_int_error))


def _share(fraction: Sequence[float], pair: int) -> str:
    """Return the share of walkers going up on both sides of a pair."""
    return " -> ".join(_finite(share, "{:.2f}") for share in fraction[pair : pair + 2])


def _finite(value: float, form: str) -> str:
    return form.format(value) if math.isfinite(value) else "-"


def _round_trip_time(exchange: Mapping[str, Any]) -> str:
    return format_value(
        exchange["updates_per_round_trip"], exchange["updates_per_round_trip_error"]
    )


def _at_least(rate: Mapping[str, Any]) -> str:
    return "at least " if rate["is_lower_bound"] else ""
