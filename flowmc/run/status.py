"""``flowmc status``: how far runs are, from their checkpoints; for people and for batch scripts."""

from __future__ import annotations

import argparse
import json
import tomllib
from pathlib import Path
from typing import Any

import h5py

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
        if entry["finished"]:
            text += ", finished"
        elif entry["reason"]:
            text += f", last stopped by: {entry['reason']}"
        print(text)
    return 0 if all(entry["finished"] for entry in found) else 1


def status_of(directory: str | Path) -> dict[str, Any]:
    """Return ``{path, update, total, finished, reason}`` of a run directory.

    ``update`` is that of the last checkpoint, thermalization included; ``reason`` why the last
    invocation that ended by itself did so, or None.  Nothing depends on the clock: two answers that
    are equal mean that nothing was gained in between.

    Raises:
        ConfigError: it is not a run directory, or damaged.
    """
    path = Path(directory)
    try:
        with h5py.File(path / "checkpoint.h5", "r", locking=False) as file:
            update = int(file.attrs["update"])
        table = tomllib.loads((path / "config.toml").read_text(encoding="utf-8"))["run"]
        total = int(table["thermalization"]) + int(table["updates"])
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"{path} is not a run directory with a checkpoint ({error}): give the --output of "
            "flowmc run"
        ) from error
    return {
        "path": str(path),
        "update": update,
        "total": total,
        "finished": update >= total,
        "reason": _reason(path / "log.jsonl"),
    }


def _reason(log: Path) -> str | None:
    reason = None
    try:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") == "stop":
            reason = event.get("reason")
    return reason
