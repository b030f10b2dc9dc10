"""Matrix products that round alike for any number of threads.

A library splits one large product among its threads, and the edges of the parts are computed by
other instructions; a batch with at least as many members as there are threads is given out member
by member, and each comes out as it would alone.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

__all__ = ["contract", "divisor", "multiply"]

# Members that a batch should have at least: more than a rank has threads.
_MEMBERS = 64


@functools.cache
def divisor(count: int, at_least: int = _MEMBERS) -> int:
    """Return the smallest divisor of ``count`` that is not below ``at_least``, or ``count``."""
    for number in range(max(1, at_least), count):
        if count % number == 0:
            return number
    return count


def multiply(matrix: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return ``matrix @ columns[b] + bias`` for every member b, ``(members, m, n)``.

    Args:
        matrix: ``(m, k)``.
        columns: ``(members, k, n)``.
        bias: ``(m,)``, added to every column.
    """
    members, inner, width = columns.shape
    parts = 1
    if members < _MEMBERS and columns.device.type == "cpu":
        parts = divisor(width, -(-_MEMBERS // members))
    if parts > 1:
        columns = columns.reshape(members, inner, parts, -1).transpose(1, 2)
        columns = columns.reshape(members * parts, inner, -1)
    matrices = matrix.expand(members * parts, *matrix.shape)
    if bias is None:
        product = torch.bmm(matrices, columns)
    else:
        product = torch.baddbmm(bias[None, :, None], matrices, columns)
    if parts > 1:
        product = product.view(members, parts, len(matrix), -1).transpose(1, 2)
        product = product.reshape(members, len(matrix), width)
    return product


def contract(rows: Tensor, matrix: Tensor) -> Tensor:
    """Return ``rows @ matrix``, ``(r, n)``, for few rows ``(r, k)`` and a small ``(k, n)``."""
    return (rows.unsqueeze(2) * matrix).sum(1)
