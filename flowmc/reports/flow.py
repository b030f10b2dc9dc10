"""What a run says about the gradient flow, as a section of its document."""

from __future__ import annotations

from collections.abc import Sequence

from flowmc.reports import document as doc
from flowmc.reports import plots
from flowmc.reports.analysis.flow_summary import FlowSummary
from flowmc.reports.analysis.summary import Analysis
from flowmc.reports.pieces import mean_of, table, tau_int_of

__all__ = ["flow_section"]


def flow_section(analysis: Analysis, name: str) -> doc.Section:
    """Return the section about one observable ``gradient_flow``."""
    flow = analysis.flows[name]
    figure = doc.Figure(
        lambda: plots.flow.flow_plot(flow, analysis.run.measure_every),
        f"Energy along the flow, {name}",
    )
    result = _scales(name, flow) if flow.scales else _last(name, flow)
    title = f"Gradient flow {name.removeprefix('gradient_flow')}"
    return doc.Section(title, (figure, result, doc.Details("All flow times", (_energies(flow),))))


def _scales(name: str, flow: FlowSummary) -> doc.Part:
    titles = {"t0": doc.Name("t0/a^2", "t_{0} / a²"), "w0": doc.Name("w0/a", "w_{0} / a")}
    found = {label: [scales[label][0] for scales in flow.scales.values()] for label in titles}
    rows: list[Sequence[doc.Inline]] = [
        [titles[label], *map(mean_of, estimates), tau_int_of(estimates[0])]
        for label, estimates in found.items()
    ]
    scale = doc.Column("scale", short=name, kind="words")
    return table((scale, *flow.scales, doc.Column("tau_int", unit="measurements")), rows)


def _last(name: str, flow: FlowSummary) -> doc.Part:
    """Return the energies at the largest flow time, where the theory has no scales."""
    text: list[doc.Inline] = [
        f"{name}: t^2 E at t = ",
        doc.Value(flow.flow_times[-1].item(), form="g"),
    ]
    for place, (key, estimates) in enumerate(flow.energies.items()):
        text += [", " if place else ": ", f"{key}: ", mean_of(estimates[-1])]
    return doc.Paragraph(tuple(text), shown=doc.TEXT)


def _energies(flow: FlowSummary) -> doc.Table:
    rows = (
        (doc.Value(time, form=".4g"), *(mean_of(one[k]) for one in flow.energies.values()))
        for k, time in enumerate(flow.flow_times.tolist())
    )
    return table((doc.Column("t / a²"), *(f"t² ⟨E⟩, {name}" for name in flow.energies)), rows)
