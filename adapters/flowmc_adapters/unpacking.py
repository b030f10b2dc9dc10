"""Compressed files: unpacked once, to a temporary file without a name, and read from there.

Links are read at several places, which no compressed file allows; the disk bears what memory must
not. The temporary file is in the directory that `tempfile` chooses (`TMPDIR`).
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import tempfile
import threading
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import IO, Any

from .configuration import Configuration, Header, PathLike
from .errors import FormatError
from .formats import Format
from .heads import read_head
from .layout_format import LayoutFormat
from .links import LinkSource
from .selection import split_selection
from .storage import FileStorage, OpenStorage

_CHUNK = 2**20
_HEAD_BYTES = 4096
# Links hardly compress; only cold fields and hostile files go beyond
_ALWAYS_ALLOWED, _MOST_EXPANSION = 2**30, 16
# xz -9 takes a quarter of it, and a hostile file could ask for gigabytes
_XZ_MEMORY = 2**28


@dataclass(frozen=True)
class Compression:
    """A way of compressing files.

    Attributes:
        name: of it.
        magic: first bytes of a file.
        command: unpacks a file.
        suffix: of the files.
    """

    name: str
    magic: bytes
    command: str
    suffix: str


COMPRESSIONS = (
    Compression("gzip", b"\x1f\x8b", "gunzip -k", ".gz"),
    Compression("bzip2", b"BZh", "bunzip2 -k", ".bz2"),
    Compression("xz", b"\xfd7zXZ\0", "unxz -k", ".xz"),
)


def compression_of(head: bytes) -> Compression | None:
    """How the file that begins so is compressed, if it can be unpacked here, else None."""
    return next((one for one in COMPRESSIONS if head.startswith(one.magic)), None)


def is_compressed(path: PathLike) -> bool:
    """Whether a file, or that of FILE#N, is compressed and can be unpacked here.

    Raises:
        FormatError: a pipe or a device.
        OSError: the file cannot be opened.
    """
    return not os.path.isdir(path) and compression_of(read_head(path)) is not None


def unpacked_head(path: PathLike, compression: Compression) -> bytes:
    """The first bytes of what a compressed file holds, as far as they can be had."""
    try:
        with open(path, "rb") as file:
            return next(_parts(file, compression), b"")[:_HEAD_BYTES]
    except _DAMAGE:
        return b""


@contextmanager
def unpacked(path: PathLike) -> Iterator[str]:
    """A path under which the content of a compressed file, or of the one of FILE#N, can be read.

    Errors about that path are raised as errors about the compressed file. The copy that was made
    last is kept, as a file is asked for several times in a row.

    Raises:
        FormatError: damaged, truncated, or of an absurd size.
        OSError: it cannot be opened, or there is no room.
    """
    file, selection = split_selection(path)
    copy = _copy_of(file)
    try:
        yield copy.path if selection is None else f"{copy.path}#{selection}"
    except FormatError as error:
        if error.path != copy.path and not error.path.startswith(f"{copy.path}#"):
            raise
        where = "" if error.offset is None else f"byte {error.offset} of what is compressed: "
        raise type(error)(path, None, where + error.reason) from error


def unpacking(path: PathLike, detect: Callable[[PathLike], Format]) -> Format:
    """The format of what a compressed file holds, made to read it from there.

    Args:
        path: the file.
        detect: finds the format of a file.
    """
    with unpacked(path) as plain:
        inner = detect(plain)
    return UnpackingLayout(inner) if isinstance(inner, LayoutFormat) else UnpackingWhole(inner)


class _Unpacking(Format):
    """A format of another one's compressed files; not in the table of formats.

    Args:
        inner: the format of what is compressed.
    """

    writable = False

    def __init__(self, inner: Format) -> None:
        self._inner = inner
        self.name, self.description = inner.name, inner.description
        self.layouts, self.several = inner.layouts, inner.several

    def detect(self, head: bytes, path: PathLike) -> bool:
        """Never: `unpacking` decides."""
        return False

    def read_header(self, path: PathLike, **options: Any) -> Header:
        """See `Format.read_header`."""
        with unpacked(path) as plain:
            return _told(self._inner.read_header(plain, **options), path)

    def write(self, path: PathLike, *arguments: Any, **options: Any) -> list[str]:
        """Raises FormatError."""
        raise self.read_only(path)


class UnpackingLayout(_Unpacking, LayoutFormat):
    """Of files whose links are at regular places once they are unpacked."""

    _inner: LayoutFormat

    @contextmanager
    def open(
        self, path: PathLike, header: Header, storage: OpenStorage = FileStorage
    ) -> Iterator[LinkSource]:
        """See `LayoutFormat.open`."""
        with unpacked(path) as plain, self._inner.open(plain, header, storage) as source:
            yield source


class UnpackingWhole(_Unpacking):
    """Of files that are read into memory."""

    def read(self, path: PathLike, **options: Any) -> Configuration:
        """See `Format.read`."""
        with unpacked(path) as plain:
            return self._inner.read(plain, **options)


def command_for(path: PathLike) -> str:
    """The command that unpacks a compressed file."""
    file = split_selection(path)[0]
    compression = compression_of(read_head(file))
    return f"{compression.command if compression else 'unpack'} {os.fspath(file)}"


def _told(header: Header, path: PathLike) -> Header:
    compression = compression_of(read_head(path))
    if compression is not None:
        header = replace(
            header,
            warnings=[
                *header.warnings,
                f"compressed with {compression.name}: read from an unpacked temporary copy",
            ],
        )
    return header


class _Copy:
    """A temporary file, which is gone when nobody holds on to it any more."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        open_file = f"/proc/self/fd/{file.fileno()}"
        # Elsewhere it needs a name, and is removed when it is closed
        self.path = open_file if os.path.exists(open_file) else str(file.name)

    def __del__(self) -> None:
        self._file.close()


_lock = threading.Lock()
_last: tuple[tuple[object, ...], _Copy] | None = None


def _copy_of(path: PathLike) -> _Copy:
    global _last
    status = os.stat(path)
    key = (os.path.realpath(path), status.st_mtime_ns, status.st_size, status.st_ino)
    with _lock:
        if _last is None or _last[0] != key:
            _last = None  # the room may be needed
            _last = key, _unpack(path, status.st_size)
        return _last[1]


def _unpack(path: PathLike, size: int) -> _Copy:
    compression = compression_of(read_head(path))
    if compression is None:
        raise FormatError(path, 0, "not compressed, or in another way than a moment ago")
    most = max(_ALWAYS_ALLOWED, _MOST_EXPANSION * size)
    unnamed = os.path.isdir("/proc/self/fd")
    copy = tempfile.TemporaryFile() if unnamed else tempfile.NamedTemporaryFile()  # noqa: SIM115
    done = 0
    parts = None
    with open(path, "rb") as file:
        parts = _parts(file, compression)
        while True:
            try:
                part = next(parts, b"")
            except _DAMAGE as error:
                copy.close()
                raise FormatError(
                    path,
                    None,
                    f"compressed with {compression.name}, and damaged or truncated after "
                    f"{done} bytes of what it holds: {error}",
                ) from error
            if not part:
                break
            done += len(part)
            if done > most:
                copy.close()
                raise FormatError(
                    path,
                    None,
                    f"compressed with {compression.name}, and holds more than {most} bytes: "
                    f"unpack it yourself if that is right ({compression.command})",
                )
            copy.write(part)
    copy.flush()
    return _Copy(copy)


_DAMAGE = (EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, OSError, ValueError)


def _parts(file: IO[bytes], compression: Compression) -> Iterator[bytes]:
    """What a compressed file holds, in pieces of bounded size."""
    if compression.name == "xz":
        yield from _xz_parts(file)
        return
    reader: IO[bytes] = (
        gzip.GzipFile(fileobj=file) if compression.name == "gzip" else bz2.BZ2File(file)  # type: ignore[assignment]
    )
    while part := reader.read(_CHUNK):
        yield part


def _xz_parts(file: IO[bytes]) -> Iterator[bytes]:
    """As `lzma.open`, which knows no bound of the memory."""
    decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
    data = b""
    while True:
        if decoder.eof:
            data = decoder.unused_data.lstrip(b"\0") or file.read(_CHUNK).lstrip(b"\0")
            if not data:
                return
            decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        elif decoder.needs_input:
            data = file.read(_CHUNK)
            if not data:
                raise EOFError("the file ends early")
        else:
            data = b""
        if part := decoder.decompress(data, _CHUNK):
            yield part
