"""``flowmc evaluate``: how good the flow in a file is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from flowmc.actions.base import Action
from flowmc.actions.theory import build_action, check_couplings
from flowmc.config.tables import read_toml
from flowmc.evaluation.exchange import evaluate_exchange
from flowmc.evaluation.local import evaluate_local
from flowmc.evaluation.samplers import evaluate_sampler
from flowmc.flows.base import Flow
from flowmc.flows.cards.files import LoadedFlow, flow_path, load_flow, load_local_flow, read_card
from flowmc.flows.cards.matching import check_flow_fits, orient
from flowmc.flows.verification import unverified
from flowmc.registry import ConfigError, nearest, validate
from flowmc.training.ensemble import ENSEMBLE_KEYS, Ensemble

__all__ = ["evaluate"]

# Numbers drawn for an evaluation are not those by which the card of a flow was measured, whatever
# the seeds.
_PURPOSE = "evaluate again"


def evaluate(
    source: str,
    *,
    samples: int,
    batch: int = 1024,
    config: str | None = None,
    settings: Sequence[str] = (),
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Any], list[str]]:
    """Measure a flow file; return the result (JSON-able) and warnings in plain language.

    Args:
        source: a path or "zoo:NAME".
        samples: number of draws (per end for an exchange flow).
        batch: draws at a time.
        config: a TOML file whose [theory] replaces that of the card (other couplings, or another
            lattice if the flow allows).  For exchange flows also [exchange] with from and to.
        settings: values set beside it, see :func:`~flowmc.config.settings.with_settings`.
        seed: of all draws.
        device: where to run.

    Raises:
        ConfigError: for unusable input.
        DensityError: for a continuous flow whose integrator is too coarse.
    """
    if settings and not config:
        raise ConfigError("--set changes a configuration: name it with --config")
    table = read_toml(config, settings) if config else {}
    action = build_action(_section(table, "theory", config)) if config else None
    head: dict[str, Any] = {"flow": str(source)}
    if read_card(flow_path(source)).get("kind") == "local":
        local = load_local_flow(source, device=device)
        if action is not None:
            check_flow_fits(local.card, None, action, same_couplings=False)
        target = action or local.action
        written = local.card.get("training", {}).get("config", {}).get("chains", {})
        chains = {**written, **table.get("chains", {})}
        if "count" in chains:
            chains["chains"] = chains.pop("count")
        result, warnings = evaluate_local(
            local.model,
            target,
            samples,
            batch=batch,
            seed=seed,
            device=device,
            dtype=_precision(local.card),
            purpose=_PURPOSE,
            **_ensemble_keys(chains, "[chains]"),
        )
        return {**head, "action": repr(target), **result}, warnings
    loaded = load_flow(source, lattice=None if action is None else action.lattice, device=device)
    if loaded.model is not None:
        if action is not None:
            check_flow_fits(loaded.card, loaded.flow, action, same_couplings=False)
        target = action or loaded.action
        model = loaded.model.at(target)
        result, warnings = evaluate_sampler(
            model, target, samples, batch=batch, seed=seed, purpose=_PURPOSE
        )
        warnings += filter(None, [unverified(model, target)])
        return {**head, "action": repr(target), **result}, warnings
    first, second, flow = _ends(loaded, action, table)
    options = loaded.card.get("training", {}).get("config", {}).get("exchange", {})
    options = {**options, **table.get("exchange", {})}
    result, warnings = evaluate_exchange(
        flow,
        first,
        second,
        samples,
        batch=batch,
        seed=seed,
        device=device,
        dtype=_precision(loaded.card),
        purpose=_PURPOSE,
        **_ensemble_keys(options, "[exchange]"),
    )
    warnings += filter(None, [unverified(flow, first)])
    return {**head, "action": f"{first!r} -> {second!r}", **result}, warnings


def _ensemble_keys(written: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what a card or a table says about chains, with types checked."""
    return validate(Ensemble, {key: written[key] for key in ENSEMBLE_KEYS if key in written}, where)


def _precision(card: Mapping[str, Any]) -> torch.dtype:
    return torch.float64 if card.get("precision", 64) == 64 else torch.float32


def _section(table: Mapping[str, Any], name: str, path: str | None) -> dict[str, Any]:
    section = table.get(name)
    if not isinstance(section, dict):
        raise ConfigError(f"{path} has no [{name}] table{nearest(name, table)}")
    return section


def _ends(
    loaded: LoadedFlow, action: Action | None, table: Mapping[str, Any]
) -> tuple[Action, Action, Flow]:
    first, second = loaded.ends
    exchange = table.get("exchange")
    if action is not None and exchange is not None:
        first = check_couplings(action, exchange.get("from", {}), "[exchange] from")
        second = check_couplings(action, exchange.get("to", {}), "[exchange] to")
    return first, second, orient(loaded.card, loaded.flow, first, second)
