"""``flowmc run``: a chain, or many, from a configuration file."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from pathlib import Path

from flowmc.run.config import load_config
from flowmc.run.directory import RunDirectory
from flowmc.run.runner import open_run

__all__ = ["add_arguments", "run"]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of ``flowmc run``."""
    parser.add_argument("config", metavar="CONFIG.toml", help="what to run")
    parser.add_argument(
        "--output", metavar="DIR", help="run directory (default: runs/<name of the file>)"
    )
    parser.add_argument(
        "--resume",
        action="store_true",
        help="continue from the last checkpoint; start if there is none",
    )


def run(args: argparse.Namespace) -> int:
    """Run to the end or to a reason to stop; return the exit status."""
    started = time.monotonic()
    config = load_config(args.config)
    path = Path(args.output) if args.output else Path("runs") / Path(args.config).stem
    directory = RunDirectory(path)
    try:
        runner = open_run(config, directory, resume=args.resume)
        if runner.resumed:
            print(f"flowmc: resuming {path} after update {runner.update}", file=sys.stderr)
        reason = runner.go(started)
    finally:
        directory.release()
    if reason == "finished":
        print(f"flowmc: finished {runner.total} updates in {path}", file=sys.stderr)
        if config.run.report and config.run.updates >= config.run.measure_every:
            _report(path)
        return 0
    command = ["flowmc", "run", args.config]
    command += ["--output", args.output] if args.output else []
    print(
        f"flowmc: stopped after update {runner.update} of {runner.total} ({reason}); continue "
        f"with: {shlex.join([*command, '--resume'])}",
        file=sys.stderr,
    )
    return 0


def _report(path: Path) -> None:
    # Plots need matplotlib, which takes a second to import.
    from flowmc.run.report import write_report

    try:
        print(f"flowmc: wrote {write_report(path)}", file=sys.stderr)
    except (ValueError, OSError) as error:
        # The run itself is complete and stays so.
        print(f"flowmc: the run is complete, but its report failed: {error}", file=sys.stderr)
