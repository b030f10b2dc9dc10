"""What compiled actions have in common: fields in lanes that are integrated, and their action."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from flowmc.fields import FixedLinks
from flowmc.splitting import Integrator, Operation

__all__ = [
    "FIELD",
    "MOMENTUM",
    "Dynamics",
    "Prepare",
    "make_action",
    "make_force",
    "make_nested_trajectory",
    "make_trajectory",
]

# What is packed.
FIELD, MOMENTUM = 0, 1


class Dynamics(ABC):
    """The terms of an action, prepared for the fields of one batch of chains."""

    @abstractmethod
    def empty(self, which: int) -> np.ndarray:
        """Return memory for fields or momenta in lanes."""

    @abstractmethod
    def pack(self, field: Tensor, which: int) -> np.ndarray:
        """Copy fields (``which = FIELD``) or momenta (MOMENTUM) into lanes."""

    @abstractmethod
    def unpack(self, packed: np.ndarray, which: int) -> Tensor:
        """Copy lanes back."""

    @abstractmethod
    def integrate(
        self,
        field: np.ndarray,
        momenta: np.ndarray,
        operations: Sequence[Operation],
        step_size: np.ndarray,
    ) -> None:
        """Apply kicks and drifts in place, with one step size per chain."""

    @abstractmethod
    def value(self, field: np.ndarray) -> np.ndarray:
        """Return S per chain, accumulated in float64."""


Prepare = Callable[[Tensor], Dynamics]
Trajectory = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def make_trajectory(
    prepare: Prepare, integrator: Integrator, fixed: FixedLinks | None = None
) -> Trajectory:
    """Return a native ``(field, momentum, step_size, steps) -> (field, momentum)``.

    Args:
        prepare: of the action.
        integrator: the scheme.
        fixed: links that are not kicked.
    """

    def run(
        field: Tensor, momentum: Tensor, step_size: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        dynamics = prepare(field)
        packed, momenta = dynamics.pack(field, FIELD), dynamics.pack(momentum, MOMENTUM)
        sizes = step_size.detach().numpy()
        operations = integrator.merged(steps)
        _integrate(dynamics, packed, momenta, operations, sizes, _free(dynamics, momentum, fixed))
        return dynamics.unpack(packed, FIELD), dynamics.unpack(momenta, MOMENTUM)

    return run


def make_nested_trajectory(
    prepared: Sequence[Prepare],
    operations: Sequence[tuple[int, Operation]],
    fixed: FixedLinks | None = None,
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a native ``(field, momentum, step_size) -> (field, momentum)`` of several levels.

    Args:
        prepared: of every level; all pack fields alike.
        operations: with their levels, see :func:`flowmc.splitting.nested`.
        fixed: links that are not kicked.
    """
    segments = [
        (level, [operation for _, operation in same])
        for level, same in itertools.groupby(operations, lambda both: both[0])
    ]

    def run(field: Tensor, momentum: Tensor, step_size: Tensor) -> tuple[Tensor, Tensor]:
        dynamics = [prepare(field) for prepare in prepared]
        first = dynamics[0]
        packed, momenta = first.pack(field, FIELD), first.pack(momentum, MOMENTUM)
        sizes = step_size.detach().numpy()
        free = _free(first, momentum, fixed)
        for level, segment in segments:
            _integrate(dynamics[level], packed, momenta, segment, sizes, free)
        return first.unpack(packed, FIELD), first.unpack(momenta, MOMENTUM)

    return run


def _free(dynamics: Dynamics, momentum: Tensor, fixed: FixedLinks | None) -> np.ndarray | None:
    """Return 0 for the momenta of fixed links in lanes, and 1 for all others; None: none is."""
    if fixed is None:
        return None
    ones = torch.full_like(momentum, 1 + 1j if momentum.is_complex() else 1)
    # Of an element of the algebra lanes hold some components, of this one none is zero.
    packed = dynamics.pack(fixed.zeroed(ones), MOMENTUM)
    return (packed != 0).astype(packed.dtype)


def _integrate(
    dynamics: Dynamics,
    field: np.ndarray,
    momenta: np.ndarray,
    operations: Sequence[Operation],
    step_size: np.ndarray,
    free: np.ndarray | None,
) -> None:
    if free is None:
        dynamics.integrate(field, momenta, operations, step_size)
        return
    for operation in operations:
        dynamics.integrate(field, momenta, [operation], step_size)
        if operation[0] == "kick":
            momenta *= free


def make_force(prepare: Prepare) -> Callable[[Tensor], Tensor]:
    """Return a native ``field -> force``."""

    def run(field: Tensor) -> Tensor:
        dynamics = prepare(field)
        force = dynamics.empty(MOMENTUM)
        force[:] = 0
        # A kick by minus one unit of time adds the force to momenta of zero.
        ones = np.ones(field.shape[0])
        dynamics.integrate(dynamics.pack(field, FIELD), force, [("kick", -1.0)], ones)
        return dynamics.unpack(force, MOMENTUM)

    return run


def make_action(prepare: Prepare) -> Callable[[Tensor], Tensor]:
    """Return a native ``field -> S`` per chain, ``(chains,)`` float64."""

    def run(field: Tensor) -> Tensor:
        dynamics = prepare(field)
        return torch.from_numpy(dynamics.value(dynamics.pack(field, FIELD)))

    return run
