"""Numbers that tell whether a gauge field was read right: plaquette, link trace, group membership.

Computed slab by slab (see `transfer`), in double precision whatever that of the links.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from .configuration import ComplexArray
from .links import ArraySource, Slab
from .slab_sums import SlabSums
from .transfer import slabs_of, transfer

# A determinant counts as -1, a boundary sign, within this.
_SIGN_TOLERANCE = 1e-3


@dataclass(frozen=True)
class Plaquettes:
    """Mean of Re Tr P / N over the lattice; 1 for a cold field.

    Attributes:
        mean: over all d(d-1)/2 planes.
        space: over the planes without the last direction (time); None in two dimensions.
        time: over the planes with it.
    """

    mean: float
    space: float | None
    time: float


@dataclass(frozen=True)
class GroupErrors:
    """Largest departure of any link from SU(N), links that are exactly zero left out.

    Attributes:
        unitarity: the largest modulus of an entry of U U^dagger - 1.
        determinant: the largest modulus of det U - 1.
        antiperiodic: directions mu whose links on the last slice all have determinant -1 while all
            other links have +1: the fermions' boundary sign was left in the field. Even N has no
            such trace, det(-U) = det U.
        slice_errors: for each time slice, the larger of the two errors on it.
        zeros: number of links that are exactly zero.
        open_boundary: whether those are just the time links of the last time slice.
    """

    unitarity: float
    determinant: float
    antiperiodic: tuple[int, ...]
    slice_errors: tuple[float, ...]
    zeros: int
    open_boundary: bool


@dataclass(frozen=True)
class Measurements:
    """What was computed from the links, plaquettes and link trace normalised to 1.

    Attributes:
        plaquettes: means over the lattice.
        link_trace: mean over the lattice.
        group: departures from SU(N).
        space_slices: mean over the planes without time on each time slice; empty in two dimensions.
    """

    plaquettes: Plaquettes
    link_trace: float
    group: GroupErrors
    space_slices: tuple[float, ...] = ()

    @property
    def weighted_plaquette(self) -> float:
        """The mean plaquette, with the weights of open boundaries if the field has them: only
        plaquettes that exist count, and on the first and last time slice those in space by half.
        Four dimensions, where as many planes have the time in them as not.

        Source: HiRep's file headers.
        """
        slices = len(self.space_slices)
        if not self.group.open_boundary or slices < 2:
            return self.plaquettes.mean
        ends = self.space_slices[0] / 2, self.space_slices[-1] / 2
        space = _sum([*ends, *self.space_slices[1:-1]])
        return (space + slices * self.plaquettes.time) / (2 * (slices - 1))


def plaquettes(links: ComplexArray) -> Plaquettes:
    """Mean plaquettes of `P = U_mu(x) U_nu(x+mu) U_mu(x+nu)^dagger U_nu(x)^dagger`.

    Args:
        links: `U[t, z, y, x, mu, row, col]`, in d dimensions `(L_{d-1}, ..., L_0, d, N, N)`.

    Raises:
        CheckError: a link is not finite.
    """
    return measure_links(links).plaquettes


def link_trace(links: ComplexArray) -> float:
    """Mean of Re Tr U / N over all links; 1 for a cold field. Arguments as `plaquettes`."""
    return measure_links(links).link_trace


def group_errors(links: ComplexArray) -> GroupErrors:
    """Largest departure from SU(N), boundary signs and zero links. Arguments as `plaquettes`."""
    return measure_links(links).group


def measure_links(links: ComplexArray) -> Measurements:
    """All of it in one go. Arguments as `plaquettes`."""
    source = ArraySource(links)
    return summarize(source.dims, source.nc, transfer(source).source)


def summarize(dims: tuple[int, ...], nc: int, sums: Sequence[SlabSums]) -> Measurements:
    """Means and maxima over the lattice from the sums over all its slabs.

    Args:
        dims: extents (Lx, ..., Lt).
        nc: number of colours N.
        sums: one for each slab of `slabs_of(dims)`, in that order.
    """
    directions, volume = len(dims), math.prod(dims)
    means = [
        _sum([part.plaquettes[i] for part in sums]) / (nc * volume)
        for i in range(directions * (directions - 1) // 2)
    ]
    planes = list(combinations(range(directions), 2))
    time = [mean for mean, (_, nu) in zip(means, planes, strict=True) if nu == directions - 1]
    space = [mean for mean, (_, nu) in zip(means, planes, strict=True) if nu != directions - 1]
    trace = _sum([part.traces for part in sums]) / (nc * directions * volume)
    return Measurements(
        Plaquettes(
            mean=_sum(means) / len(means),
            space=_sum(space) / len(space) if space else None,
            time=_sum(time) / len(time),
        ),
        trace,
        _group_errors(dims, sums),
        _space_slices(dims, nc, sums),
    )


def _space_slices(dims: tuple[int, ...], nc: int, sums: Sequence[SlabSums]) -> tuple[float, ...]:
    directions = len(dims)
    planes = list(combinations(range(directions), 2))
    space = [i for i, (_, nu) in enumerate(planes) if nu != directions - 1]
    if not space:
        return ()
    parts: list[list[float]] = [[] for _ in range(dims[-1])]
    for (t, _, _), part in zip(slabs_of(dims), sums, strict=True):
        parts[t] += [part.plaquettes[i] for i in space]
    return tuple(_sum(slice_) / (nc * len(space) * math.prod(dims[:-1])) for slice_ in parts)


def _group_errors(dims: tuple[int, ...], sums: Sequence[SlabSums]) -> GroupErrors:
    directions = range(len(dims))
    regular = [max(part.regular[mu] for part in sums) for mu in directions]
    last = [max(part.last[mu] for part in sums) for mu in directions]
    flipped = [max(part.flipped[mu] for part in sums) for mu in directions]
    slices: list[Slab] = slabs_of(dims)
    errors = [0.0] * dims[-1]
    for (t, _, _), part in zip(slices, sums, strict=True):
        errors[t] = max(errors[t], part.unitarity, *part.regular, *part.last)
    zeros = sum(sum(part.zeros) for part in sums)
    zeros_at_end = sum(part.last_zeros[-1] for part in sums)
    return GroupErrors(
        unitarity=max(part.unitarity for part in sums),
        determinant=max(*regular, *last),
        antiperiodic=tuple(
            mu
            for mu in directions
            if flipped[mu] < _SIGN_TOLERANCE and regular[mu] < _SIGN_TOLERANCE
        ),
        slice_errors=tuple(errors),
        zeros=zeros,
        open_boundary=zeros == zeros_at_end == math.prod(dims[:-1]),
    )


def _sum(parts: list[float]) -> float:
    """The sum; nan where it overflows, which only damaged fields make it do."""
    try:
        return math.fsum(parts) if all(map(math.isfinite, parts)) else math.nan
    except OverflowError:
        return math.nan
