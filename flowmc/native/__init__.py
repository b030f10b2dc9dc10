"""Native CPU kernels for the built-in actions: whole trajectories in compiled code.

Torch stays the general path (any action, GPU, autograd).  For the phi^4, free, double-well and
Wilson actions (also with a defect) on a CPU, :func:`find_trajectory`, :func:`find_force`,
:func:`find_action` and :func:`find_projection` return compiled versions that agree with it to
rounding, are the same bit for bit for any number of threads, and run on
``torch.get_num_threads()`` of them.  They return None where there is none, also for subclasses of
those actions and for fields that require gradients; the environment variable ``FLOWMC_NATIVE=0``
makes them always do so.

The continuous flow of scalar fields has compiled kernels, too, with their gradients
(:func:`has_continuous_map`).

Kernels are compiled on first use (seconds) and cached on disk by numba (``NUMBA_CACHE_DIR`` moves
the cache).  numba is imported on first use only.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flowmc.actions.base import Action
    from flowmc.groups import Group
    from flowmc.splitting import Integrator

__all__ = [
    "find_action",
    "find_force",
    "find_gradient_flow",
    "find_link_solver",
    "find_projection",
    "find_trajectory",
    "has_continuous_map",
]

Trajectory = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]

_GROUPS = ("U(1)", "SU(2)", "SU(3)")
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
        Momenta are algebra elements, of which the diagonal and the upper triangle are read;
        fields are on the group to rounding.  Gradients do not pass through.

    Raises:
        ValueError: (the returned function) for fields or momenta of another theory or dtype.
    """
    module = _module(action, field)
    if module is None or any(len(operation) != 2 for operation in integrator.operations):
        return None
    run = module.make_trajectory(action, integrator)

    def checked(
        field: Tensor, momentum: Tensor, step_size: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        _check(action, field, field.dtype)
        _check(action, momentum, field.dtype)
        if momentum.shape != field.shape or tuple(step_size.shape) != (field.shape[0],):
            raise ValueError(
                f"a trajectory of fields {tuple(field.shape)} needs momenta of the same shape and "
                f"one step size per chain, got {tuple(momentum.shape)} and "
                f"{tuple(step_size.shape)}"
            )
        return run(field, momentum, step_size, steps)

    return checked


def find_force(action: Action, field: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a compiled ``action.force``, or None if there is none for this case."""
    module = _module(action, field)
    return None if module is None else _checked(action, module.make_force(action))


def find_action(action: Action, field: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a compiled ``action(field) -> (chains,)`` float64, or None if there is none."""
    module = _module(action, field)
    return None if module is None else _checked(action, module.make_action(action))


def find_projection(action: Action, field: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a compiled ``action.group.project`` of SU(3) fields, or None if there is none.

    It serves fields that have drifted off the group by rounding; one that is farther away than
    that is handed to torch.
    """
    module = _module(action, field)
    if module is None or action.group.name != "SU(3)":
        return None
    return _checked(action, module.make_projection(action))


def find_gradient_flow(
    action: Action, field: Tensor
) -> Callable[[Tensor, float, Sequence[int]], tuple[Tensor, Tensor]] | None:
    r"""Return the compiled gradient flow of the plain Wilson action, or None for this case.

    Args:
        action: a :class:`~flowmc.actions.Wilson`, whose coupling does not matter.
        field: as for :func:`find_trajectory`.

    Returns:
        ``run(field, step, counts) -> (field, table)``: ``counts[k]`` steps of the third-order
        scheme of arXiv:1006.4518, then one measurement, for every k.  The table is
        ``(chains, len(counts), columns)`` float64 with the columns E from the clover, E from the
        plaquette and, for U(1) in two and SU(N) in four dimensions, the topological charge; see
        :mod:`flowmc.observables.flowed` for their definitions.

    Raises:
        ValueError: (the returned function) for fields of another theory or dtype.
    """
    from flowmc.actions import Wilson

    if _module(action, field) is None or type(action) is not Wilson:
        return None
    from flowmc.native.gradient_flow import make_gradient_flow

    flow = make_gradient_flow(action)

    def checked(field: Tensor, step: float, counts: Sequence[int]) -> tuple[Tensor, Tensor]:
        _check(action, field, field.dtype)
        return flow(field, step, counts)

    return checked


def find_link_solver(
    group: Group, links: Tensor
) -> Callable[[Tensor, Tensor, int, float], tuple[Tensor, Tensor]] | None:
    """Return the compiled inverse of a masked layer of SU(3) links, or None for other cases.

    Args:
        group: of the links.
        links: decide device and dtype.

    Returns:
        :func:`flowmc.native.links.solve_links`.  Gradients do not pass through.
    """
    if os.environ.get("FLOWMC_NATIVE", "1") == "0" or group.name != "SU(3)":
        return None
    if links.device.type != "cpu" or links.dtype not in (torch.complex64, torch.complex128):
        return None
    if links.dim() != 4 or links.layout is not torch.strided or not links.numel():
        return None
    from flowmc.native.links import solve_links

    return solve_links


def has_continuous_map(lattice: Sequence[int], rows: Tensor) -> bool:
    """Whether the continuous flow is compiled: on two axes, in float32, on the CPU.

    Args:
        lattice: extents.
        rows: the fields, ``(V, chains)``.
    """
    return (
        os.environ.get("FLOWMC_NATIVE", "1") != "0"
        and len(lattice) == 2
        and rows.device.type == "cpu"
        and rows.dtype == torch.float32
        and rows.shape[1] > 0
    )


def _checked(action: Action, run: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def checked(field: Tensor) -> Tensor:
        _check(action, field, field.dtype)
        return run(field)

    return checked


def _check(action: Action, field: Tensor, dtype: torch.dtype) -> None:
    # Compiled code trusts shapes: a wrong one would read foreign memory.
    action.check_field(field)
    if field.device.type != "cpu" or field.dtype != dtype or dtype not in _types(action):
        allowed = " or ".join(str(kind).removeprefix("torch.") for kind in _types(action))
        raise ValueError(
            f"native kernels take {allowed} tensors of one precision on the CPU, got {field.dtype} "
            f"on {field.device}"
        )


def _types(action: Action) -> tuple[torch.dtype, ...]:
    is_matrix = bool(action.group.element_shape)
    return (torch.complex64, torch.complex128) if is_matrix else (torch.float32, torch.float64)


def _module(action: Action, field: Tensor) -> Any:
    """Return the module with kernels for this action and field, or None."""
    if os.environ.get("FLOWMC_NATIVE", "1") == "0" or field.device.type != "cpu":
        return None
    if field.layout is not torch.strided or (field.requires_grad and torch.is_grad_enabled()):
        return None
    if action.volume > _MAXIMAL_SITES or field.dtype not in _types(action):
        return None
    if not field.dim() or not field.shape[0]:
        return None
    if tuple(field.shape) != action.field_shape(field.shape[0]):
        return None
    from flowmc.actions import DefectWilson, DoubleWell, FreeScalar, Phi4, Wilson

    # Exact classes: a subclass may have changed the density or the force.
    if type(action) in (Phi4, FreeScalar, DoubleWell):
        from flowmc.native import scalar

        return scalar
    if type(action) in (Wilson, DefectWilson) and action.group.name in _GROUPS:
        from flowmc.native import gauge

        return gauge
    return None
