r"""Native integration of the continuous flow of scalar fields, chain by chain, with its gradient.

The velocity is a sum over source sites y of functions of one number,

.. math:: v_x = \sum_y G_{o(x-y)}(\phi_y; t), \qquad \mathrm{div}\, v = \sum_x G_0'(\phi_x; t),

one odd function per orbit o of offsets and time.  They come as tables of value, slope and curvature
on an even grid of :math:`|\phi|`, and between two points of it the quintic polynomial that matches
these six numbers stands for the function: twice continuously differentiable, so that a divergence
has a gradient, and with an error of :math:`(\omega h)^6 / 46080` for :math:`\sin \omega\phi` and
points h apart.  A site costs six products per function instead of a sine and twenty products per
frequency.

Velocities are collected axis by axis: first over the offset along axis 0, with the folded offset
along axis 1 kept, then over that one.  Tables have a column for every pair of folded offsets, in
this order, though several are of one orbit: the products are cheap, and gathering them is not.
"""

# numba calls intrinsics without their first parameter and types kernels itself.
# mypy: disable-error-code="call-arg, no-untyped-def, var-annotated"

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numba import njit
from torch import Tensor

from flowmc.native.compiled import compiled
from flowmc.native.lanes import fma, lane_width, lanes, load, splat, store, traced
from flowmc.native.schedule import run_slices

__all__ = ["KernelPlan", "map_back", "map_fields", "row_length"]

# Chains whose gradients are added up by themselves; fixed, as sums must not depend on threads.
_GROUPS = 4
# Partial sums of gradients of tables larger than this are not kept per group.
_LARGEST_SUMS = 2**30


@dataclass(frozen=True)
class KernelPlan:
    """An integration over ``steps`` steps on a lattice of two axes.

    Attributes:
        reach: largest folded offsets R of the velocity along both axes, L // 2 at most.
        spacing: h of the tables.
        nodes: ``(steps, stages)`` which table a stage uses.
        stages: ``(stages, stages)`` Butcher matrix.
        weights: ``(stages,)``.
        step: step size, of either sign.
    """

    reach: tuple[int, int]
    spacing: float
    nodes: np.ndarray
    stages: np.ndarray
    weights: np.ndarray
    step: float


_inlined = njit(inline="always")


@_inlined
def _values(u):
    """Return the quintic Hermite basis: value, slope, curvature at 0, then at 1."""
    u3 = u * u * u
    h3 = u3 * (10 + u * (6 * u - 15))
    h4 = u3 * (u * (7 - 3 * u) - 4)
    h5 = u3 * (0.5 + u * (0.5 * u - 1))
    h1 = u + u3 * (u * (8 - 3 * u) - 6)
    h2 = 0.5 * u * u + u3 * (u * (1.5 - 0.5 * u) - 1.5)
    return 1 - h3, h1, h2, h3, h4, h5


@_inlined
def _slopes(u):
    u2 = u * u
    d3 = 30 * u2 * (1 + u * (u - 2))
    d1 = 1 + u2 * (u * (32 - 15 * u) - 18)
    d2 = u + u2 * (u * (6 - 2.5 * u) - 4.5)
    d4 = u2 * (u * (28 - 15 * u) - 12)
    d5 = u2 * (1.5 + u * (2.5 * u - 4))
    return -d3, d1, d2, d3, d4, d5


@_inlined
def _curvatures(u):
    c3 = 60 * u * (1 + u * (2 * u - 3))
    c1 = u * (u * (96 - 60 * u) - 36)
    c2 = 1 + u * (u * (18 - 10 * u) - 9)
    c4 = u * (u * (84 - 60 * u) - 24)
    c5 = u * (3 + u * (10 * u - 12))
    return -c3, c1, c2, c3, c4, c5


@traced
def _add(a, b):
    return [a[0] + b[0]]


@traced
def _multiply_add(a, b, c):
    return [fma(a[0], b[0], c[0])]


@traced
def _interpolate(w0, w1, w2, w3, w4, w5, t0, t1, t2, t3, t4, t5):
    """Return the sum of six products."""
    total = w0[0] * t0[0]
    for w, t in ((w1, t1), (w2, t2), (w3, t3), (w4, t4), (w5, t5)):
        total = fma(w[0], t[0], total)
    return [total]


@_inlined
def _six(array, w):
    """Return six numbers, each in all lanes of the dtype of ``array``."""
    return (
        splat(array, w[0], 1),
        splat(array, w[1], 1),
        splat(array, w[2], 1),
        splat(array, w[3], 1),
        splat(array, w[4], 1),
        splat(array, w[5], 1),
    )


@_inlined
def _signed(sign, w):
    return sign * w[0], sign * w[1], sign * w[2], sign * w[3], sign * w[4], sign * w[5]


@_inlined
def _at(w, table, below, tile, n):
    """Interpolate one vector of functions between two points of a table."""
    return _interpolate(
        w[0],
        w[1],
        w[2],
        w[3],
        w[4],
        w[5],
        load(table, below + tile, 1),
        load(table, below + n + tile, 1),
        load(table, below + 2 * n + tile, 1),
        load(table, below + 3 * n + tile, 1),
        load(table, below + 4 * n + tile, 1),
        load(table, below + 5 * n + tile, 1),
    )


@_inlined
def _first(w, table, below, n):
    """Interpolate the first function between two points of a table, in float64."""
    return (
        w[0] * table[below]
        + w[1] * table[below + n]
        + w[2] * table[below + 2 * n]
        + w[3] * table[below + 3 * n]
        + w[4] * table[below + 4 * n]
        + w[5] * table[below + 5 * n]
    )


@compiled
def _velocity(phi, table, base, shape, inverse, offsets_0, offsets_1, scratch, velocity):
    """Write v of one field; return div v, NaN if a site is outside the table."""
    (rows, columns), (points, n, width), (quadrant, spread) = phi.shape, shape, scratch
    step = lanes(quadrant)
    spread[:] = 0
    divergence = 0.0
    for y in range(rows):
        for z in range(columns):
            position = abs(float(phi[y, z])) * inverse
            if not position < points - 1:
                return np.nan
            cell = int(position)
            u = position - cell
            below = base + cell * 3 * n
            w = _six(quadrant, _signed(1.0 if phi[y, z] >= 0 else -1.0, _values(u)))
            for tile in range(0, n, step):
                store(quadrant, tile, _at(w, table, below, tile, n))
            divergence += _first(_slopes(u), table, below, n)
            for index in range(offsets_0.shape[1]):
                to = (offsets_0[y, index, 0] * columns + z) * width
                source = offsets_0[y, index, 1] * width
                for tile in range(0, width, step):
                    total = _add(load(spread, to + tile, 1), load(quadrant, source + tile, 1))
                    store(spread, to + tile, total)
    for x in range(rows):
        for y in range(columns):
            velocity[x, y] = 0
        for z in range(columns):
            source = (x * columns + z) * width
            for index in range(offsets_1.shape[1]):
                velocity[x, offsets_1[z, index, 0]] += spread[source + offsets_1[z, index, 1]]
    return divergence * inverse


@compiled
def _product(
    phi, table, base, shape, inverse, offsets_0, offsets_1, gradient_v, gradient_div, scratch,
    gradient, sums,
):  # fmt: skip
    """Write the gradient with respect to phi, and add that with respect to the table to ``sums``.

    ``sums`` is empty if the latter is not asked for.
    """
    (rows, columns), (_, n, width), (quadrant, spread) = phi.shape, shape, scratch
    step = lanes(quadrant)
    learns = len(sums) > 0
    spread[:] = 0
    for x in range(rows):
        for z in range(columns):
            to = (x * columns + z) * width
            for index in range(offsets_1.shape[1]):
                spread[to + offsets_1[z, index, 1]] += gradient_v[x, offsets_1[z, index, 0]]
    for y in range(rows):
        for z in range(columns):
            quadrant[:] = 0
            for index in range(offsets_0.shape[1]):
                source = (offsets_0[y, index, 0] * columns + z) * width
                to = offsets_0[y, index, 1] * width
                for tile in range(0, width, step):
                    total = _add(load(quadrant, to + tile, 1), load(spread, source + tile, 1))
                    store(quadrant, to + tile, total)
            position = abs(float(phi[y, z])) * inverse
            cell = int(position)
            u = position - cell
            sign = 1.0 if phi[y, z] >= 0 else -1.0
            below = base + cell * 3 * n
            slopes = _slopes(u)
            d = _six(quadrant, slopes)
            slope = splat(quadrant, 0.0, 1)
            for tile in range(0, n, step):
                at = _at(d, table, below, tile, n)
                slope = _multiply_add(load(quadrant, tile, 1), at, slope)
            store(quadrant, n, slope)
            total_slope = 0.0
            for lane in range(step):
                total_slope += quadrant[n + lane]
            curvature = _first(_curvatures(u), table, below, n)
            gradient[y, z] = (total_slope + sign * gradient_div * curvature * inverse) * inverse
            if learns:
                w = _six(quadrant, _signed(sign, _values(u)))
                for tile in range(0, n, step):
                    value, to = load(quadrant, tile, 1), below + tile
                    store(sums, to, _multiply_add(w[0], value, load(sums, to, 1)))
                    to += n
                    store(sums, to, _multiply_add(w[1], value, load(sums, to, 1)))
                    to += n
                    store(sums, to, _multiply_add(w[2], value, load(sums, to, 1)))
                    to += n
                    store(sums, to, _multiply_add(w[3], value, load(sums, to, 1)))
                    to += n
                    store(sums, to, _multiply_add(w[4], value, load(sums, to, 1)))
                    to += n
                    store(sums, to, _multiply_add(w[5], value, load(sums, to, 1)))
                scale = gradient_div * inverse
                for k in range(6):
                    sums[below + k * n] += scale * slopes[k]


@compiled
def _scratch(fields, shape):
    """Return memory for one quadrant of offsets and one vector more, and for all sources."""
    (_, rows, columns), (_, n, width) = fields.shape, shape
    dtype = fields.dtype
    return (
        np.zeros(n + lanes(fields), dtype),
        np.zeros(rows * columns * width, dtype),
    )


@compiled
def _move(target, source, scale):
    rows, columns = target.shape
    for x in range(rows):
        for y in range(columns):
            target[x, y] += scale * source[x, y]


@compiled
def _stage(stage, start, slopes, matrix, step, i):
    """Write where the slopes before number i lead."""
    stage[:] = start
    for j in range(i):
        if matrix[i, j] != 0:
            _move(stage, slopes[j], matrix[i, j] * step)


@compiled
def _forward(
    fields, forces, table, shape, inverse, offsets_0, offsets_1, nodes, matrix, weights, step,
    start, stop, totals, stages,
):  # fmt: skip
    """Integrate the chains ``start`` to ``stop`` in place.

    ``forces`` and ``stages`` may have no rows.
    """
    _, rows, columns = fields.shape
    count, steps = len(weights), len(nodes)
    scratch = _scratch(fields, shape)
    stage = np.empty((rows, columns), fields.dtype)
    slopes = np.empty((count, rows, columns), fields.dtype)
    # -dF/dt, which takes the stages of the field's own method.
    pushed = np.empty_like(stage)
    products = np.empty_like(slopes)
    none = np.empty(0, fields.dtype)
    size = shape[0] * 3 * shape[1]
    for chain in range(start, stop):
        field = fields[chain]
        total = 0.0
        for index in range(steps):
            for i in range(count):
                _stage(stage, field, slopes, matrix, step, i)
                if len(stages):
                    stages[chain, index, i] = stage
                total += (weights[i] * step) * _velocity(
                    stage, table, nodes[index, i] * size, shape, inverse, offsets_0, offsets_1,
                    scratch, slopes[i],
                )  # fmt: skip
                if not np.isfinite(total):
                    break
                if len(forces):
                    _stage(pushed, forces[chain], products, matrix, -step, i)
                    _product(
                        stage, table, nodes[index, i] * size, shape, inverse, offsets_0,
                        offsets_1, pushed, -1.0, scratch, products[i], none,
                    )  # fmt: skip
            if not np.isfinite(total):
                break
            for i in range(count):
                if weights[i] != 0:
                    _move(field, slopes[i], weights[i] * step)
                    if len(forces):
                        _move(forces[chain], products[i], -weights[i] * step)
        totals[chain] = total


@compiled
def _backward(
    gradients, gradient_totals, stages, table, shape, inverse, offsets_0, offsets_1, nodes, matrix,
    weights, step, start, stop, sums,
):  # fmt: skip
    """Turn gradients with respect to the final fields into those of the initial ones."""
    _, rows, columns = gradients.shape
    count, steps = len(weights), len(nodes)
    scratch = _scratch(gradients, shape)
    slope = np.empty((rows, columns), gradients.dtype)
    own = np.empty((count, rows, columns), gradients.dtype)
    size = shape[0] * 3 * shape[1]
    for chain in range(start, stop):
        gradient = gradients[chain]
        for index in range(steps - 1, -1, -1):
            for i in range(count - 1, -1, -1):
                slope[:] = 0
                _move(slope, gradient, weights[i] * step)
                for later in range(i + 1, count):
                    if matrix[later, i] != 0:
                        _move(slope, own[later], matrix[later, i] * step)
                _product(
                    stages[chain, index, i], table, nodes[index, i] * size, shape, inverse,
                    offsets_0, offsets_1, slope, gradient_totals[chain] * (weights[i] * step),
                    scratch, own[i], sums,
                )  # fmt: skip
            for i in range(count):
                _move(gradient, own[i], 1.0)


def map_fields(
    fields: Tensor, tables: Tensor, plan: KernelPlan, keep: bool, force: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor, Tensor | None] | None:
    r"""Return the fields after the integration, the integral of div v, all stages, and the force.

    With :math:`F = -\partial \ln q` of the density q that moves along, which solves

    .. math:: \frac{dF}{dt} = -\frac{\partial v}{\partial\phi}^T F + \partial\, \mathrm{div}\, v .

    Args:
        fields: ``(chains, *L)`` with two axes.
        tables: ``(nodes, points, 3, n)``: value, h times the slope, h^2 times the curvature at 0,
            h, 2 h, ... of the functions of all folded offsets, ``n = (R_0 + 1) * row_length``.
        plan: of the integration.
        keep: whether the stages are wanted; they are empty otherwise.
        force: F before the integration, if that after it is wanted; like ``fields``.

    Returns:
        ``(chains, *L)``, float64 ``(chains,)``, ``(chains, steps, stages, *L)``, ``(chains, *L)``;
        None if a field leaves the tables, or is not finite.
    """
    y = fields.detach().clone(memory_format=torch.contiguous_format)
    totals = torch.empty(y.shape[0], dtype=torch.float64)
    count = y.shape[0] if keep else 0
    stages = y.new_empty(count, *plan.nodes.shape, *y.shape[1:])
    if force is None:
        pushed = y.new_empty(0, *y.shape[1:])
    else:
        pushed = force.detach().to(y.dtype).clone(memory_format=torch.contiguous_format)
    arrays = y.numpy(), pushed.numpy(), *_constants(tables, plan, y)
    results = totals.numpy(), stages.numpy()
    run_slices(
        lambda start, stop: _forward(*arrays, start, stop, *results),
        y.shape[0],
        _nanoseconds(tables, plan, y) * (1 if force is None else 3),
    )
    if not bool(torch.isfinite(totals).all()):
        return None
    return y, totals, stages, None if force is None else pushed


def map_back(
    gradients: Tensor,
    gradient_totals: Tensor,
    stages: Tensor,
    tables: Tensor,
    plan: KernelPlan,
    learns: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return the gradients with respect to the initial fields and, if wanted, to the tables.

    Args:
        gradients: with respect to the final fields, ``(chains, *L)``.
        gradient_totals: with respect to the integrals of div v, ``(chains,)``.
        stages, tables, plan: of :func:`map_fields`.
        learns: whether the gradient with respect to the tables is wanted.
    """
    gradient = gradients.detach().clone(memory_format=torch.contiguous_format)
    outer = gradient_totals.detach().to(torch.float64).contiguous().numpy()
    chains = gradient.shape[0]
    groups = _GROUPS if tables.nbytes * _GROUPS <= _LARGEST_SUMS else 1
    sums = tables.new_zeros((groups if learns else 0, tables.numel()))
    arrays = gradient.numpy(), outer, stages.numpy(), *_constants(tables, plan, gradient)
    none = tables.new_zeros(0).numpy()

    def work(first: int, last: int) -> None:
        for group in range(first, last):
            start, stop = group * chains // groups, (group + 1) * chains // groups
            _backward(*arrays, start, stop, sums[group].numpy() if learns else none)

    run_slices(work, groups, 2 * _nanoseconds(tables, plan, gradient) * chains / groups)
    return gradient, sums.sum(0).view(tables.shape) if learns else None


def row_length(reach: int, dtype: torch.dtype) -> int:
    """Return how many columns of a table the folded offsets 0 ... ``reach`` of axis 1 take."""
    lanes = lane_width(dtype.itemsize)
    return -(-(reach + 1) // lanes) * lanes


def _constants(tables: Tensor, plan: KernelPlan, like: Tensor) -> tuple:
    rows, columns = like.shape[1:]
    _, points, _, n = tables.shape
    return (
        tables.detach().contiguous().view(-1).numpy(),
        (points, n, row_length(plan.reach[1], like.dtype)),
        1 / plan.spacing,
        _offsets(rows, plan.reach[0]),
        _offsets(columns, plan.reach[1]),
        plan.nodes,
        plan.stages,
        plan.weights,
        plan.step,
    )


def _offsets(extent: int, farthest: int) -> np.ndarray:
    """Return the sites within reach of every site and their folded offsets, ``(extent, n, 2)``."""
    offset = np.arange(extent)
    folded = np.minimum(offset, extent - offset)
    offset, folded = offset[folded <= farthest], folded[folded <= farthest]
    sites = (np.arange(extent)[:, None] + offset) % extent
    return np.stack(np.broadcast_arrays(sites, folded), 2)


def _nanoseconds(tables: Tensor, plan: KernelPlan, like: Tensor) -> float:
    """Return about what a chain takes; it only decides when a thread pays."""
    return plan.nodes.size * like[0].numel() * (50 + 1.5 * tables.shape[3])
