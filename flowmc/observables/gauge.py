r"""Observables of link fields ``(chains, d, *L[, N, N])``."""

from __future__ import annotations

import itertools
import math

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.actions.gauge import planes as all_planes
from flowmc.actions.gauge import plaquette_angles, plaquettes
from flowmc.groups import SUN
from flowmc.lattice import shift, sum_over_sites
from flowmc.registry import ConfigError

__all__ = ["plaquette", "polyakov_loop", "topological_charge", "wilson_loop"]


def plaquette(field: Tensor, action: Action) -> Tensor:
    r"""Return :math:`\frac{1}{N} \mathrm{Re\,tr} P` averaged over planes and sites, ``(chains,)``.

    1 on an ordered field.  For U(1) it is :math:`\cos\theta_P`.
    """
    _links(action, "plaquette")
    total = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
    planes = list(all_planes(action.dimensions))
    for mu, nu in planes:
        if isinstance(action.group, SUN):
            trace = _trace(plaquettes(field, mu, nu)).real / action.group.n
        else:
            trace = torch.cos(plaquette_angles(field, mu, nu))
        total += sum_over_sites(trace)
    return total / (len(planes) * action.volume)


def wilson_loop(field: Tensor, action: Action, *, extents: tuple[int, int] = (1, 1)) -> Tensor:
    r"""Return :math:`\frac{1}{N}\mathrm{Re\,tr}\,W(R \times T)` averaged over planes and sites.

    Args:
        field: links.
        action: the theory.
        extents: (R, T) in lattice units; both orientations in every plane are averaged.
    """
    _links(action, "wilson_loop")
    first, second = extents
    total = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
    pairs = [
        (mu, nu) for mu in range(action.dimensions) for nu in range(action.dimensions) if mu != nu
    ]
    for mu, nu in pairs:
        bottom, side = _line(field, action, mu, first), _line(field, action, nu, second)
        if isinstance(action.group, SUN):
            left = bottom @ shift(side, mu, first)
            right = side @ shift(bottom, nu, second)
            trace = _trace(left @ right.mH).real / action.group.n
        else:
            trace = torch.cos(bottom + shift(side, mu, first) - shift(bottom, nu, second) - side)
        total += sum_over_sites(trace)
    return total / (len(pairs) * action.volume)


def polyakov_loop(field: Tensor, action: Action, *, axis: int = -1) -> Tensor:
    r"""Return :math:`\frac1N \mathrm{tr} \prod_t U_t`, averaged over the transverse sites.

    ``(chains, 2)``: real and imaginary part.  ``axis`` is the direction of the loop, time (the
    last) by default.
    """
    _links(action, "polyakov_loop")
    if not -action.dimensions <= axis < action.dimensions:
        raise ConfigError(
            f"polyakov_loop: axis {axis} does not exist in {action.dimensions} dimensions"
        )
    axis %= action.dimensions
    links = field[:, axis].movedim(1 + axis, 1)
    if isinstance(action.group, SUN):
        loop = links[:, 0]
        for t in range(1, links.shape[1]):
            loop = loop @ links[:, t]
        value = _trace(loop) / action.group.n
    else:
        angle = links.sum(1)
        value = torch.complex(torch.cos(angle), torch.sin(angle))
    mean = sum_over_sites(value) / (action.volume // action.lattice[axis])
    return torch.stack([mean.real, mean.imag], 1)


def topological_charge(field: Tensor, action: Action) -> Tensor:
    r"""Return the topological charge Q, ``(chains,)``.

    Two-dimensional U(1): the geometric charge, an integer,
    :math:`\frac{1}{2\pi} \sum_x \mathrm{wrap}(\theta_P)`.
    Four-dimensional SU(N): the clover charge

    .. math:: Q = -\frac{1}{32\pi^2} \sum_x \epsilon_{\mu\nu\rho\sigma}
              \mathrm{tr}\,F_{\mu\nu} F_{\rho\sigma}

    with F the traceless antihermitian clover average; on rough fields it is not near an integer.

    Raises:
        ConfigError: for other theories, where no charge is defined here.
    """
    _links(action, "topological_charge")
    if not isinstance(action.group, SUN) and action.dimensions == 2:
        angle = plaquette_angles(field, 0, 1).to(torch.float64)
        wrapped = torch.remainder(angle + math.pi, 2 * math.pi) - math.pi
        charge = sum_over_sites(wrapped) / (2 * math.pi)
        # The sum of all plaquettes on the torus is a multiple of 2 pi; remove the rounding.
        return charge.round()
    if isinstance(action.group, SUN) and action.dimensions == 4:
        strength = {plane: _clover(field, *plane) for plane in itertools.combinations(range(4), 2)}
        total = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
        # epsilon_{mu nu rho sigma} has 8 equal terms for each of the three dual pairs of planes.
        for first, second, sign in (
            ((0, 1), (2, 3), 1),
            ((0, 2), (1, 3), -1),
            ((0, 3), (1, 2), 1),
        ):
            trace = _trace(strength[first] @ strength[second]).real
            total += sign * sum_over_sites(trace)
        return -8 * total / (32 * math.pi**2)
    raise ConfigError(
        "topological_charge is defined for two-dimensional U(1) and four-dimensional SU(N), not "
        f"for {action.group.name} in {action.dimensions} dimensions"
    )


def _clover(links: Tensor, mu: int, nu: int) -> Tensor:
    """Return F_{mu nu}(x): the mean of the four plaquettes around x, projected on the algebra."""
    u, v = links[:, mu], links[:, nu]
    forward = plaquettes(links, mu, nu)
    # The other three leaves start at x and run in the same sense; each is the plaquette at a
    # neighbouring corner transported to x along its own links.
    u_back, v_back = shift(u, mu, -1), shift(v, nu, -1)
    left = u_back.mH @ shift(forward, mu, -1) @ u_back
    below = v_back.mH @ shift(forward, nu, -1) @ v_back
    u_corner = shift(u_back, nu, -1)
    corner = v_back.mH @ u_corner.mH @ shift(shift(forward, mu, -1), nu, -1) @ u_corner @ v_back
    clover = 0.25 * (forward + left + below + corner)
    antihermitian = 0.5 * (clover - clover.mH)
    n = links.shape[-1]
    trace = _trace(antihermitian) / n
    identity = torch.eye(n, dtype=links.dtype, device=links.device)
    return antihermitian - trace[..., None, None] * identity


def _line(links: Tensor, action: Action, mu: int, length: int) -> Tensor:
    link = links[:, mu]
    line = link
    for step in range(1, length):
        following = shift(link, mu, step)
        line = line @ following if isinstance(action.group, SUN) else line + following
    return line


def _trace(matrix: Tensor) -> Tensor:
    return torch.diagonal(matrix, dim1=-2, dim2=-1).sum(-1)


def _links(action: Action, name: str) -> None:
    if not action.is_gauge:
        raise ConfigError(f"{name} is an observable of gauge fields, not of scalar fields")
