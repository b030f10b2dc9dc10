"""The configuration file of ``flowmc free-energy``: TOML to a validated object."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from flowmc.actions.base import Action
from flowmc.actions.theory import build_action
from flowmc.config.entries import UpdateEntry, read_update, resolved_update
from flowmc.config.kinds import check_tables
from flowmc.config.tables import MOST_CHAINS, read_tables
from flowmc.durations import seconds_of
from flowmc.ensembles.stored import EnsembleTable
from flowmc.flows.cards.building import build_flow, build_prior
from flowmc.nonequilibrium import line_of_actions
from flowmc.nonequilibrium.starts import can_be_drawn
from flowmc.registry import ConfigError, check_known, parameters, validate
from flowmc.training.loop import Settings

__all__ = [
    "EquilibriumTable",
    "FreeEnergyConfig",
    "FreeEnergyTable",
    "load_free_energy_config",
    "read_free_energy_config",
]

# Of a protocol: each has an action of its own, and an update of every process.
MOST_STEPS = 100_000
# method: tables it needs, tables it takes beyond them ([theory] and [free_energy] always).
_METHODS: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "q": (("flow",), ()),
    "p": (("flow",), ("update", "chains", "ensemble")),
    "both": (("flow",), ("update", "chains", "ensemble")),
    "chain": (("protocol", "update", "chains"), ()),
    "annealing": (("protocol", "update"), ("prior", "chains", "ensemble")),
    "snf": (("protocol", "update", "flow", "training"), ("prior", "chains", "ensemble")),
}


@dataclass(frozen=True, kw_only=True)
class FreeEnergyTable:
    """``[free_energy]``: by which estimator, and from how many samples.

    Attributes:
        method: "q", "p", "both", "chain", "annealing" or "snf".
        seed: of all random streams, >= 0.
        samples: draws of the flow, or trajectories of the process from independent draws.
        batch: of these at a time.
        checkpoint_every: time between checkpoints.
        time_limit: of one invocation: "23h30m", "90s" or seconds; the measurement stops in time
            with a checkpoint.
    """

    method: Literal["q", "p", "both", "chain", "annealing", "snf"]
    seed: int
    samples: int = 4096
    batch: int = 1024
    checkpoint_every: float | str = "5m"
    time_limit: float | str | None = None

    def __post_init__(self) -> None:
        seconds_of(self.checkpoint_every, "[free_energy]: checkpoint_every")
        if self.time_limit is not None:
            seconds_of(self.time_limit, "[free_energy]: time_limit")
        for key, least in (("seed", 0), ("samples", 2), ("batch", 1)):
            if getattr(self, key) < least:
                raise ConfigError(
                    f"[free_energy]: {key} = {getattr(self, key)}: should be at least {least}"
                )


@dataclass(frozen=True, kw_only=True)
class EquilibriumTable:
    """``[chains]``: Markov chains in equilibrium.

    Attributes:
        count: number of chains.
        measurements: configurations used of each.
        thermalization: updates before the first, in which kernels may adapt.
        separation: updates between two.
        start: "hot", "cold", "ordered" (constant at the classical minimum) or "mixed" (every other
            chain hot, the rest ordered).
    """

    count: int
    measurements: int
    thermalization: int = 100
    separation: int = 1
    start: Literal["hot", "cold", "ordered", "mixed"] = "hot"

    def __post_init__(self) -> None:
        for key, least in (
            ("count", 1),
            ("measurements", 1),
            ("thermalization", 0),
            ("separation", 1),
        ):
            if getattr(self, key) < least:
                raise ConfigError(
                    f"[chains]: {key} = {getattr(self, key)}: should be at least {least}"
                )
        if self.count > MOST_CHAINS:
            raise ConfigError(f"[chains]: count = {self.count}: should be at most {MOST_CHAINS}")


@dataclass(frozen=True, kw_only=True)
class FlowTable:
    """``[flow]``: of a file, or, with ``method = "snf"``, the layers between the updates.

    Attributes:
        file: the path of a flow file, or "zoo:NAME".
        name: of the flow, or "package.module:Name"; its own keys stand beside.
    """

    file: str | None = None
    name: str | None = None


@dataclass(frozen=True, kw_only=True)
class ProtocolTable:
    """``[protocol]``: the way to the target; the values of couplings stand beside.

    Attributes:
        steps: between the values, at equal distances in the couplings; by default the values alone.
        start: "exact" draws of the first theory, or Markov "chains"; by default exact where it is
            known how.
    """

    steps: int | None = None
    start: Literal["exact", "chains"] | None = None


@dataclass(frozen=True)
class FreeEnergyConfig:
    """A validated configuration.

    Attributes:
        base: directory that the path of a flow refers to.
        action: the target.
        table: ``[free_energy]``.
        line: all actions of the protocol, the start first; empty without one.
        start: "exact" draws of the start, or "chains", or "prior".
        updates: the kernels.
        chains: Markov chains of the target (or of all ensembles, or of the start).
        ensemble: configurations of the target on disk, instead of chains of it.
        flow: ``[flow]`` as written.
        prior: ``[prior]`` as written, or None.
        training: of the flow layers, or None.
        resolved: all tables with the defaults filled in.
    """

    base: Path
    action: Action
    table: FreeEnergyTable
    line: list[Action]
    start: Literal["exact", "chains", "prior"]
    updates: list[UpdateEntry]
    chains: EquilibriumTable | None
    ensemble: EnsembleTable | None
    flow: Mapping[str, Any] | None
    prior: Mapping[str, Any] | None
    training: Settings | None
    resolved: Mapping[str, Any]

    @property
    def flow_file(self) -> str:
        """Where the flow is: "zoo:NAME" or a path."""
        assert self.flow is not None
        written = str(self.flow["file"])
        return written if written.startswith("zoo:") else str(self.base / written)


def load_free_energy_config(path: str | Path, settings: Sequence[str] = ()) -> FreeEnergyConfig:
    """Read and validate a configuration file.

    Args:
        path: the file.
        settings: values set beside it, see :func:`~flowmc.config.settings.with_settings`.

    Raises:
        ConfigError: naming the table and key that is unusable, and what to do.
        OSError: the file cannot be read.
    """
    path = Path(path)
    return read_free_energy_config(read_tables(path, settings), path.parent)


def read_free_energy_config(tables: Mapping[str, Any], base: Path) -> FreeEnergyConfig:
    """Validate the tables of a configuration; see :func:`load_free_energy_config`."""
    check_tables("free-energy", tables)
    action = build_action(tables["theory"])
    table = FreeEnergyTable(**validate(FreeEnergyTable, tables["free_energy"], "[free_energy]"))
    _check_tables(table.method, tables)

    updates = [read_update(entry, i) for i, entry in enumerate(tables.get("update", []), start=1)]
    _check_updates(updates, table.method)
    chains = None
    if "chains" in tables:
        chains = EquilibriumTable(**validate(EquilibriumTable, tables["chains"], "[chains]"))
    ensemble = None
    if "ensemble" in tables:
        ensemble = EnsembleTable(**validate(EnsembleTable, tables["ensemble"], "[ensemble]"))
    line, start, protocol = _protocol(tables, action)
    _check_samples(table.method, tables, start)
    if start == "chains" and chains is None:
        raise ConfigError(
            "[protocol]: the start cannot be drawn exactly, so the process begins from Markov "
            "chains of it: add [chains], or begin where exact draws exist (phi4 at kappa = 0, a "
            "gauge theory at beta = 0, a double well at lambda = 0 and mu2 > 0)"
        )
    flow, training = tables.get("flow"), None
    if table.method == "snf":
        build_flow(flow or {}, action)
        training = _training(tables["training"], table.seed)
    elif flow is not None:
        _check_flow_file(flow)
    if "prior" in tables:
        build_prior(tables["prior"], action)

    resolved: dict[str, Any] = {
        "theory": dict(tables["theory"]),
        "free_energy": dataclasses.asdict(table),
    }
    if flow is not None:
        resolved["flow"] = dict(flow)
    if "prior" in tables:
        resolved["prior"] = dict(tables["prior"])
    if protocol is not None:
        resolved["protocol"] = protocol
    if updates:
        resolved["update"] = [resolved_update(entry) for entry in updates]
    if chains is not None:
        resolved["chains"] = dataclasses.asdict(chains)
    if ensemble is not None:
        resolved["ensemble"] = dataclasses.asdict(ensemble)
    if training is not None:
        resolved["training"] = dataclasses.asdict(training)
    return FreeEnergyConfig(
        base,
        action,
        table,
        line,
        start,
        updates,
        chains,
        ensemble,
        flow,
        tables.get("prior"),
        training,
        resolved,
    )


def _check_tables(method: str, tables: Mapping[str, Any]) -> None:
    needed, allowed = _METHODS[method]
    for name in needed:
        if not tables.get(name):
            brackets = "[[update]]" if name == "update" else f"[{name}]"
            raise ConfigError(f'[free_energy]: method = "{method}" needs a table {brackets}')
    for name in tables:
        if name not in ("theory", "free_energy", *needed, *allowed):
            raise ConfigError(
                f'[{name}] would be ignored by method = "{method}": remove it, or choose another '
                f"method ({', '.join(m for m, t in _METHODS.items() if name in t[0] + t[1])})"
            )


def _check_samples(method: str, tables: Mapping[str, Any], start: str) -> None:
    """Refuse samples of the target that come from nowhere or from two places."""
    from_chains, from_disk = "chains" in tables, "ensemble" in tables
    if method in ("p", "both"):
        if from_chains == from_disk:
            raise ConfigError(
                f'[free_energy]: method = "{method}" needs samples of the target: either [chains] '
                "with [[update]], or an [ensemble] on disk"
            )
        if from_disk and tables.get("update"):
            raise ConfigError("[[update]] would be ignored: the [ensemble] is on disk; remove it")
        if from_chains and not tables.get("update"):
            raise ConfigError('[chains]: needs an [[update]], e.g. kernel = "hmc"')
    elif from_disk and from_chains and start != "chains":
        raise ConfigError(
            "[chains] would be ignored: samples of the target are from the [ensemble], and the "
            "start needs no chains; remove one of the two"
        )


def _check_updates(updates: list[UpdateEntry], method: str) -> None:
    for entry in updates:
        if entry.takes_flow or entry.takes_ladder:
            raise ConfigError(f"{entry.where}: free energies take kernels without flows only")
        if entry.keys.get("target_acceptance") is not None and method in ("annealing", "snf"):
            raise ConfigError(
                f"{entry.where}: target_acceptance adapts in the thermalization of chains, of "
                "which a process has none: give steps instead"
            )


def _protocol(
    tables: Mapping[str, Any], action: Action
) -> tuple[list[Action], Literal["exact", "chains", "prior"], dict[str, Any] | None]:
    if "protocol" not in tables:
        return [], "exact", None
    where = "[protocol]"
    couplings = dict(tables["protocol"])
    steps, start = couplings.pop("steps", None), couplings.pop("start", None)
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 1):
        raise ConfigError(f"{where}: steps = {steps!r}: should be an integer, at least 1")
    if steps is not None and steps > MOST_STEPS:
        raise ConfigError(f"{where}: steps = {steps}: should be at most {MOST_STEPS}")
    if start not in (None, "exact", "chains"):
        raise ConfigError(f'{where}: start = {start!r}: should be "exact" or "chains"')
    check_known(couplings, [*action.parameters, *parameters(ProtocolTable)], where)
    for key, values in couplings.items():
        if not isinstance(values, list) or len(values) < 2:
            raise ConfigError(
                f"{where}: {key} = {values!r}: should list the values to pass through, at least two"
            )
        for value in values:
            _check_number(value, key)
        if float(values[-1]) != action.parameters[key]:
            raise ConfigError(
                f"{where}: {key} ends with {values[-1]!r}, but the target of [theory] has {key} = "
                f"{action.parameters[key]!r}"
            )
    if not couplings:
        raise ConfigError(
            f"{where}: needs the values of a coupling on the way to the target; the {action.name} "
            f"action has {', '.join(action.parameters)}"
        )
    try:
        line = line_of_actions(action, couplings, steps)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error
    method = tables["free_energy"]["method"]
    kind: Literal["exact", "chains", "prior"]
    if "prior" in tables:
        if start is not None:
            raise ConfigError(f"{where}: start = {start!r} would be ignored beside [prior]")
        kind = "prior"
    elif start is not None and method == "chain":
        raise ConfigError(f'{where}: start = {start!r} is for method = "annealing" and "snf"')
    elif start == "exact" and not can_be_drawn(line[0]):
        raise ConfigError(
            f'{where}: start = "exact", but {line[0]!r} cannot be drawn exactly: use "chains"'
        )
    else:
        kind = start or ("exact" if method == "chain" or can_be_drawn(line[0]) else "chains")
    resolved = {**couplings, "steps": steps}
    if method != "chain" and kind != "prior":
        resolved["start"] = kind
    return line, kind, resolved


def _check_number(value: Any, key: str) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Integers may be too large for a float, which NaN and infinity are not.
    if not is_number or not abs(value) <= sys.float_info.max:
        raise ConfigError(f"[protocol]: {key}: {repr(value)[:40]} should be a finite number")


def _check_flow_file(flow: Mapping[str, Any]) -> None:
    check_known(flow, ["file"], "[flow]")
    if not isinstance(flow.get("file"), str):
        raise ConfigError("[flow]: missing key 'file', e.g. file = \"zoo:NAME\" or a path")


def _training(table: Mapping[str, Any], seed: int) -> Settings:
    if "seed" in table:
        raise ConfigError("[training]: unknown key 'seed'; the seed is that of [free_energy]")
    return Settings(**validate(Settings, {**table, "seed": seed}, "[training]"))
