"""Native CPU kernels for the built-in actions: whole trajectories in compiled code.

Torch stays the general path (any action, GPU, autograd).  For the phi^4, free and Wilson actions
on a CPU, :func:`find_trajectory`, :func:`find_force` and :func:`find_action` return compiled
versions that agree with it to rounding, are the same bit for bit for any number of threads, and
run on ``torch.get_num_threads()`` of them.  They return None where there is none, also for
subclasses of those actions and for fields that require gradients; the environment variable
``FLOWMC_NATIVE=0`` makes them always do so.

Kernels are compiled on first use (seconds) and cached on disk by numba (``NUMBA_CACHE_DIR`` moves
the cache).  numba is imported on first use only.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flowmc.actions.base import Action
    from flowmc.kernels.integrators import Integrator

__all__ = ["find_action", "find_force", "find_trajectory"]

Trajectory = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]

_LINK_TYPES = {
    "U(1)": (torch.float32, torch.float64),
    "SU(2)": (torch.complex64, torch.complex128),
    "SU(3)": (torch.complex64, torch.complex128),
}
# Neighbour tables are int32 with four bits taken.
_MAXIMAL_SITES = 2**27


def find_trajectory(action: Action, field: Tensor, integrator: Integrator) -> Trajectory | None:
    """Return a compiled molecular-dynamics trajectory, or None if there is none for this case.

    Args:
        action: must be exactly one of the built-in classes.
        field: decides device, dtype, shape and number of chains.
        integrator: must consist of plain kicks and drifts (no force-gradient kicks).

    Returns:
        ``run(field, momentum, step_size, steps) -> (field, momentum)`` with ``step_size``
        ``(chains,)``; what :func:`flowmc.kernels.integrators.trajectory` computes, up to rounding.
        Momenta are algebra elements; of SU(N) matrices the upper triangle is read.
    """
    module = _module(action, field)
    if module is None or any(len(operation) != 2 for operation in integrator.operations):
        return None
    return module.make_trajectory(action, integrator)


def find_force(action: Action, field: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a compiled ``action.force``, or None if there is none for this case."""
    module = _module(action, field)
    return None if module is None else module.make_force(action)


def find_action(action: Action, field: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a compiled ``action(field) -> (chains,)`` float64, or None if there is none."""
    module = _module(action, field)
    return None if module is None else module.make_action(action)


def _module(action: Action, field: Tensor) -> Any:
    """Return the module with kernels for this action and field, or None."""
    if os.environ.get("FLOWMC_NATIVE", "1") == "0" or field.device.type != "cpu":
        return None
    if field.layout is not torch.strided or (field.requires_grad and torch.is_grad_enabled()):
        return None
    if action.volume > _MAXIMAL_SITES or not field.dim() or not field.shape[0]:
        return None
    if tuple(field.shape) != action.field_shape(field.shape[0]):
        return None
    from flowmc.actions import FreeScalar, Phi4, Wilson

    # Exact classes: a subclass may have changed the density or the force.
    if type(action) in (Phi4, FreeScalar) and field.dtype in (torch.float32, torch.float64):
        from flowmc.native import scalar

        return scalar
    if type(action) is Wilson and field.dtype in _LINK_TYPES.get(action.group.name, ()):
        from flowmc.native import gauge

        return gauge
    return None
