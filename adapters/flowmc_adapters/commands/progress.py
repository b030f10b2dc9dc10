"""A progress line on standard error, where that is a terminal."""

from __future__ import annotations

import sys
import time
from typing import TextIO

from ..printing import encodable, printable

_WIDTH = 24
_SECONDS = 0.2


class ProgressLine:
    """One line, rewritten: files done, part of the present file done, time left.

    Args:
        files: how many there are.
        stream: where to draw; nothing is drawn unless it is a terminal.
    """

    def __init__(self, files: int, stream: TextIO | None = None) -> None:
        self._files = files
        self._stream = sys.stderr if stream is None else stream
        self._visible = self._stream.isatty()
        self._done = 0
        self._name = ""
        self._start = time.monotonic()
        self._drawn = 0.0

    def begin(self, name: str) -> None:
        """The next file."""
        self._name = name
        self._draw(0.0)

    def part(self, done: int, total: int) -> None:
        """Slabs of the present file."""
        now = time.monotonic()
        if now - self._drawn >= _SECONDS:
            self._draw(done / total)

    def end(self) -> None:
        """The present file is done."""
        self._done += 1
        self._draw(0.0)

    def clear(self) -> None:
        """Remove the line, for other output or at the end."""
        if self._visible:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def _draw(self, fraction: float) -> None:
        if not self._visible:
            return
        self._drawn = time.monotonic()
        share = min(1.0, (self._done + fraction) / max(1, self._files))
        bar = ("#" * round(share * _WIDTH)).ljust(_WIDTH, ".")
        left = ""
        if share > 0.02:
            seconds = (self._drawn - self._start) * (1 / share - 1)
            left = f"  {int(seconds) // 60}:{int(seconds) % 60:02d} left"
        text = f"[{bar}] {self._done}/{self._files}{left}  {printable(self._name[:40])}"
        self._stream.write(f"\r\x1b[K{encodable(text, self._stream)}")
        self._stream.flush()
