r"""What an action consists of, as data that two engines read: torch here, compiled code elsewhere.

An :class:`~flowmc.actions.Action` declares its terms
(:meth:`~flowmc.actions.Action.as_data`); their torch formulas below give it a value and a force
on any device and with gradients, and :mod:`flowmc.native` reads the same numbers.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from flowmc.groups import SUN, Group, traceless_antihermitian
from flowmc.lattice import shift, sum_over_sites
from flowmc.loop_plan import Plan, Side, plan_for
from flowmc.loops import Word, check_word
from flowmc.plaquettes import planes, plaquette_angles, staples

__all__ = ["Hopping", "LoopWeights", "Loops", "Plaquettes", "Term", "added"]


class Term(ABC):
    """A part of an action, with the formulas of the torch engine."""

    @abstractmethod
    def value(self, field: Tensor) -> Tensor:
        """Return the term per chain, ``(chains,)`` float64."""

    @abstractmethod
    def force(self, field: Tensor) -> Tensor:
        """Return the algebra gradient, shaped like the field."""

    @abstractmethod
    def times(self, factor: float) -> Term:
        """Return a multiple of the term."""

    @abstractmethod
    def plus(self, other: Term) -> Term | None:
        """Return the sum of both as one term, or None if it is none of this kind."""


def added(terms: Sequence[Term]) -> tuple[Term, ...]:
    """Return terms of the same sum, those of one kind added up."""
    kept: list[Term] = []
    for term in terms:
        for place, other in enumerate(kept):
            both = other.plus(term)
            if both is not None:
                kept[place] = both
                break
        else:
            kept.append(term)
    return tuple(kept)


@dataclass(frozen=True)
class Hopping(Term):
    r"""The hopping form :math:`\sum_x [-2k \sum_\mu \phi\phi_\mu + a\phi^2 + \lambda\phi^4]`.

    Attributes:
        k: half the hopping coefficient.
        a: coefficient of phi^2.
        quartic: coefficient lambda of phi^4.
    """

    k: float
    a: float
    quartic: float

    def value(self, field: Tensor) -> Tensor:
        neighbours = torch.zeros_like(field)
        for axis in range(1, field.dim()):
            neighbours = neighbours + torch.roll(field, -1, dims=axis)
        square = field * field
        density = square * (self.a + self.quartic * square) - 2 * self.k * field * neighbours
        return sum_over_sites(density)

    def force(self, field: Tensor) -> Tensor:
        r"""Return :math:`-2k \sum_{\pm\mu} \phi_{x \pm \mu} + 2a\,\phi + 4\lambda\,\phi^3`."""
        neighbours = torch.roll(field, 1, dims=1)
        neighbours += torch.roll(field, -1, dims=1)
        for axis in range(2, field.dim()):
            neighbours += torch.roll(field, 1, dims=axis)
            neighbours += torch.roll(field, -1, dims=axis)
        local = field * (2 * self.a)
        if self.quartic:
            local = field * (2 * self.a + 4 * self.quartic * (field * field))
        return local.sub_(neighbours, alpha=2 * self.k)

    def times(self, factor: float) -> Hopping:
        return Hopping(factor * self.k, factor * self.a, factor * self.quartic)

    def plus(self, other: Term) -> Hopping | None:
        if not isinstance(other, Hopping):
            return None
        return Hopping(self.k + other.k, self.a + other.a, self.quartic + other.quartic)


class LoopWeights:
    """Coefficients of all loops of a lattice, kept in the precisions that are asked for.

    Args:
        table: float64 ``(loops, *L)``: of the words in order, for plaquettes of the d(d-1)/2
            planes, at the site where the loop begins; not to be changed afterwards.

    Attributes:
        uniform: of every row the weight that all sites have, or None.
    """

    def __init__(self, table: Tensor) -> None:
        self.table = table
        self._cast: dict[tuple[torch.dtype, torch.device], list[Tensor | None]] = {}
        # By row: the one weight of all sites, or None.
        self.uniform = [
            float(row.reshape(-1)[0]) if bool((row == row.reshape(-1)[0]).all()) else None
            for row in table
        ]

    def rows(self, like: Tensor) -> list[Tensor | None]:
        """Return the weights ``(*L)`` of every word as a field needs them; None: all are 1."""
        dtype = like.real.dtype if like.is_complex() else like.dtype
        key = dtype, like.device
        if key not in self._cast:
            cast = self.table.to(dtype=dtype, device=like.device)
            self._cast[key] = [
                None if weight == 1 else one for weight, one in zip(self.uniform, cast, strict=True)
            ]
        return self._cast[key]


@dataclass(frozen=True)
class Plaquettes(Term):
    r"""Plaquettes, :math:`-\frac{\beta}{N} \sum_{x,\,\mu<\nu} w_{\mu\nu}(x)\, \mathrm{Re\,tr}\,P`.

    For U(1), :math:`-\beta \sum w \cos\theta_P`.

    Attributes:
        group: U(1) or SU(N).
        coupling: beta.
        weights: w; None stands for 1 everywhere.
    """

    group: Group
    coupling: float
    weights: LoopWeights | None = None

    def value(self, field: Tensor) -> Tensor:
        total = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
        for mu, nu, weights in self._planes(field):
            if not isinstance(self.group, SUN):
                trace = torch.cos(plaquette_angles(field, mu, nu))
            else:
                left = field[:, mu] @ shift(field[:, nu], mu)
                right = field[:, nu] @ shift(field[:, mu], nu)
                # Re tr(A B^dagger) is the real scalar product of the entries.
                trace = (torch.view_as_real(left) * torch.view_as_real(right)).sum((-3, -2, -1))
                trace = trace / self.group.n
            if weights is not None:
                trace = trace * weights
            total = total + sum_over_sites(trace)
        return -self.coupling * total

    def force(self, field: Tensor) -> Tensor:
        r"""Return the algebra gradient, shaped like the field.

        SU(N): with A the sum of the 2(d-1) staples, :math:`\partial_a S = -\tfrac{\beta}{N}
        \mathrm{Re\,tr}(T_a U A)`, hence :math:`\sum_a T_a \partial_a S = \tfrac{\beta}{2N}
        (U A)_{TA}` with tr(T_a T_b) = -1/2 delta.  U(1):
        :math:`\beta \sum \pm\sin\theta_P` over the plaquettes that contain the link.
        """
        if not isinstance(self.group, SUN):
            return self._force_u1(field)
        total = torch.zeros_like(field)
        # Each plane serves both of its directions: U_mu(x) A(x) is a plaquette or a conjugated one.
        for mu, nu, weights in self._planes(field):
            for first, second in ((mu, nu), (nu, mu)):
                upper, lower = staples(field, first, second)
                if weights is not None:
                    upper = upper * weights[..., None, None]
                    lower = lower * shift(weights[None], second, -1)[..., None, None]
                total[:, first] += upper
                total[:, first] += lower
        return (self.coupling / (2 * self.group.n)) * traceless_antihermitian(field @ total)

    def _force_u1(self, field: Tensor) -> Tensor:
        total = torch.zeros_like(field)
        for mu, nu, weights in self._planes(field):
            sine = torch.sin(plaquette_angles(field, mu, nu))
            if weights is not None:
                sine = sine * weights
            total[:, mu] += sine - shift(sine, nu, -1)
            total[:, nu] += shift(sine, mu, -1) - sine
        return self.coupling * total

    def _planes(self, field: Tensor) -> list[tuple[int, int, Tensor | None]]:
        every = list(planes(field.shape[1]))
        weights = [None] * len(every) if self.weights is None else self.weights.rows(field)
        return [(mu, nu, w) for (mu, nu), w in zip(every, weights, strict=True)]

    def times(self, factor: float) -> Plaquettes:
        return replace(self, coupling=factor * self.coupling)

    def plus(self, other: Term) -> Plaquettes | None:
        if not isinstance(other, Plaquettes) or other.group != self.group:
            return None
        if other.weights is self.weights:
            return replace(self, coupling=self.coupling + other.coupling)
        return _blend(self, other)


# The same object for the same terms: what is made from weights is kept beside them.
@functools.lru_cache(maxsize=16)
def _blend(*terms: Plaquettes) -> Plaquettes:
    one = torch.ones((), dtype=torch.float64)
    tables = [one if term.weights is None else term.weights.table for term in terms]
    total = functools.reduce(
        torch.add, [term.coupling * table for term, table in zip(terms, tables, strict=True)]
    )
    return Plaquettes(terms[0].group, 1.0, LoopWeights(total))


@dataclass(frozen=True)
class Loops(Term):
    r"""Closed loops, :math:`-\frac{1}{N} \sum_{x,\,W} c_W\, w_W(x)\, \mathrm{Re\,tr}\,W(x)`.

    For U(1), :math:`-\sum c\,w \cos\theta_W`.  :math:`W(x)` is the product of the links along a
    word from x (:mod:`flowmc.loops`); :func:`flowmc.loops.images` gives those of a shape, each
    once::

        Loops(group, images(SHAPES["rectangle"], len(lattice)), beta * c1)

    Attributes:
        group: U(1) or SU(N).
        words: the loops.
        coefficients: c, one for each word or one for all.
        weights: w, a row for each word; None stands for 1 everywhere.

    Raises:
        ValueError: for a word that is no loop, and for numbers of coefficients or weights that are
            not those of the words.
    """

    group: Group
    words: tuple[Word, ...]
    coefficients: float | tuple[float, ...]
    weights: LoopWeights | None = None

    def __post_init__(self) -> None:
        words = tuple(check_word(tuple(word)) for word in self.words)
        given = self.coefficients
        numbers = (given,) * len(words) if isinstance(given, (int, float)) else tuple(given)
        rows = len(words) if self.weights is None else len(self.weights.table)
        if not words or len(numbers) != len(words) or rows != len(words):
            raise ValueError(
                f"loops need one coefficient, and one row of weights, for each word: got "
                f"{len(words)} words, {len(numbers)} coefficients and {rows} rows"
            )
        object.__setattr__(self, "words", words)
        object.__setattr__(self, "coefficients", tuple(map(float, numbers)))

    @property
    def by_word(self) -> tuple[float, ...]:
        """The coefficient of every word."""
        assert isinstance(self.coefficients, tuple)
        return self.coefficients

    def value(self, field: Tensor) -> Tensor:
        total = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
        plan, paths = self._paths(field)
        for factor, (p, s) in zip(self._factors(field, plan), plan.loops, strict=True):
            left, right = self._side(paths, p), self._side(paths, s)
            if isinstance(self.group, SUN):
                # Re tr(A B^dagger) is the real scalar product of the entries.
                trace = (torch.view_as_real(left) * torch.view_as_real(right)).sum((-3, -2, -1))
                trace = trace / self.group.n
            else:
                trace = torch.cos(left - right)
            total = total - sum_over_sites(factor * trace)
        return total

    def force(self, field: Tensor) -> Tensor:
        r"""Return the algebra gradient, shaped like the field.

        :math:`\frac{1}{2N} F` for SU(N) and F for U(1), the derivative of
        :mod:`flowmc.loop_plan` at the links.
        """
        plan, paths = self._paths(field)
        derivatives: list[Tensor] = []
        for factor, (p, s) in zip(self._factors(field, plan), plan.loops, strict=True):
            left, right = self._side(paths, p), self._side(paths, s)
            if isinstance(self.group, SUN):
                holonomy = traceless_antihermitian(left @ right.mH)
                if isinstance(factor, Tensor):
                    factor = factor[..., None, None]
            else:
                holonomy = torch.sin(left - right)
            derivatives.append(factor * holonomy)
        count = len(plan.loops)
        derivatives += [derivatives[0]] * len(plan.joints)

        def derivative(path: int) -> Tensor:
            total = torch.zeros_like(field[:, 0])
            for part in plan.parts[path]:
                q = derivatives[part.source]
                if part.along is not None and isinstance(self.group, SUN):
                    u = paths[part.along]
                    q = u.mH @ q @ u
                total = total + part.sign * _moved(q, part.at)
            return total

        # Longer paths come after those that they are made of.
        for index in reversed(range(len(plan.joints))):
            derivatives[count + index] = derivative(plan.dimensions + index)
        links = torch.stack([derivative(mu) for mu in range(plan.dimensions)], 1)
        return links / (2 * self.group.n) if isinstance(self.group, SUN) else links

    def _paths(self, field: Tensor) -> tuple[Plan, list[Tensor]]:
        plan = plan_for(self.words, field.shape[1])
        paths = list(field.unbind(1))
        for joint in plan.joints:
            left, right = paths[joint.left], _moved(paths[joint.right], joint.at)
            if joint.is_inverted:
                right = self.group.inverse(right)
            paths.append(self.group.compose(left, right))
        return plan, paths

    def _side(self, paths: Sequence[Tensor], side: Side) -> Tensor:
        path = paths[side.first]
        if side.second is None:
            return path
        return self.group.compose(path, _moved(paths[side.second], side.at))

    def _factors(self, field: Tensor, plan: Plan) -> list[Tensor | float]:
        """Return coefficient times weight of every loop, where it begins in the plan."""
        if self.weights is None:
            return list(self.by_word)
        factors: list[Tensor | float] = []
        rows = self.weights.rows(field)
        for number, row, corner in zip(self.by_word, rows, plan.corners, strict=True):
            if row is None:
                factors.append(number)
            else:
                at_corner = _moved(row[None], [-step for step in corner])
                factors.append(number * at_corner)
        return factors

    def times(self, factor: float) -> Loops:
        return replace(self, coefficients=tuple(factor * number for number in self.by_word))

    def plus(self, other: Term) -> Loops | None:
        if not isinstance(other, Loops) or other.group != self.group:
            return None
        if self.weights is None and other.weights is None:
            numbers = dict.fromkeys((*self.words, *other.words), 0.0)
            for term in (self, other):
                for word, number in zip(term.words, term.by_word, strict=True):
                    numbers[word] += number
            return Loops(self.group, tuple(numbers), tuple(numbers.values()))
        if self.words == other.words and self.weights is other.weights:
            both = zip(self.by_word, other.by_word, strict=True)
            return replace(self, coefficients=tuple(a + b for a, b in both))
        return None


def _moved(sites: Tensor, at: Sequence[int]) -> Tensor:
    """Return a field of sites ``(chains, *L, ...)`` as seen from a displacement."""
    for mu, steps in enumerate(at):
        if steps:
            sites = shift(sites, mu, steps)
    return sites
