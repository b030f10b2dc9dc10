"""The order of links in openQCD's files: `OpenQcdSource` and `OpenQcdSink`.

For every odd site (x + y + z + t odd; t slowest, then x, y, z) eight links: for each direction T,
X, Y, Z the one that leaves the site in it, then the one that arrives from behind. The time links of
even sites are therefore with the next time slice.
"""

from __future__ import annotations

import threading
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from ..checksums import ChecksumSum, RawBytes
from ..configuration import ComplexArray
from ..errors import CheckError, FormatError
from ..finite import not_finite_text
from ..layout import Layout
from ..links import LinkSink, LinkSource, Slab
from ..storage import Storage
from .time_slices import SliceAssembly, SliceCache

_Positions = npt.NDArray[np.intp]

# The time links of a slice are in the next one
_SLICES = 2
_LINK_BYTES = 144
_LINKS_PER_SITE = 8
# As an openQCD field has it exactly; others may have come through another code
_DIAGONAL = 1e-12


class OpenQcdSource(LinkSource):
    """Links of an openQCD file.

    Args:
        storage: the open file.
        layout: offset and extents of the links.
    """

    keeps_slices = True

    def __init__(self, storage: Storage, layout: Layout) -> None:
        self._path = storage.path
        self._cache = SliceCache(storage, layout, _SLICES)
        self._order = layout.byte_order
        self.dims, self.nc, self.precision = layout.dims, 3, 64

    def read(self, slab: Slab, out: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSource.read`."""
        t = slab[0]
        odd, space, time = link_positions(self.dims, slab)
        links = _links(self._cache.get(t), self._order)
        out[..., :3, :, :] = links.take(space, axis=0)
        out[odd, 3] = links.take(time[odd], axis=0)
        following = _links(self._cache.get((t + 1) % self.dims[-1]), self._order)
        out[~odd, 3] = following.take(time[~odd], axis=0)

    def read_space(self, slab: Slab, out: ComplexArray) -> None:
        """See `LinkSource.read_space`; spares the slice after the next one."""
        _, space, _ = link_positions(self.dims, slab)
        out[..., :3, :, :] = _links(self._cache.get(slab[0]), self._order).take(space, axis=0)
        out[..., 3, :, :] = 0

    def _not_finite(self, slab: Slab, site: str) -> FormatError:
        return CheckError(
            self._path,
            self._cache.first_byte(slab[0]),
            not_finite_text(f"the links at {site}"),
        )


class OpenQcdSink(LinkSink):
    """Links to an openQCD file; arguments as `OpenQcdSource`.

    A slice goes to the file when its own links and the time links of the one before are there. Of
    a slice whose own links are still to come those time links are all that is kept.
    """

    needs_slice_before = True
    keeps_slices = True

    def __init__(self, storage: Storage, layout: Layout) -> None:
        self._dims = layout.dims
        self._assembly = SliceAssembly(storage, layout)
        self._lock = threading.Lock()
        self._begun: set[int] = set()
        self._early: dict[int, list[tuple[_Positions, ComplexArray]]] = {}

    def write(self, slab: Slab, links: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSink.write`."""
        t, following = slab[0], (slab[0] + 1) % self._dims[-1]
        odd, space, time = link_positions(self._dims, slab)
        self._begin_slice(t)
        own = _links(self._assembly.buffer(t))
        own[space] = links[..., :3, :, :]
        own[time[odd]] = links[odd, 3]
        self._assembly.filled(t, (space.size + int(odd.sum())) * _LINK_BYTES)
        slices = self._assembly.slices
        # The first slice has had these before everything else; others may be another rank's
        if following in slices and following != slices.start:
            self.write_before(slab, links)

    def begin(self, slices: range) -> None:
        """See `LinkSink.begin`."""
        self._assembly.slices = slices

    def write_before(self, slab: Slab, links: ComplexArray) -> None:
        """See `LinkSink.write_before`: the time links of even sites."""
        following = (slab[0] + 1) % self._dims[-1]
        odd, _, time = link_positions(self._dims, slab)
        positions, arriving = time[~odd], links[~odd, 3]
        with self._lock:
            if following not in self._begun:
                self._early.setdefault(following, []).append((positions, arriving))
                return
        self._place(following, positions, arriving)

    def _begin_slice(self, t: int) -> None:
        """Put the time links that came early into a slice that is about to get its own."""
        with self._lock:
            self._begun.add(t)
            early = self._early.pop(t, [])
        for positions, arriving in early:
            self._place(t, positions, arriving)

    def _place(self, t: int, positions: _Positions, links: ComplexArray) -> None:
        _links(self._assembly.buffer(t))[positions] = links
        self._assembly.filled(t, positions.size * _LINK_BYTES)

    def finish(self) -> None:
        """See `LinkSink.finish`."""
        self._assembly.finish()


def has_fixed_start(storage: Storage, layout: Layout) -> bool:
    """Whether the first time slice looks like the boundary of a Schroedinger functional: spatial
    links diagonal and the same along a line of sites, unlike those of the second slice."""
    return _is_constant(storage, layout, 0) and not _is_constant(storage, layout, 1)


def _is_constant(storage: Storage, layout: Layout, t: int) -> bool:
    sites = layout.dims[2] // 2
    raw: RawBytes = np.empty(sites * _LINKS_PER_SITE * _LINK_BYTES, dtype=np.uint8)
    storage.read(layout.offset + t * (layout.total_bytes // layout.dims[-1]), raw)
    links = _links(raw, layout.byte_order).reshape(sites, _LINKS_PER_SITE // 2, 2, 3, 3)[:, 1:]
    first = links[:1, :, :1]
    off_diagonal = links * (1 - np.eye(3))
    with np.errstate(all="ignore"):
        return bool(
            np.abs(off_diagonal).max() < _DIAGONAL and np.abs(links - first).max() < _DIAGONAL
        )


def link_positions(
    dims: tuple[int, ...], slab: Slab
) -> tuple[npt.NDArray[np.bool_], _Positions, _Positions]:
    """Where the links of a slab are.

    Returns:
        Which sites are odd, `[z, y, x]`; the number of the spatial links in their own time slice,
        `[z, y, x, mu]`; the number of the time links, in their own time slice for odd sites, in the
        next one for even sites, `[z, y, x]`.
    """
    t, start, stop = slab
    return _positions_of_parity(dims, t % 2, start, stop)


@lru_cache(maxsize=256)
def _positions_of_parity(
    dims: tuple[int, ...], t: int, start: int, stop: int
) -> tuple[npt.NDArray[np.bool_], _Positions, _Positions]:
    lx, ly, lz, _ = dims
    z, y, x = np.ogrid[start:stop, :ly, :lx]

    def links_of(x: _Positions, y: _Positions, z: _Positions) -> _Positions:
        # Of two neighbours in z, of which the first has even z, one is odd
        return ((x * ly + y) * lz + z) // 2 * _LINKS_PER_SITE

    odd = (t + x + y + z) % 2 == 1
    here = links_of(x, y, z)
    ahead = (
        links_of((x + 1) % lx, y, z),
        links_of(x, (y + 1) % ly, z),
        links_of(x, y, (z + 1) % lz),
    )
    space = np.stack(
        [
            np.where(odd, here + 2 * mu, beyond + 2 * mu + 1)
            for mu, beyond in enumerate(ahead, start=1)
        ],
        axis=-1,
    )
    return odd, space, np.where(odd, here, here + 1)


def _links(raw: RawBytes, byte_order: str = "<") -> npt.NDArray[np.complexfloating]:
    return raw.view(f"{byte_order}c16").reshape(-1, 3, 3)
