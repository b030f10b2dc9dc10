r"""Masked residual flows of gauge links: exact smearing-like maps between nearby couplings.

One layer moves the links of one direction on one colour of sites (:mod:`flowmc.flows.link_masks`),

.. math:: U' = e^{Q} U, \qquad Q = -(U C)_{TA}, \qquad C = \sum_k c_k C_k ,

where the :math:`C_k` are products of frozen links along paths that close the moved link, such as
the :math:`2(d-1)` staples.  The map is gauge equivariant, and its Jacobian is one small matrix per
link (:mod:`flowmc.flows.link_jacobian`).  Residual layers of this kind are described in
R. Abbott et al., "Normalizing flows for lattice gauge theory in arbitrary space-time dimension",
arXiv:2305.02402.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.flows.base import Flow
from flowmc.flows.link_jacobian import (
    link_generator,
    link_jacobian,
    log_determinant,
    taylor_degree,
)
from flowmc.flows.link_masks import LOOPS, LinkLayer, link_layers, put_links, take_links
from flowmc.groups import SUN, U1, traceless_antihermitian

__all__ = ["ResidualFlow"]


class ResidualFlow(Flow):
    r"""Sweeps of masked residual layers over all links of a U(1) or SU(N) gauge field.

    A sweep moves every link once.  With plaquettes only it has 2d layers and needs even extents;
    rectangles and chairs need a finer mask, 16 d layers in three and four dimensions (8 d in two)
    and extents divisible by four.

    A good single coefficient between beta and beta + delta_beta is delta_beta / 64 for SU(3) in
    four dimensions.  Sweeps with equal loops compose to about one sweep with the sum of their
    coefficients, so more of them help only when that sum is large; larger loops, or coefficients
    that depend on the surroundings, reach maps that no number of plaquette sweeps does.

    The coefficients obey :math:`\sum_k |c_k| \le` ``bound`` :math:`< 1` for every link by
    construction, so that each layer is a bijection and its inverse a contracting fixed-point
    iteration (proof in :mod:`flowmc.flows.link_jacobian`; a product of unitary matrices has
    singular values one, hence C at most :math:`\sum_k |c_k|`).  With all parameters zero the flow
    is the identity, which is how it starts unless ``initial_coefficient`` is given.

    Args:
        action: a gauge action; it provides the group and the lattice.
        sweeps: number of sweeps, >= 1, each with parameters of its own.
        loops: which loops the paths close: ``"plaquette"``, ``"rectangle"`` (planar 2x1) and
            ``"chair"`` (2x1, bent by 90 degrees; three or more dimensions).
        coefficients: ``"constant"``, one number per loop and position of the link in it; or
            ``"network"``, to which a perceptron adds a function of frozen gauge-invariant
            quantities, path by path.
        share: what has constants of its own: each ``"sweep"``, each ``"direction"`` in it (for
            anisotropic couplings or lattices), or each ``"layer"``.
        hidden: width of the two hidden layers of the network.
        initial_coefficient: initial value of c for the plaquettes.
        bound: upper bound of :math:`\sum_k |c_k|`, between 0 and 1.

    Raises:
        ValueError: for an action without links, unknown loops, or extents that do not fit.
    """

    transfers_to_other_lattices = True

    def __init__(
        self,
        action: Action,
        *,
        sweeps: int = 1,
        loops: Sequence[str] = ("plaquette",),
        coefficients: Literal["constant", "network"] = "constant",
        share: Literal["sweep", "direction", "layer"] = "sweep",
        hidden: int = 16,
        initial_coefficient: float = 0.0,
        bound: float = 0.9,
    ) -> None:
        super().__init__()
        if not isinstance(action.group, (U1, SUN)):
            raise ValueError(
                f"a residual flow moves links of U(1) or SU(N), but {action!r} has none"
            )
        if sweeps < 1:
            raise ValueError(f"a residual flow needs at least one sweep, got {sweeps}")
        if not 0 < bound < 1:
            raise ValueError(f"bound must lie between 0 and 1 for a bijection, got {bound}")
        unknown = [loop for loop in loops if loop not in LOOPS]
        if unknown or not loops:
            raise ValueError(f"loops must be some of {', '.join(LOOPS)}, got {list(loops)}")
        if "chair" in loops and action.dimensions < 3:
            raise ValueError("chairs exist in three or more dimensions only: drop them from loops")
        self.group = action.group
        self.lattice = action.lattice
        self.sweeps, self.loops, self.bound = sweeps, tuple(loops), bound
        self.coefficients, self.share = coefficients, share
        self._layers = {torch.device("cpu"): link_layers(self.lattice, self.loops)}
        first = self._layers[torch.device("cpu")][0]
        self.positions = tuple(first.paths)
        self._counts = [paths.shape[2] for paths in first.paths.values()]
        groups = {"sweep": 1, "direction": action.dimensions, "layer": self.layers_per_sweep}
        start = torch.zeros(len(self.positions), dtype=torch.float64)
        if initial_coefficient:
            start[self._plaquette_position()] = self._unbounded(initial_coefficient)
        # The weight is the sum over the paths of a position, so that one learning rate suits all.
        self.weight = nn.Parameter(start.repeat(sweeps, groups[share], 1))
        self.network = (
            nn.ModuleList(_PathNetwork(hidden, self._counts) for _ in range(sweeps))
            if coefficients == "network"
            else None
        )

    @property
    def layers_per_sweep(self) -> int:
        """Number of layers of one sweep."""
        return len(self._layers[torch.device("cpu")])

    def extra_repr(self) -> str:
        parameters = sum(parameter.numel() for parameter in self.parameters())
        return (
            f"{self.group.name}, {'x'.join(map(str, self.lattice))}, sweeps={self.sweeps}, "
            f"loops={list(self.loops)}, coefficients={self.coefficients!r}, "
            f"share={self.share!r}, bound={self.bound:g}, parameters={parameters}"
        )

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

    def _schedule(self, device: torch.device) -> Iterator[tuple[int, int, LinkLayer]]:
        """Yield (sweep, number of the layer in it, layer) in the order of the forward map."""
        if device not in self._layers:
            self._layers[device] = [layer.to(device) for layer in self._layers[torch.device("cpu")]]
        for sweep in range(self.sweeps):
            for number, layer in enumerate(self._layers[device]):
                yield sweep, number, layer

    def _flatten(self, field: Tensor) -> Tensor:
        """Return the links and behind them their inverses, ``(chains, 2 d V, *element)``."""
        expected = (len(self.lattice), *self.lattice, *self.group.element_shape)
        if tuple(field.shape[1:]) != expected:
            raise ValueError(
                f"field of shape {tuple(field.shape)} does not fit the residual flow, which needs "
                f"(chains, {', '.join(map(str, expected))})"
            )
        links = field.reshape(field.shape[0], -1, *self.group.element_shape)
        return torch.cat([links, self.group.inverse(links)], dim=1)

    def _unflatten(self, doubled: Tensor, like: Tensor) -> Tensor:
        links = doubled[:, : doubled.shape[1] // 2].reshape(like.shape)
        return self.group.project(links) if isinstance(self.group, U1) else links

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
        group = {"sweep": 0, "direction": layer.direction, "layer": number}[self.share]
        weight = self.weight[sweep, group]
        counts = torch.tensor(self._counts, dtype=weight.dtype, device=weight.device)
        coefficients = torch.repeat_interleave(weight / counts, counts.to(torch.int64))
        if self.network is not None:
            coefficients = coefficients + self.network[sweep](paths, self.group)
        coefficients = self._bounded(coefficients)
        kappa = float(coefficients.detach().abs().sum(-1).amax())
        real = torch.view_as_real(paths).reshape(*paths.shape[:3], -1)
        coefficients = coefficients.to(real.dtype).expand(real.shape[:3]).unsqueeze(-2)
        closing = (coefficients @ real).reshape(*paths.shape[:2], *self.group.element_shape, 2)
        return torch.view_as_complex(closing), kappa

    def _product(self, link: Tensor, closing: Tensor) -> Tensor:
        """Return M = U C."""
        if isinstance(self.group, U1):
            return torch.polar(torch.ones_like(link), link) * closing
        return link @ closing

    def _log_determinant(self, product: Tensor, kappa: float) -> Tensor:
        return log_determinant(self.group, product, taylor_degree(kappa)).sum(1)

    def _bounded(self, coefficients: Tensor) -> Tensor:
        r"""Scale path coefficients (last axis) such that :math:`\sum |c_k| \le` bound.

        The sum T becomes bound tanh(T / bound): unchanged when small.
        """
        ratio = coefficients.abs().sum(-1, keepdim=True) / self.bound
        small = ratio < 1e-4
        safe = torch.where(small, torch.ones_like(ratio), ratio)
        return coefficients * torch.where(small, 1 - ratio**2 / 3, torch.tanh(safe) / safe)

    def _plaquette_position(self) -> int:
        if "plaquette" not in self.positions:
            raise ValueError("initial_coefficient belongs to the plaquette: add it to loops")
        return self.positions.index("plaquette")

    def _unbounded(self, coefficient: float) -> float:
        """Return the weight for which the plaquettes get the coefficient given."""
        total = coefficient * self._counts[self._plaquette_position()]
        if abs(total) >= self.bound:
            raise ValueError(
                f"initial_coefficient {coefficient:g} times {self._counts[0]} staples reaches the "
                f"bound {self.bound:g}: take it smaller"
            )
        return self.bound * math.atanh(total / self.bound)

    def _solve(self, target: Tensor, closing: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
        """Return the links that move to ``target`` and which chains converged, ``(chains,)``."""
        with torch.no_grad():
            link, converged = self._iterate(target, closing, kappa)
        if torch.is_grad_enabled() and (target.requires_grad or closing.requires_grad):
            link = self._attach(link, target, closing, kappa)
        return link, converged

    def _iterate(self, target: Tensor, closing: Tensor, kappa: float) -> tuple[Tensor, Tensor]:
        r"""Iterate :math:`U \to e^{-Q(U)} U'` to round-off, each chain on its own."""
        precision = torch.finfo(target.dtype).eps
        limit = iteration_limit(kappa, precision)
        # The error left is at most kappa / (1 - kappa) times the last change.
        threshold = precision * max(8.0, 32 * min(1.0, (1 - kappa) / max(kappa, 1e-3)))
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
        return link, converged

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


def iteration_limit(kappa: float, precision: float) -> int:
    """Return how many iterations a contraction by ``kappa`` needs to reach ``precision``."""
    return 10 + math.ceil(math.log(precision / 10) / math.log(min(max(kappa, 1e-3), 0.999)))


class _PathNetwork(nn.Module):
    r"""Adds to each path's coefficient a function of two frozen invariants; zero at first.

    With B the mean of the path products of a link, they are
    :math:`\tfrac1N \mathrm{Re\,tr}(C_k B^\dagger)`, how path k agrees with the others, and
    :math:`\tfrac1N \mathrm{tr}\,B B^\dagger`, how ordered the surroundings of the link are.
    """

    def __init__(self, hidden: int, counts: Sequence[int]) -> None:
        super().__init__()
        self.counts = list(counts)
        self.layers = nn.Sequential(
            nn.Linear(2, hidden, dtype=torch.float64),
            nn.SiLU(),
            nn.Linear(hidden, hidden, dtype=torch.float64),
            nn.SiLU(),
            nn.Linear(hidden, len(self.counts), dtype=torch.float64),
        )
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, products: Tensor, group: U1 | SUN) -> Tensor:
        """Return ``(chains, links, paths)`` from ``(chains, links, paths, *element)``."""
        size = 1 if isinstance(group, U1) else group.n
        real = torch.view_as_real(products).reshape(*products.shape[:3], -1).to(torch.float64)
        mean = real.mean(2, keepdim=True)
        agreement = (real * mean).sum(-1) / size
        order = mean.square().sum(-1).expand_as(agreement) / size
        outputs = self.layers(torch.stack([agreement, order], dim=-1))
        outputs = outputs.split(self.counts, dim=2)
        return torch.cat(
            [
                part[..., index] / count
                for index, (part, count) in enumerate(zip(outputs, self.counts, strict=True))
            ],
            dim=2,
        )
