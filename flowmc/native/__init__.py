"""Native CPU kernels: actions, forces and whole trajectories in compiled code.

Torch stays the general path (any action, GPU, autograd).  For actions that are one term of
:mod:`flowmc.terms` (phi^4, the free field, the double well, Wilson actions with any weights of the
plaquettes, their sums and multiples) on a CPU, :func:`find_trajectory`, :func:`find_force`,
:func:`find_action` and :func:`find_projection` return compiled versions that agree with it to
rounding, are the same bit for bit for any number of threads, and run on
``torch.get_num_threads()`` of them.  They return None where there is none, also for actions that
have formulas of their own, for fields that gradients are taken of, and inside :func:`torch_only`;
the environment variable ``FLOWMC_NATIVE=0`` makes them always do so.

Only actions, trajectories and flows ask for them, each in one place: everybody else calls
``action(field)``, ``action.force(field)``,
:func:`~flowmc.kernels.integrators.trajectory` and the maps of flows.

The continuous flow of scalar fields has compiled kernels, too, with their gradients
(:func:`has_continuous_map`).

Kernels are compiled on first use (seconds) and cached on disk by numba (``NUMBA_CACHE_DIR`` moves
the cache).  numba is imported on first use only.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Callable, Iterator, Sequence
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
    "is_on",
    "torch_only",
    "why_in_torch",
]

Trajectory = Callable[[Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]

_GROUPS = ("U(1)", "SU(2)", "SU(3)")
# Neighbour tables are int32 with four bits taken.
_MAXIMAL_SITES = 2**27


_is_torch_only = contextvars.ContextVar("_is_torch_only", default=False)


@contextlib.contextmanager
def torch_only() -> Iterator[None]:
    """Leave everything inside to torch, as ``FLOWMC_NATIVE=0`` does for a whole process."""
    token = _is_torch_only.set(True)
    try:
        yield
    finally:
        _is_torch_only.reset(token)


def is_on() -> bool:
    """Whether compiled code may be used at all."""
    return os.environ.get("FLOWMC_NATIVE", "1") != "0" and not _is_torch_only.get()


def find_trajectory(action: Action, field: Tensor, integrator: Integrator) -> Trajectory | None:
    """Return a compiled molecular-dynamics trajectory, or None if there is none for this case.

    Args:
        action: must be one term, see :meth:`~flowmc.actions.Action.compilable`.
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
    if any(len(operation) != 2 for operation in integrator.operations):
        return None
    module, term = _compiled(action, field)
    if module is None:
        return None
    run = module.make_trajectory(term, integrator)

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
    module, term = _compiled(action, field)
    return None if module is None else _checked(action, module.make_force(term))


def find_action(action: Action, field: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a compiled ``action(field) -> (chains,)`` float64, or None if there is none."""
    module, term = _compiled(action, field)
    return None if module is None else _checked(action, module.make_action(term))


def find_projection(action: Action, field: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a compiled ``action.group.project`` of SU(3) fields, or None if there is none.

    It serves fields that have drifted off the group by rounding; one that is farther away than
    that is handed to torch.
    """
    if action.group.name != "SU(3)":
        return None
    module, term = _compiled(action, field)
    return None if module is None else _checked(action, module.make_projection(term))


def find_gradient_flow(
    action: Action, field: Tensor
) -> Callable[[Tensor, float, Sequence[int]], tuple[Tensor, Tensor]] | None:
    r"""Return the compiled gradient flow of the plain Wilson action, or None for this case.

    Args:
        action: a :class:`~flowmc.actions.Wilson` action, whose coupling does not matter.
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
    module, term = _compiled(action, field)
    if module is None or not action.is_gauge or term.weights is not None:
        return None
    from flowmc.native.gradient_flow import make_gradient_flow

    flow = make_gradient_flow(term)

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
    if not is_on() or group.name != "SU(3)":
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
        is_on()
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


def why_in_torch(action: Action) -> str | None:
    """Return why torch computes an action on the CPU, a sentence; None if compiled code does."""
    terms = action.compilable()
    if terms is None and action.as_data() is not None:
        return "it has formulas of its own beside the terms that it inherits (as_data)"
    if terms is None:
        return "it declares no terms (as_data)"
    if len(terms) > 1:
        return "it has terms of several kinds"
    if action.is_gauge and action.group.name not in _GROUPS:
        return f"there are no kernels for {action.group.name}"
    return None if action.volume <= _MAXIMAL_SITES else "its lattice is too large"


def _compiled(action: Action, field: Tensor) -> tuple[Any, Any]:
    """Return the module with kernels for this action and field, and the term; or None twice."""
    if field.device.type != "cpu" or not is_on():
        return None, None
    # Subclasses of tensors, and tensors with tangents, carry more than numbers.
    if type(field) not in (Tensor, torch.nn.Parameter) or _has_tangent(field):
        return None, None
    if field.layout is not torch.strided or (field.requires_grad and torch.is_grad_enabled()):
        return None, None
    if action.volume > _MAXIMAL_SITES or field.dtype not in _types(action):
        return None, None
    if not field.dim() or not field.shape[0]:
        return None, None
    if tuple(field.shape) != action.field_shape(field.shape[0]):
        return None, None
    terms = action.compilable()
    if terms is None or len(terms) != 1:
        return None, None
    from flowmc.terms import Hopping, Plaquettes

    (term,) = terms
    if isinstance(term, Hopping):
        from flowmc.native import scalar

        return scalar, term
    if isinstance(term, Plaquettes) and term.group.name in _GROUPS:
        from flowmc.native import gauge

        return gauge, term
    return None, None


def _has_tangent(field: Tensor) -> bool:
    # Private, as torch says it nowhere else; forward derivatives are seldom on.
    return torch.autograd.forward_ad._current_level >= 0 and (
        torch.autograd.forward_ad.unpack_dual(field).tangent is not None
    )
