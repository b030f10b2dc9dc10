"""Links as bytes: the order that NERSC, ILDG and SciDAC files share.

Slowest to fastest: t, z, y, x, mu (x, y, z, t), row, column, real and imaginary part. Formats
differ in precision, byte order and in how many rows of a matrix they store.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from .checksums import RawBytes
from .configuration import ComplexArray
from .errors import CheckError, FormatError
from .observables import first_non_finite, site_text


@dataclass(frozen=True)
class PayloadLayout:
    """Where the links are in a file and how they are stored.

    Attributes:
        offset: first byte.
        dims: extents (Lx, Ly, Lz, Lt).
        nc: number of colours N.
        rows: rows stored per matrix, N or N - 1.
        precision: bits of a real number, 32 or 64.
        byte_order: ">" big-endian, "<" little-endian.
    """

    offset: int
    dims: tuple[int, ...]
    nc: int
    rows: int
    precision: int
    byte_order: str

    @property
    def site_bytes(self) -> int:
        """Bytes of one site, all its links together."""
        return len(self.dims) * self.rows * self.nc * 2 * self.precision // 8

    @property
    def total_bytes(self) -> int:
        """Bytes of the payload."""
        return math.prod(self.dims) * self.site_bytes

    @property
    def real_type(self) -> np.dtype[np.floating]:
        """Type of a real number in the file."""
        return np.dtype(f"{self.byte_order}f{self.precision // 8}")


def raw_slices(
    file: BinaryIO, path: str | os.PathLike[str], layout: PayloadLayout
) -> Iterator[RawBytes]:
    """The payload's bytes, one time slice after the other.

    Raises:
        FormatError: the file ends early.
    """
    file.seek(layout.offset)
    slices = layout.dims[-1]
    slice_bytes = layout.total_bytes // slices
    for t in range(slices):
        raw = np.empty(slice_bytes, dtype=np.uint8)
        got = file.readinto(raw.data)  # type: ignore[attr-defined]
        if got != slice_bytes:
            end = layout.offset + t * slice_bytes + (got or 0)
            raise FormatError(
                path, end, f"the file ends inside the links (time slice {t}): truncated"
            )
        yield raw


def read_links(
    path: str | os.PathLike[str],
    layout: PayloadLayout,
    on_bytes: Callable[[RawBytes], None] | None = None,
) -> ComplexArray:
    """Read a payload.

    Args:
        path: the file.
        layout: where and how the links are stored.
        on_bytes: called with the bytes of each time slice, for a checksum.

    Returns:
        `U[t, z, y, x, mu, row, col]`, complex64 or complex128 as in the file. Where the file has
        N - 1 rows the last one is reconstructed.

    Raises:
        FormatError: the file ends before the links do; checked before any memory is taken.
        CheckError: a stored number is not finite; names the first site.
    """
    check_size(path, Path(path).stat().st_size, layout)
    nc, rows, directions = layout.nc, layout.rows, len(layout.dims)
    shape = (*reversed(layout.dims), directions, nc, nc)
    complex_type = np.complex64 if layout.precision == 32 else np.complex128
    real_type = np.float32 if layout.precision == 32 else np.float64
    links = np.empty(shape, dtype=complex_type)
    slice_bytes = layout.total_bytes // layout.dims[-1]
    with open(path, "rb") as file:
        for t, raw in enumerate(raw_slices(file, path, layout)):
            if on_bytes is not None:
                on_bytes(raw)
            stored = raw.view(layout.real_type).reshape(*shape[1:-2], rows, nc, 2)
            part = links[t].view(real_type).reshape(*shape[1:], 2)
            part[..., :rows, :, :] = stored
            bad = first_non_finite(stored)
            if bad is not None:
                real = int(np.ravel_multi_index(bad, stored.shape))
                raise CheckError(
                    path,
                    layout.offset + t * slice_bytes + real * layout.precision // 8,
                    f"not a finite number in the links at {site_text((t, *bad[:-1]))}: the file is "
                    "damaged, or was written by a run that had already failed",
                )
            if rows < nc:
                links[t, ..., nc - 1, :] = last_row(links[t, ..., :rows, :])
    return links


def check_size(path: str | os.PathLike[str], file_bytes: int, layout: PayloadLayout) -> None:
    """Raise FormatError if the file is too short for the links that its header announces."""
    present = max(0, file_bytes - layout.offset)
    if present < layout.total_bytes:
        raise FormatError(
            path,
            layout.offset + present,
            f"the header announces {layout.total_bytes} bytes of links (lattice "
            f"{'x'.join(map(str, layout.dims))}, N = {layout.nc}, {layout.rows} rows, "
            f"{layout.precision} bit) but {present} follow: truncated, or the header is wrong",
        )


def links_as_bytes(links: ComplexArray, byte_order: str) -> Iterator[RawBytes]:
    """The bytes of all N rows at the links' own precision, one time slice after the other."""
    size = links.dtype.itemsize // 2
    for part in links:
        reals = np.ascontiguousarray(part).view(f"=f{size}").astype(f"{byte_order}f{size}")
        yield reals.reshape(-1).view(np.uint8)


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
    if nc == 3:
        return np.asarray(np.cross(double[..., 0, :], double[..., 1, :]).conj())
    cofactors = [
        (-1) ** (nc - 1 + column) * np.linalg.det(np.delete(double, column, axis=-1))
        for column in range(nc)
    ]
    return np.asarray(np.stack(cofactors, axis=-1).conj())


def require_finite(path: str | os.PathLike[str], links: ComplexArray) -> None:
    """Raise CheckError if a link about to be written is not finite."""
    for t, part in enumerate(links):
        bad = first_non_finite(part)
        if bad is not None:
            raise CheckError(
                path,
                None,
                f"refusing to write a link that is not finite, at {site_text((t, *bad))}; "
                "nothing was written",
            )


def require_four_dimensions(path: str | os.PathLike[str], links: ComplexArray, name: str) -> None:
    """Raise FormatError if the format, which knows four dimensions only, cannot hold the links."""
    if links.shape[-3] != 4:
        raise FormatError(
            path,
            None,
            f"{name} files hold four-dimensional lattices, this field has {links.shape[-3]} "
            "dimensions: write it as npy",
        )
