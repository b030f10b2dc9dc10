r"""Convolution kernels that share the symmetries of a periodic lattice, and their spectra.

A kernel :math:`\kappa(r)` on the offsets of the lattice is symmetric when it is constant on the
orbits of the point group: reflections of every axis, and permutations of axes of equal extent.  As
it is even along every axis, the real Fourier basis diagonalises its convolution,

.. math:: \lambda(k) = \sum_r \kappa(r) \prod_\mu \cos(2\pi k_\mu r_\mu / L_\mu),

which is constant on the same orbits in momentum space.  Everything stays real, and a convolution
costs one small matrix product per axis and direction.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from flowmc.flows.parts.products import multiply
from flowmc.lattice import coordinates

__all__ = ["LatticeSpectrum", "point_group_orbits"]


def point_group_orbits(lattice: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return the orbit of every offset, ``(V,)`` int64, and one offset per orbit, ``(N_orb, d)``.

    Offsets are in C order.  The representative has coordinates in ``0 .. L/2``, sorted within the
    axes of equal extent; orbits are numbered in the order of their representatives, so that number
    0 is the zero offset.
    """
    folded = torch.stack(
        [
            torch.minimum(site, extent - site).flatten()
            for extent, site in zip(lattice, coordinates(lattice), strict=True)
        ],
        dim=1,
    )
    for extent in set(lattice):
        axes = [axis for axis, other in enumerate(lattice) if other == extent]
        folded[:, axes] = folded[:, axes].sort(dim=1).values
    representatives, orbit = torch.unique(folded, dim=0, return_inverse=True)
    return orbit, representatives


class LatticeSpectrum(nn.Module):
    """The real Fourier transform of one lattice and the spectra of its symmetric kernels.

    Site tensors are ``(V, columns)`` with the sites in C order.

    Args:
        lattice: extents, any >= 1.
        reach: the kernels vanish at offsets of more than this along any axis; None for nowhere.

    Attributes:
        orbits: number of orbits N_orb of the offsets within reach.
        representatives: ``(N_orb, d)`` one offset per orbit; number 0 is the zero offset.
        multiplicity: ``(N_orb,)`` offsets per orbit.
    """

    # Not in digests: a flow is the same after it has been used.
    caches = ("_converted",)

    def __init__(self, lattice: Sequence[int], reach: int | None = None) -> None:
        super().__init__()
        self.lattice = tuple(lattice)
        orbit, all_representatives = point_group_orbits(lattice)
        momenta = len(all_representatives)
        # (r, representative of k) -> product of cosines, summed over the orbit of r.
        waves = torch.ones(len(orbit), momenta, dtype=torch.float64)
        for axis, (extent, site) in enumerate(zip(lattice, coordinates(lattice), strict=True)):
            phase = site.reshape(-1, 1) * all_representatives[:, axis] % extent
            waves *= torch.cos(2 * math.pi / extent * phase.to(torch.float64))
        table = torch.zeros(momenta, momenta, dtype=torch.float64)
        table.index_add_(0, orbit, waves)
        self._range = [min(extent // 2, extent if reach is None else reach) for extent in lattice]
        within = (all_representatives <= torch.tensor(self._range)).all(1)
        # The same for all members of an orbit: axes that may be exchanged have the same range.
        number = torch.where(within, within.cumsum(0) - 1, -1)
        self.orbits = int(within.sum())
        self.representatives = all_representatives[within]
        self.multiplicity = torch.bincount(orbit)[within]
        table = table[within]
        self.register_buffer("_momentum_orbit", orbit, persistent=False)
        self.register_buffer("_offset_orbit", number[orbit], persistent=False)
        # float64 until used, so that a model moved to float32 and back has not lost the digits:
        # module.to() would round a buffer.
        self._table = table
        self._bases = [_real_fourier_basis(extent) for extent in lattice]
        self._converted: dict[tuple[torch.dtype, torch.device], tuple[Tensor, list[Tensor]]] = {}

    def _constants(self, like: Tensor) -> tuple[Tensor, list[Tensor]]:
        key = (like.dtype, like.device)
        if key not in self._converted:
            self._converted[key] = (self._table.to(like), [basis.to(like) for basis in self._bases])
        return self._converted[key]

    def quadrant(self) -> Tensor:
        """Return the orbit of the folded offsets 0, 1, ... within reach, one axis each."""
        orbit = self.get_buffer("_offset_orbit").reshape(self.lattice)
        return orbit[tuple(slice(farthest + 1) for farthest in self._range)].contiguous()

    def eigenvalues(self, kernels: Tensor) -> Tensor:
        """Return the spectra ``(..., V, f)`` of kernels ``(..., N_orb, f)`` given per orbit."""
        table, _ = self._constants(kernels)
        members = kernels.reshape(-1, *kernels.shape[-2:])
        spectra = multiply(table.t(), members)
        spectra = spectra.reshape(*kernels.shape[:-2], -1, kernels.shape[-1])
        return spectra.index_select(-2, self.get_buffer("_momentum_orbit"))

    def transform(self, h: Tensor, *, inverse: bool = False) -> Tensor:
        """Return the orthogonal real Fourier transform of ``h (V, columns)`` over the sites."""
        _, bases = self._constants(h)
        columns = h.shape[1]
        before, after = 1, h.shape[0]
        for basis in bases:
            extent = basis.shape[0]
            after //= extent
            matrix = basis.t() if inverse else basis
            h = multiply(matrix, h.reshape(before, extent, after * columns))
            before *= extent
        return h.reshape(-1, columns)


def _real_fourier_basis(extent: int) -> Tensor:
    """Return the orthogonal matrix whose row k has frequency k or extent - k, ``(L, L)`` float64.

    Rows 0 .. L/2 are cosines and the others sines, so that the eigenvalue of an even kernel for row
    k is that of momentum k.
    """
    k = torch.arange(extent).reshape(-1, 1)
    phase = (2 * math.pi / extent) * (k * torch.arange(extent) % extent).to(torch.float64)
    basis = torch.where(2 * k <= extent, phase.cos(), phase.sin())
    return basis / basis.norm(dim=1, keepdim=True)
