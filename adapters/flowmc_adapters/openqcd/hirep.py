"""The format "hirep": the native format of HiRep, for any number of colours.

Big-endian: five int32 N, T, X, Y, Z, a double with the mean plaquette normalised to 1, then double
complex links: t slowest, then x, y, z, then the direction in the order T, X, Y, Z, then row and
column. With open boundaries in time the plaquette is a weighted mean, see
`Measurements.weighted_plaquette`. No checksum, no metadata.
Source: files written by HiRep, beside the same fields written by openQCD.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..checksums import ChecksumSum, RawBytes
from ..configuration import ComplexArray, Header
from ..errors import CheckError, FormatError
from ..finite import not_finite_text
from ..formats import PathLike
from ..layout import Layout, check_size
from ..layout_format import Description, Frame, LayoutFormat, Written
from ..links import LinkSink, LinkSource, Slab
from ..metadata import no_place
from ..storage import FileStorage, OpenStorage, Storage
from ..surplus import check_end
from .time_slices import SliceAssembly, SliceCache

_HEADER = struct.Struct(">5id")
_MOST_COLOURS = 64
_LARGEST_EXTENT = 4096
# A slice and the one after it
_SLICES = 2


class HirepFormat(LayoutFormat):
    """HiRep's own files."""

    name = "hirep"
    description = "HiRep, any number of colours"
    precisions = (64,)
    open_boundaries = True

    def detect(self, head: bytes, path: PathLike) -> bool:
        """By a plausible header, whose plaquette may be wrong if the size of the file is right."""
        if len(head) < _HEADER.size:
            return False
        order, nc, extents, plaquette = _parse(head)
        if not _plausible(nc, extents):
            return False
        announced = _HEADER.size + math.prod(extents) * 64 * nc * nc
        if Path(path).stat().st_size == announced:
            return True
        return order == ">" and 1e-12 < abs(plaquette) <= 1 + 1e-9

    def read_header(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Header:
        """See `Format.read_header`."""
        with open(path, "rb") as file:
            head = file.read(_HEADER.size)
        if len(head) < _HEADER.size:
            raise FormatError(path, len(head), "the HiRep header has 28 bytes: truncated")
        order, nc, extents, plaquette = _parse(head)
        if not _plausible(nc, extents):
            raise FormatError(
                path, 0, f"HiRep header: N = {nc} and extents {extents} (t x y z) make no sense"
            )
        warnings = ["no checksum in this file: damage would go unnoticed"]
        if order == "<":
            warnings.append("the file is little-endian, unlike those of HiRep itself")
        place = Layout(_HEADER.size, (*extents[1:], extents[0]), nc, nc, 64, order)
        check_size(path, place)
        failed = check_end(path, _HEADER.size + place.total_bytes, warnings)
        return Header(
            format=self.name,
            dims=place.dims,
            nc=nc,
            precision=64,
            layout=place,
            writer="HiRep",
            plaquette=plaquette,
            warnings=warnings,
            failed_checks=failed,
            open_weights=True,
        )

    @contextmanager
    def open(
        self, path: PathLike, header: Header, storage: OpenStorage = FileStorage
    ) -> Iterator[LinkSource]:
        """See `LayoutFormat.open`."""
        assert header.layout is not None
        with storage(path) as file:
            yield _Source(file, header.layout)

    def frame(self, path: PathLike, field: Description, options: dict[str, str]) -> Frame:
        """See `LayoutFormat.frame`."""
        if not _plausible(field.nc, field.dims):
            raise FormatError(
                path,
                None,
                f"hirep files are written for N up to {_MOST_COLOURS} and extents up to "
                f"{_LARGEST_EXTENT} only",
            )
        return _HirepFrame(field)


class _HirepFrame(Frame):
    """The header of 28 bytes."""

    def __init__(self, field: Description) -> None:
        layout = Layout(0, field.dims, field.nc, field.nc, 64, ">")
        super().__init__(layout, no_place("hirep", field.metadata))

    def prefix(self, written: Written | None) -> bytes:
        plaquette = 0.0 if written is None else written.measurements.weighted_plaquette
        *space, time = self.layout.dims
        return _HEADER.pack(self.layout.nc, time, *space, plaquette)

    def sink(self, storage: Storage, layout: Layout) -> LinkSink:
        return _Sink(storage, layout)


class _Source(LinkSource):
    """Links of a HiRep file."""

    keeps_slices = True

    def __init__(self, storage: Storage, layout: Layout) -> None:
        self._path, self._layout = storage.path, layout
        self._cache = SliceCache(storage, layout, _SLICES)
        self.dims, self.nc, self.precision = layout.dims, layout.nc, 64

    def read(self, slab: Slab, out: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSource.read`."""
        stored = _planes(self._cache.get(slab[0]), self._layout, slab)
        out[..., :3, :, :] = stored[..., 1:, :, :]
        out[..., 3, :, :] = stored[..., 0, :, :]

    def _not_finite(self, slab: Slab, site: str) -> FormatError:
        return CheckError(
            self._path,
            self._cache.first_byte(slab[0]),
            not_finite_text(f"the links at {site}"),
        )


class _Sink(LinkSink):
    """Links to a HiRep file."""

    keeps_slices = True

    def __init__(self, storage: Storage, layout: Layout) -> None:
        self._layout, self._assembly = layout, SliceAssembly(storage, layout)

    def write(self, slab: Slab, links: ComplexArray, checksum: ChecksumSum | None = None) -> None:
        """See `LinkSink.write`."""
        stored = _planes(self._assembly.buffer(slab[0]), self._layout, slab)
        stored[..., 1:, :, :] = links[..., :3, :, :]
        stored[..., 0, :, :] = links[..., 3, :, :]
        self._assembly.filled(slab[0], stored.nbytes)

    def begin(self, slices: range) -> None:
        """See `LinkSink.begin`."""
        self._assembly.slices = slices

    def finish(self) -> None:
        """See `LinkSink.finish`."""
        self._assembly.finish()


def _planes(raw: RawBytes, layout: Layout, slab: Slab) -> npt.NDArray[np.complexfloating]:
    """A view of a time slice's bytes as the links `[z, y, x, mu, row, col]` of a slab, mu in the
    order of the file."""
    _, start, stop = slab
    lx, ly, lz, _ = layout.dims
    sites = raw.view(f"{layout.byte_order}c16").reshape(lx, ly, lz, 4, layout.nc, layout.nc)
    return sites[:, :, start:stop].transpose(2, 1, 0, 3, 4, 5)


def _parse(head: bytes) -> tuple[str, int, list[int], float]:
    """Byte order, N, extents and plaquette; big-endian, as HiRep writes, unless only the other
    order makes sense."""
    for order in "><":
        nc, *extents, plaquette = struct.unpack_from(f"{order}5id", head)
        if _plausible(nc, extents):
            return order, nc, extents, plaquette
    nc, *extents, plaquette = _HEADER.unpack_from(head)
    return ">", nc, extents, plaquette


def _plausible(nc: int, extents: tuple[int, ...] | list[int]) -> bool:
    return 2 <= nc <= _MOST_COLOURS and all(1 <= extent <= _LARGEST_EXTENT for extent in extents)
