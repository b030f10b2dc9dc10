"""How good an exchange flow is: its works between configurations of both ends."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.estimators.ladder import acceptance_from_work
from flowmc.estimators.weights import swap_rate
from flowmc.evaluation.density import DENSITY_SAMPLES, check_density
from flowmc.evaluation.rounds import rounds_of
from flowmc.evaluation.weights import number_or_none, weight_results
from flowmc.flows.base import Flow
from flowmc.parallel import Communicator
from flowmc.training.ensemble import Ensemble

__all__ = ["evaluate_exchange"]


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
        DensityError: for a continuous flow whose integrator is too coarse.
    """
    flow.eval()
    communicator = communicator or Communicator()
    chains = min(chains, samples)
    draws = []
    for action, name in ((action_a, f"{purpose} from"), (action_b, f"{purpose} to")):
        ensemble = Ensemble(action, name, seed, chains=chains, dtype=dtype, device=device, **hmc)
        measured = []
        for _ in rounds_of(ensemble, -(-samples // chains), separation, communicator):
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
    result, warnings = weight_results(-forward, seconds, bins=chains)
    swap = swap_rate(forward, reverse, bins=chains)
    finite = reverse[torch.isfinite(reverse)]
    jeffreys = float(forward.mean() + finite.mean()) if len(finite) else math.nan
    result |= {
        "swap_rate": number_or_none(swap.value),
        "swap_rate_error": number_or_none(swap.error),
        "jeffreys": number_or_none(jeffreys),
        "swap_rate_gaussian": number_or_none(acceptance_from_work(jeffreys)),
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


def _work(
    move: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]],
    x: Tensor,
    old: Action,
    new: Action,
    batch: int,
) -> Tensor:
    works = [torch.empty(0, dtype=torch.float64)]
    for part in x.split(batch) if len(x) else ():
        zero = torch.zeros(len(part), dtype=torch.float64, device=part.device)
        y, log_density = move(part, zero)
        works.append((new(y) + log_density - old(part)).cpu())
    return torch.cat(works)
