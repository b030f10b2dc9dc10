r"""Masked layers of gauge links: the map, its inverse and its Jacobian, for any choice of links.

One layer moves some links of one direction, no two of which share a closing path
(:mod:`flowmc.flows.gauge.link_masks`),

.. math:: U' = e^{Q} U, \qquad Q = -(U C)_{TA}, \qquad C = \sum_k c_k C_k ,

where the :math:`C_k` are products of frozen links along paths that close the moved link.  The map
is gauge equivariant, and its Jacobian is one small matrix per link
(:mod:`flowmc.flows.gauge.link_jacobian`).
"""

from __future__ import annotations

import functools
import math
from abc import abstractmethod
from collections.abc import Iterator

import torch
from torch import Tensor

from flowmc.flows.base import Flow
from flowmc.flows.gauge.link_jacobian import (
    link_generator,
    link_jacobian,
    log_determinant,
    taylor_degree,
)
from flowmc.flows.gauge.link_masks import LinkLayer, put_links, take_links
from flowmc.groups import SUN, U1, complex_product, traceless_antihermitian
from flowmc.lattice import sum_over_sites
from flowmc.native import find_link_solver

__all__ = ["MaskedLinkFlow", "iteration_limit"]


class MaskedLinkFlow(Flow):
    r"""A sequence of masked layers; subclasses choose the links and the coefficients.

    The layers work on a buffer of links, of which :meth:`_enter` and :meth:`_leave` know how it
    comes from a field and goes back: all of them, or those that matter.

    The coefficients obey :math:`\sum_k |c_k| \le` ``bound`` :math:`< 1` for every link by
    construction, so that each layer is a bijection and its inverse a contracting fixed-point
    iteration (proof in :mod:`flowmc.flows.gauge.link_jacobian`; a product of unitary matrices has
    singular values one, hence C at most :math:`\sum_k |c_k|`).

    Attributes:
        group: U(1) or SU(N).
        lattice: extents of the fields.
        bound: upper bound of :math:`\sum_k |c_k|`.
    """

    group: U1 | SUN
    lattice: tuple[int, ...]
    bound: float

    @abstractmethod
    def _schedule(self, device: torch.device) -> Iterator[tuple[int, int, LinkLayer]]:
        """Yield (sweep, number of the layer in it, layer) in the order of the forward map."""

    @abstractmethod
    def _coefficients(self, paths: Tensor, sweep: int, number: int, layer: LinkLayer) -> Tensor:
        """Return the c_k before they are bounded, to be broadcast to ``(chains, links, paths)``.

        ``paths`` are the products along the closing paths, ``(chains, links, paths, *element)``.
        """

    @abstractmethod
    def _enter(self, links: Tensor) -> Tensor:
        """Return the buffer of links from all links ``(chains, d V, *element)``; a new tensor."""

    @abstractmethod
    def _leave(self, buffer: Tensor, links: Tensor) -> Tensor:
        """Return all links with those of the buffer in place; ``links`` are those entered."""

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        doubled = self._flatten(x)
        for sweep, number, layer in self._schedule(x.device):
            doubled, link, paths = self._gather(doubled, layer)
            closing, kappa = self._closing(paths, sweep, number, layer)
            product = self._product(link, closing)
            moved = self.group.move(link, link_generator(self.group, product))
            log_density = log_density - self._log_determinant(product, kappa)
            doubled = self._replace(doubled, layer, moved)
        return self._unflatten(doubled, x), log_density

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        doubled = self._flatten(y)
        for sweep, number, layer in reversed(list(self._schedule(y.device))):
            doubled, target, paths = self._gather(doubled, layer)
            closing, kappa = self._closing(paths, sweep, number, layer)
            link, converged = self._solve(target, closing, kappa)
            change = self._log_determinant(self._product(link, closing), kappa)
            log_density = log_density + torch.where(converged, change, torch.nan)
            doubled = self._replace(doubled, layer, link)
        return self._unflatten(doubled, y), log_density

    def _flatten(self, field: Tensor) -> Tensor:
        """Return the buffer and behind it its inverses, ``(chains, 2 links, *element)``."""
        expected = (len(self.lattice), *self.lattice, *self.group.element_shape)
        if tuple(field.shape[1:]) != expected:
            raise ValueError(
                f"field of shape {tuple(field.shape)} does not fit the {type(self).__name__}, "
                f"which needs (chains, {', '.join(map(str, expected))})"
            )
        links = self._enter(field.reshape(field.shape[0], -1, *self.group.element_shape))
        return torch.cat([links, self.group.inverse(links)], dim=1)

    def _unflatten(self, doubled: Tensor, like: Tensor) -> Tensor:
        links = like.reshape(like.shape[0], -1, *self.group.element_shape)
        return self._leave(doubled[:, : doubled.shape[1] // 2], links).reshape(like.shape)

    def _gather(self, doubled: Tensor, layer: LinkLayer) -> tuple[Tensor, Tensor, Tensor]:
        """Return the buffer, the active links and the products along their closing paths.

        The products are ``(chains, links, paths, *element)``, complex.
        """
        doubled, gathered = take_links(doubled, layer.gathered)
        link, *pieces = gathered.split([index.numel() for index in layer.index_tensors], dim=1)
        products = []
        for piece, index in zip(pieces, layer.paths.values(), strict=True):
            shape = (piece.shape[0], *index.shape, *self.group.element_shape)
            factors = piece.reshape(shape).unbind(1)
            products.append(functools.reduce(self.group.compose, factors))
        paths = torch.cat(products, dim=2) if len(products) > 1 else products[0]
        if isinstance(self.group, U1):
            paths = torch.polar(torch.ones_like(paths), paths)
        return doubled, link, paths

    def _replace(self, doubled: Tensor, layer: LinkLayer, moved: Tensor) -> Tensor:
        index = torch.cat([layer.active, layer.active + doubled.shape[1] // 2])
        return put_links(doubled, index, torch.cat([moved, self.group.inverse(moved)], dim=1))

    def _closing(
        self, paths: Tensor, sweep: int, number: int, layer: LinkLayer
    ) -> tuple[Tensor, float]:
        r"""Return C, ``(chains, links, *element)`` complex, and a bound of :math:`\sum_k |c_k|`."""
        coefficients = self._bounded(self._coefficients(paths, sweep, number, layer))
        sums = coefficients.detach().abs().sum(-1)
        # A chain that is not finite says nothing about the others.
        kappa = float(torch.where(torch.isfinite(sums), sums, 0).amax())
        real = torch.view_as_real(paths).reshape(*paths.shape[:3], -1)
        coefficients = coefficients.to(real.dtype).expand(real.shape[:3]).unsqueeze(-2)
        closing = (coefficients @ real).reshape(*paths.shape[:2], *self.group.element_shape, 2)
        return torch.view_as_complex(closing), kappa

    def _product(self, link: Tensor, closing: Tensor) -> Tensor:
        """Return M = U C."""
        if isinstance(self.group, U1):
            return complex_product(torch.polar(torch.ones_like(link), link), closing)
        return link @ closing

    def _log_determinant(self, product: Tensor, kappa: float) -> Tensor:
        return sum_over_sites(log_determinant(self.group, product, taylor_degree(kappa)))

    def _bounded(self, coefficients: Tensor) -> Tensor:
        r"""Scale path coefficients (last axis) such that :math:`\sum |c_k| \le` bound.

        The sum T becomes bound tanh(T / bound): unchanged when small.
        """
        ratio = coefficients.abs().sum(-1, keepdim=True) / self.bound
        small = ratio < 1e-4
        safe = torch.where(small, torch.ones_like(ratio), ratio)
        return coefficients * torch.where(small, 1 - ratio**2 / 3, torch.tanh(safe) / safe)

    def _solve(self, target: Tensor, closing: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
        """Return the links that move to ``target`` and which chains converged, ``(chains,)``."""
        with torch.no_grad():
            link, converged = self._iterate(target, closing, kappa)
        if torch.is_grad_enabled() and (target.requires_grad or closing.requires_grad):
            link = self._attach(link, target, closing, kappa)
        return link, converged

    def _iterate(self, target: Tensor, closing: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
        r"""Iterate :math:`U \to e^{-Q(U)} U'` to round-off, each chain on its own.

        In double precision: what is left of the iteration has the same sign on all links and would
        add up over a lattice, where rounding the result does not.
        """
        precision = torch.finfo(torch.float64).eps
        limit = iteration_limit(kappa, precision)
        # The error left is at most kappa / (1 - kappa) times the last change.
        threshold = precision * max(8.0, 32 * min(1.0, (1 - kappa) / max(kappa, 1e-3)))
        solve = find_link_solver(self.group, target)
        if solve is not None:
            return solve(target, closing, limit, threshold)
        dtype = target.dtype
        target, closing = target.to(_wide(dtype)), closing.to(torch.complex128)
        link = target
        converged = torch.zeros(target.shape[0], dtype=torch.bool, device=target.device)
        for _ in range(limit):
            generator = link_generator(self.group, self._product(link, closing))
            update = self.group.move(target, -generator)
            change = (update - link).abs().reshape(len(link), -1).amax(1)
            # A chain that has converged stays as it is, whatever the others still need.
            fixed = converged.reshape(-1, *[1] * (link.dim() - 1))
            link = torch.where(fixed, link, update)
            converged = converged | (change <= threshold)
            if bool(converged.all()):
                break
        return link.to(dtype), converged

    def _attach(self, link: Tensor, target: Tensor, closing: Tensor, kappa: float) -> Tensor:
        """Give the solution its derivatives: one Newton step, of size zero."""
        product = self._product(link, closing)
        generator = link_generator(self.group, product)
        moved = self.group.move(link, generator)
        if isinstance(self.group, U1):
            return link + (target - moved) / (1 - product.real).detach()
        assert isinstance(self.group, SUN)
        rotation = self.group.exp(generator.detach())
        residual = traceless_antihermitian(rotation.mH @ (target @ moved.mH) @ rotation)
        matrix = link_jacobian(self.group, product.detach(), taylor_degree(kappa))
        right = self.group.algebra_to_coordinates(residual).unsqueeze(-1)
        step = torch.linalg.solve(matrix, right).squeeze(-1)
        return self.group.move(link, self.group.coordinates_to_algebra(step))


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float64)


def iteration_limit(kappa: float, precision: float) -> int:
    """Return how many iterations a contraction by ``kappa`` needs to reach ``precision``."""
    return 10 + math.ceil(math.log(precision / 10) / math.log(min(max(kappa, 1e-3), 0.999)))
