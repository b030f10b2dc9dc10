"""The part of ``report.html`` that is about the ladder."""

from __future__ import annotations

from html import escape
from typing import Any

import numpy as np

from flowmc.reports.analysis.summary import Analysis
from flowmc.reports.as_html import html_table, image, replica_titles, sentence, tau_html, title_of
from flowmc.reports.as_text import value_text
from flowmc.reports.ladder_text import slowest_observable, transport_sentences
from flowmc.reports.plots import ladder as ladder_plots

__all__ = ["ladder_section"]


def ladder_section(analysis: Analysis) -> str:
    """Return the section about replicas, exchanges and walkers as HTML."""
    run, exchange = analysis.run, analysis.exchange
    assert exchange is not None and run.production.walkers is not None
    names = replica_titles(run)
    plot = ladder_plots.ladder_plot(
        run.production.updates - run.offset,
        run.production.walkers[:, 0],
        exchange["pairs"],
        exchange["replica_diffusion"]["up_fraction"],
        exchange["replica_diffusion"]["expected_up_fraction"],
        names,
    )
    sentences = [escape(sentence(text)) for text in transport_sentences(analysis)]
    return (
        "<h2>Replica exchange</h2><ul>"
        + "".join(f"<li>{text}</li>" for text in sentences)
        + "</ul>"
        + image(plot, "Swap diagram")
        + _pairs(exchange, names)
        + _transport(analysis, names)
        + _tuning(analysis)
        + _replicas(analysis, names)
    )


def _pairs(exchange: dict[str, Any], names: list[str]) -> str:
    rows = [
        [
            escape(f"{names[entry['pair']]} ↔ {names[entry['pair'] + 1]}"),
            escape(value_text(entry["acceptance"], entry["error"])),
            escape(value_text(entry["work_mean"], entry["work_mean_error"])),
            "–" if entry["erfc_estimate"] is None else f"{entry['erfc_estimate']:.3f}",
        ]
        for entry in exchange["pairs"]
    ]
    header = ["pair", "acceptance", "⟨w<sub>F</sub> + w<sub>R</sub>⟩", "erfc(√⟨w⟩/2)"]
    return html_table(header, rows, numbers=range(1, 4))


def _transport(analysis: Analysis, names: list[str]) -> str:
    run, exchange = analysis.run, analysis.exchange
    assert exchange is not None
    observable = slowest_observable(analysis)
    if observable is None:
        return ""
    plot = ladder_plots.transport_plot(
        exchange["transition_matrix"],
        exchange["replica_diffusion"]["diffusivity"],
        [components[0] for components in analysis.observables[observable]],
        title_of(observable).removeprefix("Topological charge "),
        names,
        run.measure_every,
    )
    return image(plot, "Transport through the ladder")


def _tuning(analysis: Analysis) -> str:
    """Return how couplings were tuned, if they were."""
    run, text = analysis.run, ""
    for name, values in run.thermalization.couplings.items():
        if len(values) > 1 and np.ptp(values, axis=0).any():
            updates = run.thermalization.updates - run.offset
            plot = ladder_plots.tuning_plot(name, updates, values)
            text += image(plot, f"Tuning of {name}")
    return f"<h3>Tuning of the ladder</h3>{text}" if text else ""


def _replicas(analysis: Analysis, names: list[str]) -> str:
    """Return the table of all scalar observables at all replicas."""
    scalars = [name for name in analysis.observables if not analysis.is_vector[name]]
    slowest = slowest_observable(analysis)
    if slowest is None:
        return ""
    header = ["replica", *(escape(title_of(name)) for name in scalars)]
    header.append(f"τ<sub>int</sub> of {escape(title_of(slowest))} (measurements)")
    rows = []
    for index, name in enumerate(names):
        estimates = {scalar: analysis.observables[scalar][index][0] for scalar in scalars}
        means = [escape(str(estimate)) for estimate in estimates.values()]
        rows.append([escape(name), *means, tau_html(estimates[slowest])])
    for label, flow in analysis.flows.items():
        scales = flow.scales.get("clover", {}).get("t0")
        if scales:
            header.append("t<sub>0</sub>/a² of " + escape(label))
            for row, estimate in zip(rows, scales, strict=True):
                row.append("–" if estimate is None else escape(str(estimate)))
    return "<h3>All replicas</h3>" + html_table(header, rows, numbers=range(1, len(header)))
