r"""Observables of link fields ``(chains, d, *L[, N, N])``."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.actions.gauge import Wilson
from flowmc.actions.improved import ImprovedGauge
from flowmc.groups import SUN
from flowmc.lattice import shift, sum_over_sites
from flowmc.observables.declared import observable
from flowmc.observables.field_strength import charge, has_charge, require_closed_time
from flowmc.observables.flowed import STEP, flow_table
from flowmc.plaquettes import planes as all_planes
from flowmc.registry import ConfigError

__all__ = ["plaquette", "polyakov_loop", "topological_charge", "wilson_loop"]


@observable(title="Plaquette")
def plaquette(field: Tensor, action: Action) -> Tensor:
    r"""Return :math:`\frac{1}{N} \mathrm{Re\,tr} P` averaged over planes and sites, ``(chains,)``.

    1 on an ordered field.  For U(1) it is :math:`\cos\theta_P`.  On a lattice that is open in time
    the mean is over the plaquettes that exist, those in space on the first and the last slice
    counted by half, as in the headers of HiRep's files.
    """
    _links(action, "plaquette")
    # The action at beta = 1, with the opposite sign, is the sum over plaquettes.
    number = len(list(all_planes(action.dimensions))) * action.volume
    if action.has_open_time:
        open_ = ImprovedGauge(action.group, action.lattice, beta=1.0, c1=0.0, time_boundary="open")
        return -open_(field) / (number * (action.lattice[-1] - 1) / action.lattice[-1])
    return -Wilson(action.group, action.lattice, beta=1.0)(field) / number


@observable(title="Wilson loop")
def wilson_loop(field: Tensor, action: Action, *, extents: tuple[int, int] = (1, 1)) -> Tensor:
    r"""Return :math:`\frac{1}{N}\mathrm{Re\,tr}\,W(R \times T)` averaged over planes and sites.

    Args:
        field: links.
        action: the theory.
        extents: (R, T) in lattice units; both orientations in every plane are averaged.
    """
    _links(action, "wilson_loop")
    first, second = extents
    if action.has_open_time and max(extents) >= action.lattice[-1]:
        raise ConfigError(
            f"wilson_loop: extents = {list(extents)}: is longer than the open lattice in time"
        )
    total = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
    time = action.dimensions - 1
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
        if action.has_open_time:
            # Loops that do not fit in are none; all others count alike.
            length = first if mu == time else second if nu == time else 0
            slices = action.lattice[-1] - length
            trace = trace.narrow(-1, 0, slices) * (action.lattice[-1] / slices)
        total += sum_over_sites(trace)
    return total / (len(pairs) * action.volume)


@observable(title="Polyakov loop")
def polyakov_loop(field: Tensor, action: Action, *, axis: int = -1) -> Tensor:
    r"""Return :math:`\frac1N \mathrm{tr} \prod_t U_t`, averaged over the transverse sites.

    ``(chains, 2)``: real and imaginary part.

    Args:
        field: links.
        action: the theory.
        axis: direction of the loop, time (the last) by default.
    """
    _links(action, "polyakov_loop")
    if not -action.dimensions <= axis < action.dimensions:
        raise ConfigError(
            f"polyakov_loop: axis {axis} does not exist in {action.dimensions} dimensions"
        )
    axis %= action.dimensions
    if axis == action.dimensions - 1:
        require_closed_time(action, "polyakov_loop")
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


@observable(title="Topological charge Q")
def topological_charge(
    field: Tensor, action: Action, *, flow_time: float = 0.0, step: float = STEP
) -> Tensor:
    r"""Return the topological charge Q, ``(chains,)``.

    Two-dimensional U(1): the geometric charge, an integer,
    :math:`\frac{1}{2\pi} \sum_x \mathrm{wrap}(\theta_P)`.
    Four-dimensional SU(N): the clover charge

    .. math:: Q = -\frac{1}{32\pi^2} \sum_x \epsilon_{\mu\nu\rho\sigma}
              \mathrm{tr}\,F_{\mu\nu} F_{\rho\sigma}

    with F the traceless antihermitian clover average, of the field at a flow time; without flow it
    is not near an integer.  To have the energy density or other flow times as well, measure
    :func:`gradient_flow`, which flows the field once.

    Args:
        field: links.
        action: the theory.
        flow_time: in lattice units; see :mod:`flowmc.observables.flowed`.
        step: largest step of the integrator of the flow.

    Raises:
        ConfigError: for other theories, where no charge is defined here, or a flow time for U(1).
    """
    _links(action, "topological_charge")
    if not isinstance(action.group, SUN) or not has_charge(action):
        if flow_time and has_charge(action):
            raise ConfigError(
                "topological_charge of two-dimensional U(1) is an integer without flow: leave out "
                "flow_time"
            )
        return charge(field, action)
    _, table = flow_table(field, action, flow_time, step, 1, "topological_charge")
    return table[:, 0, 2]


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
