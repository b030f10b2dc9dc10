"""What a configuration of ``flowmc free-energy`` asks for, as objects, and measured."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from flowmc.actions.base import Action
from flowmc.flows.cards.building import build_flow, build_prior
from flowmc.flows.cards.files import load_flow, read_card
from flowmc.flows.cards.matching import check_flow_fits
from flowmc.flows.models import Prior
from flowmc.free_energy.config import FreeEnergyConfig
from flowmc.free_energy.driven import by_process, prior_of
from flowmc.free_energy.flow import from_flow
from flowmc.free_energy.line import along_line
from flowmc.free_energy.outcome import Outcome
from flowmc.free_energy.progress import Progress
from flowmc.free_energy.sources import Chains, Say, Source, quiet
from flowmc.free_energy.stored import StoredConfigurations
from flowmc.kernels import Kernel, Repeat
from flowmc.nonequilibrium import ExactStart, Process, StochasticFlow
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.training.loop import Settings, Trainer
from flowmc.training.work import MeanWork

__all__ = ["TRAINING_CHECKPOINT", "measure"]

TRAINING_CHECKPOINT = "training.checkpoint.safetensors"


def measure(
    config: FreeEnergyConfig, say: Say = quiet, progress: Progress | None = None
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
        return _flow(config, say, progress)
    if method == "chain":
        return along_line(
            config.line, _chains(config), seed=config.table.seed, rows=progress, say=say
        )
    return _process(config, say, progress)


def _kernels_of(config: FreeEnergyConfig, action: Action) -> list[Kernel]:
    """Return the updates of a configuration for one action, in order."""
    kernels: list[Kernel] = []
    for entry in config.updates:
        try:
            kernel = entry.made(action, config.base)
        except (ConfigError, ValueError, TypeError) as error:
            raise ConfigError(f"{entry.where}: {error}") from error
        if not isinstance(kernel, Kernel):
            raise ConfigError(f"{entry.where}: gives no flowmc.kernels.Kernel")
        kernels.append(Repeat(kernel, entry.repeat) if entry.repeat > 1 else kernel)
    return kernels


def _chains(config: FreeEnergyConfig) -> Chains:
    table = config.chains
    assert table is not None
    return Chains(
        kernels=lambda action: _kernels_of(config, action),
        count=table.count,
        measurements=table.measurements,
        thermalization=table.thermalization,
        separation=table.separation,
        start=table.start,
    )


def _target(config: FreeEnergyConfig, say: Say, progress: Progress) -> Source | None:
    """Return samples of the target, if the configuration has any."""
    if config.ensemble is not None:
        return StoredConfigurations(config.ensemble, config.base, config.action, say, progress)
    return None if config.chains is None else _chains(config)


def _flow(config: FreeEnergyConfig, say: Say, progress: Progress) -> Outcome:
    action, table = config.action, config.table
    loaded = load_flow(config.flow_file, lattice=action.lattice)
    check_flow_fits(loaded.card, loaded.flow, action, same_couplings=False)
    assert loaded.model is not None and config.flow is not None
    model = loaded.model.at(action).to(torch.float64)
    fingerprint = model.fingerprint()
    progress.identify("flow", fingerprint)
    outcome = from_flow(
        action,
        model,
        samples=0 if table.method == "p" else table.samples,
        batch=table.batch,
        target=None if table.method == "q" else _target(config, say, progress),
        seed=table.seed,
        rows=progress,
        say=say,
    )
    outcome.fingerprints = {str(config.flow["file"]): fingerprint}
    return outcome


def _process(config: FreeEnergyConfig, say: Say, progress: Progress) -> Outcome:
    table, actions = config.table, config.line[1:]
    kernels = [_kernels_of(config, action) for action in actions]
    flows = None
    if config.training is not None:
        assert config.flow is not None
        keys: dict[str, Any] = dict(config.flow)
        # The initial weights come from torch's global generator, whose state is put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stream(table.seed, 0, "weights").initial_seed())
            flows = [build_flow(keys, action).double() for action in actions]
    process = Process(actions, kernels, flows)
    start = _start(config)
    start_action = config.line[0] if config.start == "chains" else None
    if config.training is not None:
        # Other configurations than those of the measurement: layers that had learned these by
        # heart would find too little work on them.
        with torch.no_grad():
            prior, _ = prior_of(
                start, start_action, seed=table.seed, rows=progress, say=say, purpose="training"
            )
        say(f"training {len(actions)} layers for {config.training.steps} steps")
        _train(StochasticFlow(prior, process), config.training, progress)
    outcome = by_process(
        process,
        start,
        start_action=start_action,
        samples=table.samples,
        batch=table.batch,
        target=_target(config, say, progress),
        seed=table.seed,
        rows=progress,
        say=say,
    )
    if config.training is not None:
        outcome.trained = process.flows
    return outcome


def _start(config: FreeEnergyConfig) -> Prior | Chains:
    """Return where processes begin."""
    if config.start == "prior":
        prior = build_prior(config.prior or {}, config.action)
        return prior.double() if isinstance(prior, nn.Module) else prior
    return ExactStart(config.line[0]) if config.start == "exact" else _chains(config)


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
