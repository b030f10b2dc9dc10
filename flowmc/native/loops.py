r"""Native HMC of sums of closed loops, of any shapes, for U(1), SU(2) and SU(3).

The loops come as a plan (:mod:`flowmc.loop_plan`): which paths are multiplied, which loops are
closed from them, and how the derivatives of loops come down to the links.  The plan is data, so
that one compiled kernel serves all actions.  A kick makes the paths that several loops share, then
:math:`H = c\,w\,(W)_{TA}` of every loop, then the derivatives of the paths, and adds those of the
links to the momenta.
"""

# numba calls intrinsics without their first parameter and types kernels itself.
# mypy: disable-error-code="call-arg, var-annotated"

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Sequence
from weakref import WeakKeyDictionary

import numpy as np
from numba import njit
from torch import Tensor

from flowmc.loop_plan import Plan, plan_for
from flowmc.loops import plaquette_words
from flowmc.native.compiled import compiled
from flowmc.native.dynamics import Dynamics
from flowmc.native.lanes import accumulate, flip, lanes, load, splat, store
from flowmc.native.layout import FLIP_BITS, LinkLayout, aligned, lanes_of, sum_lanes
from flowmc.native.layout import splat as constant_lanes
from flowmc.native.link_fields import (
    CHUNK,
    FLIPS,
    LinkFields,
    components,
    drifts,
    load_algebra,
    load_link,
    zero_algebra,
)
from flowmc.native.loop_program import COPIES, prepare
from flowmc.native.matrices import (
    COMPONENTS,
    add_multiple,
    kick,
    multiply,
    multiply_inverse,
    plaquette_algebra,
    plaquette_trace,
    scaled,
    transport,
)
from flowmc.native.schedule import run_operations, run_slices
from flowmc.splitting import Operation
from flowmc.terms import Loops, LoopWeights, Plaquettes

__all__ = ["LoopDynamics"]


# Blocks for which one loop, or link, is done before the next one: few streams of memory at a time,
# and what loops share is still in the cache.
_TILE = 16


@njit(inline="always")
def _blocks_of(paths, program, dimensions, tag):
    """Return for how many blocks there is memory."""
    count = dimensions + program.joints.shape[0] + COPIES
    return paths.shape[0] // (count * components(tag, 0) * lanes(paths))


@njit(inline="always")
def _place_of(paths, which, entry, base, block, slot, copies, total, tag):
    """Return the position of a path of the site of an entry, as seen from a block.

    Where lanes are flipped it is that of a copy.  Choosing between positions, and not between
    values, leaves the numbers to the instructions that use them; each block has places of its own
    for copies, and so has each thread.
    """
    place = which * total + base + (entry >> FLIP_BITS)
    if entry & FLIPS:
        u = flip(load_link(paths, place, tag), entry & FLIPS)
        place = (copies + slot) * total + base + block
        store(paths, place * components(tag, 0) * lanes(paths), u)
    return place


@compiled
def _copy(links, paths, program, base, path_base, start, stop, dimensions, tag):
    """Put the links of a range of blocks beside the joints."""
    total = _blocks_of(paths, program, dimensions, tag)
    stride = components(tag, 0) * lanes(links)
    for block in range(start, stop):
        for mu in range(dimensions):
            u = load_link(links, (base + block) * dimensions + mu, tag)
            store(paths, (mu * total + path_base + block) * stride, u)


@compiled
def _join(paths, program, base, first, last, start, stop, blocks, dimensions, tag):
    """Multiply the joints ``first`` to ``last`` in order, in a range of blocks."""
    joints = program.joints
    copies = dimensions + joints.shape[0]
    total = _blocks_of(paths, program, dimensions, tag)
    stride = components(tag, 0) * lanes(paths)
    for block in range(start, stop):
        for index in range(first, last):
            joint = program.order[index]
            entry = program.tables[np.uint64(joints[joint, 3] * blocks + block)]
            left = load_link(paths, joints[joint, 0] * total + base + block, tag)
            place = _place_of(paths, joints[joint, 1], entry, base, block, 0, copies, total, tag)
            right = load_link(paths, place, tag)
            position = ((dimensions + joint) * total + base + block) * stride
            if joints[joint, 2]:
                store(paths, position, multiply_inverse(left, right))
            else:
                store(paths, position, multiply(left, right))


@njit(inline="always")
def _side(paths, program, loop, which, base, block, blocks, copies, total, tag):
    """Return one side of a loop, of two paths: p for ``which = 0``, s for 3."""
    sides = program.sides
    entry = program.tables[np.uint64(sides[loop, which + 2] * blocks + block)]
    place = _place_of(
        paths, sides[loop, which + 1], entry, base, block, which // 3, copies, total, tag
    )
    first = sides[loop, which] * total + base + block
    return multiply(load_link(paths, first, tag), load_link(paths, place, tag))


@compiled
def _close(paths, elements, program, factors, rows, base, start, stop, blocks, dimensions, tag):
    """Write H of every loop of a range of blocks."""
    loops, joints = program.sides.shape[0], program.joints.shape[0]
    copies, total = dimensions + joints, _blocks_of(paths, program, dimensions, tag)
    width = lanes(paths)
    stride = components(tag, 1) * width
    for tile in range(start, stop, _TILE):
        for loop in range(loops):
            for block in range(tile, min(tile + _TILE, stop)):
                if program.sides[loop, 1] >= 0:
                    p = _side(paths, program, loop, 0, base, block, blocks, copies, total, tag)
                    s = _side(paths, program, loop, 3, base, block, blocks, copies, total, tag)
                    h = plaquette_algebra(p, s)
                else:
                    p = load_link(paths, program.sides[loop, 0] * total + base + block, tag)
                    s = load_link(paths, program.sides[loop, 3] * total + base + block, tag)
                    h = plaquette_algebra(p, s)
                factor = load(factors, (rows[loop, 0] + block * rows[loop, 1]) * width, 1)
                store(elements, (loop * total + base + block) * stride, scaled(h, factor))


@njit(inline="always")
def _derivative(paths, elements, program, path, base, block, blocks, dimensions, tag):
    """Add up the parts of the derivative of a path."""
    memory = _blocks_of(paths, program, dimensions, tag)
    parts = program.parts
    total = zero_algebra(paths, tag)
    for index in range(program.starts[2 * path], program.starts[2 * path + 1]):
        f = load_algebra(elements, parts[index, 0] * memory + base + block, tag)
        total = add_multiple(total, f, splat(paths, parts[index, 1], 1))
    for index in range(program.starts[2 * path + 1], program.starts[2 * path + 2]):
        entry = program.tables[np.uint64(parts[index, 3] * blocks + block)]
        there = base + (entry >> FLIP_BITS)
        f = transport(
            load_link(paths, parts[index, 2] * memory + there, tag),
            load_algebra(elements, parts[index, 0] * memory + there, tag),
        )
        if entry & FLIPS:
            f = flip(f, entry & FLIPS)
        total = add_multiple(total, f, splat(paths, parts[index, 1], 1))
    return total


@compiled
def _pass_on(
    paths, elements, program, base, first, last, start, stop, blocks, dimensions, tag
):  # fmt: skip
    """Write the derivatives of joints ``first`` to ``last`` in backward order."""
    loops = program.sides.shape[0]
    total = _blocks_of(paths, program, dimensions, tag)
    stride = components(tag, 1) * lanes(paths)
    for block in range(start, stop):
        for index in range(first, last):
            joint = program.backward_order[index]
            f = _derivative(
                paths, elements, program, dimensions + joint, base, block, blocks, dimensions, tag
            )
            store(elements, ((loops + joint) * total + base + block) * stride, f)


@compiled
def _kicks(
    momenta, paths, elements, program, base, path_base, start, stop, blocks, dimensions, tag,
    sizes, size, steps, step,
):  # fmt: skip
    """Add the derivatives of the links of a range of blocks to the momenta."""
    width = lanes(paths)
    time = scaled(load(sizes, size * width, 1), load(steps, step * width, 1))
    for tile in range(start, stop, _TILE):
        for mu in range(dimensions):
            for block in range(tile, min(tile + _TILE, stop)):
                f = _derivative(
                    paths, elements, program, mu, path_base, block, blocks, dimensions, tag
                )
                position = (base + block) * dimensions + mu
                p = kick(load_algebra(momenta, position, tag), f, time)
                store(momenta, position * components(tag, 1) * width, p)


@compiled
def _trajectories(
    links, momenta, paths, elements, program, factors, rows, start, stop, blocks, dimensions, tag,
    is_drift, sizes, steps,
):  # fmt: skip
    """Run all operations for a range of groups, which share the memory for paths."""
    first = np.int64(0)  # a literal would have its kernels compiled once more
    for group in range(start, stop):
        base = group * blocks
        for index in range(is_drift.shape[0]):
            if is_drift[index]:
                drifts(
                    links, momenta, base, first, blocks, dimensions, tag, sizes, index, steps, group
                )
                continue
            _copy(links, paths, program, base, first, first, blocks, dimensions, tag)
            levels = program.levels
            for level in range(levels.shape[0] - 1):
                _join(
                    paths, program, first, levels[level], levels[level + 1], first, blocks, blocks,
                    dimensions, tag,
                )  # fmt: skip
            _close(
                paths, elements, program, factors, rows, first, first, blocks, blocks,
                dimensions, tag,
            )  # fmt: skip
            levels = program.backward_levels
            for level in range(levels.shape[0] - 1):
                _pass_on(
                    paths, elements, program, first, levels[level], levels[level + 1], first,
                    blocks, blocks, dimensions, tag,
                )  # fmt: skip
            _kicks(
                momenta, paths, elements, program, base, first, first, blocks, blocks, dimensions,
                tag, sizes, index, steps, group,
            )  # fmt: skip


@compiled
def _traces(paths, program, factors, rows, start, stop, blocks, dimensions, tag, partial):
    """Add up factor times normalised trace of all loops, by chunks of blocks."""
    width = lanes(paths)
    copies = dimensions + program.joints.shape[0]
    total = _blocks_of(paths, program, dimensions, tag)
    chunks = -(-blocks // CHUNK)
    for task in range(start, stop):
        group, chunk = task // chunks, task % chunks
        base = group * blocks
        for block in range(chunk * CHUNK, min(blocks, (chunk + 1) * CHUNK)):
            for loop in range(program.sides.shape[0]):
                if program.sides[loop, 1] >= 0:
                    p = _side(paths, program, loop, 0, base, block, blocks, copies, total, tag)
                    s = _side(paths, program, loop, 3, base, block, blocks, copies, total, tag)
                    trace = plaquette_trace(p, s)
                else:
                    p = load_link(paths, program.sides[loop, 0] * total + base + block, tag)
                    s = load_link(paths, program.sides[loop, 3] * total + base + block, tag)
                    trace = plaquette_trace(p, s)
                factor = load(factors, (rows[loop, 0] + block * rows[loop, 1]) * width, 1)
                accumulate(partial, task * width, scaled(trace, factor))


_Rows = dict[tuple[LinkLayout, np.dtype, Plan, int], np.ndarray]
_ROWS: WeakKeyDictionary[LoopWeights, _Rows] = WeakKeyDictionary()


def _weights_in_lanes(
    weights: LoopWeights, row: int, plan: Plan, loop: int, layout: LinkLayout, dtype: np.dtype
) -> np.ndarray:
    """Return the weights of a word where its loop begins in the plan: flat (blocks, width)."""
    known = _ROWS.setdefault(weights, {})
    key = layout, dtype, plan, loop
    if key not in known:
        table = weights.table[row].numpy()
        axes = tuple(range(table.ndim))
        table = np.roll(table, plan.corners[loop], axes).reshape(-1)[layout.sites]
        known[key] = np.repeat(table, layout.chains_per_group, axis=1).reshape(-1)
    return known[key]


class LoopDynamics(LinkFields, Dynamics):
    """Any :class:`~flowmc.terms.Loops` and :class:`~flowmc.terms.Plaquettes`, as one set of loops.

    Args:
        terms: of one group.
        field: decides layout and precision.
    """

    def __init__(self, terms: Sequence[Plaquettes | Loops], field: Tensor) -> None:
        super().__init__(terms[0].group, field)
        words: list[tuple[int, ...]] = []
        coefficients: list[float] = []
        weights: list[tuple[LoopWeights, int] | None] = []
        for term in terms:
            if isinstance(term, Plaquettes):
                new = plaquette_words(self.dimensions)
                coefficients += [term.coupling] * len(new)
            else:
                new = term.words
                coefficients += term.by_word
            words += new
            for row in range(len(new)):
                uniform = 1.0 if term.weights is None else term.weights.uniform[row]
                if uniform is not None:
                    coefficients[len(weights)] *= uniform
                both = None if term.weights is None else (term.weights, row)
                weights.append(None if uniform is not None else both)
        plan = plan_for(tuple(words), self.dimensions)
        self.program = prepare(plan, self.layout)
        self.factors, self.rows = self._factors(plan, coefficients, weights)
        self.force_scale = 1.0 if self.n == 1 else 1 / (2 * self.n)
        # Against the products of a phase of the plaquette action.
        products = 2 * len(plan.joints) + 3 * len(plan.loops)
        self.block_time *= products / (self.dimensions * 10)

    def _factors(
        self,
        plan: Plan,
        coefficients: Sequence[float],
        weights: Sequence[tuple[LoopWeights, int] | None],
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return the factors of all loops in lanes, and first row and step per block of each."""
        pieces: list[np.ndarray] = []
        rows: list[tuple[int, int]] = []
        begin = 0
        for loop, (coefficient, weight) in enumerate(zip(coefficients, weights, strict=True)):
            if weight is None:
                piece = np.full(self.width, coefficient)
            else:
                table = _weights_in_lanes(*weight, plan, loop, self.layout, self.dtype)
                piece = coefficient * table
            rows.append((begin, int(weight is not None)))
            pieces.append(piece)
            begin += len(piece) // self.width
        factors = aligned(begin * self.width, self.dtype)
        factors[:] = np.concatenate(pieces)
        return factors, np.array(rows, dtype=np.int64)

    def _memory(self, groups: int) -> tuple[np.ndarray, np.ndarray]:
        """Return memory for paths, and for derivatives of loops and joints."""
        joints, loops = len(self.program.joints), len(self.program.sides)
        link, algebra = COMPONENTS[self.n]
        paths = self.memory(link, self.dimensions + joints + COPIES, groups)
        return paths, self.memory(algebra, loops + joints, groups)

    def integrate(
        self,
        field: np.ndarray,
        momenta: np.ndarray,
        operations: Sequence[Operation],
        step_size: np.ndarray,
    ) -> None:
        layout, dimensions, tag, program = self.layout, self.dimensions, self.tag, self.program
        groups, blocks = layout.groups, layout.blocks
        is_drift = np.array([operation[0] == "drift" for operation in operations])
        scales = np.where(is_drift, 1.0, self.force_scale)
        scales *= [operation[1] for operation in operations]
        sizes = constant_lanes(scales.tolist(), self.width, self.dtype)
        steps = lanes_of(layout, step_size, self.dtype)

        # A phase takes the memory that it works in, which group of chains, where the paths of this
        # group begin in the memory, and the range of blocks.
        def close(memory, group, base, start, stop):
            _close(
                *memory, program, self.factors, self.rows, base, start, stop, blocks, dimensions,
                tag,
            )  # fmt: skip

        def pass_on(memory, group, base, start, stop, first, last):
            _pass_on(*memory, program, base, first, last, start, stop, blocks, dimensions, tag)

        def kick_links(memory, group, base, start, stop, index):
            _kicks(
                momenta, *memory, program, group * blocks, base, start, stop, blocks, dimensions,
                tag, sizes, index, steps, group,
            )  # fmt: skip

        def drift(memory, group, base, start, stop, index):
            drifts(
                field, momenta, group * blocks, start, stop, dimensions, tag, sizes, index, steps,
                group,
            )  # fmt: skip

        phases: list[Callable] = []
        for index, drifting in enumerate(is_drift):
            if drifting:
                phases.append(functools.partial(drift, index=index))
                continue
            phases += self._joining(field)
            phases.append(close)
            phases += [
                functools.partial(pass_on, first=first, last=last)
                for first, last in itertools.pairwise(program.backward_levels)
            ]
            phases.append(functools.partial(kick_links, index=index))

        def whole(start: int, stop: int) -> None:
            _trajectories(
                field, momenta, *self._memory(1), program, self.factors, self.rows, start, stop,
                blocks, dimensions, tag, is_drift, sizes, steps,
            )  # fmt: skip

        # Untouched pages of it cost nothing where each thread has its own instead.
        shared = self._memory(groups)
        by_blocks = [functools.partial(self._of_all_groups, phase, shared) for phase in phases]
        run_operations(whole, by_blocks, groups, blocks, self.block_time)

    def _joining(self, field: np.ndarray) -> list[Callable]:
        """Return the phases that make all paths."""
        blocks = self.layout.blocks

        def copy(memory, group, base, start, stop):
            paths, _ = memory
            _copy(
                field, paths, self.program, group * blocks, base, start, stop, self.dimensions,
                self.tag,
            )  # fmt: skip

        def join(memory, group, base, start, stop, first, last):
            paths, _ = memory
            _join(
                paths, self.program, base, first, last, start, stop, blocks, self.dimensions,
                self.tag,
            )  # fmt: skip

        levels = itertools.pairwise(self.program.levels)
        return [copy, *(functools.partial(join, first=one, last=two) for one, two in levels)]

    def _of_all_groups(
        self, phase: Callable, memory: tuple[np.ndarray, np.ndarray], start: int, stop: int
    ) -> None:
        for group in range(self.layout.groups):
            phase(memory, group, group * self.layout.blocks, start, stop)

    def value(self, field: np.ndarray) -> np.ndarray:
        layout, blocks = self.layout, self.layout.blocks
        memory = self._memory(layout.groups)
        for phase in self._joining(field):
            run_slices(
                functools.partial(self._of_all_groups, phase, memory), blocks, self.block_time
            )
        chunks = -(-blocks // CHUNK)
        partial = np.zeros(layout.groups * chunks * self.width)
        run_slices(
            lambda start, stop: _traces(
                memory[0], self.program, self.factors, self.rows, start, stop, blocks,
                self.dimensions, self.tag, partial,
            ),
            layout.groups * chunks,
            min(blocks, CHUNK) * self.block_time,
        )  # fmt: skip
        return -sum_lanes(layout, partial)
