"""MILC files whose sites are in an order of their own, which a list in the file tells."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from ..checksums import ChecksumSum, MilcChecksum
from ..configuration import ComplexArray
from ..errors import CheckError, FormatError
from ..finite import not_finite_text, site_text
from ..layout import Layout, decode
from ..links import LinkSource, Slab, first_site
from ..storage import Storage

_CHUNK = 2**20
LARGEST_VOLUME = 2**31  # the list holds signed 32-bit numbers


class SiteListSource(LinkSource):
    """Links of a file with a site list.

    The list is kept in memory, four bytes a site, where the links have 288; the links themselves
    are read run by run: what is adjacent in the file is read at once.

    Args:
        storage: the open file.
        layout: how the links would be stored in natural order.
        list_offset: first byte of the list.
        list_order: byte order of the list.

    Raises:
        FormatError: the list does not name every site once.
    """

    def __init__(self, storage: Storage, layout: Layout, list_offset: int, list_order: str) -> None:
        self._storage, self._layout = storage, layout
        self.dims, self.nc, self.precision = layout.dims, layout.nc, layout.precision
        self._positions = _positions(storage, layout, list_offset, list_order)

    def read(self, slab: Slab, out: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSource.read`; the checksum goes by the order of the file."""
        first, count = first_site(self.dims, slab), math.prod(out.shape[:-3])
        positions = self._positions[first : first + count]
        by_position = np.argsort(positions)
        ordered = positions[by_position]
        raw = np.empty((count, self._layout.site_bytes), dtype=np.uint8)
        begins = np.flatnonzero(np.diff(ordered, prepend=-2) != 1).tolist()
        for begin, end in pairwise([*begins, count]):
            run, position = raw[begin:end].reshape(-1), int(ordered[begin])
            self._storage.read(self._offset(position), run)
            if checksum is not None:
                checksum.update(position, run)
        natural = np.empty_like(raw)
        natural[by_position] = raw
        decode(natural.reshape(-1), self._layout, out)

    def new_checksum(self) -> MilcChecksum:
        """See `LinkSource.new_checksum`."""
        layout = self._layout
        return MilcChecksum(layout.site_bytes, layout.word_order or layout.byte_order)

    def not_finite(self, slab: Slab, index: tuple[int, ...]) -> FormatError:
        """See `LinkSource.not_finite`."""
        t, start, _ = slab
        z, y, x = start + index[0], index[1], index[2]
        lx, ly, lz, _ = self.dims
        position = int(self._positions[x + lx * (y + ly * (z + lz * t))])
        return CheckError(
            self._storage.path,
            self._offset(position),
            not_finite_text(f"the links at {site_text((t, z, *index[1:]))}"),
        )

    def _not_finite(self, slab: Slab, site: str) -> FormatError:
        raise NotImplementedError  # `not_finite` says it all

    def _offset(self, position: int) -> int:
        return self._layout.offset + position * self._layout.site_bytes


def _positions(storage: Storage, layout: Layout, offset: int, order: str) -> npt.NDArray[np.int32]:
    """For each site in natural order, its place in the file."""
    volume = math.prod(layout.dims)
    positions = np.full(volume, -1, dtype=np.int32)
    for begin in range(0, volume, _CHUNK):
        count = min(_CHUNK, volume - begin)
        raw = np.empty(4 * count, dtype=np.uint8)
        storage.read(offset + 4 * begin, raw)
        sites = raw.view(f"{order}u4").astype(np.int64)
        outside = sites >= volume
        if outside.any():
            bad = int(np.argmax(outside))
            raise FormatError(
                storage.path,
                offset + 4 * (begin + bad),
                f"the site list names site {sites[bad]} of a lattice of {volume} sites: the file "
                "is damaged",
            )
        positions[sites] = np.arange(begin, begin + count, dtype=np.int32)
    if positions.min() < 0:
        raise FormatError(
            storage.path,
            offset,
            f"the site list does not name site {int(np.argmin(positions))} but another one twice: "
            "the file is damaged",
        )
    return positions
