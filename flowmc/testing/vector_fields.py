"""The contract of a family of vector fields."""

from __future__ import annotations

import torch

from flowmc.actions.base import Action
from flowmc.testing.base import random_numbers, require, require_close
from flowmc.vector_fields.base import VectorFields, divergences_by_differences

__all__ = ["check_vector_fields"]


def check_vector_fields(fields: VectorFields, action: Action, *, estimates: int = 100) -> None:
    """Hold a family to its contract; see :class:`flowmc.vector_fields.VectorFields`.

    Velocities are shaped like the field and of each chain alone; divergences are the derivatives of
    the velocities, or unbiased estimates of them (5.5 standard errors).

    Args:
        fields: the family.
        action: its theory, on a few sites: every degree of freedom is moved in turn.
        estimates: how many of a stochastic divergence are averaged.

    Raises:
        ContractError: naming what does not hold.
    """
    name = type(fields).__name__
    field = action.hot(2, random_numbers("check of vector fields"))
    velocities, divergences = fields.evaluate(field, random_numbers("divergences"))
    require(
        len(velocities) == len(fields.names) > 0 and len(set(fields.names)) == len(velocities),
        name,
        f"it has {len(velocities)} members of the names {fields.names}",
    )
    require(
        divergences.shape == (2, len(velocities)) and divergences.dtype == torch.float64,
        name,
        f"its divergences are {tuple(divergences.shape)} {divergences.dtype}",
    )
    alone = [fields.velocities(one) for one in field.split(1)]
    for k, velocity in enumerate(velocities):
        require_close(
            torch.cat([one[k] for one in alone]),
            velocity,
            1e-7,
            f"{name} {fields.names[k]}",
            "the velocity of a chain depends on others, or is not shaped like the field",
        )
    one = field[:1]
    expected = divergences_by_differences(fields, action, one)[0]
    if fields.divergence_is_exact:
        require_close(divergences[0], expected, 1e-8, name, "its divergences are no derivatives")
        return
    many = fields.divergences(one.expand(estimates, *one.shape[1:]), random_numbers("estimates"))
    error = many.std(0) / estimates**0.5
    difference = (many.mean(0) - expected).abs()
    require(
        bool((difference <= 5.5 * error + 1e-4 * expected.abs()).all()),
        name,
        f"its estimates of divergences are biased: {(difference / error).max():.1f} errors",
    )
