"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[BinaryIO]:
    """A binary file to write into, that takes the place of `path` when the block ends well.

    The bytes go to a hidden file in the same directory (same file system, so that the rename is
    atomic), are flushed to the disk, and only then get the name. If anything is raised the hidden
    file is removed and `path` is as before. A kill leaves `path` as before, too. A symbolic link is
    followed: its target is replaced, not the link.

    Raises:
        OSError: as from opening, writing, flushing or renaming.
    """
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise IsADirectoryError(f"{path}: is a directory, not a file to write")
    temporary = target.with_name(f".{target.name[:200]}.{secrets.token_hex(8)}.partial")
    # Mode 0666 through the umask, as open() would create it; O_EXCL never follows a planted link.
    descriptor = os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    try:
        with os.fdopen(descriptor, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise
    _flush_directory(target.parent)


def _flush_directory(directory: Path) -> None:
    """Make the rename itself durable, where the file system can."""
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
