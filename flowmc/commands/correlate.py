"""``flowmc correlate``: what an ensemble says about theories nearby."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowmc.config.tables import read_tables
from flowmc.correlate.combine_config import read_combine_config
from flowmc.correlate.combine_sections import combined_sections
from flowmc.correlate.combine_session import CombineSession
from flowmc.correlate.combined import Combination
from flowmc.correlate.config import read_correlate_config
from flowmc.correlate.directory import CorrelateDirectory
from flowmc.correlate.quantities import Derived
from flowmc.correlate.session import Session
from flowmc.messages import say
from flowmc.reports.as_html import write_html
from flowmc.reports.as_text import as_text
from flowmc.reports.combine import combined_document
from flowmc.reports.correlate import correlate_document
from flowmc.reports.correlate_results import (
    combined_facts,
    correlate_json,
    facts_of,
    write_results,
)
from flowmc.reports.document import Document

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Measure and analyse; return the exit status.

    Raises:
        ConfigError, FormatError, OSError: unusable input, or files that cannot be written.
    """
    path = Path(args.config)
    tables = read_tables(path, args.settings)
    directory = CorrelateDirectory(Path(args.output) if args.output else Path("runs") / path.stem)
    several = isinstance(tables.get("ensemble"), list)
    try:
        results = _combine if several else _correlate
        found, document = results(tables, path.parent, directory, args.resume)
    finally:
        directory.release()
    print(json.dumps(found) if args.json else as_text(document))
    _say(f"results are in {directory.path}")
    return 0


def _correlate(
    tables: Mapping[str, Any], base: Path, directory: CorrelateDirectory, resume: bool
) -> tuple[dict[str, Any], Document]:
    """Measure and analyse one ensemble; return what is printed for machines and for people."""
    config = read_correlate_config(tables, base)
    session = Session(config, directory, resume=resume, say=_say)
    series = session.measure()
    sections = session.analyse(series)
    document = correlate_document(directory.path.resolve().name, config, series, sections)
    found = correlate_json(facts_of(series), sections, document)
    write_results(directory, found, series.history.ensemble, sections)
    if config.analysis.report:
        write_html(document, directory.report)
    return found, document


def _combine(
    tables: Mapping[str, Any], base: Path, directory: CorrelateDirectory, resume: bool
) -> tuple[dict[str, Any], Document]:
    """Measure and analyse several ensembles; return the same about them."""
    config = read_combine_config(tables, base)
    session = CombineSession(config, directory, resume=resume, say=_say)
    ensembles = session.measure()
    labels = [one.label for one in config.theories]
    derived = Derived.of(config.observables, config.analysis.times_of_masses)
    combination = Combination(ensembles, labels, derived)
    sections = combined_sections(combination)
    document = combined_document(directory.path.resolve().name, config, combination, sections)
    found = correlate_json(combined_facts(ensembles), sections, document)
    names = [one.series.history.ensemble for one in ensembles]
    write_results(directory, found, names, sections)
    if config.analysis.report:
        write_html(document, directory.report)
    return found, document


def _say(text: str) -> None:
    say(text)
