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
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import numpy as np
from torch import Tensor

from flowmc.native.compiled import compiled
from flowmc.native.dynamics import Dynamics
from flowmc.native.lanes import accumulate, flip, lanes, load, store
from flowmc.native.layout import FLIP_BITS, LinkLayout, aligned, lanes_of, sum_lanes
from flowmc.native.layout import splat as constant_lanes
from flowmc.native.link_fields import (
    CHUNK,
    FLIPS,
    LinkFields,
    ahead,
    components,
    drifts,
    load_algebra,
    load_link,
    zero_algebra,
)
from flowmc.native.matrices import (
    COMPONENTS,
    add_signed,
    kick,
    multiply,
    plaquette_algebra,
    plaquette_trace,
    scaled,
    transport,
)
from flowmc.native.schedule import run_operations, run_slices
from flowmc.plaquettes import planes as all_planes
from flowmc.splitting import Operation
from flowmc.terms import LoopWeights, Plaquettes

__all__ = ["PlaquetteDynamics"]


@compiled
def _plaquettes(links, neighbours, plaquettes, base, plane_base, start, stop, dimensions, tag):
    """Write H of every plane of a range of blocks."""
    planes = dimensions * (dimensions - 1) // 2
    stride = components(tag, 1) * lanes(links)
    for block in range(start, stop):
        position = ((plane_base + block) * planes) * stride
        for mu in range(dimensions):
            for nu in range(mu + 1, dimensions):
                a = multiply(
                    load_link(links, (base + block) * dimensions + mu, tag),
                    ahead(links, neighbours, base, block, 2 * mu, nu, dimensions, tag),
                )
                b = multiply(
                    load_link(links, (base + block) * dimensions + nu, tag),
                    ahead(links, neighbours, base, block, 2 * nu, mu, dimensions, tag),
                )
                store(plaquettes, position, plaquette_algebra(a, b))
                position += stride


@compiled
def _weigh(plaquettes, listed, weights, plane_base, planes, start, stop, dimensions, tag):
    """Multiply the listed plaquettes of a range of blocks by their weights.

    ``listed`` holds ``block * planes + plane`` in ascending order.
    """
    width = lanes(plaquettes)
    stride = components(tag, 1) * width
    first = np.searchsorted(listed, start * planes)
    last = np.searchsorted(listed, stop * planes)
    for index in range(first, last):
        position = plane_base * planes + listed[index]
        h = scaled(load_algebra(plaquettes, position, tag), load(weights, index * width, 1))
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
            total = zero_algebra(links, tag)
            for nu in range(dimensions):
                if nu == mu:
                    continue
                low, high = min(mu, nu), max(mu, nu)
                plane = low * (2 * dimensions - low - 1) // 2 + high - low - 1
                here = load_algebra(plaquettes, (plane_base + block) * planes + plane, tag)
                entry = neighbours[np.uint64((block * dimensions + nu) * 2 + 1)]
                behind = entry >> FLIP_BITS
                u = load_link(links, (base + behind) * dimensions + nu, tag)
                there = transport(
                    u, load_algebra(plaquettes, (plane_base + behind) * planes + plane, tag)
                )
                if entry & FLIPS:
                    there = flip(there, entry & FLIPS)
                if mu < nu:
                    total = add_signed(total, here, there)
                else:
                    total = add_signed(total, there, here)
            position = (base + block) * dimensions + mu
            p = kick(load_algebra(momenta, position, tag), total, time)
            store(momenta, position * components(tag, 1) * width, p)


@compiled
def _trajectories(
    links, momenta, neighbours, plaquettes, listed, weights, start, stop, blocks, dimensions, tag,
    is_drift, sizes, steps,
):  # fmt: skip
    """Run all operations for a range of groups, which share the memory for plaquettes."""
    first = np.int64(0)  # a literal would have its kernels compiled once more
    planes = dimensions * (dimensions - 1) // 2
    for group in range(start, stop):
        base = group * blocks
        for index in range(is_drift.shape[0]):
            if is_drift[index]:
                drifts(
                    links, momenta, base, first, blocks, dimensions, tag, sizes, index, steps, group
                )
            else:
                _plaquettes(
                    links, neighbours, plaquettes, base, first, first, blocks, dimensions, tag
                )
                _weigh(plaquettes, listed, weights, first, planes, first, blocks, dimensions, tag)
                _kicks(
                    links, momenta, neighbours, plaquettes, base, first, first, blocks, dimensions,
                    tag, sizes, index, steps, group,
                )  # fmt: skip


@compiled
def _traces(links, neighbours, start, stop, blocks, dimensions, tag, partial):
    """Add up the normalised plaquette traces of chunks of blocks."""
    width = lanes(links)
    chunks = -(-blocks // CHUNK)
    for task in range(start, stop):
        group, chunk = task // chunks, task % chunks
        base = group * blocks
        for block in range(chunk * CHUNK, min(blocks, (chunk + 1) * CHUNK)):
            for mu in range(dimensions):
                for nu in range(mu + 1, dimensions):
                    a = multiply(
                        load_link(links, (base + block) * dimensions + mu, tag),
                        ahead(links, neighbours, base, block, 2 * mu, nu, dimensions, tag),
                    )
                    b = multiply(
                        load_link(links, (base + block) * dimensions + nu, tag),
                        ahead(links, neighbours, base, block, 2 * nu, mu, dimensions, tag),
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
    chunks = -(-count // CHUNK)
    number = planes.shape[0] // 2
    for task in range(start, stop):
        group, chunk = task // chunks, task % chunks
        base = group * blocks
        for index in range(chunk * CHUNK, min(count, (chunk + 1) * CHUNK)):
            block, plane = listed[index] // number, listed[index] % number
            mu, nu = planes[2 * plane], planes[2 * plane + 1]
            a = multiply(
                load_link(links, (base + block) * dimensions + mu, tag),
                ahead(links, neighbours, base, block, 2 * mu, nu, dimensions, tag),
            )
            b = multiply(
                load_link(links, (base + block) * dimensions + nu, tag),
                ahead(links, neighbours, base, block, 2 * nu, mu, dimensions, tag),
            )
            trace = scaled(plaquette_trace(a, b), load(weights, index * width, 1))
            accumulate(partial, task * width, trace)


# Of weights that are in use, in the layouts that they are used in.
_Listed = dict[tuple[LinkLayout, np.dtype], tuple[np.ndarray, np.ndarray]]
_LISTED: WeakKeyDictionary[LoopWeights, _Listed] = WeakKeyDictionary()


def _weighted_plaquettes(
    weights: LoopWeights, layout: LinkLayout, dtype: np.dtype
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


class PlaquetteDynamics(LinkFields, Dynamics):
    """A :class:`~flowmc.terms.Plaquettes` term on lanes."""

    def __init__(self, term: Plaquettes, field: Tensor) -> None:
        super().__init__(term.group, field)
        self.coupling = term.coupling
        # Scale of the force in units of sums over plaquettes.
        self.force_scale = term.coupling if self.n == 1 else term.coupling / (2 * self.n)
        self.listed, self.weights = np.empty(0, dtype=np.int64), np.empty(0, dtype=self.dtype)
        if term.weights is not None:
            self.listed, self.weights = _weighted_plaquettes(term.weights, self.layout, self.dtype)

    def integrate(
        self,
        field: np.ndarray,
        momenta: np.ndarray,
        operations: Sequence[Operation],
        step_size: np.ndarray,
    ) -> None:
        layout, dimensions, tag = self.layout, self.dimensions, self.tag
        groups, blocks, neighbours = layout.groups, layout.blocks, layout.neighbours
        is_drift = np.array([operation[0] == "drift" for operation in operations])
        coefficients = np.array([operation[1] for operation in operations])
        scales = np.where(is_drift, 1.0, self.force_scale) * coefficients
        sizes = constant_lanes(scales, self.width, self.dtype)
        steps = lanes_of(layout, step_size, self.dtype)
        planes = dimensions * (dimensions - 1) // 2
        listed, weights = self.listed, self.weights

        def plaquette_memory(count: int) -> np.ndarray:
            return self.memory(COMPONENTS[self.n][1], planes, count)

        def whole(start: int, stop: int) -> None:
            _trajectories(
                field, momenta, neighbours, plaquette_memory(1), listed, weights, start, stop,
                blocks, dimensions, tag, is_drift, sizes, steps,
            )  # fmt: skip

        # Untouched pages of it cost nothing where each thread has its own instead.
        shared = plaquette_memory(groups)

        def project(start: int, stop: int) -> None:
            for base in range(0, groups * blocks, blocks):
                _plaquettes(field, neighbours, shared, base, base, start, stop, dimensions, tag)
                _weigh(shared, listed, weights, base, planes, start, stop, dimensions, tag)

        def kick_all(index: int, start: int, stop: int) -> None:
            for group in range(groups):
                base = group * blocks
                _kicks(
                    field, momenta, neighbours, shared, base, base, start, stop, dimensions, tag,
                    sizes, index, steps, group,
                )  # fmt: skip

        def drift_all(index: int, start: int, stop: int) -> None:
            for group in range(groups):
                base = group * blocks
                drifts(
                    field, momenta, base, start, stop, dimensions, tag, sizes, index, steps, group
                )

        phases: list[Callable[[int, int], None]] = []
        for index, drifting in enumerate(is_drift):
            if drifting:
                phases.append(functools.partial(drift_all, index))
            else:
                phases += [project, functools.partial(kick_all, index)]
        run_operations(whole, phases, groups, blocks, self.block_time)

    def value(self, field: np.ndarray) -> np.ndarray:
        layout = self.layout
        chunks = -(-layout.blocks // CHUNK)
        partial = np.zeros(layout.groups * chunks * self.width)
        run_slices(
            lambda start, stop: _traces(
                field, layout.neighbours, start, stop, layout.blocks, self.dimensions, self.tag,
                partial,
            ),
            layout.groups * chunks,
            min(layout.blocks, CHUNK) * self.block_time,
        )  # fmt: skip
        return -self.coupling * (sum_lanes(layout, partial) + self._sum_of_weighted(field))

    def _sum_of_weighted(self, links: np.ndarray) -> np.ndarray:
        """Return the sum of (w - 1) times the normalised plaquette trace, per chain."""
        layout, count = self.layout, len(self.listed)
        chunks = -(-count // CHUNK)
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
            min(count, CHUNK) * self.block_time / self.dimensions,
        )  # fmt: skip
        return sum_lanes(layout, partial)
