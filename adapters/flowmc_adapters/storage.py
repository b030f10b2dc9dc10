"""Bytes of a file at given places: plain system calls here, MPI-IO in `parallel`."""

from __future__ import annotations

import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable
from types import TracebackType
from typing import Self

from .checksums import RawBytes
from .configuration import PathLike
from .errors import FormatError


class Storage(ABC):
    """An open file that is read and written at given offsets, by several threads at once."""

    path: PathLike

    @abstractmethod
    def read(self, offset: int, out: RawBytes) -> None:
        """Fill `out` with the bytes from `offset` on.

        Raises:
            FormatError: the file ends before.
        """

    @abstractmethod
    def write(self, offset: int, data: RawBytes) -> None:
        """Put `data` at `offset`.

        Raises:
            OSError: disk full and the like.
        """

    @abstractmethod
    def close(self) -> None:
        """Close the file."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class FileStorage(Storage):
    """A file of this machine. Not mapped: a mapped file would count as memory in use.

    Args:
        path: the file, which exists.
        writable: open for writing, too.
    """

    def __init__(self, path: PathLike, *, writable: bool = False) -> None:
        self.path = path
        self._descriptor = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        self._writing = threading.Lock()

    def read(self, offset: int, out: RawBytes) -> None:
        """See `Storage.read`."""
        rest = memoryview(out.data)
        while rest:
            got = os.preadv(self._descriptor, [rest], offset)
            if got == 0:
                raise FormatError(self.path, offset, "the file ends inside the links: truncated")
            offset += got
            rest = rest[got:]

    def write(self, offset: int, data: RawBytes) -> None:
        """See `Storage.write`."""
        rest = memoryview(data.data)
        # One at a time: the system lets one thread write to a file, and the others wait spinning
        with self._writing:
            while rest:
                put = os.pwrite(self._descriptor, rest, offset)
                offset += put
                rest = rest[put:]

    def close(self) -> None:
        """See `Storage.close`."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


OpenStorage = Callable[[PathLike], Storage]
"""Opens a file for reading."""
