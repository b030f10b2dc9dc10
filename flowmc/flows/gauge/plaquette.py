r"""A flow of the plaquettes of two-dimensional U(1) gauge theory.

In two dimensions the plaquettes are independent of each other but for one condition on the torus:
the angles :math:`P_x \in (-\pi, \pi)` sum up to :math:`2\pi Q`, with the topological charge Q.  A
map between two couplings can therefore act on each plaquette alone, at all distances at once, where
layers of masked links need as many of them as the lattice is wide.

With an odd monotone map h of the circle (:mod:`flowmc.flows.parts.splines`),

.. math:: \tan\tfrac12 P'_x = \tan\tfrac12 h(P_x) + c , \qquad \sum_x P'_x = \sum_x P_x = 2\pi Q ,

where the second equation determines c, one number per field: the sum rises strictly from
:math:`-\pi V` to :math:`\pi V` with c, so that there is exactly one solution, for every h and every
field.  The same holds for the inverse, which makes the map a bijection of every charge sector.

The links follow from the change of the plaquettes, which has mean zero, through the potential
:math:`\varphi = -\Delta^{-1} (P' - P)`: the link in direction 0 (1) grows by the backward
difference of :math:`\varphi` in direction 1 (minus direction 0).  Gauge
degrees of freedom and the two holonomies keep their values, and in coordinates of these and of
V - 1 plaquettes the Jacobian is that of the plaquettes alone.  With
:math:`g_x = \partial P'_x / \partial P_x` at fixed c and :math:`u_x = \partial P'_x/\partial c`,

.. math::
    \det \frac{\partial P'}{\partial P} = \Big(\prod_x g_x\Big)
    \frac{\sum_x u_x / g_x}{\sum_x u_x} .
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.flows.base import Flow
from flowmc.flows.parts.splines import OddCircleSpline
from flowmc.groups import U1
from flowmc.lattice import lattice_momenta_squared, shift, sum_over_sites
from flowmc.plaquettes import plaquette_angles

__all__ = ["PlaquetteFlow"]

# Newton's method takes four to six steps; bisection ends the few that it cannot.
_ITERATIONS = 100


# Share of uniform plaquettes in a transport.
_UNIFORM = 1e-5


class PlaquetteFlow(Flow):
    r"""A monotone map of every plaquette of two-dimensional U(1) theory; see the module.

    The map commutes with gauge transformations, all translations and reflections, and charge
    conjugation.  It keeps the topological charge.  The one function h serves all plaquettes, so
    that the weights belong to no lattice size, and what a map from one coupling to another leaves
    to the Metropolis test does not grow with the volume.  With the exact transport of a single
    plaquette for h it is little more than the different width of the distribution of Q: swaps of
    beta = 3 and 7 are accepted with 68 % on 8x8, 16x16 and 32x32, without any training.

    Computed in float64 whatever the precision of the field.  A chain whose c was not found to
    rounding has NaN as its density.

    Args:
        action: an action of U(1) links in two dimensions; it provides the lattice.
        bins: K, the number of bins of h between 0 and pi; there are 3 K + 1 parameters.  With all
            of them zero the flow is the identity, which is how it starts by default.
        initial_transport: two couplings of the Wilson action: start from the h that carries the
            distribution :math:`e^{\beta \cos P}` of a single plaquette from the first to the
            second, exactly at the knots.

    Raises:
        ValueError: for another group or dimension, ``bins`` < 1, or negative couplings.
    """

    transfers_to_other_lattices = True

    def __init__(
        self,
        action: Action,
        *,
        bins: int = 12,
        initial_transport: tuple[float, float] | None = None,
    ) -> None:
        super().__init__()
        if not (action.is_gauge and isinstance(action.group, U1)) or action.dimensions != 2:
            raise ValueError(
                f"a plaquette flow needs U(1) links in two dimensions, not {action!r}: use a "
                "residual flow"
            )
        if bins < 1:
            raise ValueError(f"a plaquette flow needs bins >= 1, got {bins}")
        self.group = action.group
        self.lattice = action.lattice
        self.spline = OddCircleSpline(bins)
        if initial_transport is not None:
            self.spline.pass_through(*_transport(*initial_transport, bins))

    def extra_repr(self) -> str:
        return f"{'x'.join(map(str, self.lattice))}, bins={self.spline.bins}"

    def forward(self, x: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        table = self.spline.table()
        plaquette, total = self._plaquettes(x)
        middle, slope = self.spline(plaquette, table)
        tangent = torch.tan(middle / 2)

        def shifted(c: Tensor) -> tuple[Tensor, Tensor]:
            moved = tangent + c
            return 2 * torch.atan(moved), 2 / (1 + moved.square())

        moved, rate, converged = _solve(shifted, total)
        # u / g = (dt/dc) / (dt/dP), with t the tangent.
        stretch = slope * (1 + tangent.square()) / 2
        change = _log_determinant(stretch.log() + rate.log(), 1 / stretch, rate)
        log_density = log_density - torch.where(converged, change, torch.nan)
        return self._move(x, moved - plaquette), log_density

    def inverse(self, y: Tensor, log_density: Tensor) -> tuple[Tensor, Tensor]:
        table = self.spline.table()
        plaquette, total = self._plaquettes(y)
        tangent = torch.tan(plaquette / 2)

        def shifted(c: Tensor) -> tuple[Tensor, Tensor]:
            moved = tangent + c
            x, slope = self.spline.inverse(2 * torch.atan(moved), table)
            return x, 2 / ((1 + moved.square()) * slope)

        moved, stretch, converged = _solve(shifted, total)
        # stretch = dP/dt is 1 / (dt/dP) of the forward map, and its c is minus this one.
        rate = 2 / (1 + tangent.square())
        change = _log_determinant(rate.log() - stretch.log(), stretch, rate)
        log_density = log_density + torch.where(converged, change, torch.nan)
        return self._move(y, moved - plaquette), log_density

    def _plaquettes(self, field: Tensor) -> tuple[Tensor, Tensor]:
        r"""Return the angles in (-pi, pi), ``(chains, V)``, and their sum :math:`2\pi Q`."""
        expected = (2, *self.lattice)
        if tuple(field.shape[1:]) != expected:
            raise ValueError(
                f"field of shape {tuple(field.shape)} does not fit the plaquette flow, which needs "
                f"(chains, {', '.join(map(str, expected))})"
            )
        angles = plaquette_angles(field.double(), 0, 1).flatten(1)
        period = 2 * math.pi
        # Unlike remainder this keeps the rounding of the sum, and its derivative is 1.
        turns = torch.round(angles.detach() / period)
        return angles - period * turns, -period * turns.sum(1, keepdim=True)

    def _move(self, field: Tensor, change: Tensor) -> Tensor:
        """Return the links whose plaquettes differ by ``change (chains, V)`` from the field's."""
        # Complex transforms: the rounding of real ones depends on the number of threads.
        source = torch.fft.fftn(change.reshape(-1, *self.lattice), dim=(1, 2))
        propagator = _propagator(self.lattice, field.device)
        potential = torch.fft.ifftn(source * propagator, dim=(1, 2)).real
        step = torch.stack(
            [potential - shift(potential, 1, -1), shift(potential, 0, -1) - potential], dim=1
        )
        return self.group.project((field + step).to(field.dtype))


def _transport(start: float, end: float, bins: int) -> tuple[Tensor, Tensor, Tensor]:
    r"""Return knots x, y and slopes of the map between two distributions of a plaquette.

    The cumulative distributions F of :math:`e^{\beta \cos P}` give :math:`y = F_b^{-1}(F_a(x))`.
    The knots are equally far from each other along the curve, so that they are dense where it is
    steep, which is at :math:`\pi` for b > a.  A share of uniform plaquettes bounds the slope there.
    """
    if min(start, end) < 0:
        raise ValueError(f"initial_transport needs couplings >= 0, got {start:g} and {end:g}")
    grid = torch.linspace(0, math.pi, 2**15 + 1, dtype=torch.float64)
    density, above = [], []
    for beta in (start, end):
        weight = torch.exp(beta * (torch.cos(grid) - 1))
        mass = (weight[1:] + weight[:-1]) / 2
        # The mass above each point: near pi it is small, and must not be a difference of two
        # numbers near 1.
        tail = torch.cat([mass.flip(0).cumsum(0).flip(0), mass.new_zeros(1)])
        uniform = torch.linspace(1, 0, len(grid), dtype=torch.float64)
        density.append((1 - _UNIFORM) * weight / tail[0] + _UNIFORM / len(mass))
        above.append(((1 - _UNIFORM) * tail / tail[0] + _UNIFORM * uniform).flip(0))
    # Points of the curve, close to each other where it is flat and, from the other side, where it
    # is steep; both coordinates rise along it.
    down = grid.flip(0)
    x = torch.from_numpy(np.sort(np.concatenate([grid, np.interp(above[1], above[0], down)])))
    y = torch.from_numpy(np.sort(np.concatenate([np.interp(above[0], above[1], down), grid])))
    length = torch.cat([grid.new_zeros(1), (x.diff() + y.diff()).cumsum(0)])
    target = torch.linspace(0, float(length[-1]), bins + 1, dtype=torch.float64)
    index = torch.searchsorted(length, target).clamp(max=len(x) - 1)
    x, y = x[index], y[index]
    x[-1], y[-1] = math.pi, math.pi
    start_density, end_density = (
        torch.from_numpy(np.interp(knots, grid, values))
        for knots, values in zip((x, y), density, strict=True)
    )
    return x, y, start_density / end_density


@functools.lru_cache(maxsize=16)
def _propagator(lattice: tuple[int, ...], device: torch.device) -> Tensor:
    """Return 1 / p_hat^2 in the order of ``fftn``, and 0 for the constant mode."""
    squared = lattice_momenta_squared(lattice, device)
    squared[0, 0] = torch.inf
    return 1 / squared


def _log_determinant(log_stretch: Tensor, inverse_stretch: Tensor, rate: Tensor) -> Tensor:
    """Return the logarithm of the determinant from log g, u / g and u, each ``(chains, V)``."""
    ratio = sum_over_sites(inverse_stretch) / sum_over_sites(rate)
    return sum_over_sites(log_stretch) + ratio.log()


def _solve(
    shifted: Callable[[Tensor], tuple[Tensor, Tensor]], total: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    r"""Find c with :math:`\sum_x P_x(c) =` ``total`` by Newton's method inside a bracket.

    Args:
        shifted: c ``(chains, 1)`` to the angles, which rise with c, and their derivatives by c,
            each ``(chains, V)``.
        total: ``(chains, 1)``.

    Returns:
        The angles and derivatives at the solution, with the graph of an implicit function, and
        which chains converged to rounding, ``(chains,)``.
    """
    with torch.no_grad():
        c = torch.zeros_like(total)
        low, high = torch.full_like(c, -torch.inf), torch.full_like(c, torch.inf)
        converged = torch.zeros_like(c, dtype=torch.bool)
        for _ in range(_ITERATIONS):
            angles, rate = shifted(c)
            excess = _sum(angles) - total
            # A few units in the last place of every angle.
            converged = converged | (excess.abs() <= 1e-15 * angles.shape[1])
            if bool((converged | excess.isnan()).all()):
                break
            low, high = torch.where(excess < 0, c, low), torch.where(excess > 0, c, high)
            newton = c - (excess / _sum(rate)).clamp(-1, 1)
            inside = (newton > low) & (newton < high)
            middle = torch.where(torch.isfinite(high - low), (low + high) / 2, newton)
            proposal = torch.where(inside, newton, middle)
            # No number is left between the ends of the bracket.
            converged = converged | (proposal == c)
            # A chain that has converged stays as it is, whatever the others still need.
            c = torch.where(converged, c, proposal)
    if torch.is_grad_enabled():
        angles, rate = shifted(c)
        excess = _sum(angles) - total
        angles, rate = shifted(c - (excess - excess.detach()) / _sum(rate).detach())
    return angles, rate, converged.squeeze(1)


def _sum(values: Tensor) -> Tensor:
    """Return the sums over the plaquettes, ``(chains, 1)``."""
    return sum_over_sites(values)[:, None]
