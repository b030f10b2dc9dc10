"""The configuration file of ``flowmc train``: TOML to a validated plan."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from flowmc_adapters import FormatError
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.actions.theory import build_action, check_couplings
from flowmc.flows.base import Flow, FlowModel
from flowmc.flows.conditional import ConditionalContinuousFlow
from flowmc.flows.continuous import ContinuousFlow
from flowmc.flows.files import build_flow, build_local_model, build_model, build_prior
from flowmc.flows.local import LocalFlowModel
from flowmc.flows.runge_kutta import TABLEAUS
from flowmc.random import stream
from flowmc.registry import ConfigError, build, nearest, parameters, resolve, validate
from flowmc.run.evaluate import ENSEMBLE_KEYS, read_toml
from flowmc.run.stored_ensemble import EnsembleTable, StoredEnsemble
from flowmc.training.ensemble import Ensemble
from flowmc.training.loop import Settings
from flowmc.training.objectives import (
    Annealed,
    Objective,
    OverCouplings,
    OverTheories,
    SamplerObjective,
    share_weights,
)
from flowmc.training.stored import StoredConfigurations
from flowmc.training.transfer import start_from

__all__ = ["Plan", "make_plan", "read_plan"]

_TABLES = (
    *("theory", "size", "annealing", "flow", "prior", "block", "mixture", "chains", "ensemble"),
    *("exchange", "training"),
)
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
    couplings_per_batch: int | None = None
    refined_steps: int | None = None


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
class _Annealing:
    """[annealing]: couplings that the target begins at, and when it has arrived."""

    start: dict[str, float]
    steps: int

    def __post_init__(self) -> None:
        if not self.start:
            raise ConfigError("[annealing]: start = {} names no coupling")
        if self.steps < 1:
            raise ConfigError(f"[annealing]: steps = {self.steps}: should be at least 1")


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
        sizes: the other theories of a mix of sizes.
        ends: both theories of an exchange flow, else None.
        ensemble: arguments of the ensembles of HMC configurations; None without any.
        stored: configurations on disk, in the place of these.
        settings: of the loop.
        keys: other keys of [training].
        objective: the class of the objective.
        options: its own keys.
    """

    tables: dict[str, Any]
    action: Action
    sizes: tuple[Action, ...]
    ends: tuple[Action, Action] | None
    ensemble: dict[str, Any] | None
    stored: StoredEnsemble | None
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
        if self.sizes:
            if isinstance(flow, LocalFlowModel):
                raise ConfigError("[[size]]: a local flow serves any lattice as it is")
            return self._over_sizes(flow, device)
        offered: dict[str, Any]
        if isinstance(flow, LocalFlowModel):
            offered = {
                "local_model": flow,
                "ensemble": self._ensemble(self.action, "target", device),
            }
        elif self.ends is None:
            offered = {"model": self._model(flow, self.action, device), "action": self.action}
            if self.ensemble is not None or self.stored is not None:
                offered["ensemble"] = self._target(device)
        else:
            ensembles = (
                self._ensemble(action, name, device)
                for action, name in zip(self.ends, ("from", "to"), strict=True)
            )
            offered = dict(zip(_OF_EXCHANGE_FLOWS, (flow, *ensembles), strict=True))
        return self._annealed(self._over_couplings(self._objective(offered), flow))

    def _model(self, flow: Flow, action: Action, device: torch.device | str) -> FlowModel:
        prior = build_prior(self.tables["prior"], action)
        model = build_model(prior, flow, action, self.mixture)
        return model.to(device=device, dtype=self.dtype)

    def _objective(self, offered: Mapping[str, Any]) -> Objective:
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

    def _annealed(self, objective: Objective) -> Objective:
        """Return the objective whose target begins elsewhere, if there is [annealing]."""
        if "annealing" not in self.tables:
            return objective
        if not isinstance(objective, SamplerObjective):
            raise ConfigError(
                "[annealing] is of a sampler of one theory, not of several and not of [exchange]"
            )
        table = build(_Annealing, self.tables["annealing"], "[annealing]")
        first = check_couplings(self.action, table.start, "[annealing] start")
        start = {key: first.parameters[key] for key in table.start}
        try:
            return Annealed(objective, start, table.steps)
        except ConfigError as error:
            raise ConfigError(f"[annealing]: {error}") from error

    def _over_sizes(self, flow: Flow, device: torch.device | str) -> Objective:
        """Return the objective of a mix of sizes, with the weights of ``flow`` for all of them."""
        if not flow.transfers_to_other_lattices:
            raise ConfigError(
                f"[[size]]: the weights of a {self.tables['flow']['name']} flow belong to one "
                "lattice: use a flow of any lattice, e.g. multi_lattice or affine_coupling"
            )
        actions = (self.action, *self.sizes)
        if self.settings.batch % len(actions):
            raise ConfigError(
                f"[training] batch = {self.settings.batch} cannot be shared evenly by [theory] and "
                f"{len(self.sizes)} [[size]]"
            )
        others = [build_flow(self.tables["flow"], action) for action in self.sizes]
        models = [
            self._model(one, action, device)
            for one, action in zip((flow, *others), actions, strict=True)
        ]
        share_weights(flow, others)
        return OverTheories(
            [
                cast(SamplerObjective, self._objective({"model": model, "action": action}))
                for model, action in zip(models, actions, strict=True)
            ]
        )

    def _over_couplings(self, objective: Objective, flow: Flow | LocalFlowModel) -> Objective:
        """Return the objective of the whole range, if the flow is a conditional one."""
        per_batch = self.keys.couplings_per_batch
        if not isinstance(flow, ConditionalContinuousFlow):
            if per_batch is not None:
                raise ConfigError(
                    "[training] couplings_per_batch would be ignored: the flow is of one coupling"
                )
            return objective
        if not isinstance(objective, SamplerObjective):
            raise ConfigError(
                "[exchange]: train a conditional flow as a sampler, with [prior]; it then carries "
                "any of its couplings to any other"
            )
        per_batch = 4 if per_batch is None else per_batch
        if self.settings.batch % max(per_batch, 1):
            raise ConfigError(
                f"[training] batch = {self.settings.batch} cannot be shared evenly by "
                f"couplings_per_batch = {per_batch}"
            )
        try:
            return OverCouplings(objective, per_batch)
        except ConfigError as error:
            raise ConfigError(f"[training]: {error}") from error

    def _target(self, device: torch.device | str) -> Ensemble | StoredConfigurations:
        """Return the configurations of the target: from disk, or of HMC chains."""
        stored = self.stored
        if stored is None:
            return self._ensemble(self.action, "target", device)

        def read(places: Sequence[int]) -> Tensor:
            return stored.take(places, self.action, dtype=self.dtype, device=device)

        return StoredConfigurations(self.action, len(stored), read, "target", self.settings.seed)

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
    return make_plan(read_toml(path), Path(path).parent)


def make_plan(tables: dict[str, Any], base: Path = Path()) -> Plan:
    """Validate the tables of a training configuration; see :func:`read_plan`.

    ``base`` is the directory that the paths of configurations refer to.
    """
    for name, table in tables.items():
        if name not in _TABLES:
            raise ConfigError(f"unknown table [{name}]{nearest(name, _TABLES)}")
        if name == "size":
            if not (isinstance(table, list) and all(isinstance(one, dict) for one in table)):
                raise ConfigError("size: should be tables [[size]], in double brackets")
        elif not isinstance(table, dict):
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
    sizes = tuple(
        build_action({**tables["theory"], **table}, "[[size]]") for table in tables.get("size", [])
    )
    unusable = ("exchange", "chains", "ensemble", "annealing")
    if sizes and any(name in tables for name in unusable):
        raise ConfigError(
            "[[size]] is of samplers that learn without [chains], [ensemble], [exchange] and "
            "[annealing]"
        )
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
    if "block" in tables and ensemble is None:
        raise ConfigError(
            "[block]: a local flow learns from HMC chains: add a table [chains], e.g. with "
            "count = 256"
        )
    stored = _read_stored(tables, base)
    settings, keys, objective, options = _read_training(
        tables["training"],
        _kind(tables),
        configurations=next((f"[{n}]" for n in ("chains", "ensemble") if n in tables), None),
    )
    plan = Plan(tables, action, sizes, ends, ensemble, stored, settings, keys, objective, options)
    # Building it all checks the tables; the weights are thrown away.
    _check_refinement(plan, plan.build("cpu"))
    return plan


def _check_refinement(plan: Plan, objective: Objective) -> None:
    """Raise unless the integrator of the flow can be made as fine as asked."""
    steps = plan.keys.refined_steps
    if steps is None:
        return
    flow = getattr(objective.module, "flow", objective.module)
    if not isinstance(flow, ContinuousFlow) or flow.integrator not in TABLEAUS:
        raise ConfigError(
            "[training] refined_steps would be ignored: the flow has no integrator of fixed steps"
        )
    if steps < flow.steps:
        raise ConfigError(
            f"[training] refined_steps = {steps}: should be at least the {flow.steps} steps of "
            "[flow] that it is trained with"
        )


def _read_stored(tables: dict[str, Any], base: Path) -> StoredEnsemble | None:
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
    table: dict[str, Any], kind: str, *, configurations: str | None
) -> tuple[Settings, _Keys, Callable[..., Objective], dict[str, Any]]:
    where = "[training]"
    name = table.get("objective", _OBJECTIVES[kind])
    objective = _find_objective(name, kind, configurations=configurations)
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


def _find_objective(
    name: Any, kind: str, *, configurations: str | None
) -> Callable[..., Objective]:
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
    if configurations is not None and "ensemble" not in asked:
        raise ConfigError(f"{configurations} would be ignored: {name} needs no configurations")
    if configurations is None and asked.get("ensemble") is inspect.Parameter.empty:
        raise ConfigError(
            f"{where}: needs configurations of the target: add a table [chains], e.g. with "
            "count = 256, or [ensemble] with files"
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
