"""Rows of measurements: every rank collects its parts, rank 0 writes whole rows.

One process writes the file, since clients of a network file system that write neighbouring bytes
can undo each other's work.  Parts travel when all ranks look up from their work, not row by row.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flowmc.parallel import Communicator
from flowmc.run.diagnostics import Diagnostics, Piece
from flowmc.run.measurements import Layout, MeasurementFile

__all__ = ["Recorder"]


@dataclass(frozen=True)
class _Row:
    """A row as far as one rank has it; ``base`` are rank 0's diagnostics of all chains."""

    phase: str
    index: int
    update: int
    pieces: list[Piece]
    base: dict[str, np.ndarray]


class Recorder:
    """Collects rows and writes them.

    Args:
        communicator: of all ranks.
        measurements: the file, open on rank 0; None elsewhere.
        layout: of the file.
        diagnostics: of this rank.

    Attributes:
        accepted, tried: proposals by kernel in the rows written by this process, for display.
        latest: mean over chains of every scalar observable of the target in the latest row.
    """

    def __init__(
        self,
        communicator: Communicator,
        measurements: MeasurementFile | None,
        layout: Layout,
        diagnostics: Diagnostics,
    ) -> None:
        self._communicator, self._measurements = communicator, measurements
        self._layout, self._diagnostics = layout, diagnostics
        self._rows: list[_Row] = []
        self.accepted: dict[str, int] = {}
        self.tried: dict[str, int] = {}
        self.latest: dict[str, float] = {}

    def add(
        self,
        phase: str,
        index: int,
        update: int,
        pieces: list[Piece],
        common: Mapping[str, np.ndarray],
    ) -> None:
        """Add a row: the observables of this rank, and the diagnostics since the last row.

        Args:
            phase: "thermalization" or "production".
            index: of the row.
            update: after which it was measured.
            pieces: what this rank has measured.
            common: whole datasets that every rank knows, by path.

        Raises:
            OSError: as from writing; one rank alone writes at once.
        """
        values = self._diagnostics.row()
        if self._communicator.rank:
            pieces = pieces + [_copied(piece) for piece in self._diagnostics.pieces(values)]
            values = {}
        else:
            values = {path: value.copy() for path, value in values.items()} | dict(common)
        self._rows.append(_Row(phase, index, update, pieces, values))
        self._diagnostics.reset()
        if self._communicator.size == 1:
            self.flush()

    def flush(self) -> None:
        """Write all rows that are complete; collective.

        Raises:
            OSError: on rank 0, as from writing.
        """
        gathered = self._communicator.gather(self._rows)
        if gathered is not None:
            assert self._measurements is not None
            # Every rank has the same rows, each its parts of them.
            for parts in zip(*gathered, strict=True):
                self._write(list(parts))
        self._rows = []

    def sync(self) -> None:
        """Have all written rows on the disk."""
        if self._measurements is not None:
            self._measurements.flush()

    def pending(self) -> dict[str, np.ndarray]:
        """Return the sums of the unfinished row of all ranks, on rank 0; collective."""
        own = self._diagnostics.state()
        pieces = self._diagnostics.pieces(own) if self._communicator.rank else []
        gathered = self._communicator.gather(pieces)
        if gathered is None:
            return {}
        total = {path: value.copy() for path, value in own.items()}
        for pieces in gathered[1:]:
            for piece in pieces:
                piece.put(total)
        return total

    def close(self) -> None:
        """Close the file."""
        if self._measurements is not None:
            self._measurements.close()

    def _write(self, parts: list[_Row]) -> None:
        assert self._measurements is not None
        first = parts[0]
        row = dict(first.base)
        for path, (shape, dtype) in self._layout.columns.items():
            if path not in row and path != "updates":
                row[path] = np.full(shape, -1 if dtype == "<i8" else np.nan, dtype)
        for part in parts:
            for piece in part.pieces:
                piece.put(row)
        row["updates"] = np.asarray(first.update)
        self._measurements.write_row(first.phase, first.index, row)
        for path, values in row.items():
            name, _, key = path.removeprefix("kernels/").rpartition("/")
            if path.startswith("kernels/") and key in ("accepted", "tried"):
                totals = self.accepted if key == "accepted" else self.tried
                totals[name] = totals.get(name, 0) + int(values.sum())
            elif path.startswith("observables/") and values.ndim == 2:
                self.latest[path.removeprefix("observables/")] = float(values[:, 0].mean())


def _copied(piece: Piece) -> Piece:
    return Piece(piece.path, piece.first, piece.last, piece.replica, piece.values.copy())
