"""MPI-IO in place of plain system calls."""

from __future__ import annotations

import os
from typing import Any

from .checksums import RawBytes
from .configuration import PathLike
from .errors import FormatError
from .storage import Storage

# A count of bytes is a C int in MPI
_LARGEST_TRANSFER = 2**30


class MpiStorage(Storage):
    """A file that all ranks of a communicator have open; opening and closing are collective.

    Args:
        comm: an mpi4py communicator.
        path: the file, which exists.
        writable: open for writing.

    Raises:
        OSError: on all ranks, if one of them cannot open the file.
    """

    def __init__(self, comm: Any, path: PathLike, *, writable: bool = False) -> None:
        from mpi4py import MPI

        self.path = path
        self._error = MPI.Exception
        mode = MPI.MODE_RDWR if writable else MPI.MODE_RDONLY
        try:
            self._file = MPI.File.Open(comm, os.fspath(path), mode)
        except MPI.Exception as error:
            raise OSError(f"{os.fspath(path)}: MPI cannot open it: {error}") from error

    def read(self, offset: int, out: RawBytes) -> None:
        """See `Storage.read`."""
        from mpi4py import MPI

        for begin in range(0, out.size, _LARGEST_TRANSFER):
            part = out[begin : begin + _LARGEST_TRANSFER]
            status = MPI.Status()
            try:
                self._file.Read_at(offset + begin, part, status)
            except self._error as error:
                raise OSError(f"{os.fspath(self.path)}: MPI cannot read: {error}") from error
            if status.Get_count(MPI.BYTE) != part.size:
                end = offset + begin + status.Get_count(MPI.BYTE)
                raise FormatError(self.path, end, "the file ends inside the links: truncated")

    def write(self, offset: int, data: RawBytes) -> None:
        """See `Storage.write`."""
        for begin in range(0, data.size, _LARGEST_TRANSFER):
            part = data[begin : begin + _LARGEST_TRANSFER]
            try:
                self._file.Write_at(offset + begin, part)
            except self._error as error:
                raise OSError(f"{os.fspath(self.path)}: MPI cannot write: {error}") from error

    def close(self) -> None:
        """See `Storage.close`; collective."""
        try:
            self._file.Close()
        except self._error as error:
            raise OSError(f"{os.fspath(self.path)}: MPI cannot close: {error}") from error
