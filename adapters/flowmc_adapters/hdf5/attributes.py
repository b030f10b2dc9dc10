"""Attributes of HDF5 files: written with a fixed length, read with care."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..configuration import PathLike
from ..errors import FormatError
from .file import guarded

_LARGEST_ATTRIBUTE = 2**24
_HEAP = b"GCOL"
_LARGEST_HEAP = 2**28
_SCAN_BYTES = 2**24


def set_attributes(
    owner: Any, attributes: Mapping[str, str | int | float | tuple[int, ...]]
) -> None:
    """Attributes of fixed length: these are covered by the checksums of the file's headers."""
    for name, value in attributes.items():
        if isinstance(value, str):
            owner.attrs[name] = np.bytes_(value.encode("ascii", errors="replace"))
        elif isinstance(value, float):
            owner.attrs[name] = np.float64(value)
        else:
            owner.attrs[name] = np.array(value, dtype="<i8")


def attribute(
    owner: Any, name: str, path: PathLike, *, vetted: bool = False
) -> str | int | float | list[Any] | None:
    """A short attribute as a Python value; None if absent, large, or of an odd type.

    Args:
        owner: group or dataset.
        name: of the attribute.
        path: for error messages.
        vetted: `vet_heaps` was called: texts of variable length may be read, too.
    """
    with guarded(path):
        if name not in owner.attrs:
            return None
        found = owner.attrs.get_id(name)
        if math.prod(found.shape) > 1024 or found.get_storage_size() > _LARGEST_ATTRIBUTE:
            return None
        if found.dtype.kind not in ("OSiufb" if vetted else "Siufb"):
            return None
        value = owner.attrs[name]
    if isinstance(value, bytes):
        return value.rstrip(b"\0").decode("utf-8", errors="replace")
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
        if isinstance(value, list) and len(value) == 1:
            value = value[0]
    return value if isinstance(value, str | int | float | list) else None


def text_attribute(owner: Any, name: str, path: PathLike, *, vetted: bool = False) -> str | None:
    """A text attribute, or None; arguments as `attribute`."""
    value = attribute(owner, name, path, vetted=vetted)
    return value if isinstance(value, str) else None


def real_attribute(owner: Any, name: str, path: PathLike) -> float | None:
    """A number, or a text that is one, or None."""
    value = attribute(owner, name, path)
    try:
        return float(value) if isinstance(value, str | int | float) else None
    except (ValueError, OverflowError):
        return None


def vet_heaps(path: PathLike, spared: Sequence[tuple[int, int]] = ()) -> None:
    """Check the heaps that texts of variable length are kept in.

    They have no checksum, and the library reads on forever in a damaged one.

    Args:
        path: the file.
        spared: (offset, bytes) of the parts that are known to hold numbers.

    Raises:
        FormatError: one is damaged.
    """
    size = Path(path).stat().st_size
    begin = 0
    with open(path, "rb") as file:
        for offset, length in [*sorted(spared), (size, 0)]:
            while begin < offset:
                file.seek(begin)
                part = file.read(min(_SCAN_BYTES, offset - begin))
                if not part:
                    return
                place = part.find(_HEAP)
                while place >= 0:
                    _vet_heap(path, file, begin + place, size)
                    place = part.find(_HEAP, place + 1)
                # A signature may lie across the parts
                begin += max(1, len(part) - len(_HEAP) + 1)
            begin = max(begin, offset + length)


def _vet_heap(path: PathLike, file: BinaryIO, offset: int, size: int) -> None:
    """A collection: signature, version, 3 zeros, its bytes; then objects of number, count, 4 zeros,
    bytes and data padded to 8, the last one, of number 0, the space that is left, itself included.
    """
    file.seek(offset)
    head = file.read(16)
    if len(head) < 16 or head[4:8] != b"\1\0\0\0":
        return  # these letters by chance: the library goes by the same bytes
    length = int.from_bytes(head[8:], "little")
    if length > min(size - offset, _LARGEST_HEAP):
        raise FormatError(path, offset, "damaged HDF5 file: a heap of texts exceeds the file")
    heap = file.read(length - 16)
    place = 0
    while place + 16 <= len(heap):
        number = int.from_bytes(heap[place : place + 2], "little")
        own = int.from_bytes(heap[place + 8 : place + 16], "little")
        step = own if number == 0 else 16 + own + -own % 8
        if step < 16 or place + step > len(heap):
            raise FormatError(path, offset, "damaged HDF5 file: a heap of texts is inconsistent")
        place += step
