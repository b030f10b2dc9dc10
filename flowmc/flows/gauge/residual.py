r"""Masked residual flows of gauge links: exact smearing-like maps between nearby couplings.

One layer (:mod:`flowmc.flows.gauge.masked_links`) moves the links of one direction on one colour of
sites, along staples or longer paths.  Residual layers of this kind are described in
R. Abbott et al., "Normalizing flows for lattice gauge theory in arbitrary space-time dimension",
arXiv:2305.02402.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.flows.gauge.link_masks import LOOPS, LinkLayer, link_layers
from flowmc.flows.gauge.masked_links import MaskedLinkFlow
from flowmc.groups import SUN, U1

__all__ = ["ResidualFlow"]


class ResidualFlow(MaskedLinkFlow):
    r"""Sweeps of masked residual layers over all links of a U(1) or SU(N) gauge field.

    A sweep moves every link once.  With plaquettes only it has 2d layers and needs even extents;
    rectangles and chairs need a finer mask, 16 d layers in three and four dimensions (8 d in two)
    and extents divisible by four.

    A good single coefficient between beta and beta + delta_beta is delta_beta / 64 for SU(3) in
    four dimensions.  Sweeps with equal loops compose to about one sweep with the sum of their
    coefficients, so more of them help only when that sum is large; larger loops, or coefficients
    that depend on the surroundings, reach maps that no number of plaquette sweeps does.

    With all parameters zero the flow is the identity, which is how it starts unless
    ``initial_coefficient`` is given.

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
        if not action.is_gauge or not isinstance(action.group, (U1, SUN)):
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

    def _schedule(self, device: torch.device) -> Iterator[tuple[int, int, LinkLayer]]:
        """Yield (sweep, number of the layer in it, layer) in the order of the forward map."""
        if device not in self._layers:
            self._layers[device] = [layer.to(device) for layer in self._layers[torch.device("cpu")]]
        for sweep in range(self.sweeps):
            for number, layer in enumerate(self._layers[device]):
                yield sweep, number, layer

    def _enter(self, links: Tensor) -> Tensor:
        return links

    def _leave(self, buffer: Tensor, links: Tensor) -> Tensor:
        return self.group.project(buffer) if isinstance(self.group, U1) else buffer

    def _coefficients(self, paths: Tensor, sweep: int, number: int, layer: LinkLayer) -> Tensor:
        group = {"sweep": 0, "direction": layer.direction, "layer": number}[self.share]
        weight = self.weight[sweep, group]
        counts = torch.tensor(self._counts, dtype=weight.dtype, device=weight.device)
        coefficients = torch.repeat_interleave(weight / counts, counts.to(torch.int64))
        if self.network is not None:
            coefficients = coefficients + self.network[sweep](paths, self.group)
        return coefficients

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


class _Swish(nn.Module):
    """x / (1 + e^-x), whose rounding by torch's own depends on the number of threads."""

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * x * (1 + torch.tanh(0.5 * x))


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
            _Swish(),
            nn.Linear(hidden, hidden, dtype=torch.float64),
            _Swish(),
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
        outputs = torch.stack([agreement, order], dim=-1)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                # In double precision whatever that of the weights: how a product in single
                # precision is rounded depends on the threads.
                weight, bias = layer.weight.double(), layer.bias.double()
                outputs = nn.functional.linear(outputs, weight, bias)
            else:
                outputs = layer(outputs)
        outputs = outputs.split(self.counts, dim=2)
        return torch.cat(
            [
                part[..., index] / count
                for index, (part, count) in enumerate(zip(outputs, self.counts, strict=True))
            ],
            dim=2,
        )
