r"""Tables of the functions of one site that make up the velocity of the continuous flow.

The velocity is :math:`v_x = \sum_y G_{o(x-y)}(\phi_y; t)` with one function per orbit of offsets,

.. math:: G_o(\phi; t) = \sum_f \kappa_{o,f}(t) \Big[ C_{f0}\, \phi
          + \sum_g C_{fg} \sin(\omega_g \phi) \Big] .

The native kernels (:mod:`flowmc.native.continuous`) interpolate them.  Tables are built by torch
operations, so that gradients with respect to them go on to all weights.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from flowmc.flows.parts.products import multiply
from flowmc.flows.parts.runge_kutta import Tableau
from flowmc.native.continuous import KernelPlan, map_back, map_fields, row_length

__all__ = ["TabulatedMap", "build_tables", "make_plan", "spacing_for", "tables_shape"]

# In float32 the error of the interpolation, (omega h)^6 / 46080, is that of rounding.
_PHASE_PER_POINT = 0.4


def spacing_for(largest_frequency: float) -> float:
    """Return a power of two h that resolves all frequencies up to this one in float32."""
    return 2.0 ** math.floor(math.log2(_PHASE_PER_POINT / max(largest_frequency, 0.1)))


def make_plan(
    tableau: Tableau, steps: int, step: float, orbit: Tensor, spacing: float
) -> tuple[KernelPlan, Tensor]:
    """Return how to integrate, and the times of the tables in units of the step, ``(nodes,)``.

    The end of a step is the beginning of the next, and needs no table of its own.

    Args:
        tableau: the method.
        steps: number of steps.
        step: their size, of either sign.
        orbit: of the folded offsets within reach, ``(R_0 + 1, R_1 + 1)``.
        spacing: of the tables.
    """
    times = np.arange(steps)[:, None] + np.asarray(tableau.nodes)
    distinct, index = np.unique(times, return_inverse=True)
    matrix = np.zeros((len(tableau.nodes),) * 2)
    for row, entries in enumerate(tableau.stages):
        matrix[row, : len(entries)] = entries
    plan = KernelPlan(
        reach=(orbit.shape[0] - 1, orbit.shape[1] - 1),
        spacing=spacing,
        nodes=index.reshape(times.shape).astype(np.int64),
        stages=matrix,
        weights=np.asarray(tableau.weights),
        step=step,
    )
    return plan, torch.from_numpy(distinct)


def tables_shape(
    nodes: int, orbit: Tensor, dtype: torch.dtype, spacing: float, largest: float
) -> tuple[int, int, int, int]:
    """Return the shape of :func:`build_tables`, ``(nodes, points, 3, n)``."""
    columns = orbit.shape[0] * row_length(orbit.shape[1] - 1, dtype)
    return nodes, round(largest / spacing) + 1, 3, columns


def build_tables(
    frequencies: Tensor,
    mixing: Tensor,
    kernels: Tensor,
    orbit: Tensor,
    spacing: float,
    largest: float,
) -> Tensor:
    """Return value, h times slope and h^2 times curvature of all G_o at 0, h, 2 h ... ``largest``.

    Args:
        frequencies: omega, ``(g,)``.
        mixing: C, ``(f, 1 + g)``, the linear feature first.
        kernels: kappa, ``(nodes, orbits, f)``.
        orbit: of the folded offsets within reach, ``(R_0 + 1, R_1 + 1)``.
        spacing: h.
        largest: the last point, a multiple of h.

    Returns:
        ``(nodes, points, 3, n)`` with a column for every folded offset, in rows of the length that
        the native kernels ask for; what is beyond the reach is zero.
    """
    shape = tables_shape(len(kernels), orbit, kernels.dtype, spacing, largest)
    phi = spacing * torch.arange(shape[1], dtype=torch.float64, device=kernels.device)
    slope = frequencies.to(torch.float64) * spacing
    phase = torch.outer(phi, frequencies.to(torch.float64))
    sine, cosine = phase.sin(), phase.cos()
    linear = torch.stack([phi, torch.full_like(phi, spacing), torch.zeros_like(phi)], 1)
    features = torch.stack([sine, slope * cosine, -slope.square() * sine], 1)
    features = torch.cat([linear.unsqueeze(2), features], 2).to(kernels.dtype)
    # One orbit more, which is nothing: that of the columns that fill up a row.
    nothing = kernels.shape[1]
    kernels = torch.nn.functional.pad(kernels, (0, 0, 0, 1))
    filling = shape[3] // orbit.shape[0] - orbit.shape[1]
    columns = torch.nn.functional.pad(orbit, (0, filling), value=nothing)
    kernels = kernels.index_select(1, columns.flatten())
    mixed = multiply(mixing, features.flatten(0, 1).t().unsqueeze(0)).squeeze(0).t()
    tables = multiply(mixed, kernels.transpose(1, 2))
    return tables.view(shape)


class TabulatedMap(torch.autograd.Function):
    """``(fields, force, tables, plan) -> (fields, integral of div v, force)``.

    Differentiable once, but for the force, which may be None.

    Raises:
        OverflowError: if a field leaves the tables, or is not finite.
    """

    @staticmethod
    def forward(
        ctx, fields: Tensor, force: Tensor | None, tables: Tensor, plan: KernelPlan, keep: bool
    ):
        found = map_fields(fields, tables, plan, keep, force)
        if found is None:
            raise OverflowError
        y, totals, stages, pushed = found
        ctx.plan = plan
        ctx.save_for_backward(tables, stages)
        if pushed is not None:
            ctx.mark_non_differentiable(pushed)
        return y, totals, pushed

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient_y, gradient_total, _):
        tables, stages = ctx.saved_tensors
        learns = ctx.needs_input_grad[2]
        gradient, gradient_tables = map_back(
            gradient_y, gradient_total, stages, tables, ctx.plan, learns
        )
        return gradient, None, gradient_tables, None, None
