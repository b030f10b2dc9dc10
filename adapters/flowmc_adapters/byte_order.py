"""The byte order that links prove, where a file states another one."""

from __future__ import annotations

import os
from dataclasses import replace

import numpy as np

from .configuration import PathLike
from .layout import Layout

_LINKS_LOOKED_AT = 4
# Rounded links are far closer; bytes in the wrong order give anything but rows of length one
_TOLERANCE = 1e-2
_NAMES = {">": "big", "<": "little"}


def proven_order(path: PathLike, layout: Layout, warnings: list[str]) -> Layout:
    """The layout, in the other byte order if the first links are in the group in that one only.

    Args:
        path: the file.
        layout: as the file states it.
        warnings: those of the file, to be added to.
    """
    other = replace(layout, byte_order="<" if layout.byte_order == ">" else ">")
    raw = _first_links(path, layout)
    if _fits(raw, layout) or not _fits(raw, other):
        return layout
    warnings.append(
        f"the links are {_NAMES[other.byte_order]}-endian, though the file is, or says that they "
        f"are, {_NAMES[layout.byte_order]}-endian: they are in the group in that order only"
    )
    return other


def group_fits(path: PathLike, layout: Layout) -> bool:
    """Whether the first links of a file have orthonormal rows, or are zero."""
    return _fits(_first_links(path, layout), layout)


def _first_links(path: PathLike, layout: Layout) -> bytes:
    offset, _ = layout.pieces(0, 0, 1)[0]
    with open(path, "rb") as file:
        file.seek(offset, os.SEEK_SET)
        return file.read(_LINKS_LOOKED_AT * layout.link_bytes)


def _fits(raw: bytes, layout: Layout) -> bool:
    count = len(raw) // layout.link_bytes
    stored = np.frombuffer(raw, layout.real_type, count * layout.link_bytes * 8 // layout.precision)
    with np.errstate(all="ignore"):
        reals = stored.reshape(count, layout.rows, layout.nc, 2).astype(np.float64)
        rows = reals[..., 0] + 1j * reals[..., 1]
        rows = rows[np.abs(rows).max(axis=(1, 2)) != 0]
        errors = np.abs(rows @ rows.conj().swapaxes(1, 2) - np.eye(layout.rows))
    return bool((errors < _TOLERANCE).all())
