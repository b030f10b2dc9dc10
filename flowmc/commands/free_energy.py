"""``flowmc free-energy``: ln Z of a theory.

The directory is claimed, and gets the configuration, before anything is measured; ``summary.json``
is written last.  In between ``checkpoint.safetensors`` (:mod:`~flowmc.free_energy.progress`)
and, for the layers of an ``snf``, ``training.checkpoint.safetensors`` hold what there is.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shlex
import signal
import time
from pathlib import Path
from typing import Any

import torch

from flowmc.chains.storage.directory import RunDirectory
from flowmc.config.settings import as_words
from flowmc.durations import seconds_of
from flowmc.evaluation.density import DensityError
from flowmc.free_energy.config import FreeEnergyConfig, load_free_energy_config
from flowmc.free_energy.measure import TRAINING_CHECKPOINT, measure
from flowmc.free_energy.progress import Paused, Progress
from flowmc.jobs.interrupts import Interrupts
from flowmc.jobs.stopping import OUT_OF_TIME, Deadline
from flowmc.messages import say
from flowmc.registry import ConfigError
from flowmc.reports.as_text import as_text
from flowmc.reports.free_energy import free_energy_document, free_energy_json
from flowmc.reports.free_energy_results import write_results
from flowmc.training.loop import TrainingError

__all__ = ["run"]

# Keys that decide nothing but when a measurement stops and saves.
_FREE_KEYS = (
    "free_energy.time_limit",
    "free_energy.checkpoint_every",
    "training.checkpoint_every",
)


def run(args: argparse.Namespace) -> int:
    """Measure, write and print; return the exit status.

    0 when the results are written, 1 for a flow that cannot be believed; with a checkpoint from
    which the same command with --resume goes on, 124 when the time limit stopped it and 128 + n
    when signal n did.

    Raises:
        ConfigError, OSError: unusable input, or files that cannot be written.
    """
    started = time.monotonic()
    config = load_free_energy_config(args.config, args.settings)
    directory = RunDirectory(
        Path(args.output) if args.output else Path("runs") / Path(args.config).stem
    )
    directory.claim()
    try:
        with Interrupts() as interrupts:
            return _run(args, config, directory, interrupts, started)
    except (DensityError, TrainingError) as error:
        say(str(error))
        return 1
    finally:
        directory.release()


def _run(
    args: argparse.Namespace,
    config: FreeEnergyConfig,
    directory: RunDirectory,
    interrupts: Interrupts,
    started: float,
) -> int:
    path, table = directory.path, config.table
    summary = path / "summary.json"
    if args.resume:
        _check_same(directory, config)
        if summary.exists():
            return _finished(args, summary)
    elif directory.holds_a_run or summary.exists() or (path / "checkpoint.safetensors").exists():
        raise ConfigError(
            f"{path} holds a measurement already: use --resume to go on with it, or choose another "
            "--output"
        )
    limit = table.time_limit
    out_of_time = Deadline(
        None if limit is None else seconds_of(limit, "[free_energy]: time_limit"), started
    )

    def stop() -> str | None:
        if interrupts.number:
            return signal.Signals(interrupts.number).name
        return "time limit" if out_of_time() else None

    progress = Progress(
        path / "checkpoint.safetensors",
        seconds_of(table.checkpoint_every, "[free_energy]: checkpoint_every"),
        stop,
    )
    if args.resume:
        progress.load()
        if progress.seconds_before:
            say(f"resuming {path} after {progress.seconds_before:.0f} s of work")
    progress.identify("configuration", _digest(config))
    directory.write_config(config.resolved)
    try:
        outcome = measure(config, say, progress)
    except Paused as pause:
        command = ["flowmc", "free-energy", args.config]
        command += ["--output", args.output] if args.output else []
        command += ["--json"] if args.json else []
        command += as_words(args.settings)
        say(
            f"stopped with a checkpoint ({pause.reason}); continue with: "
            f"{shlex.join([*command, '--resume'])}"
        )
        return 128 + interrupts.number if interrupts.number else OUT_OF_TIME
    # What has been measured is kept in case the results cannot be written.
    progress.save()
    content = {"seed": table.seed, "flows": outcome.fingerprints}
    directory.write_provenance(config.resolved, torch.device("cpu"), content, event="finished")
    write_results(path, config, outcome)
    for name in ("checkpoint.safetensors", TRAINING_CHECKPOINT):
        (path / name).unlink(missing_ok=True)
    if args.json:
        print(json.dumps(free_energy_json(config, outcome, path.resolve().name)))
    else:
        print(as_text(free_energy_document(config, outcome, path.resolve().name)))
    say(f"results are in {path}")
    return 0


def _check_same(directory: RunDirectory, config: FreeEnergyConfig) -> None:
    """Refuse to resume as anything but what was begun.

    Raises:
        ConfigError: naming the first key that differs, or that another command was here.
    """
    foreign = (directory.measurements, directory.checkpoint, directory.ensemble)
    if any(path.exists() for path in foreign):
        raise ConfigError(f"{directory.path} is of flowmc run: choose another --output")
    if directory.config.exists():
        begun = f"the measurement in {directory.path} was begun"
        directory.check_unchanged(config.resolved, begun, lambda key: key in _FREE_KEYS)


def _finished(args: argparse.Namespace, summary: Path) -> int:
    """Print what an earlier process has found."""
    try:
        found = json.loads(summary.read_text(encoding="utf-8"))
        text = f"{found['quantity']} = {found['text']}"
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{summary} is damaged ({error}): remove it to measure again") from error
    print(json.dumps(found) if args.json else text)
    say(f"was finished already: results are in {summary.parent}")
    return 0


def _digest(config: FreeEnergyConfig) -> str:
    """Return the digest of all keys that decide what is measured."""
    tables: dict[str, Any] = json.loads(json.dumps(config.resolved))
    for key in _FREE_KEYS:
        name, _, key = key.partition(".")
        tables.get(name, {}).pop(key, None)
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()
