r"""Symplectic integrators as data: palindromic lists of coefficients.

One step of size :math:`\epsilon` of Hamilton's equations
:math:`\dot U = P\,U,\; \dot P = -F(U)` is a product of drifts :math:`e^{c \epsilon T}` (the field
moves) and kicks :math:`e^{c \epsilon V}` (the momentum moves).  An :class:`Integrator` lists
``(operation, coefficient)`` pairs in the order of application; :func:`trajectory` runs any of
them.  Palindromes are time-reversible, and drifts and kicks preserve phase-space volume, so the
Metropolis test makes each exact.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from flowmc.actions.base import Action
from flowmc.groups import Group
from flowmc.native import find_force, find_trajectory

__all__ = ["INTEGRATORS", "Integrator", "trajectory"]


@dataclass(frozen=True)
class Integrator:
    """A splitting scheme.

    Attributes:
        name: as in configuration files.
        order: the energy error of a trajectory is O(step_size^order).
        operations: pairs of "drift" or "kick" and the coefficient of the step size; or
            "kick_gradient", a kick with the force taken at the field displaced by the second
            coefficient times ``step_size^2`` along minus the force.
    """

    name: str
    order: int
    operations: tuple[tuple[str, float] | tuple[str, float, float], ...]

    @property
    def forces_per_step(self) -> int:
        """Force evaluations per step in a long trajectory (end kicks of steps merge)."""
        kicks = [op for op in self.operations if op[0] != "drift"]
        evaluations = sum(2 if op[0] == "kick_gradient" else 1 for op in kicks)
        return evaluations - 1 if self.operations[0][0] == "kick" else evaluations


def _palindrome(*half: tuple) -> tuple:
    """Mirror a list of operations around its last entry."""
    return (*half, *reversed(half[:-1]))


# Second-order minimum-norm scheme: the kick coefficient that minimises the error constant,
# I.P. Omelyan, I.M. Mryglod, R. Folk, Comput. Phys. Commun. 151 (2003) 272;
# T. Takaishi, Ph. de Forcrand, hep-lat/0505020.
_LAMBDA = 0.1931833275037836

# Fourth-order minimum-norm scheme with five force evaluations, velocity version ("OMF4"),
# Omelyan et al. 2003.
_RHO = 0.2539785108410595
_THETA = -0.03230286765269967
_VARTHETA = 0.08398315262876693
_LAMBDA4 = 0.6822365335719091

INTEGRATORS: dict[str, Integrator] = {
    integrator.name: integrator
    for integrator in (
        Integrator("leapfrog", 2, _palindrome(("kick", 0.5), ("drift", 1.0))),
        Integrator(
            "omelyan2",
            2,
            _palindrome(("kick", _LAMBDA), ("drift", 0.5), ("kick", 1 - 2 * _LAMBDA)),
        ),
        Integrator(
            "omelyan4",
            4,
            _palindrome(
                ("kick", _VARTHETA),
                ("drift", _RHO),
                ("kick", _LAMBDA4),
                ("drift", _THETA),
                ("kick", 0.5 - _LAMBDA4 - _VARTHETA),
                ("drift", 1 - 2 * (_THETA + _RHO)),
            ),
        ),
        # Force-gradient scheme of order four, Omelyan et al. 2003: the middle kick
        # carries the commutator (1/72) step^3 [V,[T,V]], had from a force at a displaced field
        # (H. Yin, R.D. Mawhinney, arXiv:1111.5059): F(U - d F) = F - d F.grad F + O(d^2), and
        # 2/3 d = step^2/36.
        Integrator(
            "force_gradient",
            4,
            _palindrome(("kick", 1 / 6), ("drift", 0.5), ("kick_gradient", 2 / 3, 1 / 24)),
        ),
    )
}


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

    The built-in actions run in compiled code on a CPU (:mod:`flowmc.native`), equal to rounding.
    """
    compiled = find_trajectory(action, field, integrator)
    if compiled is not None:
        return compiled(field, momentum, step_size, steps)
    force = find_force(action, field) or action.force
    step = step_size.to(momentum.real.dtype).reshape(-1, *[1] * (field.dim() - 1))
    operations = _merged(integrator.operations, steps)
    for operation in operations:
        if operation[0] == "drift":
            field = group.move(field, (operation[1] * step) * momentum)
        elif operation[0] == "kick":
            momentum = momentum - (operation[1] * step) * force(field)
        else:
            displaced = group.move(field, (-operation[2] * step * step) * force(field))
            momentum = momentum - (operation[1] * step) * force(displaced)
    return field, momentum


def _merged(operations: tuple, steps: int) -> list[tuple]:
    """Repeat a step and merge the kicks (or drifts) where one step ends and the next begins."""
    merged: list[tuple] = []
    for operation in operations * steps:
        if merged and len(operation) == 2 and merged[-1][0] == operation[0]:
            merged[-1] = (operation[0], merged[-1][1] + operation[1])
        else:
            merged.append(operation)
    return merged
