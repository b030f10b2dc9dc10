"""The text file `<name>.info` that MILC writes beside a binary gauge file.

One item per line, `key = value`, in older files `key value`; texts in double quotes.
In UTF-8, which is ASCII where MILC wrote it: no program takes more than numbers from it. It repeats
the checksums and extents of the binary file, which tell whether the two still belong together.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..configuration import PathLike
from ..metadata import DERIVED_KEYS, carried_keys, is_capital_key
from ..text import decode_text, encode_text, parse_integer, parse_real

ENDING = ".info"
_LARGEST = 2**20
_ITEM = re.compile(r"([A-Za-z_][\w.]*)(?:\s*=\s*|\s+|$)(.*)")
_KEY = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*")
_EXTENTS = ("nx", "ny", "nz", "nt")
_PLAQUETTES = ("gauge.ssplaq", "gauge.stplaq")
_TRACE = "gauge.nersc_linktr"
_NERSC_SUM = "gauge.nersc_checksum"
# Items that describe one binary file and are computed anew for another one.
_DERIVED = frozenset(
    {"magic_number", "time_stamp", "checksums", *_EXTENTS, *_PLAQUETTES, _TRACE, _NERSC_SUM}
)


@dataclass(frozen=True)
class MilcInfo:
    """What an info file says; empty if there is none, or if it is about other links.

    Attributes:
        plaquette: mean plaquette, normalised to 1, or None.
        link_trace: mean link trace, normalised to 1, or None.
        metadata: the items that are not computed, as they stand there, quotes included.
        warnings: why it was ignored.
    """

    plaquette: float | None = None
    link_trace: float | None = None
    metadata: dict[str, str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


def read_info(path: PathLike, dims: tuple[int, ...], sums: tuple[int, int] | None) -> MilcInfo:
    """The info file of a binary file.

    Args:
        path: the binary file.
        dims: its extents (Lx, Ly, Lz, Lt).
        sums: the checksums (sum29, sum31) in it, or None if its version has none.
    """
    companion = Path(f"{os.fspath(path)}{ENDING}")
    try:
        if not companion.is_file():
            return MilcInfo()
        with open(companion, "rb") as file:
            text = decode_text(file.read(_LARGEST))
    except OSError as error:
        return MilcInfo(warnings=[f"{companion.name} cannot be read: {error.strerror}"])
    items = {}
    for line in text.split("\n"):
        match = _ITEM.fullmatch(line.strip())
        if match is not None:
            items[match[1]] = match[2].strip()
    stale = _contradiction(items, dims, sums)
    if stale is not None:
        return MilcInfo(
            warnings=[f"{companion.name} is about other links and was ignored: it says {stale}"]
        )
    space, time = (parse_real(items.get(key)) for key in _PLAQUETTES)
    return MilcInfo(
        # MILC prints Re Tr P, up to 3, for the planes without and with time, three of each
        plaquette=None if space is None or time is None else (space + time) / 6,
        link_trace=parse_real(items.get(_TRACE)),
        metadata={
            key: value
            for key, value in items.items()
            if key not in _DERIVED and not is_capital_key(key)
        }
        | carried_keys(items),
    )


def _contradiction(
    items: Mapping[str, str], dims: tuple[int, ...], sums: tuple[int, int] | None
) -> str | None:
    """What an info file says against the binary file, or None."""
    for key, extent in zip(_EXTENTS, dims, strict=True):
        if key in items and parse_integer(items[key]) != extent:
            return f"{key} = {items[key][:20]}, the file {extent}"
    if sums is None or "checksums" not in items:
        return None
    try:
        stated = tuple(int(word, 16) for word in items["checksums"].strip('"').split())
    except ValueError:
        stated = ()
    if stated != sums:
        return f"checksums {items['checksums'][:40]}, the file {sums[0]:x} {sums[1]:x}"
    return None


def lost_items(metadata: Mapping[str, str]) -> list[str]:
    """The keys that have no place in an info file."""
    known = _DERIVED | DERIVED_KEYS | carried_items(metadata).keys() | carried_keys(metadata).keys()
    return sorted(metadata.keys() - known)


def carried_items(metadata: Mapping[str, str]) -> dict[str, str]:
    """The items without capitals that go into an info file as they are."""
    return {
        key: value
        for key, value in metadata.items()
        if _KEY.fullmatch(key)
        and key not in _DERIVED
        and not is_capital_key(key)
        and len(value.splitlines()) <= 1
    }


def info_text(
    *,
    magic: int,
    stamp: str,
    sums: tuple[int, int],
    dims: tuple[int, ...],
    metadata: Mapping[str, str],
    plaquettes: tuple[float, float],
    link_trace: float,
    nersc_sum: int,
) -> bytes:
    """An info file in the order and with the digits of MILC.

    Args:
        magic: magic number of the binary file.
        stamp: its time stamp.
        sums: (sum29, sum31).
        dims: extents (Lx, Ly, Lz, Lt).
        metadata: items without capitals come before the measured numbers, as in MILC; the keys in
            capitals, which MILC does not have, after them. Those that do not fit are left out.
        plaquettes: means over the planes without and with time, normalised to 1.
        link_trace: normalised to 1.
        nersc_sum: NERSC checksum of the first two rows in 32 bit.
    """
    space, time = (3 * value for value in plaquettes)
    items: dict[str, str] = {
        "magic_number": str(magic),
        "time_stamp": f'"{stamp}"',
        "checksums": '"{:x} {:x}"'.format(*sums),
    }
    items |= {key: str(extent) for key, extent in zip(_EXTENTS, dims, strict=True)}
    items |= carried_items(metadata)
    items |= {
        _PLAQUETTES[0]: f"{space:f}",
        _PLAQUETTES[1]: f"{time:f}",
        _TRACE: f"{link_trace:f}",
        _NERSC_SUM: str(nersc_sum),
    }
    items |= {key: " ".join(value.splitlines()) for key, value in carried_keys(metadata).items()}
    lines = (f"{key} = {value}\n" for key, value in items.items())
    return encode_text("".join(lines))
