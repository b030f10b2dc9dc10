"""Boundary conditions in time that the links themselves show."""

from __future__ import annotations

import numpy as np

from .configuration import ComplexArray
from .errors import FormatError
from .formats import Format, PathLike

# As an openQCD field has it exactly; others may have come through another code
_EQUAL = 1e-12
_EQUAL_SINGLE = 1e-6


def has_open_end(links: ComplexArray) -> bool:
    """Whether the time links of the last time slice are all zero, as openQCD and HiRep write fields
    with open boundaries in time.

    Args:
        links: `U[t, z, y, x, mu, row, col]`, in d dimensions `(L_{d-1}, ..., L_0, d, N, N)`.
    """
    return not links[-1, ..., -1, :, :].any()


def has_fixed_start(links: ComplexArray) -> bool:
    """Whether the first time slice is the boundary of a Schroedinger functional: spatial links
    diagonal and everywhere the same, unlike those of the second slice. Arguments as
    `has_open_end`.
    """
    return len(links) > 1 and is_fixed(links[0]) and not is_fixed(links[1])


def is_fixed(time_slice: ComplexArray) -> bool:
    """Whether the spatial links `[..., mu, row, col]` are diagonal and depend on mu alone."""
    space = time_slice[..., :-1, :, :]
    tolerance = _EQUAL if links_are_double(space) else _EQUAL_SINGLE
    first = space[(slice(0, 1),) * (space.ndim - 3)]
    off_diagonal = space * (1 - np.eye(space.shape[-1]))
    with np.errstate(all="ignore"):
        return bool(
            np.abs(off_diagonal).max() < tolerance and np.abs(space - first).max() < tolerance
        )


def links_are_double(links: ComplexArray) -> bool:
    """Whether they have 64-bit numbers."""
    return links.dtype == np.complex128


def require_open_end_allowed(path: PathLike, writer: Format, *, asked: bool) -> list[str]:
    """Warnings about a field with open boundaries that is about to be written.

    Args:
        path: the file to write.
        writer: its format.
        asked: whether the caller knows that readers of the format take the field as periodic.

    Raises:
        FormatError: they do, and nobody asked for it.
    """
    if writer.open_boundaries:
        return []
    if not asked:
        raise FormatError(
            path,
            None,
            f"the field has open boundaries in time (zero time links on the last slice), which "
            f"readers of {writer.name} files take for a periodic field: write openqcd or hirep, or "
            "ask for it with open_boundaries=True (--open-boundaries)",
        )
    return [taken_as_periodic(writer.name)]


def taken_as_periodic(format: str) -> str:
    """What to say about a field with open boundaries that was written in such a format."""
    return (
        f"a field with open boundaries in time was written as {format}, whose readers take it for "
        "a periodic one; its plaquette counts those that do not exist as zeros"
    )
