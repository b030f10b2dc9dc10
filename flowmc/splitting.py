"""Splitting schemes of Hamiltonian dynamics, as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

__all__ = ["INTEGRATORS", "Integrator", "Operation", "nested"]

Operation = tuple[str, float] | tuple[str, float, float]


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
    operations: tuple[Operation, ...]

    @property
    def forces_per_step(self) -> int:
        """Force evaluations per step in a long trajectory (end kicks of steps merge)."""
        kicks = [op for op in self.operations if op[0] != "drift"]
        evaluations = sum(2 if op[0] == "kick_gradient" else 1 for op in kicks)
        return evaluations - 1 if self.operations[0][0] == "kick" else evaluations

    def merged(self, steps: int) -> list[Operation]:
        """Return the operations of so many steps, adjacent kicks, or drifts, as one."""
        merged: list[Operation] = []
        for operation in self.operations * steps:
            # A force-gradient kick has a name of its own, and never merges.
            if merged and len(operation) == 2 and merged[-1][0] == operation[0]:
                merged[-1] = (operation[0], merged[-1][1] + operation[1])
            else:
                merged.append(operation)
        return merged


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


def nested(levels: Sequence[tuple[Integrator, int]]) -> list[tuple[int, Operation]]:
    """Return the operations of a trajectory in which every part of S has time steps of its own.

    J.C. Sexton and D.H. Weingarten, Nucl. Phys. B380 (1992) 665.  Where the scheme of a level
    drifts, that of the next one runs for the same time, in so many steps; the last one moves the
    field.  Of palindromes it makes a palindrome.

    Args:
        levels: scheme and number of steps of every level, the outermost first: steps of the
            trajectory, of all others per drift of the level before.

    Returns:
        Level and operation, in the order of application, in units of the outermost step size;
        drifts have the last level.  Adjacent operations of one kind and level are one.
    """
    merged: list[tuple[int, Operation]] = []
    for level, operation in _nested(levels, 0, float(levels[0][1])):
        last = merged[-1] if merged else None
        if (
            last is not None
            and len(operation) == 2
            and (last[0], last[1][0])
            == (
                level,
                operation[0],
            )
        ):
            merged[-1] = level, (operation[0], last[1][1] + operation[1])
        else:
            merged.append((level, operation))
    return merged


def _nested(
    levels: Sequence[tuple[Integrator, int]], level: int, time: float
) -> Iterator[tuple[int, Operation]]:
    integrator, steps = levels[level]
    step = time / steps
    for operation in integrator.operations * steps:
        coefficient = operation[1] * step
        if operation[0] == "drift" and level + 1 < len(levels):
            yield from _nested(levels, level + 1, coefficient)
        elif len(operation) == 2:
            yield level, (operation[0], coefficient)
        else:
            yield level, (operation[0], coefficient, operation[2] * step * step)
