"""Texts of foreign files on the terminal: nothing that steers it, nothing that it cannot show."""

from __future__ import annotations

import sys
from typing import TextIO


def printable(text: str) -> str:
    """A text on one line: control characters (escapes, newlines, marks that turn the direction of
    writing) and bytes that are no text, as in names of files, as `\\x1b`."""
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else _escaped(letter) for letter in text)


def say(text: str, stream: TextIO | None = None) -> None:
    """Print lines that may hold foreign texts.

    Args:
        text: printed as it is but for control characters other than newlines, and for letters that
            the stream cannot encode.
        stream: where to; None for standard output.
    """
    stream = sys.stdout if stream is None else stream
    print(encodable("\n".join(map(printable, text.split("\n"))), stream), file=stream)


def encodable(text: str, stream: TextIO) -> str:
    """A text with escapes for the letters that a stream has no encoding for."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _escaped(letter: str) -> str:
    code = ord(letter)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is no UTF-8, as Python keeps it in names of files
        code -= 0xDC00
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
