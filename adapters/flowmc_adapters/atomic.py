"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A new, empty file to fill, that takes the place of `path` when the block ends well.

    It is a hidden file in the same directory (same file system, so that the rename is atomic),
    flushed to the disk before it gets the name. If anything is raised the hidden file is removed
    and `path` is as before. A kill leaves `path` as before, too. A symbolic link is followed: its
    target is replaced, not the link.

    Raises:
        OSError: as from opening, flushing or renaming.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path}: is a directory, not a file to write")
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.partial")
    # Mode 0666 through the umask, as open() would create it; O_EXCL never follows a planted link.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    try:
        yield temporary
        descriptor = os.open(temporary, os.O_RDWR)
        try:
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
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """As `atomic_path`, with the new file open for writing and reading."""
    with atomic_path(path) as temporary, open(temporary, "w+b") as file:
        yield file


def _flush_directory(directory: Path) -> None:
    """Make the rename itself durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
