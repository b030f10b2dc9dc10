"""The report as it is printed in a terminal: plain tables, numbers as ``0.31498(72)``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from flowmc.estimators.autocorrelation import format_value
from flowmc.estimators.cost import average
from flowmc.reports.analysis.checks import checks_of
from flowmc.reports.analysis.flow_summary import FlowSummary
from flowmc.reports.analysis.payoff import payoff_of
from flowmc.reports.analysis.summary import Analysis
from flowmc.reports.as_text import (
    acceptance_text,
    bounded,
    count_text,
    duration,
    number_text,
    ordinal_text,
    quantity_text,
    reported_text,
    step_size_text,
    table,
    value_text,
)
from flowmc.reports.ladder_text import ladder_text

__all__ = ["comparison_text", "report_text"]


def report_text(analysis: Analysis) -> str:
    """Return the report as it is printed in a terminal."""
    record = analysis.run
    lines = [
        f"{record.path}: {record.updates} updates of {count_text(record.chains, 'chain')}"
        + (f", {record.replicas} replicas" if record.replicas > 1 else "")
        + f", measured every {ordinal_text(record.measure_every)}"
        + (f", without the first {record.discarded} updates" if record.discarded else "")
    ]
    if analysis.warnings:
        lines += ["", *(f"! {warning}" for warning in analysis.warnings)]
    rows = []
    for name, replicas in analysis.observables.items():
        for index, estimate in enumerate(replicas[0]):
            label = quantity_text(f"{name}[{index}]") if analysis.is_vector[name] else name
            costs = analysis.costs.get(name, [])
            seconds = costs[index].seconds if len(costs) == len(replicas[0]) else math.nan
            rows.append(
                [
                    label,
                    str(estimate),
                    bounded(estimate, format_value(estimate.tau_int, estimate.tau_int_error)),
                    str(estimate.samples),
                    (">= " if estimate.is_bound and math.isfinite(seconds) else "")
                    + duration(seconds),
                ]
            )
    lines += ["", *table(["observable", "mean", "tau_int", "samples", "per independent"], rows)]
    rows = [
        [
            name,
            acceptance_text(entry),
            number_text(entry.get("calls"), "{:.0f}"),
            duration(entry.get("seconds")),
            _extra(entry),
        ]
        for name, entry in analysis.kernels.items()
    ]
    lines += ["", *table(["kernel", "acceptance", "calls", "time", ""], rows)]
    for name, flow in analysis.flows.items():
        lines += ["", *_flow(name, flow)]
    if analysis.exchange is not None:
        lines += ["", *ladder_text(analysis)]
    checks = checks_of(analysis)
    lines += ["", f"{sum(check.passed for check in checks)} of {len(checks)} checks passed"]
    rows = [
        [f"{check.subject}: {check.what}", check.value, check.limit, "" if check.passed else "!"]
        for check in checks
    ]
    lines += table(["check", "number", "limit", ""], rows)
    payoff = payoff_of(analysis)
    lines += ["", "Does it pay?", *payoff.answer]
    lines += [f"next: {text}" for text in payoff.next]
    training = record.training_seconds()
    if training and analysis.costs:
        lines += [
            "",
            f"Training of the flows took {duration(training)}. Per independent sample:",
        ]
        rows = []
        for name, costs in analysis.costs.items():
            cost = average(costs)
            rows.append([name, duration(cost.seconds), duration(cost.seconds_with_training)])
        lines += table(["observable", "without training", "amortised over this run"], rows)
        lines.append(
            "For the break-even number give a run without the flow first: flowmc report A B"
        )
    return "\n".join(lines)


def _flow(name: str, flow: FlowSummary) -> list[str]:
    """Return scales, or the energies where the theory has none."""
    if not flow.scales:
        last = [f"{key}: {estimates[-1]}" for key, estimates in flow.energies.items()]
        return [f"{name}: t^2 E at t = {flow.flow_times[-1]:g}: {', '.join(last)}"]
    rows = []
    for label, unit in (("t0", "t0/a^2"), ("w0", "w0/a")):
        estimates = [flow.scales[definition][label][0] for definition in flow.scales]
        rows.append([unit, *("-" if e is None else str(e) for e in estimates)])
        clover = estimates[0]
        tau = "-" if clover is None else format_value(clover.tau_int, clover.tau_int_error)
        rows[-1].append(tau if clover is None else bounded(clover, tau))
    return table([name, *flow.scales, "tau_int"], rows)


def comparison_text(document: Mapping[str, Any]) -> str:
    """Return the table of :func:`compare` as it is printed in a terminal."""
    if not document["observables"]:
        return (
            "Nothing to compare: the runs have no observable in common, or no timings in log.jsonl."
        )
    rows = []
    for name, entries in document["observables"].items():
        for index, entry in enumerate(entries):
            mark = ">= " if entry["is_lower_bound"] else ""
            row = [name, entry["path"]]
            row.append(mark + duration(entry["seconds_per_independent_sample"]))
            row.append(mark + duration(entry["with_training"]))
            if index:
                row.append(
                    _MARKS[entry["gain_bound"]] + value_text(entry["gain"], entry["gain_error"])
                )
                row.append(_break_even(entry["break_even_samples"], entry["break_even_bound"]))
                row.append(f"{entry['pull']:+.1f}")
            else:
                row += ["-", "-", "-"]
            rows.append(row)
    header = [
        "observable",
        "run",
        "per independent sample",
        "with training",
        "gain",
        "break-even",
        "pull",
    ]
    explanation = (
        "gain: how many times cheaper than the first run, without training.  break-even: "
        "independent samples that repay the training.\n"
        ">=, <=, ~: bounds, as a tau_int is one.  Of vectors: the mean of the components.\n"
        "pull: difference of the means from the first run in standard deviations."
    )
    warnings = [f"! {text}" for text in document["warnings"]]
    sentences = ["", "Does it pay?", *document["pays"]]
    return "\n".join([*warnings, *table(header, rows), explanation, *sentences])


# Before a number that is a bound; of two costs that are, nothing is known about their ratio.
_MARKS = {"none": "", "lower": ">= ", "upper": "<= ", "unknown": "~ "}


def _extra(entry: Mapping[str, Any]) -> str:
    parts = reported_text(entry["values"])
    if "ess" in entry:
        parts.append(f"ESS = {value_text(entry['ess'], entry['ess_error'])}")
    if "step_size" in entry:
        parts.append(step_size_text(entry["step_size"]))
    return ", ".join(parts)


def _break_even(samples: float, bound: str) -> str:
    if samples == 0:
        return "-"
    if math.isinf(samples):
        return "never" if bound in ("none", "lower") else "?"
    return f"{_MARKS[bound]}{samples:.3g}"
