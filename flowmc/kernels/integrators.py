r"""Symplectic integrators as data: palindromic lists of coefficients.

One step of size :math:`\epsilon` of Hamilton's equations
:math:`\dot U = P\,U,\; \dot P = -F(U)` is a product of drifts :math:`e^{c \epsilon T}` (the field
moves) and kicks :math:`e^{c \epsilon V}` (the momentum moves).  An :class:`Integrator` lists
``(operation, coefficient)`` pairs in the order of application; :func:`trajectory` runs any of
them.  Palindromes are time-reversible, and drifts and kicks preserve phase-space volume, so the
Metropolis test makes each exact.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from flowmc.actions.base import Action
from flowmc.fields import FixedLinks
from flowmc.groups import Group
from flowmc.native import find_nested_trajectory, find_trajectory
from flowmc.splitting import Integrator, Operation, nested

__all__ = ["nested_trajectory", "trajectory"]


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

    def move(field: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        compiled = find_trajectory(action, field, integrator)
        if compiled is not None:
            return compiled(field, momentum, step_size, steps)
        operations = [(0, operation) for operation in integrator.merged(steps)]
        return _in_torch([action], operations, group, field, momentum, step_size)

    return _beside_fixed(action.fixed_links, move, field, momentum)


def nested_trajectory(
    levels: Sequence[tuple[Action, Integrator, int]],
    group: Group,
    field: Tensor,
    momentum: Tensor,
    step_size: Tensor,
) -> tuple[Tensor, Tensor]:
    """Integrate Hamilton's equations of a sum of actions with time steps for each.

    Args:
        levels: action, scheme and number of steps of every level, the outermost first; see
            :func:`flowmc.splitting.nested`.
        group: moves the field.
        field: ``(chains, ...)``.
        momentum: algebra elements shaped like the field.
        step_size: of the outermost level per chain, ``(chains,)``.

    Returns:
        The end point ``(field, momentum)``.

    Compiled where all actions are and no scheme has force-gradient kicks.
    """
    actions = [action for action, _, _ in levels]
    operations = nested([(integrator, steps) for _, integrator, steps in levels])

    def move(field: Tensor, momentum: Tensor) -> tuple[Tensor, Tensor]:
        compiled = find_nested_trajectory(actions, field, operations)
        if compiled is not None:
            return compiled(field, momentum, step_size)
        return _in_torch(actions, operations, group, field, momentum, step_size)

    return _beside_fixed(actions[0].fixed_links, move, field, momentum)


def _beside_fixed(
    fixed: FixedLinks | None,
    move: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    field: Tensor,
    momentum: Tensor,
) -> tuple[Tensor, Tensor]:
    """Move field and momentum, but for the links that a theory holds fixed.

    These stay in their places meanwhile, at rest; what the field has there is left as it is.
    """
    if fixed is None:
        return move(field, momentum)
    end, end_momentum = move(fixed.put_into(field), fixed.zeroed(momentum))
    return fixed.restored(end, field), fixed.restored(end_momentum, momentum)


def _in_torch(
    actions: Sequence[Action],
    operations: Sequence[tuple[int, Operation]],
    group: Group,
    field: Tensor,
    momentum: Tensor,
    step_size: Tensor,
) -> tuple[Tensor, Tensor]:
    step = step_size.to(momentum.real.dtype).reshape(-1, *[1] * (field.dim() - 1))
    for level, operation in operations:
        force = actions[level].force
        if operation[0] == "drift":
            field = group.move(field, (operation[1] * step) * momentum)
        elif len(operation) == 2:
            momentum = momentum - (operation[1] * step) * force(field)
        else:
            displaced = group.move(field, (-operation[2] * step * step) * force(field))
            momentum = momentum - (operation[1] * step) * force(displaced)
    return field, momentum
