"""The format "openqcd": the exported files of openQCD, openQ*D and DD-HMC (CERN format), which
Chroma, Grid, PyQUDA and SIMULATeQCD read, too.

Little-endian: four int32 T, X, Y, Z, all even; a double with the mean of Re tr P, 3 for a cold
field; then double complex links in the order of `openqcd_links`. With open boundaries the time
links of the last slice are zero, and the mean counts the plaquettes that do not exist as zeros.
Colours, precision, configuration number and checksum are not in the file.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ..byte_order import proven_order
from ..configuration import Header
from ..errors import FormatError
from ..formats import PathLike
from ..layout import Layout, check_size
from ..layout_format import Description, Frame, LayoutFormat, Written
from ..links import LinkSink, LinkSource
from ..metadata import no_place
from ..storage import FileStorage, OpenStorage, Storage
from ..surplus import check_end
from .links import OpenQcdSink, OpenQcdSource, has_fixed_start
from .u1 import U1_CHECK, find_u1

_EXPORT = struct.Struct("<4id")
_BLOCK = struct.Struct("<12id")
_SITE_BYTES = 576
_LARGEST_EXTENT = 4096
_BOTH = (
    "the file holds a field of openQ*D, SU(3) links and a U(1) field: ask for the links with "
    "layout='su3' (--layout su3) and for the U(1) angles with read_field, or --layout u1 in convert"
)
_NOT_LINKS = (
    "SU(N) links were asked for, this is the U(1) field of openQ*D: read it with "
    "flowmc_adapters.read_field, or convert it with --layout u1"
)
_NO_U1 = "no U(1) field in this file"
_EVEN = "openQCD stores the links around odd sites, so all extents must be even"


@dataclass(frozen=True)
class _Start:
    """The first bytes of a file.

    Attributes:
        size: bytes of the header.
        extents: T, X, Y, Z of the lattice.
        block: of the part that the file holds.
        plaquette: as stored, 3 for a cold field.
        order: "<", as openQCD writes on every machine, or ">".
    """

    size: int
    extents: tuple[int, ...]
    block: tuple[int, ...]
    plaquette: float
    order: str = "<"

    @property
    def total_bytes(self) -> int:
        """Size that the header announces."""
        return self.size + _SITE_BYTES * math.prod(self.block)


class OpenQcdFormat(LayoutFormat):
    """openQCD's configurations, exported as one file."""

    name = "openqcd"
    description = "openQCD, openQ*D, DD-HMC: exported configuration (CERN format)"
    precisions = (64,)
    layouts = ("su3", "u1")
    open_boundaries = True

    def detect(self, head: bytes, path: PathLike) -> bool:
        """By a plausible header, whose plaquette may be wrong if the size of the file is right."""
        start = _parse(head)
        if start is None:
            return False
        if start.order == ">":
            return Path(path).stat().st_size == start.total_bytes
        if start.size == _BLOCK.size or Path(path).stat().st_size == start.total_bytes:
            return True
        even = all(extent % 2 == 0 for extent in start.extents)
        return even and 1e-12 < abs(start.plaquette) <= 3 + 1e-9

    def read_header(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Header:
        """See `Format.read_header`."""
        with open(path, "rb") as file:
            start = _parse(file.read(_BLOCK.size))
        if start is None:
            raise FormatError(
                path, 0, "not an openQCD header (four extents, then the plaquette): truncated?"
            )
        if start.block != start.extents:
            raise FormatError(
                path,
                16,
                f"an openQCD block file with {_by(start.block)} of {_by(start.extents)} sites "
                "(t x y z): the whole lattice is needed, export it as type e with openQCD",
            )
        if any(extent % 2 for extent in start.extents):
            raise FormatError(path, 0, f"extents {_by(start.extents)} (t x y z): {_EVEN}")
        place = Layout(start.size, (*start.extents[1:], start.extents[0]), 3, 3, 64, start.order)
        u1 = find_u1(path) if start.order == "<" else None
        if layout == "u1" or (u1 is not None and u1.alone):
            raise FormatError(path, None, _NOT_LINKS if u1 is not None else _NO_U1)
        check_size(path, place)
        warnings = ["no checksum in this file: damage would go unnoticed"]
        if start.order == ">":
            warnings.append("the file is big-endian, unlike those of openQCD itself")
        place = proven_order(path, place, warnings)
        if u1 is None:
            failed = check_end(path, start.total_bytes, warnings)
        elif layout == "su3":
            failed = {}
            warnings.append("the U(1) field of this file is left out, as asked")
        else:
            failed = {U1_CHECK: _BOTH}
        plaquette: float | None = start.plaquette / 3
        boundary = ""
        if _has_fixed_start(path, place):
            warnings.append(
                "the first time slice is the boundary of a Schroedinger functional: the header's "
                f"plaquette {plaquette:.12g} counts plaquettes beyond the last slice, which are "
                "not in the file, and was not compared"
            )
            plaquette, boundary = None, "schroedinger"
        return Header(
            format=self.name,
            dims=place.dims,
            nc=3,
            precision=64,
            layout=place,
            writer="openQCD",
            plaquette=plaquette,
            warnings=warnings,
            failed_checks=failed,
            boundary=boundary,
        )

    @contextmanager
    def open(
        self, path: PathLike, header: Header, storage: OpenStorage = FileStorage
    ) -> Iterator[LinkSource]:
        """See `LayoutFormat.open`."""
        assert header.layout is not None
        with storage(path) as file:
            yield OpenQcdSource(file, header.layout)

    def frame(self, path: PathLike, field: Description, options: dict[str, str]) -> Frame:
        """See `LayoutFormat.frame`."""
        if field.nc != 3:
            raise FormatError(
                path, None, f"openqcd files hold SU(3) links only, this field has N = {field.nc}"
            )
        if any(extent % 2 for extent in field.dims):
            raise FormatError(path, None, f"extents {_by(field.dims)} (x y z t): {_EVEN}")
        return _ExportFrame(field)


class _ExportFrame(Frame):
    """The header of 24 bytes."""

    def __init__(self, field: Description) -> None:
        layout = Layout(0, field.dims, 3, 3, 64, "<")
        super().__init__(layout, no_place("openqcd", field.metadata))

    def prefix(self, written: Written | None) -> bytes:
        plaquette = 0.0 if written is None else 3 * written.measurements.plaquettes.mean
        *space, time = self.layout.dims
        return _EXPORT.pack(time, *space, plaquette)

    def sink(self, storage: Storage, layout: Layout) -> LinkSink:
        return OpenQcdSink(storage, layout)

    def finish(self, path: Path, written: Written) -> None:
        super().finish(path, written)
        if _has_fixed_start(path, self.layout.moved(_EXPORT.size)):
            self.warnings.append(
                "the first time slice is the boundary of a Schroedinger functional, for which "
                "openQCD expects a plaquette that counts its upper boundary, too: the header "
                "holds the periodic mean"
            )


def _parse(head: bytes) -> _Start | None:
    """The header, that of a block if it makes sense as one; None if nothing makes sense.

    A block of an exported file would have the plaquette 1e-313. In the other byte order, in which
    other codes have written these files, no extent is small.
    """
    if len(head) >= _BLOCK.size:
        *numbers, plaquette = _BLOCK.unpack_from(head)
        extents, block, origin = (tuple(numbers[i : i + 4]) for i in (0, 4, 8))
        if _plausible(extents) and all(
            1 <= part <= whole and 0 <= first <= whole - part
            for whole, part, first in zip(extents, block, origin, strict=True)
        ):
            return _Start(_BLOCK.size, extents, block, plaquette)
    if len(head) < _EXPORT.size:
        return None
    for order in "<>":
        *numbers, plaquette = struct.unpack_from(f"{order}4id", head)
        extents = tuple(numbers)
        if _plausible(extents) and (order == "<" or not any(extent % 2 for extent in extents)):
            return _Start(_EXPORT.size, extents, extents, plaquette, order)
    return None


def _plausible(extents: tuple[int, ...]) -> bool:
    return all(1 <= extent <= _LARGEST_EXTENT for extent in extents)


def _has_fixed_start(path: PathLike, layout: Layout) -> bool:
    with FileStorage(path) as storage:
        return has_fixed_start(storage, layout)


def _by(extents: tuple[int, ...]) -> str:
    return "x".join(map(str, extents))
