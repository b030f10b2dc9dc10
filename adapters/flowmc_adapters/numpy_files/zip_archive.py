"""As much of zip archives as numpy archives need: where the members are, and the bytes around them.

Sizes are checked before anything is read, and nothing is unpacked beyond the size that is claimed.
"""

from __future__ import annotations

import struct
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from ..configuration import PathLike
from ..errors import FormatError

_PIECE = 2**20
_STORED, _DEFLATED = 0, 8
# Deflate cannot do better than this.
_MOST_COMPRESSION = 1032
_LOCAL = struct.Struct("<4sHHHHHIIIHH")
_CENTRAL = struct.Struct("<4sHHHHHHIIIHHHHHII")
_END = struct.Struct("<4sHHHHIIH")
_END64 = struct.Struct("<4sQHHIIQQQQ")
_LOCATOR64 = struct.Struct("<4sIQI")
# Sizes and places from here on are kept elsewhere, and this number stands for them.
_LIMIT = _MARK = 0xFFFFFFFF
# 1 January 1980, the first day that a zip archive can name
_DATE = 0x21


@dataclass(frozen=True)
class ZipMember:
    """A file in an archive.

    Attributes:
        name: of the file.
        header: byte at which its header begins.
        offset: byte at which its data begin.
        packed: bytes of data in the archive.
        size: bytes of data, unpacked.
        crc: CRC-32 of the data, unpacked.
        stored: whether the data are not compressed.
    """

    name: str
    header: int
    offset: int
    packed: int
    size: int
    crc: int
    stored: bool = True

    @staticmethod
    def of(name: str, header: int, size: int, crc: int) -> ZipMember:
        """A member to be written, uncompressed."""
        return ZipMember(name, header, 0, size, size, crc)


def members(path: PathLike) -> dict[str, ZipMember]:
    """The members of an archive by name.

    Raises:
        FormatError: damaged, encrypted, compressed in an unusual way, or too large to be true.
    """
    size = Path(path).stat().st_size
    try:
        with zipfile.ZipFile(path) as archive:
            infos = archive.infolist()
    except (OSError, MemoryError) as error:
        if isinstance(error, FileNotFoundError | PermissionError | IsADirectoryError):
            raise
        raise FormatError(path, None, f"damaged zip archive: {error}") from error
    except Exception as error:  # damage shows as almost any exception
        raise FormatError(path, None, f"damaged or truncated zip archive: {error}") from error
    found: dict[str, ZipMember] = {}
    with open(path, "rb") as file:
        for info in infos:
            if not 0 <= info.header_offset <= size - _LOCAL.size:
                raise FormatError(path, size, f"damaged zip archive: {info.filename!r} is missing")
            file.seek(info.header_offset)
            magic, *_, name, extra = _LOCAL.unpack(file.read(_LOCAL.size))
            if magic != b"PK\3\4":
                raise FormatError(
                    path, info.header_offset, f"damaged zip archive: no file {info.filename!r} here"
                )
            offset = info.header_offset + _LOCAL.size + name + extra
            if info.compress_size < 0 or offset + info.compress_size > size:
                raise FormatError(
                    path, size, f"truncated zip archive: {info.filename!r} is longer than the file"
                )
            if info.flag_bits & 1 or info.compress_type not in (_STORED, _DEFLATED):
                raise FormatError(
                    path,
                    offset,
                    f"{info.filename!r} is encrypted or compressed in an unusual way: unpack the "
                    "archive and make it anew with numpy.savez",
                )
            stored = info.compress_type == _STORED
            most = info.compress_size * (1 if stored else _MOST_COMPRESSION)
            if info.file_size > most or (stored and info.file_size != info.compress_size):
                raise FormatError(
                    path,
                    offset,
                    f"{info.filename!r} claims {info.file_size} bytes, which {info.compress_size} "
                    "in the archive cannot give: damaged",
                )
            found[info.filename] = ZipMember(
                info.filename,
                info.header_offset,
                offset,
                info.compress_size,
                info.file_size,
                info.CRC,
                stored,
            )
    return found


def unpacked(path: PathLike, member: ZipMember, most: int) -> bytes:
    """The first `most` bytes of a member, or all of a shorter one. The CRC is not compared.

    Raises:
        FormatError: the compressed data are damaged.
    """
    wanted = min(most, member.size)
    with open(path, "rb") as file:
        file.seek(member.offset)
        if member.stored:
            data = file.read(wanted)
        else:
            # A few bytes of compressed data never give more than asked for
            packed = file.read(min(member.packed, 2 * wanted + 1024))
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, wanted)
            except zlib.error as error:
                raise FormatError(
                    path, member.offset, f"{member.name}: damaged compressed data: {error}"
                ) from error
    if len(data) != wanted:
        raise FormatError(
            path, member.offset, f"{member.name} ends after {len(data)} of {wanted} bytes: damaged"
        )
    return data


class Inflation:
    """A compressed member, unpacked from front to end.

    Args:
        path: the archive.
        member: which.
    """

    def __init__(self, path: PathLike, member: ZipMember) -> None:
        self._path, self._member = path, member
        self._file = open(path, "rb")  # noqa: SIM115 - closed by `close`
        self._file.seek(member.offset)
        self._packed_left = member.packed
        self._inflate = zlib.decompressobj(-zlib.MAX_WBITS)

    def read(self, count: int) -> bytes:
        """The next bytes.

        Raises:
            FormatError: the compressed data are damaged, or end early.
        """
        parts, missing = [], count
        while missing:
            packed = self._inflate.unconsumed_tail
            if not packed:
                packed = self._file.read(min(_PIECE, self._packed_left))
                self._packed_left -= len(packed)
            try:
                part = self._inflate.decompress(packed, missing)
            except zlib.error as error:
                raise FormatError(
                    self._path,
                    self._member.offset,
                    f"{self._member.name}: damaged compressed data: {error}",
                ) from error
            if not part and (not packed or self._inflate.eof):
                raise FormatError(
                    self._path,
                    self._member.offset,
                    f"{self._member.name} ends {missing} bytes early: damaged",
                )
            parts.append(part)
            missing -= len(part)
        return b"".join(parts)

    def close(self) -> None:
        """Close the archive."""
        self._file.close()


def local_header(member: ZipMember) -> bytes:
    """The bytes before the data of a member, equally long whatever its CRC."""
    name = member.name.encode("ascii")
    large = member.size >= _LIMIT
    extra = struct.pack("<HHQQ", 1, 16, member.size, member.size) if large else b""
    size = _MARK if large else member.size
    fields = (_version(large), 0, _STORED, 0, _DATE, member.crc, size, size)
    return _LOCAL.pack(b"PK\3\4", *fields, len(name), len(extra)) + name + extra


def central_directory(listed: list[ZipMember], begin: int) -> bytes:
    """The bytes behind all members.

    Args:
        listed: the members.
        begin: byte at which this begins.
    """
    directory = b""
    for member in listed:
        name = member.name.encode("ascii")
        values = []
        size, header = member.size, member.header
        if size >= _LIMIT:
            values, size = [member.size, member.size], _MARK
        if header >= _LIMIT:
            values, header = [*values, member.header], _MARK
        extra = b""
        if values:
            extra = struct.pack(f"<HH{len(values)}Q", 1, 8 * len(values), *values)
        version = _version(bool(values))
        fields = (version, version, 0, _STORED, 0, _DATE, member.crc, size, size)
        directory += _CENTRAL.pack(b"PK\1\2", *fields, len(name), len(extra), 0, 0, 0, 0, header)
        directory += name + extra
    count, length, offset = len(listed), len(directory), begin
    end = b""
    if begin >= _LIMIT:
        end = _END64.pack(b"PK\6\6", 44, 45, 45, 0, 0, count, count, length, begin)
        end += _LOCATOR64.pack(b"PK\6\7", 0, begin + length, 1)
        offset = _MARK
    return directory + end + _END.pack(b"PK\5\6", 0, 0, count, count, length, offset, 0)


def _version(large: bool) -> int:
    """Of the zip specification: 4.5 for sizes of 64 bits."""
    return 45 if large else 20
