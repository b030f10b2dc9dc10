"""The configuration file of ``flowmc run`` and ``flowmc step``: TOML to a validated object.

Plain tables are dataclasses (:mod:`flowmc.run.tables`); kernels, actions and observables bring
their own keys as keyword-only parameters (see :mod:`flowmc.registry`).  Everything that can be
known without reading a field or a flow is checked here, before anything runs.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmc.actions.base import Action
from flowmc.actions.theory import build_action, check_couplings
from flowmc.flows.base import Identity
from flowmc.groups import SUN
from flowmc.registry import (
    BUILTIN,
    ConfigError,
    nearest,
    parameters,
    resolve,
    validate,
)
from flowmc.run.keys import TABLES
from flowmc.run.tables import Chains, Ensemble, Parallel, RunTable, read_tables

__all__ = [
    "Ladder",
    "ObservableEntry",
    "RunConfig",
    "UpdateEntry",
    "changed_keys",
    "check_format",
    "load_config",
    "read_config",
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
        return "model" in _positional(self.component) or self.takes_local_flow

    @property
    def takes_local_flow(self) -> bool:
        """Whether that is a local flow model: of a block, given what surrounds it."""
        return "local_model" in _positional(self.component)

    @property
    def takes_ladder(self) -> bool:
        """Whether the kernel acts on the ladder as a whole: (actions, flows, ...)."""
        return "actions" in _positional(self.component)


@dataclass(frozen=True)
class Ladder:
    """``[ladder]``: values of one or more couplings, one per replica, and flows between them.

    Attributes:
        couplings: by name, one value per replica.
        flows: one per neighbouring pair.
        actions: one per replica.
        tune: whether the couplings between the ends move during thermalization.
    """

    couplings: Mapping[str, list[float]]
    flows: list[str]
    actions: list[Action]
    tune: bool = False


@dataclass(frozen=True)
class ObservableEntry:
    """One entry of ``[measure] observables``: its label in files, the function, its keys."""

    label: str
    function: Callable[..., Any]
    keys: Mapping[str, Any]
    written: Any


@dataclass(frozen=True)
class RunConfig:
    """A validated configuration.

    Attributes:
        base: directory that relative paths of flows and start files refer to.
        theory: the ``[theory]`` table as written.
        action: the target.
        resolved: all tables with the defaults filled in, as stored in the run directory.
    """

    base: Path
    theory: Mapping[str, Any]
    action: Action
    chains: Chains
    updates: list[UpdateEntry]
    ladder: Ladder | None
    run: RunTable
    observables: list[ObservableEntry]
    ensemble: Ensemble | None
    parallel: Parallel
    resolved: Mapping[str, Any]

    @property
    def actions(self) -> list[Action]:
        """The action of every replica; one without a ladder."""
        return [self.action] if self.ladder is None else self.ladder.actions

    def path(self, written: str) -> str:
        """Return a path of the configuration, relative ones taken from the file's directory."""
        return str(self.base / written)


def load_config(path: str | Path, *, for_step: bool = False) -> RunConfig:
    """Read and validate a configuration file.

    Args:
        path: the file.
        for_step: as ``flowmc step`` reads it: ``[run]`` may be missing, and ``[ensemble]`` needs
            no save_every.

    Raises:
        ConfigError: naming the table and key that is unusable, and what to do.
        OSError: the file cannot be read.
    """
    path = Path(path)
    return read_config(read_tables(path), path.parent, for_step=for_step)


def read_config(table: Mapping[str, Any], base: Path, *, for_step: bool = False) -> RunConfig:
    """Validate the tables of a configuration; see :func:`load_config`."""
    for name, value in table.items():
        if name not in TABLES:
            raise ConfigError(f"unknown table [{name}]{nearest(name, TABLES)}")
        wanted = list if name == "update" else Mapping
        if not isinstance(value, wanted):
            brackets = "[[update]]" if name == "update" else f"[{name}]"
            raise ConfigError(f"{name} should be a table, written {brackets}")
    for name in ("theory", "chains", "update", "run"):
        is_missing = name not in table or table[name] == []
        if is_missing and not (for_step and name == "run"):
            brackets = "[[update]]" if name == "update" else f"[{name}]"
            raise ConfigError(f"missing table {brackets}")

    action = build_action(table["theory"])
    chains = _table(Chains, table["chains"], "[chains]")
    run = _table(RunTable, table.get("run", {"updates": 1}), "[run]")
    updates = [read_update(entry, i) for i, entry in enumerate(table["update"], start=1)]
    ladder = _ladder(table["ladder"], action) if "ladder" in table else None
    for entry in updates:
        _try_out(entry, action, ladder)
    observables = read_observables(table.get("measure", {}), action)
    ensemble = _table(Ensemble, table["ensemble"], "[ensemble]") if "ensemble" in table else None
    parallel = _table(Parallel, table.get("parallel", {}), "[parallel]")
    _check_together(chains, run, updates, ladder)
    if not for_step:
        _check_saving(run, ensemble)
    if ensemble is not None:
        check_format(
            ensemble.format,
            action,
            "[ensemble]",
            present=chains.precision,
            precision=ensemble.precision,
        )

    resolved: dict[str, Any] = {
        "theory": dict(table["theory"]),
        "chains": dataclasses.asdict(chains),
        "update": [resolved_update(entry) for entry in updates],
    }
    if ladder is not None:
        resolved["ladder"] = {**ladder.couplings, "flows": ladder.flows, "tune": ladder.tune}
    resolved["run"] = dataclasses.asdict(run)
    resolved["measure"] = {"observables": [entry.written for entry in observables]}
    if ensemble is not None:
        resolved["ensemble"] = dataclasses.asdict(ensemble)
    resolved["parallel"] = dataclasses.asdict(parallel)
    return RunConfig(
        base,
        table["theory"],
        action,
        chains,
        updates,
        ladder,
        run,
        observables,
        ensemble,
        parallel,
        resolved,
    )


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
    name = keys.pop("kernel", None)
    if not isinstance(name, str):
        raise ConfigError(f"{where}: missing key 'kernel', e.g. kernel = \"hmc\"")
    try:
        component = resolve("kernels", name)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error
    where = f"{where} ({name})"
    repeat, weight, flow = keys.pop("repeat", 1), keys.pop("weight", 1.0), keys.pop("flow", None)
    if isinstance(repeat, bool) or not isinstance(repeat, int) or repeat < 1:
        raise ConfigError(f"{where}: repeat = {repeat!r}: should be an integer, at least 1")
    if isinstance(weight, bool) or not isinstance(weight, (int, float)) or not 0 < weight < 1e100:
        raise ConfigError(f"{where}: weight = {weight!r}: should be a finite number above 0")
    if flow is not None and not isinstance(flow, str):
        raise ConfigError(f'{where}: flow = {flow!r}: should be a path or "zoo:NAME"')
    own = parameters(component)
    for key in keys:
        written = {"lambda" if name == "lam" else name for name in own}
        if key not in written:
            known = written | {"kernel", "repeat", "weight", "flow"}
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")
    entry = UpdateEntry(
        name, component, where, repeat, float(weight), flow, validate(component, keys, where)
    )
    if entry.takes_flow and flow is None:
        raise ConfigError(
            f"{where}: missing key 'flow', e.g. flow = \"zoo:NAME\" or the path of a trained flow"
        )
    if flow is not None and not entry.takes_flow:
        place = ": put the flows of a ladder into [ladder]" if entry.takes_ladder else ""
        raise ConfigError(f"{where}: this kernel takes no flow{place}")
    return entry


def _try_out(entry: UpdateEntry, action: Action, ladder: Ladder | None) -> None:
    """Make a kernel that needs no flow, or with flows that do nothing: it refuses unusable values.

    Raises:
        ConfigError: in the kernel's words.
    """
    try:
        if entry.takes_ladder:
            if ladder is not None:
                plain = [Identity() for _ in ladder.flows]
                entry.component(ladder.actions, plain, **entry.keys)
        elif entry.takes_flow:
            check = getattr(entry.component, "check_keys", None)
            if check is not None:
                check(**entry.keys)
        else:
            entry.component(action, **entry.keys)
    except (ConfigError, ValueError, TypeError) as error:
        raise ConfigError(f"{entry.where}: {error}") from error


def resolved_update(entry: UpdateEntry) -> dict[str, Any]:
    """Return an ``[[update]]`` with the defaults filled in."""
    # Defaults of a user's kernel that TOML cannot hold are left to the kernel.
    defaults = {
        name: parameter.default
        for name, parameter in parameters(entry.component).items()
        if isinstance(parameter.default, (bool, int, float, str, list, tuple))
    }
    own = {**defaults, **entry.keys}
    return {
        "kernel": entry.kernel,
        "repeat": entry.repeat,
        "weight": entry.weight,
        "flow": entry.flow,
        **{"lambda" if key == "lam" else key: _plain(value) for key, value in own.items()},
    }


def _ladder(table: Mapping[str, Any], action: Action) -> Ladder:
    where = "[ladder]"
    couplings = {key: value for key, value in table.items() if key not in ("flows", "tune")}
    for key, values in couplings.items():
        if key not in action.parameters:
            known = {*action.parameters, "flows", "tune"}
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")
        if not isinstance(values, list) or len(values) < 2:
            raise ConfigError(f"{where}: {key} = {values!r}: should list one value per replica")
    if not couplings:
        raise ConfigError(
            f"{where}: needs the values of a coupling, one per replica; the {action.name} action "
            f"has {', '.join(action.parameters)}"
        )
    lengths = {key: len(values) for key, values in couplings.items()}
    replicas = next(iter(lengths.values()))
    if len(set(lengths.values())) > 1:
        text = ", ".join(f"{count} of {key}" for key, count in lengths.items())
        raise ConfigError(f"{where}: the couplings differ in number of values: {text}")
    actions = [
        check_couplings(action, {key: values[r] for key, values in couplings.items()}, where)
        for r in range(replicas)
    ]
    for key, values in couplings.items():
        if float(values[0]) != action.parameters[key]:
            raise ConfigError(
                f"{where}: {key} begins with {values[0]!r}, but replica 0 is the theory of "
                f"[theory], which has {key} = {action.parameters[key]!r}"
            )
    flows = table.get("flows", ["identity"] * (replicas - 1))
    if not isinstance(flows, list) or not all(isinstance(flow, str) for flow in flows):
        raise ConfigError(f"{where}: flows = {flows!r}: should list one flow per pair, as text")
    if len(flows) != replicas - 1:
        raise ConfigError(
            f"{where}: {replicas} replicas have {replicas - 1} neighbouring pairs, but flows "
            f'lists {len(flows)}; "identity" is plain exchange'
        )
    tune = table.get("tune", False)
    if not isinstance(tune, bool):
        raise ConfigError(f"{where}: tune = {tune!r}: should be true or false")
    if tune and (replicas < 3 or any(flow != "identity" for flow in flows)):
        raise ConfigError(
            f"{where}: tune = true moves the couplings between the ends, so it needs three "
            "replicas or more and no flows, which are trained for their couplings: tune a plain "
            "ladder first, then train flows for what it found"
        )
    plain = {key: [float(value) for value in values] for key, values in couplings.items()}
    return Ladder(plain, flows, actions, tune)


def read_observables(table: Mapping[str, Any], action: Action) -> list[ObservableEntry]:
    """Validate a ``[measure]`` table.

    Raises:
        ConfigError: naming the observable or key that is unusable.
    """
    for key in table:
        if key != "observables":
            raise ConfigError(f"[measure]: unknown key {key!r}{nearest(key, ['observables'])}")
    default = ["action", "plaquette"] if action.is_gauge else ["action", "magnetization", "phi2"]
    listed = table.get("observables", default)
    if not isinstance(listed, list):
        raise ConfigError("[measure]: observables should be a list of names")
    entries: list[ObservableEntry] = []
    labels: set[str] = set()
    for written in listed:
        keys = dict(written) if isinstance(written, Mapping) else {"name": written}
        name = keys.pop("name", None)
        if not isinstance(name, str):
            raise ConfigError(
                f'[measure]: {written!r}: should be a name, or {{name = "wilson_loop", ...}}'
            )
        try:
            function = resolve("observables", name)
        except ConfigError as error:
            raise ConfigError(f"[measure]: {error}") from error
        arguments = validate(function, keys, f"[measure] {name}")
        label = name.rpartition(":")[2].rpartition(".")[2] if name not in _builtin() else name
        if keys:
            label += "(" + ",".join(f"{k}={_in_label(v)}" for k, v in keys.items()) + ")"
        if label in labels:
            raise ConfigError(f"[measure]: {label} is listed twice")
        labels.add(label)
        entries.append(ObservableEntry(label, function, arguments, written))
    return entries


def _check_together(
    chains: Chains, run: RunTable, updates: list[UpdateEntry], ladder: Ladder | None
) -> None:
    """Refuse tables that are fine alone but not together."""
    exchanges = [entry for entry in updates if entry.takes_ladder]
    if exchanges and ladder is None:
        raise ConfigError(f"{exchanges[0].where}: needs a [ladder] of couplings")
    if ladder is not None and not exchanges:
        raise ConfigError(
            '[ladder]: no [[update]] couples the replicas; add one with kernel = "exchange", or '
            "remove the ladder"
        )
    if exchanges and len(exchanges) == len(updates) and ladder is not None:
        raise ConfigError(
            f"{exchanges[0].where}: exchanges alone never leave the start configurations; add an "
            'update of the fields, e.g. kernel = "hmc"'
        )
    if chains.start == "flow" and not any(
        entry.takes_flow and not entry.takes_local_flow for entry in updates
    ):
        raise ConfigError(
            '[chains]: start = "flow" draws from the flow of the first independence update, but '
            "there is none"
        )
    if ladder is not None and ladder.tune and run.thermalization < 16:
        raise ConfigError(
            f"[ladder]: tune = true needs a thermalization, not {run.thermalization} updates: the "
            "ladder moves in its first half; hundreds of updates or more give it good rates"
        )
    if run.schedule == "cycle":
        weighted = [entry for entry in updates if entry.weight != 1.0]
        if weighted:
            raise ConfigError(
                f'{weighted[0].where}: weight has a meaning with schedule = "mixture" only; with '
                '"cycle" every update is applied'
            )


def _check_saving(run: RunTable, ensemble: Ensemble | None) -> None:
    if run.save_every is not None and ensemble is None:
        raise ConfigError("[run]: save_every needs an [ensemble] table that names the format")
    if run.save_every is None and ensemble is not None:
        raise ConfigError("[ensemble]: nothing would be saved without save_every in [run]")


def check_format(
    name: str, action: Action, where: str, *, present: int = 64, precision: int | None = None
) -> None:
    """Raise ConfigError unless files of this format can hold fields of this theory.

    Args:
        name: of the format.
        action: the theory.
        where: what to blame in the message.
        present: precision of the fields, 32 or 64.
        precision: asked of the files; None for that of the fields.
    """
    from flowmc_adapters import FIELD_FORMATS, FormatError, format_named
    from flowmc_adapters.layout_format import LayoutFormat

    group = action.group
    if not isinstance(group, SUN) and name in FIELD_FORMATS:
        return
    try:
        found = format_named(name)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    if not isinstance(group, SUN):
        what = f"{group.name} fields in {action.dimensions} dimensions"
        usable = ", ".join(f'"{known}"' for known in FIELD_FORMATS)
        raise ConfigError(
            f"{where}: {name} files hold SU(N) links, not {what}: use one of the formats {usable}"
        )
    if not found.writable:
        raise ConfigError(f"{where}: {name} files are only read: use another format")
    if isinstance(found, LayoutFormat):
        try:
            found.require_holds(action.lattice, group.n, present, precision)
        except FormatError as error:
            raise ConfigError(f"{where}: {error.reason}") from error


def _table(kind: type, table: Mapping[str, Any], where: str) -> Any:
    return kind(**validate(kind, table, where))


def _positional(component: Callable[..., Any]) -> list[str]:
    return [
        name
        for name, parameter in inspect.signature(component).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]


def _builtin() -> Mapping[str, str]:
    return BUILTIN["observables"]


def _in_label(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return "x".join(map(str, value))
    return str(value).replace("/", "|")  # a slash would open a group in the HDF5 file


def _plain(value: Any) -> Any:
    """Return a validated value in a form that TOML can hold."""
    return [_plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def _flatten(table: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(table, Mapping):
        items = [(f"{prefix}.{key}" if prefix else key, value) for key, value in table.items()]
    elif isinstance(table, list) and any(isinstance(value, Mapping) for value in table):
        items = [(f"{prefix}[{i}]", value) for i, value in enumerate(table, start=1)]
    else:
        return {} if table is None else {prefix: table}
    return {key: leaf for name, value in items for key, leaf in _flatten(value, name).items()}
