"""Appending to an HDF5 file so that a crash at any moment loses what is being appended, no more.

HDF5 changes a file in many small writes, and one that stops in between is lost. Here the library
works on the file through `Overlay`: what goes behind the old end is written, what would change
bytes before it is kept back. Then, each step reaching the disk before the next one begins,

    1. the new bytes are behind the old end, where nothing refers to them yet,
    2. the changes are in a journal beside the file, `.NAME.journal`,
    3. they are made in the file,
    4. the journal is removed.

After a crash in step 1 or 2 the file is as before; in step 3 or 4 the journal says what is missing:
`Overlay` shows readers of this package the complete file, and the next append completes it.
"""

from __future__ import annotations

import fcntl
import io
import os
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ..atomic import atomic_write
from ..configuration import PathLike
from ..errors import FormatError
from .file import MAGIC, VERSIONS

_PAGE = 4096
_JOURNAL_MAGIC = b"flowmcJ1"
_JOURNAL = struct.Struct("<8sQQII")
_ENTRY = struct.Struct("<QI")
_LARGEST_JOURNAL = 2**30
Patches = list[tuple[int, bytes]]


class Overlay(io.RawIOBase):
    """A file with changes that are not in it.

    Args:
        descriptor: of the file; not closed.
        patches: changes to begin with, (offset, bytes).
        boundary: writes before this byte are kept back, others reach the file; None for reading.
    """

    def __init__(self, descriptor: int, patches: Patches, boundary: int | None = None) -> None:
        self._descriptor, self._boundary, self._place = descriptor, boundary or 0, 0
        self._writable = boundary is not None
        self._pages: dict[int, bytearray] = {}
        for offset, data in patches:
            self._keep(offset, data)

    @property
    def patches(self) -> Patches:
        """The changes kept back."""
        found = []
        for page, data in sorted(self._pages.items()):
            begin = page * _PAGE
            found.append((begin, bytes(data[: self._boundary - begin])))
        return found

    def readable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def writable(self) -> bool:
        """See `io.RawIOBase`."""
        return self._writable

    def seekable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def tell(self) -> int:
        """See `io.RawIOBase`."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """See `io.RawIOBase`."""
        size = os.fstat(self._descriptor).st_size
        self._place = {0: 0, 1: self._place, 2: size}[whence] + offset
        return self._place

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        view = memoryview(buffer).cast("B")
        got = os.preadv(self._descriptor, [view], self._place)
        begin, end = self._place, self._place + got
        for page in range(begin // _PAGE, -(-end // _PAGE)):
            kept = self._pages.get(page)
            if kept is not None:
                first = max(begin, page * _PAGE)
                last = min(end, page * _PAGE + len(kept))
                if last > first:
                    view[first - begin : last - begin] = kept[
                        first - page * _PAGE : last - page * _PAGE
                    ]
        self._place = end
        return got

    def write(self, data: Any) -> int:
        """See `io.RawIOBase`."""
        whole = bytes(data)
        inside = max(0, min(len(whole), self._boundary - self._place))
        if inside:
            self._keep(self._place, whole[:inside])
        rest, place = memoryview(whole)[inside:], self._place + inside
        while rest:
            put = os.pwrite(self._descriptor, rest, place)
            rest, place = rest[put:], place + put
        self._place = place
        return len(whole)

    def truncate(self, size: int | None = None) -> int:
        """See `io.RawIOBase`; never below the old end."""
        size = self._place if size is None else size
        if self._writable and size >= self._boundary:
            os.ftruncate(self._descriptor, size)
        return size

    def flush(self) -> None:
        """Nothing is buffered."""

    def _keep(self, offset: int, data: bytes) -> None:
        end = offset + len(data)
        for page in range(offset // _PAGE, -(-end // _PAGE)):
            begin = page * _PAGE
            kept = self._pages.get(page)
            if kept is None:
                kept = self._pages[page] = bytearray(os.pread(self._descriptor, _PAGE, begin))
            first, last = max(offset, begin), min(end, begin + _PAGE)
            kept[first - begin : last - begin] = data[first - offset : last - offset]


@contextmanager
def appending(path: PathLike) -> Iterator[Any]:
    """An HDF5 file of this package, open for more; what is added is there whole or not at all.

    Raises:
        FormatError: not such a file, or damaged.
        BlockingIOError: another process is appending.
        OSError: disk full and the like; the file is then as before.
    """
    import h5py

    target = os.path.realpath(path)
    descriptor = os.open(target, os.O_RDWR)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise BlockingIOError(
                error.errno, "another process is appending to this file", os.fspath(path)
            ) from error
        except OSError:
            pass  # a file system without locks: whoever writes alone can still append
        _complete(target, descriptor)
        end = _end_of_file(path, descriptor)
        os.ftruncate(descriptor, end)  # left over from a crash
        overlay = Overlay(descriptor, [], end)
        try:
            with h5py.File(overlay, "r+", libver=VERSIONS) as file:
                yield file
            os.fsync(descriptor)
            _write_journal(target, descriptor, end, overlay.patches)
        except BaseException:
            os.ftruncate(descriptor, end)
            raise
        _complete(target, descriptor)
    finally:
        os.close(descriptor)


def pending(path: PathLike) -> Patches:
    """Changes of an append that a crash interrupted, which belong to the file; usually none."""
    target = os.path.realpath(path)
    try:
        descriptor = os.open(target, os.O_RDONLY)
    except OSError:
        return []
    try:
        return _read_journal(target, descriptor)
    finally:
        os.close(descriptor)


def journal_of(path: PathLike) -> Path:
    """The journal beside a file."""
    target = Path(os.path.realpath(path))
    return target.with_name(f".{target.name}.journal")


def _complete(target: str, descriptor: int) -> None:
    """Make the changes of a journal, if there is one, and remove it."""
    journal = journal_of(target)
    if not journal.exists():
        return
    for offset, data in _read_journal(target, descriptor):
        os.pwrite(descriptor, data, offset)
    os.fsync(descriptor)
    journal.unlink()


def _end_of_file(path: PathLike, descriptor: int) -> int:
    """What the file says about its end; a crash may have left more behind it."""
    head = os.pread(descriptor, 48, 0)
    size = os.fstat(descriptor).st_size
    if len(head) < 48 or not head.startswith(MAGIC) or head[8] not in (2, 3) or head[9] != 8:
        raise FormatError(
            path, 0, "not a file that this package wrote: append to a new one, or to one of ours"
        )
    end = int.from_bytes(head[28:36], "little")
    if end > size:
        raise FormatError(path, size, f"the file should have {end} bytes, not {size}: truncated")
    return end


def _write_journal(target: str, descriptor: int, end: int, patches: Patches) -> None:
    size = os.fstat(descriptor).st_size
    content = _JOURNAL.pack(
        _JOURNAL_MAGIC, end, size, _crc(descriptor, end, size), len(patches)
    ) + b"".join(_ENTRY.pack(offset, len(data)) + data for offset, data in patches)
    with atomic_write(journal_of(target)) as file:
        file.write(content + zlib.crc32(content).to_bytes(4, "little"))


def _read_journal(target: str, descriptor: int) -> Patches:
    """The changes in the journal; none if there is no journal or it is of another file."""
    try:
        content = journal_of(target).read_bytes()[:_LARGEST_JOURNAL]
    except OSError:
        return []
    if len(content) < _JOURNAL.size + 4:
        return []
    content, crc = content[:-4], int.from_bytes(content[-4:], "little")
    magic, end, size, appended, count = _JOURNAL.unpack_from(content)
    if magic != _JOURNAL_MAGIC or zlib.crc32(content) != crc:
        return []
    if os.fstat(descriptor).st_size != size or _crc(descriptor, end, size) != appended:
        return []
    patches, place = [], _JOURNAL.size
    for _ in range(count):
        offset, length = _ENTRY.unpack_from(content, place)
        place += _ENTRY.size
        patches.append((offset, content[place : place + length]))
        place += length
    return patches


def _crc(descriptor: int, begin: int, end: int) -> int:
    value = 0
    while begin < end:
        part = os.pread(descriptor, min(2**22, end - begin), begin)
        if not part:
            break
        value = zlib.crc32(part, value)
        begin += len(part)
    return value
