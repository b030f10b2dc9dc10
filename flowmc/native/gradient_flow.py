r"""Native gradient flow of the plain Wilson action for U(1), SU(2) and SU(3).

A step of M. Luescher's third-order scheme (arXiv:1006.4518, appendix C) needs one algebra element
per link besides the links: with :math:`X_0 = \tfrac14 Z_0`,
:math:`X_1 = \tfrac89 Z_1 - \tfrac{17}{9} X_0` and :math:`X_2 = \tfrac34 Z_2 - X_1` the field moves
by :math:`e^{X_0}`, :math:`e^{X_1}`, :math:`e^{X_2}`.  In units in which a move multiplies by
:math:`1, -\tfrac{17}{9}, \tfrac{17}{9}` the element only ever grows by forces, as momenta do; a
step is therefore three kicks and three drifts that begin with momenta of zero.

The clover field strength costs two transports per plane and site: the four leaves around x are
:math:`K(x) + U_\mu^\dagger K(x-\mu) U_\mu` with
:math:`K(x) = H(x) + U_\nu^\dagger H(x-\nu) U_\nu`, the links being those that lead to x, because
both ways around a plaquette transport it to the same matrix.
"""

# numba calls intrinsics without their first parameter and types kernels itself.
# mypy: disable-error-code="call-arg, var-annotated"

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numba import njit
from torch import Tensor

from flowmc.groups import Group
from flowmc.native.compiled import compiled
from flowmc.native.dynamics import FIELD, MOMENTUM
from flowmc.native.gauge import PlaquetteDynamics
from flowmc.native.lanes import accumulate, flip, fma, lanes, round_to_integer, store, traced
from flowmc.native.layout import FLIP_BITS, sum_lanes
from flowmc.native.link_fields import CHUNK, FLIPS, ahead, components, load_algebra, load_link
from flowmc.native.matrices import COMPONENTS, add, multiply, plaquette_algebra, transport
from flowmc.native.schedule import run_slices
from flowmc.terms import Plaquettes

__all__ = ["GradientFlow", "make_gradient_flow"]

GradientFlow = Callable[[Tensor, float, Sequence[int]], tuple[Tensor, Tensor]]

# Coefficients of the forces and of the moves: 1/4, 8/9, 3/4 divided by the moves.
_KICKS = (1 / 4, -8 / 17, 27 / 68)
_DRIFTS = (1.0, -17 / 9, 17 / 9)

Lanes = list[Any]


@traced
def _deficit(a: Lanes, b: Lanes) -> Lanes:
    r"""Return ``2 Re tr(1 - a b^dagger)``; for U(1), ``1 - cos(a - b)``.

    As the distance of a and b, which loses no digits where they are close.
    """
    if len(a) == 1:
        turn = a[0] - b[0]
        turn = fma(-2 * math.pi, round_to_integer(turn * (1 / (2 * math.pi))), turn)
        # 1 - cos x = 2 sin^2(x / 2), the sine as an odd polynomial on [-pi/2, pi/2].
        half = 0.5 * turn
        square = half * half
        total = square * _SINE[-1]
        for coefficient in _SINE[-2:0:-1]:
            total = (total + coefficient) * square
        sine = fma(total, half, half)
        return [2.0 * (sine * sine)]
    difference = a[0] - b[0]
    sum_of_squares = difference * difference
    for x, y in zip(a[1:], b[1:], strict=True):
        difference = x - y
        sum_of_squares = fma(difference, difference, sum_of_squares)
    # Of SU(2) half of the numbers are stored.
    return [sum_of_squares if len(a) == 18 else 2.0 * sum_of_squares]


# Taylor coefficients of sin x / x in x^2.
_SINE = [(-1) ** n / math.factorial(2 * n + 1) for n in range(11)]


@traced
def _minus_trace(a: Lanes, b: Lanes) -> Lanes:
    """Return ``-tr(a b)`` of two algebra elements; for U(1), half the product."""
    if len(a) == 1:
        return [0.5 * (a[0] * b[0])]
    if len(a) == 3:
        return [2.0 * fma(a[0], b[0], fma(a[1], b[1], a[2] * b[2]))]
    diagonal = fma(a[0], b[0], fma(a[1], b[1], a[2] * b[2]))
    rest = a[3] * b[3]
    for x, y in zip(a[4:], b[4:], strict=True):
        rest = fma(x, y, rest)
    return [fma(2.0, rest, diagonal)]


@traced
def _negative(a: Lanes) -> Lanes:
    return [-x for x in a]


@traced
def _wrapped(a: Lanes, b: Lanes) -> Lanes:
    """Return the U(1) plaquette angle in units of 2 pi, between -1/2 and 1/2."""
    turns = (a[0] - b[0]) * (1 / (2 * math.pi))
    return [turns - round_to_integer(turns)]


@njit(inline="always")
def _sides(links, neighbours, base, block, mu, nu, dimensions, tag):
    """Return the two halves of a plaquette: P = a b^dagger."""
    a = multiply(
        load_link(links, (base + block) * dimensions + mu, tag),
        ahead(links, neighbours, base, block, 2 * mu, nu, dimensions, tag),
    )
    b = multiply(
        load_link(links, (base + block) * dimensions + nu, tag),
        ahead(links, neighbours, base, block, 2 * nu, mu, dimensions, tag),
    )
    return a, b


@njit(inline="always")
def _with_behind(links, neighbours, elements, base, block, direction, plane, dimensions, tag):
    """Return an element of a plane plus the one behind, transported along the link between."""
    planes = dimensions * (dimensions - 1) // 2
    entry = neighbours[np.uint64((block * dimensions + direction) * 2 + 1)]
    behind = entry >> FLIP_BITS
    u = load_link(links, (base + behind) * dimensions + direction, tag)
    there = transport(u, load_algebra(elements, behind * planes + plane, tag))
    if entry & FLIPS:
        there = flip(there, entry & FLIPS)
    return add(load_algebra(elements, block * planes + plane, tag), there)


@compiled
def _leaves(links, neighbours, leaves, base, start, stop, blocks, dimensions, tag, sums):
    """Write H of every plane, and add up what is missing to ordered plaquettes, by chunks."""
    stride = components(tag, 1) * lanes(links)
    planes = dimensions * (dimensions - 1) // 2
    for chunk in range(start, stop):
        for block in range(chunk * CHUNK, min(blocks, (chunk + 1) * CHUNK)):
            position = block * planes * stride
            for mu in range(dimensions):
                for nu in range(mu + 1, dimensions):
                    a, b = _sides(links, neighbours, base, block, mu, nu, dimensions, tag)
                    store(leaves, position, plaquette_algebra(a, b))
                    accumulate(sums, chunk * lanes(links), _deficit(a, b))
                    position += stride


@compiled
def _pairs(links, neighbours, leaves, pairs, base, start, stop, dimensions, tag):
    """Write the sum of two leaves of every plane (mu, nu), those at x and x - nu."""
    stride = components(tag, 1) * lanes(links)
    planes = dimensions * (dimensions - 1) // 2
    for block in range(start, stop):
        plane = 0
        for mu in range(dimensions):
            for nu in range(mu + 1, dimensions):
                both = _with_behind(
                    links, neighbours, leaves, base, block, nu, plane, dimensions, tag
                )
                store(pairs, (block * planes + plane) * stride, both)
                plane += 1


@compiled
def _clovers(
    links, neighbours, pairs, clovers, base, start, stop, blocks, dimensions, tag, energy, charge
):  # fmt: skip
    """Add up -tr FF and, in four dimensions, the dual products of F, both times 16, by chunks."""
    stride = components(tag, 1) * lanes(links)
    planes = dimensions * (dimensions - 1) // 2
    for chunk in range(start, stop):
        own = chunk * planes * stride
        for block in range(chunk * CHUNK, min(blocks, (chunk + 1) * CHUNK)):
            plane = 0
            for mu in range(dimensions):
                for _ in range(mu + 1, dimensions):
                    clover = _with_behind(
                        links, neighbours, pairs, base, block, mu, plane, dimensions, tag
                    )
                    accumulate(energy, chunk * lanes(links), _minus_trace(clover, clover))
                    store(clovers, own + plane * stride, clover)
                    plane += 1
            if dimensions == 4:
                # Planes in order: 01, 02, 03, 12, 13, 23; each with its dual.
                for plane in range(3):
                    product = _minus_trace(
                        load_algebra(clovers, chunk * planes + plane, tag),
                        load_algebra(clovers, chunk * planes + 5 - plane, tag),
                    )
                    if plane == 1:
                        product = _negative(product)
                    accumulate(charge, chunk * lanes(links), product)


@compiled
def _fluxes(links, neighbours, base, start, stop, blocks, tag, charge):
    """Add up wrapped plaquette angles of two-dimensional U(1), by chunks."""
    for chunk in range(start, stop):
        for block in range(chunk * CHUNK, min(blocks, (chunk + 1) * CHUNK)):
            a, b = _sides(links, neighbours, base, block, 0, 1, 2, tag)
            accumulate(charge, chunk * lanes(links), _wrapped(a, b))


class _Measure:
    """Energies and charge of links in lanes, one group of chains after the other."""

    def __init__(self, setting: PlaquetteDynamics) -> None:
        self.setting = setting
        self.chunks = -(-setting.layout.blocks // CHUNK)
        planes = setting.dimensions * (setting.dimensions - 1) // 2
        algebra = COMPONENTS[setting.n][1]
        self.leaves = setting.memory(algebra, planes, 1)
        self.pairs = setting.memory(algebra, planes, 1)
        self.clovers = np.empty(self.chunks * planes * algebra * setting.width, setting.dtype)
        is_abelian = setting.n == 1
        self.has_flux = is_abelian and setting.dimensions == 2
        self.has_charge = self.has_flux or (not is_abelian and setting.dimensions == 4)

    def __call__(self, links: np.ndarray) -> np.ndarray:
        """Return E from the clover, E from the plaquette and Q, ``(chains, 2 or 3)``."""
        setting, layout, chunks = self.setting, self.setting.layout, self.chunks
        tag, dimensions, neighbours = setting.tag, setting.dimensions, layout.neighbours
        partial = np.zeros((3, layout.groups, chunks * setting.width))
        chunk_time = min(layout.blocks, CHUNK) * setting.block_time
        for group in range(layout.groups):
            base = group * layout.blocks
            clover, plaquette, charge = partial[:, group]

            def find_leaves(start: int, stop: int, base=base, sums=plaquette) -> None:
                _leaves(
                    links, neighbours, self.leaves, base, start, stop, layout.blocks, dimensions,
                    tag, sums,
                )  # fmt: skip

            def find_pairs(start: int, stop: int, base=base) -> None:
                _pairs(
                    links, neighbours, self.leaves, self.pairs, base, start, stop, dimensions, tag
                )

            def find_clovers(
                start: int, stop: int, base=base, energy=clover, charge=charge
            ) -> None:
                _clovers(
                    links, neighbours, self.pairs, self.clovers, base, start, stop, layout.blocks,
                    dimensions, tag, energy, charge,
                )  # fmt: skip

            def find_fluxes(start: int, stop: int, base=base, charge=charge) -> None:
                _fluxes(links, neighbours, base, start, stop, layout.blocks, tag, charge)

            run_slices(find_leaves, chunks, chunk_time)
            run_slices(find_pairs, layout.blocks, setting.block_time)
            run_slices(find_clovers, chunks, chunk_time)
            if self.has_flux:
                run_slices(find_fluxes, chunks, chunk_time)
        clover, plaquette, charge = (sum_lanes(layout, sums) for sums in partial)
        columns = [clover / (16 * setting.volume), plaquette / setting.volume]
        if self.has_flux:
            # The sum of all plaquettes on the torus is a multiple of 2 pi.
            columns.append(charge.round() + 0.0)
        elif self.has_charge:
            # 8 equal terms of the epsilon tensor over 32 pi^2, and a quarter in each clover.
            columns.append(charge / (16 * 4 * math.pi**2))
        return np.stack(columns, -1)


def make_gradient_flow(group: Group) -> GradientFlow:
    """Return a native ``(field, step, counts) -> (flowed field, (chains, points, columns))``.

    See :func:`flowmc.native.find_gradient_flow`.
    """
    n = getattr(group, "n", 0)
    # V' = -g0^2 dS V with beta = 2N / g0^2 (U(1): 1 / g0^2): g0 = 1 leaves no factor.
    plain = Plaquettes(group, 2.0 * n if n else 1.0)

    def run(field: Tensor, step: float, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        setting = PlaquetteDynamics(plain, field)
        links = setting.pack(field, FIELD)
        momenta = setting.empty(MOMENTUM)
        operations = [
            operation
            for kick, drift in zip(_KICKS, _DRIFTS, strict=True)
            for operation in (("kick", kick * step), ("drift", drift))
        ]
        ones = np.ones(field.shape[0])
        measure = _Measure(setting)
        table = np.empty((field.shape[0], len(counts), 2 + measure.has_charge))
        for point, count in enumerate(counts):
            for _ in range(count):
                momenta[:] = 0
                setting.integrate(links, momenta, operations, ones)
            table[:, point] = measure(links)
        return setting.unpack(links, FIELD), torch.from_numpy(table)

    return run
