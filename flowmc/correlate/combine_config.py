"""The configuration file of ``flowmc correlate`` with several ensembles, ``[[ensemble]]``."""

from __future__ import annotations

import dataclasses
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flowmc.actions.base import Action
from flowmc.actions.theory import build_action, check_couplings, describe_theory
from flowmc.chains.config import RunConfig
from flowmc.config.entries import ObservableEntry, read_observables
from flowmc.config.kinds import check_tables
from flowmc.correlate.config import (
    LIVE,
    AnalysisTable,
    Source,
    TargetEntry,
    as_list,
    check_labels,
    check_live,
    check_masses,
    read_live,
    read_targets,
)
from flowmc.ensembles.stored import run_theory
from flowmc.random import stream
from flowmc.registry import ConfigError, check_known, parameters, validate

__all__ = ["CombineConfig", "EnsembleEntry", "equal_seeds", "read_combine_config"]


@dataclass(frozen=True)
class EnsembleEntry:
    """One ``[[ensemble]]``.

    Attributes:
        label: its name, by default its couplings, such as ``beta=2.0``.
        action: the theory that it was made with.
        source: where its configurations come from.
        live: the chain that makes them, if there is one.
    """

    label: str
    action: Action
    source: Source
    live: RunConfig | None


@dataclass(frozen=True)
class CombineConfig:
    """A validated configuration.

    Attributes:
        base: directory that relative paths refer to.
        theory: table of the theory whose couplings ensembles and targets change.
        action: that theory.
        ensembles, targets, observables, analysis: what to do.
        resolved: all tables with the defaults filled in.
    """

    base: Path
    theory: Mapping[str, Any]
    action: Action
    ensembles: Sequence[EnsembleEntry]
    targets: Sequence[TargetEntry]
    observables: Sequence[ObservableEntry]
    analysis: AnalysisTable
    resolved: Mapping[str, Any]

    @property
    def theories(self) -> list[EnsembleEntry | TargetEntry]:
        """All ensembles, then all targets: each has a label and an action."""
        return [*self.ensembles, *self.targets]

    def path(self, written: str) -> str:
        """Return a path of the configuration, relative ones taken from the file's directory."""
        return str(self.base / written)


def read_combine_config(table: Mapping[str, Any], base: Path) -> CombineConfig:
    """Validate the tables of a configuration with several ensembles.

    Args:
        table: all tables.
        base: directory that relative paths refer to.

    Raises:
        ConfigError: naming the table and key that is unusable, and what to do.
    """
    if "derivative" in table:
        raise ConfigError(
            "[[derivative]]: derivatives are taken from one ensemble: write a single [ensemble], "
            "or remove the table"
        )
    if table.get("ensemble") == []:
        raise ConfigError("ensemble = []: name at least one ensemble in a table [[ensemble]]")
    check_tables("combine", table)
    live_tables = [name for name in LIVE if name in table]
    check_live(live_tables)
    theory = _theory(table, base)
    action = build_action(theory)
    ensembles = _ensembles(table, theory, action, base)
    observables = read_observables(table.get("measure", {}), action)
    targets = _targets(table, action)
    analysis = AnalysisTable(**validate(AnalysisTable, table.get("analysis", {}), "[analysis]"))
    check_masses(analysis, observables)
    resolved: dict[str, Any] = {
        "theory": dict(theory),
        "ensemble": [
            {**one.action.parameters, **dataclasses.asdict(one.source)} for one in ensembles
        ],
        "measure": {"observables": [entry.written for entry in observables]},
        "target": as_list(table.get("target", [])),
        "analysis": dataclasses.asdict(analysis),
    }
    live = [one.live for one in ensembles if one.live is not None]
    if live:
        resolved |= {name: live[0].resolved[name] for name in LIVE}
    return CombineConfig(base, theory, action, ensembles, targets, observables, analysis, resolved)


def _theory(table: Mapping[str, Any], base: Path) -> Mapping[str, Any]:
    """Return ``[theory]``, or that of the first run directory."""
    if "theory" in table:
        return table["theory"]
    for one in table["ensemble"]:
        if isinstance(one, Mapping) and isinstance(one.get("run"), str):
            return run_theory(base / one["run"])
    raise ConfigError(
        "missing table [theory]: the theory of all ensembles, whose couplings [[ensemble]] and "
        "[[target]] change"
    )


def _ensembles(
    table: Mapping[str, Any], theory: Mapping[str, Any], action: Action, base: Path
) -> list[EnsembleEntry]:
    found = [
        _ensemble(one, f"[[ensemble]] {number}", theory, action, base)
        for number, one in enumerate(table["ensemble"], start=1)
    ]
    has_chain = "chains" in table
    actions = [one for one, _ in found]
    varying = [
        name
        for name in action.parameters
        if len({one.parameters[name] for one in actions}) > 1 or len(actions) == 1
    ]
    entries: list[EnsembleEntry] = []
    live = 0
    seeds: dict[int, str] = {}
    for number, (own, source) in enumerate(found, start=1):
        where = f"[[ensemble]] {number}"
        label = source.name or ",".join(f"{name}={own.parameters[name]!r}" for name in varying)
        chain = None
        if source.files is None and source.run is None:
            if not has_chain:
                raise ConfigError(
                    f"{where}: the configurations come either from files = [...] or run = "
                    '"...", or from a live chain with the tables [chains], [[update]] and [run]'
                )
            chain = _chain(table, {**theory, **own.parameters}, source, base, live)
            live += 1
        seed = _seed_of_run(base / source.run) if chain is None and source.run else None
        seed = chain.chains.seed if chain is not None else seed
        if seed is not None and seed in seeds:
            raise equal_seeds(where, seed, seeds[seed])
        if seed is not None:
            seeds[seed] = where
        elif source.format is not None:
            raise ConfigError(
                f"{where}: format is that in which a live chain saves its configurations; the "
                "format of files is recognised by content: remove the key"
            )
        entries.append(EnsembleEntry(label, own, source, chain))
    if has_chain and not live:
        raise ConfigError(
            "[chains], [[update]] and [run] make the ensembles that have neither files nor run, "
            "and here all have: remove these tables"
        )
    names = Counter(one.label for one in entries)
    label, count = names.most_common(1)[0]
    if count > 1 or not label:
        raise ConfigError(
            f"{count} ensembles are called {label!r}: tell them apart with the key name"
        )
    return entries


def equal_seeds(where: str, seed: int, other: str) -> ConfigError:
    """Return the refusal of two ensembles whose chains drew the same random numbers."""
    return ConfigError(
        f"{where}: its chains have the seed {seed}, as those of {other}: equal random numbers "
        "correlate them, which no error here accounts for; make one of them again with another "
        "seed in [chains]"
    )


def _seed_of_run(directory: Path) -> int | None:
    """Return the seed of the chains in a run directory, None if it does not say."""
    try:
        table = tomllib.loads((directory / "config.toml").read_text(encoding="utf-8"))
        return int(table["chains"]["seed"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _ensemble(
    table: Any, where: str, theory: Mapping[str, Any], action: Action, base: Path
) -> tuple[Action, Source]:
    """Return the theory and the source of one ``[[ensemble]]``."""
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: should be a table, written [[ensemble]]")
    check_known(table, [*parameters(Source), *action.parameters], where)
    couplings = {key: value for key, value in table.items() if key in action.parameters}
    keys = {key: value for key, value in table.items() if key not in action.parameters}
    try:
        source = Source(**validate(Source, keys, where))
    except ConfigError as error:
        raise ConfigError(str(error).replace("[ensemble]", where, 1)) from error
    if source.files is not None and source.run is not None:
        raise ConfigError(f"{where}: has both files and run: the configurations come from one")
    if source.run is None:
        return check_couplings(action, couplings, where), source
    own = build_action(run_theory(base / source.run))
    if _kind(own) != _kind(action):
        raise ConfigError(
            f"{where}: the run in {source.run} has the theory {own!r}, which differs from "
            f"{action!r} in more than couplings: only one theory can be combined"
        )
    for key, value in check_couplings(action, couplings, where).parameters.items():
        if key in couplings and value != own.parameters[key]:
            raise ConfigError(
                f"{where}: {key} = {couplings[key]!r}, but the run in {source.run} has "
                f"{own.parameters[key]!r}: remove the key"
            )
    return own, source


def _kind(action: Action) -> dict[str, Any]:
    """Return all of a theory but the values of its couplings."""
    return {**describe_theory(action), "couplings": sorted(action.parameters)}


def _chain(
    table: Mapping[str, Any], theory: Mapping[str, Any], source: Source, base: Path, index: int
) -> RunConfig:
    """Return the chain of an ensemble; equal seeds would correlate the ensembles.

    The seeds of all but the first are hashed, so that they are not those of another file whose seed
    is a little greater.
    """
    chains = dict(table["chains"])
    if index and isinstance(chains.get("seed"), int):
        own = stream(chains["seed"], index, "seed of an ensemble")
        chains["seed"] = own.initial_seed()
    return read_live({**table, "chains": chains}, theory, source, base)


def _targets(table: Mapping[str, Any], action: Action) -> list[TargetEntry]:
    targets = read_targets(as_list(table.get("target", [])), action)
    for entry in targets:
        key = "flow" if entry.flow != "identity" else "save" if entry.save is not None else None
        if key is not None:
            raise ConfigError(
                f"[[target]] {entry.label}: {key} is for a single [ensemble]; several are combined "
                "by their weights alone: remove the key"
            )
        if entry.label == "combination" or entry.label.startswith("ensemble "):
            raise ConfigError(
                f"[[target]] {entry.label}: this is the name of another section of the results: "
                "choose another label"
            )
    check_labels(targets)
    return targets
