"""How good a local flow is: its acceptance on configurations of HMC."""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.estimators.ladder import acceptance_from_work
from flowmc.evaluation.rounds import dealt, rounds_of
from flowmc.evaluation.weights import number_or_none
from flowmc.flows.local.blocks import Block
from flowmc.flows.local.models import LocalFlowModel
from flowmc.kernels import LocalFlow
from flowmc.parallel import Communicator
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.training.ensemble import Ensemble

__all__ = ["evaluate_local"]


@torch.no_grad()
def evaluate_local(
    model: LocalFlowModel,
    action: Action,
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
    """Apply the kernel to HMC configurations; return the result (JSON-able) and warnings.

    The error of the acceptance treats every chain as one independent measurement.

    Args:
        model: the local flow.
        action: the target, on any lattice on which the block fits.
        samples: proposals that are measured at least.
        batch: proposals at a time.
        seed: of the chains and proposals.
        device, dtype: of the configurations.
        chains: number of chains.
        separation: trajectories between two measurements of a chain.
        purpose: names the streams of random numbers, with the seed.
        communicator: of the ranks that the chains are dealt to; the result is the same for any
            number of them.
        hmc: further arguments of :class:`~flowmc.training.Ensemble`.

    Raises:
        ConfigError: if the block does not fit on the lattice.
    """
    Block.of(action, model.block.extents)
    communicator = communicator or Communicator()
    kernel = LocalFlow(action, model)
    blocks = kernel.tiling.count
    chains = max(1, min(chains, samples // blocks))
    ensemble = Ensemble(action, purpose, seed, chains=chains, dtype=dtype, device=device, **hmc)
    size = max(1, batch // blocks)
    seconds, proposals = 0.0, 0

    def propose(index: int, part: tuple[int, Tensor]) -> Tensor:
        nonlocal seconds, proposals
        number, field = part
        started = time.perf_counter()
        rng = stream(seed, index, f"{purpose} local {number}", device)
        _, info = kernel.step(kernel.init(field), rng)
        seconds += time.perf_counter() - started
        proposals += info.is_accepted.numel()
        names = ("acceptance_probability", "divergence", "non_finite")
        return torch.stack([info.values[name].double() for name in names], 1).cpu()

    rounds = []
    for number in rounds_of(ensemble, -(-samples // (chains * blocks)), separation, communicator):
        rounds.append(
            dealt([(number, part) for part in ensemble.field.split(size)], propose, communicator)
        )
    measured = torch.stack(rounds)
    acceptance, divergence, _ = measured.mean(0).unbind(1)
    lost = int(measured[..., 2].sum())
    if not bool(torch.isfinite(divergence).any()):
        raise ConfigError("no proposal of this flow has a finite ratio: the flow is broken")
    jeffreys = float(divergence.nanmean())
    error = float(acceptance.std()) / math.sqrt(chains) if chains > 1 else math.nan
    result = {
        "samples": samples,
        "block": list(model.block.extents),
        "blocks": blocks,
        "acceptance": float(acceptance.mean()),
        "acceptance_error": number_or_none(error),
        "jeffreys": jeffreys,
        "acceptance_gaussian": acceptance_from_work(jeffreys),
        "updated_share": kernel.tiling.updated_share,
        "seconds_per_sample": seconds / max(1, proposals),
    }
    warnings = []
    if lost:
        warnings.append(f"{lost} proposals had a ratio that is not finite; they are rejected")
    return result, warnings
