"""Results of ``flowmc correlate`` as files, and the keys of its JSON."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from flowmc_adapters import atomic_write

from flowmc.correlate.combined import MeasuredEnsemble
from flowmc.correlate.directory import CorrelateDirectory
from flowmc.correlate.measurement import Entry, Section, Series
from flowmc.estimators.history import Result
from flowmc.reports.analysis.correlate_payoff import payoff_of_sections
from flowmc.reports.analysis.correlate_warnings import warnings_of
from flowmc.reports.as_json import as_json, strict, strict_json
from flowmc.reports.document import Document
from flowmc.reports.exports import result_dict, write_csv, write_hdf5, write_pyerrors

__all__ = ["combined_facts", "correlate_json", "facts_of", "write_results"]


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


def correlate_json(
    facts: Mapping[str, Any], sections: Sequence[Section], document: Document
) -> dict[str, Any]:
    """Return what ``--json`` prints; see docs/correlate.md."""
    found = {
        **facts,
        "sections": {section.label: _section(section) for section in sections},
        "pays": payoff_of_sections(sections),
        "page": as_json(document),
    }
    return dict(strict(found))


def write_results(
    directory: CorrelateDirectory,
    document: Mapping[str, Any],
    names: str | Sequence[str],
    sections: Sequence[Section],
) -> None:
    """Write ``summary.json``, ``results.json.gz``, ``results.csv`` and ``results.h5``.

    Args:
        directory: where.
        document: of :func:`correlate_json`.
        names: of the ensemble, or of all.
        sections: the results.

    Raises:
        OSError: as from writing.
    """
    results = list(_named(sections))
    with atomic_write(directory.summary) as file:
        file.write((strict_json(document) + "\n").encode())
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
        "weights": {
            name: {**dataclasses.asdict(verdict), "text": str(verdict)}
            for name, verdict in section.weights.items()
        },
        "details": section.details,
        "warnings": warnings_of([section]),
        "notes": list(section.notes),
    }


def _entry(entry: Entry) -> dict[str, Any]:
    against = {name: result_dict(result) for name, result in entry.against.items()}
    return {**result_dict(entry.result), **against}
