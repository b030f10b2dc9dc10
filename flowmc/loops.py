r"""Closed loops of links on a hypercubic lattice: shapes, orientations, and their traces.

A *word* is a tuple of steps ``+-(mu + 1)``: forward or backward along the direction mu.  A shape
(rectangle, chair, ...) is one word; its images under rotations and reflections of the lattice,
counted once where they are the same loop, are all the loops of that shape through one site.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable

import torch
from torch import Tensor

from flowmc.groups import SUN, Group
from flowmc.lattice import shift

__all__ = [
    "SHAPES",
    "Word",
    "backwards",
    "check_word",
    "images",
    "loop_holonomy",
    "loop_trace",
    "plaquette_words",
]

Word = tuple[int, ...]

SHAPES: dict[str, Word] = {
    "plaquette": (1, 2, -1, -2),
    "rectangle": (1, 1, 2, -1, -1, -2),
    "chair": (2, 1, -2, 3, -1, -3),
    "parallelogram": (1, 2, 3, -1, -2, -3),
    "square": (1, 1, 2, 2, -1, -1, -2, -2),
    "long_rectangle": (1, 1, 1, 2, -1, -1, -1, -2),
}
"""One loop of every shape, in the directions that it needs.

Up to six links these are all loops without a repeated link (M. Luescher and P. Weisz, Commun. Math.
Phys. 97 (1985) 59): the plaquette, the planar 2x1 rectangle, the bent one (*chair*) and the
twisted hexagon (*parallelogram*); then the 2x2 square and the 3x1 rectangle.
"""


def backwards(word: Word) -> Word:
    """Return the same way from its end to its begin."""
    return tuple(-step for step in reversed(word))


@functools.lru_cache(maxsize=4096)
def check_word(word: Word) -> Word:
    """Return a word that is a loop.

    Raises:
        ValueError: it is not closed, or goes back along the link that it came from.
    """
    if not word or 0 in word or any(word.count(step) != word.count(-step) for step in word):
        raise ValueError(
            f"{word} is no closed loop: give steps +-(mu + 1) that end where they begin, as "
            "(1, 2, -1, -2) of the plaquette of the directions 0 and 1"
        )
    if any(step == -word[place - 1] for place, step in enumerate(word)):
        raise ValueError(f"the loop {word} goes back along a link: leave both steps out")
    return word


@functools.cache
def images(word: Word, dimensions: int) -> tuple[Word, ...]:
    """Return all loops of the shape of a word in so many dimensions, each once per site.

    A loop is the same as itself begun at another corner or run through backwards.
    """
    used = sorted({abs(step) for step in word})
    found = set()
    for axes in itertools.permutations(range(1, dimensions + 1), len(used)):
        for signs in itertools.product((1, -1), repeat=len(used)):
            turn = {axis: sign * new for axis, sign, new in zip(used, signs, axes, strict=True)}
            moved = tuple(turn[abs(step)] * (1 if step > 0 else -1) for step in word)
            found.add(_canonical(moved))
    return tuple(sorted(found))


@functools.cache
def plaquette_words(dimensions: int) -> tuple[Word, ...]:
    """Return the plaquettes of all planes in order, as :mod:`flowmc.plaquettes` defines them."""
    directions = range(1, dimensions + 1)
    return tuple((mu, nu, -mu, -nu) for mu, nu in itertools.combinations(directions, 2))


def loop_holonomy(links: Tensor, word: Word, group: Group) -> Tensor:
    """Return the product of the links along a word from every site.

    Args:
        links: ``(chains, d, *L[, N, N])``.
        word: the steps; it need not be closed.
        group: of the links.

    Returns:
        ``(chains, *L, N, N)`` for SU(N); the sum of angles ``(chains, *L)`` for U(1).
    """
    is_matrix = isinstance(group, SUN)
    times = torch.matmul if is_matrix else torch.add
    position = [0] * (links.shape[1])
    product: Tensor | None = None
    for step in word:
        mu = abs(step) - 1
        if step < 0:
            position[mu] -= 1
        link = links[:, mu]
        for nu, distance in enumerate(position):
            if distance:
                link = shift(link, nu, distance)
        if step < 0:
            link = link.mH if is_matrix else -link
        else:
            position[mu] += 1
        product = link if product is None else times(product, link)
    assert product is not None
    return product


def loop_trace(links: Tensor, words: Iterable[Word], group: Group) -> Tensor:
    """Return the sum over closed words of Re tr (U(1): cos) at every site, ``(chains, *L)``.

    Products of two links, which many loops share, are formed once.
    """
    corners: dict[Word, Tensor] = {}
    total: Tensor | None = None
    for word in words:
        position = [0] * links.shape[1]
        product: Tensor | None = None
        trace: Tensor | None = None
        for start in range(0, len(word), 2):
            pair = word[start : start + 2]
            if pair not in corners:
                corners[pair] = loop_holonomy(links, pair, group)
            piece = corners[pair]
            for nu, distance in enumerate(position):
                if distance:
                    piece = shift(piece, nu, distance)
            for step in pair:
                position[abs(step) - 1] += 1 if step > 0 else -1
            if product is None:
                product = piece
            elif not isinstance(group, SUN):
                product = product + piece
            elif start + 2 < len(word):
                product = product @ piece
            else:
                # Re tr(A B) is a scalar product of entries: no need of the last matrix.
                left, right = (
                    torch.view_as_real(product),
                    torch.view_as_real(piece.mH.resolve_conj()),
                )
                trace = (left * right).sum((-3, -2, -1))
        assert product is not None
        trace = torch.cos(product) if trace is None else trace
        total = trace if total is None else total + trace
    assert total is not None
    return total


def _canonical(word: Word) -> Word:
    turned = [w[i:] + w[:i] for w in (word, backwards(word)) for i in range(len(w))]
    return min(turned)
