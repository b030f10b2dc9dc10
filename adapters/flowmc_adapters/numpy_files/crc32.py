"""CRC-32 of a long run of bytes, put together from pieces that come in any order."""

from __future__ import annotations

import zlib
from typing import Self

from ..checksums import ChecksumSum, RawBytes

_POLYNOMIAL = 0xEDB88320
_ALL = 0xFFFFFFFF


class Crc32Sum(ChecksumSum):
    """CRC-32 (as in zlib and zip) of all links, and of bytes before them.

    Without its initial value and final complement a CRC is linear: that of a run of bytes is the
    XOR of those of its pieces, each multiplied by x^(8 n), n the bytes that follow the piece, in
    the polynomials over GF(2) modulo that of the CRC.

    Args:
        site_bytes: bytes of one site.
        total_bytes: bytes of all sites.
        before: bytes that precede them in the run.
    """

    kind = "crc32"

    def __init__(self, site_bytes: int, total_bytes: int, before: bytes = b"") -> None:
        super().__init__()
        self._site_bytes, self._total_bytes = site_bytes, total_bytes
        length = len(before) + total_bytes
        self._start = _shifted(_ALL, length) ^ _shifted(_raw(before), total_bytes) ^ _ALL
        self._sum = 0

    def update(self, first_site: int, raw: RawBytes) -> None:
        """See `ChecksumSum.update`."""
        following = self._total_bytes - first_site * self._site_bytes - raw.size
        part = _shifted(_raw(raw.data), following)
        with self._lock:
            self._sum ^= part

    def absorb(self, other: Self) -> None:
        """See `ChecksumSum.absorb`."""
        self._sum ^= other._sum

    @property
    def value(self) -> int:
        """The CRC, once all sites were fed."""
        return self._start ^ self._sum

    @property
    def text(self) -> str:
        """See `ChecksumSum.text`."""
        return f"{self.value:x}"


def _raw(data: bytes | memoryview) -> int:
    """CRC with initial value 0 and without the final complement."""
    return zlib.crc32(data, _ALL) ^ _ALL


def _shifted(value: int, zeros: int) -> int:
    """The CRC state after so many zero bytes: value times x^(8 zeros)."""
    power, square = 1 << 31, 1 << 23  # 1 and x^8; bit 31 is the constant term
    while zeros:
        if zeros & 1:
            power = _product(power, square)
        square = _product(square, square)
        zeros >>= 1
    return _product(value, power)


def _product(first: int, second: int) -> int:
    """Product of two polynomials, modulo that of the CRC."""
    result = 0
    for bit in range(31, -1, -1):
        if first >> bit & 1:
            result ^= second
        second = second >> 1 ^ (_POLYNOMIAL if second & 1 else 0)
    return result
