"""What compiled actions have in common: fields in lanes that are integrated, and their action."""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

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


def make_trajectory(prepare: Prepare, integrator: Integrator) -> Trajectory:
    """Return a native ``(field, momentum, step_size, steps) -> (field, momentum)``."""

    def run(
        field: Tensor, momentum: Tensor, step_size: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        dynamics = prepare(field)
        packed, momenta = dynamics.pack(field, FIELD), dynamics.pack(momentum, MOMENTUM)
        sizes = step_size.detach().numpy()
        dynamics.integrate(packed, momenta, integrator.merged(steps), sizes)
        return dynamics.unpack(packed, FIELD), dynamics.unpack(momenta, MOMENTUM)

    return run


def make_nested_trajectory(
    prepared: Sequence[Prepare], operations: Sequence[tuple[int, Operation]]
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return a native ``(field, momentum, step_size) -> (field, momentum)`` of several levels.

    Args:
        prepared: of every level; all pack fields alike.
        operations: with their levels, see :func:`flowmc.splitting.nested`.
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
        for level, segment in segments:
            dynamics[level].integrate(packed, momenta, segment, sizes)
        return first.unpack(packed, FIELD), first.unpack(momenta, MOMENTUM)

    return run


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
