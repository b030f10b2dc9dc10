"""``report.html``: the report of one run as a single file that loads nothing else."""

from __future__ import annotations

import base64
import json
import math
import os
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from flowmc_adapters import atomic_write
from numpy.typing import NDArray

from flowmc.estimators.autocorrelation import Estimate, format_value
from flowmc.run import report_plots
from flowmc.run.recorded import RecordedRun
from flowmc.run.summary import Analysis
from flowmc.run.text_parts import duration, value_text

__all__ = ["page", "write_page"]

NAMES = {
    "action": "Action density S/V",
    "plaquette": "Plaquette",
    "topological_charge": "Topological charge Q",
    "polyakov_loop": "Polyakov loop",
    "wilson_loop": "Wilson loop",
    "magnetization": "Magnetisation m",
    "abs_magnetization": "Magnetisation |m|",
    "phi2": "⟨φ²⟩",
    "susceptibility": "Susceptibility V m²",
    "correlator": "Correlator C(t)",
}


def write_page(analysis: Analysis) -> Path:
    """Write ``report.html`` into the run directory, replacing an older one atomically.

    Raises:
        OSError: if the directory cannot be written.
    """
    path = analysis.run.path / "report.html"
    text = page(analysis).encode()
    with atomic_write(path) as file:
        file.write(text)
    return path


def page(analysis: Analysis) -> str:
    """Return the page as HTML text."""
    run = analysis.run
    template = (files("flowmc.run") / "report_template.html").read_text(encoding="utf-8")
    sections = [
        _summary(analysis),
        *(_observable(analysis, name) for name in analysis.observables),
    ]
    sections.insert(
        1,
        '<h2>Histories</h2><p class="note">Grey: thermalisation, which does not count. Orange: the '
        "mean with its error, and the window up to which the autocorrelation is summed.</p>",
    )
    if analysis.exchange is not None:
        sections.append(_ladder(analysis))
    sections += [_kernels(analysis), _cost(analysis), _sources(analysis)]
    return Template(template).substitute(
        title=escape(os.path.basename(os.path.abspath(run.path)) or str(run.path)),
        theory=escape(_theory(run.config.get("theory", {}))),
        facts=_facts(analysis),
        verdict=_verdict(analysis.warnings),
        sections="\n".join(sections),
    )


def _theory(table: Mapping[str, Any]) -> str:
    words = []
    action = str(table.get("action", ""))
    known = {
        "wilson": "Wilson action",
        "wilson_defect": "Wilson action with a defect",
        "phi4": "φ⁴ theory",
        "free": "free scalar field",
    }
    if "group" in table:
        words.append(str(table["group"]))
    if action:
        words.append(known.get(action, action))
    if isinstance(table.get("lattice"), list):
        words.append("on " + " × ".join(str(extent) for extent in table["lattice"]))
    rest = [
        f"{key} = {value}"
        for key, value in table.items()
        if key not in ("action", "group", "lattice")
    ]
    return " ".join(words) + (", " + ", ".join(rest) if rest else "")


def _facts(analysis: Analysis) -> str:
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
    if run.seconds is not None:
        facts.append(("wall time", duration(run.seconds)))
    per_update = run.seconds_per_update()
    if per_update is not None:
        facts.append(("time per update", duration(per_update)))
    return "".join(
        f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts
    )


def _verdict(warnings: Sequence[str]) -> str:
    if not warnings:
        return (
            '<div class="verdict fine"><strong>Nothing to object to.</strong> '
            "All checks of this report passed.</div>"
        )
    count = "One thing" if len(warnings) == 1 else f"{len(warnings)} things"
    items = "".join(f"<li>{escape(_sentence(text))}</li>" for text in warnings)
    return (
        f'<div class="verdict doubt"><strong>{count} to look at before using these numbers'
        f"</strong><ul>{items}</ul></div>"
    )


def _summary(analysis: Analysis) -> str:
    rows = []
    for name, replicas in analysis.observables.items():
        estimates, costs = replicas[0], analysis.costs.get(name, [])
        # Of a vector the slowest component stands here, and all of them below its plot.
        slowest = max(estimates, key=lambda estimate: _finite(estimate.tau_int))
        seconds = max((cost.seconds for cost in costs), default=None)
        vector = f'<span class="note">{len(estimates)} components</span>'
        rows.append(
            [
                escape(_title(name)),
                vector if analysis.is_vector[name] else escape(str(slowest)),
                _tau(slowest),
                f"{slowest.samples:,}",
                _independent(slowest),
                ("≥ " if slowest.is_bound and seconds else "") + escape(duration(seconds)),
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
    text = "<h2>Results</h2>" + _table(header, rows, numbers=range(1, 6))
    if analysis.run.replicas > 1:
        names = _replicas(analysis.run)
        rows = [
            [escape(_title(name)), *(escape(str(replica[0])) for replica in replicas)]
            for name, replicas in analysis.observables.items()
            if not analysis.is_vector[name]
        ]
        if rows:
            text += "<h3>Means of all replicas</h3>" + _table(
                ["observable", *map(escape, names)], rows, numbers=range(1, len(names) + 1)
            )
    return text


def _observable(analysis: Analysis, name: str) -> str:
    run = analysis.run
    estimates = analysis.observables[name][0]
    components = ""
    if analysis.is_vector[name]:
        plot = report_plots.vector_plot(_title(name), estimates, run.measure_every)
        number = ""
        rows = [
            [str(index), escape(str(estimate)), _tau(estimate), _independent(estimate)]
            for index, estimate in enumerate(estimates)
        ]
        header = ["component", "mean", "τ<sub>int</sub> (measurements)", "independent samples"]
        components = (
            "<details><summary>All components</summary>"
            + _table(header, rows, numbers=range(1, 4))
            + "</details>"
        )
    else:
        production = _series(run.production.observables[name])
        thermalization = _series(
            run.thermalization.observables.get(name, run.production.observables[name][:0])
        )
        draw = (
            report_plots.topological_charge_plot
            if estimates[0].hops is not None
            else report_plots.history_plot
        )
        plot = draw(
            _title(name),
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
        f"<h3>{escape(_title(name))}{number}</h3>{_image(plot, f'History of {name}')}{components}"
    )


def _ladder(analysis: Analysis) -> str:
    run, exchange = analysis.run, analysis.exchange
    assert exchange is not None and run.production.walkers is not None
    names = _replicas(run)
    plot = report_plots.ladder_plot(
        run.production.updates - run.offset,
        run.production.walkers[:, 0],
        exchange["pairs"],
        exchange["replica_diffusion"]["up_fraction"],
        names,
    )
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
    per_trip = exchange["updates_per_round_trip"]
    trips = f"{exchange['round_trips']:,} round trips of {run.chains * run.replicas:,} walkers"
    if per_trip is not None:
        trips += f": one per walker every {per_trip:,.0f} updates"
    return (
        f"<h2>Replica exchange</h2><p>{trips}.</p>"
        + _image(plot, "Swap diagram")
        + _table(header, rows, numbers=range(1, 4))
    )


def _kernels(analysis: Analysis) -> str:
    shares = analysis.time_shares()
    rows, classes = [], []
    for name, entry in analysis.kernels.items():
        bar = _bar(shares[name]) if name in shares else ""
        seconds, calls = entry["seconds"], entry["calls"]
        rows.append(
            [
                escape(name),
                escape(value_text(entry["acceptance"], entry["acceptance_error"])),
                "" if calls is None else f"{calls:,.0f}",
                "" if seconds is None else escape(duration(seconds)),
                "" if not calls or seconds is None else escape(duration(seconds / calls)),
                bar,
                _details(entry),
            ]
        )
        classes.append("part" if "[" in name else "")
    if "rest" in shares:
        rows.append(["measurements, files and start", "", "", "", "", _bar(shares["rest"]), ""])
        classes.append("part")
    header = ["kernel", "acceptance", "calls", "time", "per call", "share", "diagnostics"]
    text = "<h2>Kernels</h2>" + _table(header, rows, numbers=range(1, 5), classes=classes)
    run = analysis.run
    updates = run.production.updates - run.offset
    for name, values in run.production.kernels.items():
        if "accepted" not in values or "tried" not in values:
            continue
        counts = values["accepted"], values["tried"]
        # Of a ladder the target's kernel is drawn; the others are in the table.
        if "energy_error" in values and ("[" not in name or "[0]" in name):
            plot = report_plots.energy_error_plot(name, updates, values["energy_error"], *counts)
            text += _image(plot, f"Energy errors of {name}")
        elif "log_weights" in values:
            plot = report_plots.weights_plot(
                name, updates, values["log_weights"], values.get("log_weight"), *counts
            )
            text += _image(plot, f"Log-weights of {name}")
    return text


def _cost(analysis: Analysis) -> str:
    training = analysis.run.training_seconds()
    if not analysis.costs or not training:
        return ""
    rows = []
    for name, costs in analysis.costs.items():
        cost = max(costs, key=lambda cost: cost.seconds)
        rows.append(
            [
                escape(_title(name)),
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
        + _table(header, rows, numbers=range(1, 4))
    )


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
    parts = []
    if "exp_minus_energy_error" in entry:
        check = entry["exp_minus_energy_error"]
        parts.append(f"⟨e<sup>−ΔH</sup>⟩ = {value_text(check['mean'], check['error'])}")
    if "ess" in entry:
        parts.append(f"ESS = {value_text(entry['ess'], entry['ess_error'])}")
        parts.append(f"largest weight {entry['max_weight_share']:.2%}")
    if entry.get("longest_rejection_run") is not None:
        parts.append(f"longest rejection {entry['longest_rejection_run']}")
    if entry.get("reversibility_violation") is not None:
        parts.append(f"reversible to {entry['reversibility_violation']:.0e}")
    if "step_size" in entry:
        parts.append("step size " + ", ".join(f"{size:.3g}" for size in entry["step_size"]))
    if entry.get("non_finite"):
        parts.append(f'<span class="bound">{entry["non_finite"]} not finite</span>')
    return ", ".join(parts)


def _table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
    classes: Sequence[str] = (),
) -> str:
    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="number">{cell}</{tag}>' if i in numbers else f"<{tag}>{cell}</{tag}>"
            for i, cell in enumerate(row)
        )

    body = "".join(
        f'<tr class="{name}">{cells("td", row)}</tr>'
        for row, name in zip(rows, classes or [""] * len(rows), strict=True)
    )
    return f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{body}</tbody></table>"


def _image(svg: str, alternative: str) -> str:
    # As an image rather than inline: the identifiers inside two drawings would collide.
    data = base64.b64encode(svg.encode()).decode()
    return (
        f'<figure><img alt="{escape(alternative)}" src="data:image/svg+xml;base64,{data}"></figure>'
    )


def _tau(estimate: Estimate) -> str:
    text = escape(format_value(estimate.tau_int, estimate.tau_int_error))
    return f'<span class="bound">≥ {text}</span>' if estimate.is_bound else text


def _independent(estimate: Estimate) -> str:
    if not math.isfinite(estimate.tau_int):
        return "–"
    number = f"{estimate.samples / (2 * estimate.tau_int):,.0f}"
    return f'<span class="bound">≤ {number}</span>' if estimate.is_bound else number


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf


def _series(values: NDArray) -> NDArray:
    """Return the target's values, ``(rows, chains)``."""
    return values[:, :, 0]


def _end(updates: NDArray) -> int:
    return int(updates[-1]) if len(updates) else 0


def _title(name: str) -> str:
    stem, bracket, keys = name.partition("(")
    title = NAMES.get(stem, stem.replace("_", " "))
    return f"{title} {bracket}{keys}" if bracket else title


def _replicas(run: RecordedRun) -> list[str]:
    names = [run.replica_name(index) for index in range(run.replicas)]
    return [f"{names[0]} (target)", *names[1:]]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."
