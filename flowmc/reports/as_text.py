"""Pieces of reports in plain text: tables, durations, values with errors."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from flowmc.chains.storage.recorded import RecordedRun
from flowmc.estimators.autocorrelation import Estimate, format_value

__all__ = [
    "acceptance_text",
    "bounded",
    "component_names",
    "count_text",
    "duration",
    "duration_text",
    "kernel_title",
    "number_text",
    "ordinal_text",
    "quantity_text",
    "reported_text",
    "step_size_text",
    "table",
    "value_text",
]

# Observables that are complex numbers.
_COMPLEX = ("polyakov_loop",)


def component_names(observable: str, count: int) -> list[str]:
    """Return how the components of an observable are called."""
    if observable.partition("(")[0] in _COMPLEX and count == 2:
        return ["Re", "Im"]
    return [str(place) for place in range(count)]


def quantity_text(name: str) -> str:
    """Return a name such as ``"change of polyakov_loop[1]"`` with Re or Im for the number."""
    names = "|".join(_COMPLEX)
    match = re.fullmatch(rf"(.*?)((?:{names})(?:\([^)]*\))?)\[([01])\]", name)
    return name if match is None else f"{match[1]}{('Re', 'Im')[int(match[3])]} {match[2]}"


def bounded(estimate: Estimate, text: str) -> str:
    """Return a text that is marked where the estimate is a lower bound."""
    return f">= {text}" if estimate.is_bound else text


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


def duration_text(seconds: float, error: float) -> str:
    """Return a duration with its error, in the unit that suits it."""
    unit = duration(seconds).rpartition(" ")[2]
    if not math.isfinite(seconds) or not math.isfinite(error):
        return duration(seconds)
    lengths = {"d": 86400.0, "h": 3600.0, "min": 60.0, "s": 1.0, "ms": 1e-3, "µs": 1e-6}
    return f"{format_value(seconds / lengths[unit], error / lengths[unit])} {unit}"


def step_size_text(sizes: Sequence[float]) -> str:
    """Return the step sizes of a kernel at all replicas, once if they are the same."""
    texts = [f"{size:.3g}" for size in sizes]
    return "step size " + (texts[0] if len(set(texts)) == 1 else ", ".join(texts))


def kernel_title(name: str, run: RecordedRun) -> str:
    """Return how a kernel of the cycle, or its part at one replica or pair, is called."""
    report = run.reports.get(name)
    parts = run.parts_of(name)
    if report is not None and report.pair is not None:
        title = " ↔ ".join(run.replica_name(report.pair + side) for side in (0, 1))
    elif report is not None:
        title = report.title
        if report.replica is not None:
            title += f", {run.replica_name(report.replica)}"
    elif parts:
        report = run.reports[parts[0]]
        title = report.update_title
    else:
        return name.replace("_", " ")
    return title if report.number == 1 else f"{title} ({report.number})"


def reported_text(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """Return a line for every value that a kernel declares for reports."""
    return [
        f"{entry['title']} = {_reported(entry)}{' ' + entry['unit'] if entry['unit'] else ''}"
        for entry in values.values()
        if entry["value"] is not None
    ]


def _reported(entry: Mapping[str, Any]) -> str:
    if entry["reduction"] in ("mean", "last"):
        return value_text(entry["value"], entry["error"])
    return f"{entry['value']:,.10g}" if entry["reduction"] == "sum" else f"{entry['value']:.2g}"


def acceptance_text(entry: Mapping[str, Any]) -> str:
    """Return the acceptance of a kernel's entry with its error."""
    return value_text(entry["acceptance"], entry["acceptance_error"])


def value_text(value: float | None, error: float | None) -> str:
    """Return a value with its error, a dash for nothing."""
    if value is None:
        return "-"
    return format_value(value, math.nan if error is None else error)


def number_text(value: float | None, form: str) -> str:
    """Return a formatted number, a dash for nothing."""
    return "-" if value is None else form.format(value)


def count_text(number: int, noun: str) -> str:
    """Return ``"1 chain"``, ``"2 chains"``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def ordinal_text(number: int) -> str:
    """Return ``"update"`` or ``"5 updates"``, after "every"."""
    return "update" if number == 1 else f"{number} updates"
