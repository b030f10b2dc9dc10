r"""The link map :math:`U' = e^{Q} U` with :math:`Q = -(U C)_{TA}`: its Jacobian and its bounds.

C is a fixed complex matrix (a sum of frozen paths).  With right-trivialised variations
:math:`\omega = dU\,U^{-1}` and :math:`\omega' = dU'\,U'^{-1}`,

.. math:: \omega' = J(\mathrm{ad}_Q)\,dQ + \mathrm{Ad}(e^Q)\,\omega
          = \mathrm{Ad}(e^Q)\,\big[ 1 + J(-\mathrm{ad}_Q)\,D \big]\,\omega,
          \qquad J(z) = \frac{e^z - 1}{z},

where :math:`D\,\omega = dQ = -(\omega\,U C)_{TA}`, and Ad has determinant one.  Everything is a
function of :math:`M = U C`: in the coordinates :math:`p_a = -2\,\mathrm{tr}\,T_a P` of
:mod:`flowmc.groups`, :math:`D_{ab} = 2\,\mathrm{Re\,tr}(T_a T_b M)` and ad_Q are linear in it.
For U(1), :math:`Q = -\mathrm{Im}\,M` and the Jacobian is :math:`1 - \mathrm{Re}\,M`.

**Bound.**  Let :math:`\kappa` bound the largest singular value of C.  (i)
:math:`\|dQ\| \le \|\omega U C\| \le \kappa \|\omega\|` in the Frobenius norm, for ()_TA is an
orthogonal projection.  (ii) The spectrum of ad_Q is imaginary, hence J(-ad_Q) is an average of
rotations and has norm at most one.  So the map :math:`U \mapsto e^{-Q(U)} U'` shortens every path
by the factor :math:`\kappa`: for :math:`\kappa < 1` it has exactly one fixed point (Banach), which
is the inverse image of U'; the link map is a bijection, and :math:`1 + J D` has positive
determinant.  The eigenvalues of ad_Q are differences of those of
:math:`\tfrac12(M - M^\dagger)`, at most :math:`2\kappa` in modulus, which bounds the remainder of
the Taylor series of J.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from flowmc.groups import SUN, U1, Group, traceless_antihermitian

__all__ = ["link_generator", "link_jacobian", "log_determinant", "taylor_degree"]


def link_generator(group: Group, product: Tensor) -> Tensor:
    r"""Return :math:`Q = -(M)_{TA}` (U(1): the real number -Im M).

    Args:
        group: U(1) or SU(N).
        product: M = U C, complex, ``(..., *element)``.
    """
    if isinstance(group, U1):
        return -product.imag
    return -traceless_antihermitian(product)


def link_jacobian(group: SUN, product: Tensor, degree: int) -> Tensor:
    r"""Return :math:`1 + J(-\mathrm{ad}_Q) D`, real ``(..., N^2 - 1, N^2 - 1)``.

    Args:
        group: SU(N).
        product: M = U C, ``(..., N, N)``; complex128 for a float64 result.
        degree: of the Taylor polynomial of J, from :func:`taylor_degree`.
    """
    size = group.algebra_dimension
    real = torch.view_as_real(product).reshape(*product.shape[:-2], -1)
    basis = _linear_maps(group.n, real.dtype, str(real.device))
    both = (real @ basis).reshape(*product.shape[:-2], 2, size, size)
    derivative, adjoint = both.unbind(-3)
    identity = torch.eye(size, dtype=real.dtype, device=real.device)
    return identity + _average_rotation(-adjoint, derivative, degree)


def log_determinant(group: Group, product: Tensor, degree: int) -> Tensor:
    """Return ln|det| of the link map in algebra coordinates, in float64.

    Args:
        group: U(1) or SU(N).
        product: M = U C, ``(..., *element)`` in any precision.
        degree: of the Taylor polynomial, from :func:`taylor_degree`.
    """
    if isinstance(group, U1):
        return torch.log1p(-product.real.to(torch.float64))
    assert isinstance(group, SUN)
    matrix = link_jacobian(group, product.to(torch.complex128), degree)
    if group.n == 2:
        a, b, c = matrix.unbind(-2)
        return (torch.linalg.cross(a, b, dim=-1) * c).sum(-1).log()
    return torch.linalg.slogdet(matrix)[1]


def taylor_degree(bound: float) -> int:
    r"""Return the degree at which the remainder of :math:`J(-\mathrm{ad}_Q)` is below 1e-17.

    Args:
        bound: :math:`\kappa`, bounds the singular values of C and half of those of ad_Q.
    """
    degree = 1
    term = 2 * bound / 2
    while term > 1e-17:
        degree += 1
        term *= 2 * bound / (degree + 1)
    return degree


def _average_rotation(adjoint: Tensor, right: Tensor, degree: int) -> Tensor:
    r"""Return :math:`\sum_{k \le degree} \frac{A^k}{(k+1)!} R` by Horner's rule."""
    result = right
    for k in range(degree, 0, -1):
        result = right + (adjoint @ result) / (k + 1)
    return result


@functools.lru_cache(maxsize=16)
def _linear_maps(n: int, dtype: torch.dtype, device: str) -> Tensor:
    """Return the matrix from the real entries of M to those of D and ad_Q, side by side.

    Shape ``(2 N^2, 2 (N^2 - 1)^2)``.
    """
    generators = SUN(n).generators(torch.complex128)
    size = len(generators)
    products = torch.einsum("aij,bjk->abik", generators, generators)
    commutators = products - products.transpose(0, 1)
    # [T_c, T_b] = sum_a F_cab T_a and q_c = 2 Re tr(T_c M).
    structure = -2 * torch.einsum("aij,cbji->cab", generators, commutators).real

    def trace_with(matrices: Tensor) -> Tensor:
        """Rows of 2 Re tr(G M) as linear functions of (Re M, Im M)."""
        entries = 2 * matrices.mT.reshape(-1, n * n)
        return torch.stack([entries.real, -entries.imag], dim=-1).reshape(-1, 2 * n * n)

    derivative = trace_with(products.reshape(-1, n, n))
    adjoint = structure.reshape(size, -1).mT @ trace_with(generators)
    return torch.cat([derivative, adjoint]).mT.contiguous().to(dtype=dtype, device=device)
