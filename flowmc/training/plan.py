"""The configuration file of ``flowmc train``: TOML to a validated plan."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.actions.theory import build_action, check_couplings
from flowmc.config.kinds import check_tables
from flowmc.config.tables import read_toml
from flowmc.ensembles.stored import StoredEnsemble
from flowmc.flows.base import Flow
from flowmc.flows.cards.building import build_flow, build_local_model, build_model, build_prior
from flowmc.flows.local.models import LocalFlowModel
from flowmc.flows.models import FlowModel
from flowmc.flows.verification import verify
from flowmc.random import stream
from flowmc.registry import ConfigError, build, positional_of
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
from flowmc.training.tables import (
    OF_EXCHANGE_FLOWS,
    Annealing,
    Keys,
    MixtureTable,
    TrainingChains,
    check_ensemble,
    kind_of,
    read_exchange,
    read_stored,
    read_training,
)
from flowmc.training.transfer import start_from

__all__ = ["TrainingPlan", "make_plan", "read_plan"]


@dataclass(frozen=True)
class TrainingPlan:
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
    keys: Keys
    objective: Callable[..., Objective]
    options: dict[str, Any]

    @property
    def kind(self) -> str:
        """What is trained: "sampler", "exchange" or "local", as in a card."""
        return kind_of(self.tables)

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
            offered = dict(zip(OF_EXCHANGE_FLOWS, (flow, *ensembles), strict=True))
        return self._annealed(self._over_couplings(self._objective(offered), flow))

    def _model(self, flow: Flow, action: Action, device: torch.device | str) -> FlowModel:
        prior = build_prior(self.tables["prior"], action)
        model = build_model(prior, flow, action, self.mixture)
        return model.to(device=device, dtype=self.dtype)

    def _objective(self, offered: Mapping[str, Any]) -> Objective:
        taken = [offered[name] for name in positional_of(self.objective) if name in offered]
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
        table = build(Annealing, self.tables["annealing"], "[annealing]")
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
        if isinstance(flow, LocalFlowModel) or flow.conditional_on is None:
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


def read_plan(path: str, settings: Sequence[str] = ()) -> TrainingPlan:
    """Read and validate a training configuration.

    Args:
        path: the file.
        settings: values set beside it, see :func:`~flowmc.config.settings.with_settings`.

    Raises:
        ConfigError: naming the file, table and key that is missing, unknown or unusable.
    """
    return make_plan(read_toml(path, settings), Path(path).parent)


def make_plan(tables: dict[str, Any], base: Path = Path()) -> TrainingPlan:
    """Validate the tables of a training configuration; see :func:`read_plan`.

    ``base`` is the directory that the paths of configurations refer to.
    """
    check_tables("train", tables)
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
        build(MixtureTable, tables["mixture"], "[mixture]")
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
        ends, ensemble = read_exchange(tables["exchange"], action)
    elif "chains" in tables:
        ensemble = asdict(build(TrainingChains, tables["chains"], "[chains]"))
        ensemble["chains"] = ensemble.pop("count")
        check_ensemble(ensemble, action, "[chains]")
    if "block" in tables and ensemble is None:
        raise ConfigError(
            "[block]: a local flow learns from HMC chains: add a table [chains], e.g. with "
            "count = 256"
        )
    stored = read_stored(tables, base)
    settings, keys, objective, options = read_training(
        tables["training"],
        kind_of(tables),
        configurations=next((f"[{n}]" for n in ("chains", "ensemble") if n in tables), None),
    )
    plan = TrainingPlan(
        tables, action, sizes, ends, ensemble, stored, settings, keys, objective, options
    )
    # Building it all checks the tables; the weights are thrown away.
    built = plan.build("cpu")
    _check_refinement(plan, built)
    if isinstance(built.module, (FlowModel, Flow, LocalFlowModel)):
        verify(built.module, action, "[flow]", untrained=True)
    return plan


def _check_refinement(plan: TrainingPlan, objective: Objective) -> None:
    """Raise unless the integrator of the flow can be made as fine as asked."""
    steps = plan.keys.refined_steps
    if steps is None:
        return
    flow = getattr(objective.module, "flow", objective.module)
    own = getattr(flow, "fixed_steps", None)
    if own is None:
        raise ConfigError(
            "[training] refined_steps would be ignored: the flow has no integrator of fixed steps"
        )
    if steps < own:
        raise ConfigError(
            f"[training] refined_steps = {steps}: should be at least the {own} steps of "
            "[flow] that it is trained with"
        )
