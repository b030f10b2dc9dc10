r"""Derivatives through the inverse of a flow from derivatives of the flow itself.

At :math:`y = f(x)` a covector at x is carried to y by the inverse transposed Jacobian,

.. math:: A^T v = g, \qquad A = \partial f / \partial x,

and :math:`A^T v` is one backward pass through f.  A Krylov solver therefore needs nothing from
the inverse: it serves flows whose inverse is an iteration that nobody differentiates.  Tangent and
cotangent vectors are in the algebra coordinates of :mod:`flowmc.groups`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowmc.groups import Group

__all__ = ["cotangent", "pairing", "pull_back", "solve_linear"]


def cotangent(group: Group, field: Tensor, gradient: Tensor) -> Tensor:
    r"""Return the inverse of :meth:`Group.gradient_from_euclidean` on tangent directions.

    The result C is what autograd calls the gradient: :math:`df = \mathrm{Re\,tr}(C^\dagger dU)`.
    For SU(N) with :math:`F = \sum_a T_a \partial_a f` and :math:`dU = \omega U`,
    :math:`df = -2\,\mathrm{tr}(\omega F)`, hence :math:`C = 2 F U`.
    """
    return 2 * gradient @ field if group.element_shape else gradient


def pairing(group: Group, gradient: Tensor, field: Tensor) -> Tensor:
    """Return a scalar whose derivative along any motion of ``field`` is that of ``gradient``.

    Args:
        group: of the field's elements.
        gradient: algebra gradient at ``field``, held constant.
        field: ``(n, ...)`` with a graph.
    """
    constant = cotangent(group, field.detach(), gradient.detach())
    if field.is_complex():
        product = torch.view_as_real(constant) * torch.view_as_real(field)
    else:
        product = constant * field
    return product.sum(dtype=torch.float64)


def pull_back(group: Group, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
    """Return :math:`A^T v`: the algebra gradient at the leaf ``x`` of one at ``y = f(x)``."""
    (euclidean,) = torch.autograd.grad(
        y, x, grad_outputs=cotangent(group, y.detach(), gradient), retain_graph=True
    )
    return group.gradient_from_euclidean(x.detach(), euclidean)


def solve_linear(
    apply: Callable[[Tensor], Tensor],
    right_side: Tensor,
    guess: Tensor,
    *,
    tolerance: float = 1e-9,
    max_iterations: int = 60,
) -> Tensor:
    """Solve one linear system per sample by GMRES (Saad and Schultz, 1986), all samples at once.

    Args:
        apply: the operator on ``(n, D)`` vectors, block diagonal in the samples.
        right_side: ``(n, D)`` float64.
        guess: ``(n, D)``; returned as it is where it solves the system already.
        tolerance: on the residual relative to the right side.
        max_iterations: dimension of the largest Krylov space.

    Returns:
        ``(n, D)``; the rows that did not converge are NaN.
    """
    # A sample that is not finite must not spoil the decompositions of the others.
    sane = (torch.isfinite(right_side) & torch.isfinite(apply(guess))).all(1)[:, None]
    right_side, guess = torch.where(sane, right_side, 0.0), torch.where(sane, guess, 0.0)

    def operator(vector: Tensor) -> Tensor:
        return torch.where(sane, apply(vector), 0.0)

    scale = right_side.norm(dim=1).clamp(min=torch.finfo(right_side.dtype).tiny)
    residual = right_side - operator(guess)
    norm = residual.norm(dim=1)
    solution = guess
    basis = [residual / norm.clamp(min=torch.finfo(norm.dtype).tiny)[:, None]]
    columns: list[Tensor] = []
    while bool((norm > tolerance * scale).any()) and len(columns) < max_iterations:
        vector = operator(basis[-1])
        entries = []
        for direction in basis:
            overlap = (direction * vector).sum(1)
            vector = vector - overlap[:, None] * direction
            entries.append(overlap)
        length = vector.norm(dim=1)
        entries.append(length)
        columns.append(torch.stack(entries, 1))
        # A sample whose Krylov space is exhausted has its solution: a zero direction adds nothing.
        alive = length > 1e-14 * scale
        basis.append(torch.where(alive[:, None], vector / length.clamp(min=1e-300)[:, None], 0.0))
        size = len(columns)
        hessenberg = right_side.new_zeros(right_side.shape[0], size + 1, size)
        for index, column in enumerate(columns):
            hessenberg[:, : index + 2, index] = column
        target = right_side.new_zeros(right_side.shape[0], size + 1, 1)
        target[:, 0, 0] = (basis[0] * residual).sum(1)
        weights = torch.linalg.pinv(hessenberg) @ target
        norm = (target - hessenberg @ weights).squeeze(-1).norm(dim=1)
        solution = guess + torch.einsum(
            "knd,nk->nd", torch.stack(basis[:size]), weights.squeeze(-1)
        )
    true_residual = (right_side - operator(solution)).norm(dim=1)
    converged = sane & (true_residual <= 10 * tolerance * scale)[:, None]
    return torch.where(converged, solution, torch.nan)
