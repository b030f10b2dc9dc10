"""What is said on standard error: it never decides what is done.

Standard error may be a file on a full disk, a terminal that is gone, or closed altogether; work
that takes hours goes on without it.  Everything that commands say goes through this module.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TextIO

__all__ = [
    "Unfailing",
    "is_output_lost",
    "one_line",
    "open_standard_streams",
    "say",
    "settle_standard_streams",
]

# A stream that is closed or whose descriptor is gone raises ValueError.
_LOST = (OSError, ValueError)
# Characters of one sentence.
_LONGEST = 1500


def say(text: str, *, prefix: str = "flowmc: ") -> None:
    """Write a line to standard error, if that can be.

    Args:
        text: without the line's end.
        prefix: before the text.
    """
    if sys.stderr is not None:
        with contextlib.suppress(*_LOST):
            print(f"{prefix}{text}", file=sys.stderr, flush=True)


def one_line(text: str) -> str:
    """Return a text as one line of bearable length, without control characters.

    What errors quote may come from damaged files.
    """
    line = " ".join(text.split())
    line = "".join(c if c.isprintable() else "?" for c in line)
    return (
        line if len(line) <= _LONGEST else f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 2 :]}"
    )


class Unfailing:
    """A text stream that drops what it cannot write, for libraries that write to one.

    Args:
        stream: where to write; None drops everything.
    """

    encoding = "utf-8"

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        """Write what can be written."""
        if self._stream is not None:
            with contextlib.suppress(*_LOST):
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush what can be flushed."""
        if self._stream is not None:
            with contextlib.suppress(*_LOST):
                self._stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        with contextlib.suppress(*_LOST):
            return self._stream is not None and self._stream.isatty()
        return False

    def fileno(self) -> int:
        """Return the descriptor of the stream.

        Raises:
            OSError: it has none.
        """
        if self._stream is None:
            raise OSError("there is no stream")
        return self._stream.fileno()


def open_standard_streams() -> None:
    """Open on ``/dev/null`` what of standard input, output and error is closed.

    Else the next file that is opened, a checkpoint perhaps, would get the number of the closed one,
    and everything that any library writes to standard error.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is taken, which is this one.
            os.open(os.devnull, os.O_RDWR)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, mode, closefd=False))


def is_output_lost(error: Exception) -> bool:
    """Whether an error is that of standard output, which cannot be written; it is then dropped."""
    if not isinstance(error, OSError) or error.filename is not None or sys.stdout is None:
        return False
    try:
        # What has failed may be gone from the buffer: only another attempt tells.
        print(flush=True)
    except OSError as again:
        settle_standard_streams()
        return again.errno == error.errno
    return False


def settle_standard_streams() -> OSError | None:
    """Flush both streams at the end of a command; return why standard output was not written.

    What could not be written is dropped, so that the interpreter, which flushes once more when it
    ends, does not replace the exit status by one of its own.
    """
    failure = None
    for stream, number in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            if stream is not None:
                stream.flush()
        except _LOST as error:
            if number == 1:
                failure = error if isinstance(error, OSError) else OSError(str(error))
            with contextlib.suppress(OSError):
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, number)
                os.close(null)
    return failure
