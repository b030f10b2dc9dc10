"""The files of a run directory: errors that name them, and nothing that lies elsewhere.

A run directory may be somebody else's, damaged, or both.  Reading follows a symbolic link only to
what belongs to the owner of the link, writing follows none, and HDF5 files have all their numbers
in themselves: no link, no external file and no virtual dataset leads out of them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py

from flowmc.registry import ConfigError

__all__ = ["datasets_in", "naming", "open_own", "opened", "read_text"]

_ERRNO = re.compile(r"errno = (\d+)")


@contextlib.contextmanager
def naming(path: str | os.PathLike[str]) -> Iterator[None]:
    """Let errors of writing a file name it, in the words of the operating system.

    Raises:
        OSError: with the number, its text and the path; HDF5's own words stay its cause.
    """
    try:
        yield
    except (OSError, RuntimeError) as error:
        found = _ERRNO.search(str(error))
        number = getattr(error, "errno", None) or (int(found[1]) if found else None)
        if number is None and not isinstance(error, OSError):
            raise
        text = getattr(error, "strerror", None)
        if found or not text:
            text = os.strerror(number) if number else str(error).splitlines()[0]
        raise OSError(number or errno.EIO, text, os.fspath(path)) from error


def open_own(path: Path, flags: int) -> int:
    """Open a file for writing, which must not be a symbolic link; return the descriptor.

    Raises:
        OSError: it is one, or no regular file, or cannot be opened.
    """
    with contextlib.suppress(FileNotFoundError):
        mode = path.lstat().st_mode
        if not stat.S_ISREG(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "no regular file"
            raise OSError(errno.EINVAL, f"is {kind}, nothing is written there", str(path))
    # A link that is planted now is not followed either.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)


def read_text(path: Path) -> str:
    """Return the content of a text file; what is no UTF-8 becomes U+FFFD.

    Raises:
        ConfigError: it is a link to somebody else's file, or no regular file.
        OSError: it cannot be read.
    """
    _check_readable(path)
    return path.read_text(encoding="utf-8", errors="replace")


@contextlib.contextmanager
def opened(path: Path, what: str, remedy: str = "restore it from a copy") -> Iterator[h5py.File]:
    """Open an HDF5 file for reading; whatever goes wrong with it is one sentence.

    Args:
        path: the file.
        what: it should be, e.g. "checkpoint".
        remedy: what to do if it is not.

    Raises:
        ConfigError: it cannot be opened, or what is done with it fails.
    """
    try:
        _check_readable(path)
        # The run may still be writing, and some file systems of clusters know no locks.
        with h5py.File(path, "r", locking=False) as file:
            yield file
    except ConfigError:
        raise
    except Exception as error:
        # A damaged file can make h5py and numpy raise anything.
        text = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(
            f"{path} is not a sound {what} and cannot be read ({text}): {remedy}"
        ) from error


def datasets_in(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """Return all datasets of a file or group by path; each has all its bytes in the file.

    Raises:
        ValueError: one has not.
    """
    size = os.fstat(group.file.id.get_vfd_handle()).st_size
    found: dict[str, h5py.Dataset] = {}

    def visit(name: str, item: Any) -> None:
        # What soft and external links lead to is not visited.
        if isinstance(item, h5py.Dataset):
            _check_inside(name, item, size)
            found[name] = item

    group.visititems(visit)
    return found


def _check_inside(name: str, dataset: h5py.Dataset, size: int) -> None:
    properties = dataset.id.get_create_plist()
    if properties.get_layout() != h5py.h5d.CONTIGUOUS or properties.get_external_count():
        raise ValueError(f"{name} is not stored as plain numbers in the file itself")
    offset = dataset.id.get_offset()
    if dataset.nbytes and (offset is None or offset + dataset.nbytes > size):
        raise ValueError(f"{name} is longer than the file")


def _check_readable(path: Path) -> None:
    found = path.stat()
    if not stat.S_ISREG(found.st_mode):
        raise ConfigError(f"{path} is no regular file: restore it from a copy")
    link = path.lstat()
    if stat.S_ISLNK(link.st_mode) and link.st_uid != found.st_uid:
        raise ConfigError(
            f"{path} is a symbolic link to a file of somebody else than its own owner: it is not "
            "followed, put a copy in its place"
        )
