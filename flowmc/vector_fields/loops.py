"""Gradients of traced loops: gauge-covariant vector fields with divergences in closed form."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.groups import SUN
from flowmc.lattice import sum_over_sites
from flowmc.loops import SHAPES, Word, images, loop_holonomy, loop_trace
from flowmc.vector_fields.base import VectorFields

__all__ = ["LoopFields"]

_CHARACTERS = ("plaquette", "adjoint", "symmetric")
_DEFAULT = ("plaquette", "adjoint", "symmetric", "rectangle", "chair", "parallelogram", "square")


class LoopFields(VectorFields):
    r"""The gradients :math:`v_k = \sum_a T_a \partial_a W_k` of sums of loops.

    A traced loop without repeated links is an eigenfunction of the Laplacian of the group at each
    of its n links, and so is a character of the plaquette:

    .. math:: \mathrm{div}\,v_k = \sum_{l,a} \partial^a_l \partial^a_l W_k = -n\,C_2(r)\,W_k,

    with the quadratic Casimir invariants (tr T_a T_b = -1/2 delta) :math:`(N^2-1)/2N` of the
    fundamental, N of the adjoint and (N-1)(N+2)/N of the symmetric representation, and the squared
    charge for U(1).  Flows along such gradients are those of M. Luescher, arXiv:0907.5491, and of
    Bacchio et al., arXiv:2212.08469.

    Args:
        action: a gauge theory.
        loops: "plaquette", "adjoint" and "symmetric" (the plaquette in these representations; for
            U(1) with charges 1, 2 and 3), "rectangle", "chair", "parallelogram", "square",
            "long_rectangle".  By default all but the last, as far as they exist in the theory's
            dimension and group.
        split_time: keep loops with links in the last direction apart from the others: two fields
            for every shape, for insertions and actions that treat time differently.

    Raises:
        ValueError: for a scalar theory, an unknown loop, or one that does not exist in so few
            dimensions, in this group, or on so small a lattice.
    """

    def __init__(
        self, action: Action, *, loops: Sequence[str] | None = None, split_time: bool = False
    ) -> None:
        if not action.is_gauge:
            raise ValueError(f"loops need a gauge theory, but the theory is {action!r}")
        self.action, self.group = action, action.group
        chosen = self._existing() if loops is None else tuple(loops)
        for name in chosen:
            if name not in _CHARACTERS and name not in SHAPES:
                known = ", ".join(dict.fromkeys([*_CHARACTERS, *SHAPES]))
                raise ValueError(f"unknown loop {name!r}: use {known}")
            if name not in self._existing((name,)):
                raise ValueError(
                    f"the loop {name!r} does not exist for {action!r} (without repeated links)"
                )
        self._members: list[tuple[str, tuple[Word, ...]]] = []
        names = []
        for name in chosen:
            words = images(SHAPES[_shape(name)], action.dimensions)
            time = action.dimensions
            parts = {"": words}
            if split_time:
                parts = {
                    "_space": tuple(w for w in words if time not in map(abs, w)),
                    "_time": tuple(w for w in words if time in map(abs, w)),
                }
            for suffix, some in parts.items():
                if some:
                    self._members.append((name, some))
                    names.append(name + suffix)
        self.names = tuple(names)

    def velocities(self, field: Tensor) -> list[Tensor]:
        return self.evaluate(field)[0]

    def divergences(self, field: Tensor, rng: torch.Generator | None = None) -> Tensor:
        sums = [self._sum(field, name, words) for name, words in self._members]
        return self._laplacians(sums)

    def evaluate(
        self, field: Tensor, rng: torch.Generator | None = None
    ) -> tuple[list[Tensor], Tensor]:
        velocities, sums = [], []
        for name, words in self._members:
            # One graph at a time: those of all loops together would not fit.
            with torch.enable_grad():
                leaf = field.detach().requires_grad_(True)
                total = self._sum(leaf, name, words)
                (euclidean,) = torch.autograd.grad(total.sum(), leaf)
            velocities.append(self.group.gradient_from_euclidean(field, euclidean))
            sums.append(total.detach())
        return velocities, self._laplacians(sums)

    def _laplacians(self, sums: Sequence[Tensor]) -> Tensor:
        columns = [
            total * -(len(words[0]) * self._casimir(name))
            for total, (name, words) in zip(sums, self._members, strict=True)
        ]
        return torch.stack(columns, 1)

    def _sum(self, links: Tensor, name: str, words: tuple[Word, ...]) -> Tensor:
        if name == "plaquette" or name not in _CHARACTERS:
            return sum_over_sites(loop_trace(links, words, self.group))
        total = torch.zeros(len(links), dtype=torch.float64, device=links.device)
        for word in words:
            total = total + sum_over_sites(self._character(links, name, word))
        return total

    def _character(self, links: Tensor, name: str, word: Word) -> Tensor:
        product = loop_holonomy(links, word, self.group)
        if not isinstance(self.group, SUN):
            return torch.cos({"adjoint": 2, "symmetric": 3}[name] * product)
        trace = torch.diagonal(product, dim1=-2, dim2=-1).sum(-1)
        if name == "adjoint":
            return trace.real.square() + trace.imag.square() - 1
        square = torch.diagonal(product @ product, dim1=-2, dim2=-1).sum(-1)
        return ((trace * trace + square) / 2).real

    def _casimir(self, name: str) -> float:
        if not isinstance(self.group, SUN):
            return {"adjoint": 4.0, "symmetric": 9.0}.get(name, 1.0)
        n = self.group.n
        special = {"adjoint": float(n), "symmetric": (n - 1) * (n + 2) / n}
        return special.get(name, (n * n - 1) / (2 * n))

    def _existing(self, among: Sequence[str] = _DEFAULT) -> tuple[str, ...]:
        """Return the loops that are eigenfunctions here: none of their links occurs twice."""
        found = []
        for name in among:
            # For SU(2) the symmetric representation is the adjoint.
            if name == "symmetric" and isinstance(self.group, SUN) and self.group.n == 2:
                continue
            word = SHAPES[_shape(name)]
            if max(map(abs, word)) > self.action.dimensions:
                continue
            words = images(word, self.action.dimensions)
            if all(self._is_simple(word) for word in words):
                found.append(name)
        return tuple(found)

    def _is_simple(self, word: Word) -> bool:
        """Whether no link of the periodic lattice occurs twice in a loop."""
        site, links = [0] * self.action.dimensions, set()
        for step in word:
            mu = abs(step) - 1
            if step < 0:
                site[mu] -= 1
            wrapped = tuple(x % extent for x, extent in zip(site, self.action.lattice, strict=True))
            links.add((mu, wrapped))
            if step > 0:
                site[mu] += 1
        return len(links) == len(word)


def _shape(name: str) -> str:
    return "plaquette" if name in _CHARACTERS else name
