"""``flowmc status``: how far runs are, from their checkpoints; for people and for batch scripts."""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

from flowmc.chains.storage.checkpoint import read_head
from flowmc.chains.storage.measurements import rows_missing_in
from flowmc.jobs.own_files import read_text
from flowmc.registry import ConfigError

__all__ = ["run", "status_of"]


def run(args: argparse.Namespace) -> int:
    """Print a line per run; return 0 if all have finished, 1 if not."""
    found = [status_of(path) for path in args.directories]
    if args.json:
        print(json.dumps(found, indent=2))
    for entry in [] if args.json else found:
        share = entry["update"] / entry["total"] if entry["total"] else 1.0
        text = f"{entry['path']}: {entry['update']} of {entry['total']} updates ({share:.0%})"
        if entry["missing_rows"]:
            text += (
                f", but {entry['missing_rows']} rows of measurements up to there are missing: "
                "restore the measurements.h5 that belongs to the checkpoint"
            )
        elif entry["finished"]:
            text += ", finished"
        elif entry["reason"]:
            text += f", last stopped by: {entry['reason']}"
        print(text)
    return 0 if all(entry["finished"] for entry in found) else 1


def status_of(directory: str | Path) -> dict[str, Any]:
    """Return ``{path, update, total, finished, reason, missing_rows}`` of a run directory.

    ``update`` is that of the last checkpoint, thermalization included; ``reason`` why the last
    invocation that ended by itself did so, or None; ``missing_rows`` how many measurements up to
    the checkpoint are not there, without which a run is not finished.  Nothing depends on the
    clock: two answers that are equal mean that nothing was gained in between.

    Raises:
        ConfigError: it is not a run directory, or damaged.
    """
    path = Path(directory)
    checkpoint = path / "checkpoint.h5"
    if not checkpoint.exists():
        raise ConfigError(
            f"{path} is not a run directory with a checkpoint: give the --output of flowmc run"
        )
    update = read_head(checkpoint).update
    total = _total(path / "config.toml")
    missing = rows_missing_in(path / "measurements.h5", update)
    return {
        "path": str(path),
        "update": update,
        "total": total,
        "finished": update >= total and not missing,
        "reason": _reason(path / "log.jsonl"),
        "missing_rows": missing,
    }


def _total(path: Path) -> int:
    """Return the number of updates that a configuration asks for."""
    try:
        run = tomllib.loads(read_text(path))["run"]
        counts = run["thermalization"], run["updates"]
        if not all(type(count) is int and count >= 0 for count in counts):
            raise ValueError("the numbers of updates are no numbers")
        return sum(counts)
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        text = getattr(error, "strerror", None) or error
        raise ConfigError(f"{path} cannot be read ({text}): restore it from a copy") from error


def _reason(log: Path) -> str | None:
    reason = None
    try:
        lines = read_text(log).splitlines()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ConfigError(f"{log} cannot be read: {error.strerror}") from error
    for line in lines:
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict) and event.get("event") == "stop":
            found = event.get("reason")
            reason = found if isinstance(found, str) else None
    return reason
