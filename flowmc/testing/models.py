"""The contracts of flows, and of what can be sampled with a density."""

from __future__ import annotations

import torch

from flowmc.actions.base import Action
from flowmc.flows.base import Flow, check_inverse, check_log_det
from flowmc.flows.models import as_model
from flowmc.testing.base import random_numbers, require, require_close

__all__ = ["check_flow", "check_model"]

_EXACT, _CONTINUOUS = 1e-9, 1e-4


def check_flow(flow: Flow, action: Action) -> None:
    """Hold a flow to its contract; see :class:`flowmc.flows.Flow`.

    The inverse undoes the map, and both log-determinants are those of the full Jacobian, up to
    rounding or, of a continuous flow, up to what a fine integrator leaves.  What the flow declares
    is consistent, and its own weights fit.

    Args:
        flow: in double precision.
        action: its theory, on a small lattice.

    Raises:
        ContractError: naming what does not hold.
    """
    name, exact = type(flow).__name__, flow.log_density_is_exact
    tolerance = _EXACT if exact else _CONTINUOUS
    x = action.hot(2, random_numbers("check of a flow"))
    zero = torch.zeros(2, dtype=torch.float64)
    with torch.no_grad():
        y, change = flow.forward(x, zero)
    require(
        y.shape == x.shape and y.dtype == x.dtype and change.shape == zero.shape,
        name,
        f"forward() gives {tuple(y.shape)} {y.dtype} and {tuple(change.shape)}",
    )
    of_field, of_density = check_inverse(flow, x)
    require(of_field <= tolerance, name, f"its inverse is off by {of_field:.3g}")
    require(of_density <= tolerance, name, f"its Jacobians do not cancel: {of_density:.3g}")
    apart = {"forward": check_log_det(flow, x[:1], action.group)}
    if _has_gradient(flow, y[:1]):
        apart["inverse"] = check_log_det(flow, y[:1], action.group, inverse=True)
    for where, difference in apart.items():
        text = f"{where}() is off the full Jacobian by {difference:.3g}"
        require(difference <= tolerance, name, text)
    error = flow.density_error(x)
    require(
        error.shape == (2,) and bool((error >= 0).all()) and not (exact and bool(error.any())),
        name,
        "density_error() is not (chains,), >= 0, and zero for an exact density",
    )
    at = flow.at(action)
    with torch.no_grad():
        require(at.forward(x, zero)[0].shape == x.shape, name, "at(action) maps to another shape")
    if flow.conditional_on is not None:
        coupling, low, high = flow.conditional_on
        require(
            low < high and coupling in action.parameters,
            name,
            f"conditional_on = {flow.conditional_on} is no range of a coupling of {action!r}",
        )
    flow.load_state_dict(flow.weights_from(flow, action))
    require(flow.fingerprint() == flow.fingerprint(), name, "its fingerprint changes")


def check_model(model: object, action: Action) -> None:
    """Hold a prior, a flow's model, or any other sampler to its contract.

    Args:
        model: in double precision; with the methods of :class:`flowmc.flows.Model`.
        action: its theory.

    Raises:
        ContractError: naming what does not hold.
    """
    name, given = type(model).__name__, as_model(model)
    rng = random_numbers("check of a model")
    with torch.no_grad():
        x, log_q = given.sample(3, rng)
        action.check_field(x)
        density = given.log_prob(x)
        again, _ = given.sample(3, random_numbers("check of a model"))
        alone = torch.cat([given.log_prob(one) for one in x.split(1)])
        starts = given.starts(3, random_numbers("starts"))
        error = given.density_error(starts)
    tolerance = _EXACT if given.log_density_is_exact else _CONTINUOUS
    require(
        log_q.dtype == torch.float64 and log_q.shape == (3,),
        name,
        f"the log-density of draws is {tuple(log_q.shape)} {log_q.dtype}, not (n,) float64",
    )
    require_close(density, log_q, tolerance, name, "sample() and log_prob() give two densities")
    require_close(alone, density, tolerance, name, "the log-density depends on the batch")
    require(torch.equal(again, x), name, "the same random numbers give other draws")
    require(
        error.shape == (3,) and bool((error >= 0).all()),
        name,
        "density_error() is not (n,) and >= 0",
    )
    require(
        given.at(action).fingerprint() == given.at(action).fingerprint(),
        name,
        "its fingerprint changes",
    )


def _has_gradient(flow: Flow, field: torch.Tensor) -> bool:
    """Whether gradients pass through the inverse, which may be an iteration without."""
    leaf = field.clone().requires_grad_(True)
    image, _ = flow.inverse(leaf, torch.zeros(len(field), dtype=torch.float64))
    return image.requires_grad
