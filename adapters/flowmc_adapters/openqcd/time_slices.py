"""Whole time slices in memory, for formats whose order of sites scatters a block of planes over the
time slice: `SliceCache` for reading, `SliceAssembly` for writing."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np

from ..checksums import RawBytes
from ..layout import Layout
from ..storage import Storage

# Slices that are smaller than this together are kept, however many they are.
_KEPT_BYTES = 2**25


class SliceCache:
    """The time slices of a file that were used last, as raw bytes; for several threads at once.

    Links are read in the order of time, so every byte is read once as long as the slices in use fit
    in, but for the first slices, which periodicity asks for again at the end.

    Args:
        storage: the open file.
        layout: its links, of which only offset and sizes count.
        most: slices kept, or more if they are small; one that is still being worked on lives a
            little longer.
    """

    def __init__(self, storage: Storage, layout: Layout, most: int) -> None:
        self._storage, self._offset = storage, layout.offset
        self._bytes = layout.total_bytes // layout.dims[-1]
        self._most = max(most, _KEPT_BYTES // self._bytes)
        self._lock = threading.Lock()
        self._slices: OrderedDict[int, _Slice] = OrderedDict()

    def first_byte(self, t: int) -> int:
        """Where slice t begins."""
        return self._offset + t * self._bytes

    def get(self, t: int) -> RawBytes:
        """The bytes of slice t, not to be changed.

        Raises:
            FormatError: the file ends early.
        """
        with self._lock:
            found = self._slices.pop(t, None) or _Slice()
            self._slices[t] = found
            if len(self._slices) > self._most:
                self._slices.popitem(last=False)
        # Only those wait for a slice who want that one
        with found.lock:
            if found.raw is None:
                raw: RawBytes = np.empty(self._bytes, dtype=np.uint8)
                self._storage.read(self.first_byte(t), raw)
                found.raw = raw
            return found.raw


class _Slice:
    """A slice that is there or on its way."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.raw: RawBytes | None = None


class SliceAssembly:
    """Time slices that are filled from several sides and written to the file once complete.

    Args:
        storage: the open file.
        layout: its links, of which only offset and sizes count.

    Attributes:
        slices: those that are to be written.
    """

    def __init__(self, storage: Storage, layout: Layout) -> None:
        self._storage, self._offset = storage, layout.offset
        self._bytes = layout.total_bytes // layout.dims[-1]
        self._lock = threading.Lock()
        self._open: dict[int, tuple[RawBytes, int]] = {}
        self._spare: list[RawBytes] = []
        self._written: set[int] = set()
        self.slices = range(layout.dims[-1])

    def buffer(self, t: int) -> RawBytes:
        """The bytes of slice t, to be filled; several threads may fill different parts."""
        with self._lock:
            if t not in self._open:
                # Memory that was used before is already there
                spare = self._spare.pop() if self._spare else None
                raw = np.empty(self._bytes, dtype=np.uint8) if spare is None else spare
                self._open[t] = (raw, self._bytes)
            return self._open[t][0]

    def filled(self, t: int, count: int) -> None:
        """Another `count` bytes of slice t are there; the last ones send it to the file."""
        with self._lock:
            raw, rest = self._open[t]
            rest -= count
            if rest > 0:
                self._open[t] = (raw, rest)
                return
            del self._open[t]
            self._written.add(t)
        self._storage.write(self._offset + t * self._bytes, raw)
        with self._lock:
            self._spare.append(raw)

    def finish(self) -> None:
        """Raise RuntimeError unless the slices were completed, and once only."""
        missing = [t for t in self.slices if t not in self._written or t in self._open]
        if missing:
            raise RuntimeError(f"time slices {missing} were not completed")
