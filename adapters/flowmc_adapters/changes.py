"""What can be done to links on their way from file to file. Never silently: each is asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import numpy as np

from .configuration import ComplexArray
from .layout import last_row
from .links import LinkSource, Slab


class Change(ABC):
    """Something done to every link."""

    @abstractmethod
    def apply(self, links: ComplexArray, slab: Slab) -> ComplexArray:
        """The changed links of a slab `[z, ..., x, mu, row, col]`, in a new array."""


class Precision(Change):
    """Conversion to 32 or 64 bit."""

    def __init__(self, precision: int) -> None:
        self._type = np.complex64 if precision == 32 else np.complex128

    def apply(self, links: ComplexArray, slab: Slab) -> ComplexArray:
        """See `Change.apply`."""
        with np.errstate(over="ignore"):  # an overflow becomes inf, which is then refused
            return links.astype(self._type)


class StripSigns(Change):
    """Undo the fermions' antiperiodic sign: links on the last slice of some directions times -1.

    Args:
        dims: extents (Lx, ..., Lt).
        directions: those mu with the sign.
    """

    def __init__(self, dims: tuple[int, ...], directions: Sequence[int]) -> None:
        self._dims, self._directions = dims, tuple(directions)

    def apply(self, links: ComplexArray, slab: Slab) -> ComplexArray:
        """See `Change.apply`."""
        t, _, stop = slab
        dimensions = len(self._dims)
        changed = links.copy()
        for mu in self._directions:
            part = changed[..., mu, :, :]
            if mu == dimensions - 1:
                last = part[slice(None) if t == self._dims[-1] - 1 else slice(0, 0)]
            elif mu == dimensions - 2:
                last = part[slice(-1 if stop == self._dims[-2] else len(part), None)]
            else:
                last = np.moveaxis(part, dimensions - 2 - mu, 0)[-1:]
            np.negative(last, out=last)
        return changed


class Reunitarize(Change):
    """Projection onto SU(N), see `reunitarize`."""

    def apply(self, links: ComplexArray, slab: Slab) -> ComplexArray:
        """See `Change.apply`."""
        return reunitarize(links)


class Changes(Change):
    """Several changes, one after the other."""

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = tuple(changes)

    def apply(self, links: ComplexArray, slab: Slab) -> ComplexArray:
        """See `Change.apply`."""
        for change in self._changes:
            links = change.apply(links, slab)
        return links


def chain(*changes: Change | None) -> Change | None:
    """The changes that are there, as one; None if there are none."""
    present = [change for change in changes if change is not None]
    return Changes(present) if len(present) > 1 else present[0] if present else None


def precision_change(source: LinkSource, precision: int) -> Change | None:
    """The change that makes `precision` of the source's, or None if it has that already."""
    return None if precision == source.precision else Precision(precision)


def reunitarize(links: ComplexArray) -> ComplexArray:
    """Links projected onto SU(N): Gram-Schmidt on the rows from the first on, the last row from the
    others (`layout.last_row`), so that the determinant is 1.

    Computed in double precision. Zero matrices (open boundaries) stay zero.

    Args:
        links: `[..., row, col]`.

    Returns:
        An array of the same shape and type.
    """
    double = links.astype(np.complex128)
    nc = double.shape[-1]
    for i in range(nc - 1):
        row = double[..., i, :]
        for j in range(i):
            before = double[..., j, :]
            row -= (before.conj() * row).sum(axis=-1, keepdims=True) * before
        norm = np.sqrt((row.real**2 + row.imag**2).sum(axis=-1, keepdims=True))
        np.divide(row, norm, out=row, where=norm > 0)
    double[..., nc - 1, :] = last_row(double[..., : nc - 1, :])
    return double.astype(links.dtype)
