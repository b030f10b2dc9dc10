"""The tables of a training configuration: their keys, and what can be said of each by itself."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from flowmc_adapters import FormatError

from flowmc.actions.base import Action
from flowmc.actions.theory import check_couplings
from flowmc.config.tables import MOST_CHAINS
from flowmc.durations import seconds_of
from flowmc.ensembles.stored import EnsembleTable, StoredEnsemble
from flowmc.registry import (
    ConfigError,
    build,
    check_known,
    parameters,
    positional_of,
    resolve,
    validate,
    written,
)
from flowmc.training.ensemble import ENSEMBLE_KEYS, Ensemble
from flowmc.training.loop import Settings
from flowmc.training.objectives import Objective

__all__ = [
    "OF_EXCHANGE_FLOWS",
    "Annealing",
    "Keys",
    "MixtureTable",
    "TrainingChains",
    "check_ensemble",
    "kind_of",
    "read_exchange",
    "read_stored",
    "read_training",
]

# By position objectives take what the tables beside [training] describe; the rest are their keys.
_OF_SAMPLERS = ("model", "action", "ensemble")
OF_EXCHANGE_FLOWS = ("flow", "ensemble_a", "ensemble_b")
_OF_LOCAL_FLOWS = ("local_model", "ensemble")
_KINDS = {"sampler": _OF_SAMPLERS, "exchange": OF_EXCHANGE_FLOWS, "local": _OF_LOCAL_FLOWS}
_OBJECTIVES = {"sampler": "reverse_kl", "exchange": "exchange_kl", "local": "local_kl"}


@dataclass(frozen=True, kw_only=True)
class Keys:
    """Keys of [training] beside those of the loop and of the objective.

    Attributes:
        objective: its name, or "package.module:Name"; by default "reverse_kl" for samplers,
            "exchange_kl" for exchange flows and "local_kl" for local flows.
        precision: 64 or 32, of weights and fields.
        evaluate_samples: of the measurement that goes into the card.
        start_from: flow file that the weights start from.
        couplings_per_batch: of conditional flows.
        refined_steps: of the integrator of the finished flow.
        time_limit: of one invocation: "23h30m", "90s" or seconds; the training stops in time with a
            checkpoint.
    """

    objective: str | None = None
    precision: Literal[32, 64] = 64
    evaluate_samples: int = 4096
    start_from: str | None = None
    couplings_per_batch: int | None = None
    refined_steps: int | None = None
    time_limit: float | str | None = None

    def __post_init__(self) -> None:
        if self.evaluate_samples < 16:
            raise ConfigError(
                f"[training]: evaluate_samples = {self.evaluate_samples}: at least 16"
            )
        if self.time_limit is not None:
            seconds_of(self.time_limit, "[training]: time_limit")


@dataclass(frozen=True, kw_only=True)
class _Hmc:
    """The HMC chains that configurations come from, as arguments of :class:`Ensemble`.

    Attributes:
        thermalization: trajectories before the first configurations, in which the step size adapts.
        refresh_every: steps of the training between two trajectories of a chain.
        trajectory: length of a trajectory.
        steps: integrator steps of a trajectory, adapted in the thermalization.
        integrator: "leapfrog", "omelyan2" or "omelyan4".
        target_acceptance: that the step size is adapted to.
        start: "hot" or "cold".
    """

    thermalization: int = 200
    refresh_every: int = 1
    trajectory: float = 1.0
    steps: int = 10
    integrator: str = "omelyan2"
    target_acceptance: float = 0.9
    start: Literal["hot", "cold"] = "hot"


@dataclass(frozen=True, kw_only=True)
class TrainingChains(_Hmc):
    """[chains]: chains of the target.

    Attributes:
        count: number of chains.
    """

    count: int = 256


@dataclass(frozen=True, kw_only=True)
class MixtureTable:
    """[mixture]: the symmetry that a sampler is averaged over.

    Attributes:
        symmetry: "sign_flip", phi -> -phi.
    """

    symmetry: Literal["sign_flip"]


@dataclass(frozen=True, kw_only=True)
class Annealing:
    """[annealing]: couplings that the target begins at, and when it has arrived.

    Attributes:
        start: couplings at the beginning.
        steps: of the training until the target is that of [theory].
    """

    start: dict[str, float]
    steps: int

    def __post_init__(self) -> None:
        if not self.start:
            raise ConfigError("[annealing]: start = {} names no coupling")
        if self.steps < 1:
            raise ConfigError(f"[annealing]: steps = {self.steps}: should be at least 1")


@dataclass(frozen=True, kw_only=True)
class ExchangeTable(_Hmc):
    """[exchange]: the two theories that a flow joins, and HMC chains of either.

    Attributes:
        from_: couplings of the theory that the flow begins at; all others are those of [theory].
        to: couplings of the theory that it leads to.
        chains: number of chains of either theory.
    """

    from_: dict[str, float]
    to: dict[str, float]
    chains: int = 256


@dataclass(frozen=True, kw_only=True)
class SizeTable:
    """[[size]]: a further theory for a flow of lattices of any size.

    It has the keys of [theory] that differ, couplings among them.

    Attributes:
        lattice: extents, x first and time last.
    """

    lattice: list[int] | None = None


def read_stored(tables: dict[str, Any], base: Path) -> StoredEnsemble | None:
    """Return the configurations of [ensemble]."""
    if "ensemble" not in tables:
        return None
    for name in ("chains", "exchange"):
        if name in tables:
            raise ConfigError(
                f"[ensemble] and [{name}]: configurations come from files or from HMC chains, not "
                "from both"
            )
    table = EnsembleTable(**validate(EnsembleTable, tables["ensemble"], "[ensemble]"))
    try:
        return table.open(base)
    except (FormatError, OSError) as error:
        raise ConfigError(f"[ensemble]: {error}") from error


def kind_of(tables: Mapping[str, Any]) -> str:
    """Return what is trained: "sampler", "exchange" or "local"."""
    if "exchange" in tables:
        return "exchange"
    return "local" if "block" in tables else "sampler"


def read_exchange(
    table: dict[str, Any], action: Action
) -> tuple[tuple[Action, Action], dict[str, Any]]:
    """Return the two theories of [exchange], and the arguments of their ensembles."""
    options = dict(table)
    ends = []
    for key in ("from", "to"):
        couplings = options.get(key)
        if not isinstance(couplings, dict) or not couplings:
            example = next(iter(action.parameters), "beta")
            raise ConfigError(
                f"[exchange]: needs {key} = {{...}} with the couplings of that end, e.g. "
                f"{key} = {{{example} = 1.0}}"
            )
        ends.append(check_couplings(action, couplings, f"[exchange] {key}"))
    first, second = ends
    if first.parameters == second.parameters:
        raise ConfigError("[exchange]: from and to are the same theory: nothing to train")
    ensemble = asdict(build(ExchangeTable, options, "[exchange]"))
    del ensemble["from_"], ensemble["to"]
    assert set(ENSEMBLE_KEYS) <= set(ensemble)
    check_ensemble(ensemble, first, "[exchange]")
    return (first, second), ensemble


def check_ensemble(options: dict[str, Any], action: Action, where: str) -> None:
    """Raise ``ConfigError`` for arguments that an ensemble refuses."""
    if options["chains"] > MOST_CHAINS:
        raise ConfigError(f"{where}: {options['chains']} chains: should be at most {MOST_CHAINS}")
    try:
        # The constructor holds the ranges; nothing is drawn before the first batch.
        Ensemble(action, "check", 0, **options)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def read_training(
    table: dict[str, Any], kind: str, *, configurations: str | None
) -> tuple[Settings, Keys, Callable[..., Objective], dict[str, Any]]:
    """Return what [training] says to the loop, to all, and to the objective.

    Args:
        table: [training].
        kind: from :func:`kind_of`.
        configurations: the table that supplies configurations of the target, if any.
    """
    where = "[training]"
    name = table.get("objective", _OBJECTIVES[kind])
    objective = _find_objective(name, kind, configurations=configurations)
    own, common = written(parameters(objective)), parameters(Keys)
    check_known(table, [*own, *common, *parameters(Settings)], where)

    def those(names: Any) -> dict[str, Any]:
        return {key: table[key] for key in table if key in names}

    options = validate(objective, those(own), where)
    keys = build(Keys, those(common), where)
    arguments = validate(Settings, those(parameters(Settings)), where)
    try:
        return Settings(**arguments), keys, objective, options
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _find_objective(
    name: Any, kind: str, *, configurations: str | None
) -> Callable[..., Objective]:
    """Return the class of an objective that can be had from the tables that there are."""
    if not isinstance(name, str):
        raise ConfigError(f"[training]: objective = {name!r}: should be a name")
    where = f"[training]: objective = {name!r}"
    objective = resolve("objectives", name, "[training]")
    asked = positional_of(objective)
    offered = _KINDS[kind]
    foreign = [one for one in asked if one not in offered]
    if foreign:
        tables = {"sampler": "[prior]", "exchange": "[exchange]", "local": "[block]"}
        able = [one for one, names in _KINDS.items() if set(names).issuperset(asked)]
        if not able:
            raise ConfigError(
                f"{where}: takes {foreign[0]!r} by position, but a configuration can only supply "
                + " or ".join(", ".join(names) for names in _KINDS.values())
            )
        raise ConfigError(
            f"{where}: is for a configuration with {tables[able[0]]}, not with {tables[kind]}"
        )
    if kind != "sampler":
        return objective
    if configurations is not None and "ensemble" not in asked:
        raise ConfigError(f"{configurations} would be ignored: {name} needs no configurations")
    if configurations is None and asked.get("ensemble") is inspect.Parameter.empty:
        raise ConfigError(
            f"{where}: needs configurations of the target: add a table [chains], e.g. with "
            "count = 256, or [ensemble] with files"
        )
    return objective
