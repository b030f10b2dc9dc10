"""How good a sampler is: the weights of its draws."""

from __future__ import annotations

import time
from typing import Any

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.evaluation.density import DENSITY_SAMPLES, check_density
from flowmc.evaluation.rounds import dealt
from flowmc.evaluation.weights import weight_results
from flowmc.flows.models import Model, as_model
from flowmc.parallel import Communicator
from flowmc.random import stream

__all__ = ["evaluate_sampler"]


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
        model: a :class:`~flowmc.flows.Model`, or what has its methods; a conditional one is taken
            at the couplings of the action.
        action: the target.
        samples: how many draws, ``batch`` at a time.
        seed, purpose: see above.
        communicator: of all ranks.

    Raises:
        DensityError: for a continuous flow whose integrator is too coarse.
        CollectiveError: the same, on several ranks.
        ConfigError: for a model that lacks a method.
        ValueError: for a conditional model that was not made for these couplings.
    """
    model = as_model(model).at(action)
    if isinstance(model, torch.nn.Module):
        model.eval()
    communicator = communicator or Communicator()
    device = _device(model)

    def weigh(index: int, size: int) -> Tensor:
        x, log_q = model.sample(size, stream(seed, index, purpose, device))
        return (-action(x) - log_q).cpu()

    started = time.perf_counter()
    sizes = [min(batch, samples - start) for start in range(0, samples, batch)]
    log_weights = dealt(sizes, weigh, communicator)
    seconds = (time.perf_counter() - started) / samples
    result, warnings = weight_results(log_weights, seconds)
    if not model.log_density_is_exact:
        start = model.starts(
            min(DENSITY_SAMPLES, samples), stream(seed, 0, "density error", device)
        )
        result["density_error"] = communicator.from_root(
            lambda: check_density(model, start, log_weights)
        )
    return result, warnings


def _device(model: Model) -> torch.device:
    if isinstance(model, torch.nn.Module):
        for tensor in model.parameters():
            return tensor.device
    return torch.device("cpu")
