"""Plaquettes, link traces and departures from SU(N) of one slab of a gauge field.

A slab is a block of planes of one time slice: `links[z, ..., x, mu, row, col]`, z the
second-slowest lattice axis. It is small enough for the caches, and the unit of everything done with
large files.
Arithmetic runs over sites, with colour indices in front, because numpy's products of stacked small
matrices are many times slower; temporary arrays are kept from slab to slab.
"""

from __future__ import annotations

import importlib.util
import math
import os
import threading
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from .configuration import ComplexArray

# Sites per slab: large enough for numpy's cost per call, small enough for the second-level caches.
_SITES = 8192
# Products of larger matrices are numpy's: their elements outnumber the sites of a slab.
_LARGEST_WRITTEN_OUT = 8
_REAL, _COMPLEX = np.dtype(np.float64), np.dtype(np.complex128)
# Importing numba takes as long as numpy needs for this many sites.
_COMPILED_VOLUME = 2**20


@dataclass(frozen=True)
class SlabSums:
    """Sums over one slab.

    Attributes:
        plaquettes: sum of Re Tr P for each plane of directions mu < nu, in the order of
            `itertools.combinations(range(d), 2)`.
        traces: sum of Re Tr U over all links.
        unitarity: largest |(U U^dagger - 1)_ij|, links that are exactly zero left out.
        regular: for each mu, largest |det U_mu - 1| off the last slice in direction mu.
        last: for each mu, largest |det U_mu - 1| on it.
        flipped: for each mu, largest |det U_mu + 1| on it.
        zeros: for each mu, number of links that are exactly zero.
        last_zeros: those among them on the last slice in direction mu.
    """

    plaquettes: tuple[float, ...]
    traces: float
    unitarity: float
    regular: tuple[float, ...]
    last: tuple[float, ...]
    flipped: tuple[float, ...]
    zeros: tuple[int, ...]
    last_zeros: tuple[int, ...]


def planes_per_slab(dims: tuple[int, ...]) -> int:
    """Planes per slab of a lattice of extents (Lx, ..., Lt): a function of the extents alone, so
    that sums come out the same bit by bit, however the slabs are shared out."""
    return max(1, min(dims[-2], _SITES // math.prod(dims[:-2])))


def slab_sums(
    here: ComplexArray,
    following: ComplexArray,
    above: ComplexArray,
    start: int,
    t: int,
    dims: tuple[int, ...],
) -> SlabSums:
    """Sums over the slab of planes `start <= z < start + planes` of time slice t.

    `Re Tr P` is computed as `Re sum_ij A_ij conj(B_ij)` with `A = U_mu(x) U_nu(x+mu)` and
    `B = U_nu(x) U_mu(x+nu)`, which saves two of the three matrix products.

    Args:
        here: `[planes, ..., x, mu, row, col]`, the slab.
        following: `[..., x, mu, row, col]`, the plane after it (periodically).
        above: `[planes, ..., x, mu, row, col]`, the same slab of the next time slice.
        start: first plane of the slab.
        t: time slice.
        dims: extents (Lx, ..., Lt).
    """
    with np.errstate(all="ignore"):  # damaged files may hold 1e300
        compute = _compiled_fields if _use_compiled(dims, here.shape[-1]) else _fields
        fields = compute(here, following, above)
        return _sums(fields, here, start, t, dims)


@cache
def _use_compiled(dims: tuple[int, ...], nc: int) -> bool:
    """Whether the lattice is large enough for numba, and numba is there."""
    if nc != 3 or len(dims) != 4 or math.prod(dims) < _COMPILED_VOLUME:
        return False
    if os.environ.get("FLOWMC_NATIVE") == "0":
        return False
    return importlib.util.find_spec("numba") is not None


@dataclass(frozen=True)
class _Fields:
    """Sums over a slab, and for every link `[mu, z, ..., x]` the squared moduli of
    U U^dagger - 1 (largest element), det U - 1 and det U + 1."""

    plaquettes: tuple[float, ...]
    traces: float
    unitarity: npt.NDArray[np.floating]
    plus: npt.NDArray[np.floating]
    minus: npt.NDArray[np.floating]


def _fields(
    here: ComplexArray,
    following: ComplexArray,
    above: ComplexArray,
) -> _Fields:
    planes, *rest = here.shape
    padded = _scratch.array("here", (*rest[-3:], planes + 1, *rest[:-3]), _COMPLEX)
    own = padded[:, :, :, :-1]
    np.copyto(own, _sites_last(here))
    np.copyto(padded[:, :, :, -1], _sites_last(following))
    upper = _scratch.array("above", own.shape, _COMPLEX)
    np.copyto(upper, _sites_last(above))
    plaquettes = _plaquette_sums(padded, upper)
    diagonal = (own[:, i, i].real for i in range(own.shape[1]))
    traces = sum(float(element.sum(dtype=np.float64)) for element in diagonal)
    determinants = _determinants(own)
    return _Fields(
        plaquettes,
        traces,
        _unitarity(own),
        _squared_modulus(determinants - 1),
        _squared_modulus(determinants + 1),
    )


def _compiled_fields(
    here: ComplexArray,
    following: ComplexArray,
    above: ComplexArray,
) -> _Fields:
    from .compiled_sums import slab_fields

    planes, height, width = above.shape[:3]
    fields = _scratch.array("fields", (3, 4, planes, height, width), _REAL)
    sums = np.empty(7)
    rows = _scratch.array("rows", (4, 4, 3, 3, 2, width + 1), _REAL)
    slab_fields(here, following, above, rows, *fields, sums)
    return _Fields(tuple(map(float, sums[:6])), float(sums[6]), *fields)


class _Scratch(threading.local):
    """Arrays by name, reused: fresh memory costs as much as the arithmetic on it."""

    def __init__(self) -> None:
        self._arrays: dict[str, npt.NDArray[Any]] = {}

    def array(self, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        found = self._arrays.get(name)
        if found is None or found.shape != shape or found.dtype != dtype:
            found = self._arrays[name] = np.empty(shape, dtype)
        return found


_scratch = _Scratch()


def _sites_last(links: ComplexArray) -> ComplexArray:
    """`[mu, row, col, z, ..., x]` of `[z, ..., x, mu, row, col]`, a view."""
    return np.moveaxis(links, (-3, -2, -1), (0, 1, 2))


def _sites_first(matrices: ComplexArray) -> ComplexArray:
    """`[sites..., row, col]` of `[row, col, sites...]`, a view."""
    return np.moveaxis(matrices, (0, 1), (-2, -1))


def _plaquette_sums(here: ComplexArray, above: ComplexArray) -> tuple[float, ...]:
    """Sum of Re Tr P for each plane; `here[mu, row, col, planes + 1, ...]`, `above` without + 1."""
    directions = here.shape[0]
    own = here[:, :, :, :-1]
    first = _scratch.array("first", own.shape[1:], own.dtype)
    second = _scratch.array("second", own.shape[1:], own.dtype)
    sums = []
    for mu, nu in combinations(range(directions), 2):
        _multiply(own[mu], _neighbours(here, above, nu, mu), first)
        _multiply(own[nu], _neighbours(here, above, mu, nu), second)
        sums.append(_real_dot(first, second))
    return tuple(sums)


def _neighbours(here: ComplexArray, above: ComplexArray, direction: int, mu: int) -> ComplexArray:
    """The links `U_direction(x + mu)` of the slab's sites."""
    directions = here.shape[0]
    if mu == directions - 1:
        return above[direction]
    if mu == directions - 2:
        return here[direction, :, :, 1:]
    own = here[direction, :, :, :-1]
    axis = own.ndim - 1 - mu
    result = _scratch.array("shifted", own.shape, own.dtype)
    whole = (slice(None),) * axis
    result[(*whole, slice(None, -1))] = own[(*whole, slice(1, None))]
    result[(*whole, slice(-1, None))] = own[(*whole, slice(None, 1))]
    return result


def _multiply(a: ComplexArray, b: ComplexArray, out: ComplexArray) -> None:
    """Matrix products `[row, col, sites...]`, one call for all columns of one term of the sum."""
    if len(a) > _LARGEST_WRITTEN_OUT:
        np.copyto(out, np.moveaxis(_sites_first(a) @ _sites_first(b), (-2, -1), (0, 1)))
        return
    term = _scratch.array("term", out.shape[1:], out.dtype)
    for row, result in zip(a, out, strict=True):
        np.multiply(row[0], b[0], out=result)
        for k in range(1, a.shape[0]):
            np.multiply(row[k], b[k], out=term)
            np.add(result, term, out=result)


def _real_dot(a: ComplexArray, b: ComplexArray) -> float:
    """Re sum_i a_i conj(b_i), summed in double precision.

    Not `np.vdot`: its last bits depend on the linear-algebra library and on its threads.
    """
    return float(np.einsum("i,i->", *(array.view(_REAL).reshape(-1) for array in (a, b))))


def _sums(
    fields: _Fields, own: ComplexArray, start: int, t: int, dims: tuple[int, ...]
) -> SlabSums:
    """The sums of a slab; `own[z, ..., x, mu, row, col]`."""
    directions = len(dims)
    unitarity, plus, minus = fields.unitarity, fields.plus, fields.minus
    zeros, last_zeros = [0] * directions, [0] * directions
    missing = None
    # A zero matrix has |U U^+ - 1| = 1: look for them only if some link is that far off
    if not float(unitarity.max()) < 0.5:
        missing = np.moveaxis(np.logical_not(own.any(axis=(-2, -1))), -1, 0)
        unitarity[missing] = 0
        plus[missing] = 0
    regular, last, flipped = [], [], []
    for mu in range(directions):
        off, on = _last_slice(plus.ndim - 1, mu, directions, start, t, plus.shape[1], dims)
        regular.append(_largest(plus[mu][off]))
        last.append(_largest(plus[mu][on]))
        flipped.append(_largest(minus[mu][on]))
        if missing is not None:
            zeros[mu] = int(missing[mu].sum())
            last_zeros[mu] = int(missing[mu][on].sum())
    return SlabSums(
        fields.plaquettes,
        fields.traces,
        _largest(unitarity),
        tuple(regular),
        tuple(last),
        tuple(flipped),
        tuple(zeros),
        tuple(last_zeros),
    )


def _last_slice(
    axes: int, mu: int, directions: int, start: int, t: int, planes: int, dims: tuple[int, ...]
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Indices into `[planes, ..., x]` of sites off and on the last slice in direction mu."""
    everything, nothing = (slice(None),), (slice(0, 0),)
    if mu == directions - 1:
        return (nothing, everything) if t == dims[-1] - 1 else (everything, nothing)
    if mu == directions - 2:
        if start + planes < dims[-2]:
            return everything, nothing
        return (slice(None, -1),), (slice(-1, None),)
    before = (slice(None),) * (axes - 1 - mu)
    return (*before, slice(None, -1)), (*before, slice(-1, None))


def _unitarity(own: ComplexArray) -> npt.NDArray[np.float64]:
    """Largest squared modulus of an element of U U^dagger - 1, `[mu, sites...]`."""
    nc = own.shape[1]
    if nc > _LARGEST_WRITTEN_OUT:
        links = np.moveaxis(own, (1, 2), (-2, -1))
        departure = links @ links.conj().swapaxes(-1, -2) - np.eye(nc)
        return np.asarray(_squared_modulus(departure).max(axis=(-2, -1)))
    conjugate = _scratch.array("conjugate", own.shape, own.dtype)
    np.conjugate(own, out=conjugate)
    terms = _scratch.array("terms", (own.shape[0], nc, *own.shape[3:]), own.dtype)
    largest = _scratch.array("largest", (own.shape[0], *own.shape[3:]), own.real.dtype)
    largest[...] = 0
    for i in range(nc):
        for j in range(i, nc):
            np.multiply(own[:, i], conjugate[:, j], out=terms)
            element = terms[:, 0]
            for k in range(1, nc):
                element += terms[:, k]
            if i == j:
                element -= 1
            np.maximum(largest, _squared_modulus(element), out=largest)
    return largest


def _determinants(own: ComplexArray) -> ComplexArray:
    """`[mu, sites...]`."""
    nc = own.shape[1]
    if nc == 2:
        return np.asarray(own[:, 0, 0] * own[:, 1, 1] - own[:, 0, 1] * own[:, 1, 0])
    if nc != 3:
        return np.asarray(np.linalg.det(np.moveaxis(own, (1, 2), (-2, -1))))
    total = np.zeros((own.shape[0], *own.shape[3:]), own.dtype)
    for column in range(3):
        following, other = (column + 1) % 3, (column + 2) % 3
        cross = own[:, 0, following] * own[:, 1, other]
        cross -= own[:, 0, other] * own[:, 1, following]
        cross *= own[:, 2, column]
        total += cross
    return total


def _squared_modulus(values: ComplexArray) -> npt.NDArray[np.float64]:
    return np.asarray(values.real**2 + values.imag**2)


def _largest(squares: npt.NDArray[np.floating]) -> float:
    """Root of the maximum, in which a nan (inf - inf in a damaged field) wins as infinity."""
    if squares.size == 0:
        return 0.0
    largest = float(squares.max())
    return math.inf if math.isnan(largest) else math.sqrt(largest)
