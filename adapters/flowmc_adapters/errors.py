"""What goes wrong with a file, said so that a reader can act on it."""

from __future__ import annotations

import os

from .printing import printable


class FormatError(ValueError):
    """A file that cannot be used, with the place and the reason.

    Args:
        path: the file.
        offset: byte at which the trouble was found, or None where no single byte is to blame.
        reason: what was wrong, and what to do about it.
    """

    def __init__(self, path: str | os.PathLike[str], offset: int | None, reason: str) -> None:
        # The three go to ValueError as they are, so that the error survives pickling between ranks.
        super().__init__(os.fspath(path), offset, reason)
        self.path = os.fspath(path)
        self.offset = offset
        self.reason = reason

    def __str__(self) -> str:
        where = "" if self.offset is None else f": byte {self.offset}"
        # Names and reasons may quote what a foreign file holds
        return printable(f"{self.path}{where}: {self.reason}")


class CheckError(FormatError):
    """The file is well formed, but its content fails a check.

    Checksum, plaquette or link trace differ from the values stored beside the links, or the links
    are not finite. Scripts tell the two apart by exit status: 1 for this one, 2 for its parent.
    """
