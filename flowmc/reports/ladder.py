"""What a run says about its ladder, as a section of its document."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from flowmc.estimators.autocorrelation import format_value
from flowmc.reports import document as doc
from flowmc.reports import plots
from flowmc.reports.analysis.summary import Analysis
from flowmc.reports.pieces import mean_of, table, tau_int_of
from flowmc.reports.words import value_text

__all__ = ["ladder_section"]


def ladder_section(analysis: Analysis) -> doc.Section:
    """Return the section about replicas, exchanges and walkers."""
    run, exchange = analysis.run, analysis.exchange
    assert exchange is not None and run.production.walkers is not None
    walkers = run.production.walkers[:, 0]
    names = [run.replica_name(index) for index in range(run.replicas)]
    names[0] += " (target)"
    figure = doc.Figure(
        lambda: plots.ladder.ladder_plot(
            run.production.updates - run.offset,
            walkers,
            exchange["pairs"],
            exchange["replica_diffusion"]["up_fraction"],
            exchange["replica_diffusion"]["expected_up_fraction"],
            names,
        ),
        "Swap diagram",
    )
    parts = (
        doc.Listing(tuple(_transport_sentences(analysis))),
        figure,
        _pairs(analysis, names),
        *_transport(analysis, names),
        *_tuning(analysis),
        *_replicas(analysis, names),
    )
    return doc.Section("Replica exchange", parts)


def _pairs(analysis: Analysis, names: list[str]) -> doc.Table:
    run, exchange = analysis.run, analysis.exchange
    assert exchange is not None
    fraction = exchange["replica_diffusion"]["up_fraction"]
    diffusivity = exchange["replica_diffusion"]["diffusivity"]
    rows = []
    for entry in exchange["pairs"]:
        pair, error = entry["pair"], entry["error"]
        up, down = (doc.Value(share, form=".2f") for share in fraction[pair : pair + 2])
        cells = (
            doc.Name(entry["name"], f"{names[pair]} ↔ {names[pair + 1]}"),
            f"{run.replica_name(pair)} -> {run.replica_name(pair + 1)}",
            doc.Value(entry["acceptance"], math.nan if error is None else error),
            doc.Value(entry["erfc_estimate"], form=".3f"),
            doc.Value(entry["work_mean"], entry["work_mean_error"]),
            (up, " -> ", down),
            doc.Value(diffusivity[pair]),
        )
        rows.append(cells)
    header = (
        doc.Column("pair", short="exchange", kind="words"),
        doc.Column("couplings", kind="words", shown=doc.TEXT),
        "acceptance",
        doc.Column("erfc(√⟨w⟩/2)", short="Gaussian"),
        doc.Column("⟨w_{F} + w_{R}⟩", short="<work>"),
        doc.Column("share going up", short="going up"),
        "diffusivity",
    )
    return table(header, rows)


def _transport(analysis: Analysis, names: list[str]) -> list[doc.Part]:
    run, exchange = analysis.run, analysis.exchange
    observable = _slowest_observable(analysis)
    if observable is None:
        return []
    assert exchange is not None
    return [
        doc.Figure(
            lambda: plots.ladder.transport_plot(
                exchange["transition_matrix"],
                exchange["replica_diffusion"]["diffusivity"],
                [components[0] for components in analysis.observables[observable]],
                run.title(observable).removeprefix("Topological charge "),
                names,
                run.measure_every,
            ),
            "Transport through the ladder",
        )
    ]


def _tuning(analysis: Analysis) -> list[doc.Part]:
    """Return how couplings were tuned, if they were."""
    thermalization = analysis.run.thermalization
    updates = thermalization.updates - analysis.run.offset

    def figure(name: str, values: NDArray) -> doc.Figure:
        return doc.Figure(
            lambda: plots.ladder.tuning_plot(name, updates, values), f"Tuning of {name}"
        )

    figures = [
        figure(name, values)
        for name, values in thermalization.couplings.items()
        if len(values) > 1 and np.ptp(values, axis=0).any()
    ]
    return [doc.Section("Tuning of the ladder", tuple(figures))] if figures else []


def _replicas(analysis: Analysis, names: list[str]) -> list[doc.Part]:
    """Return the table of all scalar observables at all replicas."""
    run, slowest = analysis.run, _slowest_observable(analysis)
    if slowest is None:
        return []
    scalars = [name for name in analysis.observables if not analysis.is_vector[name]]
    title, short = f"tau_int of {run.title(slowest)}", f"tau_int of {slowest}"
    header = [
        doc.Column("replica", kind="words"),
        *(doc.Column(run.title(name), short=name) for name in scalars),
        doc.Column(title, unit="measurements", short=short),
    ]
    cells: list[list[doc.Inline]] = []
    for index, name in enumerate(names):
        estimates = {scalar: analysis.observables[scalar][index][0] for scalar in scalars}
        cells.append([name, *map(mean_of, estimates.values()), tau_int_of(estimates[slowest])])
    for label, flow in analysis.flows.items():
        scales = flow.scales.get("clover", {}).get("t0")
        if scales:
            short = f"t0/a^2 of {label}" if len(analysis.flows) > 1 else "t0/a^2"
            header.append(doc.Column(f"t_{{0}}/a² of {label}", short=short))
            for row, estimate in zip(cells, scales, strict=True):
                row.append(mean_of(estimate))
    return [doc.Section("All replicas", (table(header, cells),))]


def _transport_sentences(analysis: Analysis) -> list[str]:
    """Return how walkers travel through the ladder, in sentences."""
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


def _slowest_observable(analysis: Analysis) -> str | None:
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


def _round_trip_time(exchange: Mapping[str, Any]) -> str:
    return format_value(
        exchange["updates_per_round_trip"], exchange["updates_per_round_trip_error"]
    )


def _at_least(rate: Mapping[str, Any]) -> str:
    return "at least " if rate["is_lower_bound"] else ""
