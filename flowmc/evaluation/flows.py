"""``flowmc evaluate``: how good a flow is, in numbers that scripts and people can rely on."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.actions.theory import build_action, check_couplings
from flowmc.config.tables import read_toml
from flowmc.estimators.reweighting import LARGEST_PARETO_K, LARGEST_SHARE, SMALLEST_EFFECTIVE
from flowmc.estimators.weights import (
    effective_sample_size,
    independence_acceptance,
    kullback_leibler,
    log_mean_exp,
    max_weight_share,
    pareto_k,
    swap_rate,
)
from flowmc.evaluation.density import DENSITY_SAMPLES, check_density
from flowmc.flows.base import Flow
from flowmc.flows.cards.files import LoadedFlow, flow_path, load_flow, load_local_flow, read_card
from flowmc.flows.cards.matching import check_flow_fits, orient
from flowmc.flows.models import Model, as_model
from flowmc.flows.verification import unverified
from flowmc.parallel import Communicator
from flowmc.random import stream
from flowmc.registry import ConfigError, nearest, validate
from flowmc.training.ensemble import ENSEMBLE_KEYS, Ensemble

__all__ = ["evaluate", "evaluate_exchange", "evaluate_sampler", "weight_warnings"]

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
        # Imported here: that module builds on this one.
        from flowmc.evaluation.local import evaluate_local

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
            dtype=torch.float64 if local.card.get("precision", 64) == 64 else torch.float32,
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
        dtype=torch.float64 if loaded.card.get("precision", 64) == 64 else torch.float32,
        purpose=_PURPOSE,
        **_ensemble_keys(options, "[exchange]"),
    )
    warnings += filter(None, [unverified(flow, first)])
    return {**head, "action": f"{first!r} -> {second!r}", **result}, warnings


@torch.no_grad()
def evaluate_sampler(
    model: Model,
    action: Action,
    samples: int,
    *,
    batch: int = 1024,
    seed: int = 0,
    purpose: str = "evaluate",
    communicator: Communicator | None = None,
) -> tuple[dict[str, Any], list[str]]:
    """Draw from a sampler and measure its weights; return the result and warnings.

    Batches are dealt to the ranks of a communicator; the result is the same for any number.
    Streams of random numbers are named by ``seed`` and ``purpose``.

    Args:
        model: a :class:`~flowmc.flows.Model`, or what has its methods.
        action: the target.
        samples: how many draws, ``batch`` at a time.
        seed, purpose: see above.
        communicator: of all ranks.

    Raises:
        DensityError: see :func:`evaluate`.
        CollectiveError: the same, on several ranks.
        ConfigError: for a model that lacks a method.
    """
    model = as_model(model)
    if isinstance(model, torch.nn.Module):
        model.eval()
    communicator = communicator or Communicator()
    device = _device(model)
    logs = []
    started = time.perf_counter()
    for index, size in enumerate(_batches(samples, batch)):
        if index % communicator.size == communicator.rank:
            x, log_q = model.sample(size, stream(seed, index, purpose, device))
            logs.append((index, (-action(x) - log_q).cpu()))
    parts = [part for own in communicator.allgather(logs) for part in own]
    log_weights = torch.cat([part for _, part in sorted(parts, key=lambda part: part[0])])
    seconds = (time.perf_counter() - started) / samples
    result, warnings = _weight_results(log_weights, seconds)
    if not model.log_density_is_exact:
        start = model.starts(
            min(DENSITY_SAMPLES, samples), stream(seed, 0, "density error", device)
        )
        result["density_error"] = communicator.from_root(
            lambda: check_density(model, start, log_weights)
        )
    return result, warnings


@torch.no_grad()
def evaluate_exchange(
    flow: Flow,
    action_a: Action,
    action_b: Action,
    samples: int,
    *,
    batch: int = 1024,
    seed: int = 0,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float64,
    chains: int = 256,
    separation: int = 10,
    purpose: str = "evaluate",
    communicator: Communicator | None = None,
    **hmc: Any,
) -> tuple[dict[str, Any], list[str]]:
    """Measure an exchange flow on configurations of both ends drawn by HMC.

    Errors treat every chain as one independent measurement.

    Args:
        flow: the map from a to b.
        action_a, action_b: the ends.
        samples: configurations per end, spread over the chains.
        batch: configurations mapped at a time.
        seed: of the chains.
        device, dtype: of the configurations.
        chains: number of chains per end.
        separation: trajectories between two measurements of a chain.
        purpose: names the streams of random numbers, with the seed.
        communicator: of the ranks among which the chains are dealt; the result is the same for any
            number of them.
        hmc: further arguments of :class:`~flowmc.training.Ensemble`.

    Raises:
        DensityError: see :func:`evaluate`.
    """
    flow.eval()
    communicator = communicator or Communicator()
    chains = min(chains, samples)
    draws = []
    for action, name in ((action_a, f"{purpose} from"), (action_b, f"{purpose} to")):
        ensemble = Ensemble(action, name, seed, chains=chains, dtype=dtype, device=device, **hmc)
        ensemble.distribute(communicator)
        measured = [ensemble.own_field]
        for _ in range(-(-samples // chains) - 1):
            ensemble.advance(separation)
            measured.append(ensemble.own_field)
            # A rank without chains would otherwise wait as long as all of this takes.
            communicator.barrier()
        # Chain by chain, so that consecutive bins are chains.
        draws.append(torch.stack(measured, 1).flatten(0, 1))
    x_a, x_b = draws
    started = time.perf_counter()
    own = _work(flow.forward, x_a, action_a, action_b, batch)
    forward = torch.cat(communicator.allgather(own))
    seconds = (time.perf_counter() - started) / len(forward)
    own = _work(flow.inverse, x_b, action_b, action_a, batch)
    reverse = torch.cat(communicator.allgather(own))
    failed = int((~torch.isfinite(reverse)).sum())
    # An inverse that did not converge is a rejected swap: its work is infinite.
    reverse = torch.where(torch.isfinite(reverse), reverse, math.inf)
    result, warnings = _weight_results(-forward, seconds, bins=chains)
    swap = swap_rate(forward, reverse, bins=chains)
    finite = reverse[torch.isfinite(reverse)]
    jeffreys = float(forward.mean() + finite.mean()) if len(finite) else math.nan
    result |= {
        "swap_rate": _number(swap.value),
        "swap_rate_error": _number(swap.error),
        "jeffreys": _number(jeffreys),
        "swap_rate_gaussian": _number(math.erfc(math.sqrt(max(jeffreys, 0.0)) / 2)),
    }
    if failed:
        warnings.append(
            f"the inverse flow did not converge on {failed} of {len(reverse)} configurations; "
            "such swaps are rejected"
        )
    if not flow.log_density_is_exact:
        # Rank 0 has the first chains.
        result["density_error"] = communicator.from_root(
            lambda: check_density(flow, x_a[:DENSITY_SAMPLES], -forward)
        )
    return result, warnings


def _ensemble_keys(written: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Return what a card or a table says about chains, with types checked."""
    return validate(Ensemble, {key: written[key] for key in ENSEMBLE_KEYS if key in written}, where)


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


def _batches(samples: int, batch: int) -> list[int]:
    return [min(batch, samples - start) for start in range(0, samples, batch)]


def _work(move, x: Tensor, old: Action, new: Action, batch: int) -> Tensor:
    works = [torch.empty(0, dtype=torch.float64)]
    for part in x.split(batch) if len(x) else ():
        zero = torch.zeros(len(part), dtype=torch.float64, device=part.device)
        y, log_density = move(part, zero)
        works.append((new(y) + log_density - old(part)).cpu())
    return torch.cat(works)


def _weight_results(
    log_weights: Tensor, seconds: float, bins: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return what all flows report, and warnings."""
    samples = len(log_weights)
    lost = int((~torch.isfinite(log_weights)).sum())
    warnings = []
    if lost:
        warnings.append(
            f"{lost} of {samples} samples have a density or action that is not finite; their "
            "weight counts as zero"
        )
        log_weights = torch.where(torch.isfinite(log_weights), log_weights, -math.inf)
    if lost == samples:
        raise ConfigError("no sample of this flow has a finite weight: the flow is broken")
    ess = effective_sample_size(log_weights, bins)
    log_z = log_mean_exp(log_weights, bins)
    share = max_weight_share(log_weights)
    tail = pareto_k(log_weights)
    result = {
        "samples": samples,
        "ess": _number(ess.value),
        "ess_error": _number(ess.error),
        "acceptance": _number(independence_acceptance(log_weights).value),
        "log_z": _number(log_z.value),
        "log_z_error": _number(log_z.error),
        "kl": _number(kullback_leibler(log_weights, bins).value),
        "max_weight_share": _number(share),
        "pareto_k": _number(tail),
        "seconds_per_sample": seconds,
    }
    warnings += weight_warnings(samples, ess.value, share, tail, log_z.error)
    return result, warnings


def weight_warnings(
    samples: int, ess: float, share: float, pareto_k: float, log_z_error: float
) -> list[str]:
    """Return what is to be said about a set of weights, from what is known of them.

    Args:
        samples: how many.
        ess: effective sample size per sample.
        share: of the largest weight in the sum of all.
        pareto_k: index of their tail; NaN if it is not known.
        log_z_error: of ln Z.
    """
    warnings = []
    if share > LARGEST_SHARE:
        warnings.append(
            f"a single sample carries {share:.0%} of the total weight: ess, acceptance and log_z "
            "are guesses, most likely too good; use more samples or a better flow"
        )
    elif pareto_k > LARGEST_PARETO_K:
        warnings.append(
            f"the weights have a heavy tail (Pareto k = {pareto_k:.2f} > {LARGEST_PARETO_K}): ess "
            "and log_z may be off by more than their errors; a chain of these proposals would stick"
        )
    if samples * ess < SMALLEST_EFFECTIVE:
        warnings.append(
            f"only {samples * ess:.1f} effective samples: ess is biased up, use more samples"
        )
    if log_z_error > 0.3:
        warnings.append(
            f"log_z is biased low by about {0.5 * log_z_error**2:.2g} at this number of samples"
        )
    return warnings


def _device(model: Model) -> torch.device:
    if isinstance(model, torch.nn.Module):
        for tensor in model.parameters():
            return tensor.device
    return torch.device("cpu")


def _number(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return value if math.isfinite(value) else None
