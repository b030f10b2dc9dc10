"""The output directory of ``flowmc correlate``: its files, what was asked, where it came from."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from flowmc.chains.storage.directory import RunDirectory
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

    @property
    def word(self) -> str:
        """Its name, for that of an ensemble."""
        return self.path.resolve().name.replace("|", "_")

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
        # Without one it was killed before anything was measured.
        if self.config.exists():
            begun = f"the measurements in {self.path} were begun"
            self.check_unchanged(resolved, begun, lambda key: bool(_FREE.fullmatch(key)))


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
