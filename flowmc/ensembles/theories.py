"""The theory that a configuration file was made with, as a ``[theory]`` table."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import flowmc_adapters
from flowmc_adapters import FormatError, Inspection

from flowmc.actions.base import Action
from flowmc.actions.theory import TheoryTable, build_action
from flowmc.ensembles.claims import Claims
from flowmc.registry import ConfigError, parameters, positional_of, resolve, written

__all__ = ["StoredTheory", "theory_of_file"]

# What a file that names no action is taken for.
_USUAL = {"gauge": "wilson", "u1": "wilson", "scalar": "phi4"}


@dataclass(frozen=True)
class StoredTheory:
    """What a configuration file says, and what was given beside it.

    Attributes:
        table: ``[theory]``.
        action: the theory.
        format: name of the file's format.
        precision: 32 or 64, of one real number in the file.
        remarks: what was taken for granted, one sentence each.
    """

    table: dict[str, Any]
    action: Action
    format: str
    precision: int
    remarks: tuple[str, ...] = ()


def theory_of_file(path: str, given: Mapping[str, Any]) -> StoredTheory:
    """Return the theory of a configuration file; the file is read and its checksum verified.

    Args:
        path: a file of any format.
        given: keys of ``[theory]`` that the file does not say, or says differently.

    Raises:
        ConfigError: the file cannot be read, is damaged, has boundary conditions that no theory
            here has, or does not say which theory it was made with.
    """
    found = flowmc_adapters.examine(path)
    report = found.report
    if found.status:
        raise ConfigError(report["error"] or f"{path}: {found.reason}")
    if report["boundary"]:
        raise ConfigError(
            f"{path}: its {report['boundary']} boundaries are those of no theory here, all of "
            "which are periodic: go on with the code that wrote it"
        )
    if (report["configurations"] or 1) > 1:
        raise ConfigError(
            f"{path} holds {report['configurations']} configurations: name one of them, as in "
            f"{path}#1000"
        )
    remarks: list[str] = []
    kind, dims, precision = _field_of(path, found, given, remarks)
    claims = Claims(found.metadata)
    name = given.get("action", claims.action)
    if name is None:
        if claims.other_action:
            raise ConfigError(
                f"{path} says that its action is {claims.other_action!r}, which has no such name "
                'here: name the action, as in --set theory.action=wilson, or "module:Name" of '
                "your own"
            )
        name = _USUAL[kind]
        remarks.append(f"{path} does not say its action: taken as {name}")
    component = resolve("actions", str(name), "[theory]")
    table: dict[str, Any] = {"action": name}
    if "group" in positional_of(component):
        table["group"] = f"SU({report['nc']})" if kind == "gauge" else "U(1)"
    table["lattice"] = dims
    for key in written(parameters(component)):
        value = _value(claims.coupling(key))
        if value is not None:
            table[key] = value
    table |= given
    try:
        action = build_action(table)
    except ConfigError as error:
        stated = [key for key in table if key not in (*parameters(TheoryTable), *given)]
        raise ConfigError(
            f"{path} says {' and '.join(stated) or 'nothing'} of the couplings of its theory; "
            f"give what is missing, as in --set theory.{_missing(component, table)}=VALUE ({error})"
        ) from error
    return StoredTheory(table, action, report["format"], precision, tuple(remarks))


def _field_of(
    path: str, found: Inspection, given: Mapping[str, Any], remarks: list[str]
) -> tuple[str, list[int], int]:
    """Return kind ("gauge", "u1", "scalar"), extents (x first) and precision of the field."""
    report = found.report
    if report["kind"] != "array":
        return report["kind"], list(report["dims"]), report["precision"]
    shape = flowmc_adapters.read_array(path).shape
    # A last axis as long as there are axes before it is that of the directions of links.
    kind = "u1" if len(shape) > 1 and shape[-1] == len(shape) - 1 else "scalar"
    if "action" in given:
        component = resolve("actions", str(given["action"]), "[theory]")
        kind = "u1" if "group" in positional_of(component) else "scalar"
    what = "the angles of U(1) links" if kind == "u1" else "a real scalar field"
    remarks.append(f"{path} is a plain array of shape {shape}: taken as {what}")
    try:
        field = flowmc_adapters.read_field(path, kind=kind)
    except (FormatError, ValueError) as error:
        raise ConfigError(str(error)) from error
    return kind, list(field.dims), 8 * field.values.dtype.itemsize


def _value(said: Any) -> Any:
    """Return the number, or the list of numbers, that a file says; None for anything else."""
    if isinstance(said, str):
        try:
            said = json.loads(said)
        except ValueError:
            try:
                said = float(said)  # as Fortran and C print numbers
            except ValueError:
                return None
    if isinstance(said, list):
        return said if all(isinstance(_value(one), (int, float)) for one in said) else None
    is_number = isinstance(said, (int, float)) and not isinstance(said, bool)
    return said if is_number else None


def _missing(component: Any, table: Mapping[str, Any]) -> str:
    """Return the first key that an action needs and a table lacks, as far as a signature tells."""
    keys = written(parameters(component))
    required = [key for key, one in keys.items() if one.default is one.empty and key not in table]
    return next(iter([*required, *(key for key in keys if key not in table)]), "beta")
