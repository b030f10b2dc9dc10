r"""Native inverse of one masked layer of SU(3) links: a fixed-point iteration, link by link.

Solves :math:`U' = e^{Q(U)} U` with :math:`Q = -(U C)_{TA}` for U by iterating
:math:`U \to e^{-Q(U)} U'` (:mod:`flowmc.flows.gauge.masked_links`).  In torch an iteration is some
fifty operations on arrays of a few hundred matrices, whose calls take longer than their work.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from flowmc.native.compiled import compiled
from flowmc.native.schedule import run_slices

__all__ = ["solve_links"]

# As in flowmc.native.matrices: below 4e-17 is left out for eigenvalues of Q up to 1.25; they are
# differences of at most 4/3 of the bound of C, below 1.
_DEGREE = 20
_INVERSE_FACTORIALS = np.array([1 / math.factorial(n) for n in range(_DEGREE + 1)])
# Nanoseconds: about what a link takes; it only decides when a thread pays.
_LINK_TIME = 10_000.0


@njit(inline="always")
def _multiply(a, b, c):
    for i in range(3):
        for j in range(3):
            c[i, j] = a[i, 0] * b[0, j] + a[i, 1] * b[1, j] + a[i, 2] * b[2, j]


@njit(inline="always")
def _minus_generator(m, q):
    """Write (M)_TA to q."""
    third = (m[0, 0].imag + m[1, 1].imag + m[2, 2].imag) / 3
    for i in range(3):
        q[i, i] = complex(0.0, m[i, i].imag - third)
        for j in range(i):
            q[i, j] = 0.5 * (m[i, j] - m[j, i].conjugate())
            q[j, i] = -q[i, j].conjugate()


@compiled
def _solve(target, closing, links, start, stop, limit, threshold, is_solved, factorials):
    """Solve for the links ``start`` to ``stop`` of flat ``(links, 3, 3)`` arrays."""
    product = np.empty((3, 3), dtype=np.complex128)
    q = np.empty((3, 3), dtype=np.complex128)
    once = np.empty((3, 3), dtype=np.complex128)
    twice = np.empty((3, 3), dtype=np.complex128)
    u = np.empty((3, 3), dtype=np.complex128)
    goal = np.empty((3, 3), dtype=np.complex128)
    c = np.empty((3, 3), dtype=np.complex128)
    for link in range(start, stop):
        for i in range(3):
            for j in range(3):
                goal[i, j] = u[i, j] = target[link, i, j]
                c[i, j] = closing[link, i, j]
        for _ in range(limit):
            _multiply(u, c, product)
            _minus_generator(product, q)
            # Q^3 = -t Q + i e.
            t = 0.0
            for i in range(3):
                for j in range(3):
                    t += 0.5 * (q[i, j].real ** 2 + q[i, j].imag ** 2)
            determinant = (
                q[0, 0] * (q[1, 1] * q[2, 2] - q[1, 2] * q[2, 1])
                - q[0, 1] * (q[1, 0] * q[2, 2] - q[1, 2] * q[2, 0])
                + q[0, 2] * (q[1, 0] * q[2, 1] - q[1, 1] * q[2, 0])
            )
            f0, f1, f2 = complex(factorials[-1], 0.0), 0j, 0j
            for n in range(factorials.shape[0] - 2, -1, -1):
                f0, f1, f2 = factorials[n] + determinant * f2, f0 - t * f2, f1
            _multiply(q, goal, once)
            _multiply(q, once, twice)
            is_done = True
            for i in range(3):
                for j in range(3):
                    update = f0 * goal[i, j] + f1 * once[i, j] + f2 * twice[i, j]
                    # Not the negation: a NaN is never done.
                    is_done = is_done and abs(update - u[i, j]) <= threshold
                    u[i, j] = update
            if is_done:
                is_solved[link] = True
                break
        for i in range(3):
            for j in range(3):
                links[link, i, j] = u[i, j]


def solve_links(
    target: Tensor, closing: Tensor, limit: int, threshold: float
) -> tuple[Tensor, Tensor]:
    """Return the links that move to ``target``, and which chains converged.

    Args:
        target: U', ``(chains, links, 3, 3)``, on the CPU.
        closing: C, shaped like it.
        limit: largest number of iterations.
        threshold: on the last change of any component.

    Returns:
        U, shaped like ``target``, and ``(chains,)`` bool.
    """
    shape = (-1, 3, 3)
    goal, paths = (
        tensor.detach().resolve_conj().resolve_neg().contiguous().view(shape).numpy()
        for tensor in (target, closing)
    )
    links = np.empty_like(goal)
    is_solved = np.zeros(len(goal), dtype=np.bool_)
    run_slices(
        lambda start, stop: _solve(
            goal, paths, links, start, stop, limit, threshold, is_solved, _INVERSE_FACTORIALS
        ),
        len(goal),
        _LINK_TIME,
    )
    converged = torch.from_numpy(is_solved).view(target.shape[:2]).all(1)
    return torch.from_numpy(links).view(target.shape), converged
