"""Gauge fields in four numpy files, one for each direction, as latticeqcd-rs writes them.

`...u0.npy` to `...u3.npy`, directions x, y, z, t, each `(N, N, Lx, Ly, Lz, Lt)`, the row first, in
Fortran order: in the file sites run as everywhere else, x fastest, but each matrix is transposed.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..checksums import ChecksumSum
from ..configuration import DIRECTIONS, ComplexArray, Header, PathLike
from ..errors import CheckError, FormatError
from ..finite import not_finite_text
from ..links import LinkSource, Slab, first_site
from ..storage import Storage

_NAME = re.compile(r"(.*u)[0-3](\.npy)")


def is_one_direction(
    path: PathLike, shape: tuple[int, ...], fortran: bool, ambiguous: bool
) -> bool:
    """Whether an array is one direction of a gauge field, `(N, N, Lx, Ly, Lz, Lt)`.

    Args:
        path: the file.
        shape: of the array.
        fortran: order of its axes.
        ambiguous: the shape is one of a whole gauge field in three dimensions, too; then the order
            and the name of the file have to say so.
    """
    if len(shape) != 6 or shape[0] != shape[1] or min(shape) < 1:
        return False
    return not ambiguous or (fortran and _NAME.fullmatch(Path(path).name) is not None)


def sibling_paths(path: PathLike) -> list[Path]:
    """The four files that `path` is one of.

    Raises:
        FormatError: the name does not say which direction it is, or one of the four is missing.
    """
    given = Path(path)
    match = _NAME.fullmatch(given.name)
    if match is None:
        raise FormatError(
            path,
            None,
            "this array holds one direction of a gauge field, and the name does not tell which: "
            "call the files of the directions x, y, z, t ...u0.npy, ...u1.npy, ...u2.npy, "
            "...u3.npy, in one directory",
        )
    paths = [given.with_name(f"{match[1]}{mu}{match[2]}") for mu in range(4)]
    for mu, sibling in enumerate(paths):
        if not sibling.is_file():
            raise FormatError(
                path,
                None,
                f"one direction of a gauge field in four files, and {sibling.name}, direction "
                f"{'xyzt'[mu]}, is missing beside it",
            )
    return paths


@dataclass(frozen=True)
class Part:
    """One of the four files.

    Attributes:
        storage: the open file.
        offset: of the first number.
        dtype: of the numbers.
    """

    storage: Storage
    offset: int
    dtype: np.dtype[Any]


class SiblingSource(LinkSource):
    """Links of four files in Fortran order.

    Args:
        header: of the field.
        parts: the files of the directions x, y, z, t.
    """

    def __init__(self, header: Header, parts: list[Part]) -> None:
        self._parts = parts
        self.dims, self.nc, self.precision = header.dims, header.nc, header.precision

    def read(self, slab: Slab, out: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSource.read`."""
        count = math.prod(out.shape[:-3])
        for mu, part in enumerate(self._parts):
            offset, size = self._place(part, slab, count)
            raw = np.empty(size, dtype=np.uint8)
            part.storage.read(offset, raw)
            stored = raw.view(part.dtype).reshape(*out.shape[:-3], self.nc, self.nc)
            out[..., mu, :, :] = stored.swapaxes(-1, -2)

    def _place(self, part: Part, slab: Slab, count: int) -> tuple[int, int]:
        link_bytes = self.nc**2 * part.dtype.itemsize
        return part.offset + first_site(self.dims, slab) * link_bytes, count * link_bytes

    def _not_finite(self, slab: Slab, site: str) -> FormatError:
        part = self._parts[DIRECTIONS.index(site[-1])]
        return CheckError(
            part.storage.path,
            self._place(part, slab, 0)[0],
            not_finite_text(f"the links at {site}"),
        )
