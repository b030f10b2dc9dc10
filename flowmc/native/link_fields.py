r"""Links and algebra elements of U(1), SU(2) and SU(3) in lanes, and what all gauge kernels share.

They lie in the order ``(group of chains, block of sites, direction, component, lane)``
(:mod:`flowmc.native.layout`), with the components of :mod:`flowmc.native.matrices`.
"""

# numba calls intrinsics without their first parameter and types kernels itself.
# mypy: disable-error-code="call-arg, var-annotated"

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numba import njit
from numba.extending import overload
from torch import Tensor

from flowmc.groups import SUN, Group
from flowmc.native.compiled import compiled
from flowmc.native.lanes import any_above, flip, lane_width, lanes, load, splat, store
from flowmc.native.layout import FLIP_BITS, aligned, layout_for
from flowmc.native.matrices import (
    COMPONENTS,
    NORM_LIMIT,
    PROJECTION_LIMIT,
    exponential_coefficients,
    halve_large,
    head,
    invariants,
    last,
    move,
    projected,
    scaled,
    square_where_halved,
)
from flowmc.native.schedule import run_slices

__all__ = [
    "CHUNK",
    "FLIPS",
    "LinkFields",
    "ahead",
    "components",
    "drifts",
    "load_algebra",
    "load_link",
    "make_projection",
    "zero_algebra",
]

FLIPS = (1 << FLIP_BITS) - 1
# Blocks whose traces are added up before the partial sums are: fixed, so that the rounding does not
# depend on the number of threads.
CHUNK = 64
# Where no number is below, halving ends: 2^-64 takes any finite double of a trajectory to 0.
_MAXIMAL_HALVINGS = 64

# Kernels take the group as a tuple of N zeros (one for U(1)): its type selects the formulas, and
# compiled code is cached by type.


def components(tag, which):
    """Return the number of components of a link (0) or an algebra element (1) of a group."""
    return COMPONENTS[len(tag)][which]


@overload(components, prefer_literal=True)
def _(tag, which):
    count = COMPONENTS[tag.count][which.literal_value]
    return lambda tag, which: count


def load_link(links, position, tag):
    """Load the link at a position, counted in links."""


@overload(load_link)
def _(links, position, tag):
    count = COMPONENTS[tag.count][0]
    return lambda links, position, tag: load(links, position * (count * lanes(links)), count)


def load_algebra(elements, position, tag):
    """Load the algebra element at a position, counted in elements."""


@overload(load_algebra)
def _(elements, position, tag):
    count = COMPONENTS[tag.count][1]
    return lambda elements, position, tag: load(
        elements, position * (count * lanes(elements)), count
    )


def zero_algebra(elements, tag):
    """Return a zero of the algebra."""


@overload(zero_algebra)
def _(elements, tag):
    count = COMPONENTS[tag.count][1]
    return lambda elements, tag: splat(elements, 0.0, count)


@njit(inline="always")
def ahead(links, neighbours, base, block, direction, mu, dimensions, tag):
    """Load link mu of the neighbour in a direction (2 nu forwards, 2 nu + 1 backwards)."""
    entry = neighbours[np.uint64(block * 2 * dimensions + direction)]
    u = load_link(links, (base + (entry >> FLIP_BITS)) * dimensions + mu, tag)
    if entry & FLIPS:
        u = flip(u, entry & FLIPS)
    return u


@compiled
def drifts(links, momenta, base, start, stop, dimensions, tag, sizes, size, steps, step):
    """Multiply the links of a range of blocks by the exponentials of their momenta."""
    width = lanes(links)
    time = scaled(load(sizes, size * width, 1), load(steps, step * width, 1))
    for position in range((base + start) * dimensions, (base + stop) * dimensions):
        q = scaled(load_algebra(momenta, position, tag), time)
        t = invariants(q)
        scale = splat(links, 1.0, 1)
        halvings = 0
        if any_above(t, NORM_LIMIT):
            while halvings < _MAXIMAL_HALVINGS and any_above(t, NORM_LIMIT):
                both = halve_large(t, scale)
                t, scale = head(both), last(both)
                halvings += 1
            q = scaled(q, scale)
        f = exponential_coefficients(q, t)
        for _ in range(halvings):
            both = square_where_halved(f, t, scale)
            f, scale = head(both), last(both)
        u = move(load_link(links, position, tag), q, f)
        store(links, position * components(tag, 0) * width, u)


@compiled
def _projections(links, start, stop, is_far):
    """Project SU(3) links ``start`` to ``stop``; set ``is_far[0]`` if any is not near the group."""
    stride = 18 * lanes(links)
    for position in range(start, stop):
        both = projected(load(links, position * stride, 18))
        store(links, position * stride, head(both))
        if any_above(last(both), PROJECTION_LIMIT):
            is_far[0] = True


@compiled
def _pack(
    source, target, sites, chains, chains_per_group, start, stop, dimensions, numbers, components
):  # fmt: skip
    """Copy ``source``, flat (chains, d, volume, numbers), into lanes, picking ``components``.

    The tasks ``start`` to ``stop`` are blocks of sites, group by group.
    """
    blocks, parts = sites.shape
    width = parts * chains_per_group
    volume = sites.size
    for task in range(start, stop):
        group, block = task // blocks, task % blocks
        for mu in range(dimensions):
            for part in range(parts):
                for lane in range(chains_per_group):
                    chain = min(group * chains_per_group + lane, chains - 1)
                    origin = ((chain * dimensions + mu) * volume + sites[block, part]) * numbers
                    offset = (task * dimensions + mu) * components.shape[0] * width
                    offset += part * chains_per_group + lane
                    # Unsigned, for else every index is tested for counting from the end.
                    for n in range(components.shape[0]):
                        value = source[np.uint64(origin + components[np.uint64(n)])]
                        target[np.uint64(offset + n * width)] = value


@compiled
def _unpack(
    source, target, sites, chains, chains_per_group, start, stop, dimensions, components, origins,
    signs,
):  # fmt: skip
    """Copy lanes back: number n of an element is ``signs[n]`` times component ``origins[n]``."""
    blocks, parts = sites.shape
    width = parts * chains_per_group
    volume = sites.size
    numbers = origins.shape[0]
    for task in range(start, stop):
        group, block = task // blocks, task % blocks
        used = min(chains_per_group, chains - group * chains_per_group)
        for mu in range(dimensions):
            for part in range(parts):
                for lane in range(used):
                    chain = group * chains_per_group + lane
                    goal = ((chain * dimensions + mu) * volume + sites[block, part]) * numbers
                    offset = (task * dimensions + mu) * components * width
                    offset += part * chains_per_group + lane
                    for n in range(numbers):
                        value = source[np.uint64(offset + origins[np.uint64(n)] * width)]
                        target[np.uint64(goal + n)] = signs[np.uint64(n)] * value


# Numbers of an element (row, column, re/im) that are kept: of links, and of algebra elements.
_KEPT = {
    1: ([0], [0]),
    2: ([0, 1, 2, 3], [1, 2, 3]),
    3: (list(range(18)), [1, 9, 17, 2, 3, 4, 5, 10, 11]),
}
# And how the numbers come back: (component, sign) of each, of links and of algebra elements.
_RESTORED = {
    1: ([(0, 1)], [(0, 1)]),
    2: (
        [(0, 1), (1, 1), (2, 1), (3, 1), (2, -1), (3, 1), (0, 1), (1, -1)],
        [(0, 0), (0, 1), (1, 1), (2, 1), (1, -1), (2, 1), (0, 0), (0, -1)],
    ),
    3: (
        [(n, 1) for n in range(18)],
        [
            *[(0, 0), (0, 1), (3, 1), (4, 1), (5, 1), (6, 1)],
            *[(3, -1), (4, 1), (0, 0), (1, 1), (7, 1), (8, 1)],
            *[(5, -1), (6, 1), (7, -1), (8, 1), (0, 0), (2, 1)],
        ],
    ),
}


class LinkFields:
    """How the links of a batch of chains are packed, and what kernels ask of it.

    Args:
        group: U(1), SU(2) or SU(3).
        field: ``(chains, d, *L[, N, N])``; decides layout and precision.
    """

    def __init__(self, group: Group, field: Tensor) -> None:
        is_double = field.dtype in (torch.float64, torch.complex128)
        self.dtype = np.dtype("float64" if is_double else "float32")
        self.width = lane_width(self.dtype.itemsize)
        self.dimensions = field.shape[1]
        lattice = tuple(field.shape[2 : 2 + self.dimensions])
        self.layout = layout_for(lattice, field.shape[0], self.width)
        self.n = group.n if isinstance(group, SUN) else 1
        self.tag = (0,) * self.n
        # Nanoseconds: about what a block takes in one phase; it only decides when a thread pays.
        self.block_time = self.width * self.dimensions * {1: 1.0, 2: 4.0, 3: 25.0}[self.n]
        self.shape = field.shape

    def memory(self, components: int, axis: int, groups: int) -> np.ndarray:
        """Return memory for ``axis`` elements per site of so many groups of chains."""
        return aligned(groups * self.layout.blocks * axis * components * self.width, self.dtype)

    def empty(self, which: int) -> np.ndarray:
        """Return memory for links (``which = 0``) or algebra elements (1) in lanes."""
        return self.memory(COMPONENTS[self.n][which], self.dimensions, self.layout.groups)

    @property
    def volume(self) -> int:
        """Number of lattice sites."""
        return self.layout.sites.size

    def _copy(self, function: Callable, source: np.ndarray, target: np.ndarray, *how) -> None:
        layout = self.layout
        run_slices(
            lambda start, stop: function(
                source, target, layout.sites, layout.chains, layout.chains_per_group, start, stop,
                *how,
            ),
            layout.groups * layout.blocks,
            self.width * self.dimensions * COMPONENTS[self.n][0],
        )  # fmt: skip

    def pack(self, field: Tensor, which: int) -> np.ndarray:
        """Copy links (``which = 0``) or algebra elements (1) into lanes."""
        plain = field.detach().resolve_neg()
        real = torch.view_as_real(plain.resolve_conj()) if self.n > 1 else plain
        source = real.contiguous().view(-1)
        kept = np.array(_KEPT[self.n][which])
        target = self.empty(which)
        numbers = source.numel() // (self.shape[0] * self.dimensions * self.volume)
        self._copy(_pack, source.numpy(), target, self.dimensions, numbers, kept)
        return target

    def unpack(self, packed: np.ndarray, which: int) -> Tensor:
        """Copy lanes back into links (``which = 0``) or algebra elements (1)."""
        origins, signs = map(np.array, zip(*_RESTORED[self.n][which], strict=True))
        numbers = len(origins)
        target = np.empty(self.shape[0] * self.dimensions * self.volume * numbers, self.dtype)
        components = COMPONENTS[self.n][which]
        self._copy(
            _unpack, packed, target, self.dimensions, components, origins, signs.astype(self.dtype)
        )
        tensor = torch.from_numpy(target)
        if self.n == 1:
            return tensor.view(self.shape)
        return torch.view_as_complex(tensor.view(*self.shape, 2))


def make_projection(group: Group) -> Callable[[Tensor], Tensor]:
    """Return a native ``field -> nearest SU(3) field``; fields far from the group go to torch."""

    def run(field: Tensor) -> Tensor:
        fields = LinkFields(group, field)
        layout = fields.layout
        packed = fields.pack(field, 0)
        is_far = np.zeros(1, dtype=np.bool_)
        run_slices(
            lambda start, stop: _projections(packed, start, stop, is_far),
            layout.groups * layout.blocks * fields.dimensions,
            fields.block_time / fields.dimensions,
        )
        return group.project(field) if is_far[0] else fields.unpack(packed, 0)

    return run
