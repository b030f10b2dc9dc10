"""``flowmc run``: a chain, or many, from a configuration file."""

from __future__ import annotations

import argparse
import os
import shlex
import time
import tomllib
from pathlib import Path

from flowmc.chains.config import load_config
from flowmc.chains.opening import open_run
from flowmc.chains.storage.directory import RunDirectory
from flowmc.config.entries import changed_keys
from flowmc.config.settings import as_words
from flowmc.config.tables import seconds_of
from flowmc.config.toml_text import toml_text
from flowmc.messages import say
from flowmc.parallel import Communicator, world
from flowmc.registry import ConfigError

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Run to the end or to a reason to stop; return the exit status."""
    started = time.monotonic()
    communicator = world()
    config = communicator.together(lambda: load_config(args.config, settings=args.settings))
    own = toml_text(config.resolved)
    of_root = communicator.broadcast(own)
    communicator.together(lambda: _check_same(args.config, own, of_root))
    communicator.timeout = seconds_of(config.parallel.peer_timeout, "[parallel]: peer_timeout")
    path = Path(args.output) if args.output else Path("runs") / Path(args.config).stem
    directory = RunDirectory(path)
    try:
        runner = open_run(config, directory, communicator, resume=args.resume, force=args.force)
        for text in runner.remarks():
            _say(communicator, text)
        if runner.resumed:
            _say(communicator, f"resuming {path} after update {runner.update}")
        began = runner.update
        reason = runner.go(started)
    finally:
        directory.release()
    if reason == "finished":
        _say(communicator, f"finished {runner.total} updates in {path}")
        wanted = config.run.report and config.run.updates >= config.run.measure_every
        if wanted and communicator.rank == 0:
            _report(path)
        return 0
    command = ["flowmc", "run", args.config]
    command += ["--output", args.output] if args.output else []
    command += as_words(args.settings)
    _say(
        communicator,
        f"stopped after update {runner.update} of {runner.total} ({reason}); continue "
        f"with: {shlex.join([*command, '--resume'])}",
    )
    if reason != "time limit":
        return 0
    took, done = time.monotonic() - started, runner.update - began
    assert config.run.time_limit is not None
    if took > seconds_of(config.run.time_limit, "[run]: time_limit"):
        gained = f"{done} update{'s' if done != 1 else ''} of this process"
        _say(
            communicator,
            f"time_limit = {config.run.time_limit!r} is too short: the start and {gained} took "
            f"{took:.1f} s; a batch system would have ended it without a checkpoint",
        )
    # Submitted again, such a run would never end.
    return 0 if done else 1


def _check_same(path: str, own: str, of_root: str) -> None:
    """Refuse files of one name that say different things on different nodes."""
    if own != of_root:
        keys = ", ".join(changed_keys(tomllib.loads(of_root), tomllib.loads(own)))
        raise ConfigError(
            f"{path} differs between ranks, in {keys}, on {os.uname().nodename}: give all ranks "
            "the same file"
        )


def _say(communicator: Communicator, text: str) -> None:
    if communicator.rank == 0:
        say(text)


def _report(path: Path) -> None:
    # Plots need matplotlib, which takes a second to import.
    from flowmc.commands.report import write_report

    try:
        say(f"wrote {write_report(path)}")
    except (ValueError, OSError) as error:
        # The run itself is complete and stays so.
        say(f"the run is complete, but its report failed: {error}")
