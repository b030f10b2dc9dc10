"""Bytes after the links that no header explains."""

from __future__ import annotations

import os

from .configuration import PathLike

# A stray newline, or zeros up to a multiple of some word
_MOST_STRAY = 144


def check_end(path: PathLike, end: int, warnings: list[str]) -> dict[str, str]:
    """Look at what follows the links of a file.

    It may be a second field, which would be lost without a word, or more of the same field under a
    damaged header. A few blanks, newlines or zeros are harmless.

    Args:
        path: the file.
        end: first byte after the links that the header announces.
        warnings: those of the file, to be added to.

    Returns:
        For `Header.failed_checks`; empty if nothing is wrong.
    """
    excess = os.stat(path).st_size - end
    if excess <= 0:
        return {}
    text = f"{excess} bytes follow what the header announces"
    if excess <= _MOST_STRAY:
        with open(path, "rb") as file:
            file.seek(end)
            if not file.read(excess).strip(b"\0 \t\r\n"):
                warnings.append(f"{text}: blanks or zeros, ignored")
                return {}
    return {
        "size": f"{text}, and nothing says what they are: another field, or more of this one under "
        "a damaged header (read the links alone with check_checksum=False or --ignore-checksum if "
        "you know)"
    }
