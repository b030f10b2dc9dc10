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
from flowmc.correlate.measurement import Section
from flowmc.correlate.quantities import Derived
from flowmc.correlate.session import Session
from flowmc.messages import say
from flowmc.reports.correlate_text import (
    combined_facts,
    document,
    facts_of,
    results_text,
    write_results,
)

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
        facts, sections = results(tables, path.parent, directory, args.resume)
    finally:
        directory.release()
    print(json.dumps(document(facts, sections)) if args.json else results_text(sections))
    _say(f"results are in {directory.path}")
    return 0


def _correlate(
    tables: Mapping[str, Any], base: Path, directory: CorrelateDirectory, resume: bool
) -> tuple[dict[str, Any], list[Section]]:
    """Measure and analyse one ensemble; return facts about it and the results."""
    config = read_correlate_config(tables, base)
    session = Session(config, directory, resume=resume, say=_say)
    series = session.measure()
    sections, facts = session.analyse(series), facts_of(series)
    write_results(directory, facts, series.history.ensemble, sections)
    if config.analysis.report:
        # Plots need matplotlib, which takes a second to import.
        from flowmc.reports.correlate import write_page

        write_page(directory, config.resolved["theory"], series, sections)
    return facts, sections


def _combine(
    tables: Mapping[str, Any], base: Path, directory: CorrelateDirectory, resume: bool
) -> tuple[dict[str, Any], list[Section]]:
    """Measure and analyse several ensembles; return facts about them and the results."""
    config = read_combine_config(tables, base)
    session = CombineSession(config, directory, resume=resume, say=_say)
    ensembles = session.measure()
    labels = [one.label for one in config.theories]
    derived = Derived.of(config.observables, config.analysis.times_of_masses)
    combination = Combination(ensembles, labels, derived)
    sections, facts = combined_sections(combination), combined_facts(ensembles)
    write_results(directory, facts, [one.series.history.ensemble for one in ensembles], sections)
    if config.analysis.report:
        from flowmc.reports.combine import write_combined_page

        write_combined_page(directory, config, combination, sections)
    return facts, sections


def _say(text: str) -> None:
    say(text)
