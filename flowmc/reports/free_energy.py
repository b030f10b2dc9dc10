"""``report.html`` of ``flowmc free-energy``."""

from __future__ import annotations

import os
from html import escape
from pathlib import Path

import numpy as np
from flowmc_adapters import atomic_write

from flowmc.config.toml_text import toml_text
from flowmc.estimators.autocorrelation import format_value
from flowmc.estimators.free_energy import FreeEnergy
from flowmc.free_energy.config import FreeEnergyConfig
from flowmc.free_energy.outcome import Outcome
from flowmc.reports.analysis.free_energy_payoff import payoff_of_outcome
from flowmc.reports.as_html import document_html, html_table, image, payoff_html, theory_text
from flowmc.reports.as_text import duration
from flowmc.reports.plots.free_energy import estimates_plot, line_plot, protocol_plot, work_plot

__all__ = ["write_page"]

TITLES = {
    "q": "ln Z from a flow",
    "p": "ln Z from samples of the target",
    "both": "ln Z from a flow and the target",
    "chain": "ln Z along a line of ensembles",
    "annealing": "ln Z by annealing",
    "snf": "ln Z by a stochastic normalizing flow",
}


def write_page(directory: Path, config: FreeEnergyConfig, outcome: Outcome) -> None:
    """Write ``report.html``.

    Raises:
        OSError: as from writing.
    """
    best = outcome.best.estimate
    facts = [
        ("ln(Z / Z start)" if outcome.is_ratio else "ln Z", _bounded(best)),
        ("samples", f"{best.samples:,}"),
        ("wall time", duration(outcome.seconds)),
    ]
    if outcome.exact is not None:
        facts.insert(1, ("exact", f"{outcome.exact:.7g}"))
    if outcome.coverage is not None:
        share = format_value(outcome.coverage.share, outcome.coverage.error)
        facts.append(("of the target covered", share))
    pays = payoff_of_outcome(config, outcome)
    sections = [payoff_html(pays["answer"], pays["next"]), _estimates(outcome)]
    if outcome.bridge is not None or "forward" in outcome.works:
        sections.append(_works(config, outcome))
    if outcome.line:
        sections.append(_line(outcome))
    if outcome.process is not None:
        sections.append(
            "<h2>Along the protocol</h2>"
            + image(protocol_plot(outcome.process), "Work and acceptance by step")
        )
    configuration = escape(toml_text(config.resolved))
    sections.append(
        f"<h2>How it was made</h2><details><summary>Configuration</summary><pre>{configuration}"
        "</pre></details>"
    )
    text = document_html(
        f"{TITLES[config.table.method]}: {os.path.basename(directory.resolve())}",
        theory_text(config.resolved["theory"]),
        facts,
        outcome.warnings,
        sections,
    )
    with atomic_write(directory / "report.html") as file:
        file.write(text.encode())


def _bounded(estimate: FreeEnergy) -> str:
    """Return a value with the marks of a bound, an exclamation mark if its error is one."""
    text = f"{estimate}!" if estimate.error_is_bound else str(estimate)
    return text.replace(">= ", "≥ ").replace("<= ", "≤ ").replace("~ ", "≈ ")


def _estimates(outcome: Outcome) -> str:
    rows, classes = [], []
    for named in outcome.estimates:
        one = named.estimate
        pull = "–"
        if outcome.exact is not None and one.error:
            pull = f"{(one.value - outcome.exact) / one.error:+.1f}"
        doubtful = one.bound != "none" or one.error_is_bound
        text = escape(_bounded(one))
        rows.append(
            [
                escape(named.title),
                f'<span class="bound">{text}</span>' if doubtful else text,
                pull,
                f"{one.bias:+.1e}" if one.bias else "–",
                *(_digits(value) for value in (one.ess, one.pareto_k, one.tau_int)),
                f"{one.samples:,}",
            ]
        )
        classes.append("")
    header = [
        "estimate",
        "ln Z",
        "pull",
        "bias",
        "ESS",
        "Pareto k",
        "τ<sub>int</sub>",
        "samples",
    ]
    table = html_table(header, rows, numbers=range(1, len(header)), classes=classes)
    one_sided = (
        '<p class="note">The bias is that of a logarithm of a mean, and is not subtracted. '
        "One-sided estimates from the start err low and from the target high as long as samples "
        "miss the tail of the weights; the bridge uses both.</p>"
    )
    note = one_sided if any(named.estimate.bias for named in outcome.estimates) else ""
    if any(named.estimate.error_is_bound for named in outcome.estimates):
        note += '<p class="note">!: the error is a lower bound.</p>'
    plot = ""
    if len(outcome.estimates) > 1 or outcome.exact is not None:
        plot = image(estimates_plot(outcome), "The estimates with their errors")
    return f"<h2>Estimates</h2>{table}{note}{plot}"


def _works(config: FreeEnergyConfig, outcome: Outcome) -> str:
    forward = outcome.works.get("forward", outcome.works.get("forward 0"))
    reverse = outcome.works.get("reverse", outcome.works.get("reverse 0"))
    if forward is None:
        return ""
    is_flow = config.table.method in ("q", "p", "both")
    heading = "Weights" if is_flow else "Work"
    note = (
        "Crooks: the distribution of the work from the start crosses that of minus the work from "
        "the target where W = ΔF = −ln Z."
        if reverse is not None
        else "ΔF = −ln Z is where the work from the target, which was not measured, would cross."
    )
    overlap = ""
    if outcome.bridge is not None:
        overlap = f" The two ends overlap by {outcome.bridge.overlap:.3g}."
    # Of the ratio, without the constant of the start.
    shift = -outcome.bridge.estimate.value if outcome.bridge is not None else None
    exact = outcome.exact
    if outcome.bridge is not None and exact is not None:
        exact = outcome.bridge.estimate.value - outcome.best.estimate.value + exact
    picture = work_plot(np.ravel(forward), reverse, shift, None if exact is None else -exact)
    return (
        f"<h2>{heading}</h2>{image(picture, 'Distributions of the work')}"
        f'<p class="note">{note}{overlap}</p>'
    )


def _line(outcome: Outcome) -> str:
    names = list(outcome.line[0][0])
    rows = [
        [
            *(f"{value:g}" for value in couplings.values()),
            escape(_bounded(estimate)),
            _digits(estimate.tau_int),
            _digits(overlap),
        ]
        for couplings, estimate, overlap in outcome.line
    ]
    header = [*map(escape, names), "ln Z", "τ<sub>int</sub>", "overlap with the one before"]
    table = html_table(header, rows, numbers=range(len(header)))
    return (
        "<h2>Along the line</h2>"
        + image(line_plot(outcome), "ln Z along the line of couplings")
        + f"<details><summary>All ensembles</summary>{table}</details>"
    )


def _digits(value: float) -> str:
    return f"{value:.3g}" if np.isfinite(value) else "–"
