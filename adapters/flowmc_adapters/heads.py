"""The first bytes of a file, by which its format is recognised."""

from __future__ import annotations

import os
import stat

from .configuration import PathLike
from .errors import FormatError
from .selection import file_of

_HEAD_BYTES = 4096
_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def read_head(path: PathLike) -> bytes:
    """The first bytes, at most 4096, of a file or of that of FILE#N; errors as `require_file`."""
    path = file_of(path)
    require_file(path)
    with open(path, "rb") as file:
        return file.read(_HEAD_BYTES)


def require_file(path: PathLike) -> None:
    """Make sure that opening and reading will come back.

    Raises:
        FormatError: a pipe or a device, which has no size, and on which reading may never end.
        OSError: there is no such file.
    """
    kind = kind_of_special(os.stat(path).st_mode)
    if kind is not None:
        raise FormatError(
            path, None, f"{kind}, which cannot be read at several places: save it as a file"
        )


def kind_of_special(mode: int) -> str | None:
    """What something is that is neither a file nor a directory, else None.

    Args:
        mode: as in `os.stat_result.st_mode`.
    """
    return next((kind for is_kind, kind in _KINDS if is_kind(mode)), None)
