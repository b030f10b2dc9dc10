r"""How loops are put together from paths that they share, and how their derivatives come apart.

A loop is two paths from one site to another, :math:`W(x) = p(x)\,s(x)^\dagger`, and a path is a
link or made of two shorter ones, :math:`p(x) = q(x)\,r(x + |q|)` or, with the second run
backwards, :math:`q(x)\,r(x + |q| - |r|)^\dagger`.  Rectangles of all directions share the lines of
two links, bent loops their staples.

With :math:`H(x) = (W(x))_{TA}` times its coefficient, let :math:`F_p(x)` be the derivative of the
sum of all loops when :math:`p(x)` is multiplied from the left by :math:`e^\omega`.  It is the sum
of :math:`\pm H(x)` over the loops of which p is a side, and of what longer paths pass on: F of
:math:`q r` itself to q, and transported along q, :math:`q^\dagger F q`, to r; of
:math:`q r^\dagger` minus :math:`r q^\dagger F q r^\dagger` to r.  At the links it is the force.
So every path costs one product and one transport, however many loops run along it.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from flowmc.loops import Word, backwards

__all__ = ["Joint", "Part", "Plan", "Side", "plan_for"]

Vector = tuple[int, ...]


@dataclass(frozen=True)
class Joint:
    """A path made of two: ``left`` from x, then ``right``, a path from x + ``at``.

    Paths are numbers, those below the number of directions being links.

    Attributes:
        is_inverted: whether the right one is run from its end to its begin.
    """

    left: int
    right: int
    at: Vector
    is_inverted: bool = False


@dataclass(frozen=True)
class Side:
    """One of the two ways around a loop from x: a path, and perhaps another, from x + ``at``.

    Of a loop both sides have a second path, or none.
    """

    first: int
    second: int | None
    at: Vector


@dataclass(frozen=True)
class Part:
    """What a path gets of the derivative: ``sign`` times F of a source, at x + ``at``.

    Attributes:
        source: a loop, or the number of loops plus that of a joint.
        along: the path from x + ``at`` that F is transported along, or None.
    """

    source: int
    sign: int
    along: int | None
    at: Vector


@dataclass(frozen=True)
class Plan:
    """A set of loops through every site.

    Attributes:
        dimensions: number of directions.
        joints: paths beyond links, each after those that it is made of; that of index k has the
            number ``dimensions + k``.
        loops: the two sides (p, s) of every word, in the order of the words.
        corners: where the loops of this plan begin, relative to the words.
        parts: of every path: what adds up to its derivative.
    """

    dimensions: int
    joints: tuple[Joint, ...]
    loops: tuple[tuple[Side, Side], ...]
    corners: tuple[Vector, ...]
    parts: tuple[tuple[Part, ...], ...]


@functools.lru_cache(maxsize=64)
def plan_for(words: tuple[Word, ...], dimensions: int) -> Plan:
    """Return the plan of a set of closed words, with few joints.

    Every word takes the corner at which it needs the fewest new paths.  Where both sides of a loop
    are needed by nobody else they are not among the joints, but each a :class:`Side` of two paths.

    Args:
        words: checked ones (:func:`flowmc.loops.check_word`).
        dimensions: number of directions.

    Raises:
        ValueError: for a word with a step in a direction that is not there.
    """
    largest = max(abs(step) for word in words for step in word)
    if largest > dimensions:
        raise ValueError(
            f"a loop steps in the direction {largest - 1}, but the lattice has {dimensions} "
            f"directions, 0 to {dimensions - 1}"
        )
    made: dict[Word, tuple[Word, Word, bool]] = {}
    chosen = [_choose(word, made) for word in words]
    uses = Counter(path for _, *sides in chosen for path in sides)
    uses.update(operand for left, right, _ in made.values() for operand in (left, right))
    inline: set[Word] = set()
    for _, *both in chosen:
        if all(path in made and uses[path] == 1 and not made[path][2] for path in both):
            inline.update(both)

    number: dict[Word, int] = {(mu + 1,): mu for mu in range(dimensions)}
    joints: list[Joint] = []
    for path, (left, right, is_inverted) in made.items():
        if path not in inline:
            at = _displacement(path if is_inverted else left, dimensions)
            number[path] = len(number)
            joints.append(Joint(number[left], number[right], at, is_inverted))

    def side(path: Word) -> Side:
        if path not in inline:
            return Side(number[path], None, (0,) * dimensions)
        left, right, _ = made[path]
        return Side(number[left], number[right], _displacement(left, dimensions))

    loops = tuple((side(p), side(s)) for _, p, s in chosen)
    ends = [_displacement(path, dimensions) for path in number]
    return Plan(
        dimensions,
        tuple(joints),
        loops,
        tuple(_displacement(before, dimensions) for before, _, _ in chosen),
        _parts(joints, loops, ends, dimensions),
    )


def _choose(word: Word, made: dict[Word, tuple[Word, Word, bool]]) -> tuple[Word, Word, Word]:
    """Return the steps to the corner where a loop begins, and its two sides; make their paths."""
    best: tuple[int, Word, Word, Word, dict] | None = None
    for start in range(len(word)):
        turned = word[start:] + word[:start]
        # Both sides begin with a step forwards: every closed loop has such a corner.
        if turned[0] < 0 or turned[-1] > 0:
            continue
        half = len(word) // 2
        p, s = turned[:half], backwards(turned[half:])
        for first, then in ((p, s), (s, p)):
            new = _joints_of(first, made)
            new |= _joints_of(then, made | new)
            if best is None or len(new) < best[0]:
                best = len(new), word[:start], p, s, new
    assert best is not None
    made.update(best[4])
    return best[1], best[2], best[3]


def _joints_of(
    path: Word, made: dict[Word, tuple[Word, Word, bool]]
) -> dict[Word, tuple[Word, Word, bool]]:
    """Return the fewest joints that are missing for a path, each after those that it needs."""
    if len(path) == 1 or path in made:
        return {}
    best: dict[Word, tuple[Word, Word, bool]] | None = None
    # The last link alone first: where others need as few, they need more phases.
    for left, right, is_inverted in _splits(path):
        new = _joints_of(left, made)
        new |= _joints_of(right, made | new)
        if best is None or len(new) + 1 < len(best):
            best = new | {path: (left, right, is_inverted)}
        if len(best) == 1:
            break
    assert best is not None
    return best


# The tries multiply with the length: longer paths are made link by link.
_LONGEST_TRIED = 8


def _splits(path: Word) -> Iterator[tuple[Word, Word, bool]]:
    shortest = 1 if len(path) <= _LONGEST_TRIED else len(path) - 1
    for length in range(len(path) - 1, shortest - 1, -1):
        left, rest = path[:length], path[length:]
        if rest[0] > 0:
            yield left, rest, False
        elif rest[-1] < 0:
            yield left, backwards(rest), True


def _displacement(path: Word, dimensions: int) -> Vector:
    return tuple(path.count(mu + 1) - path.count(-mu - 1) for mu in range(dimensions))


def _parts(
    joints: Sequence[Joint],
    loops: Sequence[tuple[Side, Side]],
    ends: Sequence[Vector],
    dimensions: int,
) -> tuple[tuple[Part, ...], ...]:
    here = (0,) * dimensions
    parts: list[list[Part]] = [[] for _ in ends]
    for source, sides in enumerate(loops):
        for sign, side in zip((1, -1), sides, strict=True):
            parts[side.first].append(Part(source, sign, None, here))
            if side.second is not None:
                parts[side.second].append(Part(source, sign, side.first, _minus(side.at)))
    for index, joint in enumerate(joints):
        source = len(loops) + index
        parts[joint.left].append(Part(source, 1, None, here))
        if joint.is_inverted:
            parts[joint.right].append(Part(source, -1, dimensions + index, _minus(joint.at)))
        else:
            parts[joint.right].append(Part(source, 1, joint.left, _minus(joint.at)))
    return tuple(map(tuple, parts))


def _minus(vector: Vector) -> Vector:
    return tuple(-component for component in vector)
