"""``flowmc free-energy``: ln Z of a theory."""

from __future__ import annotations

import argparse
import datetime
import hashlib
import json
import shlex
import sys
from pathlib import Path
from typing import Any

import torch
from flowmc_adapters import atomic_write

from flowmc.registry import ConfigError
from flowmc.run.directory import RunDirectory, environment
from flowmc.run.evaluate import DensityError
from flowmc.run.free_energy.config import FreeEnergyConfig, load_free_energy_config
from flowmc.run.free_energy.measure import Outcome, measure
from flowmc.run.free_energy.output import document, results_text, write_results
from flowmc.run.toml_text import toml_text
from flowmc.training.loop import TrainingError

__all__ = ["run"]


def run(args: argparse.Namespace) -> int:
    """Measure, write and print; return the exit status.

    Raises:
        ConfigError, OSError: unusable input, or files that cannot be written.
    """
    config = load_free_energy_config(args.config)
    directory = RunDirectory(
        Path(args.output) if args.output else Path("runs") / Path(args.config).stem
    )
    if directory.holds_a_run or (directory.path / "summary.json").exists():
        raise ConfigError(f"{directory.path} holds results already: choose another --output")
    directory.claim()
    try:
        outcome = measure(config, _say)
        _write_provenance(directory, config, outcome)
        write_results(directory.path, config, outcome)
    except (DensityError, TrainingError) as error:
        _say(str(error))
        return 1
    finally:
        directory.release()
    if args.json:
        print(json.dumps(document(config, outcome)))
    else:
        print(results_text(outcome))
    _say(f"results are in {directory.path}")
    return 0


def _write_provenance(directory: RunDirectory, config: FreeEnergyConfig, outcome: Outcome) -> None:
    text = toml_text(config.resolved)
    content: dict[str, Any] = {
        **environment(torch.device("cpu")),
        "command": shlex.join(sys.argv),
        "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seed": config.table.seed,
        "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
        "flows": outcome.fingerprints,
    }
    for path, data in (
        (directory.config, text),
        (directory.provenance, json.dumps(content, indent=2) + "\n"),
    ):
        with atomic_write(path) as file:
            file.write(data.encode())


def _say(text: str) -> None:
    print(f"flowmc: {text}", file=sys.stderr, flush=True)
