r"""The gradient flow of the Wilson action ("Wilson flow"), and observables of the flowed field.

M. Luescher, JHEP 08 (2010) 071, arXiv:1006.4518: the field :math:`V_t` obeys

.. math:: \dot V_t = -g_0^2 \{\partial S_W(V_t)\} V_t, \qquad V_0 = U,

with the Wilson action at :math:`\beta = 2N / g_0^2`, so that weak fields of lattice momentum
:math:`\hat p` decay as :math:`e^{-\hat p^2 t}` and details smaller than about
:math:`\sqrt{8t}` (in four dimensions) are smoothed.  In terms of the sum A of the staples of a link
this is :math:`\dot V = -(V A)_{TA}`.  U(1) is normalised likewise: with :math:`\beta = 1 / g_0^2`,
:math:`\dot\theta = -\sum \pm\sin\theta_P`.

The flow always is that of the plain Wilson action on the lattice and group of the theory, whatever
its action; times are in units of the lattice spacing squared.  The integrator is Luescher's of
third order (appendix C) with a fixed step.  The largest decay rate of weak fields in d dimensions
is :math:`\hat p^2 = 4d`; steps of more than 1/(2d), at which the scheme is about to become
unstable, are refused.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from flowmc.actions import Wilson
from flowmc.actions.base import Action
from flowmc.groups import SUN
from flowmc.native import find_gradient_flow
from flowmc.observables.declared import observable
from flowmc.observables.field_strength import (
    charge,
    clover_energy,
    field_strength,
    has_charge,
    plaquette_energy,
    require_closed_time,
)
from flowmc.registry import ConfigError

__all__ = ["STEP", "energy_density", "flow_table", "gradient_flow", "wilson_flow"]

# E is then right to about 1e-4 at t = 0.25 and 1e-5 at t = 1, and better on smoother fields.
STEP = 0.02
# Largest step times the largest decay rate: the scheme grows from 2.51 on, where
# |1 - z + z^2/2 - z^3/6| = 1.
_STABLE = 2.0


def wilson_flow(field: Tensor, action: Action, flow_time: float, step: float = STEP) -> Tensor:
    """Return the field at a flow time, shaped like ``field``.

    Args:
        field: links ``(chains, d, *L[, N, N])``.
        action: the theory, of which group and lattice matter.
        flow_time: t >= 0 in lattice units.
        step: largest step of the integrator; the steps are equal and end at the flow time.

    Raises:
        ConfigError: for scalar fields, a negative time, or a step that is not positive or too
            large to be stable.
    """
    flowed, _ = flow_table(field, action, flow_time, step, 1, "wilson_flow")
    return flowed


@observable(title="Energy density E")
def energy_density(
    field: Tensor,
    action: Action,
    *,
    flow_time: float = 0.0,
    step: float = STEP,
    definition: Literal["clover", "plaquette"] = "clover",
) -> Tensor:
    r"""Return the energy density :math:`E = \tfrac14 F^a_{\mu\nu} F^a_{\mu\nu}`, ``(chains,)``.

    The sum is over mu, nu and a, the mean over sites, in lattice units and without coupling.

    Args:
        field: links.
        action: the theory.
        flow_time: at which E is taken; 0 is the field itself.
        step: of the integrator; see :func:`wilson_flow`.
        definition: "clover", from the clover field strength, or "plaquette",
            :math:`2 \sum_{\mu<\nu} \mathrm{Re\,tr}(1 - P)` (arXiv:1006.4518).
    """
    _, table = flow_table(field, action, flow_time, step, 1, "energy_density")
    return table[:, 0, ("clover", "plaquette").index(definition)]


@observable(title="Gradient flow")
def gradient_flow(
    field: Tensor,
    action: Action,
    *,
    flow_time: float,
    points: int = 20,
    step: float = STEP,
) -> Tensor:
    r"""Return energy density and charge along the flow, ``(chains, points, columns)``.

    The field is flowed once; row k holds values at :math:`t_k = (k + 1)\,` ``flow_time / points``:
    :math:`t^2 E` from the clover, :math:`t^2 E` from the plaquette and, where it is defined, the
    topological charge.  From these a report finds the scales t0 and w0.

    Args:
        field: links.
        action: the theory.
        flow_time: the last flow time, in lattice units.
        points: number of equally spaced flow times.
        step: largest step of the integrator; see :func:`wilson_flow`.

    Raises:
        ConfigError: for scalar fields, or a flow time, step or number of points that is not
            positive.
    """
    if not flow_time > 0:
        raise ConfigError(f"gradient_flow: flow_time = {flow_time} should be positive")
    if points < 1:
        raise ConfigError(f"gradient_flow: points = {points} should be at least 1")
    _, table = flow_table(field, action, flow_time, step, points, "gradient_flow")
    times = torch.arange(1, points + 1, dtype=torch.float64, device=table.device)
    times = times * (flow_time / points)
    table[..., :2] *= times[:, None].square()
    return table


def flow_table(
    field: Tensor, action: Action, flow_time: float, step: float, points: int, name: str
) -> tuple[Tensor, Tensor]:
    """Flow a field and measure it at equally spaced times, the last of which is the flow time.

    Args:
        field, action, flow_time, step: as for :func:`wilson_flow`.
        points: number of measurements.
        name: what needs them, for messages.

    Returns:
        The flowed field, and ``(chains, points, columns)`` with E from the clover, E from the
        plaquette and, where it is defined, the charge.

    Raises:
        ConfigError: as :func:`wilson_flow`.
    """
    _check_gauge(action, name)
    require_closed_time(action, name)
    if not (math.isfinite(flow_time) and flow_time >= 0):
        raise ConfigError(f"{name}: flow_time = {flow_time} should be a number >= 0")
    if not (math.isfinite(step) and step > 0):
        raise ConfigError(f"{name}: step = {step} should be a positive number")
    # A step that divides the time up to rounding is taken as it is.
    steps = math.ceil(flow_time / points / step * (1 - 1e-12))
    size = flow_time / (points * steps) if steps else 0.0
    largest = _STABLE / (4 * action.dimensions)
    if size > largest * (1 + 1e-12):
        raise ConfigError(
            f"{name}: step = {step}: the integrator of the flow becomes unstable in "
            f"{action.dimensions} dimensions, use at most {largest:g} ({STEP} by default)"
        )
    plain = Wilson(action.group, action.lattice, beta=_unit_beta(action))
    compiled = find_gradient_flow(plain, field)
    if compiled is not None:
        return compiled(field, size, [steps] * points)
    return _flow_in_torch(field, plain, size, [steps] * points)


def _flow_in_torch(
    field: Tensor, plain: Wilson, step: float, counts: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """The same as :func:`flowmc.native.find_gradient_flow` for any group, device and dtype."""
    rows = []
    for count in counts:
        for _ in range(count):
            field = _step(field, plain, step)
        rows.append(_measure(field, plain))
    return field, torch.stack(rows, 1)


def _step(field: Tensor, plain: Wilson, step: float) -> Tensor:
    """Return the field one step later; arXiv:1006.4518, appendix C."""
    move = plain.group.move
    first = -step * plain.force(field)
    field = move(field, first / 4)
    second = -step * plain.force(field)
    both = 8 / 9 * second - 17 / 36 * first
    field = move(field, both)
    third = -step * plain.force(field)
    return move(field, 3 / 4 * third - both)


def _measure(field: Tensor, action: Action) -> Tensor:
    strength = field_strength(field, action)
    columns = [clover_energy(strength, action), plaquette_energy(field, action)]
    if has_charge(action):
        columns.append(charge(field, action, strength))
    return torch.stack(columns, -1)


def _unit_beta(action: Action) -> float:
    """Return beta at g0 = 1: 2N for SU(N), 1 for U(1)."""
    return 2.0 * action.group.n if isinstance(action.group, SUN) else 1.0


def _check_gauge(action: Action, name: str) -> None:
    if not action.is_gauge:
        raise ConfigError(f"{name} is an observable of gauge fields, not of scalar fields")
