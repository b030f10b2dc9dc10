"""The format "milc": MILC binary gauge files.

Version 5, read and written, 32 bit in the byte order of the machine that wrote it:

    offset 0    int32     magic 20103
    offset 4    int32[4]  nx, ny, nz, nt
    offset 20   char[64]  time stamp, padded with NUL
    offset 84   int32     order: 0 natural (x fastest, t slowest)
    offset 88   int32[V]  only if the order is not 0: the sites in the order of the data
    then        uint32[2] sum29, sum31
    then        float32   links of each site: mu (x, y, z, t), row, column, real and imaginary part

Read only: versions 1-4 (magic, extents, two reals, links from byte 28 on) and the files of FNAL
(magic, time, size of a number, numbers per site, extents, order, links from byte 36 on), which have
no checksum. Source: the readers of MILC (`io_lat4`), PyQUDA and SIMULATeQCD.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np

from ..byte_order import proven_order
from ..checksums import MilcChecksum, NerscChecksum, RawBytes
from ..configuration import Checksum, Header
from ..errors import FormatError
from ..formats import PathLike
from ..layout import Layout, check_size
from ..layout_format import Description, Frame, LayoutFormat, Written
from ..links import LinkSource
from ..metadata import no_text
from ..storage import FileStorage, OpenStorage
from ..surplus import check_end
from ..text import decode_text, encode_text
from .info import ENDING, info_text, lost_items, read_info
from .sites import LARGEST_VOLUME, SiteListSource

_VERSION_5, _VERSION_1, _FNAL = 20103, 59354, 0x71626434
_WRITERS = {_VERSION_5: "MILC", _VERSION_1: "MILC version 1-4", _FNAL: "FNAL (old MILC)"}
_ORDERS = {"little": "<", "big": ">"}
_STAMP_BYTES = 64
# Written where the metadata have nothing, and not read back as metadata.
_NO_STAMP = "Thu Jan  1 00:00:00 1970"
_STAMP = "time_stamp"


class MilcFormat(LayoutFormat):
    """MILC binary files; 32 bit, SU(3)."""

    name = "milc"
    description = "MILC binary version 5 with its .info file (versions 1-4 and FNAL are read)"
    options = {"byte_order": ("little", "big")}  # noqa: RUF012 - declared in Format
    precisions = (32,)

    def detect(self, head: bytes, path: PathLike) -> bool:
        """By the magic number, in either byte order."""
        return _magic(head) is not None

    def read_header(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> Header:
        """See `Format.read_header`. The `.info` file beside it is read if it belongs to it."""
        found = _parse(path)
        place = _proven(path, found)
        info = read_info(path, found.layout.dims, found.sums)
        return Header(
            format=self.name,
            dims=found.layout.dims,
            nc=3,
            precision=32,
            layout=None if found.list_offset is not None else place,
            writer=_WRITERS[found.magic],
            checksum=(
                None
                if found.sums is None
                else Checksum("milc", "{:x} {:x}".format(*found.sums), None)
            ),
            plaquette=info.plaquette,
            link_trace=info.link_trace,
            metadata=found.metadata | info.metadata,
            warnings=[*found.warnings, *info.warnings],
            failed_checks=found.failed_checks,
        )

    @contextmanager
    def open(
        self, path: PathLike, header: Header, storage: OpenStorage = FileStorage
    ) -> Iterator[LinkSource]:
        """See `LayoutFormat.open`."""
        if header.layout is not None:
            with super().open(path, header, storage) as source:
                yield source
            return
        found = _parse(path)
        assert found.list_offset is not None
        with storage(path) as file:
            place, order = _proven(path, found), found.layout.byte_order
            yield SiteListSource(file, place, found.list_offset, order)

    def new_checksum(self, layout: Layout) -> MilcChecksum:
        """See `LayoutFormat.new_checksum`."""
        return MilcChecksum(layout.site_bytes, layout.word_order or layout.byte_order)

    def frame(self, path: PathLike, field: Description, options: dict[str, str]) -> Frame:
        """Version 5 in natural order."""
        if field.nc != 3:
            raise FormatError(
                path, None, f"milc files hold SU(3), not SU({field.nc}): write it as nersc or ildg"
            )
        if max(field.dims) >= 2**31:
            raise FormatError(path, None, f"extents {field.dims} do not fit in 32 bits")
        return _MilcFrame(field, _ORDERS[options["byte_order"]])


class _MilcSums(MilcChecksum):
    """The checksums of the file and, for the info file, the NERSC sum over two rows."""

    def __init__(self, site_bytes: int, byte_order: str) -> None:
        super().__init__(site_bytes, byte_order)
        self._nersc = NerscChecksum(byte_order)

    def update(self, first_site: int, raw: RawBytes) -> None:
        super().update(first_site, raw)
        two_rows = raw.reshape(-1, 3, 24)[:, :2]  # bytes of a row
        self._nersc.update(first_site, np.ascontiguousarray(two_rows).reshape(-1))

    def absorb(self, other: Self) -> None:
        super().absorb(other)
        self._nersc.absorb(other._nersc)

    @property
    def nersc_sum(self) -> int:
        return self._nersc.value


class _MilcFrame(Frame):
    def __init__(self, field: Description, byte_order: str) -> None:
        super().__init__(Layout(0, field.dims, 3, 3, 32, byte_order))
        self._metadata = field.metadata
        stamp = field.metadata.get(_STAMP) or _NO_STAMP
        # The writer's readers expect one line of text that ends within the 64 bytes
        self._stamp = encode_text(" ".join(stamp.splitlines()))
        if len(self._stamp) >= _STAMP_BYTES:
            # Not inside a letter of several bytes
            kept = self._stamp[: _STAMP_BYTES - 1].decode(errors="ignore")
            self._stamp = kept.encode()
            self.warnings.append(f"{_STAMP} cut to {len(kept)} characters")
        lost = lost_items(field.metadata)
        if lost:
            self.warnings.append(f"milc files have no place for: {', '.join(lost)}")
        self.warnings += no_text(field.metadata, field.metadata.keys() - set(lost))

    def new_checksum(self) -> _MilcSums:
        return _MilcSums(self.layout.site_bytes, self.layout.byte_order)

    def prefix(self, written: Written | None) -> bytes:
        sums = (0, 0) if written is None else _sums(written).sums
        return struct.pack(
            f"{self.layout.byte_order}5i{_STAMP_BYTES}si2I",
            _VERSION_5,
            *self.layout.dims,
            self._stamp,
            0,
            *sums,
        )

    def companions(self, written: Written) -> dict[str, bytes]:
        sums, mean = _sums(written), written.measurements.plaquettes
        assert mean.space is not None
        content = info_text(
            magic=_VERSION_5,
            stamp=self._stamp.decode(),
            sums=sums.sums,
            dims=self.layout.dims,
            metadata=self._metadata,
            plaquettes=(mean.space, mean.time),
            link_trace=written.measurements.link_trace,
            nersc_sum=sums.nersc_sum,
        )
        return {ENDING: content}


def _sums(written: Written) -> _MilcSums:
    assert isinstance(written.checksum, _MilcSums)
    return written.checksum


@dataclass(frozen=True)
class _Found:
    """The header of a binary file.

    Attributes:
        magic: which of the three kinds it is.
        layout: where the links are, and how they would be stored in natural order.
        list_offset: first byte of the site list, or None for natural order.
        sums: (sum29, sum31), or None if its kind has none.
        metadata: what it says besides.
        warnings: oddities.
        failed_checks: as in `Header`.
    """

    magic: int
    layout: Layout
    list_offset: int | None = None
    sums: tuple[int, int] | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    failed_checks: dict[str, str] = field(default_factory=dict)


def _magic(head: bytes) -> tuple[int, str] | None:
    """Magic number and byte order of a file that begins with `head`, or None."""
    for order in "<>":
        if len(head) >= 4:
            (magic,) = struct.unpack_from(f"{order}I", head)
            if magic in _WRITERS:
                return magic, order
    return None


def _parse(path: PathLike) -> _Found:
    """The header, its claims compared with the size of the file."""
    with open(path, "rb") as file:
        head = file.read(96)
    recognised = _magic(head)
    if recognised is None:
        raise FormatError(path, 0, "not a MILC file: it does not begin with its magic number")
    magic, order = recognised
    needed = {_VERSION_5: 96, _VERSION_1: 28, _FNAL: 36}[magic]
    if len(head) < needed:
        raise FormatError(path, len(head), f"the file ends inside the {_WRITERS[magic]} header")
    found = {_VERSION_5: _version_5, _VERSION_1: _version_1, _FNAL: _fnal}[magic](path, head, order)
    end = found.layout.offset + found.layout.total_bytes
    found.failed_checks.update(check_end(path, end, found.warnings))
    if found.sums is None:
        found.warnings.append("no checksum in this file: damage would go unnoticed")
    return found


def _proven(path: PathLike, found: _Found) -> Layout:
    """The layout with the byte order of the links, which may not be that of the header."""
    place = proven_order(path, found.layout, found.warnings)
    if place is not found.layout and _sums_of(path, found.layout) == found.sums:
        return replace(place, word_order=found.layout.byte_order)
    return place


def _sums_of(path: PathLike, layout: Layout) -> tuple[int, int]:
    """(sum29, sum31) of the bytes, whatever numbers they are."""
    checksum = MilcChecksum(layout.site_bytes, layout.byte_order)
    with FileStorage(path) as storage:
        for t in range(layout.dims[-1]):
            offset, count = layout.pieces(t, 0, layout.dims[-2])[0]
            raw = np.empty(count, dtype=np.uint8)
            storage.read(offset, raw)
            checksum.update((offset - layout.offset) // layout.site_bytes, raw)
    return checksum.sums


def _version_5(path: PathLike, head: bytes, order: str) -> _Found:
    raw_stamp, site_order, *sums = struct.unpack_from(f"{order}{_STAMP_BYTES}si2I", head, 20)
    stamp = decode_text(raw_stamp.split(b"\0", 1)[0]).strip()
    dims = _dims(path, head, order, 4)
    metadata = {_STAMP: stamp} if stamp not in ("", _NO_STAMP) else {}
    if site_order == 0:
        return _Found(
            _VERSION_5, _layout(path, 96, dims, order), None, (sums[0], sums[1]), metadata
        )
    volume = math.prod(dims)
    layout = _layout(path, 96 + 4 * volume, dims, order)
    if volume > LARGEST_VOLUME:
        raise FormatError(path, 4, f"{volume} sites are more than a site list can name")
    with open(path, "rb") as file:
        file.seek(88 + 4 * volume)
        sums = list(struct.unpack(f"{order}2I", file.read(8)))
    return _Found(_VERSION_5, layout, 88, (sums[0], sums[1]), metadata)


def _version_1(path: PathLike, head: bytes, order: str) -> _Found:
    layout = _layout(path, 28, _dims(path, head, order, 4), order)
    first, second = struct.unpack_from(f"{order}2f", head, 20)
    metadata = {"milc.c1": f"{first:.9g}", "milc.c2": f"{second:.9g}"}
    return _Found(_VERSION_1, layout, metadata=metadata)


def _fnal(path: PathLike, head: bytes, order: str) -> _Found:
    seconds, number_bytes, numbers = struct.unpack_from(f"{order}3i", head, 4)
    (site_order,) = struct.unpack_from(f"{order}i", head, 32)
    if (number_bytes, numbers) != (4, 72):
        raise FormatError(
            path,
            8,
            f"{numbers} numbers of {number_bytes} bytes per site: a gauge field of this kind has "
            "72 of 4 bytes",
        )
    if site_order != 0:
        raise FormatError(path, 32, f"order {site_order} of the sites is not known, only 0 is")
    layout = _layout(path, 36, _dims(path, head, order, 16), order)
    return _Found(_FNAL, layout, metadata={"milc.gmtime": str(seconds)})


def _dims(path: PathLike, head: bytes, order: str, offset: int) -> tuple[int, ...]:
    dims = struct.unpack_from(f"{order}4i", head, offset)
    if min(dims) < 1:
        raise FormatError(path, offset, f"extents {dims} are not four positive numbers")
    return dims


def _layout(path: PathLike, offset: int, dims: tuple[int, ...], order: str) -> Layout:
    layout = Layout(offset, dims, 3, 3, 32, order)
    check_size(path, layout, Path(path).stat().st_size)
    return layout
