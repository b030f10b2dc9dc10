"""How much memory compressed data may take."""

from __future__ import annotations

from .configuration import PathLike
from .errors import FormatError

# What anyone can spare, and what no compressed field of random links comes near
_SPARED = 2**26
_MOST_GAIN = 64


def require_bounded(path: PathLike, name: str, at_once: int, size: int, packed: int) -> None:
    """Refuse what a small file would take a lot of memory for.

    Args:
        path: the file.
        name: of the data in it.
        at_once: bytes that are in memory together.
        size: of all data, unpacked.
        packed: of all data as they are stored.

    Raises:
        FormatError: the data are not those of a field, or those of a cold one.
    """
    if at_once > _SPARED and size > _MOST_GAIN * packed:
        raise FormatError(
            path,
            None,
            f"{name} grows from {packed} to {size} bytes when it is unpacked, {at_once} of them at "
            "once, which no field does: if it is meant to, store it without compression first",
        )
