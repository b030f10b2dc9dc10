"""Entries of a configuration that name components: updates and observables."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmc.actions.base import Action
from flowmc.config.tables import MeasureTable, UpdateTable
from flowmc.registry import (
    BUILTIN,
    ConfigError,
    check_known,
    parameters,
    positional_of,
    resolve,
    resolved,
    split_name,
    title_of,
    validate,
    written,
)

__all__ = [
    "ObservableEntry",
    "UpdateEntry",
    "changed_keys",
    "read_observables",
    "read_update",
    "resolved_update",
]


@dataclass(frozen=True)
class UpdateEntry:
    """One ``[[update]]``: the kernel, how often, its flow, and its own keys."""

    kernel: str
    component: Callable[..., Any]
    where: str
    repeat: int = 1
    weight: float = 1.0
    flow: str | None = None
    keys: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def takes_flow(self) -> bool:
        """Whether the kernel's second positional parameter is a flow model of any kind."""
        return "model" in positional_of(self.component) or self.takes_local_flow

    @property
    def takes_local_flow(self) -> bool:
        """Whether that is a local flow model: of a block, given what surrounds it."""
        return "local_model" in positional_of(self.component)

    @property
    def takes_base(self) -> bool:
        """Whether the kernel asks for the folder of the configuration file."""
        return "base" in positional_of(self.component)

    def made(self, action: Action, base: str | Path) -> Any:
        """Return the kernel of one replica that takes no flow.

        Args:
            action: of the replica.
            base: folder of the configuration file.
        """
        positional = (action, base) if self.takes_base else (action,)
        return self.component(*positional, **self.keys)

    @property
    def takes_ladder(self) -> bool:
        """Whether the kernel acts on the ladder as a whole: (actions, flows, ...)."""
        return "actions" in positional_of(self.component)


@dataclass(frozen=True)
class ObservableEntry:
    """One entry of ``[measure] observables``: its label in files, the function, its keys."""

    label: str
    function: Callable[..., Any]
    keys: Mapping[str, Any]
    written: Any

    @property
    def title(self) -> str:
        """How the observable is called in texts; empty if its function does not say."""
        return title_of(self.function)


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return ``{key: (old value, new value)}`` of two resolved configurations, keys dotted."""
    flat_old, flat_new = _flatten(old), _flatten(new)
    return {
        key: (flat_old.get(key), flat_new.get(key))
        for key in [*flat_old, *(key for key in flat_new if key not in flat_old)]
        if flat_old.get(key) != flat_new.get(key)
    }


def read_update(table: Any, number: int) -> UpdateEntry:
    """Validate the ``[[update]]`` of a number, counted from 1.

    Raises:
        ConfigError: naming it and its key.
    """
    where = f"[[update]] {number}"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: should be a table, written [[update]]")
    keys = dict(table)
    beside = {key: keys.pop(key) for key in parameters(UpdateTable) if key in keys}
    name = beside.get("kernel")
    if not isinstance(name, str):
        raise ConfigError(f"{where}: missing key 'kernel', e.g. kernel = \"hmc\"")
    component = resolve("kernels", name, where)
    where = f"{where} ({name})"
    try:
        common = UpdateTable(**beside)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    known = [*parameters(UpdateTable), *written(parameters(component))]
    check_known(keys, known, where)
    flow = common.flow
    entry = UpdateEntry(
        name,
        component,
        where,
        common.repeat,
        float(common.weight),
        flow,
        validate(component, keys, where),
    )
    if entry.takes_flow and flow is None:
        raise ConfigError(
            f"{where}: missing key 'flow', e.g. flow = \"zoo:NAME\" or the path of a trained flow"
        )
    if flow is not None and not entry.takes_flow:
        place = ": put the flows of a ladder into [ladder]" if entry.takes_ladder else ""
        raise ConfigError(f"{where}: this kernel takes no flow{place}")
    return entry


def resolved_update(entry: UpdateEntry) -> dict[str, Any]:
    """Return an ``[[update]]`` with the defaults filled in."""
    return {
        "kernel": entry.kernel,
        "repeat": entry.repeat,
        "weight": entry.weight,
        "flow": entry.flow,
        **resolved(entry.component, entry.keys),
    }


def read_observables(table: Mapping[str, Any], action: Action) -> list[ObservableEntry]:
    """Validate a ``[measure]`` table.

    Raises:
        ConfigError: naming the observable or key that is unusable.
    """
    check_known(table, parameters(MeasureTable), "[measure]")
    default = ["action"] if action.is_known else []
    if action.is_gauge:
        default += ["plaquette"]
    elif action.is_scalar:
        default += ["magnetization", "phi2"]
    listed = table.get("observables", default)
    if not isinstance(listed, list):
        raise ConfigError("[measure]: observables should be a list of names")
    entries: list[ObservableEntry] = []
    labels: set[str] = set()
    for one in listed:
        name, keys = split_name(one, "[measure]", '{name = "wilson_loop", ...}')
        function = resolve("observables", name, "[measure]")
        arguments = validate(function, keys, f"[measure] {name}")
        is_own = name not in BUILTIN["observables"]
        label = name.rpartition(":")[2].rpartition(".")[2] if is_own else name
        if keys:
            label += "(" + ",".join(f"{k}={_in_label(v)}" for k, v in keys.items()) + ")"
        if label in labels:
            raise ConfigError(f"[measure]: {label} is listed twice")
        labels.add(label)
        entries.append(ObservableEntry(label, function, arguments, one))
    return entries


def _in_label(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return str(value).replace("/", "|")  # a slash would open a group in the HDF5 file


def _flatten(table: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(table, Mapping):
        items = [(f"{prefix}.{key}" if prefix else key, value) for key, value in table.items()]
    elif isinstance(table, list) and any(isinstance(value, Mapping) for value in table):
        items = [(f"{prefix}[{i}]", value) for i, value in enumerate(table, start=1)]
    else:
        return {} if table is None else {prefix: table}
    return {key: leaf for name, value in items for key, leaf in _flatten(value, name).items()}
