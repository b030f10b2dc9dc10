r"""Native HMC of the Wilson action for U(1), SU(2) and SU(3) in any dimension >= 2.

Some plaquettes, such as those near a defect, may have weights w: there :math:`w H` takes the place
of H, and :math:`(w - 1)\,\mathrm{Re\,tr}\,P` is added to the sum over all plaquettes.  A list names
these plaquettes, so that the rest of the lattice takes the time that it takes without one.

The force of link (x, mu) is, with :math:`H_{\mu\nu} = (P_{\mu\nu})_{TA}` and signs for mu < nu,

.. math:: \frac{\beta}{2N} \sum_\nu \big[ H_{\mu\nu}(x)
          - U_\nu(x-\nu)^\dagger\, H_{\mu\nu}(x-\nu)\, U_\nu(x-\nu) \big],

and the opposite signs for mu > nu, where :math:`H_{\nu\mu}` of the plane (nu, mu) stands instead:
projecting commutes with the transport by a unitary link.  It takes one pass over the plaquettes
and one over the links, and 9 instead of 13 matrix products per link in four dimensions.
"""

# numba calls intrinsics without their first parameter and types kernels itself.
# mypy: disable-error-code="call-arg, var-annotated"

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import numpy as np
import torch
from numba import njit
from numba.extending import overload
from torch import Tensor

from flowmc.groups import SUN
from flowmc.native.compiled import compiled
from flowmc.native.lanes import (
    accumulate,
    any_above,
    flip,
    lane_width,
    lanes,
    load,
    splat,
    store,
)
from flowmc.native.layout import FLIP_BITS, LinkLayout, aligned, lanes_of, layout_for, sum_lanes
from flowmc.native.layout import splat as constant_lanes
from flowmc.native.matrices import (
    COMPONENTS,
    NORM_LIMIT,
    PROJECTION_LIMIT,
    add_signed,
    exponential_coefficients,
    halve_large,
    head,
    invariants,
    kick,
    last,
    move,
    multiply,
    plaquette_algebra,
    plaquette_trace,
    projected,
    scaled,
    square_where_halved,
    transport,
)
from flowmc.native.schedule import merge_operations, run_operations, run_slices
from flowmc.plaquettes import planes as all_planes
from flowmc.terms import Plaquettes, PlaquetteWeights

if TYPE_CHECKING:
    from flowmc.splitting import Integrator

__all__ = ["make_action", "make_force", "make_projection", "make_trajectory"]

Trajectory = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]

_FLIPS = (1 << FLIP_BITS) - 1
# Where no number is below, halving ends: 2^-64 takes any finite double of a trajectory to 0.
_MAXIMAL_HALVINGS = 64
_CHUNK = 64

# Kernels take the group as a tuple of N zeros (one for U(1)): its type selects the formulas, and
# compiled code is cached by type.


def _components(tag, which):
    """Return the number of components of a link (0) or an algebra element (1) of a group."""
    return COMPONENTS[len(tag)][which]


@overload(_components, prefer_literal=True)
def _(tag, which):
    count = COMPONENTS[tag.count][which.literal_value]
    return lambda tag, which: count


def _load_link(links, position, tag): ...


@overload(_load_link)
def _(links, position, tag):
    count = COMPONENTS[tag.count][0]
    return lambda links, position, tag: load(links, position * (count * lanes(links)), count)


def _load_algebra(elements, position, tag): ...


@overload(_load_algebra)
def _(elements, position, tag):
    count = COMPONENTS[tag.count][1]
    return lambda elements, position, tag: load(
        elements, position * (count * lanes(elements)), count
    )


def _zero_algebra(elements, tag): ...


@overload(_zero_algebra)
def _(elements, tag):
    count = COMPONENTS[tag.count][1]
    return lambda elements, tag: splat(elements, 0.0, count)


@njit(inline="always")
def _ahead(links, neighbours, base, block, direction, mu, dimensions, tag):
    """Load link mu of the neighbour in a direction (2 nu forwards, 2 nu + 1 backwards)."""
    entry = neighbours[np.uint64(block * 2 * dimensions + direction)]
    u = _load_link(links, (base + (entry >> FLIP_BITS)) * dimensions + mu, tag)
    if entry & _FLIPS:
        u = flip(u, entry & _FLIPS)
    return u


@compiled
def _plaquettes(links, neighbours, plaquettes, base, plane_base, start, stop, dimensions, tag):
    """Write H of every plane of a range of blocks."""
    planes = dimensions * (dimensions - 1) // 2
    stride = _components(tag, 1) * lanes(links)
    for block in range(start, stop):
        position = ((plane_base + block) * planes) * stride
        for mu in range(dimensions):
            for nu in range(mu + 1, dimensions):
                a = multiply(
                    _load_link(links, (base + block) * dimensions + mu, tag),
                    _ahead(links, neighbours, base, block, 2 * mu, nu, dimensions, tag),
                )
                b = multiply(
                    _load_link(links, (base + block) * dimensions + nu, tag),
                    _ahead(links, neighbours, base, block, 2 * nu, mu, dimensions, tag),
                )
                store(plaquettes, position, plaquette_algebra(a, b))
                position += stride


@compiled
def _weigh(plaquettes, listed, weights, plane_base, planes, start, stop, dimensions, tag):
    """Multiply the listed plaquettes of a range of blocks by their weights.

    ``listed`` holds ``block * planes + plane`` in ascending order.
    """
    width = lanes(plaquettes)
    stride = _components(tag, 1) * width
    first = np.searchsorted(listed, start * planes)
    last = np.searchsorted(listed, stop * planes)
    for index in range(first, last):
        position = plane_base * planes + listed[index]
        h = scaled(_load_algebra(plaquettes, position, tag), load(weights, index * width, 1))
        store(plaquettes, position * stride, h)


@compiled
def _kicks(
    links, momenta, neighbours, plaquettes, base, plane_base, start, stop, dimensions, tag, sizes,
    size, steps, step,
):  # fmt: skip
    """Add the force of a range of blocks, from their plaquettes, to the momenta."""
    planes = dimensions * (dimensions - 1) // 2
    width = lanes(links)
    time = scaled(load(sizes, size * width, 1), load(steps, step * width, 1))
    for block in range(start, stop):
        for mu in range(dimensions):
            total = _zero_algebra(links, tag)
            for nu in range(dimensions):
                if nu == mu:
                    continue
                low, high = min(mu, nu), max(mu, nu)
                plane = low * (2 * dimensions - low - 1) // 2 + high - low - 1
                here = _load_algebra(plaquettes, (plane_base + block) * planes + plane, tag)
                entry = neighbours[np.uint64((block * dimensions + nu) * 2 + 1)]
                behind = entry >> FLIP_BITS
                u = _load_link(links, (base + behind) * dimensions + nu, tag)
                there = transport(
                    u, _load_algebra(plaquettes, (plane_base + behind) * planes + plane, tag)
                )
                if entry & _FLIPS:
                    there = flip(there, entry & _FLIPS)
                if mu < nu:
                    total = add_signed(total, here, there)
                else:
                    total = add_signed(total, there, here)
            position = (base + block) * dimensions + mu
            p = kick(_load_algebra(momenta, position, tag), total, time)
            store(momenta, position * _components(tag, 1) * width, p)


@compiled
def _drifts(links, momenta, base, start, stop, dimensions, tag, sizes, size, steps, step):
    """Multiply the links of a range of blocks by the exponentials of their momenta."""
    width = lanes(links)
    time = scaled(load(sizes, size * width, 1), load(steps, step * width, 1))
    for position in range((base + start) * dimensions, (base + stop) * dimensions):
        q = scaled(_load_algebra(momenta, position, tag), time)
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
        u = move(_load_link(links, position, tag), q, f)
        store(links, position * _components(tag, 0) * width, u)


@compiled
def _trajectories(
    links, momenta, neighbours, plaquettes, listed, weights, start, stop, blocks, dimensions, tag,
    is_drift, sizes, steps,
):  # fmt: skip
    """Run all operations for a range of groups, which share the memory for plaquettes."""
    planes = dimensions * (dimensions - 1) // 2
    for group in range(start, stop):
        base = group * blocks
        for index in range(is_drift.shape[0]):
            if is_drift[index]:
                _drifts(
                    links, momenta, base, 0, blocks, dimensions, tag, sizes, index, steps, group
                )
            else:
                _plaquettes(links, neighbours, plaquettes, base, 0, 0, blocks, dimensions, tag)
                _weigh(plaquettes, listed, weights, 0, planes, 0, blocks, dimensions, tag)
                _kicks(
                    links, momenta, neighbours, plaquettes, base, 0, 0, blocks, dimensions, tag,
                    sizes, index, steps, group,
                )  # fmt: skip


@compiled
def _traces(links, neighbours, start, stop, blocks, dimensions, tag, partial):
    """Add up the normalised plaquette traces of chunks of blocks."""
    width = lanes(links)
    chunks = -(-blocks // _CHUNK)
    for task in range(start, stop):
        group, chunk = task // chunks, task % chunks
        base = group * blocks
        for block in range(chunk * _CHUNK, min(blocks, (chunk + 1) * _CHUNK)):
            for mu in range(dimensions):
                for nu in range(mu + 1, dimensions):
                    a = multiply(
                        _load_link(links, (base + block) * dimensions + mu, tag),
                        _ahead(links, neighbours, base, block, 2 * mu, nu, dimensions, tag),
                    )
                    b = multiply(
                        _load_link(links, (base + block) * dimensions + nu, tag),
                        _ahead(links, neighbours, base, block, 2 * nu, mu, dimensions, tag),
                    )
                    accumulate(partial, task * width, plaquette_trace(a, b))


@compiled
def _weighted_traces(
    links, neighbours, listed, planes, weights, start, stop, blocks, dimensions, tag, partial
):  # fmt: skip
    """Add up weight times trace of chunks of the listed plaquettes.

    ``planes`` holds (mu, nu) of every plane, flat.
    """
    width = lanes(links)
    count = listed.shape[0]
    chunks = -(-count // _CHUNK)
    number = planes.shape[0] // 2
    for task in range(start, stop):
        group, chunk = task // chunks, task % chunks
        base = group * blocks
        for index in range(chunk * _CHUNK, min(count, (chunk + 1) * _CHUNK)):
            block, plane = listed[index] // number, listed[index] % number
            mu, nu = planes[2 * plane], planes[2 * plane + 1]
            a = multiply(
                _load_link(links, (base + block) * dimensions + mu, tag),
                _ahead(links, neighbours, base, block, 2 * mu, nu, dimensions, tag),
            )
            b = multiply(
                _load_link(links, (base + block) * dimensions + nu, tag),
                _ahead(links, neighbours, base, block, 2 * nu, mu, dimensions, tag),
            )
            trace = scaled(plaquette_trace(a, b), load(weights, index * width, 1))
            accumulate(partial, task * width, trace)


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


# Of weights that are in use, in the layouts that they are used in.
_Listed = dict[tuple[LinkLayout, np.dtype], tuple[np.ndarray, np.ndarray]]
_LISTED: WeakKeyDictionary[PlaquetteWeights, _Listed] = WeakKeyDictionary()


def _weighted_plaquettes(
    weights: PlaquetteWeights, layout: LinkLayout, dtype: np.dtype
) -> tuple[np.ndarray, np.ndarray]:
    """Return which plaquettes have weights, and these, as ``_weigh`` takes them.

    A plaquette is listed if its weight is not 1 in any of the sublattices.
    """
    known = _LISTED.setdefault(weights, {})
    if (layout, dtype) not in known:
        table = weights.table.numpy()
        table = table.reshape(len(table), -1)[:, layout.sites].swapaxes(0, 1)
        table = table.reshape(-1, layout.sites.shape[1])
        listed = np.flatnonzero((table != 1).any(1))
        numbers = aligned(len(listed) * layout.width, dtype)
        # Lanes are sublattices, each with the chains of a group side by side.
        numbers[:] = np.repeat(table[listed], layout.chains_per_group, axis=1).reshape(-1)
        known[layout, dtype] = listed, numbers
    return known[layout, dtype]


class _Setting:
    """Everything a native call needs besides the fields: layout and group."""

    def __init__(self, term: Plaquettes, field: Tensor) -> None:
        is_double = field.dtype in (torch.float64, torch.complex128)
        self.dtype = np.dtype("float64" if is_double else "float32")
        self.width = lane_width(self.dtype.itemsize)
        self.dimensions = field.shape[1]
        lattice = tuple(field.shape[2 : 2 + self.dimensions])
        self.layout = layout_for(lattice, field.shape[0], self.width)
        self.n = term.group.n if isinstance(term.group, SUN) else 1
        self.tag = (0,) * self.n
        # Scale of the force, and of the action, in units of sums over plaquettes.
        self.force_scale = term.coupling if self.n == 1 else term.coupling / (2 * self.n)
        # Nanoseconds: about what a block takes in one phase; it only decides when a thread pays.
        self.block_time = self.width * self.dimensions * {1: 1.0, 2: 4.0, 3: 25.0}[self.n]
        self.shape = field.shape
        self.listed, self.weights = np.empty(0, dtype=np.int64), np.empty(0, dtype=self.dtype)
        if term.weights is not None:
            self.listed, self.weights = _weighted_plaquettes(term.weights, self.layout, self.dtype)

    def empty(self, components: int, axis: int, groups: int) -> np.ndarray:
        return aligned(groups * self.layout.blocks * axis * components * self.width, self.dtype)

    @property
    def volume(self) -> int:
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
        target = self.empty(len(kept), self.dimensions, self.layout.groups)
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

    def integrate(
        self,
        links: np.ndarray,
        momenta: np.ndarray,
        is_drift: np.ndarray,
        coefficients: list[float],
        step_size: np.ndarray,
    ) -> None:
        layout, dimensions, tag = self.layout, self.dimensions, self.tag
        groups, blocks, neighbours = layout.groups, layout.blocks, layout.neighbours
        scales = np.where(is_drift, 1.0, self.force_scale) * np.array(coefficients)
        sizes = constant_lanes(scales, self.width, self.dtype)
        steps = lanes_of(layout, step_size, self.dtype)
        planes = dimensions * (dimensions - 1) // 2
        listed, weights = self.listed, self.weights

        def plaquette_memory(count: int) -> np.ndarray:
            return self.empty(COMPONENTS[self.n][1], planes, count)

        def whole(start: int, stop: int) -> None:
            _trajectories(
                links, momenta, neighbours, plaquette_memory(1), listed, weights, start, stop,
                blocks, dimensions, tag, is_drift, sizes, steps,
            )  # fmt: skip

        # Untouched pages of it cost nothing where each thread has its own instead.
        shared = plaquette_memory(groups)

        def project(start: int, stop: int) -> None:
            for base in range(0, groups * blocks, blocks):
                _plaquettes(links, neighbours, shared, base, base, start, stop, dimensions, tag)
                _weigh(shared, listed, weights, base, planes, start, stop, dimensions, tag)

        def kick_all(index: int, start: int, stop: int) -> None:
            for group in range(groups):
                base = group * blocks
                _kicks(
                    links, momenta, neighbours, shared, base, base, start, stop, dimensions, tag,
                    sizes, index, steps, group,
                )  # fmt: skip

        def drift_all(index: int, start: int, stop: int) -> None:
            for group in range(groups):
                base = group * blocks
                _drifts(
                    links, momenta, base, start, stop, dimensions, tag, sizes, index, steps, group
                )

        phases: list[Callable[[int, int], None]] = []
        for index, drifts in enumerate(is_drift):
            if drifts:
                phases.append(functools.partial(drift_all, index))
            else:
                phases += [project, functools.partial(kick_all, index)]
        run_operations(whole, phases, groups, blocks, self.block_time)

    def sum_of_weighted(self, links: np.ndarray) -> np.ndarray:
        """Return the sum of (w - 1) times the normalised plaquette trace, per chain."""
        layout, count = self.layout, len(self.listed)
        chunks = -(-count // _CHUNK)
        if not chunks:
            return np.zeros(layout.chains)
        partial = np.zeros(layout.groups * chunks * self.width)
        excess = aligned(self.weights.size, self.dtype)
        excess[:] = self.weights - 1
        planes = np.array(list(all_planes(self.dimensions))).reshape(-1)
        run_slices(
            lambda start, stop: _weighted_traces(
                links, layout.neighbours, self.listed, planes, excess, start, stop, layout.blocks,
                self.dimensions, self.tag, partial,
            ),
            layout.groups * chunks,
            min(count, _CHUNK) * self.block_time / self.dimensions,
        )  # fmt: skip
        return sum_lanes(layout, partial)


def make_trajectory(term: Plaquettes, integrator: Integrator) -> Trajectory:
    """Return a native ``(field, momentum, step_size, steps) -> (field, momentum)``."""

    def run(
        field: Tensor, momentum: Tensor, step_size: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        setting = _Setting(term, field)
        links, momenta = setting.pack(field, 0), setting.pack(momentum, 1)
        is_drift, coefficients = merge_operations(integrator, steps)
        sizes = step_size.detach().numpy()
        setting.integrate(links, momenta, is_drift, coefficients, sizes)
        return setting.unpack(links, 0), setting.unpack(momenta, 1)

    return run


def make_force(term: Plaquettes) -> Callable[[Tensor], Tensor]:
    """Return a native ``field -> force``."""

    def run(field: Tensor) -> Tensor:
        setting = _Setting(term, field)
        force = setting.empty(COMPONENTS[setting.n][1], setting.dimensions, setting.layout.groups)
        force[:] = 0
        # A kick by minus one unit of time adds the force to momenta of zero.
        one_kick = np.zeros(1, dtype=np.bool_)
        setting.integrate(setting.pack(field, 0), force, one_kick, [-1.0], np.ones(field.shape[0]))
        return setting.unpack(force, 1)

    return run


def make_action(term: Plaquettes) -> Callable[[Tensor], Tensor]:
    """Return a native ``field -> S`` per chain, accumulated in float64."""

    def run(field: Tensor) -> Tensor:
        setting = _Setting(term, field)
        layout = setting.layout
        chunks = -(-layout.blocks // _CHUNK)
        partial = np.zeros(layout.groups * chunks * setting.width)
        packed = setting.pack(field, 0)
        run_slices(
            lambda start, stop: _traces(
                packed, layout.neighbours, start, stop, layout.blocks, setting.dimensions,
                setting.tag, partial,
            ),
            layout.groups * chunks,
            min(layout.blocks, _CHUNK) * setting.block_time,
        )  # fmt: skip
        total = sum_lanes(layout, partial) + setting.sum_of_weighted(packed)
        return torch.from_numpy(-term.coupling * total)

    return run


def make_projection(term: Plaquettes) -> Callable[[Tensor], Tensor]:
    """Return a native ``field -> nearest SU(3) field``; fields far from the group go to torch."""

    def run(field: Tensor) -> Tensor:
        setting = _Setting(term, field)
        layout = setting.layout
        packed = setting.pack(field, 0)
        is_far = np.zeros(1, dtype=np.bool_)
        run_slices(
            lambda start, stop: _projections(packed, start, stop, is_far),
            layout.groups * layout.blocks * setting.dimensions,
            setting.block_time / setting.dimensions,
        )
        return term.group.project(field) if is_far[0] else setting.unpack(packed, 0)

    return run
