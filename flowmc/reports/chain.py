"""``report.html``: the report of one run as a single file that loads nothing else."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

from flowmc_adapters import atomic_write
from numpy.typing import NDArray

from flowmc.estimators.autocorrelation import format_value
from flowmc.estimators.cost import average
from flowmc.jobs.own_files import naming
from flowmc.reports.analysis.checks import checks_of
from flowmc.reports.analysis.payoff import payoff_of
from flowmc.reports.analysis.summary import Analysis
from flowmc.reports.as_html import (
    capital,
    document_html,
    html_table,
    image,
    independent_html,
    payoff_html,
    tau_html,
    theory_text,
    title_of,
)
from flowmc.reports.as_text import (
    component_names,
    duration,
    duration_text,
    kernel_title,
    reported_text,
    step_size_text,
    value_text,
)
from flowmc.reports.flow import flow_section
from flowmc.reports.ladder import ladder_section
from flowmc.reports.plots import chain as report_plots

__all__ = ["page", "write_page"]


def write_page(analysis: Analysis, path: str | Path | None = None) -> Path:
    """Write ``report.html`` into the run directory, or to another path, atomically.

    Raises:
        OSError: if it cannot be written.
    """
    is_asked_for = path is not None
    path = analysis.run.path / "report.html" if path is None else Path(path)
    text = page(analysis).encode()
    # Into somebody else's directory, perhaps, where a planted link would lead elsewhere.
    with naming(path), atomic_write(path, follow=is_asked_for) as file:
        file.write(text)
    return path


def page(analysis: Analysis) -> str:
    """Return the page as HTML text."""
    run = analysis.run
    sections = [
        _summary(analysis),
        _payoff(analysis),
        *(_observable(analysis, name) for name in analysis.observables),
        *(flow_section(analysis, name) for name in analysis.flows),
    ]
    sections.insert(
        2,
        '<h2>Histories</h2><p class="note">Grey: thermalisation, which does not count. Orange: the '
        "mean with its error, and the window up to which the autocorrelation is summed.</p>",
    )
    if analysis.exchange is not None:
        sections.append(ladder_section(analysis))
    sections += [_kernels(analysis), _cost(analysis), _checks(analysis), _sources(analysis)]
    return document_html(
        os.path.basename(os.path.abspath(run.path)) or str(run.path),
        theory_text(run.config.get("theory", {})),
        _facts(analysis),
        analysis.warnings,
        sections,
    )


def _facts(analysis: Analysis) -> list[tuple[str, str]]:
    run = analysis.run
    requested = run.attributes.get("updates")
    updates = f"{run.updates:,}"
    if isinstance(requested, int) and requested > run.updates:
        updates += f" of {requested:,}"
    facts = [
        ("updates", updates),
        ("chains", f"{run.chains:,}"),
        ("measurements per chain", f"{run.production.rows:,}"),
    ]
    if run.replicas > 1:
        facts.insert(2, ("replicas", str(run.replicas)))
    if run.discarded:
        facts.insert(1, ("left out before", f"{run.discarded:,}"))
    if run.seconds is not None:
        facts.append(("wall time", duration(run.seconds)))
    per_update = run.seconds_per_update()
    if per_update is not None:
        facts.append(("time per update", duration(per_update)))
    return facts


def _summary(analysis: Analysis) -> str:
    rows = []
    for name, replicas in analysis.observables.items():
        estimates, costs = replicas[0], analysis.costs.get(name, [])
        # Of a vector the slowest component stands here, and all of them below its plot.
        slowest = max(estimates, key=lambda estimate: _finite(estimate.tau_int))
        cost = average(costs) if costs else None
        vector = f'<span class="note">{len(estimates)} components</span>'
        rows.append(
            [
                escape(title_of(name)),
                vector if analysis.is_vector[name] else escape(str(slowest)),
                tau_html(slowest),
                f"{slowest.samples:,}",
                independent_html(slowest),
                "–" if cost is None else _marked(duration(cost.seconds), cost.is_bound),
            ]
        )
    header = [
        "observable",
        "mean",
        "τ<sub>int</sub> (measurements)",
        "samples",
        "independent samples",
        "time per independent sample",
    ]
    return "<h2>Results</h2>" + html_table(header, rows, numbers=range(1, 6))


def _observable(analysis: Analysis, name: str) -> str:
    run = analysis.run
    estimates = analysis.observables[name][0]
    components = ""
    if analysis.is_vector[name]:
        names = component_names(name, len(estimates))
        plot = report_plots.vector_plot(title_of(name), names, estimates, run.measure_every)
        number = ""
        rows = [
            [label, escape(str(estimate)), tau_html(estimate), independent_html(estimate)]
            for label, estimate in zip(names, estimates, strict=True)
        ]
        header = ["component", "mean", "τ<sub>int</sub> (measurements)", "independent samples"]
        components = (
            "<details><summary>All components</summary>"
            + html_table(header, rows, numbers=range(1, 4))
            + "</details>"
        )
    else:
        before, production = analysis.series[name]
        thermalization = (production[:0] if before is None else before)[:, :, 0]
        production = production[:, :, 0]
        draw = (
            report_plots.topological_charge_plot
            if estimates[0].hops is not None
            else report_plots.history_plot
        )
        plot = draw(
            # The charge has its full name in the heading; with its flow time it is too long here.
            title_of(name).removeprefix("Topological charge "),
            (run.production.updates - run.offset, production),
            (run.thermalization.updates - _end(run.thermalization.updates), thermalization),
            estimates[0],
            run.measure_every,
        )
        number = f"<small>{escape(str(estimates[0]))}</small>"
        hops = estimates[0].hops
        if hops is not None:
            number += f"<small>{hops:,} change{'' if hops == 1 else 's'} of Q</small>"
    return (
        f"<h3>{escape(title_of(name))}{number}</h3>{image(plot, f'History of {name}')}{components}"
    )


def _kernels(analysis: Analysis) -> str:
    run, shares = analysis.run, analysis.time_shares()
    rows, classes = [], []
    for name, entry in analysis.kernels.items():
        bar = _bar(shares[name]) if name in shares else ""
        seconds, calls = entry["seconds"], entry["calls"]
        rows.append(
            [
                escape(capital(kernel_title(name, run))),
                escape(value_text(entry["acceptance"], entry["acceptance_error"])),
                "" if calls is None else f"{calls:,.0f}",
                "" if seconds is None else escape(duration(seconds)),
                "" if not calls or seconds is None else escape(duration(seconds / calls)),
                bar,
                _details(entry),
            ]
        )
        is_part = name in run.reports and run.reports[name].update != name
        classes.append("part" if is_part else "")
    if "rest" in shares:
        rows.append(["measurements, files and start", "", "", "", "", _bar(shares["rest"]), ""])
        classes.append("part")
    header = ["kernel", "acceptance", "calls", "time", "per call", "share", "diagnostics"]
    text = "<h2>Kernels</h2>" + html_table(header, rows, numbers=range(1, 5), classes=classes)
    updates = run.production.updates - run.offset
    for name, values in run.production.kernels.items():
        if "accepted" not in values or "tried" not in values:
            continue
        counts = values["accepted"], values["tried"]
        # Of a ladder the target's kernel is drawn; the others are in the table.
        if "energy_error" in values and not run.reports[name].replica:
            title = kernel_title(name, run)
            plot = report_plots.energy_error_plot(title, updates, values["energy_error"], *counts)
            text += image(plot, f"Energy errors of {title}")
        elif "log_weights" in values:
            title = kernel_title(name, run)
            plot = report_plots.weights_plot(
                title, updates, values["log_weights"], values.get("log_weight"), *counts
            )
            text += image(plot, f"Log-weights of {title}")
    return text


def _payoff(analysis: Analysis) -> str:
    payoff = payoff_of(analysis)
    table = ""
    if payoff.hmc_share is not None and payoff.verdict != "hmc alone":
        rows = [
            [
                escape(title_of(one.observable)),
                _marked(duration_text(one.seconds, one.seconds_error), one.is_bound),
                _marked(format_value(one.tau_int, one.tau_int_error), one.is_bound),
            ]
            for one in payoff.demands
        ]
        header = [
            "observable",
            "time per independent sample, all kernels",
            "τ<sub>int</sub> of HMC alone, above which they pay (measurements)",
        ]
        table = html_table(header, rows, numbers=range(1, 3))
    return payoff_html(payoff.answer, payoff.next, table)


def _marked(text: str, is_bound: bool) -> str:
    return f'<span class="bound">≥ {escape(text)}</span>' if is_bound else escape(text)


def _cost(analysis: Analysis) -> str:
    training = analysis.run.training_seconds()
    if not analysis.costs or not training:
        return ""
    rows = []
    for name, costs in analysis.costs.items():
        cost = average(costs)
        rows.append(
            [
                escape(title_of(name)),
                escape(duration(cost.seconds)),
                escape(duration(cost.seconds_with_training)),
                f"{cost.independent_samples:,.0f}",
            ]
        )
    header = ["observable", "without training", "training amortised over this run", "independent"]
    return (
        "<h2>Cost of an independent sample</h2>"
        f"<p>The flows of this run were trained for {escape(duration(training))}. "
        "How many samples repay that depends on what they replace: "
        "<code>flowmc report BASELINE THIS</code> prints the break-even number.</p>"
        + html_table(header, rows, numbers=range(1, 4))
    )


def _checks(analysis: Analysis) -> str:
    """Return all checks with their numbers: those that passed are worth knowing too."""
    checks = checks_of(analysis)
    passed = sum(check.passed for check in checks)
    rows = [
        [
            f"{escape(_subject(analysis, check.subject))}: {escape(check.what)}",
            escape(check.value),
            escape(check.limit),
            "passed" if check.passed else '<span class="bound">see above</span>',
        ]
        for check in checks
    ]
    table = html_table(["check", "number", "limit", "verdict"], rows, numbers=range(1, 3))
    return f"<h2>Checks: {passed} of {len(checks)} passed</h2>{table}"


def _subject(analysis: Analysis, name: str) -> str:
    """Return how an observable or a kernel is called."""
    if name in analysis.observables:
        return title_of(name)
    return capital(kernel_title(name, analysis.run))


def _sources(analysis: Analysis) -> str:
    run = analysis.run
    text = "<h2>Where it comes from</h2>"
    if run.config_text:
        text += (
            "<details><summary>Configuration</summary>"
            f"<pre>{escape(run.config_text.strip())}</pre></details>"
        )
    if run.provenance:
        pretty = json.dumps(run.provenance, indent=2, ensure_ascii=False)
        text += f"<details><summary>Provenance</summary><pre>{escape(pretty)}</pre></details>"
    return text + (
        '<p class="note">Errors and τ<sub>int</sub> by the Γ method (U. Wolff, hep-lat/0306017, '
        "S = 2) with the mean of all chains subtracted. τ<sub>int</sub> is ½ for independent "
        "measurements; an independent sample costs 2 τ<sub>int</sub> measurements.</p>"
    )


def _bar(share: float) -> str:
    return (
        f'<span class="bar"><span class="share"><i style="width:{100 * share:.1f}%"></i></span>'
        f"{share:.0%}</span>"
    )


def _details(entry: Mapping[str, Any]) -> str:
    parts = [escape(text) for text in reported_text(entry["values"])]
    if "ess" in entry:
        parts.append(f"ESS = {value_text(entry['ess'], entry['ess_error'])}")
        parts.append(f"largest weight {entry['max_weight_share']:.2%}")
    if entry.get("longest_rejection_run") is not None:
        parts.append(f"longest rejection {entry['longest_rejection_run']}")
    if "step_size" in entry:
        parts.append(step_size_text(entry["step_size"]))
    if entry.get("non_finite"):
        parts.append(f'<span class="bound">{entry["non_finite"]} not finite</span>')
    return ", ".join(parts)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _end(updates: NDArray) -> int:
    return int(updates[-1]) if len(updates) else 0
