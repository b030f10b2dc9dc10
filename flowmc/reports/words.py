"""Numbers and names in words: durations, values with errors, kernels and their parts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any

from flowmc.chains.storage.recorded import RecordedRun
from flowmc.estimators.autocorrelation import format_value
from flowmc.registry import built_in_title
from flowmc.reports.document import Value

__all__ = [
    "capital",
    "component_names",
    "count_text",
    "duration",
    "duration_text",
    "kernel_title",
    "ordinal_text",
    "plain",
    "quantity_text",
    "rounded",
    "sentence",
    "step_size_text",
    "theory_text",
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


def rounded(value: Value, thousands: str = ",") -> str:
    """Return the digits of a number with its error and unit; nothing if it is not known."""
    number, error = value.number, value.error
    if number is None or math.isnan(number):
        return ""
    if value.unit == "s":
        return duration(number) if error is None else duration_text(number, error)
    if error is not None:
        text = format_value(number, error)
    elif value.form:
        text = format(number, value.form)
    else:
        text = f"{number:{thousands}d}" if isinstance(number, Integral) else f"{number:.3g}"
    return f"{text} {value.unit}" if value.unit else text


def plain(text: str) -> str:
    """Return words without the braces of subscripts: ``t_{0}`` as ``t_0``."""
    return re.sub(r"_\{([^{}]*)\}", r"_\1", text)


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


def value_text(value: float | None, error: float | None) -> str:
    """Return a value with its error, a dash for nothing."""
    if value is None:
        return "-"
    return format_value(value, math.nan if error is None else error)


def count_text(number: int, noun: str) -> str:
    """Return ``"1 chain"``, ``"2 chains"``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def ordinal_text(number: int) -> str:
    """Return ``"update"`` or ``"5 updates"``, after "every"."""
    return "update" if number == 1 else f"{number} updates"


def theory_text(table: Mapping[str, Any], title: str = "") -> str:
    """Return a ``[theory]`` table in words.

    Args:
        table: as in a configuration.
        title: of the action, if it is not built in.
    """
    words = []
    action = str(table.get("action", ""))
    if "group" in table:
        words.append(str(table["group"]))
    if action:
        words.append(title or built_in_title("actions", action) or action)
    if isinstance(table.get("lattice"), list):
        words.append("on " + " × ".join(str(extent) for extent in table["lattice"]))
    rest = [
        f"{key} = {value}"
        for key, value in table.items()
        if key not in ("action", "group", "lattice")
    ]
    return " ".join(words) + (", " + ", ".join(rest) if rest else "")


def sentence(text: str) -> str:
    """Return a text that ends with a full stop."""
    return text if text.endswith(".") else f"{text}."


def capital(text: str) -> str:
    """Return a text that begins with a capital letter."""
    return text[:1].upper() + text[1:]
