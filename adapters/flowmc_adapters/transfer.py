"""Moving links from a source to a sink, measuring on the way: the one loop behind reading, writing,
inspecting and converting.

The field passes through slab by slab, on a few threads, so memory does not grow with the lattice.
What is measured is a list of sums, one for each slab in a fixed order: results do not depend, bit
by bit, on how many threads or ranks shared the work.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np

from .checksums import ChecksumSum
from .configuration import ComplexArray
from .finite import first_non_finite
from .links import LinkSink, LinkSource, Slab
from .slab_sums import SlabSums, planes_per_slab, slab_sums

Progress = Callable[[int, int], None]
"""Called with the number of slabs done and of all slabs."""

_MOST_THREADS = 4
# Below this many sites starting threads costs more than it saves.
_SERIAL_VOLUME = 2**15


class Change:
    """What is done to links between source and sink. The default: conversion of the precision.

    Args:
        precision: of the changed links, 32 or 64.
    """

    def __init__(self, precision: int) -> None:
        self.precision = precision
        self.complex_type = np.dtype(np.complex64 if precision == 32 else np.complex128)

    def apply(self, links: ComplexArray, slab: Slab) -> ComplexArray:
        """The changed links of a slab, in an array of the new precision."""
        with np.errstate(over="ignore"):  # an overflow becomes inf, which is then refused
            return links.astype(self.complex_type)


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
        progress: told about each slab.

    Raises:
        CheckError: a link is not finite.
        FormatError, OSError: from source and sink.
    """
    chosen = slabs_of(source.dims) if slabs is None else slabs
    work = _Work(source, sink, source_checksum, sink_checksum, change, measure)
    sums = Sums([], [])

    def collect(result: tuple[SlabSums, SlabSums] | None) -> None:
        nonlocal done
        done += 1
        if result is not None:
            sums.source.append(result[0])
            sums.sink.append(result[1])
        if progress is not None:
            progress(done, len(chosen))

    done = 0
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)), len(chosen))
    if threads < 2 or np.prod(source.dims) < _SERIAL_VOLUME:
        for slab in chosen:
            collect(work(slab))
    else:
        with ThreadPoolExecutor(threads) as pool:
            waiting: deque[Future[tuple[SlabSums, SlabSums] | None]] = deque()
            try:
                for slab in chosen:
                    waiting.append(pool.submit(work, slab))
                    if len(waiting) > 2 * threads:
                        collect(waiting.popleft().result())
                while waiting:
                    collect(waiting.popleft().result())
            finally:
                pool.shutdown(wait=True, cancel_futures=True)
    if sink is not None:
        sink.finish()
    return sums


class _Work:
    """The work on one slab, done by any thread."""

    def __init__(
        self,
        source: LinkSource,
        sink: LinkSink | None,
        source_checksum: ChecksumSum | None,
        sink_checksum: ChecksumSum | None,
        change: Change | None,
        measure: bool,
    ) -> None:
        self._source, self._sink = source, sink
        self._source_checksum, self._sink_checksum = source_checksum, sink_checksum
        self._change, self._measure = change, measure
        self._local = threading.local()

    def __call__(self, slab: Slab) -> tuple[SlabSums, SlabSums] | None:
        source, dims = self._source, self._source.dims
        _, start, stop = slab
        here = self._buffer("here", stop - start + 1)
        own = here[:-1]
        source.read(slab, own, self._source_checksum)
        bad = first_non_finite(own)
        if bad is not None:
            raise source.not_finite(slab, bad)
        changed = own if self._change is None else self._change.apply(own, slab)
        if self._change is not None:
            bad = first_non_finite(changed)
            if bad is not None:
                raise source.not_finite(slab, bad)
        result = self._sums(slab, here, changed, dims) if self._measure else None
        if self._sink is not None:
            self._sink.write(slab, changed, self._sink_checksum)
        return result

    def _sums(
        self, slab: Slab, here: ComplexArray, changed: ComplexArray, dims: tuple[int, ...]
    ) -> tuple[SlabSums, SlabSums]:
        t, start, stop = slab
        following = stop % dims[-2]
        beside: Slab = (t, following, following + 1)
        upper: Slab = ((t + 1) % dims[-1], start, stop)
        above = self._buffer("above", stop - start)
        self._source.read(beside, here[-1:])
        self._source.read(upper, above)
        sums = slab_sums(here, above, start, t, dims)
        if self._change is None:
            return sums, sums
        changed_here = np.concatenate([changed, self._change.apply(here[-1:], beside)])
        changed_above = self._change.apply(above, upper)
        return sums, slab_sums(changed_here, changed_above, start, t, dims)

    def _buffer(self, name: str, planes: int) -> ComplexArray:
        shape = (planes, *self._source.plane_shape)
        found: ComplexArray | None = getattr(self._local, name, None)
        if found is None or found.shape != shape:
            found = np.empty(shape, self._source.complex_type)
            setattr(self._local, name, found)
        return found


def precision_change(source: LinkSource, precision: int) -> Change | None:
    """The change that makes `precision` of the source's, or None if it has that already."""
    return None if precision == source.precision else Change(precision)
