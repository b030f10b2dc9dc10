"""The contract of an action: values, force, symmetries, couplings, identity, and both engines."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from flowmc import native
from flowmc.actions.base import Action, at_couplings, check_force
from flowmc.actions.theory import build_action, describe_theory, theory_table
from flowmc.identity import identity
from flowmc.kernels.integrators import trajectory
from flowmc.splitting import INTEGRATORS
from flowmc.testing.base import (
    gauge_transformation,
    random_numbers,
    require,
    require_close,
    single,
    translation,
)

__all__ = ["check_action", "check_theory_table"]

_CHAINS = 3
# Largest differences, relative where numbers are above 1: of what is equal up to rounding in
# double precision, of numbers from fields in single precision, and of differences.
_ROUNDING, _SINGLE, _DIFFERENCES = 1e-10, 1e-3, 1e-6


def check_action(action: Action) -> None:
    """Hold an action to its contract; see :class:`flowmc.actions.Action`.

    The value is one number per chain in double precision, of that chain alone, and near it for a
    field in single precision.  The force is the derivative.  Links may be gauge transformed; where
    an ``interaction_range`` is declared the action is the same everywhere and not felt beyond it.
    ``at`` changes one coupling and nothing else, ``on_lattice`` the extents, and the identity
    differs with every coupling.  Compiled code, where there is some, computes what torch does.

    Args:
        action: on a small lattice.

    Raises:
        ContractError: naming what does not hold.
    """
    rng = random_numbers("check of an action")
    field = action.hot(_CHAINS, rng)
    _check_fields(action, field)
    _check_values(action, field)
    _check_engines(action, field, rng)
    _check_force(action, field, rng)
    _check_symmetries(action, field, rng)
    _check_couplings(action, field)


def check_theory_table(table: Mapping[str, Any]) -> Action:
    """Check that a ``[theory]`` table gives an action that is described by a table like it.

    Args:
        table: as in a configuration file.

    Returns:
        The action, for :func:`check_action`.

    Raises:
        ContractError: the description gives another action.
    """
    action = build_action(table)
    told = describe_theory(action, table["action"])
    again = theory_table(told)
    second = build_action(again)
    same = type(second) is type(action) and second.parameters == action.parameters
    field = action.hot(2, random_numbers("check of a table"))
    same = same and dict(second.settings) == dict(action.settings)
    same = same and torch.equal(second(field), action(field))
    require(same, action, f"its table {again} gives another action, {second!r}")
    return action


def _check_fields(action: Action, field: Tensor) -> None:
    for dtype in (torch.float64, torch.float32):
        rng = random_numbers("check of a start")
        for start in (action.hot(2, rng, dtype), action.cold(2, dtype)):
            action.check_field(start)
            require(
                start.dtype == action.group.field_dtype(dtype) and bool(start.isfinite().all()),
                action,
                f"its starts in {dtype} are not finite, or of {start.dtype}",
            )
    try:
        action.check_field(field[:, :1])
    except ValueError:
        return
    require(field.shape[1] == 1, action, "check_field takes a field of other extents")


def _check_values(action: Action, field: Tensor) -> None:
    before = field.clone()
    value, force = action(field), action.force(field)
    require(torch.equal(field, before), action, "it changes the field that it is given")
    require(
        value.shape == (len(field),) and value.dtype == torch.float64,
        action,
        f"S of {len(field)} chains is {tuple(value.shape)} {value.dtype}, not (chains,) float64",
    )
    require(bool(value.isfinite().all()), action, "S of a hot start is not finite")
    require(
        force.shape == field.shape and force.dtype == field.dtype,
        action,
        f"the force is {tuple(force.shape)} {force.dtype}, not like the field",
    )
    alone = torch.cat([action(one) for one in field.split(1)])
    require_close(alone, value, _ROUNDING, action, "S of a chain depends on the others")
    alone = torch.cat([action.force(one) for one in field.split(1)])
    require_close(alone, force, _ROUNDING, action, "the force of a chain depends on the others")
    low = single(field)
    require(action(low).dtype == torch.float64, action, "S of a field in float32 is no float64")
    require_close(action(low), value, _SINGLE, action, "S in single precision is another")
    require(action.force(low).dtype == low.dtype, action, "the force of float32 is no float32")
    require_close(action.force(low), force, _SINGLE, action, "the force in single precision")


def _check_force(action: Action, field: Tensor, rng: torch.Generator) -> None:
    for chain in field.split(1):
        error = check_force(action, chain, rng)
        require(
            error <= _DIFFERENCES,
            action,
            f"its force is off finite differences of S by {error:.3g}",
        )
    try:
        automatic = action.force_by_autograd(field)
    except RuntimeError:  # computed by what torch cannot differentiate
        return
    require_close(action.force(field), automatic, 1e-9, action, "its force is not that of autograd")


def _check_symmetries(action: Action, field: Tensor, rng: torch.Generator) -> None:
    value, force = action(field), action.force(field)
    if action.is_gauge:
        links, algebra = gauge_transformation(action, len(field), rng)
        moved = links(field)
        require_close(action(moved), value, _ROUNDING, action, "S is not gauge invariant")
        require_close(
            action.force(moved), algebra(force), _ROUNDING, action, "the force is not covariant"
        )
    if action.interaction_range is None:
        return
    for mu in range(action.dimensions):
        move = translation(action, mu)
        text = f"it declares interaction_range, but is not the same everywhere along {mu}"
        require_close(action(move(field)), value, _ROUNDING, action, text)
        require_close(action.force(move(field)), move(force), _ROUNDING, action, text)
    _check_range(action, field, force, rng)


def _check_range(action: Action, field: Tensor, force: Tensor, rng: torch.Generator) -> None:
    """Move what is at the origin: nothing may be felt farther away than the range says."""
    assert action.interaction_range is not None
    first = 2 if action.is_gauge else 1
    origin = torch.zeros(action.lattice, dtype=torch.bool)
    origin[(0,) * action.dimensions] = True
    mask = origin.reshape(*[1] * first, *action.lattice, *[1] * len(action.group.element_shape))
    moved = action.group.move(field, action.group.draw_algebra(field, rng) * mask)
    change = (action.force(moved) - force).abs()
    for mu, extent in enumerate(action.lattice):
        places = torch.arange(extent)
        far = torch.minimum(places, extent - places) > action.interaction_range
        if bool(far.any()):
            worst = float(change.movedim(first + mu, 0)[far].max())
            require(
                worst <= _ROUNDING * max(1.0, float(force.abs().max())),
                action,
                f"its interaction_range is {action.interaction_range}, but it is felt farther away",
            )


def _check_couplings(action: Action, field: Tensor) -> None:
    value, own = action(field), identity(action)
    require(identity(copy.deepcopy(action)) == own, action, "a copy of it has another identity")
    for name, coupling in action.parameters.items():
        moved = at_couplings(action, {name: 1.1 * coupling + 0.01})
        unchanged = {key: v for key, v in action.parameters.items() if key != name}
        require(
            type(moved) is type(action)
            and moved.lattice == action.lattice
            and moved.group == action.group
            and dict(moved.settings) == dict(action.settings)
            and moved.parameters == unchanged | {name: 1.1 * coupling + 0.01},
            action,
            f"at({name}=...) changes more than {name}, or not that: {moved!r}",
        )
        require(
            not torch.allclose(moved(field), value, rtol=1e-9, atol=0),
            action,
            f"S does not depend on {name}",
        )
        require(identity(moved) != own, action, f"its identity does not depend on {name}")
        back = at_couplings(moved, {name: coupling})
        require_close(back(field), value, _ROUNDING, action, f"at({name}=...) has no way back")
        text = f"coupling_derivative({name!r}) is not the derivative of S"
        slope = action.differentiate(name, lambda one: one(field))
        require_close(action.coupling_derivative(name, field), slope, _DIFFERENCES, action, text)
        slope = action.differentiate(name, lambda one: one.force(field))
        text = f"coupling_force({name!r}) is not the derivative of the force"
        require_close(action.coupling_force(name, field), slope, _DIFFERENCES, action, text)
    try:
        action.at(no_coupling_has_this_name=1.0)
    except (ValueError, TypeError):
        pass
    else:
        require(False, action, "at() takes a coupling that it does not have")
    larger = [extent + 2 for extent in action.lattice]
    other = action.on_lattice(larger)
    require(
        other.lattice == tuple(larger) and other.parameters == action.parameters,
        action,
        f"on_lattice({larger}) gives {other!r}",
    )
    require(identity(other) != own, action, "its identity does not depend on the lattice")
    other(other.cold(1))


def _check_engines(action: Action, field: Tensor, rng: torch.Generator) -> None:
    """Compare compiled code with torch: value, force, and a trajectory."""
    if not native.is_on() or native.why_in_torch(action) is not None:
        return
    momentum = action.group.draw_algebra(field, rng)
    step = torch.full((len(field),), 0.02, dtype=torch.float64)

    def everything() -> list[Tensor]:
        path = trajectory(action, action.group, field, momentum, INTEGRATORS["leapfrog"], step, 3)
        return [action(field), action.force(field), *path]

    compiled = everything()
    with native.torch_only():
        plain = everything()
    for name, one, other in zip(
        ("S", "the force", "the field of a trajectory", "its momentum"),
        compiled,
        plain,
        strict=True,
    ):
        require_close(one, other, _ROUNDING, action, f"{name} differs between both engines")
