"""The output directory of ``flowmc correlate``: its files, what was asked, where it came from."""

from __future__ import annotations

import datetime
import hashlib
import json
import re
import shlex
import sys
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from flowmc_adapters import atomic_write

from flowmc.chains.storage.directory import RunDirectory, environment
from flowmc.config.entries import changed_keys
from flowmc.config.toml_text import toml_text
from flowmc.ensembles.stored import StoredEnsemble
from flowmc.registry import ConfigError

__all__ = ["CorrelateDirectory", "origin_of"]

# Keys that may differ when a measurement is taken up again; of one ensemble or of several.
_FREE = re.compile(r"analysis\..*|ensemble(\[\d+\])?\.(files|batch|device|last)")


class CorrelateDirectory(RunDirectory):
    """Paths of one output directory.

    Args:
        path: the directory.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.series = path / "series.h5"
        self.survey = path / "survey.h5"
        self.results = path / "results.json.gz"
        self.table = path / "results.csv"
        self.summary = path / "summary.json"
        self.report = path / "report.html"
        self.correlated = path / "correlated"
        self.chain = path / "chain"
        self.ensembles = path / "ensembles"

    @property
    def holds_a_run(self) -> bool:
        return any(
            path.exists()
            for path in (
                self.config,
                self.series,
                self.survey,
                self.results,
                self.chain,
                self.ensembles,
            )
        )

    def series_of(self, label: str) -> Path:
        """Return the file of what was measured on one of several ensembles."""
        return self.ensembles / f"{label}.h5"

    def check_free(self, resolved: Mapping[str, Any], *, resume: bool) -> None:
        """Refuse a directory that holds results, unless they are to be taken up and fit.

        Args:
            resolved: all tables of the configuration.
            resume: take up what is there.

        Raises:
            ConfigError: naming the key that has changed, or ``--resume``.
        """
        if not self.holds_a_run:
            return
        if not resume:
            raise ConfigError(
                f"{self.path} holds results already: take them up with --resume, or choose "
                "another --output"
            )
        try:
            old = tomllib.loads(self.config.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return  # killed before anything was measured
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.config} cannot be read: {error}") from error
        new = tomllib.loads(toml_text(resolved))
        for key, (before, after) in changed_keys(old, new).items():
            if not _FREE.fullmatch(key):
                raise ConfigError(
                    f"{key} was {before!r} when the measurements in {self.path} were begun "
                    f"and is {after!r} now: restore it to resume, or choose another --output"
                )

    def write_origin(
        self, resolved: Mapping[str, Any], device: torch.device, content: Mapping[str, Any]
    ) -> None:
        """Write ``config.toml`` and ``provenance.json``.

        Args:
            resolved: all tables of the configuration.
            device: where fields live.
            content: further entries of the provenance.
        """
        text = toml_text(resolved)
        provenance = {
            **environment(device),
            "command": shlex.join(sys.argv),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "config_sha256": hashlib.sha256(text.encode()).hexdigest(),
            **content,
        }
        for path, data in (
            (self.config, text),
            (self.provenance, json.dumps(provenance, indent=2) + "\n"),
        ):
            with atomic_write(path) as file:
                file.write(data.encode())


def origin_of(ensemble: StoredEnsemble) -> dict[str, Any]:
    """Return the entry of ``provenance.json`` about an ensemble."""
    return {
        "name": ensemble.name,
        "replicas": {
            name: {
                "configurations": len(numbers),
                "first": int(numbers[0]),
                "last": int(numbers[-1]),
            }
            for name, numbers in ensemble.history.numbers.items()
        },
        "folders": sorted({str(Path(one.path).parent) for one in ensemble.members}),
    }
