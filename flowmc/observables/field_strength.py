r"""The lattice field strength, and what is made of it: energy density and topological charge.

:math:`F_{\mu\nu}(x)` is the mean of the four plaquettes around x that lie in the plane and begin at
x ("clover"), projected on the algebra; for U(1) it is the mean of their sines.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.groups import SUN, traceless_antihermitian
from flowmc.lattice import shift, sum_over_sites
from flowmc.plaquettes import planes, plaquette_angles, plaquettes
from flowmc.registry import ConfigError

__all__ = [
    "charge",
    "clover",
    "clover_energy",
    "field_strength",
    "has_charge",
    "plaquette_energy",
    "require_closed_time",
]


def field_strength(field: Tensor, action: Action) -> dict[tuple[int, int], Tensor]:
    """Return F of every plane mu < nu, ``(chains, *L[, N, N])`` each."""
    return {plane: clover(field, action, *plane) for plane in planes(action.dimensions)}


def clover(field: Tensor, action: Action, mu: int, nu: int) -> Tensor:
    r"""Return :math:`F_{\mu\nu}`, ``(chains, *L[, N, N])``."""
    if not isinstance(action.group, SUN):
        sine = torch.sin(plaquette_angles(field, mu, nu))
        pair = sine + shift(sine, nu, -1)
        return 0.25 * (pair + shift(pair, mu, -1))
    leaf = traceless_antihermitian(plaquettes(field, mu, nu))
    # A leaf is transported to x along a link that leads there.  The two ways around a plaquette
    # give the same matrix, so that pairs of leaves can go together.
    u, v = shift(field[:, mu], mu, -1), shift(field[:, nu], nu, -1)
    pair = leaf + v.mH @ shift(leaf, nu, -1) @ v
    return 0.25 * (pair + u.mH @ shift(pair, mu, -1) @ u)


def clover_energy(strength: Mapping[tuple[int, int], Tensor], action: Action) -> Tensor:
    r"""Return :math:`E = \tfrac14 F^a_{\mu\nu} F^a_{\mu\nu}` averaged over sites, ``(chains,)``.

    The sum is over all mu and nu: :math:`E = -\sum_{\mu<\nu} \mathrm{tr}\,F^2` for SU(N).
    """
    squares = [_square(strength[plane], action) for plane in planes(action.dimensions)]
    return torch.stack(squares).sum(0) / action.volume


def plaquette_energy(field: Tensor, action: Action) -> Tensor:
    r"""Return :math:`E = 2 \sum_{\mu<\nu} \mathrm{Re\,tr}(1 - P)` averaged over sites.

    ``(chains,)``; arXiv:1006.4518.  For U(1) :math:`\sum (1 - \cos\theta_P)`.
    """
    total = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
    for mu, nu in planes(action.dimensions):
        if isinstance(action.group, SUN):
            left = field[:, mu] @ shift(field[:, nu], mu)
            right = field[:, nu] @ shift(field[:, mu], nu)
            # 2 Re tr(1 - A B^dagger) = |A - B|^2, which loses no digits where they are close.
            deficit = torch.view_as_real(left - right).square()
        else:
            deficit = 2 * torch.sin(0.5 * plaquette_angles(field, mu, nu)).square()
        total = total + sum_over_sites(deficit)
    return total / action.volume


def require_closed_time(action: Action, name: str) -> None:
    """Raise ConfigError for a lattice that ends in time, which an observable would run across."""
    if action.has_open_time:
        raise ConfigError(
            f"{name} runs around the lattice in time, which is open: measure plaquette, action, "
            "wilson_loop, or polyakov_loop in another direction"
        )


def has_charge(action: Action) -> bool:
    """Return whether a topological charge is defined for a theory."""
    dimensions = 4 if isinstance(action.group, SUN) else 2
    return action.is_gauge and action.dimensions == dimensions


def charge(
    field: Tensor, action: Action, strength: Mapping[tuple[int, int], Tensor] | None = None
) -> Tensor:
    """Return the topological charge of :func:`flowmc.observables.topological_charge`.

    Args:
        field: links.
        action: the theory.
        strength: of the field, if it is known already.

    Returns:
        ``(chains,)`` float64.

    Raises:
        ConfigError: where no charge is defined.
    """
    require_closed_time(action, "topological_charge")
    if not has_charge(action):
        raise ConfigError(
            "topological_charge is defined for two-dimensional U(1) and four-dimensional SU(N), "
            f"not for {action.group.name} in {action.dimensions} dimensions"
        )
    if not isinstance(action.group, SUN):
        angle = plaquette_angles(field, 0, 1).to(torch.float64)
        wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        # The sum of all plaquettes on the torus is a multiple of 2 pi; remove the rounding.
        return (sum_over_sites(wrapped) / (2 * math.pi)).round()
    if strength is None:
        strength = field_strength(field, action)
    total = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
    # epsilon_{mu nu rho sigma} has 8 equal terms for each of the three dual pairs of planes.
    for first, second, sign in (
        ((0, 1), (2, 3), 1),
        ((0, 2), (1, 3), -1),
        ((0, 3), (1, 2), 1),
    ):
        total = total - sign * _product(strength[first], strength[second])
    return -8 * total / (32 * math.pi**2)


def _product(a: Tensor, b: Tensor) -> Tensor:
    """Return -tr(a b) of algebra elements, summed over sites: the scalar product of entries."""
    return sum_over_sites(torch.view_as_real(a) * torch.view_as_real(b))


def _square(strength: Tensor, action: Action) -> Tensor:
    if isinstance(action.group, SUN):
        return _product(strength, strength)
    return 0.5 * sum_over_sites(strength.square())
