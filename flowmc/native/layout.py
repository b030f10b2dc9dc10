r"""How fields lie in memory for the native kernels: vectors of lanes, whole-vector neighbours.

A lane is one pair of (chain, sublattice).  With at least as many chains as lanes every lane is a
chain.  With fewer, even axes are cut in two halves, and one bit of the lane index says in which
half of its axis a site lies; then a step across the middle or the edge of the axis leads to the
same block of lanes with that bit flipped, for every lane alike (the layout of P. Boyle et al.,
"Grid", arXiv:1512.03487, with every cut in two).  Neighbours are therefore whole vectors, with at
most an exclusive-or of the lane index, on any lattice: odd extents are not cut, and extent 2
becomes 1.

Arrays are flat, in the order ``(group of chains, block of sites, component, lane)``.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from flowmc.native.compiled import compiled

__all__ = [
    "FLIP_BITS",
    "TILE",
    "LinkLayout",
    "aligned",
    "lanes_of",
    "layout_for",
    "pack",
    "splat",
    "sum_lanes",
    "unpack",
]

# Low bits of a neighbour entry that hold the exclusive-or of lanes (at most 16 lanes).
FLIP_BITS = 4


@dataclass(frozen=True, eq=False)
class LinkLayout:
    """A packing of ``chains`` fields on a lattice.

    Attributes:
        width: lanes per vector.
        chains: number of chains.
        chains_per_group: chains side by side in the lanes; the last group may be padded.
        groups: number of groups of chains.
        blocks: vectors of sites per group.
        sites: ``(blocks, cuts)`` int64: flat site of each block in each sublattice.
        neighbours: flat ``(blocks, d, 2)`` int32: ``block << FLIP_BITS | flip`` of the forward
            and backward neighbour.
        is_cut: whether any axis is cut, i.e. any flip is nonzero.
    """

    width: int
    chains: int
    chains_per_group: int
    groups: int
    blocks: int
    sites: np.ndarray
    neighbours: np.ndarray
    is_cut: bool


@functools.lru_cache(maxsize=64)
def layout_for(lattice: tuple[int, ...], chains: int, width: int) -> LinkLayout:
    """Return the layout for a batch: as few cuts as fill the lanes."""
    cuts = 0
    even = [mu for mu, extent in enumerate(lattice) if extent % 2 == 0]
    # Long axes first: fewer neighbours lie across a cut.
    even.sort(key=lambda mu: -lattice[mu])
    while chains << cuts < width and cuts < len(even):
        cuts += 1
    axes = even[:cuts]
    chains_per_group = width >> cuts
    local = [extent // 2 if mu in axes else extent for mu, extent in enumerate(lattice)]
    coordinates = np.indices(local).reshape(len(lattice), -1)
    strides = _strides(lattice)
    local_strides = _strides(local)
    blocks = coordinates.shape[1]

    sites = np.zeros((blocks, 1 << cuts), dtype=np.int64)
    for part in range(1 << cuts):
        for mu in range(len(lattice)):
            half = local[mu] if mu in axes and part >> axes.index(mu) & 1 else 0
            sites[:, part] += (coordinates[mu] + half) * strides[mu]

    neighbours = np.empty((blocks, len(lattice), 2), dtype=np.int32)
    here = np.arange(blocks)
    for mu in range(len(lattice)):
        for direction, step in enumerate((1, -1)):
            target = coordinates[mu] + step
            wrapped = target % local[mu]
            block = here + (wrapped - coordinates[mu]) * local_strides[mu]
            flip = (chains_per_group << axes.index(mu)) * (wrapped != target) if mu in axes else 0
            neighbours[:, mu, direction] = block << FLIP_BITS | flip
    return LinkLayout(
        width=width,
        chains=chains,
        chains_per_group=chains_per_group,
        groups=-(-chains // chains_per_group),
        blocks=blocks,
        sites=sites,
        neighbours=neighbours.reshape(-1),
        is_cut=cuts > 0,
    )


def _strides(extents: Sequence[int]) -> list[int]:
    strides = [1] * len(extents)
    for mu in range(len(extents) - 2, -1, -1):
        strides[mu] = strides[mu + 1] * extents[mu + 1]
    return strides


def aligned(count: int, dtype: np.dtype) -> np.ndarray:
    """Return an uninitialised flat array that starts on a cache line."""
    raw = np.empty(count + 64 // dtype.itemsize, dtype=dtype)
    start = -raw.ctypes.data % 64 // dtype.itemsize
    return raw[start : start + count]


def lanes_of(layout: LinkLayout, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """Spread numbers per chain over the lanes: flat ``(groups, width)``; padding repeats."""
    lane = np.arange(layout.width) % layout.chains_per_group
    chain = np.arange(layout.groups)[:, None] * layout.chains_per_group + lane
    result = aligned(layout.groups * layout.width, dtype)
    result[:] = values[np.minimum(chain, layout.chains - 1)].reshape(-1)
    return result


def splat(values: Sequence[float], width: int, dtype: np.dtype) -> np.ndarray:
    """Return constants repeated in every lane: flat ``(len(values), width)``."""
    result = aligned(len(values) * width, dtype)
    result[:] = np.repeat(np.asarray(values, dtype=np.float64), width)
    return result


def sum_lanes(layout: LinkLayout, partial: np.ndarray) -> np.ndarray:
    """Add up partial sums ``(groups, chunks, width)`` over chunks and sublattices, per chain."""
    parts = layout.width // layout.chains_per_group
    table = partial.reshape(layout.groups, -1, parts, layout.chains_per_group)
    return table.sum((1, 2)).reshape(-1)[: layout.chains].copy()


# Sites copied per lane before the next lane has its turn: short enough that the vectors being
# filled stay in the first-level cache, long enough to read whole cache lines.
TILE = 32


@compiled
def pack(source, target, sites, chains, chains_per_group, start, stop):
    """Copy ``source`` (chains, volume) into lanes; padded lanes repeat the last chain.

    Lane ``i`` holds chain ``i % chains_per_group`` of the group, in the sublattice
    ``i // chains_per_group``.  The tasks
    ``start`` to ``stop`` are tiles of TILE blocks, group by group.
    """
    blocks, parts = sites.shape
    width = parts * chains_per_group
    tiles = -(-blocks // TILE)
    for task in range(start, stop):
        group, tile = task // tiles, task % tiles
        for part in range(parts):
            for lane in range(chains_per_group):
                chain = np.uint64(min(group * chains_per_group + lane, chains - 1))
                offset = group * blocks * width + part * chains_per_group + lane
                for block in range(tile * TILE, min(blocks, (tile + 1) * TILE)):
                    site = np.uint64(sites[np.uint64(block), np.uint64(part)])
                    target[np.uint64(offset + block * width)] = source[chain, site]


@compiled
def unpack(source, target, sites, chains, chains_per_group, start, stop):
    """Copy lanes back into ``target`` (chains, volume); the inverse of :func:`pack`."""
    blocks, parts = sites.shape
    width = parts * chains_per_group
    tiles = -(-blocks // TILE)
    for task in range(start, stop):
        group, tile = task // tiles, task % tiles
        used = min(chains_per_group, chains - group * chains_per_group)
        for part in range(parts):
            for lane in range(used):
                chain = np.uint64(group * chains_per_group + lane)
                offset = group * blocks * width + part * chains_per_group + lane
                for block in range(tile * TILE, min(blocks, (tile + 1) * TILE)):
                    site = np.uint64(sites[np.uint64(block), np.uint64(part)])
                    target[chain, site] = source[np.uint64(offset + block * width)]
