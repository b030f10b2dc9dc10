"""``flowmc report``: the numbers of one run directory, or the costs of several side by side."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowmc.estimators.autocorrelation import format_value
from flowmc.estimators.cost import break_even, gain
from flowmc.registry import ConfigError
from flowmc.run.recorded import RecordedRun
from flowmc.run.summary import Analysis, analyse_run

__all__ = ["add_arguments", "compare", "run", "strict_json", "summarise", "write_report"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``flowmc report`` to a parser."""
    parser.add_argument(
        "directories",
        metavar="DIR",
        nargs="+",
        help="run directory; several are compared by their cost per independent sample",
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="print one JSON document on standard output and write no report.html",
    )


def run(args: argparse.Namespace) -> int:
    """Print the report, write ``report.html`` into the directory; return the exit status."""
    try:
        analyses = [analyse_run(RecordedRun.open(path)) for path in args.directories]
    except ConfigError as error:
        print(f"flowmc report: {error}", file=sys.stderr)
        return 2
    if args.json:
        document = analyses[0].as_dict() if len(analyses) == 1 else compare(analyses)
        print(strict_json(document))
        return 0
    for analysis in analyses:
        print(text(analysis))
        page = _write_page(analysis)
        if page is not None:
            print(f"\nPlots: {page}\n")
    if len(analyses) > 1:
        print(comparison_text(compare(analyses)))
    return 0


def summarise(run_directory: str | Path) -> dict[str, Any]:
    """Return the document that ``flowmc report DIR --json`` prints; see docs/reports.md.

    Raises:
        ConfigError: if the directory is no run, or has no production measurement yet.
    """
    return analyse_run(RecordedRun.open(run_directory)).as_dict()


def write_report(run_directory: str | Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    Raises:
        ConfigError: as :func:`summarise`.
        OSError: if the directory cannot be written.
    """
    from flowmc.run.report_page import write_page

    return write_page(analyse_run(RecordedRun.open(run_directory)))


def compare(analyses: Sequence[Analysis]) -> dict[str, Any]:
    """Return the cost per independent sample of several runs, against the first of them.

    ``runs`` holds the full document of each; ``observables`` maps each observable that all runs
    measured to one entry per run: ``seconds_per_independent_sample`` and its error,
    ``with_training``, ``gain`` (how many times cheaper than the first run, without training) and
    its error, ``gain_with_training``, ``break_even_samples`` (independent samples that repay the
    training; None if never), and the pull between the means.
    """
    first = analyses[0]
    names = [name for name in first.costs if all(name in other.costs for other in analyses)]
    table: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        reference = max(first.costs[name], key=lambda cost: cost.seconds)
        table[name] = []
        for analysis in analyses:
            cost = max(analysis.costs[name], key=lambda cost: cost.seconds)
            ratio, error = gain(cost, reference)
            samples = break_even(cost.seconds, reference.seconds, analysis.run.training_seconds())
            table[name].append(
                {
                    "path": str(analysis.run.path),
                    "seconds_per_independent_sample": cost.seconds,
                    "error": cost.error,
                    "with_training": cost.seconds_with_training,
                    "gain": ratio,
                    "gain_error": error if analysis is not first else 0.0,
                    "gain_with_training": reference.seconds_with_training
                    / cost.seconds_with_training,
                    "break_even_samples": samples,
                    "is_lower_bound": cost.is_bound,
                    "pull": _pull(first, analysis, name),
                }
            )
    return {"runs": [analysis.as_dict() for analysis in analyses], "observables": table}


def strict_json(document: Any) -> str:
    """Return JSON text in which NaN and infinity, which JSON does not know, are null."""
    return json.dumps(_strict(document), indent=2, allow_nan=False)


def text(analysis: Analysis) -> str:
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
                    format_seconds(seconds),
                ]
            )
    lines += ["", *table(["observable", "mean", "tau_int", "samples", "per independent"], rows)]
    rows = [
        [
            name,
            _acceptance(entry),
            _number(entry.get("calls"), "{:.0f}"),
            format_seconds(entry.get("seconds")),
            _extra(entry),
        ]
        for name, entry in analysis.kernels.items()
    ]
    lines += ["", *table(["kernel", "acceptance", "calls", "time", ""], rows)]
    if analysis.exchange is not None:
        rows = [
            [
                entry["name"],
                " -> ".join(_coupling(value) for value in entry["couplings"] or []),
                _acceptance({**entry, "acceptance_error": entry["error"]}),
                _number(entry["erfc_estimate"], "{:.3f}"),
                _value(entry["work_mean"], entry["work_mean_error"]),
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
            f"Training of the flows took {format_seconds(training)}. Per independent sample:",
        ]
        rows = []
        for name, costs in analysis.costs.items():
            cost = max(costs, key=lambda cost: cost.seconds)
            rows.append(
                [name, format_seconds(cost.seconds), format_seconds(cost.seconds_with_training)]
            )
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
        for entry in entries:
            rows.append(
                [
                    name,
                    entry["path"],
                    (">= " if entry["is_lower_bound"] else "")
                    + format_seconds(entry["seconds_per_independent_sample"]),
                    format_seconds(entry["with_training"]),
                    _value(entry["gain"], entry["gain_error"]),
                    "never"
                    if math.isinf(entry["break_even_samples"])
                    else f"{entry['break_even_samples']:.3g}",
                    f"{entry['pull']:+.1f}",
                ]
            )
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


def format_seconds(seconds: float | None) -> str:
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


def _write_page(analysis: Analysis) -> Path | None:
    from flowmc.run.report_page import write_page

    try:
        return write_page(analysis)
    except OSError as error:
        print(f"flowmc report: report.html was not written: {error}", file=sys.stderr)
        return None


def _pull(first: Analysis, other: Analysis, name: str) -> float:
    """Return the largest pull between the means of two runs over the components."""
    if first is other:
        return 0.0
    pulls = [
        (b.mean - a.mean) / math.hypot(a.error, b.error)
        for a, b in zip(first.observables[name][0], other.observables[name][0], strict=False)
        if math.hypot(a.error, b.error) > 0
    ]
    return max(pulls, key=abs, default=math.nan)


def _strict(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _extra(entry: Mapping[str, Any]) -> str:
    parts = []
    if "exp_minus_energy_error" in entry:
        check = entry["exp_minus_energy_error"]
        parts.append(f"<exp(-dH)> = {_value(check['mean'], check['error'])}")
    if "ess" in entry:
        parts.append(f"ESS = {_value(entry['ess'], entry['ess_error'])}")
    if entry.get("reversibility_violation") is not None:
        parts.append(f"reversible to {entry['reversibility_violation']:.1e}")
    if "step_size" in entry:
        sizes = ", ".join(f"{size:.3g}" for size in entry["step_size"])
        parts.append(f"step size {sizes}")
    return ", ".join(parts)


def _acceptance(entry: Mapping[str, Any]) -> str:
    return _value(entry["acceptance"], entry["acceptance_error"])


def _value(value: float | None, error: float | None) -> str:
    if value is None:
        return "-"
    return format_value(value, math.nan if error is None else error)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)


def _coupling(value: Any) -> str:
    if isinstance(value, Mapping):
        return " ".join(f"{key}={item:g}" for key, item in value.items())
    return f"{value:g}" if isinstance(value, float) else str(value)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _ordinal(number: int) -> str:
    return "update" if number == 1 else f"{number} updates"
