"""The LIME container: a file as a sequence of typed records.

A record is a 144-byte big-endian header, its data, and zero bytes up to the next multiple of 8:

    offset 0    uint32    magic 0x456789ab
    offset 4    uint16    version 1
    offset 6    uint8     0x80 message begins, 0x40 message ends
    offset 7    uint8     0
    offset 8    uint64    data length, without padding
    offset 16   char[128] record type, padded with NUL

Source: c-lime (USQCD), `lime_fixed_types.h`. The reader goes by lengths and types only: the message
flags, the record order and the trailing NUL of text records differ between the codes that write
these files.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..errors import FormatError
from ..formats import PathLike

MAGIC = 0x456789AB
HEADER_BYTES = 144
_HEADER = struct.Struct(">IHBBQ128s")
_BEGIN, _END = 0x80, 0x40
# Text records are kilobytes; this bounds what a damaged length can make us read.
_LARGEST_TEXT = 16 * 2**20
# Files of gauge fields have some ten records, files of many propagators a few thousand.
_MOST_RECORDS = 20_000


@dataclass(frozen=True)
class LimeRecord:
    """One record of a file.

    Attributes:
        kind: record type.
        offset: byte at which its header begins.
        length: bytes of data, without padding.
        message_end: the flag as found, which real writers often get wrong.
    """

    kind: str
    offset: int
    length: int
    message_end: bool

    @property
    def data_offset(self) -> int:
        """Byte at which the data begins."""
        return self.offset + HEADER_BYTES


def scan_records(path: PathLike) -> tuple[list[LimeRecord], list[str]]:
    """All records of a file, and warnings about harmless oddities. Data are skipped, not read.

    Raises:
        FormatError: a record header is damaged, a record is longer than the file, or there are too
            many of them.
    """
    size = Path(path).stat().st_size
    records: list[LimeRecord] = []
    warnings: list[str] = []
    with open(path, "rb") as file:
        offset = 0
        while offset < size:
            file.seek(offset)
            raw = file.read(HEADER_BYTES)
            if len(raw) < HEADER_BYTES:
                if raw.strip(b"\0 \t\r\n"):
                    raise FormatError(
                        path, offset, "the file ends inside a LIME record header: truncated"
                    )
                warnings.append(f"byte {offset}: {len(raw)} stray bytes after the last LIME record")
                break
            magic, version, flags, _, length, name = _HEADER.unpack(raw)
            if magic != MAGIC:
                before = f" after record '{records[-1].kind}'" if records else ""
                raise FormatError(
                    path,
                    offset,
                    f"no LIME record{before} (magic is {magic:#010x}, not {MAGIC:#010x}): the file "
                    "is damaged, or the length of the record before is wrong",
                )
            if len(records) == _MOST_RECORDS:
                raise FormatError(
                    path, offset, f"more than {_MOST_RECORDS} LIME records: no configuration"
                )
            kind = name.split(b"\0", 1)[0].decode("ascii", errors="replace")
            if version != 1:
                warnings.append(f"byte {offset}: LIME version {version} instead of 1")
            record = LimeRecord(kind, offset, length, bool(flags & _END))
            end = record.data_offset + length
            if end > size:
                raise FormatError(
                    path,
                    size,
                    f"LIME record '{kind}' at byte {offset} announces {length} bytes, "
                    f"{size - record.data_offset} follow: the file is truncated",
                )
            records.append(record)
            offset = end + padding(length)
            if offset > size:
                warnings.append(f"the last LIME record, '{kind}', lacks its padding")
    return records, warnings


def read_data(path: PathLike, record: LimeRecord) -> bytes:
    """The data of a text record.

    Raises:
        FormatError: longer than any text record is.
    """
    if record.length > _LARGEST_TEXT:
        raise FormatError(
            path,
            record.offset,
            f"text record '{record.kind}' of {record.length} bytes: the record header is damaged",
        )
    with open(path, "rb") as file:
        file.seek(record.data_offset)
        return file.read(record.length)


def record_header(kind: str, length: int, *, begin: bool, end: bool) -> bytes:
    """The 144 bytes before the data.

    Args:
        kind: record type, at most 127 ASCII characters.
        length: bytes of data, without padding.
        begin: this record begins a message.
        end: this record ends a message.
    """
    name = kind.encode("ascii")
    if len(name) > 127:
        raise ValueError(f"LIME record type longer than 127 characters: {kind}")
    flags = (_BEGIN if begin else 0) | (_END if end else 0)
    return _HEADER.pack(MAGIC, 1, flags, 0, length, name)


def padding(length: int) -> int:
    """Zero bytes that follow `length` bytes of data."""
    return -length % 8


def write_record(file: BinaryIO, kind: str, data: bytes, *, begin: bool, end: bool) -> None:
    """Write one whole record."""
    file.write(record_header(kind, len(data), begin=begin, end=end))
    file.write(data + bytes(padding(len(data))))
