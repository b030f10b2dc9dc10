"""What a run says, as a document."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from flowmc.chains.storage.recorded import RecordedRun
from flowmc.estimators.autocorrelation import Estimate
from flowmc.estimators.cost import Cost, average
from flowmc.reports import document as doc
from flowmc.reports import plots
from flowmc.reports.analysis.checks import checks_of
from flowmc.reports.analysis.payoff import payoff_of
from flowmc.reports.analysis.summary import Analysis
from flowmc.reports.as_json import as_json
from flowmc.reports.flow import flow_section
from flowmc.reports.ladder import ladder_section
from flowmc.reports.pieces import (
    closed_code,
    independent_of,
    lower_if,
    mean_of,
    note,
    payoff_section,
    seconds,
    table,
    tau_int_of,
)
from flowmc.reports.words import (
    capital,
    component_names,
    count_text,
    kernel_title,
    ordinal_text,
    quantity_text,
    step_size_text,
    theory_text,
)

if TYPE_CHECKING:
    from flowmc.reports.plots.style import Drawing

__all__ = ["run_document", "run_json"]

_HISTORIES = (
    "Grey: thermalisation, which does not count. Orange: the mean with its error, and the window "
    "up to which the autocorrelation is summed."
)
_METHOD = (
    "Errors and tau_int by the Γ method (U. Wolff, hep-lat/0306017, S = 2) with the mean of all "
    "chains subtracted. tau_int is ½ for independent measurements; an independent sample costs "
    "2 tau_int measurements."
)


def run_json(analysis: Analysis) -> dict[str, Any]:
    """Return what ``flowmc report --json`` prints of one run; see docs/reports.md."""
    return {**analysis.as_dict(), "page": as_json(run_document(analysis))}


def run_document(analysis: Analysis) -> doc.Document:
    """Return the document of a run."""
    run = analysis.run
    histories: list[doc.Part] = [
        note(_HISTORIES),
        *(_observable(analysis, name) for name in analysis.observables),
        *(flow_section(analysis, name) for name in analysis.flows),
    ]
    sections = [_results(analysis), _payoff(analysis), doc.Section("Histories", tuple(histories))]
    if analysis.exchange is not None:
        sections.append(ladder_section(analysis))
    sections += [_kernels(analysis), *_cost(analysis), _checks(analysis), _sources(analysis)]
    headline = (
        f"{run.path}: {run.updates} updates of {count_text(run.chains, 'chain')}"
        + (f", {run.replicas} replicas" if run.replicas > 1 else "")
        + f", measured every {ordinal_text(run.measure_every)}"
        + (f", without the first {run.discarded} updates" if run.discarded else "")
    )
    return doc.Document(
        run.path.resolve().name or str(run.path),
        theory_text(run.config.get("theory", {}), run.theory_title),
        tuple(_facts(analysis)),
        tuple(sections),
        headline,
        tuple(analysis.warnings),
    )


def _facts(analysis: Analysis) -> Iterator[tuple[str, doc.Inline]]:
    run = analysis.run
    requested, updates = run.attributes.get("updates"), doc.Value(run.updates)
    is_partial = isinstance(requested, int) and requested > run.updates
    yield "updates", (updates, " of ", doc.Value(requested)) if is_partial else updates
    if run.discarded:
        yield "left out before", doc.Value(run.discarded)
    yield "chains", doc.Value(run.chains)
    if run.replicas > 1:
        yield "replicas", doc.Value(run.replicas)
    yield "measurements per chain", doc.Value(run.production.rows)
    if run.seconds is not None:
        yield "wall time", seconds(run.seconds)
    per_update = run.seconds_per_update()
    if per_update is not None:
        yield "time per update", seconds(per_update)


def _results(analysis: Analysis) -> doc.Section:
    """Return the table of the target: of a vector a page has the slowest component."""
    rows = []
    for name, replicas in analysis.observables.items():
        estimates, costs = replicas[0], analysis.costs.get(name, [])
        if analysis.is_vector[name]:
            slowest = max(estimates, key=lambda estimate: _finite(estimate.tau_int))
            cells = _result(slowest, costs)[1:]
            count = f"{len(estimates)} components"
            rows.append(doc.Row((_name(analysis, name), count, *cells), shown=doc.PAGE))
            for index, estimate in enumerate(estimates):
                own = costs[index : index + 1] if len(costs) == len(estimates) else []
                label = quantity_text(f"{name}[{index}]")
                rows.append(doc.Row((label, *_result(estimate, own)), shown=doc.TEXT))
        else:
            rows.append(doc.Row((_name(analysis, name), *_result(estimates[0], costs))))
    header = (
        "observable",
        "mean",
        doc.Column("tau_int", unit="measurements"),
        "samples",
        doc.Column("independent samples", shown=doc.PAGE),
        doc.Column("time per independent sample", short="per independent"),
    )
    return doc.Section("Results", (table(header, rows),))


def _result(estimate: Estimate, costs: Sequence[Cost]) -> tuple[doc.Value, ...]:
    """Return mean, tau_int, samples and what an independent one costs, the mean of the costs."""
    cost = average(costs) if costs else None
    return (
        mean_of(estimate),
        tau_int_of(estimate),
        doc.Value(estimate.samples),
        independent_of(estimate),
        doc.Value(None) if cost is None else seconds(cost.seconds, is_bound=cost.is_bound),
    )


def _name(analysis: Analysis, observable: str) -> doc.Name:
    return doc.Name(observable, analysis.run.title(observable))


def _observable(analysis: Analysis, name: str) -> doc.Section:
    run, estimates = analysis.run, analysis.observables[name][0]
    title, hops = run.title(name), estimates[0].hops
    description = f"History of {name}"
    if not analysis.is_vector[name]:
        aside: tuple[doc.Inline, ...] = (mean_of(estimates[0]),)
        if hops is not None:
            aside += ((doc.Value(hops), f" change{'' if hops == 1 else 's'} of Q"),)
        figure = doc.Figure(lambda: _history(analysis, name), description)
        return doc.Section(title, (figure,), aside, shown=doc.PAGE)
    names = component_names(name, len(estimates))
    figure = doc.Figure(
        lambda: plots.chain.vector_plot(title, names, estimates, run.measure_every), description
    )
    rows = (
        (one, mean_of(estimate), tau_int_of(estimate), independent_of(estimate))
        for one, estimate in zip(names, estimates, strict=True)
    )
    tau_int = doc.Column("tau_int", unit="measurements")
    components = table(("component", "mean", tau_int, "independent samples"), rows)
    return doc.Section(
        title, (figure, doc.Details("All components", (components,))), shown=doc.PAGE
    )


def _history(analysis: Analysis, name: str) -> Drawing:
    run, estimate = analysis.run, analysis.observables[name][0][0]
    before, production = analysis.series[name]
    thermalization = production[:0] if before is None else before
    draw = (
        plots.chain.history_plot if estimate.hops is None else plots.chain.topological_charge_plot
    )
    updates = run.thermalization.updates
    return draw(
        # The charge has its full name in the heading; with its flow time it is too long here.
        run.title(name).removeprefix("Topological charge "),
        (run.production.updates - run.offset, production[:, :, 0]),
        (updates - (updates[-1] if len(updates) else 0), thermalization[:, :, 0]),
        estimate,
        run.measure_every,
    )


def _kernels(analysis: Analysis) -> doc.Section:
    run, shares = analysis.run, analysis.time_shares()
    rows = []
    for name, entry in analysis.kernels.items():
        time, calls = entry["seconds"], entry["calls"]
        acceptance, error = entry["acceptance"], entry["acceptance_error"]
        is_timed = time is not None and bool(calls)
        cells = (
            _kernel(run, name),
            doc.Value(acceptance, math.nan if error is None else error),
            None if calls is None else doc.Value(int(calls)),
            None if time is None else seconds(time),
            seconds(time / calls) if is_timed else None,
            doc.Value(shares[name], form=".0%") if name in shares else None,
            _diagnostics(entry),
        )
        is_part = name in run.reports and run.reports[name].update != name
        rows.append(doc.Row(cells, is_part))
    if "rest" in shares:
        rest = doc.Value(shares["rest"], form=".0%")
        empty = (None,) * 4
        last = doc.Row(("measurements, files and start", *empty, rest, ""), True, doc.PAGE)
        rows.append(last)
    header = (
        "kernel",
        "acceptance",
        "calls",
        "time",
        doc.Column("per call", shown=doc.PAGE),
        doc.Column("share", kind="share", shown=doc.PAGE),
        doc.Column("diagnostics", short="", kind="words"),
    )
    figures = [
        figure for name in run.production.kernels for figure in _kernel_figures(analysis, name)
    ]
    return doc.Section("Kernels", (table(header, rows), *figures))


def _diagnostics(entry: Mapping[str, Any]) -> doc.Inline:
    """Return what a kernel reports, separated by commas."""
    found: list[doc.Inline] = [
        (f"{one['title']} = ", _reported(one))
        for one in entry["values"].values()
        if one["value"] is not None
    ]
    if "ess" in entry:
        found.append(("ESS = ", doc.Value(entry["ess"], entry["ess_error"])))
        found.append(("largest weight ", doc.Value(entry["max_weight_share"], form=".2%")))
    if entry.get("longest_rejection_run") is not None:
        found.append(("longest rejection ", doc.Value(entry["longest_rejection_run"])))
    if "step_size" in entry:
        found.append(step_size_text(entry["step_size"]))
    if entry.get("non_finite"):
        text = f"{entry['non_finite']} not finite"
        found.append(doc.Verdict(False, text, text))
    return tuple(part for one in found for part in (", ", one))[1:]


def _reported(one: Mapping[str, Any]) -> doc.Value:
    value, error, unit = one["value"], one["error"], one["unit"]
    if one["reduction"] in ("mean", "last"):
        return doc.Value(value, math.nan if error is None else error, unit=unit)
    return doc.Value(value, form=",.10g" if one["reduction"] == "sum" else ".2g", unit=unit)


def _kernel_figures(analysis: Analysis, name: str) -> list[doc.Figure]:
    run = analysis.run
    values, title = run.production.kernels[name], kernel_title(name, run)
    if "accepted" not in values or "tried" not in values:
        return []
    updates = run.production.updates - run.offset
    counts = values["accepted"], values["tried"]
    # Of a ladder the target's kernel is drawn; the others are in the table.
    if "energy_error" in values and not run.reports[name].replica:
        return [
            doc.Figure(
                lambda: plots.chain.energy_error_plot(
                    title, updates, values["energy_error"], *counts
                ),
                f"Energy errors of {title}",
            )
        ]
    if "log_weights" in values:
        return [
            doc.Figure(
                lambda: plots.chain.weights_plot(
                    title, updates, values["log_weights"], values.get("log_weight"), *counts
                ),
                f"Log-weights of {title}",
            )
        ]
    return []


def _payoff(analysis: Analysis) -> doc.Section:
    payoff, numbers = payoff_of(analysis), None
    if payoff.hmc_share is not None and payoff.verdict != "hmc alone":
        rows = (
            (
                _name(analysis, one.observable),
                seconds(one.seconds, one.seconds_error, one.is_bound),
                doc.Value(one.tau_int, one.tau_int_error, bound=lower_if(one.is_bound)),
            )
            for one in payoff.demands
        )
        tau_int = doc.Column("tau_int of HMC alone, above which they pay", unit="measurements")
        header = ("observable", "time per independent sample, all kernels", tau_int)
        numbers = table(header, rows, doc.PAGE)
    return payoff_section(payoff.answer, payoff.next, numbers)


def _cost(analysis: Analysis) -> list[doc.Section]:
    training = analysis.run.training_seconds()
    if not analysis.costs or not training:
        return []
    rows = (
        (
            _name(analysis, name),
            seconds(cost.seconds),
            seconds(cost.seconds_with_training),
            doc.Value(cost.independent_samples, form=",.0f"),
        )
        for name, cost in ((name, average(costs)) for name, costs in analysis.costs.items())
    )
    header = (
        "observable",
        "without training",
        doc.Column("training amortised over this run", short="amortised over this run"),
        doc.Column("independent samples", shown=doc.PAGE),
    )
    took = ("Training of the flows took ", seconds(training), ". Per independent sample:")
    what = "For the break-even number give a run without the flow first: flowmc report A B"
    parts = (doc.Paragraph(took), table(header, rows), doc.Paragraph(what))
    return [doc.Section("Cost of an independent sample", parts)]


def _checks(analysis: Analysis) -> doc.Section:
    """Return all checks with their numbers: those that passed are worth knowing too."""
    checks = checks_of(analysis)
    rows = (
        (
            (_subject(analysis, one.subject), f": {one.what}"),
            one.value,
            one.limit,
            doc.Verdict(one.passed, *(("passed", "") if one.passed else ("see above", "!"))),
        )
        for one in checks
    )
    header = ("check", "number", "limit", doc.Column("verdict", short="", kind="words"))
    title = f"{sum(one.passed for one in checks)} of {len(checks)} checks passed"
    return doc.Section(title, (table(header, rows),), is_titled=True)


def _subject(analysis: Analysis, name: str) -> doc.Name:
    """Return how an observable or a kernel is called."""
    if name in analysis.observables:
        return _name(analysis, name)
    return _kernel(analysis.run, name)


def _kernel(run: RecordedRun, name: str) -> doc.Name:
    report, title = run.reports.get(name), kernel_title(name, run)
    # A pair is called by its couplings.
    return doc.Name(
        name, title if report is not None and report.pair is not None else capital(title)
    )


def _sources(analysis: Analysis) -> doc.Section:
    run = analysis.run
    parts: list[doc.Part] = []
    if run.config_text:
        parts.append(closed_code("Configuration", run.config_text.strip()))
    if run.provenance:
        text = json.dumps(run.provenance, indent=2, ensure_ascii=False)
        parts.append(closed_code("Provenance", text))
    parts.append(note(_METHOD))
    return doc.Section("Where it comes from", tuple(parts), shown=doc.PAGE)


def _finite(value: float) -> float:
    return value if math.isfinite(value) else -math.inf
