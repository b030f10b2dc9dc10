r"""Symplectic integrators as data: palindromic lists of coefficients.

One step of size :math:`\epsilon` of Hamilton's equations
:math:`\dot U = P\,U,\; \dot P = -F(U)` is a product of drifts :math:`e^{c \epsilon T}` (the field
moves) and kicks :math:`e^{c \epsilon V}` (the momentum moves).  An :class:`Integrator` lists
``(operation, coefficient)`` pairs in the order of application; :func:`trajectory` runs any of
them.  Palindromes are time-reversible, and drifts and kicks preserve phase-space volume, so the
Metropolis test makes each exact.
"""

from __future__ import annotations

from torch import Tensor

from flowmc.actions.base import Action
from flowmc.groups import Group
from flowmc.native import find_trajectory
from flowmc.splitting import Integrator

__all__ = ["trajectory"]


def trajectory(
    action: Action,
    group: Group,
    field: Tensor,
    momentum: Tensor,
    integrator: Integrator,
    step_size: Tensor,
    steps: int,
) -> tuple[Tensor, Tensor]:
    """Integrate Hamilton's equations for ``steps`` steps.

    Args:
        action: gives the force.
        group: moves the field.
        field: ``(chains, ...)``.
        momentum: algebra elements shaped like the field.
        integrator: the scheme.
        step_size: per chain, ``(chains,)``.
        steps: number of steps, >= 1.

    Returns:
        The end point ``(field, momentum)``.

    Actions whose terms are compiled (:mod:`flowmc.native`) run there, equal to rounding.
    """
    compiled = find_trajectory(action, field, integrator)
    if compiled is not None:
        return compiled(field, momentum, step_size, steps)
    force = action.force
    step = step_size.to(momentum.real.dtype).reshape(-1, *[1] * (field.dim() - 1))
    for operation in integrator.merged(steps):
        if operation[0] == "drift":
            field = group.move(field, (operation[1] * step) * momentum)
        elif len(operation) == 2:
            momentum = momentum - (operation[1] * step) * force(field)
        else:
            displaced = group.move(field, (-operation[2] * step * step) * force(field))
            momentum = momentum - (operation[1] * step) * force(displaced)
    return field, momentum
