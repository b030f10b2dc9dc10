r"""Native HMC of scalar fields in the hopping form: phi^4, free field, double well; any lattice.

.. math:: S = \sum_x [-2k \sum_\mu \phi_x \phi_{x+\mu} + a \phi_x^2 + \lambda \phi_x^4]

With enough groups of chains each thread carries its groups through the whole trajectory, one after
the other, so that field and momentum stay in its cache; with few, the threads share the sites of
every operation.
"""

# numba calls intrinsics without their first parameter and types kernels itself.
# mypy: disable-error-code="call-arg, var-annotated"

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from flowmc.native.compiled import compiled
from flowmc.native.dynamics import FIELD, Dynamics
from flowmc.native.lanes import accumulate, flip, fma, lane_width, lanes, load, store, traced
from flowmc.native.layout import (
    FLIP_BITS,
    TILE,
    aligned,
    lanes_of,
    layout_for,
    pack,
    splat,
    sum_lanes,
    unpack,
)
from flowmc.native.schedule import run_operations, run_slices
from flowmc.splitting import Operation
from flowmc.terms import Hopping

__all__ = ["HoppingDynamics"]

_FLIPS = (1 << FLIP_BITS) - 1


@traced
def _add(a, b):
    return [x + y for x, y in zip(a, b, strict=True)]


@traced
def _times(a, b):
    return [x * y for x, y in zip(a, b, strict=True)]


@traced
def _fma(a, b, c):
    return [fma(x, y, z) for x, y, z in zip(a, b, c, strict=True)]


@traced
def _force(field, neighbours, couplings):
    (phi,), (total,), (minus_2k, twice_a, four_lambda) = field, neighbours, couplings
    return [fma(minus_2k, total, phi * fma(four_lambda, phi * phi, twice_a))]


@traced
def _density(field, forward, couplings):
    (phi,), (total,), (minus_2k, twice_a, four_lambda) = field, forward, couplings
    square = phi * phi
    return [fma(minus_2k * phi, total, square * (0.5 * twice_a + 0.25 * four_lambda * square))]


@traced
def _minus_product(a, b, c):
    return [fma(-x, y, z) for x, y, z in zip(a, b, c, strict=True)]


@njit(inline="always")
def _neighbour_sum(field, neighbours, base, block, backward, is_cut, axes):
    width = lanes(field)
    position = block * 2 * len(axes)
    entry = neighbours[np.uint64(position)]
    total = load(field, (base + (entry >> FLIP_BITS)) * width, 1)
    if is_cut:
        total = flip(total, entry & _FLIPS)
    for n in range(1, 2 * len(axes)):
        if n % 2 == 0 or backward:
            entry = neighbours[np.uint64(position + n)]
            other = load(field, (base + (entry >> FLIP_BITS)) * width, 1)
            if is_cut:
                other = flip(other, entry & _FLIPS)
            total = _add(total, other)
    return total


@compiled
def _kick(
    field, momentum, neighbours, base, start, stop, constants, scales, scale, steps, step,
    is_cut, axes,
):  # fmt: skip
    width = lanes(field)
    couplings = load(constants, 0, 3)
    size = _times(load(scales, scale * width, 1), load(steps, step * width, 1))
    for block in range(start, stop):
        position = (base + block) * width
        total = _neighbour_sum(field, neighbours, base, block, True, is_cut, axes)
        force = _force(load(field, position, 1), total, couplings)
        store(momentum, position, _minus_product(size, force, load(momentum, position, 1)))


@compiled
def _drift(field, momentum, base, start, stop, scales, scale, steps, step):
    width = lanes(field)
    size = _times(load(scales, scale * width, 1), load(steps, step * width, 1))
    for block in range(start, stop):
        position = (base + block) * width
        store(field, position, _fma(size, load(momentum, position, 1), load(field, position, 1)))


@compiled
def _trajectories(
    field, momentum, neighbours, start, stop, blocks, constants, is_drift, scales, steps, is_cut,
    axes,
):  # fmt: skip
    """Run all operations for a range of groups, one group after the other."""
    first = np.int64(0)  # a literal would have its kernels compiled once more
    for group in range(start, stop):
        base = group * blocks
        for index in range(is_drift.shape[0]):
            if is_drift[index]:
                _drift(field, momentum, base, first, blocks, scales, index, steps, group)
            else:
                _kick(
                    field, momentum, neighbours, base, first, blocks, constants, scales, index,
                    steps, group, is_cut, axes,
                )  # fmt: skip


# Blocks whose densities are added up before the partial sums are: fixed, so that the rounding of
# the action does not depend on the number of threads.
_CHUNK = 512


@compiled
def _densities(field, neighbours, start, stop, blocks, constants, is_cut, axes, partial):
    width = lanes(field)
    chunks = -(-blocks // _CHUNK)
    for task in range(start, stop):
        group, chunk = task // chunks, task % chunks
        base = group * blocks
        couplings = load(constants, 0, 3)
        for block in range(chunk * _CHUNK, min(blocks, (chunk + 1) * _CHUNK)):
            forward = _neighbour_sum(field, neighbours, base, block, False, is_cut, axes)
            phi = load(field, (base + block) * width, 1)
            accumulate(partial, task * width, _density(phi, forward, couplings))


# About what one block takes in one operation, and in copying; they only decide when a thread pays.
_OPERATION_TIME = 4.0
_COPY_TIME = 10.0


class HoppingDynamics(Dynamics):
    """A :class:`~flowmc.terms.Hopping` term on lanes."""

    def __init__(self, term: Hopping, field: Tensor) -> None:
        self.dtype = np.dtype("float64" if field.dtype == torch.float64 else "float32")
        self.width = lane_width(self.dtype.itemsize)
        lattice = tuple(field.shape[1:])
        self.layout = layout_for(lattice, field.shape[0], self.width)
        self.constants = splat([-2 * term.k, 2 * term.a, 4 * term.quartic], self.width, self.dtype)
        # One entry per direction: the length is part of the type, for which loops are unrolled.
        self.axes = (0,) * len(lattice)
        self.shape = field.shape

    def empty(self, which: int = FIELD) -> np.ndarray:
        return aligned(self.layout.groups * self.layout.blocks * self.width, self.dtype)

    def _copy(self, function: Callable, source: np.ndarray, target: np.ndarray) -> None:
        layout = self.layout
        run_slices(
            lambda start, stop: function(
                source, target, layout.sites, layout.chains, layout.chains_per_group, start, stop
            ),
            layout.groups * -(-layout.blocks // TILE),
            TILE * _COPY_TIME,
        )

    def pack(self, field: Tensor, which: int) -> np.ndarray:
        target = self.empty()
        self._copy(pack, field.detach().resolve_neg().reshape(field.shape[0], -1).numpy(), target)
        return target

    def unpack(self, packed: np.ndarray, which: int) -> Tensor:
        target = np.empty((self.shape[0], self.shape[1:].numel()), dtype=self.dtype)
        self._copy(unpack, packed, target)
        return torch.from_numpy(target).view(self.shape)

    def integrate(
        self,
        field: np.ndarray,
        momenta: np.ndarray,
        operations: Sequence[Operation],
        step_size: np.ndarray,
    ) -> None:
        layout, constants = self.layout, self.constants
        is_drift = np.array([operation[0] == "drift" for operation in operations])
        scales = splat([operation[1] for operation in operations], self.width, self.dtype)
        steps = lanes_of(layout, step_size, self.dtype)
        blocks, is_cut, axes = layout.blocks, layout.is_cut, self.axes

        def whole(start: int, stop: int) -> None:
            _trajectories(
                field, momenta, layout.neighbours, start, stop, blocks, constants, is_drift,
                scales, steps, is_cut, axes,
            )  # fmt: skip

        def phase(index: int, start: int, stop: int) -> None:
            for group in range(layout.groups):
                base = group * blocks
                if is_drift[index]:
                    _drift(field, momenta, base, start, stop, scales, index, steps, group)
                else:
                    _kick(
                        field, momenta, layout.neighbours, base, start, stop, constants, scales,
                        index, steps, group, is_cut, axes,
                    )  # fmt: skip

        phases = [functools.partial(phase, index) for index in range(len(is_drift))]
        run_operations(whole, phases, layout.groups, blocks, _OPERATION_TIME)

    def value(self, field: np.ndarray) -> np.ndarray:
        layout = self.layout
        chunks = -(-layout.blocks // _CHUNK)
        partial = np.zeros(layout.groups * chunks * self.width)
        run_slices(
            lambda start, stop: _densities(
                field, layout.neighbours, start, stop, layout.blocks, self.constants,
                layout.is_cut, self.axes, partial,
            ),
            layout.groups * chunks,
            min(layout.blocks, _CHUNK) * _OPERATION_TIME,
        )  # fmt: skip
        return sum_lanes(layout, partial)
