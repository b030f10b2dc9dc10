"""A periodic hypercubic lattice: shifts, parities, masks, momenta, and sums over its sites.

A site field has shape ``(chains, *L)`` with optional internal axes behind; lattice axis ``mu`` is
direction ``mu`` (x, y, z, t in four dimensions).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = [
    "check_even",
    "checkerboard",
    "coordinates",
    "lattice_momenta_squared",
    "shift",
    "sum_over_rows",
    "sum_over_sites",
]

# Terms that are added up before their partial sums are.
_CHUNK = 4096


def shift(site_field: Tensor, mu: int, steps: int = 1) -> Tensor:
    """Return ``g(x) = f(x + steps * mu_hat)`` with periodic boundaries.

    Args:
        site_field: ``(chains, *L, ...)``; lattice axis ``mu`` is tensor axis ``1 + mu``.
        mu: direction, 0 <= mu < d.
        steps: lattice units, negative for the backward neighbour.
    """
    return torch.roll(site_field, -steps, dims=1 + mu)


def sum_over_sites(values: Tensor) -> Tensor:
    """Return the sum over all axes but the first, ``(chains,)``, in double precision.

    The order of the additions depends on the number of terms alone, so that the rounding is the
    same for any number of threads and chains.  (A plain ``sum`` of one chain with more than 32768
    terms is split among as many threads as there are.)

    Args:
        values: ``(chains, ...)``, real or complex, of any precision and memory layout.
    """
    dtype = torch.complex128 if values.is_complex() else torch.float64
    rows = values.reshape(values.shape[0], -1).contiguous()
    while rows.shape[1] > _CHUNK:
        whole = rows.shape[1] // _CHUNK * _CHUNK
        parts = rows[:, :whole].reshape(len(rows), -1, _CHUNK).sum(2, dtype=dtype)
        if whole < rows.shape[1]:
            rest = rows[:, whole:].sum(1, keepdim=True, dtype=dtype)
            parts = torch.cat([parts, rest], 1)
        rows = parts
    return rows.sum(1, dtype=dtype)


def sum_over_rows(values: Tensor) -> Tensor:
    """Return the sum over the first axis of ``(sites, chains)``: ``(chains,)`` float64.

    The counterpart of :func:`sum_over_sites` for fields with the chains in the last axis: the same
    rounding for any number of threads.
    """
    # Only a sum with a single result is split along the terms.
    if values.shape[1] == 1:
        return sum_over_sites(values.t())
    return values.sum(0, dtype=torch.float64)


def coordinates(lattice: Sequence[int], device: torch.device | str = "cpu") -> list[Tensor]:
    """Return d integer tensors of shape ``(*L)``: the coordinate of each site along each axis."""
    axes = [torch.arange(extent, device=device) for extent in lattice]
    return list(torch.meshgrid(*axes, indexing="ij"))


def checkerboard(
    lattice: Sequence[int], parity: int = 0, device: torch.device | str = "cpu"
) -> Tensor:
    """Return the boolean mask ``(*L)`` of the sites with ``(x_0 + ... + x_{d-1}) mod 2 = parity``.

    With an odd extent the two colours touch across the boundary; callers for which that matters
    call :func:`check_even` first.
    """
    total = torch.stack(coordinates(lattice, device)).sum(0)
    return total % 2 == parity % 2


def check_even(lattice: Sequence[int], what: str) -> None:
    """Raise ``ValueError`` unless every extent is even, naming ``what`` needs it."""
    odd = [extent for extent in lattice if extent % 2]
    if odd:
        raise ValueError(
            f"{what} needs even extents in every direction (it updates one checkerboard colour "
            f"with the other frozen), but the lattice is {'x'.join(map(str, lattice))}"
        )


def lattice_momenta_squared(
    lattice: Sequence[int], device: torch.device | str = "cpu", dtype: torch.dtype = torch.float64
) -> Tensor:
    """Return ``p_hat^2 = sum_mu 4 sin^2(pi n_mu / L_mu)`` for every momentum, shape ``(*L)``.

    These are the eigenvalues of minus the lattice Laplacian, in the order of ``torch.fft.fftn``.
    """
    squares = [
        4 * torch.sin(torch.pi * torch.arange(extent, device=device, dtype=dtype) / extent) ** 2
        for extent in lattice
    ]
    total = torch.zeros(tuple(lattice), device=device, dtype=dtype)
    for mu, square in enumerate(squares):
        total = total + square.reshape([-1 if nu == mu else 1 for nu in range(len(lattice))])
    return total
