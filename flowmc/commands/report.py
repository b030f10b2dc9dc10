"""``flowmc report``: the numbers of one run directory, or the costs of several side by side."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from flowmc.chains.storage.recorded import RecordedRun
from flowmc.estimators.cost import average, break_even, break_even_bound, gain, gain_bound
from flowmc.messages import one_line, say
from flowmc.registry import ConfigError
from flowmc.reports.analysis.comparison import comparison_sentences
from flowmc.reports.analysis.summary import Analysis, analyse_run
from flowmc.reports.analysis.training import TrainingRecord
from flowmc.reports.as_html import write_html
from flowmc.reports.as_json import as_json, strict_json
from flowmc.reports.as_text import as_text
from flowmc.reports.chain import run_document, run_json
from flowmc.reports.comparison import comparison_document, warnings_between
from flowmc.reports.document import Document
from flowmc.reports.training import training_document, training_json

__all__ = ["compare", "run", "summarise", "write_report"]


def run(args: argparse.Namespace) -> int:
    """Print the report, or the comparison of several; return the exit status.

    A page is written for a single run or training, for a comparison if ``--page`` asks for it; none
    with ``--json``.
    """
    try:
        trainings = [path for path in args.directories if TrainingRecord.belongs_to(path)]
        if trainings:
            if len(args.directories) > 1 or args.first:
                raise ConfigError(
                    f"{trainings[0]} is the file of a training, which stands alone: runs are "
                    "compared with each other, and --from is about runs"
                )
            return _training(TrainingRecord.open(trainings[0]), args)
        analyses = [
            analyse_run(RecordedRun.open(path).from_update(args.first)) for path in args.directories
        ]
    except ConfigError as error:
        say(one_line(str(error)), prefix="flowmc report: ")
        return 2
    if args.json:
        print(strict_json(run_json(analyses[0]) if len(analyses) == 1 else compare(analyses)))
        return 0
    documents = [run_document(analysis) for analysis in analyses]
    print("\n\n".join(map(as_text, documents)))
    if len(analyses) == 1:
        return _written(lambda: _write(documents[0], analyses[0], args.page))
    found = _compared(analyses)
    document = comparison_document(analyses, found)
    # What the runs say themselves stands above.
    own = replace(document, warnings=tuple(warnings_between(analyses, found)))
    print("\n" + as_text(own))
    return 0 if args.page is None else _written(lambda: write_html(document, args.page))


def _write(document: Document, analysis: Analysis, page: str | None = None) -> Path:
    """Write the page of a run, where it is asked for or into its directory."""
    if page is not None:
        return write_html(document, page)
    # Somebody else's directory, perhaps, where a planted link would lead elsewhere.
    return write_html(document, analysis.run.path / "report.html", follow=False)


def _training(record: TrainingRecord, args: argparse.Namespace) -> int:
    if args.json:
        print(strict_json(training_json(record)))
        return 0
    document = training_document(record)
    print(as_text(document))
    stem = record.path.name.removesuffix(".safetensors")
    page = args.page or record.path.with_name(f"{stem}.report.html")
    return _written(lambda: write_html(document, page))


def summarise(run_directory: str | Path) -> dict[str, Any]:
    """Return the document that ``flowmc report DIR --json`` prints; see docs/reports.md.

    Raises:
        ConfigError: if the directory is no run, or has no production measurement yet.
    """
    return run_json(analyse_run(RecordedRun.open(run_directory)))


def write_report(run_directory: str | Path) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    Raises:
        ConfigError: as :func:`summarise`.
        OSError: if the directory cannot be written.
    """
    analysis = analyse_run(RecordedRun.open(run_directory))
    return _write(run_document(analysis), analysis)


def compare(analyses: Sequence[Analysis]) -> dict[str, Any]:
    """Return the cost per independent sample of several runs, against the first of them.

    ``runs`` holds the full document of each; ``observables`` maps each observable that all runs
    measured to one entry per run: ``seconds_per_independent_sample`` and its error,
    ``with_training``, ``gain`` (how many times cheaper than the first run, without training) and
    its error, ``gain_with_training``, ``break_even_samples`` (independent samples that repay the
    training; None if never), and the pull between the means.  ``gain_bound`` and
    ``break_even_bound`` are "none", "lower", "upper" or "unknown": what the numbers are where a
    tau_int is only a bound.  ``machines`` says what each run was given, and ``warnings`` where
    that differs, as the seconds are of wall time.  ``page`` is what the page shows.
    """
    found = _compared(analyses)
    return {
        "runs": [run_json(analysis) for analysis in analyses],
        **found,
        "page": as_json(comparison_document(analyses, found)),
    }


def _compared(analyses: Sequence[Analysis]) -> dict[str, Any]:
    """Return the entries of a comparison that are not those of single runs."""
    first = analyses[0]
    names = [name for name in first.costs if all(name in other.costs for other in analyses)]
    table: dict[str, list[dict[str, Any]]] = {}
    for name in names:
        reference = average(first.costs[name])
        table[name] = []
        for analysis in analyses:
            cost = average(analysis.costs[name])
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
                    "gain_bound": gain_bound(cost, reference) if analysis is not first else "none",
                    "break_even_samples": samples,
                    "break_even_bound": break_even_bound(cost, reference),
                    "is_lower_bound": cost.is_bound,
                    "pull": _pull(first, analysis, name),
                }
            )
    return {
        "observables": table,
        "machines": [analysis.run.machine for analysis in analyses],
        "warnings": _different_machines(analyses),
        "pays": comparison_sentences([str(analysis.run.path) for analysis in analyses], table),
    }


def _different_machines(analyses: Sequence[Analysis]) -> list[str]:
    """Say in what the machines of the runs differ."""
    machines = [analysis.run.machine for analysis in analyses]
    found = []
    for key in machines[0]:
        values = [machine[key] for machine in machines]
        if len(set(values)) > 1:
            found.append(f"{key} {', '.join('unknown' if v is None else str(v) for v in values)}")
    if not found:
        return []
    return [
        f"the runs were not given the same machine ({'; '.join(found)}): wall seconds, and what "
        "follows from them, compare the machines as well"
    ]


def _written(write: Callable[[], Path]) -> int:
    """Write a page and say where it is; return the exit status."""
    try:
        page = write()
    except OSError as error:
        where = f"{error.filename} was" if error.filename else "the page was"
        say(f"{where} not written: {error.strerror or error}", prefix="flowmc report: ")
        return 2
    print(f"\nPlots: {page}")
    return 0


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
