"""The checksum of PyQUDA's HDF5 files."""

from __future__ import annotations

from typing import Self

import numpy as np

from ..checksums import ChecksumSum, RawBytes, _Folded, _rotated_sums


class PyQudaChecksum(ChecksumSum):
    """One pair of sums for each direction. With w(r) the XOR of the little-endian 32-bit words of
    the matrix at site r,

        sum29 = XOR_r rotl32(w(r), r mod 29),    sum31 = XOR_r rotl32(w(r), r mod 31).

    Args:
        directions: number of directions; `update` gets all sites of the first one, then all of the
            second, and so on.
        link_bytes: bytes of one matrix.
    """

    kind = "pyquda"

    def __init__(self, directions: int, link_bytes: int) -> None:
        super().__init__()
        self._link_bytes = link_bytes
        self._folded = [_Folded(4) for _ in range(directions)]

    def update(self, first_site: int, raw: RawBytes) -> None:
        """See `ChecksumSum.update`."""
        words = raw.view("<u4").reshape(len(self._folded), -1, self._link_bytes // 4)
        for folded, own in zip(self._folded, np.bitwise_xor.reduce(words, axis=-1), strict=True):
            folded.add(first_site, own.view(np.uint8).reshape(-1, 4), self._lock)

    def absorb(self, other: Self) -> None:
        """See `ChecksumSum.absorb`."""
        for own, more in zip(self._folded, other._folded, strict=True):
            own.absorb(more)

    @property
    def sums(self) -> list[tuple[int, int]]:
        """(sum29, sum31) of each direction."""
        words = [folded.items.view("<u4").reshape(-1) for folded in self._folded]
        return [_rotated_sums(own.astype(np.uint32)) for own in words]

    @property
    def text(self) -> str:
        """sum29 and sum31 of each direction, separated by blanks."""
        return " ".join(f"{one:x}" for pair in self.sums for one in pair)
