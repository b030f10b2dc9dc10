"""What a configuration of ``flowmc free-energy`` asks for, measured."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from flowmc.actions.base import Action
from flowmc.actions.solved import log_partition
from flowmc.estimators.free_energy import (
    Bridge,
    FreeEnergy,
    ModeCoverage,
    bennett,
    chain_of_ensembles,
    compare,
    jarzynski,
    mode_coverage,
    p_estimator,
    q_estimator,
)
from flowmc.evaluation.density import DENSITY_SAMPLES, check_density
from flowmc.flows.cards.building import build_flow, build_prior
from flowmc.flows.cards.files import load_flow, read_card
from flowmc.flows.cards.matching import check_flow_fits
from flowmc.flows.models import Model, Prior
from flowmc.flows.priors import EnsemblePrior
from flowmc.free_energy.config import FreeEnergyConfig
from flowmc.free_energy.progress import Progress, Row
from flowmc.free_energy.stored import stored_configurations
from flowmc.free_energy.tunnelling import Tunnelling
from flowmc.kernels import Kernel, Repeat
from flowmc.nonequilibrium import Evolution, ExactStart, MarkovStart, Process, StochasticFlow
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.training.loop import Settings, Trainer
from flowmc.training.work import MeanWork

__all__ = ["TRAINING_CHECKPOINT", "Named", "Outcome", "ProcessSummary", "measure"]

Say = Callable[[str], None]

TRAINING_CHECKPOINT = "training.checkpoint.safetensors"


@dataclass(frozen=True)
class Named:
    """One estimate of ln Z.

    Attributes:
        key: for scripts: "q", "p", "bridge", "jarzynski", "jarzynski_reverse", "chain".
        title: for people.
        estimate: with the constant of the start added.
        parts: fluctuations by ensemble, whose sum of means the estimate fluctuates by.
    """

    key: str
    title: str
    estimate: FreeEnergy
    parts: dict[str, NDArray[np.float64]] = field(default_factory=dict)


@dataclass(frozen=True)
class ProcessSummary:
    """What is known of a process beside its free energy.

    Attributes:
        mean_work, work_spread: of the forward work.
        dissipated, dissipated_reverse: :math:`<W> - dF` each way, NaN if not run.
        step_work, acceptance: by step, forward; without the constant of a normalised start.
    """

    mean_work: float
    work_spread: float
    dissipated: float
    dissipated_reverse: float
    step_work: NDArray[np.float64]
    acceptance: NDArray[np.float64]


@dataclass
class Outcome:
    """Everything measured.

    Attributes:
        estimates: the best first.
        exact: ln Z in closed form (of the ratio, if that is what is estimated), or None.
        is_ratio: the estimates are of ln(Z / Z_start), whose constant is not known.
        works: by name: works or minus log-weights, as measured.
        bridge: both directions, if there are.
        coverage: of the flow, if q and p were measured.
        line: for a chain: the coupling values and ln Z of every ensemble but the first, and its
            overlap with the one before.
        process: for annealing and stochastic flows.
        tunnelling: of the target's chains, if they can tunnel.
        trained: flow layers that were trained here.
        fingerprints: of a flow that was loaded.
        seconds: of the whole.
    """

    estimates: list[Named]
    exact: float | None
    is_ratio: bool = False
    works: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    bridge: Bridge | None = None
    coverage: ModeCoverage | None = None
    line: list[tuple[dict[str, float], FreeEnergy, float]] = field(default_factory=list)
    process: ProcessSummary | None = None
    tunnelling: Tunnelling | None = None
    trained: nn.Module | None = None
    fingerprints: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0

    @property
    def best(self) -> Named:
        """The estimate to quote."""
        return self.estimates[0]

    @property
    def warnings(self) -> list[str]:
        """All warnings, each once, with the estimate it is about."""
        found: dict[str, None] = {}
        for named in self.estimates:
            for text in named.estimate.warnings:
                found.setdefault(text, None)
        return list(found)


def measure(
    config: FreeEnergyConfig,
    say: Say = lambda text: None,
    progress: Progress | None = None,
) -> Outcome:
    """Do what a configuration asks for.

    Args:
        config: what to measure.
        say: called with a sentence when something begins.
        progress: what has been measured before, and when to save and to stop.

    Raises:
        Paused: ``progress`` says so, and has saved everything.
        ConfigError: for a flow that does not fit, or a kernel that refuses its keys.
        DensityError, TrainingError: a flow that cannot be believed, or is lost in training.
    """
    progress = progress or Progress()
    method = config.table.method
    if method in ("q", "p", "both"):
        outcome = _flow(config, say, progress)
    elif method == "chain":
        outcome = _chain(config, say, progress)
    else:
        outcome = _process(config, say, progress)
    if outcome.tunnelling is not None and outcome.tunnelling.warning is not None:
        text = outcome.tunnelling.warning
        outcome.estimates = [
            Named(n.key, n.title, _mark(n, text), n.parts) for n in outcome.estimates
        ]
    outcome.seconds = progress.seconds
    return outcome


def _mark(named: Named, text: str) -> FreeEnergy:
    # What uses no configuration of the target is not touched by how these were made.
    if named.key in ("q", "jarzynski"):
        return named.estimate
    return named.estimate.warned(text, bound="both")


def kernels_of(config: FreeEnergyConfig, action: Action) -> list[Kernel]:
    """Return the updates of a configuration for one action, in order."""
    kernels: list[Kernel] = []
    for entry in config.updates:
        try:
            kernel = entry.component(action, **entry.keys)
        except (ConfigError, ValueError, TypeError) as error:
            raise ConfigError(f"{entry.where}: {error}") from error
        if not isinstance(kernel, Kernel):
            raise ConfigError(f"{entry.where}: gives no flowmc.kernels.Kernel")
        kernels.append(Repeat(kernel, entry.repeat) if entry.repeat > 1 else kernel)
    return kernels


def _chains(config: FreeEnergyConfig, action: Action) -> MarkovStart:
    table = config.chains
    assert table is not None
    try:
        return MarkovStart(
            action,
            kernels_of(config, action),
            chains=table.count,
            thermalization=table.thermalization,
            separation=table.separation,
            start=table.start,
        )
    except ValueError as error:
        raise ConfigError(f"[chains]: {error}") from error


def target_rows(
    config: FreeEnergyConfig, say: Say, progress: Progress, measured: Callable[[Tensor, int], Row]
) -> list[Row]:
    """Return what was measured on configurations of the target, a row for each of all chains.

    Args:
        config: where they come from.
        say: see :func:`measure`.
        progress: with the rows of before.
        measured: called with the configurations ``(chains, ...)`` and the number of their row.
    """
    name = "target"
    if config.ensemble is not None:
        configurations = stored_configurations(config, say, progress, name)
    else:
        assert config.chains is not None
        count = config.chains.measurements
        say(f"{config.chains.count} chains of the target, {count} configurations of each")
        rng = stream(config.table.seed, 0, "chains of the target")
        configurations = progress.configurations(name, _chains(config, config.action), count, rng)
    rows = progress.rows(name)
    for x in configurations:
        progress.add(name, measured(x, len(rows)))
    return rows


def _batches(config: FreeEnergyConfig) -> list[tuple[int, int]]:
    """Return index and size of the batches of independent samples."""
    samples, batch = config.table.samples, config.table.batch
    return [
        (index, min(batch, samples - first)) for index, first in enumerate(range(0, samples, batch))
    ]


# ---- a flow's draws, the target's samples, or both


@torch.no_grad()
def _flow(config: FreeEnergyConfig, say: Say, progress: Progress) -> Outcome:
    action, table = config.action, config.table
    loaded = load_flow(config.flow_file, lattice=action.lattice)
    check_flow_fits(loaded.card, loaded.flow, action, same_couplings=False)
    assert loaded.model is not None and config.flow is not None
    model = loaded.model.at(action).to(torch.float64)
    outcome = Outcome([], log_partition(action))
    outcome.fingerprints = {str(config.flow["file"]): model.fingerprint()}
    progress.identify("flow", model.fingerprint())
    q = p = None
    if table.method in ("q", "both"):
        say(f"drawing {table.samples} samples of the flow")
        q = _draw(config, model, progress)
        outcome.works["forward"] = -q
    if table.method in ("p", "both"):
        outcome.tunnelling = tunnelling = Tunnelling(action)

        def weigh(x: Tensor, index: int) -> Row:
            return {"log_weight": -action(x) - model.log_prob(x), **tunnelling.measured(x)}

        rows = target_rows(config, say, progress, weigh)
        for row in rows:
            tunnelling.note(row)
        log_weights = torch.stack([row["log_weight"] for row in rows])
        # A field that the flow cannot reach has the density 0 there.
        p = log_weights.nan_to_num(nan=np.inf, posinf=np.inf, neginf=-np.inf).numpy()
        outcome.works["reverse"] = p
    one_sided: tuple[FreeEnergy | None, FreeEnergy | None]
    if q is not None and p is not None:
        outcome.bridge = bridge = bennett(-q, p)
        outcome.coverage = mode_coverage(q, p)
        parts = {"flow": bridge.forward_fluctuations, "target": bridge.reverse_fluctuations}
        best = _contradicted(bridge.estimate, outcome.coverage)
        outcome.estimates.append(Named("bridge", "bridge between flow and target", best, parts))
        one_sided = outcome.coverage.log_z_q, outcome.coverage.log_z_p
    else:
        one_sided = (
            q_estimator(q) if q is not None else None,
            p_estimator(p) if p is not None else None,
        )
    for key, title, estimate, ensemble in (
        ("q", "q-estimator, draws of the flow", one_sided[0], "flow"),
        ("p", "p-estimator, samples of the target", one_sided[1], "target"),
    ):
        if estimate is not None:
            outcome.estimates.append(Named(key, title, estimate, {ensemble: estimate.fluctuations}))
    return outcome


def _contradicted(best: FreeEnergy, coverage: ModeCoverage) -> FreeEnergy:
    """Mark a bridge whose two ends contradict each other."""
    texts = [text for text in coverage.warnings if "standard deviations" in text]
    return best.warned(texts[0], bound="both") if texts else best


def _draw(config: FreeEnergyConfig, model: Model, progress: Progress) -> NDArray[np.float64]:
    seed, rows = config.table.seed, progress.rows("draws")
    for index, size in _batches(config)[len(rows) :]:
        x, log_q = model.sample(size, stream(seed, index, "draws of the flow"))
        progress.add("draws", {"log_weight": -config.action(x) - log_q})
    logs = [row["log_weight"] for row in rows]
    log_weights = torch.cat(logs).nan_to_num(nan=-np.inf, posinf=np.inf, neginf=-np.inf)
    if not model.log_density_is_exact:
        start = model.starts(
            min(DENSITY_SAMPLES, config.table.samples), stream(seed, 0, "density error")
        )
        check_density(model, start, log_weights)
    return log_weights.numpy()


# ---- a line of ensembles


@torch.no_grad()
def _chain(config: FreeEnergyConfig, say: Say, progress: Progress) -> Outcome:
    table = config.chains
    assert table is not None
    line = config.line
    forward: list[NDArray] = []
    reverse: list[NDArray] = []
    tunnelling = Tunnelling(config.action)
    for index, action in enumerate(line):
        say(f"ensemble {index + 1} of {len(line)}: {action!r}")
        rng = stream(config.table.seed, index, "chains of an ensemble")
        name, chains = f"ensemble {index}", _chains(config, action)
        is_last = index + 1 == len(line)
        for x in progress.configurations(name, chains, table.measurements, rng):
            own = action(x)
            row: dict[str, Tensor] = {}
            if is_last:
                row |= tunnelling.measured(x)
            else:
                row["up"] = line[index + 1](x) - own
            if index:
                row["down"] = line[index - 1](x) - own
            progress.add(name, row)
        rows = progress.rows(name)
        if is_last:
            for measured in rows:
                tunnelling.note(measured)
        else:
            forward.append(torch.stack([one["up"] for one in rows]).numpy())
        if index:
            reverse.append(torch.stack([one["down"] for one in rows]).numpy())
    found = chain_of_ensembles(forward, reverse)
    constant = log_partition(line[0])
    estimates = [one.shifted(constant or 0.0) for one in found.estimates]
    parts: dict[str, NDArray] = {"ensemble 0": found.bridges[0].forward_fluctuations}
    for index, bridge in enumerate(found.bridges):
        last = index + 1 == len(found.bridges)
        onward = 0.0 if last else found.bridges[index + 1].forward_fluctuations
        parts[f"ensemble {index + 1}"] = bridge.reverse_fluctuations + onward
    outcome = Outcome(
        [Named("chain", "chain of ensembles, bridges between neighbours", estimates[-1], parts)],
        _exact(config, constant),
        is_ratio=constant is None,
        tunnelling=tunnelling,
    )
    names = [name for name in config.line[0].parameters if _varies(config, name)]
    outcome.line = [
        ({name: action.parameters[name] for name in names}, estimate, bridge.overlap)
        for action, estimate, bridge in zip(line[1:], estimates, found.bridges, strict=True)
    ]
    if len(line) == 2:
        outcome.bridge = found.bridges[0]
    for index, (up_work, down_work) in enumerate(zip(forward, reverse, strict=True)):
        outcome.works[f"forward {index}"] = up_work
        outcome.works[f"reverse {index}"] = down_work
    return outcome


def _varies(config: FreeEnergyConfig, name: str) -> bool:
    return len({action.parameters[name] for action in config.line}) > 1


def _exact(config: FreeEnergyConfig, constant: float | None) -> float | None:
    """Return the exact value of what is estimated: of ln Z, or of the ratio."""
    end = log_partition(config.action)
    return None if constant is None else end


# ---- driven processes


def _process(config: FreeEnergyConfig, say: Say, progress: Progress) -> Outcome:
    actions = config.line[1:]
    kernels = [kernels_of(config, action) for action in actions]
    flows = None
    if config.training is not None:
        assert config.flow is not None
        table: dict[str, Any] = dict(config.flow)
        # The initial weights come from torch's global generator, whose state is put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(config.table.seed, 0, "weights").initial_seed())
            flows = [build_flow(table, action).double() for action in actions]
    process = Process(actions, kernels, flows)
    if config.training is not None:
        # Other configurations than those of the measurement: layers that had learned these by
        # heart would find too little work on them.
        prior, _ = _prior(config, say, progress, "training")
        say(f"training {len(actions)} layers for {config.training.steps} steps")
        _train(StochasticFlow(prior, process), config.training, progress)
    prior, constant = _prior(config, say, progress)
    model = StochasticFlow(prior, process)
    with torch.no_grad():
        outcome = _driven(config, model, constant, say, progress)
    if config.training is not None:
        outcome.trained = process.flows
    return outcome


def _train(model: StochasticFlow, settings: Settings, progress: Progress) -> None:
    """Train the layers; their checkpoint is a file of its own."""
    path = None if progress.path is None else progress.path.with_name(TRAINING_CHECKPOINT)
    trainer = Trainer(
        MeanWork(model),
        settings,
        checkpoint=None if path is None else str(path),
        metadata={"identity": progress.identity},
    )
    if path is not None and progress.resumes and path.exists():
        for what, digest in progress.identity.items():
            if read_card(path).get("identity", {}).get(what) != digest:
                raise ConfigError(
                    f"{path} was trained with another {what}: restore it to resume, or choose "
                    "another --output"
                )
        trainer.load(str(path))
    if not trainer.run(lambda: progress.stop() is not None):
        progress.pause(progress.stop() or "asked to")


def _prior(
    config: FreeEnergyConfig, say: Say, progress: Progress, purpose: str = "start"
) -> tuple[Prior, float | None]:
    """Return where processes begin, and the exact ln Z that its density lacks (None: unknown).

    Chains are others for every purpose.
    """
    if config.start == "prior":
        prior = build_prior(config.prior or {}, config.action)
        return prior.double() if isinstance(prior, nn.Module) else prior, 0.0
    start = config.line[0]
    if config.start == "exact":
        return ExactStart(start), 0.0
    assert config.chains is not None
    of = "the start" if purpose == "start" else f"the start, for the {purpose}"
    say(f"{config.chains.count} chains of {of}, {start!r}")
    chains = _chains(config, start)
    rng = stream(config.table.seed, 0, f"chains of {of}")
    for x in progress.configurations(purpose, chains, config.chains.measurements, rng):
        progress.add(purpose, {"field": x})
    fields = [row["field"] for row in progress.rows(purpose)]
    return EnsemblePrior(torch.cat(fields), start), log_partition(start)


def _driven(
    config: FreeEnergyConfig,
    model: StochasticFlow,
    constant: float | None,
    say: Say,
    progress: Progress,
) -> Outcome:
    evolutions = _forward(config, model, say, progress)
    in_chains = config.start == "chains"
    joined = torch.stack if in_chains else torch.cat
    forward = _finite(joined([row["work"] for row in evolutions]))
    if not model.flow.log_density_is_exact:
        x, _ = model.prior.sample(DENSITY_SAMPLES, stream(config.table.seed, 0, "density error"))
        check_density(model.flow, x, -torch.from_numpy(forward).reshape(-1))
    reverse, tunnelling = None, None
    if config.ensemble is not None or config.chains is not None:
        tunnelling = Tunnelling(config.action)
        reverse = _reverse(config, model, tunnelling, say, progress)
    shift = constant or 0.0
    ahead = jarzynski(forward)
    outcome = Outcome(
        [], _exact(config, constant), is_ratio=constant is None, tunnelling=tunnelling
    )
    outcome.works["forward"] = forward
    best = ahead
    if reverse is not None:
        outcome.works["reverse"] = reverse
        outcome.bridge = bridge = bennett(forward, reverse)
        ahead, back = compare(bridge.forward, bridge.reverse)
        best = bridge.estimate
        contradictions = [text for text in ahead.warnings if "standard deviations" in text]
        if contradictions and ahead.value > back.value:
            best = best.warned(contradictions[0], bound="both")
        parts = {"forward": bridge.forward_fluctuations, "reverse": bridge.reverse_fluctuations}
        title = "Bennett, both directions"
        outcome.estimates.append(Named("bridge", title, best.shifted(shift), parts))
    outcome.estimates.append(
        Named(
            "jarzynski",
            "Jarzynski, from the start",
            ahead.shifted(shift),
            {"forward": ahead.fluctuations},
        )
    )
    if reverse is not None:
        outcome.estimates.append(
            Named(
                "jarzynski_reverse",
                "Jarzynski, from the target",
                back.shifted(shift),
                {"reverse": back.fluctuations},
            )
        )
    finite = forward[np.isfinite(forward)]
    sizes = np.array([len(row["work"]) for row in evolutions], dtype=float)
    step_work = np.average([row["step_work"].numpy() for row in evolutions], axis=0, weights=sizes)
    if config.start == "exact":
        # Its density is normalised: the constant is no work of the first step.
        step_work[0] += log_partition(config.line[0]) or 0.0
    outcome.process = ProcessSummary(
        float(finite.mean()),
        float(finite.std()),
        float(finite.mean()) + best.value,
        float("nan") if reverse is None else float(reverse.mean()) - best.value,
        step_work,
        np.average([row["acceptance"].numpy() for row in evolutions], axis=0, weights=sizes),
    )
    return outcome


def _forward(
    config: FreeEnergyConfig, model: StochasticFlow, say: Say, progress: Progress
) -> list[Row]:
    seed, rows = config.table.seed, progress.rows("forward")

    def add(evolution: Evolution) -> None:
        keys = ("work", "step_work", "acceptance")
        progress.add("forward", {key: getattr(evolution, key) for key in keys})

    if config.start == "chains":
        # One evolution per configuration of the chains, in their order: for the Gamma method.
        parts = [row["field"] for row in progress.rows("start")]
        for index in range(len(rows), len(parts)):
            say(f"forward processes, {index + 1} of {len(parts)}")
            x = parts[index]
            add(model.process(x, model.prior.log_prob(x), stream(seed, index, "forward process")))
        return rows
    batches = _batches(config)
    for index, size in batches[len(rows) :]:
        say(f"forward processes, batch {index + 1} of {len(batches)}")
        add(model.evolve(size, stream(seed, index, "forward process")))
    return rows


def _reverse(
    config: FreeEnergyConfig,
    model: StochasticFlow,
    tunnelling: Tunnelling,
    say: Say,
    progress: Progress,
) -> NDArray[np.float64]:
    seed = config.table.seed

    def drive(y: Tensor, index: int) -> Row:
        work = model.reverse(y, stream(seed, index, "reverse process")).work
        return {"work": work, **tunnelling.measured(y)}

    rows = target_rows(config, say, progress, drive)
    for row in rows:
        tunnelling.note(row)
    return _finite(torch.stack([row["work"] for row in rows]))


def _finite(work: Tensor) -> NDArray[np.float64]:
    """A process that failed has no weight."""
    return work.nan_to_num(nan=np.inf, posinf=np.inf, neginf=-np.inf).numpy()
