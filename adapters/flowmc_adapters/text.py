"""Numbers and texts in headers, read leniently: formats of several programs share them."""

from __future__ import annotations

import re

_KEY_LINE = re.compile(r"([A-Z][A-Z0-9_]*) ?= ?(.*)")
_INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
_REAL = re.compile(r"[+-]?[0-9]+(?:\.([0-9]*))?(?:[eE]([+-]?[0-9]{1,3}))?")


def decode_text(data: bytes) -> str:
    """A text record without its trailing NULs; UTF-8, else Latin-1."""
    stripped = data.rstrip(b"\0")
    try:
        return stripped.decode("utf-8")
    except UnicodeDecodeError:
        return stripped.decode("latin-1")


def encode_text(text: str) -> bytes:
    """A text record as UTF-8; what has no encoding (lone surrogates) becomes a question mark."""
    return text.encode("utf-8", errors="replace")


def parse_integer(text: str | None) -> int | None:
    """A decimal integer, or None; blanks around it are fine."""
    if text is None or not _INTEGER.fullmatch(text.strip()):
        return None
    return int(text)


def parse_real(text: str | None) -> float | None:
    """A real number, or None."""
    try:
        return None if text is None else float(text)
    except ValueError:
        return None


def xlf_values(text: str) -> dict[str, str]:
    """The `key = value` pairs of an xlf-info record (tmLQCD), separated by commas and newlines.

    Empty values are skipped: cl2qcd writes an empty `trajectory nr = ` before the full one.
    """
    pairs = (item.split("=", 1) for item in re.split(r"[,\n]", text) if "=" in item)
    return {key.strip(): value.strip() for key, value in pairs if value.strip()}
