"""The format "bridge": the text files of Bridge++, which Gaugefields.jl writes, too; read only.

One real number per line: t slowest, then z, y, x, mu (x, y, z, t), row, column, real and imaginary
part. Nothing else is in the file: the extents must be given, the number of colours follows from
the number of lines. Source: such a file beside the same field in ILDG format.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .configuration import Configuration, Header
from .errors import FormatError
from .formats import Format, PathLike

_BLOCK = 2**22
# The longest that a double takes, with blanks to spare
_LONGEST_LINE = 128
_CHARACTERS = b"+-.0123456789eE \t\r\n"
_REAL = re.compile(rb"[ \t]*[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?[ \t]*\r?")
# Elements of unitary matrices, rounded
_LARGEST = 1.1
_LINES_LOOKED_AT = 8
_MOST_COLOURS = 64
_GUESSES = 8
_WARNING = "no checksum in this file: damage would go unnoticed"


class BridgeFormat(Format):
    """Text, one number per line."""

    name = "bridge"
    description = "Bridge++ and Gaugefields.jl text, one number per line (read only)"
    writable = False

    def detect(self, head: bytes, path: PathLike) -> bool:
        """By the first lines: single real numbers from -1.1 to 1.1."""
        complete = len(head) >= Path(path).stat().st_size
        lines = head.split(b"\n")
        if not complete or lines[-1] == b"":
            lines.pop()
        if len(lines) < _LINES_LOOKED_AT or head.translate(None, _CHARACTERS):
            return False
        return all(
            _REAL.fullmatch(line) is not None and abs(float(line)) <= _LARGEST for line in lines
        )

    def read_header(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Header:
        """See `Format.read_header`; counts the lines."""
        extents, nc = _shape(path, _count(path), dims)
        return Header(format=self.name, dims=extents, nc=nc, precision=64, warnings=[_WARNING])

    def read(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Configuration:
        """See `Format.read`."""
        count = _count(path)
        extents, nc = _shape(path, count, dims)
        reals = np.empty(count)
        filled = 0
        for offset, block in _blocks(path):
            values = _parse(path, offset, block)
            if values.size > count - filled:
                raise FormatError(path, offset, "the file grew while it was being read")
            reals[filled : filled + values.size] = values
            filled += values.size
        if filled < count:
            raise FormatError(path, None, "the file shrank while it was being read")
        links = reals.view(np.complex128).reshape(*reversed(extents), 4, nc, nc)
        return Configuration(links=links, warnings=[_WARNING], format=self.name)

    def write(
        self,
        path: PathLike,
        configuration: Configuration,
        *,
        precision: int | None = None,
        **options: str,
    ) -> list[str]:
        """Raises FormatError."""
        raise self.read_only(path)


def _blocks(path: PathLike) -> Iterator[tuple[int, bytes]]:
    """(offset, whole lines) of a file, the last line with or without its newline."""
    with open(path, "rb") as file:
        offset, rest = 0, b""
        while piece := file.read(_BLOCK):
            block = rest + piece
            end = block.rfind(b"\n") + 1
            if len(block) - end > _LONGEST_LINE:
                raise FormatError(
                    path, offset + end, "a line of more than a number: the file is damaged"
                )
            if end:
                yield offset, block[:end]
            offset, rest = offset + end, block[end:]
        if rest:
            yield offset, rest


def _count(path: PathLike) -> int:
    """Numbers in the file, if it has one on every line."""
    return sum(block.count(b"\n") + (not block.endswith(b"\n")) for _, block in _blocks(path))


def _shape(path: PathLike, count: int, dims: tuple[int, ...] | None) -> tuple[tuple[int, ...], int]:
    """Extents and number of colours."""
    if dims is None:
        raise FormatError(
            path,
            None,
            "the extents of the lattice are not in the file: give them as dims=(Lx, Ly, Lz, Lt) or "
            f"--dims; its {count} numbers would be {_guesses(count)}",
        )
    if len(dims) != 4 or any(extent < 1 for extent in dims):
        raise FormatError(path, None, f"dims must be four positive numbers, not {dims}")
    per_site = 8 * math.prod(dims)
    nc = math.isqrt(count // per_site)
    if not 2 <= nc <= _MOST_COLOURS or per_site * nc**2 != count:
        raise FormatError(
            path,
            None,
            f"{count} numbers are no lattice of {'x'.join(map(str, dims))} sites with 8 N^2 "
            f"numbers each: they would be {_guesses(count)}; otherwise the file is truncated",
        )
    return tuple(dims), nc


def _guesses(count: int) -> str:
    """Lattices L^3 x T, L no larger than T, L and T even, that have this many numbers."""
    found = [
        (nc != 3, -space, f"{space}x{space}x{space}x{volume // space**3} with N = {nc}")
        for nc in range(2, 9)
        if count % (8 * nc * nc) == 0
        for volume in (count // (8 * nc * nc),)
        for space in range(2, math.isqrt(math.isqrt(volume)) + 1, 2)
        if volume % (2 * space**3) == 0
    ]
    if not found:
        return "no lattice with equal and even extents in space"
    names = [name for _, _, name in sorted(found)]
    return ", ".join(names[:_GUESSES]) + (", ..." if len(names) > _GUESSES else "")


def _parse(path: PathLike, offset: int, block: bytes) -> npt.NDArray[np.float64]:
    """The numbers of some lines.

    Raises:
        FormatError: a line is no finite number.
    """
    lines = block.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    # What float() would take besides: underscores, nan, infinity
    if not block.translate(None, _CHARACTERS):
        try:
            values = np.fromiter(map(float, lines), np.float64, len(lines))
        except ValueError:
            pass
        else:
            if np.isfinite(values).all():
                return values
    for line in lines:
        if _REAL.fullmatch(line) is None or not math.isfinite(float(line)):
            raise FormatError(
                path, offset, f"not a real number: {line[:40]!r}; the file is damaged"
            )
        offset += len(line) + 1
    raise AssertionError("float() refused what looks like a number")
