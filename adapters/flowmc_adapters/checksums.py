"""The checksums of gauge configuration files, fed with raw bytes slab by slab in any order.

All of them are XORs or sums over sites or words, so that threads and ranks can share the work:
every accumulator can absorb another one. A checksum that rotates the contribution of item i by
`i mod 29` and `i mod 31` depends on i only through `i mod 899` (29 * 31): items of the same class
are combined by XOR first, and the expensive part is done 899 times, whatever the size of the file.
"""

from __future__ import annotations

import threading
import zlib
from abc import ABC, abstractmethod
from typing import Any, Self

import numpy as np
import numpy.typing as npt

RawBytes = npt.NDArray[np.uint8]

_CLASSES = 29 * 31


class ChecksumSum(ABC):
    """A checksum being accumulated. `update` may be called by several threads at once.

    Attributes:
        kind: name of the checksum, as in `Checksum.kind`.
    """

    kind: str

    def __init__(self) -> None:
        self._lock = threading.Lock()

    @abstractmethod
    def update(self, first_site: int, raw: RawBytes) -> None:
        """Add whole sites.

        Args:
            first_site: rank r = x + Lx (y + Ly (z + Lz t)) of the first of them.
            raw: their bytes as in the file, all links of a site together.
        """

    @abstractmethod
    def absorb(self, other: Self) -> None:
        """Add what another accumulator of the same file has seen."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The checksum in hexadecimal, lower case without leading zeros."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._lock = threading.Lock()


class ScidacChecksum(ChecksumSum):
    """SciDAC (QIO) checksum.

    With c(r) the CRC-32 (as in zlib) of the bytes of site r,

        suma = XOR_r rotl32(c(r), r mod 29),    sumb = XOR_r rotl32(c(r), r mod 31).

    A CRC is affine over GF(2): the XOR of the CRCs of n equally long messages is the CRC of their
    XOR, and for even n that XOR the CRC of zeros. Sites of one class mod 899 are therefore added up
    before the CRC, which makes this a hundred times faster than a CRC per site (measured).

    Source: QIO (USQCD), `QIO_checksum_accum`.

    Args:
        site_bytes: bytes of one site, all its links together.
    """

    kind = "scidac"

    def __init__(self, site_bytes: int) -> None:
        super().__init__()
        self._folded = _Folded(site_bytes)

    def update(self, first_site: int, raw: RawBytes) -> None:
        """See `ChecksumSum.update`."""
        count = raw.size // self._folded.item_bytes
        self._folded.add(first_site, raw.reshape(count, -1), self._lock)

    def absorb(self, other: Self) -> None:
        """See `ChecksumSum.absorb`."""
        self._folded.absorb(other._folded)

    @property
    def sums(self) -> tuple[int, int]:
        """(suma, sumb) of what was fed so far."""
        zeros = zlib.crc32(bytes(self._folded.item_bytes))
        codes = np.array(
            [
                zlib.crc32(item.data) ^ (0 if count % 2 else zeros)
                for item, count in zip(self._folded.items, self._folded.counts, strict=True)
            ],
            dtype=np.uint32,
        )
        codes[self._folded.counts == 0] = 0
        return _rotated_sums(codes)

    @property
    def text(self) -> str:
        """suma and sumb, separated by a blank."""
        return "{:x} {:x}".format(*self.sums)


class NerscChecksum(ChecksumSum):
    """NERSC checksum: the payload as unsigned 32-bit words, summed modulo 2^32.

    Words are decoded in the payload's own byte order; of double numbers both halves are added.

    Args:
        byte_order: ">" or "<".
    """

    kind = "nersc"

    def __init__(self, byte_order: str) -> None:
        super().__init__()
        self._type = np.dtype(f"{byte_order}u4")
        self._sum = 0

    def update(self, first_site: int, raw: RawBytes) -> None:
        """See `ChecksumSum.update`; a multiple of four bytes."""
        part = int(raw.view(self._type).sum(dtype=np.uint64))
        with self._lock:
            self._sum = (self._sum + part) % 2**32

    def absorb(self, other: Self) -> None:
        """See `ChecksumSum.absorb`."""
        self._sum = (self._sum + other._sum) % 2**32

    @property
    def value(self) -> int:
        """The sum."""
        return self._sum

    @property
    def text(self) -> str:
        """See `ChecksumSum.text`."""
        return f"{self._sum:x}"


class MilcChecksum(ChecksumSum):
    """MILC checksum: with w(i) the 32-bit words of the payload, decoded in its byte order,

        sum29 = XOR_i rotl32(w(i), i mod 29),    sum31 = XOR_i rotl32(w(i), i mod 31).

    Args:
        site_bytes: bytes of one site.
        byte_order: ">" or "<".
    """

    kind = "milc"

    def __init__(self, site_bytes: int, byte_order: str) -> None:
        super().__init__()
        self._words_per_site = site_bytes // 4
        self._type = np.dtype(f"{byte_order}u4")
        self._folded = _Folded(4)

    def update(self, first_site: int, raw: RawBytes) -> None:
        """See `ChecksumSum.update`."""
        self._folded.add(first_site * self._words_per_site, raw.reshape(-1, 4), self._lock)

    def absorb(self, other: Self) -> None:
        """See `ChecksumSum.absorb`."""
        self._folded.absorb(other._folded)

    @property
    def sums(self) -> tuple[int, int]:
        """(sum29, sum31) of what was fed so far."""
        words = self._folded.items.view(self._type).reshape(-1)
        return _rotated_sums(words.astype(np.uint32))

    @property
    def text(self) -> str:
        """sum29 and sum31, separated by a blank."""
        return "{:x} {:x}".format(*self.sums)


class _Folded:
    """The XOR of all items of each class mod 899, and how many there were."""

    def __init__(self, item_bytes: int) -> None:
        self.item_bytes = item_bytes
        self.items = np.zeros((_CLASSES, item_bytes), dtype=np.uint8)
        self.counts = np.zeros(_CLASSES, dtype=np.int64)

    def add(self, first: int, raw: RawBytes, lock: threading.Lock) -> None:
        """Add consecutive items `raw[i, byte]`, the first of which has number `first`."""
        word = np.dtype(np.uint64 if self.item_bytes % 8 == 0 else np.uint32)
        items = raw.view(word)
        whole = len(items) // _CLASSES * _CLASSES
        # In the order of arrival: item i of the sum has class (first + i) mod 899
        part = np.zeros((_CLASSES, items.shape[1]), dtype=word)
        if whole:
            np.bitwise_xor.reduce(items[:whole].reshape(-1, *part.shape), axis=0, out=part)
        part[: len(items) - whole] ^= items[whole:]
        counts = np.full(_CLASSES, whole // _CLASSES)
        counts[: len(items) - whole] += 1
        begin = first % _CLASSES
        end = _CLASSES - begin
        total = self.items.view(word)
        with lock:
            total[begin:] ^= part[:end]
            total[:begin] ^= part[end:]
            self.counts[begin:] += counts[:end]
            self.counts[:begin] += counts[end:]

    def absorb(self, other: _Folded) -> None:
        self.items ^= other.items
        self.counts += other.counts


def _rotated_sums(codes: npt.NDArray[np.uint32]) -> tuple[int, int]:
    """XOR over classes k of rotl32(codes[k], k mod 29), and the same mod 31."""
    classes = np.arange(_CLASSES, dtype=np.uint64)
    first, second = (
        int(np.bitwise_xor.reduce(rotate_left(codes, classes % modulus))) for modulus in (29, 31)
    )
    return first, second


def rotate_left(
    words: npt.NDArray[np.uint32], shifts: npt.NDArray[np.unsignedinteger[Any]]
) -> npt.NDArray[np.uint32]:
    """Bits of each 32-bit word rotated left by shifts in [0, 32).

    A shift by 0 is the identity: the right shift is done by (32 - s) mod 32, never by 32, which
    is undefined in C and was in some of the codes that write these sums.
    """
    left = shifts.astype(np.uint32)
    right = (np.uint32(32) - left) % np.uint32(32)
    return (words << left) | (words >> right)


def parse_hexadecimal(text: str) -> int | None:
    """A checksum as other codes print it (0x or not, blanks, any case); None if it is not one."""
    try:
        value = int(text.strip(), 16)
    except ValueError:
        return None
    return value if 0 <= value < 2**32 else None
