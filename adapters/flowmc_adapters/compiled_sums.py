"""The arithmetic of `slab_sums` compiled with numba, where that is installed: SU(3) in four
dimensions, for lattices so large that importing numba pays.

Links are regrouped row by row (all sites of one y and z) into arrays with the sites innermost,
real and imaginary parts apart, so that a row and its neighbours stay in the caches and every inner
loop is over contiguous sites.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from numba import njit

# Sums may be reordered; nans and infinities keep their meaning, damaged files contain them.
_MATH = {"reassoc", "contract", "nsz"}


def _compiled(function):
    try:
        return njit(nogil=True, fastmath=_MATH, cache=True, boundscheck=False)(function)
    except RuntimeError:  # nowhere to keep the result: every process compiles anew
        return njit(nogil=True, fastmath=_MATH, boundscheck=False)(function)


@_compiled
def slab_fields(
    here: npt.NDArray[np.complexfloating],
    following: npt.NDArray[np.complexfloating],
    above: npt.NDArray[np.complexfloating],
    rows: npt.NDArray[np.float64],
    unitarity: npt.NDArray[np.float64],
    plus: npt.NDArray[np.float64],
    minus: npt.NDArray[np.float64],
    sums: npt.NDArray[np.float64],
) -> None:
    """What `slab_sums` needs to know of every site of a slab, and the sums over it.

    Args:
        here: `[planes, y, x, mu, row, col]`.
        following: `[y, x, mu, row, col]`, the plane after the slab.
        above: `[planes, y, x, mu, row, col]`, the slab of the next time slice.
        rows: work space `[4, mu, row, col, re/im, Lx + 1]` double precision: a row, and its
            neighbours in y, z and t.
        unitarity: filled, `[mu, z, y, x]`, largest squared modulus of an element of
            U U^dagger - 1.
        plus: filled, `[mu, z, y, x]`, |det U - 1|^2.
        minus: filled, `[mu, z, y, x]`, |det U + 1|^2.
        sums: filled: Re Tr P for the six planes, then Re Tr U.
    """
    planes, height, width = above.shape[0], above.shape[1], above.shape[2]
    sums[:] = 0
    behind, later = rows[2], rows[3]
    for z in range(planes):
        _regroup(here[z, 0], rows[0])
        for y in range(height):
            row, beside = rows[y % 2], rows[(y + 1) % 2]
            _regroup(here[z, (y + 1) % height], beside)
            _regroup(here[z + 1, y] if z + 1 < planes else following[y], behind)
            _regroup(above[z, y], later)
            plane = 0
            for mu in range(3):
                first = beside if mu == 1 else (behind if mu == 2 else row)
                shift = 1 if mu == 0 else 0
                for nu in range(mu + 1, 4):
                    second = beside if nu == 1 else (behind if nu == 2 else later)
                    sums[plane] += _plaquettes(
                        row[mu], first[nu], shift, row[nu], second[mu], width
                    )
                    plane += 1
            for mu in range(4):
                sums[6] += _group(
                    row[mu], unitarity[mu, z, y], plus[mu, z, y], minus[mu, z, y], width
                )


@_compiled
def _regroup(links: npt.NDArray[np.complexfloating], row: npt.NDArray[np.float64]) -> None:
    """`row[mu, i, j, re/im, x]` of `links[x, mu, i, j]`, the first site repeated at the end."""
    width = links.shape[0]
    # Sites outside: what is read comes from far away, what is written stays in the cache
    for x in range(width):
        for mu in range(4):
            for i in range(3):
                for j in range(3):
                    row[mu, i, j, 0, x] = links[x, mu, i, j].real
                    row[mu, i, j, 1, x] = links[x, mu, i, j].imag
    for mu in range(4):
        for i in range(3):
            for j in range(3):
                row[mu, i, j, 0, width] = row[mu, i, j, 0, 0]
                row[mu, i, j, 1, width] = row[mu, i, j, 1, 0]


@_compiled
def _plaquettes(
    a: npt.NDArray[np.float64],
    b: npt.NDArray[np.float64],
    shift: int,
    c: npt.NDArray[np.float64],
    d: npt.NDArray[np.float64],
    width: int,
) -> float:
    """Sum over a row of Re Tr (A B)(C D)^dagger, arrays `[row, col, re/im, x]`, B at x + shift."""
    total = 0.0
    for i in range(3):
        for j in range(3):
            part = 0.0
            for x in range(width):
                s = np.uintp(x + shift)  # a signed index could be negative, which costs the vectors
                re = (
                    a[i, 0, 0, x] * b[0, j, 0, s]
                    - a[i, 0, 1, x] * b[0, j, 1, s]
                    + a[i, 1, 0, x] * b[1, j, 0, s]
                    - a[i, 1, 1, x] * b[1, j, 1, s]
                    + a[i, 2, 0, x] * b[2, j, 0, s]
                    - a[i, 2, 1, x] * b[2, j, 1, s]
                )
                im = (
                    a[i, 0, 0, x] * b[0, j, 1, s]
                    + a[i, 0, 1, x] * b[0, j, 0, s]
                    + a[i, 1, 0, x] * b[1, j, 1, s]
                    + a[i, 1, 1, x] * b[1, j, 0, s]
                    + a[i, 2, 0, x] * b[2, j, 1, s]
                    + a[i, 2, 1, x] * b[2, j, 0, s]
                )
                other_re = (
                    c[i, 0, 0, x] * d[0, j, 0, x]
                    - c[i, 0, 1, x] * d[0, j, 1, x]
                    + c[i, 1, 0, x] * d[1, j, 0, x]
                    - c[i, 1, 1, x] * d[1, j, 1, x]
                    + c[i, 2, 0, x] * d[2, j, 0, x]
                    - c[i, 2, 1, x] * d[2, j, 1, x]
                )
                other_im = (
                    c[i, 0, 0, x] * d[0, j, 1, x]
                    + c[i, 0, 1, x] * d[0, j, 0, x]
                    + c[i, 1, 0, x] * d[1, j, 1, x]
                    + c[i, 1, 1, x] * d[1, j, 0, x]
                    + c[i, 2, 0, x] * d[2, j, 1, x]
                    + c[i, 2, 1, x] * d[2, j, 0, x]
                )
                part += re * other_re + im * other_im
            total += part
    return total


@_compiled
def _group(
    u: npt.NDArray[np.float64],
    unitarity: npt.NDArray[np.float64],
    plus: npt.NDArray[np.float64],
    minus: npt.NDArray[np.float64],
    width: int,
) -> float:
    """Departures from SU(3) of the links `u[row, col, re/im, x]` of a row; returns Re Tr U."""
    for x in range(width):
        unitarity[x] = 0
    for i in range(3):
        for j in range(i, 3):
            unit = 1.0 if i == j else 0.0
            for x in range(width):
                re = -unit
                im = 0.0
                for k in range(3):
                    re += u[i, k, 0, x] * u[j, k, 0, x] + u[i, k, 1, x] * u[j, k, 1, x]
                    im += u[i, k, 1, x] * u[j, k, 0, x] - u[i, k, 0, x] * u[j, k, 1, x]
                square = re * re + im * im
                # A nan is taken, too, and stays
                unitarity[x] = unitarity[x] if unitarity[x] >= square else square
    for x in range(width):
        plus[x] = -1
        minus[x] = 0
    total = 0.0
    for i in range(3):
        trace = 0.0
        for x in range(width):
            trace += u[i, i, 0, x]
        total += trace
    for column in range(3):
        p, q = (column + 1) % 3, (column + 2) % 3
        for x in range(width):
            re = (
                u[0, p, 0, x] * u[1, q, 0, x]
                - u[0, p, 1, x] * u[1, q, 1, x]
                - u[0, q, 0, x] * u[1, p, 0, x]
                + u[0, q, 1, x] * u[1, p, 1, x]
            )
            im = (
                u[0, p, 0, x] * u[1, q, 1, x]
                + u[0, p, 1, x] * u[1, q, 0, x]
                - u[0, q, 0, x] * u[1, p, 1, x]
                - u[0, q, 1, x] * u[1, p, 0, x]
            )
            # For now: real and imaginary part of det U - 1
            plus[x] += re * u[2, column, 0, x] - im * u[2, column, 1, x]
            minus[x] += re * u[2, column, 1, x] + im * u[2, column, 0, x]
    for x in range(width):
        re, im = plus[x], minus[x]
        plus[x] = re * re + im * im
        minus[x] = (re + 2) * (re + 2) + im * im
    return total
