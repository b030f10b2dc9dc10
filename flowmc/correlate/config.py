"""The configuration file of ``flowmc correlate``: TOML to a validated object."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, Literal

from flowmc import registry
from flowmc.actions.base import Action
from flowmc.actions.theory import build_action, check_couplings
from flowmc.chains.config import RunConfig, read_config
from flowmc.config.entries import ObservableEntry, read_observables
from flowmc.config.kinds import check_tables
from flowmc.ensembles.stored import run_theory
from flowmc.io import check_format
from flowmc.registry import ConfigError, check_known, nearest, parameters, resolve, validate

__all__ = [
    "LIVE",
    "AnalysisTable",
    "CorrelateConfig",
    "DerivativeEntry",
    "Masses",
    "Source",
    "TargetEntry",
    "as_list",
    "check_labels",
    "check_live",
    "check_masses",
    "read_correlate_config",
    "read_live",
    "read_targets",
]

LIVE = ("chains", "update", "run")


@dataclass(frozen=True, kw_only=True)
class Source:
    """``[ensemble]``: where the configurations come from.

    Attributes:
        files: paths, directories and patterns, relative to the configuration file.
        run: a run directory of ``flowmc run``.
        name: of the ensemble in results; by default that of the files or the run.
        first, last: smallest and largest configuration number to use.
        every: use every n-th configuration of each replica.
        batch: configurations in memory; by default as many as fill 16 MB, 256 at most.
        precision: 64 or 32, of the fields in memory.
        device: "auto" (a GPU if there is one), "cpu", "cuda" or "cuda:1".
        format: in which a live chain saves its configurations.
    """

    files: str | list[str] | None = None
    run: str | None = None
    name: str | None = None
    first: int | None = None
    last: int | None = None
    every: int = 1
    batch: int | None = None
    precision: Literal[32, 64] = 64
    device: str = "auto"
    format: str | None = None

    def __post_init__(self) -> None:
        for key, least in (("every", 1), ("batch", 1)):
            value = getattr(self, key)
            if value is not None and value < least:
                raise ConfigError(f"[ensemble]: {key} = {value}: should be at least {least}")
        if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", self.device):
            raise ConfigError(
                f"[ensemble]: device = {self.device!r}: should be 'auto', 'cpu', 'cuda' or 'cuda:N'"
            )
        if self.name is not None and (not self.name or set("|/") & set(self.name)):
            raise ConfigError(
                f"[ensemble]: name = {self.name!r}: should be a word without '|' and '/'"
            )


@dataclass(frozen=True, kw_only=True)
class TargetTable:
    """``[[target]]``: a theory to carry the ensemble to; its couplings stand beside.

    A list of values of a coupling makes a target of each.

    Attributes:
        flow: the path of an exchange flow, or "zoo:NAME"; "identity", the default, is plain
            reweighting.
        save: the format of correlated configurations; by default none are saved.
        precision: of these files, 32 or 64.
        label: of the target in results, by default its couplings, such as "beta=6.05".
    """

    flow: str | None = None
    save: str | None = None
    precision: Literal[32, 64] | None = None
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class DerivativeTable:
    """``[[derivative]]``: derivatives of all observables; the keys of the method stand beside.

    Attributes:
        method: "difference", "linear", or "package.module:Name".
        label: of the derivative in results, by default coupling and method.
    """

    method: str
    label: str | None = None


@dataclass(frozen=True, kw_only=True)
class Masses:
    """One entry of ``[analysis] effective_masses``.

    Attributes:
        of: label of a correlator.
        first, last: times over which the mean mass is taken; by default all inner ones.
    """

    of: str
    first: int = 1
    last: int | None = None

    def __post_init__(self) -> None:
        if self.first < 1 or (self.last is not None and self.last < self.first):
            raise ConfigError(
                f"[analysis]: effective_masses of {self.of}: first = {self.first}, last = "
                f"{self.last}: should be times from 1 on, in this order"
            )


@dataclass(frozen=True, kw_only=True)
class AnalysisTable:
    """``[analysis]``: what is made of the means.

    Attributes:
        effective_masses: labels of correlators, or tables ``{of = LABEL, first = 1, last = 3}``.
        report: write ``report.html``.
    """

    effective_masses: list[Any] = dataclasses.field(default_factory=list)
    report: bool = True

    @property
    def masses(self) -> list[Masses]:
        """The entries of ``effective_masses``."""
        tables = [{"of": one} if isinstance(one, str) else one for one in self.effective_masses]
        where = "[analysis]: effective_masses"
        for table in tables:
            if not isinstance(table, Mapping):
                raise ConfigError(f"{where}: {table!r}: should be a label, or {{of = LABEL, ...}}")
        return [Masses(**validate(Masses, table, where)) for table in tables]

    @property
    def times_of_masses(self) -> dict[str, tuple[int, int | None]]:
        """First and last time of the mean mass by label of a correlator."""
        return {one.of: (one.first, one.last) for one in self.masses}


@dataclass(frozen=True)
class TargetEntry:
    """One theory to carry the ensemble to.

    Attributes:
        label: unique, such as ``beta=6.05``.
        action: the theory.
        flow: as written; "identity" is plain reweighting.
        save: format of correlated configurations, or None.
        precision: of these files.
    """

    label: str
    action: Action
    flow: str
    save: str | None
    precision: int | None


@dataclass(frozen=True)
class DerivativeEntry:
    """One ``[[derivative]]``: its label, its method, the component of that, and its keys."""

    label: str
    method: str
    component: Callable[..., Any]
    keys: Mapping[str, Any]


@dataclass(frozen=True)
class CorrelateConfig:
    """A validated configuration.

    Attributes:
        base: directory that relative paths refer to.
        action: the theory of the ensemble.
        source: where the configurations come from.
        live: the chain that makes them, if there is one; its run directory is below the output.
        targets, derivatives, observables, analysis: what to do.
        resolved: all tables with the defaults filled in.
    """

    base: Path
    action: Action
    source: Source
    live: RunConfig | None
    targets: Sequence[TargetEntry]
    derivatives: Sequence[DerivativeEntry]
    observables: Sequence[ObservableEntry]
    analysis: AnalysisTable
    resolved: Mapping[str, Any]

    def path(self, written: str) -> str:
        """Return a path of the configuration, relative ones taken from the file's directory."""
        return str(self.base / written)


def read_correlate_config(table: Mapping[str, Any], base: Path) -> CorrelateConfig:
    """Validate the tables of a configuration with one ensemble.

    Args:
        table: all tables.
        base: directory that relative paths refer to.

    Raises:
        ConfigError: naming the table and key that is unusable, and what to do.
    """
    check_tables("correlate", table)
    source = Source(**validate(Source, table.get("ensemble", {}), "[ensemble]"))
    live_tables = [name for name in LIVE if name in table]
    _check_source(source, live_tables)
    theory = _theory(table, source, base)
    action = build_action(theory)
    live = read_live(table, theory, source, base) if live_tables else None
    observables = read_observables(table.get("measure", {}), action)
    targets = read_targets(as_list(table.get("target", [])), action)
    derivatives = _derivatives(as_list(table.get("derivative", [])))
    analysis = AnalysisTable(**validate(AnalysisTable, table.get("analysis", {}), "[analysis]"))
    check_labels([*targets, *derivatives])
    check_masses(analysis, observables)
    resolved: dict[str, Any] = {
        "theory": dict(theory),
        "ensemble": dataclasses.asdict(source),
        "measure": {"observables": [entry.written for entry in observables]},
        "target": as_list(table.get("target", [])),
        "derivative": [
            {
                "method": entry.method,
                "label": entry.label,
                **registry.resolved(entry.component, entry.keys),
            }
            for entry in derivatives
        ],
        "analysis": dataclasses.asdict(analysis),
    }
    if live is not None:
        resolved |= {name: live.resolved[name] for name in LIVE}
    return CorrelateConfig(
        base, action, source, live, targets, derivatives, observables, analysis, resolved
    )


def check_live(names: Sequence[str]) -> None:
    """Refuse a part of the tables of a live chain.

    Raises:
        ConfigError: naming the table that is missing.
    """
    if names and set(names) != set(LIVE):
        missing = next(name for name in LIVE if name not in names)
        brackets = "[[update]]" if missing == "update" else f"[{missing}]"
        raise ConfigError(f"missing table {brackets} of the live chain")


def check_masses(analysis: AnalysisTable, observables: Sequence[ObservableEntry]) -> None:
    """Refuse effective masses of what is not measured.

    Raises:
        ConfigError: naming the nearest observable.
    """
    known = [entry.label for entry in observables]
    for label in (one.of for one in analysis.masses):
        if label not in known:
            raise ConfigError(
                f"[analysis]: effective_masses: {label!r} is not among the observables of "
                f"[measure]{nearest(label, known)}"
            )


def _check_source(source: Source, live_tables: Sequence[str]) -> None:
    given = [name for name in ("files", "run") if getattr(source, name) is not None]
    if len(given) + bool(live_tables) != 1:
        raise ConfigError(
            'the configurations come either from files = [...] or run = "..." in [ensemble], or '
            "from a live chain with the tables [chains], [[update]] and [run]; here are "
            + (" and ".join([*given, *(f"[{name}]" for name in live_tables)]) or "none of these")
        )
    check_live(live_tables)
    if source.format is not None and not live_tables:
        raise ConfigError(
            "[ensemble]: format is that in which a live chain saves its configurations; the format "
            "of files is recognised by content: remove the key"
        )


def _theory(table: Mapping[str, Any], source: Source, base: Path) -> Mapping[str, Any]:
    if source.run is None:
        if "theory" not in table:
            raise ConfigError("missing table [theory]: the theory that the ensemble was made with")
        return table["theory"]
    if "theory" in table:
        # What the user's own configuration names may be imported for the run's, too.
        build_action(table["theory"])
    of_run = run_theory(base / source.run)
    if "theory" in table and dict(table["theory"]) != dict(of_run):
        raise ConfigError(
            f"[theory] is not that of the run in {source.run}, which has {dict(of_run)}: remove "
            "the table"
        )
    return of_run


def read_live(
    table: Mapping[str, Any], theory: Mapping[str, Any], source: Source, base: Path
) -> RunConfig:
    """Return the configuration of a live chain.

    Args:
        table: the whole configuration, of which ``[chains]``, ``[[update]]`` and ``[run]`` count.
        theory: ``[theory]`` of the chain.
        source: says in which format configurations are saved.
        base: directory that relative paths refer to.

    Raises:
        ConfigError: as :func:`flowmc.chains.config.read_config`.
    """
    run = dict(table["run"])
    run.setdefault("save_every", run.get("measure_every", 1))
    run.setdefault("report", False)
    tables = {
        "theory": theory,
        "chains": table["chains"],
        "update": as_list(table["update"]),
        "run": run,
        "measure": {"observables": ["action"]},
        "ensemble": {"format": source.format or "hdf5"},
    }
    return read_config(tables, base)


def read_targets(tables: Sequence[Any], action: Action) -> list[TargetEntry]:
    """Return the theories of all ``[[target]]`` tables, scans taken apart.

    Raises:
        ConfigError: naming the table and the key that is unusable.
    """
    entries = []
    for number, table in enumerate(tables, start=1):
        where = f"[[target]] {number}"
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}: should be a table, written [[target]]")
        couplings = dict(table)
        own = {key: couplings.pop(key, None) for key in parameters(TargetTable)}
        check_known(couplings, [*action.parameters, *own], where)
        for key in ("flow", "save", "label"):
            if own[key] is not None and not isinstance(own[key], str):
                raise ConfigError(f"{where}: {key} = {own[key]!r}: should be text")
        if own["precision"] not in (None, 32, 64):
            raise ConfigError(f"{where}: precision = {own['precision']!r}: should be 32 or 64")
        if own["precision"] is not None and own["save"] is None:
            raise ConfigError(f"{where}: precision is that of saved files: it needs save")
        if not couplings:
            raise ConfigError(
                f"{where}: needs a coupling that changes; the {action.name} action has "
                f"{', '.join(action.parameters)}"
            )
        values = {k: v if isinstance(v, list) else [v] for k, v in couplings.items()}
        points = [dict(zip(values, point, strict=True)) for point in product(*values.values())]
        if not points:
            raise ConfigError(f"{where}: a list of couplings is empty")
        if len(points) > 1 and (own["flow"] or "identity") != "identity":
            raise ConfigError(
                f"{where}: a flow leads to one theory: give every value a [[target]] of its own"
            )
        if len(points) > 1 and own["label"] is not None:
            raise ConfigError(f"{where}: a label names one target, not {len(points)}")
        for point in points:
            target = check_couplings(action, point, where)
            if own["save"] is not None:
                check_format(own["save"], target, where, precision=own["precision"])
            label = own["label"] or ",".join(f"{key}={value!r}" for key, value in point.items())
            entries.append(
                TargetEntry(label, target, own["flow"] or "identity", own["save"], own["precision"])
            )
    return entries


def _derivatives(tables: Sequence[Any]) -> list[DerivativeEntry]:
    entries = []
    for number, table in enumerate(tables, start=1):
        where = f"[[derivative]] {number}"
        if not isinstance(table, Mapping):
            raise ConfigError(f"{where}: should be a table, written [[derivative]]")
        keys = dict(table)
        method, label = keys.pop("method", None), keys.pop("label", None)
        if not isinstance(method, str):
            raise ConfigError(f"{where}: missing key 'method', e.g. method = \"difference\"")
        if label is not None and not isinstance(label, str):
            raise ConfigError(f"{where}: label = {label!r}: should be text")
        component = resolve("derivatives", method, where)
        arguments = validate(component, keys, f"{where} ({method})")
        if label is None:
            label = f"d_{keys.get('coupling', number)} ({method})"
        entries.append(DerivativeEntry(label, method, component, arguments))
    return entries


def check_labels(entries: Sequence[TargetEntry | DerivativeEntry]) -> None:
    """Refuse labels that are there twice, or that cannot be names in files.

    Raises:
        ConfigError: naming the label.
    """
    labels: set[str] = set()
    for entry in entries:
        if entry.label in (*labels, "observables", "action", "measured", "numbers", "replicas"):
            raise ConfigError(
                f"two targets or derivatives are called {entry.label!r}, or it is a reserved word: "
                "tell them apart with the key label"
            )
        if "/" in entry.label or not entry.label:
            raise ConfigError(f"label = {entry.label!r}: should be text without '/'")
        labels.add(entry.label)


def as_list(value: Any) -> list[Any]:
    """Return a list of tables where one table may stand for it."""
    return list(value) if isinstance(value, list) else [value]
