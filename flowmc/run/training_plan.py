"""The configuration file of ``flowmc train``: TOML to a validated plan."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch

from flowmc.actions.base import Action
from flowmc.actions.theory import build_action, check_couplings
from flowmc.flows.base import Flow
from flowmc.flows.files import build_flow, build_local_model, build_model, build_prior
from flowmc.flows.local import LocalFlowModel
from flowmc.random import stream
from flowmc.registry import ConfigError, build, nearest, parameters, resolve, validate
from flowmc.run.evaluate import ENSEMBLE_KEYS, read_toml
from flowmc.training.ensemble import Ensemble
from flowmc.training.loop import Settings
from flowmc.training.objectives import Objective
from flowmc.training.transfer import start_from

__all__ = ["Plan", "make_plan", "read_plan"]

_TABLES = ("theory", "flow", "prior", "block", "mixture", "chains", "exchange", "training")
# By position objectives take what the tables beside [training] describe; the rest are their keys.
_OF_SAMPLERS = ("model", "action", "ensemble")
_OF_EXCHANGE_FLOWS = ("flow", "ensemble_a", "ensemble_b")
_OF_LOCAL_FLOWS = ("local_model", "ensemble")
_KINDS = {"sampler": _OF_SAMPLERS, "exchange": _OF_EXCHANGE_FLOWS, "local": _OF_LOCAL_FLOWS}
_OBJECTIVES = {"sampler": "reverse_kl", "exchange": "exchange_kl", "local": "local_kl"}


@dataclass(frozen=True, kw_only=True)
class _Keys:
    """Keys of [training] beside those of the loop and of the objective."""

    precision: Literal[32, 64] = 64
    evaluate_samples: int = 4096
    start_from: str | None = None


@dataclass(frozen=True, kw_only=True)
class _Hmc:
    """The HMC chains that configurations come from, as arguments of :class:`Ensemble`."""

    thermalization: int = 200
    refresh_every: int = 1
    trajectory: float = 1.0
    steps: int = 10
    integrator: str = "omelyan2"
    target_acceptance: float = 0.9
    start: Literal["hot", "cold"] = "hot"


@dataclass(frozen=True, kw_only=True)
class _Chains(_Hmc):
    """[chains]: chains of the target."""

    count: int = 256


@dataclass(frozen=True, kw_only=True)
class _Mixture:
    """[mixture]: the symmetry that a sampler is averaged over."""

    symmetry: Literal["sign_flip"]


@dataclass(frozen=True, kw_only=True)
class _Exchange(_Hmc):
    """[exchange], beside from and to: chains of either end."""

    chains: int = 256


@dataclass(frozen=True)
class Plan:
    """A validated training configuration.

    Attributes:
        tables: the configuration as read.
        action: the theory.
        ends: both theories of an exchange flow, else None.
        ensemble: arguments of the ensembles of HMC configurations; None without any.
        settings: of the loop.
        keys: other keys of [training].
        objective: the class of the objective.
        options: its own keys.
    """

    tables: dict[str, Any]
    action: Action
    ends: tuple[Action, Action] | None
    ensemble: dict[str, Any] | None
    settings: Settings
    keys: _Keys
    objective: Callable[..., Objective]
    options: dict[str, Any]

    @property
    def kind(self) -> str:
        """What is trained: "sampler", "exchange" or "local", as in a card."""
        return _kind(self.tables)

    @property
    def mixture(self) -> str | None:
        """The symmetry that the sampler is averaged over, if any."""
        table = self.tables.get("mixture")
        return None if table is None else table["symmetry"]

    @property
    def dtype(self) -> torch.dtype:
        """Precision of weights and fields."""
        return torch.float64 if self.keys.precision == 64 else torch.float32

    def remarks(self, ranks: int) -> list[str]:
        """Return what is worth knowing before this is trained on so many ranks."""
        found = []
        batch = self.settings.batch
        if self.ends is None and ranks > batch:
            found.append(
                f"[training] batch = {batch}: {ranks - batch} of {ranks} ranks have no sample to "
                "work on; use a larger batch or fewer ranks"
            )
        if self.ensemble is not None:
            groups = Ensemble(self.action, "size", 0, **self.ensemble).groups
            table, key = ("chains", "count") if self.ends is None else ("exchange", "chains")
            if ranks > groups:
                found.append(
                    f"[{table}] {key} = {self.ensemble['chains']} are {groups} groups: "
                    f"{ranks - groups} of {ranks} ranks have no chains to work on; use more "
                    "chains or fewer ranks"
                )
        return found

    def build(self, device: torch.device | str) -> Objective:
        """Return the objective with a freshly initialised flow; the same weights for every seed.

        Raises:
            ConfigError: for values that the objective refuses.
        """
        # The initial weights come from torch's global generator, whose state is put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(self.settings.seed, 0, "weights").initial_seed())
            flow: Flow | LocalFlowModel
            if self.kind == "local":
                flow = build_local_model(self.tables, self.action)
            else:
                flow = build_flow(self.tables["flow"], self.action)
        # In the precision of the training first, so that no digit of other weights is lost.
        flow.to(device=device, dtype=self.dtype)
        if self.keys.start_from is not None:
            start_from(flow, self.action, self.keys.start_from)
        offered: dict[str, Any]
        if isinstance(flow, LocalFlowModel):
            offered = {
                "local_model": flow,
                "ensemble": self._ensemble(self.action, "target", device),
            }
        elif self.ends is None:
            prior = build_prior(self.tables["prior"], self.action)
            model = build_model(prior, flow, self.action, self.mixture)
            model.to(device=device, dtype=self.dtype)
            offered = {"model": model, "action": self.action}
            if self.ensemble is not None:
                offered["ensemble"] = self._ensemble(self.action, "target", device)
        else:
            ensembles = (
                self._ensemble(action, name, device)
                for action, name in zip(self.ends, ("from", "to"), strict=True)
            )
            offered = dict(zip(_OF_EXCHANGE_FLOWS, (flow, *ensembles), strict=True))
        taken = [offered[name] for name in _positional(self.objective) if name in offered]
        try:
            objective = self.objective(*taken, **self.options)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"[training]: {error}") from error
        if not isinstance(objective, Objective):
            raise ConfigError(
                f"[training]: objective = {self.tables['training'].get('objective')!r} gives no "
                "Objective"
            )
        return objective

    def _ensemble(self, action: Action, purpose: str, device: torch.device | str) -> Ensemble:
        assert self.ensemble is not None
        return Ensemble(
            action,
            purpose,
            self.settings.seed,
            dtype=self.dtype,
            device=device,
            **self.ensemble,
        )


def read_plan(path: str) -> Plan:
    """Read and validate a training configuration.

    Raises:
        ConfigError: naming the file, table and key that is missing, unknown or unusable.
    """
    return make_plan(read_toml(path))


def make_plan(tables: dict[str, Any]) -> Plan:
    """Validate the tables of a training configuration; see :func:`read_plan`."""
    for name, table in tables.items():
        if name not in _TABLES:
            raise ConfigError(f"unknown table [{name}]{nearest(name, _TABLES)}")
        if not isinstance(table, dict):
            raise ConfigError(f"{name} = {table!r}: should be a table [{name}]")
    for name in ("theory", "flow", "training"):
        if name not in tables:
            raise ConfigError(f"the configuration has no [{name}] table")
    if ("prior" in tables) == ("exchange" in tables):
        raise ConfigError(
            "the configuration needs either [prior] (a sampler) or [exchange] (a flow between two "
            "couplings)"
        )
    if "block" in tables:
        for name in ("exchange", "mixture"):
            if name in tables:
                raise ConfigError(f"[block] is of local flows, which have no [{name}]")
        if "chains" not in tables:
            raise ConfigError(
                "[block]: local flows learn on configurations of the target: add a table [chains], "
                "e.g. with count = 256"
            )
    if "mixture" in tables:
        if "exchange" in tables:
            raise ConfigError("[mixture] is of samplers, not of flows between two couplings")
        build(_Mixture, tables["mixture"], "[mixture]")
    action = build_action(tables["theory"])
    ends: tuple[Action, Action] | None = None
    ensemble: dict[str, Any] | None = None
    if "exchange" in tables:
        if "chains" in tables:
            raise ConfigError("[chains] would be ignored: the chains are those of [exchange]")
        ends, ensemble = _read_exchange(tables["exchange"], action)
    elif "chains" in tables:
        ensemble = asdict(build(_Chains, tables["chains"], "[chains]"))
        ensemble["chains"] = ensemble.pop("count")
        _check_ensemble(ensemble, action, "[chains]")
    settings, keys, objective, options = _read_training(
        tables["training"], _kind(tables), has_chains="chains" in tables
    )
    plan = Plan(tables, action, ends, ensemble, settings, keys, objective, options)
    # Building it all checks the tables; the weights are thrown away.
    plan.build("cpu")
    return plan


def _kind(tables: Mapping[str, Any]) -> str:
    if "exchange" in tables:
        return "exchange"
    return "local" if "block" in tables else "sampler"


def _read_exchange(
    table: dict[str, Any], action: Action
) -> tuple[tuple[Action, Action], dict[str, Any]]:
    options = dict(table)
    ends = []
    for key in ("from", "to"):
        couplings = options.pop(key, None)
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
    known = {"from", "to", *parameters(_Exchange)}
    for key in options:
        if key not in known:
            raise ConfigError(f"[exchange]: unknown key {key!r}{nearest(key, known)}")
    ensemble = asdict(build(_Exchange, options, "[exchange]"))
    assert set(ENSEMBLE_KEYS) <= set(ensemble)
    _check_ensemble(ensemble, first, "[exchange]")
    return (first, second), ensemble


def _check_ensemble(options: dict[str, Any], action: Action, where: str) -> None:
    try:
        # The constructor holds the ranges; nothing is drawn before the first batch.
        Ensemble(action, "check", 0, **options)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def _read_training(
    table: dict[str, Any], kind: str, *, has_chains: bool
) -> tuple[Settings, _Keys, Callable[..., Objective], dict[str, Any]]:
    where = "[training]"
    name = table.get("objective", _OBJECTIVES[kind])
    objective = _find_objective(name, kind, has_chains=has_chains)
    own, common = parameters(objective), parameters(_Keys)
    known = {"objective", *own, *common, *parameters(Settings)}
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")

    def those(names: Any) -> dict[str, Any]:
        return {key: table[key] for key in table if key in names}

    options = validate(objective, those(own), where)
    keys = build(_Keys, those(common), where)
    if keys.evaluate_samples < 16:
        raise ConfigError(f"{where}: evaluate_samples = {keys.evaluate_samples}: at least 16")
    arguments = validate(Settings, those(parameters(Settings)), where)
    try:
        return Settings(**arguments), keys, objective, options
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from error


def _find_objective(name: Any, kind: str, *, has_chains: bool) -> Callable[..., Objective]:
    """Return the class of an objective that can be had from the tables that there are."""
    if not isinstance(name, str):
        raise ConfigError(f"[training]: objective = {name!r}: should be a name")
    where = f"[training]: objective = {name!r}"
    try:
        objective = resolve("objectives", name)
    except ConfigError as error:
        raise ConfigError(f"[training]: {error}") from error
    asked = _positional(objective)
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
    if has_chains and "ensemble" not in asked:
        raise ConfigError(f"[chains] would be ignored: {name} needs no configurations")
    if not has_chains and asked.get("ensemble") is inspect.Parameter.empty:
        raise ConfigError(
            f"{where}: needs configurations of the target: add a table [chains], e.g. with "
            "count = 256"
        )
    return objective


def _positional(component: Callable[..., Any]) -> dict[str, Any]:
    """Return the positional parameters of a component with their defaults."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return {
        name: parameter.default
        for name, parameter in inspect.signature(component).parameters.items()
        if parameter.kind in kinds
    }
