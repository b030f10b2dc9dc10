"""From the ``[theory]`` table of a configuration to an action, and back to a table for a card."""

from __future__ import annotations

import math
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flowmc.actions.base import Action, at_couplings, name_of
from flowmc.groups import Group, Real, parse_group
from flowmc.memory import memory_here
from flowmc.registry import (
    ConfigError,
    build,
    check_known,
    nearest,
    parameters,
    positional_of,
    resolve,
    written,
)

__all__ = ["TheoryTable", "build_action", "check_couplings", "describe_theory", "theory_table"]

# The least that any calculation needs of a scalar field: the field, momenta, force and proposal in
# double precision, neighbours, and complex modes with their momenta.
_BYTES_PER_SITE = 256
_MOST_DIMENSIONS = 16


@dataclass(frozen=True, kw_only=True)
class TheoryTable:
    """``[theory]``: the action and its field; the couplings stand beside.

    Attributes:
        action: its name, or "package.module:Name".
        lattice: extents, x first and time last.
        group: of a gauge theory: "U(1)", "SU(2)", "SU(3)", ...
    """

    action: str
    lattice: int | list[int]
    group: str | None = None


def build_action(table: Mapping[str, Any], where: str = "[theory]") -> Action:
    """Return the action that a ``[theory]`` table describes.

    Args:
        table: ``action`` (a built-in name or "package.module:Name"), ``lattice`` (extents, x
            first), ``group`` for actions that take one (gauge theories), and the couplings: the
            keyword-only parameters of the action.
        where: how to name the table in messages.

    Raises:
        ConfigError: naming the key that is missing, unknown or unusable.
    """
    couplings = dict(table)
    name = couplings.pop("action", None)
    if name is None:
        raise ConfigError(f"{where}: missing key 'action', e.g. action = \"phi4\"")
    if not isinstance(name, str):
        raise ConfigError(f"{where}: action = {name!r}: should be a name in quotes")
    component = resolve("actions", name, where)
    lattice = _lattice(couplings.pop("lattice", None), where)
    group = couplings.pop("group", None)
    positional: list[Any] = [lattice]
    if "group" in positional_of(component):
        if group is None:
            raise ConfigError(
                f"{where}: the {name} action is a gauge theory: give its group, e.g. "
                'group = "SU(3)" or "U(1)"'
            )
        try:
            positional.insert(0, parse_group(str(group)))
        except ValueError as error:
            raise ConfigError(f"{where}: group = {group!r}: {error}") from error
    elif group is not None and str(group).upper() != _group_of(component).name.upper():
        own = _group_of(component)
        kind = "real" if isinstance(own, Real) else f"in {own.name}"
        raise ConfigError(
            f"{where}: group = {group!r} does not apply to the {name} action, whose field is "
            f"{kind}; remove the key or choose a gauge action such as 'wilson'"
        )
    beside = [key for key in parameters(TheoryTable) if key != "group" or len(positional) == 2]
    check_known(couplings, [*beside, *written(parameters(component))], where)
    try:
        action = build(component, couplings, where, *positional)
    except ConfigError:
        raise
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(action, Action):
        raise ConfigError(
            f"{where}: action = {name!r} gives {type(action).__name__}, which is not an Action "
            "(flowmc.actions.Action)"
        )
    return action


def check_couplings(action: Action, couplings: Mapping[str, Any], where: str) -> Action:
    """Return ``action`` with some couplings replaced, as written in a table ``{beta = 5.8}``.

    Raises:
        ConfigError: for a coupling that the action does not have, or a value that is no number.
    """
    for key, value in couplings.items():
        if key not in action.parameters:
            raise ConfigError(
                f"{where}: the {action.name} action has no coupling {key!r}"
                f"{nearest(key, action.parameters)}"
            )
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ConfigError(f"{where}: {key} = {value!r}: should be a number")
        if not abs(value) <= sys.float_info.max:
            raise ConfigError(f"{where}: {key} = {value!r}: should be finite")
    try:
        return at_couplings(action, {key: float(value) for key, value in couplings.items()})
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def describe_theory(action: Action, name: str | None = None) -> dict[str, Any]:
    """Return ``{action, group, lattice, couplings}`` of an action: what a flow's card records.

    An action with :attr:`~flowmc.actions.base.Action.settings` has the key ``settings`` as well.

    Args:
        action: the target.
        name: the name it was configured by, if not the action's own.
    """
    theory: dict[str, Any] = {
        "action": name or name_of(action),
        "group": action.group.name,
        "lattice": list(action.lattice),
        "couplings": dict(action.parameters),
    }
    if action.settings:
        theory["settings"] = dict(action.settings)
    return theory


def theory_table(described: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``[theory]`` table of what :func:`describe_theory` has returned.

    :func:`build_action` makes the action of it again.
    """
    table = {"action": described["action"], "lattice": described["lattice"]}
    if described.get("group", "R") != "R":
        table["group"] = described["group"]
    return table | described.get("settings", {}) | described["couplings"]


def _lattice(value: Any, where: str) -> tuple[int, ...]:
    if value is None:
        raise ConfigError(f"{where}: missing key 'lattice', e.g. lattice = [8, 8]")
    extents = value if isinstance(value, (list, tuple)) else [value]
    for extent in extents:
        if isinstance(extent, bool) or not isinstance(extent, int) or extent < 1:
            raise ConfigError(
                f"{where}: lattice = {value!r}: should be a list of positive integers, x first"
            )
    if not extents:
        raise ConfigError(f"{where}: lattice = []: needs at least one extent")
    bytes_needed, bytes_here = _BYTES_PER_SITE * math.prod(extents), memory_here()
    if len(extents) > _MOST_DIMENSIONS or bytes_needed > bytes_here:
        raise ConfigError(
            f"{where}: lattice = {value!r}: has at most {_MOST_DIMENSIONS} directions, and at most "
            f"the {bytes_here // _BYTES_PER_SITE:,} sites that this machine has the memory for"
        )
    return tuple(extents)


def _group_of(component: Any) -> Group:
    group = getattr(component, "group", None)
    return group if isinstance(group, Group) else Real()
