"""Rows of measurements: every rank collects its parts, rank 0 writes whole rows.

One process writes the file, since clients of a network file system that write neighbouring bytes
can undo each other's work.  Parts leave when all ranks look up from their work, not row by row, and
are written the next time, when those of all ranks have come.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from flowmc.chains.diagnostics import Diagnostics, Piece
from flowmc.chains.storage.measurements import MeasurementFile, MeasurementLayout
from flowmc.chains.storage.rows import Packer, RowBuilder
from flowmc.parallel import Communicator, Pending

__all__ = ["Recorder"]


@dataclass(frozen=True)
class _Row:
    """What rank 0 keeps of a row beside its parts; ``common`` are whole datasets."""

    phase: str
    index: int
    update: int
    common: dict[str, np.ndarray]


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
        layout: MeasurementLayout,
        diagnostics: Diagnostics,
    ) -> None:
        self._communicator, self._measurements = communicator, measurements
        self._diagnostics = diagnostics
        self._packer, self._pending_packer = Packer(), Packer()
        self._rows: list[_Row] = []
        # What is on its way, and the rows that it is about.
        self._sent: tuple[Pending, list[_Row]] | None = None
        # Sums of all ranks that an earlier process has left for the first row.
        self._base: dict[str, np.ndarray] | None = None
        self._builder: RowBuilder | None = None
        self._pending_builder: RowBuilder | None = None
        if measurements is not None:
            empty = Diagnostics(diagnostics.reports, diagnostics.chains)
            self._builder = RowBuilder(_blank(layout, empty.row()), communicator.size)
            self._pending_builder = RowBuilder(empty.state(), communicator.size)
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
        if self._measurements is not None:
            if self._diagnostics.is_restored:
                self._base = {path: value.copy() for path, value in values.items()}
            self._rows.append(_Row(phase, index, update, dict(common)))
        self._packer.add([*pieces, *self._diagnostics.pieces(values)])
        self._diagnostics.reset()
        if self._communicator.size == 1:
            self.flush()

    def hand_in(self) -> None:
        """Send the parts of this rank on their way, and write the rows sent before; collective.

        Raises:
            OSError: on rank 0, as from writing.
        """
        self._write_sent()
        self._sent = self._communicator.start_gather_words(self._packer.take()), self._rows
        self._rows = []

    def flush(self) -> None:
        """Write all rows that are complete; collective.

        Raises:
            OSError: on rank 0, as from writing.
        """
        self.hand_in()
        self._write_sent()

    def poke(self) -> None:
        """Let messages move; called after every update."""
        if self._sent is not None:
            self._sent[0].poke()

    def _write_sent(self) -> None:
        if self._sent is None:
            return
        (sent, rows), self._sent = self._sent, None
        messages = sent.wait()
        if messages is None:
            return
        assert self._builder is not None
        built = self._builder.rows(messages, self._base)
        for row, values in zip(rows, built, strict=True):
            self._write(row, values)
        if rows:
            self._base = None

    @property
    def checksum(self) -> int:
        """CRC-32 of all rows so far, on rank 0; 0 elsewhere."""
        return 0 if self._measurements is None else self._measurements.checksum

    def sync(self) -> None:
        """Have all written rows on the disk.

        Raises:
            OSError: on rank 0, as
                :meth:`~flowmc.chains.storage.measurements.MeasurementFile.flush`.
        """
        if self._measurements is not None:
            self._measurements.flush()

    def pending(self) -> dict[str, np.ndarray]:
        """Return the sums of the unfinished row of all ranks, on rank 0; collective."""
        own = self._diagnostics.state()
        self._pending_packer.add(self._diagnostics.pieces(own))
        messages = self._communicator.gather_words(self._pending_packer.take())
        if messages is None:
            return {}
        assert self._pending_builder is not None
        (total,) = self._pending_builder.rows(messages, own)
        return total

    def close(self) -> None:
        """Close the file."""
        if self._measurements is not None:
            self._measurements.close()

    def _write(self, row: _Row, values: dict[str, np.ndarray]) -> None:
        assert self._measurements is not None
        values = {**values, **row.common, "updates": np.asarray(row.update)}
        self._measurements.write_row(row.phase, row.index, values)
        for path, value in values.items():
            name, _, key = path.removeprefix("kernels/").rpartition("/")
            if path.startswith("kernels/") and key in ("accepted", "tried"):
                totals = self.accepted if key == "accepted" else self.tried
                totals[name] = totals.get(name, 0) + int(value.sum())
            elif path.startswith("observables/") and value.ndim == 2:
                self.latest[path.removeprefix("observables/")] = float(value[:, 0].mean())


def _blank(
    layout: MeasurementLayout, diagnostics: Mapping[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Return a row to which no rank has added anything."""
    return {
        path: diagnostics.get(path, np.full(shape, -1 if dtype == "<i8" else np.nan, dtype))
        for path, (shape, dtype) in layout.columns.items()
        if path != "updates"
    }
