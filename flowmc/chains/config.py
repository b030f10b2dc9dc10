"""The configuration file of ``flowmc run`` and ``flowmc step``: TOML to a validated object.

Plain tables are dataclasses (:mod:`flowmc.config.tables`); kernels, actions and observables bring
their own keys as keyword-only parameters (see :mod:`flowmc.registry`).  Everything that can be
known without reading a field or a flow is checked here, before anything runs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmc.actions.base import Action
from flowmc.actions.external import ExternalAction
from flowmc.actions.theory import build_action, check_couplings
from flowmc.config.entries import (
    ObservableEntry,
    UpdateEntry,
    read_observables,
    read_update,
    resolved_update,
)
from flowmc.config.kinds import check_tables
from flowmc.config.tables import (
    SEEDS,
    Chains,
    EnsembleTable,
    LadderTable,
    Parallel,
    RunTable,
    read_tables,
)
from flowmc.flows.base import Identity
from flowmc.io import check_format
from flowmc.kernels.external import External
from flowmc.kernels.independence import Independence
from flowmc.registry import (
    ConfigError,
    check_known,
    parameters,
    resolve,
    table_model,
    validate,
)

__all__ = ["Ladder", "RunConfig", "load_config", "read_config"]


@dataclass(frozen=True)
class Ladder:
    """``[ladder]``: values of one or more couplings, one per replica, and flows between them.

    Attributes:
        couplings: by name, one value per replica.
        flows: one per neighbouring pair.
        actions: one per replica.
        tune: whether the couplings between the ends move during thermalization.
        difference: the action by which those of the replicas differ, and its keys that all
            replicas have in common; empty where the whole action is known.
    """

    couplings: Mapping[str, list[float]]
    flows: list[str]
    actions: list[Action]
    tune: bool = False
    difference: Mapping[str, Any] = dataclasses.field(default_factory=dict)


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
    ensemble: EnsembleTable | None
    parallel: Parallel
    resolved: Mapping[str, Any]

    @property
    def actions(self) -> list[Action]:
        """The action of every replica; one without a ladder."""
        return [self.action] if self.ladder is None else self.ladder.actions

    @property
    def is_drawn(self) -> bool:
        """Whether every configuration is a draw of a flow: made without those before it."""
        kernels = [entry.component for entry in self.updates]
        is_cycle = self.ladder is None and self.run.schedule == "cycle"
        return is_cycle and all(kernel is Independence for kernel in kernels)

    def path(self, written: str) -> str:
        """Return a path of the configuration, relative ones taken from the file's directory."""
        return str(self.base / written)


def load_config(
    path: str | Path, *, for_step: bool = False, settings: Sequence[str] = ()
) -> RunConfig:
    """Read and validate a configuration file.

    Args:
        path: the file.
        for_step: as ``flowmc step`` reads it: ``[run]`` may be missing, and ``[ensemble]`` needs
            no save_every.
        settings: values set beside the file, see :func:`~flowmc.config.settings.with_settings`.

    Raises:
        ConfigError: naming the table and key that is unusable, and what to do.
        OSError: the file cannot be read.
    """
    path = Path(path)
    return read_config(read_tables(path, settings), path.parent, for_step=for_step)


def read_config(table: Mapping[str, Any], base: Path, *, for_step: bool = False) -> RunConfig:
    """Validate the tables of a configuration; see :func:`load_config`."""
    check_tables("run", table, optional=("run",) if for_step else ())
    action = build_action(table["theory"])
    chains = _table(Chains, table["chains"], "[chains]")
    run = _table(RunTable, table.get("run", {"updates": 1}), "[run]")
    updates = [read_update(entry, i) for i, entry in enumerate(table["update"], start=1)]
    ladder = _ladder(table["ladder"], action) if "ladder" in table else None
    if ladder is not None and ladder.difference:
        # The theory has the couplings of the difference, too.
        action = ladder.actions[0]
    for entry in updates:
        _try_out(entry, action, ladder, base)
    observables = read_observables(table.get("measure", {}), action)
    ensemble = (
        _table(EnsembleTable, table["ensemble"], "[ensemble]") if "ensemble" in table else None
    )
    parallel = _table(Parallel, table.get("parallel", {}), "[parallel]")
    _check_together(chains, run, updates, ladder, for_step=for_step)
    if not for_step:
        _check_saving(run, ensemble)
    if ensemble is not None and ensemble.format == SEEDS:
        _check_seeds(action, updates, for_step=for_step)
    elif ensemble is not None:
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
        resolved["ladder"] |= ladder.difference
    resolved["run"] = dataclasses.asdict(run)
    resolved["measure"] = {"observables": [entry.written for entry in observables]}
    if ensemble is not None:
        resolved["ensemble"] = dataclasses.asdict(ensemble)
    resolved["parallel"] = dataclasses.asdict(parallel)
    config = RunConfig(
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
    if ensemble is not None and ensemble.keep_every is not None and config.is_drawn:
        raise ConfigError(
            f"[ensemble]: keep_every = {ensemble.keep_every}: no checkpoint is needed for making "
            "draws of a flow again: remove it"
        )
    return config


def _try_out(entry: UpdateEntry, action: Action, ladder: Ladder | None, base: Path) -> None:
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
            entry.made(action, base)
    except (ConfigError, ValueError, TypeError) as error:
        raise ConfigError(f"{entry.where}: {error}") from error


def _ladder(table: Mapping[str, Any], action: Action) -> Ladder:
    where = "[ladder]"
    own = parameters(LadderTable)
    couplings = {key: value for key, value in table.items() if key not in own}
    common: dict[str, Any] = {}
    if "difference" in table:
        action, couplings, common = _with_difference(table["difference"], couplings, action)
    check_known(couplings, [*action.parameters, *own], where)
    for key, values in couplings.items():
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
    if common and any(flow != "identity" for flow in flows):
        raise ConfigError(
            f"{where}: flows: a flow moves a field, and its exchange needs the whole action before "
            f'and after, but of this theory only the difference is known: use "identity"'
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
    return Ladder(plain, flows, actions, tune, common)


def _with_difference(
    name: Any, keys: Mapping[str, Any], action: Action
) -> tuple[Action, dict[str, Any], dict[str, Any]]:
    """Return the theory of replica 0, the couplings of the ladder, and what is common to it.

    Args:
        name: of the action by which those of the replicas differ.
        keys: of it, beside those of every ladder.
        action: the theory.

    Raises:
        ConfigError: the action of the theory is known, or the difference cannot be made.
    """
    where = "[ladder]"
    if not isinstance(action, ExternalAction):
        raise ConfigError(
            f"{where}: difference = {name!r}: flowmc knows the action {action.name}, and with it "
            'all differences: remove the key, or set [theory] action = "external"'
        )
    if not isinstance(name, str):
        raise ConfigError(f"{where}: difference = {name!r}: should be the name of an action")
    theory = {"action": name, "lattice": list(action.lattice)}
    if action.is_gauge:
        theory["group"] = action.group.name
    # A list is one value per replica, or of a key that is a list, such as the extents of a defect.
    properties = table_model(resolve("actions", name, f"{where}: difference")).model_fields.values()
    numbers = {one.alias for one in properties if one.annotation in (float, float | None)}
    varied = {key: keys[key] for key in keys if key in numbers and isinstance(keys[key], list)}
    first = {**keys, **{key: values[0] for key, values in varied.items() if values}}
    difference = build_action({**theory, **first}, f"{where}: difference = {name!r}")
    if not difference.is_known:
        raise ConfigError(f"{where}: difference = {name!r}: its action is not known either")
    for key, value in difference.parameters.items():
        if action.parameters.get(key, value) != value:
            raise ConfigError(
                f"{where}: {key} begins with {value!r}, but replica 0 is the theory of [theory], "
                f"whose couplings have {key} = {action.parameters[key]!r}"
            )
    common = {"difference": name} | {key: keys[key] for key in keys if key not in varied}
    return action.differing_by(difference), varied, common


def _check_together(
    chains: Chains,
    run: RunTable,
    updates: list[UpdateEntry],
    ladder: Ladder | None,
    *,
    for_step: bool,
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
    # Between steps others may move the fields.
    if exchanges and len(exchanges) == len(updates) and ladder is not None and not for_step:
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


def _check_saving(run: RunTable, ensemble: EnsembleTable | None) -> None:
    if run.save_every is not None and ensemble is None:
        raise ConfigError("[run]: save_every needs an [ensemble] table that names the format")
    if run.save_every is None and ensemble is not None:
        raise ConfigError("[ensemble]: nothing would be saved without save_every in [run]")


def _check_seeds(action: Action, updates: Sequence[UpdateEntry], *, for_step: bool) -> None:
    """Refuse to keep the seeds of what cannot be made again."""
    where = f'[ensemble]: format = "{SEEDS}"'
    if for_step:
        raise ConfigError(f"{where}: a step writes a configuration: name a format of its file")
    check_format("hdf5", action, "[ensemble]")
    for entry in updates:
        if entry.component is External:
            raise ConfigError(
                f"{where}: {entry.where} is done by a command, which no file may start, and which "
                "need not give the same again: save configurations"
            )


def _table(kind: type, table: Mapping[str, Any], where: str) -> Any:
    return kind(**validate(kind, table, where))
