"""From weights to a flow file: checked, measured, and written with a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flowmc import zoo
from flowmc.actions.theory import describe_theory
from flowmc.evaluation import evaluate_exchange, evaluate_local, evaluate_sampler
from flowmc.flows.base import Flow
from flowmc.flows.cards.files import flow_path, read_card, save_flow
from flowmc.flows.cards.tables import resolved
from flowmc.flows.local.models import LocalFlowModel
from flowmc.flows.models import FlowModel
from flowmc.flows.verification import unverified, verify
from flowmc.parallel import Communicator
from flowmc.registry import ConfigError
from flowmc.training.ensemble import ENSEMBLE_KEYS
from flowmc.training.plan import TrainingPlan

__all__ = ["finish"]


def finish(
    plan: TrainingPlan,
    module: nn.Module,
    output: Path,
    training: Mapping[str, Any],
    *,
    device: torch.device | str,
    announce: Callable[[str], None],
    command: str,
    communicator: Communicator,
) -> None:
    """Check a flow, measure how good it is, and write its file.

    Args:
        plan: what the flow is, and how it is measured.
        module: sampler, exchange flow or local flow, with its weights.
        output: the flow file.
        training: for the card: steps, seconds, and the like.
        device: where to measure.
        announce: called with a sentence before measuring, and with every warning.
        command: recorded in the card.
        communicator: of all ranks, every one of which calls this.

    Raises:
        ConfigError: if the map of a user's flow is not that of its density.
        DensityError: if the flow is lost.
        CollectiveError: one of these, on several ranks.
    """
    assert isinstance(module, (FlowModel, Flow, LocalFlowModel))
    communicator.together(lambda: verify(module, plan.action, "the trained flow"))
    doubt = unverified(module, plan.action)
    if doubt is not None:
        announce(doubt)
    if plan.keys.refined_steps is not None:
        flow = module.flow if isinstance(module, FlowModel) else module
        assert isinstance(flow, Flow)
        flow.fixed_steps = plan.keys.refined_steps
    announce(f"measures the flow with {plan.keys.evaluate_samples} samples")
    measured = _measure(plan, module, device, communicator)
    for text in measured["warnings"]:
        announce(f"warning: {text}")
    card = _card(plan, module, training, measured, command)
    communicator.from_root(lambda: save_flow(output, module, card))


def _measure(
    plan: TrainingPlan, module: nn.Module, device: torch.device | str, ranks: Communicator
) -> dict[str, Any]:
    samples, seed = plan.keys.evaluate_samples, plan.settings.seed
    if isinstance(module, FlowModel):
        result, warnings = evaluate_sampler(
            module, plan.action, samples, seed=seed, communicator=ranks
        )
    elif isinstance(module, LocalFlowModel):
        assert plan.ensemble is not None
        result, warnings = evaluate_local(
            module,
            plan.action,
            samples,
            seed=seed,
            device=device,
            dtype=plan.dtype,
            communicator=ranks,
            **{key: plan.ensemble[key] for key in ENSEMBLE_KEYS},
        )
    else:
        assert isinstance(module, Flow) and plan.ends is not None and plan.ensemble is not None
        result, warnings = evaluate_exchange(
            module,
            *plan.ends,
            samples,
            seed=seed,
            device=device,
            dtype=plan.dtype,
            communicator=ranks,
            **{key: plan.ensemble[key] for key in ENSEMBLE_KEYS},
        )
    # How fast this machine was is not a property of the flow.
    del result["seconds_per_sample"]
    return {**result, "warnings": warnings}


def _card(
    plan: TrainingPlan,
    module: nn.Module,
    training: Mapping[str, Any],
    measured: Mapping[str, Any],
    command: str,
) -> dict[str, Any]:
    card: dict[str, Any] = {
        "kind": plan.kind,
        "flow": resolved("flows", plan.tables["flow"]),
        "theory": describe_theory(plan.action, plan.tables["theory"]["action"]),
        "training": {"config": plan.tables, **training},
        "measured": measured,
        "command": command,
    }
    if plan.keys.start_from is not None:
        card["training"]["ancestors"] = _ancestors(plan.keys.start_from)
    if plan.keys.refined_steps is not None:
        card["flow"]["parameters"]["steps"] = plan.keys.refined_steps
    if plan.ends is None:
        card["prior"] = resolved("priors", plan.tables["prior"])
        if isinstance(module, FlowModel):
            card["prior"]["parameters"] |= module.prior.card_parameters()
        if plan.mixture is not None:
            card["mixture"] = plan.mixture
        if plan.kind == "local":
            card["block"] = list(plan.tables["block"]["extents"])
    else:
        card["from"], card["to"] = (dict(end.parameters) for end in plan.ends)
    return card


def _ancestors(source: str) -> list[dict[str, Any]]:
    """Return name and training seconds of the flow that a training began from, and of its own."""
    name = source if source.startswith(zoo.PREFIX) else Path(source).name
    try:
        training = read_card(flow_path(source)).get("training", {})
    except (ConfigError, OSError):
        training = {}  # the file is gone since then
    found = {name: training.get("seconds"), **zoo.ancestors(training)}
    return [{"flow": flow, "seconds": seconds} for flow, seconds in found.items()]
