"""Whether the density of a continuous flow can be trusted."""

from __future__ import annotations

import torch
from torch import Tensor

from flowmc.flows.base import Flow
from flowmc.flows.models import Model

__all__ = ["DensityError", "check_density"]


DENSITY_SAMPLES = 64


class DensityError(RuntimeError):
    """The log-density of a continuous flow is not that of its map: no number can be believed."""


def check_density(flow: Flow | Model, x: Tensor, log_weights: Tensor) -> float:
    """Return the error of a continuous flow's log-density, if it is small against their spread.

    Args:
        flow: the flow, or a sampler with one in its flow or prior.
        x: where the flow starts.
        log_weights: of the flow's fields.

    Raises:
        DensityError: if it is not.
    """
    error = float(flow.density_error(x).max())
    finite = log_weights[torch.isfinite(log_weights)]
    spread = float(finite.std()) if len(finite) > 1 else 0.0
    if not error <= max(1e-3, 0.1 * spread):
        raise DensityError(
            f"the log-density of this flow is wrong by up to {error:.2g}, which is not small "
            f"against the spread {spread:.2g} of its log-weights: its integrator is too coarse; "
            "retrain with more integration steps"
        )
    return error
