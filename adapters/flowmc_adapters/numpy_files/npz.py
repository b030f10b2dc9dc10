"""The format "npz": a zip archive of numpy arrays, `links` and `metadata`.

`links` is `(Lt, Lz, Ly, Lx, 4, N, N)`, in d dimensions `(L_{d-1}, ..., L_0, d, N, N)`; `metadata` a
text, a JSON object of strings. Nothing pickled is ever read or written. The archive's own CRC-32 of
`links` is the checksum. Written without compression, so that links are read and written in place;
compressed links, as `numpy.savez_compressed` makes them, are unpacked a time slice at a time, and
held in memory if they are in Fortran order. Sources: numpy's
description of the format, and PKWARE's of zip archives.
"""

from __future__ import annotations

import io
import sys
import threading
import zlib
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ..bounds import require_bounded
from ..byte_order import proven_order
from ..checksums import ChecksumSum, RawBytes
from ..configuration import Checksum, ComplexArray, Header, is_gauge_shape
from ..errors import CheckError, FormatError
from ..finite import first_non_finite, not_finite_text, site_text
from ..formats import PathLike
from ..layout import Layout, check_size
from ..layout_format import Description, Frame, LayoutFormat, Written
from ..links import ArraySource, LayoutSource, LinkSource, Slab
from ..metadata import metadata_text, parse_metadata
from ..storage import FileStorage, OpenStorage, Storage
from .crc32 import Crc32Sum
from .npy import gauge_header, parse_header, possible_layouts
from .zip_archive import Inflation, ZipMember, central_directory, local_header, members, unpacked

LINKS, METADATA = "links.npy", "metadata.npy"
_LARGEST_HEADER = 2**16
_LARGEST_METADATA = 2**26
# Threads keep in step over slices larger than this, see `transfer`: one slice and the one above it
_LARGE_SLICE = 2**24
_LARGE_SLICES, _SMALL_SLICES = 3, 8
_KEPT_BYTES = 2**25


@dataclass(frozen=True)
class NpzHeader(Header):
    """A header that remembers the member that the links are in, and the bytes before them."""

    member: ZipMember | None = None
    before: bytes = b""
    byte_order: str = "<"


class NpzFormat(LayoutFormat):
    """A gauge field with metadata as a numpy archive."""

    name = "npz"
    description = "numpy archive: links (Lt, Lz, Ly, Lx, 4, N, N) and metadata"
    four_dimensions = False

    def detect(self, head: bytes, path: PathLike) -> bool:
        """Any zip archive; those without links are refused by name."""
        return head.startswith(b"PK\x03\x04")

    def read_header(
        self,
        path: PathLike,
        *,
        dims: tuple[int, ...] | None = None,
        layout: str | None = None,
    ) -> NpzHeader:
        """See `Format.read_header`."""
        found = members(path)
        if LINKS not in found:
            raise FormatError(
                path,
                None,
                f"a zip archive without {LINKS}, no gauge field; it holds "
                f"{', '.join(sorted(found)[:8]) or 'nothing'}: unpack it and give the file inside",
            )
        member = found[LINKS]
        start = unpacked(path, member, _LARGEST_HEADER)
        stream = io.BytesIO(start)
        shape, fortran, dtype = parse_header(path, stream)
        if "flowmc" not in possible_layouts(shape, dtype):
            raise FormatError(
                path,
                member.offset,
                f"{LINKS} is a {dtype} array of shape {shape}, no gauge field (Lt, Lz, Ly, Lx, 4, "
                "N, N)",
            )
        assert is_gauge_shape(shape)
        before = start[: stream.tell()]
        order = ">" if dtype.newbyteorder(">") == dtype else "<"
        extents, nc = tuple(reversed(shape[:-3])), shape[-1]
        place = Layout(member.offset + len(before), extents, nc, nc, 4 * dtype.itemsize, order)
        if member.size - len(before) != place.total_bytes:
            raise FormatError(
                path,
                member.offset,
                f"links of shape {shape} have {place.total_bytes} bytes, the archive holds "
                f"{member.size - len(before)}: damaged",
            )
        in_place = member.stored and not fortran
        metadata, warnings = _read_metadata(path, found.get(METADATA))
        if in_place:
            check_size(path, place)
            place = proven_order(path, place, warnings)
        others = sorted(found.keys() - {LINKS, METADATA})
        if others:
            warnings.append(f"not read, other arrays in the archive: {', '.join(others[:8])}")
        return NpzHeader(
            format=self.name,
            dims=extents,
            nc=nc,
            precision=place.precision,
            layout=place if in_place else None,
            checksum=Checksum(Crc32Sum.kind, f"{member.crc:x}", None),
            metadata=metadata,
            warnings=warnings,
            member=member,
            before=before,
            byte_order=order,
        )

    @contextmanager
    def open(
        self, path: PathLike, header: Header, storage: OpenStorage = FileStorage
    ) -> Iterator[LinkSource]:
        """See `LayoutFormat.open`; compressed links are unpacked by the way."""
        if not isinstance(header, NpzHeader) or header.member is None:
            raise TypeError(f"{self.name}: the header is of another format")
        if header.layout is None and not _in_order(path, header.member):
            yield _unpacked_source(path, header.member)
            return
        if header.layout is None:
            with _PackedStorage(path, header.member, header.before, header) as packed:
                yield _PackedSource(packed, packed.layout, _sum_of(header))
            return
        with storage(path) as file:
            yield LayoutSource(file, header.layout, _sum_of(header))

    def frame(self, path: PathLike, field: Description, options: dict[str, str]) -> Frame:
        """See `LayoutFormat.frame`."""
        return _NpzFrame(field)


class _NpzFrame(Frame):
    def __init__(self, field: Description) -> None:
        super().__init__(Layout(0, field.dims, field.nc, field.nc, field.precision, "<"))
        self._before = gauge_header(self.layout)
        text = io.BytesIO()
        np.lib.format.write_array(
            text, np.array(metadata_text(field.metadata), dtype="<U"), allow_pickle=False
        )
        self._metadata = text.getvalue()

    def new_checksum(self) -> Crc32Sum:
        return Crc32Sum(self.layout.site_bytes, self.layout.total_bytes, self._before)

    def _members(self, written: Written | None) -> tuple[ZipMember, ZipMember, bytes]:
        """Both members, and the bytes before the links."""
        crc = 0
        if written is not None:
            assert isinstance(written.checksum, Crc32Sum)
            crc = written.checksum.value
        first = ZipMember.of(METADATA, 0, len(self._metadata), zlib.crc32(self._metadata))
        begin = local_header(first) + self._metadata
        size = len(self._before) + self.layout.total_bytes
        second = ZipMember.of(LINKS, len(begin), size, crc)
        return first, second, begin + local_header(second) + self._before

    def prefix(self, written: Written | None) -> bytes:
        return self._members(written)[2]

    def suffix(self, written: Written) -> bytes:
        first, second, before = self._members(written)
        return central_directory([first, second], len(before) + self.layout.total_bytes)


def _sum_of(header: NpzHeader) -> Callable[[Layout], ChecksumSum]:
    return lambda layout: Crc32Sum(layout.site_bytes, layout.total_bytes, header.before)


def _in_order(path: PathLike, member: ZipMember) -> bool:
    """Whether the links of a member lie one time slice after the other."""
    _, fortran, _ = parse_header(path, io.BytesIO(unpacked(path, member, _LARGEST_HEADER)))
    return not fortran


class _PackedStorage(Storage):
    """Compressed links, unpacked a time slice at a time and in order.

    The slices used last are kept for the threads at work, and the first one for the end of the
    lattice; whoever comes back for another one unpacks from the beginning again.

    Args:
        path: the file.
        member: the compressed links.
        before: bytes before the first link.
        header: of the file.

    Attributes:
        layout: of the links, the first one at byte 0.

    Raises:
        FormatError: so small a file does not hold slices so large.
    """

    def __init__(self, path: PathLike, member: ZipMember, before: bytes, header: NpzHeader) -> None:
        self.path, self._member, self._before = path, member, before
        self.layout = Layout(
            0, header.dims, header.nc, header.nc, header.precision, header.byte_order
        )
        self._slice_bytes = self.layout.total_bytes // header.dims[-1]
        most = _LARGE_SLICES if self._slice_bytes > _LARGE_SLICE else _SMALL_SLICES
        require_bounded(path, LINKS, self._slice_bytes, member.size, member.packed)
        self._most = max(most, _KEPT_BYTES // self._slice_bytes)
        self._lock = threading.Lock()
        self._kept: OrderedDict[int, RawBytes] = OrderedDict()
        self._first: RawBytes | None = None
        self._stream: Inflation | None = None
        self._next = 0

    def read(self, offset: int, out: RawBytes) -> None:
        """See `Storage.read`; never across time slices."""
        t, begin = divmod(offset, self._slice_bytes)
        out[...] = self._slice(t)[begin : begin + out.size]

    def write(self, offset: int, data: RawBytes) -> None:
        """Compressed members are read only."""
        raise TypeError("compressed members are read only")

    def close(self) -> None:
        """See `Storage.close`."""
        if self._stream is not None:
            self._stream.close()

    def _slice(self, t: int) -> RawBytes:
        with self._lock:
            if t == 0 and self._first is not None:
                return self._first
            found = self._kept.get(t)
            if found is not None:
                return found
            if self._stream is None or t < self._next:
                self.close()
                self._stream, self._next = Inflation(self.path, self._member), 0
                self._stream.read(len(self._before))
            while self._next <= t:
                raw = np.frombuffer(self._stream.read(self._slice_bytes), np.uint8)
                if self._next == 0:
                    self._first = raw
                self._kept[self._next] = raw
                self._next += 1
                if len(self._kept) > self._most:
                    self._kept.popitem(last=False)
            return raw


class _PackedSource(LayoutSource):
    """Links of a compressed member."""

    keeps_slices = True

    def _not_finite(self, slab: Slab, site: str) -> FormatError:
        return CheckError(self._storage.path, None, not_finite_text(f"the links at {site}"))


class _KnownSum(ChecksumSum):
    """The checksum of links that were read all at once."""

    kind = Crc32Sum.kind

    def __init__(self, value: int) -> None:
        super().__init__()
        self._value = value

    def update(self, first_site: int, raw: RawBytes) -> None:
        """Nothing is left to do."""

    def absorb(self, other: ChecksumSum) -> None:
        """Nothing is left to do."""

    @property
    def text(self) -> str:
        """See `ChecksumSum.text`."""
        return f"{self._value:x}"


class _MemorySource(ArraySource):
    """Links in memory with the checksum of where they came from."""

    def __init__(self, links: ComplexArray, path: PathLike, crc: int) -> None:
        super().__init__(links, path)
        self._crc = crc

    def new_checksum(self) -> ChecksumSum:
        return _KnownSum(self._crc)


def _unpacked_source(path: PathLike, member: ZipMember) -> LinkSource:
    """Links in Fortran order: time runs fastest, so that there are no slices to take apart."""
    require_bounded(path, LINKS, member.size, member.size, member.packed)
    data = unpacked(path, member, member.size)
    stream = io.BytesIO(data)
    shape, fortran, dtype = parse_header(path, stream)
    numbers = np.frombuffer(data, dtype=dtype, offset=stream.tell())
    links = np.ascontiguousarray(
        numbers.reshape(shape, order="F" if fortran else "C"), dtype=dtype.newbyteorder("=")
    )
    bad = first_non_finite(links)
    if bad is not None:
        raise CheckError(path, None, not_finite_text(f"the links at {site_text(bad)}"))
    return _MemorySource(links, path, zlib.crc32(data))


def _one_text(array: npt.NDArray[Any]) -> str | None:
    """The text that an array holds, or None. Checked here: numpy makes a string of any numbers, and
    one of numbers that are no characters brings the interpreter down."""
    if array.dtype.kind != "U" or array.size != 1:
        return None
    native = array.astype(array.dtype.newbyteorder("="))
    codes = np.frombuffer(native.tobytes(), np.uint32)
    return str(array.item()) if codes.max(initial=0) <= sys.maxunicode else None


def _read_metadata(path: PathLike, member: ZipMember | None) -> tuple[dict[str, str], list[str]]:
    if member is None:
        return {}, []
    if member.size > _LARGEST_METADATA:
        return {}, [f"{METADATA} of {member.size} bytes ignored: too long"]
    try:
        array = np.lib.format.read_array(
            io.BytesIO(unpacked(path, member, member.size)), allow_pickle=False
        )
        text = _one_text(array)
    except Exception:  # damage shows as almost any exception
        text = None
    found = None if text is None else parse_metadata(text)
    if found is None:
        return {}, [f"{METADATA} is not a text with a JSON object of texts: ignored"]
    return found, []
