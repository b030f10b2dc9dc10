"""The format "bmw": files of the Budapest-Marseille-Wuppertal collaboration, read only.

4096 bytes of text, the first line of which is `#BMW Lx Ly Lz Lt checksum`; then big-endian double
links in the order of `Configuration`, the first two rows of each matrix, or all three where the
line begins with `#18BMW`. Sources: two codes of one group; no file written by them was at hand.
"""

from __future__ import annotations

import re
from typing import Self

import numpy as np

from .byte_order import proven_order
from .checksums import ChecksumSum, RawBytes
from .configuration import Checksum, Header
from .errors import FormatError
from .formats import PathLike
from .layout import Layout, check_size
from .layout_format import LayoutFormat
from .surplus import check_end
from .text import parse_integer

_HEADER_BYTES = 4096
_LARGEST_EXTENT = 2**16
_LINE = re.compile(rb"#(18)?BMW\b([^\n]*)\n")
_HEXADECIMAL = re.compile(r"(?:0[xX])?0*([0-9a-fA-F]{1,16})")
_DECIMAL = re.compile(r"\d{17,20}")
_PRIME = 2**32 - 5
_RUN = 2**16


class BmwFormat(LayoutFormat):
    """#BMW and #18BMW."""

    name = "bmw"
    description = "#BMW files (read only)"
    writable = False
    precisions = (64,)

    def detect(self, head: bytes, path: PathLike) -> bool:
        """By the first word."""
        return head.startswith((b"#BMW", b"#18BMW"))

    def read_header(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Header:
        """See `Format.read_header`."""
        with open(path, "rb") as file:
            head = file.read(_HEADER_BYTES)
        if len(head) < _HEADER_BYTES:
            raise FormatError(path, len(head), f"a BMW header has {_HEADER_BYTES} bytes: truncated")
        match = _LINE.match(head)
        if match is None:
            raise FormatError(path, 0, "BMW header: the first line is not `#BMW Lx Ly Lz Lt ...`")
        words = match[2].decode("latin-1").split()
        extents = [parse_integer(word) for word in words[:4]]
        sizes = tuple(n for n in extents if n is not None and 1 <= n <= _LARGEST_EXTENT)
        if len(sizes) != 4:
            raise FormatError(
                path, 0, f"BMW header: {' '.join(words[:4])[:60]!r} are not four positive extents"
            )
        warnings: list[str] = []
        checksum = _stored_checksum(words[4:5], warnings)
        rows = 2 if match[1] is None else 3
        place = Layout(_HEADER_BYTES, sizes, 3, rows, 64, ">")
        check_size(path, place)
        place = proven_order(path, place, warnings)
        failed = check_end(path, _HEADER_BYTES + place.total_bytes, warnings)
        if rows == 2:
            warnings.append(
                "the file holds 2 rows of each matrix; the last one was reconstructed and may "
                "differ in the last bits from that of the code that wrote the file"
            )
        return Header(
            format=self.name,
            dims=sizes,
            nc=3,
            precision=64,
            layout=place,
            checksum=checksum,
            warnings=warnings,
            failed_checks=failed,
        )

    def new_checksum(self, layout: Layout) -> BmwChecksum:
        """See `LayoutFormat.new_checksum`."""
        return BmwChecksum(layout)


def _stored_checksum(words: list[str], warnings: list[str]) -> Checksum | None:
    """The checksum of the first line.

    It does not bind: one code pads it, another prints it in decimal and never checks it on reading.
    """
    if not words:
        warnings.append("no checksum in this file: damage would go unnoticed")
        return None
    (word,) = words
    match = _HEXADECIMAL.fullmatch(word)
    # More digits than 64 bits have in hexadecimal
    if _DECIMAL.fullmatch(word) and (match is None or len(word) > 16):
        return Checksum("bmw", f"{int(word):x}", None, binding=False)
    if match is None:
        warnings.append(f"the checksum is not a hexadecimal number: {word[:40]!r}")
        return Checksum("bmw", "unreadable", None, binding=False)
    return Checksum("bmw", f"{int(match[1], 16):x}", None, binding=False)


class BmwChecksum(ChecksumSum):
    """Adler's checksum over 32-bit words: with w(0) .. w(n-1) those of the payload, big-endian, and
    p = 2^32 - 5,

        a = 1 + sum_j w(j)  mod p,    b = n + sum_j (n - j) w(j)  mod p,    checksum = 2^32 b + a,

    which is what a = 1, b = 0 become by `a += w(j); b += a` for all j in turn.

    Args:
        layout: of the file.
    """

    kind = "bmw"

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        self._words_per_site = layout.site_bytes // 4
        self._words = layout.total_bytes // 4
        self._sum = self._weighted = 0

    def update(self, first_site: int, raw: RawBytes) -> None:
        """See `ChecksumSum.update`."""
        words = raw.view(">u4")
        position = first_site * self._words_per_site
        total = weighted = 0
        for begin in range(0, words.size, _RUN):
            # Exact: the sum of j w(j) over 2^16 words stays below 2^63
            run = words[begin : begin + _RUN].astype(np.uint64)
            part = int(run.sum())
            inside = int(np.dot(run, np.arange(run.size, dtype=np.uint64)))
            total += part
            weighted += (self._words - position - begin) * part - inside
        with self._lock:
            self._sum = (self._sum + total) % _PRIME
            self._weighted = (self._weighted + weighted) % _PRIME

    def absorb(self, other: Self) -> None:
        """See `ChecksumSum.absorb`."""
        self._sum = (self._sum + other._sum) % _PRIME
        self._weighted = (self._weighted + other._weighted) % _PRIME

    @property
    def value(self) -> int:
        """The checksum of what was fed, other words counting as zeros."""
        low = (1 + self._sum) % _PRIME
        high = (self._words + self._weighted) % _PRIME
        return (high << 32) + low

    @property
    def text(self) -> str:
        """See `ChecksumSum.text`."""
        return f"{self.value:x}"
