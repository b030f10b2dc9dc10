"""Where the links are in a file and how they are stored: bytes to arrays and back.

Most formats differ only in precision, byte order, the rows that they store and the order of sites
and directions. `Layout` says which; `decode` and `encode` do the work, a slab (a block of planes of
a time slice) at a time.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from .checksums import RawBytes
from .configuration import ComplexArray
from .errors import FormatError


@dataclass(frozen=True)
class Layout:
    """Links stored at regular places.

    Slowest to fastest: t, z, y, x, mu (x, y, z, t), row, column, real and imaginary part.

    Attributes:
        offset: first byte.
        dims: extents (Lx, Ly, Lz, Lt).
        nc: number of colours N.
        rows: rows stored per matrix, N or N - 1.
        precision: bits of a real number, 32 or 64.
        byte_order: ">" big-endian, "<" little-endian.
        directions: first byte of the links of each direction, for files that keep the directions
            apart (mu slower than the sites); None where mu is inside the site. `offset` is then
            not used.
        word_order: byte order of the words that a checksum adds up; None for that of the links,
            from which it differs only where a file states the wrong one.
    """

    offset: int
    dims: tuple[int, ...]
    nc: int
    rows: int
    precision: int
    byte_order: str
    directions: tuple[int, ...] | None = None
    word_order: str | None = None

    @property
    def link_bytes(self) -> int:
        """Bytes of one link."""
        return self.rows * self.nc * 2 * self.precision // 8

    @property
    def site_bytes(self) -> int:
        """Bytes of one site, all its links together."""
        return len(self.dims) * self.link_bytes

    @property
    def total_bytes(self) -> int:
        """Bytes of all links."""
        return math.prod(self.dims) * self.site_bytes

    @property
    def real_type(self) -> np.dtype[np.floating]:
        """Type of a real number in the file."""
        return np.dtype(f"{self.byte_order}f{self.precision // 8}")

    @property
    def complex_type(self) -> np.dtype[np.complexfloating]:
        """Type of a link element in memory."""
        return np.dtype(np.complex64 if self.precision == 32 else np.complex128)

    def moved(self, offset: int) -> Layout:
        """The same layout `offset` bytes further on."""
        directions = self.directions
        if directions is not None:
            directions = tuple(offset + first for first in directions)
        return replace(self, offset=self.offset + offset, directions=directions)

    def pieces(self, t: int, start: int, stop: int) -> list[tuple[int, int]]:
        """(offset, bytes) of the contiguous pieces that hold the planes [start, stop) of slice t:
        one, or one for each direction."""
        plane = math.prod(self.dims[:-2])
        first, count = (t * self.dims[-2] + start) * plane, (stop - start) * plane
        if self.directions is None:
            return [(self.offset + first * self.site_bytes, count * self.site_bytes)]
        return [
            (offset + first * self.link_bytes, count * self.link_bytes)
            for offset in self.directions
        ]


def check_size(path: str | os.PathLike[str], layout: Layout, file_bytes: int | None = None) -> None:
    """Raise FormatError if the file is too short for the links that its header announces."""
    if file_bytes is None:
        file_bytes = Path(path).stat().st_size
    share = layout.total_bytes // (1 if layout.directions is None else len(layout.directions))
    for offset in layout.directions or (layout.offset,):
        present = max(0, file_bytes - offset)
        if present < share:
            raise FormatError(
                path,
                min(offset + present, file_bytes),
                f"the header announces {share} bytes of links (lattice "
                f"{'x'.join(map(str, layout.dims))}, N = {layout.nc}, {layout.rows} rows, "
                f"{layout.precision} bit) but {present} follow: truncated, or the header is wrong",
            )


def decode(raw: RawBytes, layout: Layout, out: ComplexArray) -> None:
    """Links from the bytes of a slab.

    Args:
        raw: bytes of the slab, its pieces one after the other.
        layout: how they are stored.
        out: filled, `[z, ..., x, mu, row, col]`, C order, of the layout's precision. Where the file
            has N - 1 rows the last one is reconstructed.
    """
    nc, rows = layout.nc, layout.rows
    native = out.real.dtype
    stored = raw.view(layout.real_type)
    if layout.directions is not None:
        stored = np.moveaxis(stored.reshape(-1, *out.shape[:-3], rows, nc, 2), 0, -4)
    reals = out.view(native).reshape(*out.shape, 2)
    reals[..., :rows, :, :] = stored.reshape(*out.shape[:-2], rows, nc, 2)
    if rows < nc:
        out[..., nc - 1, :] = last_row(out[..., :rows, :])


def encode(links: ComplexArray, layout: Layout, out: RawBytes) -> None:
    """The inverse of `decode`: fills `out` with the bytes of a slab."""
    stored = out.view(layout.real_type)
    shape = (*links.shape[:-2], layout.rows, layout.nc, 2)
    if layout.directions is None:
        stored = stored.reshape(shape)
    else:
        apart = stored.reshape(shape[-4], *shape[:-4], *shape[-3:])
        stored = np.moveaxis(apart, 0, -4)
    reals = np.ascontiguousarray(links).view(links.real.dtype).reshape(*links.shape, 2)
    stored[...] = reals[..., : layout.rows, :, :]


def last_row(rows: ComplexArray) -> npt.NDArray[np.complex128]:
    """The row that completes N - 1 orthonormal rows to a matrix of determinant 1.

    `U[N-1, j] = conj(C_j)`, C_j the cofactor of that element; for N = 3 `conj(row0 x row1)`.
    Computed in double precision. Codes that do it in single precision differ in the last bit.

    Args:
        rows: `[..., N-1, N]`.

    Returns:
        `[..., N]`.
    """
    nc = rows.shape[-1]
    double = rows.astype(np.complex128)
    with np.errstate(all="ignore"):  # numbers of a damaged file, or in the wrong byte order
        if nc == 3:
            return np.asarray(np.cross(double[..., 0, :], double[..., 1, :]).conj())
        cofactors = [
            (-1) ** (nc - 1 + column) * np.linalg.det(np.delete(double, column, axis=-1))
            for column in range(nc)
        ]
        return np.asarray(np.stack(cofactors, axis=-1).conj())
