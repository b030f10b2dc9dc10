"""What the checks of all contracts share: their error, comparisons, and symmetries of fields."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.groups import SUN
from flowmc.random import stream

__all__ = [
    "ContractError",
    "gauge_transformation",
    "require",
    "require_close",
    "single",
    "translation",
]


class ContractError(AssertionError):
    """A part does not do what its contract says; the message names the part and the sentence."""


def require(condition: bool, what: object, sentence: str) -> None:
    """Raise :class:`ContractError` unless a condition holds."""
    if not condition:
        raise ContractError(f"{what}: {sentence}")


def require_close(
    found: Tensor, expected: Tensor, tolerance: float, what: object, sentence: str
) -> None:
    """Raise :class:`ContractError` unless two tensors agree.

    Args:
        found, expected: of one shape.
        tolerance: largest difference, relative to the largest component where that is above 1.
        what: the part.
        sentence: what does not hold if they differ; the difference is added.
    """
    shapes = f"{tuple(found.shape)} and {tuple(expected.shape)}"
    require(found.shape == expected.shape, what, f"{sentence}: the shapes are {shapes}")
    if not found.numel():
        return
    scale = max(1.0, float(expected.abs().max()))
    error = float((found.to(expected.dtype) - expected).abs().max()) / scale
    # NaN is no agreement either.
    require(error <= tolerance, what, f"{sentence}: they differ by {error:.3g}")


def single(field: Tensor) -> Tensor:
    """Return a field in single precision."""
    return field.to(torch.complex64 if field.is_complex() else torch.float32)


def random_numbers(purpose: str) -> torch.Generator:
    """Return the random numbers of a check, the same whenever it is made."""
    return stream(1, 0, purpose)


def gauge_transformation(
    action: Action, chains: int, rng: torch.Generator
) -> tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]:
    r"""Draw :math:`g_x` from the Haar measure for every site, 1 where a link is held fixed.

    Returns:
        What it does to links, :math:`U_\mu(x) \to g_x U_\mu(x) g_{x+\mu}^\dagger`, and to algebra
        elements like a force, :math:`F_\mu(x) \to g_x F_\mu(x) g_x^\dagger`.
    """
    group = action.group
    dtype = group.field_dtype(torch.float64)
    rotation = group.haar((chains, *action.lattice), dtype, rng)
    if action.fixed_links is not None:
        for mu, where in enumerate(action.fixed_links.where):
            for end in (where, torch.roll(where, 1, mu)):
                rotation[:, end] = group.identity((), dtype, rotation.device)
    times, dagger = group.compose, group.inverse

    def links(field: Tensor) -> Tensor:
        moved = [
            times(
                times(rotation.to(field.dtype), field[:, mu]),
                dagger(torch.roll(rotation.to(field.dtype), -1, 1 + mu)),
            )
            for mu in range(action.dimensions)
        ]
        return torch.stack(moved, 1)

    def algebra(element: Tensor) -> Tensor:
        if not isinstance(group, SUN):
            return element
        return rotation[:, None] @ element @ rotation[:, None].mH

    return links, algebra


def translation(action: Action, mu: int) -> Callable[[Tensor], Tensor]:
    """Return what a translation by one site does to fields and algebra elements of a theory."""
    axis = (2 if action.is_gauge else 1) + mu
    return lambda field: torch.roll(field, 1, axis)
