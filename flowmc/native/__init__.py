"""Native CPU kernels: actions, forces and whole trajectories in compiled code.

Torch stays the general path (any action, GPU, autograd).  For actions made of the terms of
:mod:`flowmc.terms` (phi^4, the free field, the double well; plaquettes and loops of any shapes with
any weights; their sums and multiples) on a CPU, :func:`find_trajectory`, :func:`find_force`,
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
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from flowmc.actions.base import Action
    from flowmc.fields import FieldSpace
    from flowmc.groups import Group
    from flowmc.native.dynamics import Prepare
    from flowmc.splitting import Integrator, Operation
    from flowmc.terms import Term

__all__ = [
    "find_action",
    "find_force",
    "find_gradient_flow",
    "find_link_solver",
    "find_nested_trajectory",
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
        action: must have terms, see :meth:`~flowmc.actions.Action.compilable`.
        field: decides device, dtype, shape and number of chains.
        integrator: must consist of plain kicks and drifts (no force-gradient kicks).

    Returns:
        ``run(field, momentum, step_size, steps) -> (field, momentum)`` with ``step_size``
        ``(chains,)``; what :func:`flowmc.kernels.integrators.trajectory` computes, up to rounding.
        Momenta are algebra elements, of which the diagonal and the upper triangle are read;
        fields are on the group to rounding.  Gradients do not pass through.  Links that the action
        holds fixed must be in the field, with momenta of zero.

    Raises:
        ValueError: (the returned function) for fields or momenta of another theory or dtype.
    """
    if any(len(operation) != 2 for operation in integrator.operations):
        return None
    prepare = _compiled(action, field)
    if prepare is None:
        return None
    from flowmc.native.dynamics import make_trajectory

    run = make_trajectory(prepare, integrator, action.fixed_links)

    def checked(
        field: Tensor, momentum: Tensor, step_size: Tensor, steps: int
    ) -> tuple[Tensor, Tensor]:
        _check_start(action, field, momentum, step_size)
        return run(field, momentum, step_size, steps)

    return checked


def find_nested_trajectory(
    actions: Sequence[Action], field: Tensor, operations: Sequence[tuple[int, Operation]]
) -> Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]] | None:
    """Return a compiled trajectory with levels, or None if not all of it is compiled.

    Args:
        actions: of every level.
        field: as for :func:`find_trajectory`.
        operations: with their levels, see :func:`flowmc.splitting.nested`.

    Returns:
        ``run(field, momentum, step_size) -> (field, momentum)``.
    """
    if any(len(operation) != 2 for _, operation in operations):
        return None
    prepared = [one for action in actions if (one := _compiled(action, field)) is not None]
    if len(prepared) < len(actions):
        return None
    from flowmc.native.dynamics import make_nested_trajectory

    run = make_nested_trajectory(prepared, operations, actions[0].fixed_links)

    def checked(field: Tensor, momentum: Tensor, step_size: Tensor) -> tuple[Tensor, Tensor]:
        _check_start(actions[0], field, momentum, step_size)
        return run(field, momentum, step_size)

    return checked


def _check_start(action: Action, field: Tensor, momentum: Tensor, step_size: Tensor) -> None:
    _check(action, field, field.dtype)
    _check(action, momentum, field.dtype)
    if momentum.shape != field.shape or tuple(step_size.shape) != (field.shape[0],):
        raise ValueError(
            f"a trajectory of fields {tuple(field.shape)} needs momenta of the same shape and "
            f"one step size per chain, got {tuple(momentum.shape)} and "
            f"{tuple(step_size.shape)}"
        )


def find_force(action: Action, field: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a compiled ``action.force``, or None if there is none for this case."""
    prepare = _compiled(action, field)
    if prepare is None:
        return None
    from flowmc.native.dynamics import make_force

    return _checked(action, make_force(prepare))


def find_action(action: Action, field: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a compiled ``action(field) -> (chains,)`` float64, or None if there is none."""
    prepare = _compiled(action, field)
    if prepare is None:
        return None
    from flowmc.native.dynamics import make_action

    return _checked(action, make_action(prepare))


def find_projection(action: Action, field: Tensor) -> Callable[[Tensor], Tensor] | None:
    """Return a compiled ``action.group.project`` of SU(3) fields, or None if there is none.

    It serves fields that have drifted off the group by rounding; one that is farther away than
    that is handed to torch.
    """
    if action.group.name != "SU(3)" or _compiled(action, field) is None:
        return None
    from flowmc.native.link_fields import make_projection

    return _checked(action, make_projection(action.group))


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
    terms = action.compilable() if _compiled(action, field) is not None else None
    if terms is None or len(terms) != 1 or not _is_plain(terms[0]):
        return None
    from flowmc.native.gradient_flow import make_gradient_flow

    flow = make_gradient_flow(action.group)

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
    if action.is_gauge and action.group.name not in _GROUPS:
        return f"there are no kernels for {action.group.name}"
    if _kernels(action.space, terms) is None:
        kinds = " and ".join(dict.fromkeys(type(term).__name__ for term in terms))
        return f"there are no kernels for {kinds} of {action.space}"
    return None if action.volume <= _MAXIMAL_SITES else "its lattice is too large"


def _compiled(action: Action, field: Tensor) -> Prepare | None:
    """Return what prepares the terms of this action for fields like this one, or None."""
    if field.device.type != "cpu" or not is_on():
        return None
    # Subclasses of tensors, and tensors with tangents, carry more than numbers.
    if type(field) not in (Tensor, torch.nn.Parameter) or _has_tangent(field):
        return None
    if field.layout is not torch.strided or (field.requires_grad and torch.is_grad_enabled()):
        return None
    if action.volume > _MAXIMAL_SITES or field.dtype not in _types(action):
        return None
    if not field.dim() or not field.shape[0]:
        return None
    if tuple(field.shape) != action.field_shape(field.shape[0]):
        return None
    terms = action.compilable()
    return None if terms is None else _kernels(action.space, terms)


def _kernels(space: FieldSpace, terms: Sequence[Term]) -> Prepare | None:
    """Return what prepares a sum of terms, or None if there are no kernels for them."""
    from flowmc.terms import Hopping, Loops, Plaquettes

    if not terms or not (space.is_gauge or space.is_scalar):
        return None
    of_links = [term for term in terms if isinstance(term, (Plaquettes, Loops))]
    if space.is_gauge:
        names = {term.group.name for term in of_links}
        if len(of_links) != len(terms) or names != {space.group.name} or not names <= {*_GROUPS}:
            return None
        if len(of_links) == 1 and isinstance(of_links[0], Plaquettes):
            from flowmc.native.gauge import PlaquetteDynamics

            return functools.partial(PlaquetteDynamics, of_links[0])
        from flowmc.native.loops import LoopDynamics

        return functools.partial(LoopDynamics, of_links)
    if len(terms) == 1 and isinstance(terms[0], Hopping):
        from flowmc.native.scalar import HoppingDynamics

        return functools.partial(HoppingDynamics, terms[0])
    return None


def _is_plain(term: Term) -> bool:
    from flowmc.terms import Plaquettes

    return isinstance(term, Plaquettes) and term.weights is None


def _has_tangent(field: Tensor) -> bool:
    # Private, as torch says it nowhere else; forward derivatives are seldom on.
    return torch.autograd.forward_ad._current_level >= 0 and (
        torch.autograd.forward_ad.unpack_dual(field).tangent is not None
    )
