"""Where links come from and go to, a slab at a time: `LinkSource` and `LinkSink`.

A slab is the block of planes `start <= z < stop` of time slice t, an array
`[z, ..., x, mu, row, col]` (z the second-slowest lattice axis). Sources and sinks serve several
threads at once, so that fields larger than the memory pass through in parallel.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .checksums import ChecksumSum, RawBytes
from .configuration import ComplexArray
from .errors import CheckError, FormatError
from .finite import not_finite_text, site_text
from .layout import Layout, decode, encode
from .storage import Storage

Slab = tuple[int, int, int]
"""Time slice, first plane, and the plane after the last one."""


class LinkSource(ABC):
    """Something that gives links.

    Attributes:
        dims: extents (Lx, ..., Lt).
        nc: number of colours N.
        precision: 32 or 64.
        keeps_slices: the source itself keeps what it has read for slabs of the same and of the next
            time slice.
    """

    dims: tuple[int, ...]
    nc: int
    precision: int
    keeps_slices = False

    @abstractmethod
    def read(self, slab: Slab, out: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """Fill `out[z, ..., x, mu, row, col]` (C order, the source's precision) with a slab.

        Args:
            slab: which.
            out: the array to fill.
            checksum: fed with the bytes of the slab as they are stored.

        Raises:
            FormatError: the source ends early.
        """

    def read_space(self, slab: Slab, out: ComplexArray) -> None:
        """As `read`; time links, the last ones of mu, may be left as they are."""
        self.read(slab, out)

    def new_checksum(self) -> ChecksumSum | None:
        """An accumulator for the checksum of the stored bytes, or None if there is none."""
        return None

    def not_finite(self, slab: Slab, index: tuple[int, ...]) -> FormatError:
        """The error for a link that is not finite, `index` into the slab's array."""
        t, start, _ = slab
        site = site_text((t, start + index[0], *index[1:]))
        return self._not_finite(slab, site)

    @abstractmethod
    def _not_finite(self, slab: Slab, site: str) -> FormatError: ...

    @property
    def complex_type(self) -> np.dtype[np.complexfloating[Any, Any]]:
        """Type of a link element."""
        return np.dtype(np.complex64 if self.precision == 32 else np.complex128)

    @property
    def plane_shape(self) -> tuple[int, ...]:
        """Shape of one plane, `(..., Lx, d, N, N)`."""
        return (*reversed(self.dims[:-2]), len(self.dims), self.nc, self.nc)


class LinkSink(ABC):
    """Something that takes links.

    Attributes:
        needs_slice_before: some links of a time slice are stored with the next one. The sink is
            then given those of the (periodically) preceding slice first, by `write_before`.
        keeps_slices: the sink keeps whole time slices until they are complete, so that memory is
            better not spent on others.
    """

    needs_slice_before = False
    keeps_slices = False

    def begin(self, slices: range) -> None:  # noqa: B027 - most have nothing to prepare
        """The time slices that will be written, all of them or the share of a rank."""

    def write_before(  # noqa: B027 - see needs_slice_before
        self, slab: Slab, links: ComplexArray
    ) -> None:
        """Take from a slab of the slice before the first one what is stored with the latter."""

    @abstractmethod
    def write(self, slab: Slab, links: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """Take a slab.

        Args:
            slab: which.
            links: `[z, ..., x, mu, row, col]`, of the sink's precision.
            checksum: fed with the bytes of the slab as they are stored.

        Raises:
            OSError: disk full and the like.
        """

    def finish(self) -> None:  # noqa: B027 - most have nothing left to do
        """All slabs were written."""


class ArraySource(LinkSource):
    """Links in memory.

    Args:
        links: `[t, z, ..., x, mu, row, col]`.
        path: the file they are on their way to, for the error message.
    """

    def __init__(self, links: ComplexArray, path: Any = "") -> None:
        self._links = links
        self._path = path
        self.dims = tuple(reversed(links.shape[:-3]))
        self.nc = int(links.shape[-1])
        self.precision = 32 if links.dtype == np.complex64 else 64

    def read(self, slab: Slab, out: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSource.read`."""
        t, start, stop = slab
        np.copyto(out, self._links[t, start:stop])

    def _not_finite(self, slab: Slab, site: str) -> FormatError:
        return CheckError(
            self._path,
            None,
            f"refusing to write a link that is not finite, at {site}; nothing was written",
        )


class ArraySink(LinkSink):
    """Links to memory: `links[t, z, ..., x, mu, row, col]` is filled."""

    def __init__(self, links: ComplexArray) -> None:
        self.links = links

    def write(self, slab: Slab, links: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSink.write`."""
        t, start, stop = slab
        self.links[t, start:stop] = links


class LayoutSource(LinkSource):
    """Links of a file with a regular layout.

    Args:
        storage: the open file.
        layout: where the links are.
        checksum: makes an accumulator for the layout, if its format has a checksum.
    """

    def __init__(
        self,
        storage: Storage,
        layout: Layout,
        checksum: Callable[[Layout], ChecksumSum | None] | None = None,
    ) -> None:
        self._storage, self._layout, self._checksum = storage, layout, checksum
        self.dims, self.nc, self.precision = layout.dims, layout.nc, layout.precision

    def read(self, slab: Slab, out: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSource.read`."""
        pieces = self._layout.pieces(*slab)
        raw = _raw_buffer(sum(count for _, count in pieces))
        filled = 0
        for offset, count in pieces:
            self._storage.read(offset, raw[filled : filled + count])
            filled += count
        if checksum is not None:
            checksum.update(first_site(self.dims, slab), raw)
        decode(raw, self._layout, out)

    def new_checksum(self) -> ChecksumSum | None:
        """See `LinkSource.new_checksum`."""
        return None if self._checksum is None else self._checksum(self._layout)

    def _not_finite(self, slab: Slab, site: str) -> FormatError:
        return CheckError(
            self._storage.path,
            self._layout.pieces(*slab)[0][0],
            not_finite_text(f"the links at {site}"),
        )


class LayoutSink(LinkSink):
    """Links to a file with a regular layout; arguments as `LayoutSource`."""

    def __init__(self, storage: Storage, layout: Layout) -> None:
        self._storage, self._layout = storage, layout

    def write(self, slab: Slab, links: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSink.write`."""
        pieces = self._layout.pieces(*slab)
        raw = _raw_buffer(sum(count for _, count in pieces))
        encode(links, self._layout, raw)
        if checksum is not None:
            checksum.update(first_site(self._layout.dims, slab), raw)
        done = 0
        for offset, count in pieces:
            self._storage.write(offset, raw[done : done + count])
            done += count


class ChecksumSink(LinkSink):
    """Takes links for the checksum of their bytes alone."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def write(self, slab: Slab, links: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSink.write`."""
        if checksum is not None:
            raw = _raw_buffer(sum(count for _, count in self._layout.pieces(*slab)))
            encode(links, self._layout, raw)
            checksum.update(first_site(self._layout.dims, slab), raw)


def first_site(dims: tuple[int, ...], slab: Slab) -> int:
    """Rank `x + Lx (y + Ly (z + Lz t))` of the first site of a slab."""
    t, start, _ = slab
    return (t * dims[-2] + start) * math.prod(dims[:-2])


_local = threading.local()


def _raw_buffer(size: int) -> RawBytes:
    """Bytes to work in, the same memory again and again in each thread."""
    buffer: npt.NDArray[np.uint8] | None = getattr(_local, "buffer", None)
    if buffer is None or buffer.size < size:
        buffer = _local.buffer = np.empty(size, dtype=np.uint8)
    return buffer[:size]
