"""The part of ``report.html`` that is about the gradient flow."""

from __future__ import annotations

from html import escape

from flowmc.reports.analysis.flow_summary import FlowSummary
from flowmc.reports.analysis.summary import Analysis
from flowmc.reports.as_html import html_table, image, tau_html
from flowmc.reports.plots.flow import flow_plot

__all__ = ["flow_section"]


def flow_section(analysis: Analysis, name: str) -> str:
    """Return the section about one observable ``gradient_flow`` as HTML."""
    flow = analysis.flows[name]
    return (
        f"<h3>Gradient flow {escape(name.removeprefix('gradient_flow'))}</h3>"
        + image(flow_plot(flow, analysis.run.measure_every), f"Energy along the flow, {name}")
        + _scales(flow)
        + _energies(flow)
    )


def _scales(flow: FlowSummary) -> str:
    if not flow.scales:
        return ""
    rows = []
    for label, title in (("t0", "t<sub>0</sub> / a²"), ("w0", "w<sub>0</sub> / a")):
        estimates = [scales[label][0] for scales in flow.scales.values()]
        cells = ["–" if estimate is None else escape(str(estimate)) for estimate in estimates]
        clover = estimates[0]
        rows.append([title, *cells, "–" if clover is None else tau_html(clover)])
    header = ["scale", *map(escape, flow.scales), "τ<sub>int</sub> (measurements)"]
    return html_table(header, rows, numbers=range(1, len(header)))


def _energies(flow: FlowSummary) -> str:
    rows = [
        [f"{time:.4g}", *(escape(str(estimates[k])) for estimates in flow.energies.values())]
        for k, time in enumerate(flow.flow_times)
    ]
    header = ["t / a²", *(f"t² ⟨E⟩, {escape(name)}" for name in flow.energies)]
    return (
        "<details><summary>All flow times</summary>"
        + html_table(header, rows, numbers=range(len(header)))
        + "</details>"
    )
