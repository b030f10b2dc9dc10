"""Results of ``flowmc correlate`` as text, JSON and files."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowmc_adapters import atomic_write

from flowmc.correlate.combined import MeasuredEnsemble
from flowmc.correlate.directory import CorrelateDirectory
from flowmc.correlate.measurement import Entry, Section, Series
from flowmc.estimators.history import Result
from flowmc.estimators.reweighting import WeightVerdict
from flowmc.reports.analysis.correlate_payoff import payoff_of_sections
from flowmc.reports.as_text import quantity_text, table
from flowmc.reports.exports import result_dict, write_csv, write_hdf5, write_pyerrors

__all__ = [
    "AGAINST",
    "combined_facts",
    "document",
    "facts_of",
    "marked",
    "results_text",
    "warnings_of",
    "write_results",
]

# Columns of the table: key of Entry.against, heading.
AGAINST = (
    ("rho", "rho"),
    ("gain_independent", "gain vs two ensembles"),
    ("gain_reweighting", "gain vs reweighting"),
    ("combined", "all combined"),
    ("difference", "own - combined"),
)


def facts_of(series: Series) -> dict[str, Any]:
    """Return what there is to say about one ensemble."""
    return {
        "configurations": len(series.history),
        "replicas": {name: len(n) for name, n in series.history.numbers.items()},
        "spacing": series.history.spacing,
    }


def combined_facts(ensembles: Sequence[MeasuredEnsemble]) -> dict[str, Any]:
    """Return what there is to say about several ensembles."""
    return {
        "configurations": sum(len(one.series.history) for one in ensembles),
        "ensembles": {one.label: facts_of(one.series) for one in ensembles},
    }


def document(facts: Mapping[str, Any], sections: Sequence[Section]) -> dict[str, Any]:
    """Return what ``--json`` prints; see docs/correlate.md."""
    return {
        **facts,
        "sections": {section.label: _section(section) for section in sections},
        "pays": payoff_of_sections(sections),
    }


def results_text(sections: Sequence[Section]) -> str:
    """Return the tables that are printed."""
    blocks = []
    for section in sections:
        lines = [section.title, *(f"  {text}" for text in section.notes)]
        for name, verdict in section.weights.items():
            lines.append(f"  weights at {name}: {_weights_text(verdict)}")
        columns = [
            (key, heading)
            for key, heading in AGAINST
            if any(key in entry.against for entry in section.entries)
        ]
        header = ["quantity", "value", "tau_int", *(heading for _, heading in columns)]
        rows = [
            [
                quantity_text(entry.observable),
                marked(entry.result),
                f"{entry.result.tau_int:.3g}" if math.isfinite(entry.result.tau_int) else "-",
                *(
                    marked(entry.against[key]) if key in entry.against else "-"
                    for key, _ in columns
                ),
            ]
            for entry in section.entries
        ]
        if rows:
            lines += [f"  {line}" for line in table(header, rows)]
        lines += [f"  warning: {text}" for text in warnings_of(section)]
        blocks.append("\n".join(lines))
    pays = payoff_of_sections(sections)
    lines = ["Does it pay?", *pays["answer"], *(f"next: {text}" for text in pays["next"])]
    return "\n\n".join([*blocks, "\n".join(lines)])


def marked(result: Result) -> str:
    """Return ``0.31498(72)``, with an exclamation mark if the error is a lower bound only."""
    return f"{result}!" if result.is_bound else str(result)


def warnings_of(section: Section) -> list[str]:
    """Return all different warnings of a section, each with the quantities it is about."""
    about: dict[str, list[str]] = {}
    for entry in section.entries:
        for text in entry.result.warnings:
            about.setdefault(text, []).append(entry.observable)
    found = list(section.warnings)
    for name, verdict in section.weights.items():
        found += [f"weights at {name}: {text}" for text in verdict.warnings]
    known = {text for verdict in section.weights.values() for text in verdict.warnings}
    known.update(section.warnings)
    for text, names in about.items():
        if not any(text.endswith(one) for one in known):
            several = len(names) > 3
            shown = ", ".join(map(quantity_text, names[:3]))
            found.append(f"{shown}{', ...' if several else ''}: {text}")
    return found


def write_results(
    directory: CorrelateDirectory,
    facts: Mapping[str, Any],
    names: str | Sequence[str],
    sections: Sequence[Section],
) -> None:
    """Write ``summary.json``, ``results.json.gz``, ``results.csv`` and ``results.h5``.

    Args:
        directory: where.
        facts: about the ensembles.
        names: of the ensemble, or of all.
        sections: the results.

    Raises:
        OSError: as from writing.
    """
    results = list(_named(sections))
    with atomic_write(directory.summary) as file:
        file.write((json.dumps(document(facts, sections), indent=2) + "\n").encode())
    description = {"what": "flowmc correlate", "ensemble": names}
    write_pyerrors(directory.results, results, description)
    write_csv(directory.table, results)
    write_hdf5(directory.path / "results.h5", results)


def _named(sections: Sequence[Section]) -> Iterator[Result]:
    """Yield all results under unique names: the section, then the quantity."""
    for section in sections:
        for entry in section.entries:
            name = f"{section.label}: {entry.observable}"
            yield dataclasses.replace(entry.result, name=name)
            for key, result in entry.against.items():
                yield dataclasses.replace(result, name=f"{name}: {key}")


def _section(section: Section) -> dict[str, Any]:
    return {
        "title": section.title,
        "results": {entry.observable: _entry(entry) for entry in section.entries},
        "weights": {name: _verdict(verdict) for name, verdict in section.weights.items()},
        "details": _plain(section.details),
        "warnings": warnings_of(section),
        "notes": list(section.notes),
    }


def _entry(entry: Entry) -> dict[str, Any]:
    against = {name: result_dict(result) for name, result in entry.against.items()}
    return {**result_dict(entry.result), **against}


def _verdict(verdict: WeightVerdict) -> dict[str, Any]:
    return {**_plain(dataclasses.asdict(verdict)), "text": str(verdict)}


def _weights_text(verdict: WeightVerdict) -> str:
    tail = f", Pareto k {verdict.pareto_k:.2f}" if math.isfinite(verdict.pareto_k) else ""
    return (
        f"ESS {verdict.ess:.3f}({verdict.ess_error:.3f}), largest share {verdict.max_share:.2%}"
        f"{tail}; " + ("sound" if not verdict.warnings else "do not trust them")
    )


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
