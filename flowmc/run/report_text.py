"""The report as it is printed in a terminal: plain tables, numbers as ``0.31498(72)``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flowmc.estimators.autocorrelation import format_value
from flowmc.run.summary import Analysis

__all__ = ["comparison_text", "duration", "report_text", "table", "value_text"]


def report_text(analysis: Analysis) -> str:
    """Return the report as it is printed in a terminal."""
    record = analysis.run
    lines = [
        f"{record.path}: {record.updates} updates of {_count(record.chains, 'chain')}"
        + (f", {record.replicas} replicas" if record.replicas > 1 else "")
        + f", measured every {_ordinal(record.measure_every)}"
    ]
    if analysis.warnings:
        lines += ["", *(f"! {warning}" for warning in analysis.warnings)]
    rows = []
    for name, replicas in analysis.observables.items():
        for index, estimate in enumerate(replicas[0]):
            label = f"{name}[{index}]" if analysis.is_vector[name] else name
            costs = analysis.costs.get(name, [])
            seconds = costs[index].seconds if len(costs) == len(replicas[0]) else math.nan
            rows.append(
                [
                    label,
                    str(estimate),
                    (">= " if estimate.is_bound else "")
                    + format_value(estimate.tau_int, estimate.tau_int_error),
                    str(estimate.samples),
                    (">= " if estimate.is_bound and math.isfinite(seconds) else "")
                    + duration(seconds),
                ]
            )
    lines += ["", *table(["observable", "mean", "tau_int", "samples", "per independent"], rows)]
    rows = [
        [
            name,
            _acceptance(entry),
            _number(entry.get("calls"), "{:.0f}"),
            duration(entry.get("seconds")),
            _extra(entry),
        ]
        for name, entry in analysis.kernels.items()
    ]
    lines += ["", *table(["kernel", "acceptance", "calls", "time", ""], rows)]
    if analysis.exchange is not None:
        rows = [
            [
                entry["name"],
                f"{record.replica_name(entry['pair'])} -> {record.replica_name(entry['pair'] + 1)}",
                _acceptance({**entry, "acceptance_error": entry["error"]}),
                _number(entry["erfc_estimate"], "{:.3f}"),
                value_text(entry["work_mean"], entry["work_mean_error"]),
            ]
            for entry in analysis.exchange["pairs"]
        ]
        lines += ["", *table(["exchange", "couplings", "acceptance", "Gaussian", "<work>"], rows)]
        lines.append(
            f"{analysis.exchange['round_trips']} round trips, "
            f"{analysis.exchange['round_trips_per_walker']:.3g} per walker"
        )
    training = record.training_seconds()
    if training and analysis.costs:
        lines += [
            "",
            f"Training of the flows took {duration(training)}. Per independent sample:",
        ]
        rows = []
        for name, costs in analysis.costs.items():
            cost = max(costs, key=lambda cost: cost.seconds)
            rows.append([name, duration(cost.seconds), duration(cost.seconds_with_training)])
        lines += table(["observable", "without training", "amortised over this run"], rows)
        lines.append(
            "For the break-even number give a run without the flow first: flowmc report A B"
        )
    return "\n".join(lines)


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
                row.append(value_text(entry["gain"], entry["gain_error"]))
                row.append(_break_even(entry["break_even_samples"]))
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
        "independent samples that repay the training.\npull: difference of the means from the "
        "first run in standard deviations."
    )
    return "\n".join([*table(header, rows), explanation])


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a plain-text table, columns aligned to the left."""
    widths = [max(len(str(cell)) for cell in column) for column in zip(header, *rows, strict=True)]
    return [
        "  ".join(str(cell).ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]


def duration(seconds: float | None) -> str:
    """Return a duration with three significant digits and the unit that suits it."""
    if seconds is None or not math.isfinite(seconds):
        return "-"
    for unit, length in (("d", 86400.0), ("h", 3600.0), ("min", 60.0)):
        if seconds >= 2 * length:
            return f"{seconds / length:.3g} {unit}"
    for unit, length in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= length or unit == "µs":
            return f"{seconds / length:.3g} {unit}"
    return "-"


def _extra(entry: Mapping[str, Any]) -> str:
    parts = []
    if "exp_minus_energy_error" in entry:
        check = entry["exp_minus_energy_error"]
        parts.append(f"<exp(-dH)> = {value_text(check['mean'], check['error'])}")
    if "ess" in entry:
        parts.append(f"ESS = {value_text(entry['ess'], entry['ess_error'])}")
    if entry.get("reversibility_violation") is not None:
        parts.append(f"reversible to {entry['reversibility_violation']:.1e}")
    if "step_size" in entry:
        sizes = ", ".join(f"{size:.3g}" for size in entry["step_size"])
        parts.append(f"step size {sizes}")
    return ", ".join(parts)


def _acceptance(entry: Mapping[str, Any]) -> str:
    return value_text(entry["acceptance"], entry["acceptance_error"])


def value_text(value: float | None, error: float | None) -> str:
    """Return a value with its error, a dash for nothing."""
    if value is None:
        return "-"
    return format_value(value, math.nan if error is None else error)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _break_even(samples: float) -> str:
    if samples == 0:
        return "-"
    return "never" if math.isinf(samples) else f"{samples:.3g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _ordinal(number: int) -> str:
    return "update" if number == 1 else f"{number} updates"
