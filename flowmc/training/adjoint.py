r"""Derivatives through the inverse of a flow from derivatives of the flow itself.

At :math:`y = f(x)` a covector at x is carried to y by the inverse transposed Jacobian,

.. math:: A^T v = g, \qquad A = \partial f / \partial x,

and :math:`A^T v` is one backward pass through f.  A Krylov solver therefore needs nothing from
the inverse: it serves flows whose inverse is an iteration that nobody differentiates.  Tangent and
cotangent vectors are in the algebra coordinates of :mod:`flowmc.groups`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

from flowmc.flows.base import Flow
from flowmc.groups import Group, cotangent, pairing
from flowmc.parallel import Communicator

__all__ = ["PushedForce", "frozen", "pull_back", "solve_linear"]


class PushedForce:
    r"""The force of the density that a flow makes of another one.

    If x has the density :math:`e^{-s(x)}`, then :math:`y = f(x)` has
    :math:`\ln q(y) = -s(x) - J_f(x)` with :math:`J_f = \ln|\det \partial f|`, and its force is

    .. math:: v = -\partial_y \ln q(y), \qquad A^T v = \partial_x [s(x) + J_f(x)] .

    A continuous flow carries v along with the field
    (:meth:`~flowmc.flows.Flow.forward_with_force`), and where autograd can differentiate the
    inverse that gives v directly.  The first call checks such a v against the equation, and falls
    back on the Krylov solver, for good, if it does not hold (to 1e-6; 1e-2 in single precision and
    1e-3 for continuous flows, whose discrete map and log-density differ by the error of their
    integrator).  A flow that begins as the identity does not show there what it does later:
    :meth:`check_again` has the next call check once more (continuous flows to 0.05: trained ones
    reach 0.003 with the steps they were trained with).

    Args:
        flow: the map f.
        group: of the fields' elements.

    Attributes:
        direct_way_holds: what the checks have found; None before the first.  A resumed training
            takes it from its checkpoint.
    """

    def __init__(self, flow: Flow, group: Group) -> None:
        self.flow, self.group = flow, group
        self.direct_way_holds: bool | None = None
        self._is_due = False
        self.communicator = Communicator()

    def forward(
        self, x: Tensor, log_density: Tensor, force: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return y and its log-density as from ``flow.forward``, and v.

        Args:
            x: leaf that requires a gradient.
            log_density: at ``x``, a constant.
            force: algebra gradient of s at ``x``.
        """
        if self.direct_way_holds is not False:
            found = self.flow.forward_with_force(x, log_density, force)
            if found is not None:
                y, log_density, v = found
                if not self._is_settled:
                    v = self._solve(x, y, log_density, force, v)
                return y, log_density, v
        y, log_density = self.flow.forward(x, log_density)
        return y, log_density, self(x, y, log_density, force)

    def __call__(self, x: Tensor, y: Tensor, log_density: Tensor, force: Tensor) -> Tensor:
        """Return v at ``y``, an algebra gradient shaped like the field; NaN where not converged.

        Args:
            x: leaf that requires a gradient.
            y, log_density: what ``flow.forward(x, constant)`` returned, with its graph.
            force: algebra gradient of s at ``x``.
        """
        guess = None
        if self.direct_way_holds is not False:
            guess = self._through_inverse(y.detach(), force)
        if guess is not None and self._is_settled:
            return guess
        return self._solve(x, y, log_density, force, guess)

    def check_again(self, is_due: bool = True) -> None:
        """Have the next call check the direct way, if that is still taken, or not; on all ranks."""
        self._is_due = is_due and self.direct_way_holds is True

    @property
    def _is_settled(self) -> bool:
        return self.direct_way_holds is not None and not self._is_due

    def agree(self, holds: bool = True) -> bool:
        """Decide between the two ways, the same on all ranks; collective, until it is decided.

        Args:
            holds: whether the direct way was right for this rank's samples; a rank without samples
                has no objection.
        """
        if not self._is_settled:
            objections = self.communicator.maximum(np.array([float(not holds)]))
            self.direct_way_holds, self._is_due = not objections[0], False
        assert self.direct_way_holds is not None
        return self.direct_way_holds

    @staticmethod
    def all_of(objective: object) -> list[PushedForce]:
        """Return those of an objective and of what it is made of, always in the same order."""
        found: list[PushedForce] = []
        seen: set[int] = set()
        todo = [objective]
        while todo:
            one = todo.pop()
            if id(one) in seen or isinstance(one, nn.Module | Tensor | type):
                continue
            seen.add(id(one))
            if isinstance(one, PushedForce):
                found.append(one)
            elif isinstance(one, list | tuple):
                todo += reversed(one)
            elif isinstance(one, dict):
                todo += reversed(list(one.values()))
            elif hasattr(one, "__dict__"):
                todo += reversed(list(vars(one).values()))
        return found

    def _through_inverse(self, y: Tensor, force: Tensor) -> Tensor | None:
        leaf = y.detach().requires_grad_(True)
        zero = torch.zeros(y.shape[0], dtype=torch.float64, device=y.device)
        with frozen(self.flow), torch.enable_grad():
            x, log_density = self.flow.inverse(leaf, zero)
            if x.grad_fn is None:
                return None
            # inverse adds +J_f.
            total = log_density.sum() + pairing(self.group, force, x)
            (euclidean,) = torch.autograd.grad(total, leaf)
        return self.group.gradient_from_euclidean(y, euclidean)

    def _solve(
        self, x: Tensor, y: Tensor, log_density: Tensor, force: Tensor, guess: Tensor | None
    ) -> Tensor:
        group, n, real = self.group, y.shape[0], force.real.dtype
        shape = group.algebra_to_coordinates(force).shape

        def flat(algebra: Tensor) -> Tensor:
            return group.algebra_to_coordinates(algebra).reshape(n, -1).to(torch.float64)

        def unflat(vector: Tensor) -> Tensor:
            return group.coordinates_to_algebra(vector.reshape(shape).to(real))

        right_side = force
        if log_density.grad_fn is not None:
            (euclidean,) = torch.autograd.grad(
                log_density.sum(), x, retain_graph=True, allow_unused=True
            )
            if euclidean is not None:
                # log_density is a constant minus J_f.
                right_side = force - group.gradient_from_euclidean(x.detach(), euclidean)

        def operator(vector: Tensor) -> Tensor:
            return flat(pull_back(group, x, y, unflat(vector)))

        target, precise = flat(right_side), real == torch.float64
        if guess is None:
            self.agree(False)
        else:
            accept = 1e-6 if precise else 1e-2
            if not self.flow.log_density_is_exact:
                accept = max(accept, 0.05 if self._is_due else 1e-3)
            residual = (target - operator(flat(guess))).norm(dim=1)
            # Rows that are not finite say nothing about the inverse; their batch is skipped.
            if self.agree(not bool((residual > accept * target.norm(dim=1)).any())):
                return guess
        start = target if guess is None else flat(guess)
        tolerance = 1e-9 if precise else 1e-3
        return unflat(solve_linear(operator, target, start, tolerance=tolerance))


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """Build graphs without the weights of ``module``: only inputs are differentiated."""
    trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]
    for parameter in trainable:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in trainable:
            parameter.requires_grad_(True)


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
