"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .heads import kind_of_special

# File systems take 255 bytes; what is put around a name are 26.
_LONGEST_NAME = 200
ENDING = ".partial"


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str], *, follow: bool = True) -> Iterator[Path]:
    """A new, empty file to fill, that takes the place of `path` when the block ends well.

    It is a hidden file in the same directory (same file system, so that the rename is atomic),
    flushed to the disk before it gets the name. If anything is raised the hidden file is removed
    and `path` is as before. A kill leaves `path` as before, too. A symbolic link is followed: its
    target is replaced, not the link; with `follow=False` the link itself. A file that is replaced
    keeps its permissions and, as far as the system allows it, its group and owner.

    Raises:
        IsADirectoryError: `path` is a directory.
        OSError: it is a pipe, a socket or a device; or as from opening, flushing or renaming.
    """
    # What a link leads to is of no concern where the link itself is replaced.
    old = _replaced(path) if follow or not os.path.islink(path) else None
    target = Path(os.path.realpath(path) if follow else os.path.abspath(path))
    temporary = target.with_name(f"{_start(target.name)}{secrets.token_hex(8)}{ENDING}")
    # Mode 0666 through the umask, as open() would create it, unless a private file is about to be
    # replaced; O_EXCL never follows a planted link.
    mode = 0o666 if old is None else 0o600
    try:
        # Inside, as a signal may end the command right after it
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode))
        yield temporary
        descriptor = os.open(temporary, os.O_RDWR)
        try:
            if old is not None:
                _take_over(descriptor, old)
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _flush_directory(target.parent)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, follow: bool = True) -> Iterator[BinaryIO]:
    """As `atomic_path`, with the new file open for writing and reading."""
    with atomic_path(path, follow=follow) as temporary, open(temporary, "w+b") as file:
        yield file


def unfinished(path: str | os.PathLike[str]) -> list[Path]:
    """What killed writes have left, or running ones are at: of a file, or of all in a directory."""
    folder = Path(path) if os.path.isdir(path) else Path(os.path.realpath(path)).parent
    start = "." if os.path.isdir(path) else _start(Path(os.path.realpath(path)).name)
    names = os.listdir(folder) if folder.is_dir() else []
    return [
        folder / name for name in sorted(names) if name.startswith(start) and name.endswith(ENDING)
    ]


def _replaced(path: str | os.PathLike[str]) -> os.stat_result | None:
    """What is there already, or None; raises for what is not a file, which a rename would remove.

    Asked of the system, not of the resolved name: `/dev/stdout` leads to a pipe without one.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    if stat.S_ISDIR(found.st_mode):
        raise IsADirectoryError(f"{path}: is a directory, not a file to write")
    if not stat.S_ISREG(found.st_mode):
        raise OSError(
            f"{path}: {kind_of_special(found.st_mode) or 'no file'}, which would be replaced by a "
            "file: give the name of a file"
        )
    return found


def _start(name: str) -> str:
    """How the name of an unfinished file begins: hidden, and cut so that there is room for more;
    letters may have several bytes."""
    while len(os.fsencode(name)) > _LONGEST_NAME:
        name = name[:-1]
    return f".{name}."


def _take_over(descriptor: int, old: os.stat_result) -> None:
    """Give a new file owner, group and permissions of the one that it replaces."""
    mode = stat.S_IMODE(old.st_mode)
    new = os.fstat(descriptor)
    if new.st_uid != old.st_uid:
        with contextlib.suppress(OSError):  # root only
            os.fchown(descriptor, old.st_uid, -1)
    if new.st_gid != old.st_gid:
        try:
            os.fchown(descriptor, -1, old.st_gid)
        except OSError:
            # Another group: it gets no more than everybody
            mode = mode & ~0o070 | (mode & 0o007) << 3
    # Not on file systems that have none; private until then
    with contextlib.suppress(OSError):
        os.fchmod(descriptor, mode)


def _flush_directory(directory: Path) -> None:
    """Make the rename itself durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
