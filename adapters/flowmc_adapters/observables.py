"""Numbers that tell whether a gauge field was read right: plaquette, link trace, group membership.

All work through one time slice (and its neighbour) at a time, in double precision whatever the
precision of the links, so the extra memory is a few slices.

Shapes: `links[t, z, y, x, mu, row, col]`, in d dimensions `(L_{d-1}, ..., L_0, d, N, N)`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from .configuration import DIRECTIONS, ComplexArray


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
    """Largest departure of any link from SU(N).

    Attributes:
        unitarity: max |(U U^dagger - 1)_ij|.
        determinant: max |det U - 1|.
        antiperiodic: directions mu whose links on the last slice all have determinant -1 while all
            other links have +1: the fermions' boundary sign was left in the field. Even N has no
            such trace, det(-U) = det U.
    """

    unitarity: float
    determinant: float
    antiperiodic: tuple[int, ...]


def plaquettes(links: ComplexArray) -> Plaquettes:
    """Mean plaquettes of `P = U_mu(x) U_nu(x+mu) U_mu(x+nu)^dagger U_nu(x)^dagger`.

    Computed as `Re Tr P = Re sum_ij A_ij conj(B_ij)` with `A = U_mu(x) U_nu(x+mu)` and
    `B = U_nu(x) U_mu(x+nu)`, which saves two of the three matrix products.
    """
    slices, dimensions, nc = links.shape[0], links.shape[-3], links.shape[-1]
    planes = list(combinations(range(dimensions), 2))
    sums: dict[tuple[int, int], list[float]] = {plane: [] for plane in planes}
    with np.errstate(over="ignore", invalid="ignore"):  # broken files may hold 1e300
        lowest = here = _sites_last(links[0])
        for t in range(slices):
            above = lowest if t == slices - 1 else _sites_last(links[t + 1])
            for mu, nu in planes:
                # nu may be the direction from slice to slice; mu, which is less, cannot
                u_mu_up = above[mu] if nu == dimensions - 1 else _shifted(here[mu], nu)
                first = _product(here[mu], _shifted(here[nu], mu))
                second = _product(here[nu], u_mu_up)
                # Not np.vdot: threaded BLAS makes it the slowest step on a busy node
                reals = first.view(np.float64) * second.view(np.float64)
                sums[mu, nu].append(float(reals.sum()))
            here = above
    normalisation = nc * math.prod(links.shape[:-3])
    means = {plane: _sum(parts) / normalisation for plane, parts in sums.items()}
    time = [value for plane, value in means.items() if dimensions - 1 in plane]
    space = [value for plane, value in means.items() if dimensions - 1 not in plane]
    return Plaquettes(
        mean=_sum(list(means.values())) / len(planes),
        space=_sum(space) / len(space) if space else None,
        time=_sum(time) / len(time),
    )


def link_trace(links: ComplexArray) -> float:
    """Mean of Re Tr U / N over all links; 1 for a cold field."""
    count = math.prod(links.shape[:-2]) * links.shape[-1]
    with np.errstate(over="ignore", invalid="ignore"):
        traces = [
            float(np.trace(part.real, axis1=-2, axis2=-1, dtype=np.float64).sum()) for part in links
        ]
    return _sum(traces) / count


def group_errors(links: ComplexArray) -> GroupErrors:
    """Largest departure from SU(N), and boundary signs left in the field."""
    slices, dimensions, nc = links.shape[0], links.shape[-3], links.shape[-1]
    identity = np.eye(nc)
    unitarity, determinant = 0.0, 0.0
    # Largest |det U + 1| on, and |det U - 1| off, the last slice of each direction.
    flipped = np.zeros(dimensions)
    regular = np.zeros(dimensions)
    with np.errstate(over="ignore", invalid="ignore"):
        for t in range(slices):
            part = _double(links[t])
            product = part @ part.conj().swapaxes(-1, -2)
            unitarity = _larger(unitarity, np.abs(product - identity))
            det = _determinant(part)
            determinant = _larger(determinant, np.abs(det - 1))
            for mu in range(dimensions):
                last = np.zeros(det.shape[:-1], dtype=bool)
                if mu == dimensions - 1:
                    last[...] = t == slices - 1
                else:
                    last.swapaxes(0, dimensions - 2 - mu)[-1] = True
                flipped[mu] = _larger(flipped[mu], np.abs(det[..., mu][last] + 1))
                regular[mu] = _larger(regular[mu], np.abs(det[..., mu][~last] - 1))
    antiperiodic = tuple(
        mu for mu in range(dimensions) if flipped[mu] < 1e-3 and regular[mu] < 1e-3
    )
    return GroupErrors(unitarity, determinant, antiperiodic)


def first_non_finite(part: npt.NDArray[Any]) -> tuple[int, ...] | None:
    """Index of the first element that is nan or infinite, or None."""
    finite = np.isfinite(part)
    if finite.all():
        return None
    return tuple(int(i) for i in np.unravel_index(int(np.argmin(finite)), part.shape))


def site_text(index: tuple[int, ...]) -> str:
    """`[x,y,z,t], mu = x` for an index into links, `(t, z, y, x, mu, ...)`."""
    dimensions = len(index) - 3
    site = ",".join(str(i) for i in reversed(index[:dimensions]))
    mu = index[dimensions]
    name = DIRECTIONS[mu] if dimensions == 4 else str(mu)
    return f"site [{site}], mu = {name}"


def _double(part: ComplexArray) -> npt.NDArray[np.complex128]:
    return np.asarray(part, dtype=np.complex128)


def _sites_last(part: ComplexArray) -> npt.NDArray[np.complex128]:
    """A slice as `[mu, row, col, z, y, x]`, for arithmetic over contiguous sites.

    That is five times faster than numpy's products of stacked small matrices (measured, SU(3)).
    """
    return np.ascontiguousarray(np.moveaxis(_double(part), (-3, -2, -1), (0, 1, 2)))


def _shifted(matrices: npt.NDArray[np.complex128], mu: int) -> npt.NDArray[np.complex128]:
    """The slice's field `matrices[row, col, z, y, x]` at x + mu."""
    return np.roll(matrices, -1, axis=matrices.ndim - 1 - mu)


def _product(
    a: npt.NDArray[np.complex128], b: npt.NDArray[np.complex128]
) -> npt.NDArray[np.complex128]:
    """Matrix products `[row, col, sites...]` at every site."""
    nc = a.shape[0]
    result = np.empty_like(a)
    term = np.empty_like(a[0, 0])
    for row in range(nc):
        for column in range(nc):
            element = result[row, column]
            np.multiply(a[row, 0], b[0, column], out=element)
            for k in range(1, nc):
                np.multiply(a[row, k], b[k, column], out=term)
                element += term
    return result


def _determinant(part: npt.NDArray[np.complex128]) -> npt.NDArray[np.complex128]:
    if part.shape[-1] != 3:
        return np.asarray(np.linalg.det(part))
    return np.asarray((np.cross(part[..., 0, :], part[..., 1, :]) * part[..., 2, :]).sum(axis=-1))


def _larger(present: float, values: npt.NDArray[Any]) -> float:
    """Maximum in which a nan (inf - inf in a broken field) wins as infinity."""
    if values.size == 0:
        return present
    largest = float(values.max())
    return math.inf if math.isnan(largest) else max(present, largest)


def _sum(parts: list[float]) -> float:
    # fsum raises on inf - inf, which a broken field may produce
    return math.fsum(parts) if all(map(math.isfinite, parts)) else math.nan
