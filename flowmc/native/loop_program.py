"""The plan of a set of loops as arrays, which one compiled kernel reads for all actions."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from flowmc.loop_plan import Plan
from flowmc.native.layout import FLIP_BITS, LinkLayout
from flowmc.native.link_fields import FLIPS

__all__ = ["COPIES", "Program", "prepare"]

# Places of a block for paths whose lanes are flipped: one for each side of a loop.
COPIES = 2


class Program(NamedTuple):
    """A plan as arrays.  Links are the paths 0 to d - 1; -1 stands for no path.

    In memory there are the links, the joints, and ``COPIES`` places more, each of all sites in
    order: neighbours of one kind are read one after the other.

    Attributes:
        tables: flat (displacements, blocks) int32, entries as in :class:`LinkLayout`.
        joints: (joints, 4): left, right, whether the right one is inverted, its table.
        order: joints by level; those of a level need no sites of each other but the own.
        sides: (loops, 6): of p and of s the first path, the second and its table.
        parts: (parts, 4): source, sign, path along which it comes, table; of every path those of
            the same site first.
        starts: (2 paths + 1,): where the parts of a path begin, and of these the others.
        backward_order: joints by level in which their derivatives are known.
        levels: where levels begin in ``order``, and its end.
        backward_levels: the same of ``backward_order``.
    """

    tables: np.ndarray
    joints: np.ndarray
    order: np.ndarray
    sides: np.ndarray
    parts: np.ndarray
    starts: np.ndarray
    backward_order: np.ndarray
    levels: np.ndarray
    backward_levels: np.ndarray


@functools.lru_cache(maxsize=32)
def prepare(plan: Plan, layout: LinkLayout) -> Program:
    """Return the program of a plan."""
    tables: dict[tuple[int, ...], int] = {(0,) * plan.dimensions: 0}

    def table(at: tuple[int, ...]) -> int:
        return tables.setdefault(at, len(tables))

    d, loops = plan.dimensions, len(plan.loops)
    joints = [(j.left, j.right, int(j.is_inverted), table(j.at)) for j in plan.joints]
    sides = [
        [
            number
            for side in both
            for number in (
                side.first,
                -1 if side.second is None else side.second,
                table(side.at),
            )
        ]
        for both in plan.loops
    ]
    parts, starts = [], [0]
    for of_path in plan.parts:
        for part in of_path:
            if part.along is None:
                parts.append((part.source, part.sign, -1, 0))
        starts.append(len(parts))
        for part in of_path:
            if part.along is not None:
                parts.append((part.source, part.sign, part.along, table(part.at)))
        starts.append(len(parts))
    # What is read of other sites must be complete: it belongs to an earlier level.
    levels: list[int] = []
    for joint in plan.joints:
        left = levels[joint.left - d] if joint.left >= d else 0
        right = levels[joint.right - d] + 1 if joint.right >= d else 0
        levels.append(max(left, right))
    backward = [0] * len(joints)
    for index in reversed(range(len(joints))):
        for part in plan.parts[d + index]:
            if part.source >= loops:
                before = backward[part.source - loops] + any(part.at)
                backward[index] = max(backward[index], before)
    order = sorted(range(len(joints)), key=lambda k: (levels[k], k))
    backward_order = sorted(range(len(joints)), key=lambda k: (backward[k], -k))
    return Program(
        np.concatenate([_table(layout, at) for at in tables]),
        np.array(joints, dtype=np.int64).reshape(-1, 4),
        np.array(order, dtype=np.int64),
        np.array(sides, dtype=np.int64).reshape(-1, 6),
        np.array(parts, dtype=np.int64).reshape(-1, 4),
        np.array(starts, dtype=np.int64),
        np.array(backward_order, dtype=np.int64),
        _bounds(levels),
        _bounds(backward),
    )


def _bounds(levels: Sequence[int]) -> np.ndarray:
    """Return where every level begins in the sorted list, and its end."""
    ends = [sum(level < n for level in levels) for n in range(max(levels, default=-1) + 2)]
    return np.array(ends, dtype=np.int64)


def _table(layout: LinkLayout, at: Sequence[int]) -> np.ndarray:
    """Return the entries of the sites that lie ``at`` from those of every block, (blocks,)."""
    neighbours = layout.neighbours.reshape(layout.blocks, -1)
    block = np.arange(layout.blocks, dtype=np.int32)
    flips = np.zeros(layout.blocks, dtype=np.int32)
    for mu, steps in enumerate(at):
        for _ in range(abs(steps)):
            entry = neighbours[block, 2 * mu + (steps < 0)]
            block, flips = entry >> FLIP_BITS, flips ^ (entry & FLIPS)
    return block << FLIP_BITS | flips
