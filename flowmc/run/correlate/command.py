"""``flowmc correlate``: what an ensemble says about theories nearby."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from flowmc.run.correlate.config import load_correlate_config
from flowmc.run.correlate.directory import CorrelateDirectory
from flowmc.run.correlate.output import document, results_text, write_results
from flowmc.run.correlate.session import Session

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``flowmc correlate``."""
    parser.add_argument("config", metavar="CONFIG.toml", help="ensemble, targets and derivatives")
    parser.add_argument(
        "--output",
        metavar="DIR",
        help="directory of the results (default: runs/<name of the file>)",
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="measure only what has not been measured yet; start if nothing has",
    )
    parser.add_argument(
        "--json", action="store_true", help="print one JSON document on standard output"
    )


def run(args: argparse.Namespace) -> int:
    """Measure and analyse; return the exit status.

    Raises:
        ConfigError, FormatError, OSError: unusable input, or files that cannot be written.
    """
    config = load_correlate_config(args.config)
    path = Path(args.output) if args.output else Path("runs") / Path(args.config).stem
    directory = CorrelateDirectory(path)
    try:
        session = Session(config, directory, resume=args.resume, say=_say)
        series = session.measure()
        sections = session.analyse(series)
        write_results(directory, series, sections)
        if config.analysis.report:
            _write_page(directory, config.resolved["theory"], series, sections)
    finally:
        directory.release()
    if args.json:
        print(json.dumps(document(series, sections)))
    else:
        print(results_text(series, sections))
    _say(f"results are in {path}")
    return 0


def _write_page(*arguments: Any) -> None:
    # Plots need matplotlib, which takes a second to import.
    from flowmc.run.correlate.page import write_page

    write_page(*arguments)


def _say(text: str) -> None:
    print(f"flowmc: {text}", file=sys.stderr, flush=True)
