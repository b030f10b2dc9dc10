"""Moving links from a source to a sink, measuring on the way: the one loop behind reading, writing,
inspecting and converting.

The field passes through slab by slab, on a few threads, so memory does not grow with the lattice.
What is measured is a list of sums, one for each slab in a fixed order: results do not depend, bit
by bit, on how many threads or ranks shared the work.
"""

from __future__ import annotations

import math
import os
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .changes import Change
from .checksums import ChecksumSum
from .configuration import ComplexArray
from .errors import CheckError
from .finite import first_non_finite
from .links import LinkSink, LinkSource, Slab
from .slab_sums import SlabSums, planes_per_slab, slab_sums

Progress = Callable[[int, int], None]
"""Called with the number of slabs done and of all slabs."""

_MOST_THREADS = 4
# Below this many sites starting threads costs more than it saves.
_SERIAL_VOLUME = 2**15
# Bytes of a time slice that is kept in memory while the next one is needed beside it.
_LARGEST_SLICE_KEPT = 3 * 2**26
# Bytes from which on no thread begins a time slice before the others are done with the last one, if
# source or sink keep whole slices: those of two more would be in memory. If both keep them, what
# further threads need on top is too much.
_LARGE_SLICE = 2**24
_THREADS_FOR_TWICE_KEPT = 2


@dataclass
class Sums:
    """What came out of a transfer.

    Attributes:
        source: sums over each slab of the source, in the order of the slabs.
        sink: the same for the changed links; the same list if nothing was changed.
    """

    source: list[SlabSums]
    sink: list[SlabSums]


def slabs_of(dims: tuple[int, ...]) -> list[Slab]:
    """All slabs of a lattice, in the order of the sites."""
    step = planes_per_slab(dims)
    return [
        (t, start, min(start + step, dims[-2]))
        for t in range(dims[-1])
        for start in range(0, dims[-2], step)
    ]


def transfer(
    source: LinkSource,
    sink: LinkSink | None = None,
    *,
    source_checksum: ChecksumSum | None = None,
    sink_checksum: ChecksumSum | None = None,
    change: Change | None = None,
    measure: bool = True,
    slabs: Sequence[Slab] | None = None,
    threads: int | None = None,
    progress: Progress | None = None,
) -> Sums:
    """Pass links from a source to a sink.

    Args:
        source: where they come from.
        sink: where they go; None only measures.
        source_checksum: fed with the bytes read, each once.
        sink_checksum: fed with the bytes written.
        change: what to do to the links on the way.
        measure: compute the sums; otherwise the lists are empty.
        slabs: those to work on, a part of `slabs_of(source.dims)`; None for all.
        threads: how many; None for what suits the machine and the size of the field.
        progress: told about each slab.

    Raises:
        CheckError: a link is not finite.
        FormatError, OSError: from source and sink.
    """
    chosen = slabs_of(source.dims) if slabs is None else slabs
    # Whole time slices are held in one place, or not at all
    elsewhere = source.keeps_slices or (sink is not None and sink.keeps_slices)
    in_step = elsewhere and _slice_bytes(source) > _LARGE_SLICE
    links = _Links(source, source_checksum, chosen, keep=measure and not elsewhere)
    work = _Work(links, sink, sink_checksum, change, measure)
    sums = Sums([], [])
    done = 0

    def collect(result: tuple[SlabSums, SlabSums] | None) -> None:
        nonlocal done
        done += 1
        if result is not None:
            sums.source.append(result[0])
            sums.sink.append(result[1])
        if progress is not None:
            progress(done, len(chosen))

    if sink is not None:
        sink.begin(range(chosen[0][0], chosen[-1][0] + 1))
        if sink.needs_slice_before:
            _write_before(source, sink, (chosen[0][0] - 1) % source.dims[-1], change)
    if threads is None:
        serial = math.prod(source.dims) < _SERIAL_VOLUME
        threads = 1 if serial else min(_MOST_THREADS, _cores())
    if in_step and sink is not None and source.keeps_slices and sink.keeps_slices:
        threads = min(threads, _THREADS_FOR_TWICE_KEPT)
    threads = min(threads, len(chosen))
    if threads < 2:
        for slab in chosen:
            collect(work(slab))
    else:
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[tuple[SlabSums, SlabSums] | None]] = deque()
            try:
                now = chosen[0][0]
                for slab in chosen:
                    most = 0 if in_step and slab[0] != now else 2 * threads
                    while len(waiting) > most:
                        collect(waiting.popleft().result())
                    now = slab[0]
                    waiting.append(pool.submit(work, slab))
                while waiting:
                    collect(waiting.popleft().result())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    if sink is not None:
        sink.finish()
    return sums


def _write_before(source: LinkSource, sink: LinkSink, t: int, change: Change | None) -> None:
    for slab in slabs_of(source.dims):
        if slab[0] == t:
            links = np.empty((slab[2] - slab[1], *source.plane_shape), source.complex_type)
            source.read(slab, links)
            sink.write_before(slab, links if change is None else change.apply(links, slab))


def _slice_bytes(source: LinkSource) -> int:
    """Size of a time slice in memory."""
    return math.prod(source.plane_shape) * source.dims[-2] * source.complex_type.itemsize


def _cores() -> int:
    """Processors that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not everywhere
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class _Work:
    """The work on one slab, done by any thread."""

    def __init__(
        self,
        links: _Links,
        sink: LinkSink | None,
        sink_checksum: ChecksumSum | None,
        change: Change | None,
        measure: bool,
    ) -> None:
        self._links, self._sink, self._sink_checksum = links, sink, sink_checksum
        self._change, self._measure = change, measure

    def __call__(self, slab: Slab) -> tuple[SlabSums, SlabSums] | None:
        links, change = self._links, self._change
        here = links.slab(slab, own=True)
        changed = here if change is None else change.apply(here, slab)
        if change is not None:
            links.require_still_finite(slab, changed)
        result = self._sums(slab, here, changed) if self._measure else None
        if self._sink is not None:
            self._sink.write(slab, changed, self._sink_checksum)
        links.release(slab)
        return result

    def _sums(
        self, slab: Slab, here: ComplexArray, changed: ComplexArray
    ) -> tuple[SlabSums, SlabSums]:
        links, change, dims = self._links, self._change, self._links.dims
        t, start, _ = slab
        beside, upper = _neighbours(slab, dims)
        following, above = links.first_plane(beside), links.space(upper)
        sums = slab_sums(here, following[0], above, start, t, dims)
        if change is None:
            return sums, sums
        following = change.apply(following, (t, beside[1], beside[1] + 1))
        above = change.apply(above, upper)
        return sums, slab_sums(changed, following[0], above, start, t, dims)


def _neighbours(slab: Slab, dims: tuple[int, ...]) -> tuple[Slab, Slab]:
    """The slab that follows in the same time slice, and the same one of the next time slice."""
    t, start, stop = slab
    begin = stop % dims[-2]
    end = min(begin + planes_per_slab(dims), dims[-2])
    return (t, begin, end), ((t + 1) % dims[-1], start, stop)


class _Links:
    """The slabs of a source, kept while neighbours still need them.

    The plaquettes of a slab need the one after it and the one of the next time slice. As long as a
    time slice is not too large, every slab is therefore read, decoded and checksummed once and kept
    until its last use; only the first time slice is read a second time, at the end. Slabs of larger
    lattices are read again for each use, which the system's file cache makes cheap.
    """

    def __init__(
        self,
        source: LinkSource,
        checksum: ChecksumSum | None,
        slabs: Sequence[Slab],
        *,
        keep: bool,
    ) -> None:
        self._source, self._checksum = source, checksum
        self.dims = source.dims
        self._keep = keep and _slice_bytes(source) <= _LARGEST_SLICE_KEPT
        self._lock = threading.Lock()
        self._kept: dict[Slab, Future[ComplexArray]] = {}
        # By planes: the last slab of a time slice may be smaller
        self._free: dict[int, list[ComplexArray]] = {}
        self._lent = threading.local()
        self._unfed = set(slabs)
        # How many slabs still have to come for which a slab must be there
        self._uses: Counter[Slab] = Counter()
        if self._keep:
            for slab in slabs:
                self._uses.update(self._needed(slab))

    def slab(self, slab: Slab, *, own: bool = False) -> ComplexArray:
        """The links of a slab; `own` where they are not wanted for a neighbour only."""
        if not self._keep:
            return self._lend(slab, feed=own)
        with self._lock:
            promise = self._kept.get(slab)
            mine = promise is None
            if promise is None:
                promise = self._kept[slab] = Future()
            feed = mine and slab in self._unfed
            self._unfed.discard(slab)
        if mine:
            try:
                promise.set_result(self._read(slab, feed=feed))
            except BaseException as error:
                promise.set_exception(error)
        return promise.result()

    def space(self, slab: Slab) -> ComplexArray:
        """The links of a slab, of which those in time need not be right."""
        return self.slab(slab) if self._keep else self._lend(slab, feed=False, space=True)

    def first_plane(self, slab: Slab) -> ComplexArray:
        """The first plane of a slab, `[1, ..., x, mu, row, col]`."""
        if self._keep:
            return self.slab(slab)[:1]
        t, start, _ = slab
        return self._lend((t, start, start + 1), feed=False)

    def release(self, slab: Slab) -> None:
        """A slab has had its turn: forget what nobody needs any more."""
        if not self._keep:
            with self._lock:
                for links in self._lent.arrays:
                    self._free.setdefault(len(links), []).append(links)
            self._lent.arrays.clear()
            return
        with self._lock:
            self._uses.subtract(self._needed(slab))
            for used in {slab, *_neighbours(slab, self.dims)}:
                if self._uses[used] <= 0 and used in self._kept:
                    links = self._kept.pop(used).result()
                    # The last time slice, not counted among the users of the first, may be at it
                    if used[0] > 0:
                        self._free.setdefault(len(links), []).append(links)

    def require_finite(self, slab: Slab, links: ComplexArray) -> None:
        """Raise the source's error if a link is not finite."""
        bad = first_non_finite(links)
        if bad is not None:
            raise self._source.not_finite(slab, bad)

    def require_still_finite(self, slab: Slab, changed: ComplexArray) -> None:
        """Raise an error if a link that was finite is no more."""
        bad = first_non_finite(changed)
        if bad is not None:
            path = self._source.not_finite(slab, bad).path
            raise CheckError(
                path,
                None,
                "refusing to round links that are too large for 32 bit: they would not be finite "
                "any more; nothing was written",
            )

    def _needed(self, slab: Slab) -> list[Slab]:
        """The slabs that one slab needs, but for the first time slice when the last one needs it:
        keeping that one to the end would double the memory."""
        beside, upper = _neighbours(slab, self.dims)
        return [slab, beside] if upper[0] == 0 else [slab, beside, upper]

    def _lend(self, slab: Slab, *, feed: bool, space: bool = False) -> ComplexArray:
        """Read a slab for the present turn of this thread."""
        links = self._read(slab, feed=feed, space=space)
        if not hasattr(self._lent, "arrays"):
            self._lent.arrays = []
        self._lent.arrays.append(links)
        return links

    def _read(self, slab: Slab, *, feed: bool, space: bool = False) -> ComplexArray:
        _, start, stop = slab
        shape = (stop - start, *self._source.plane_shape)
        links = None
        with self._lock:
            free = self._free.get(stop - start)
            if free:
                links = free.pop()
        if links is None:
            links = np.empty(shape, self._source.complex_type)
        if space:
            self._source.read_space(slab, links)
        else:
            self._source.read(slab, links, self._checksum if feed else None)
        self.require_finite(slab, links)
        return links
