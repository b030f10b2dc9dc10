"""The contract of an objective of a training."""

from __future__ import annotations

import torch

from flowmc.testing.base import random_numbers, require, require_close
from flowmc.training.objectives.base import Objective

__all__ = ["check_objective"]


def check_objective(
    objective: Objective, *, is_exact: bool = False, batch: int = 16, batches: int = 16
) -> None:
    """Hold an objective to its contract; see :class:`flowmc.training.objectives.Objective`.

    Loss, log-weights and gradient are finite, the log-weights real numbers of the batch; the same
    random numbers give the same batch; ``state_dict`` continues it.

    Args:
        objective: of a small model.
        is_exact: whether the model meets its target exactly; then the log-weights are constant and
            the gradient is zero, up to the noise of its estimate (5.5 standard errors of each
            component: false alarms of 4e-8).
        batch: size of a batch.
        batches: how many are averaged.

    Raises:
        ContractError: naming what does not hold.
    """
    name = type(objective).__name__
    weights = [one for one in objective.module.parameters() if one.requires_grad]
    require(bool(weights), name, "its module has no weights to train")
    gradients = []
    rng = random_numbers("check of an objective")
    for step in range(batches):
        objective.begin(step)
        found = objective.evaluate(batch, rng)
        require(
            found.loss.dim() == 0 and found.surrogate.dim() == 0,
            name,
            "loss and surrogate of a batch are no scalars",
        )
        parts = torch.autograd.grad(found.surrogate, weights, allow_unused=True)
        flat = [
            torch.zeros_like(weight) if part is None else part
            for part, weight in zip(parts, weights, strict=True)
        ]
        gradients.append(torch.cat([one.detach().double().flatten() for one in flat]))
        numbers = (found.loss, found.log_weights, gradients[-1])
        require(
            all(bool(one.isfinite().all()) for one in numbers)
            and found.log_weights.dtype == torch.float64
            and 0 < len(found.log_weights) <= batch,
            name,
            "loss, gradient or log-weights are not finite, or not those of the batch",
        )
        if is_exact:
            spread = found.log_weights - found.log_weights.mean()
            text = "the log-weights of an exact model are not constant"
            require_close(spread, torch.zeros_like(spread), 1e-8, name, text)
    table = torch.stack(gradients)
    if is_exact:
        error = table.std(0) / batches**0.5
        worst = float(((table.mean(0).abs() - 1e-9).clamp(min=0) / error.clamp(min=1e-12)).max())
        require(
            worst < 5.5, name, f"the gradient at an exact model is off zero by {worst:.1f} errors"
        )
    error = objective.density_error(batch, random_numbers("density"))
    require(
        error.shape == (batch,) and bool((error >= 0).all()),
        name,
        "density_error() is not (n,) and >= 0",
    )
    objective.load_state_dict(objective.state_dict())
