r"""Exact independent draws from theories that can be solved, to hold Markov kernels against.

A kernel that leaves its target invariant must leave a batch of exact draws distributed as it was;
these samplers make that test sharp.  (The free field has
:meth:`~flowmc.actions.scalar.FreeScalar.sample`.)
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from flowmc.actions.defect import DefectWilson
from flowmc.actions.gauge import Wilson
from flowmc.actions.scalar import FreeScalar, HoppingAction
from flowmc.groups import SUN, Group
from flowmc.lattice import sum_over_sites

__all__ = ["sample_phi4", "sample_wilson_2d"]


def sample_wilson_2d(action: Wilson, chains: int, rng: torch.Generator) -> Tensor:
    r"""Draw links of two-dimensional pure gauge theory on the torus, exactly.

    In a gauge where the links along a maximal tree are 1, every plaquette but one can be chosen
    freely, together with the holonomies A, B of the two cycles; these variables are related to the
    remaining links by translations, under which the Haar measure is invariant.  So the V - 1
    plaquettes are drawn from :math:`e^{(\beta w/N) \mathrm{Re\,tr} P}`, A and B from Haar, and the
    draw is kept with probability :math:`e^{(\beta w/N)(\mathrm{Re\,tr} P_V - N)}` for the last
    plaquette, which is then determined.  A random gauge transformation restores the full measure.
    The weights w are those of a defect, else 1.

    Args:
        action: the Wilson action in two dimensions, with or without a defect, beta >= 0.
        chains: number of draws.
        rng: random stream.

    Returns:
        Links ``(chains, 2, L_0, L_1[, N, N])`` in float64 (complex128).
    """
    if action.dimensions != 2 or action.beta < 0:
        raise ValueError("exact gauge draws need two dimensions and beta >= 0")
    group = action.group
    betas = torch.full(action.lattice, action.beta, dtype=torch.float64)
    if isinstance(action, DefectWilson):
        betas = betas * action.plaquette_weights()[0]

    def attempt(count: int) -> tuple[Tensor, Tensor]:
        free = _single_plaquettes(group, betas, count, rng)
        links, last = _links_from_plaquettes(group, free, rng)
        return links, _log_weight(group, float(betas[-1, -1]), last)

    return _random_gauge(group, _reject(attempt, chains, rng), rng)


def sample_phi4(action: HoppingAction, chains: int, rng: torch.Generator) -> Tensor:
    r"""Draw fields of phi^4 or a double well on a few sites by rejection from a free field.

    With the same hopping term and the free mass term :math:`c\,\phi^2` in place of
    :math:`a\,\phi^2 + \lambda\phi^4`, the ratio of densities per site is
    :math:`e^{(c-a)\phi^2 - \lambda\phi^4} \le e^{(c-a)^2 / 4\lambda}`.  The acceptance falls
    exponentially with the volume: for V <= 8 or so.

    Args:
        action: needs lambda > 0 and a positive hopping parameter.
        chains: number of draws.
        rng: random stream.
    """
    if action.quartic <= 0 or action.k <= 0:
        raise ValueError("exact phi4 draws need lambda > 0 and a positive hopping term")
    # S_free = k [sum (d phi)^2 + m2 phi^2] has the hopping term 2k and c = k (2d + m2).
    m2 = max(0.25, 0.4 * action.quartic**0.5)
    free = FreeScalar(action.lattice, m2=m2)
    excess = action.k * (2 * action.dimensions + m2) - action.a
    bound = excess**2 / (4 * action.quartic) if excess > 0 else 0.0

    def attempt(count: int) -> tuple[Tensor, Tensor]:
        field = free.sample(count, rng) / action.k**0.5
        square = field.square()
        density = excess * square - action.quartic * square.square() - bound
        return field, sum_over_sites(density)

    return _reject(attempt, chains, rng)


def _reject(
    attempt: Callable[[int], tuple[Tensor, Tensor]], chains: int, rng: torch.Generator
) -> Tensor:
    """Collect ``chains`` draws, each attempt kept with probability exp(log weight) <= 1."""
    kept: list[Tensor] = []
    have, size = 0, chains
    while have < chains:
        draws, log_weight = attempt(size)
        uniform = torch.rand(size, dtype=torch.float64, device=rng.device, generator=rng)
        accepted = draws[uniform.log() < log_weight]
        kept.append(accepted)
        have += accepted.shape[0]
        size = max(64, min(2_000_000, 2 * (chains - have) * size // max(1, accepted.shape[0])))
    return torch.cat(kept)[:chains]


def _log_weight(group: Group, beta: float, plaquette: Tensor) -> Tensor:
    """Return (beta/N) (Re tr P - N) <= 0."""
    if isinstance(group, SUN):
        trace = torch.diagonal(plaquette, dim1=-2, dim2=-1).sum(-1).real
        return beta * (trace / group.n - 1)
    return beta * (torch.cos(plaquette) - 1)


def _single_plaquettes(group: Group, betas: Tensor, count: int, rng: torch.Generator) -> Tensor:
    """Draw independent plaquettes ``(count, *L, *element)`` with a coupling per site."""
    dtype = group.field_dtype(torch.float64)
    shape = (count, *betas.shape, *group.element_shape)
    result = torch.empty(shape, dtype=dtype, device=rng.device)
    for beta in betas.unique().tolist():

        def attempt(size: int, beta: float = beta) -> tuple[Tensor, Tensor]:
            draws = group.haar((size,), dtype, rng)
            return draws, _log_weight(group, beta, draws)

        where = betas == beta
        sites = int(where.sum())
        drawn = _reject(attempt, count * sites, rng)
        result[:, where] = drawn.reshape(count, sites, *group.element_shape)
    return result


def _links_from_plaquettes(
    group: Group, free: Tensor, rng: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Return links in a tree gauge with the given plaquettes, and the plaquette that closes."""
    times, dagger = group.compose, group.inverse
    count, l0, l1 = free.shape[:3]
    links = group.identity((count, 2, l0, l1), free.dtype, free.device)
    cycles = group.haar((2, count), free.dtype, rng)
    links[:, 0, l0 - 1, 0] = cycles[0]
    # Rows of plaquettes P(x, y) = U_0(x, y) U_0(x, y+1)^dagger fix the next row of links.
    for y in range(l1 - 1):
        links[:, 0, :, y + 1] = times(dagger(free[:, :, y]), links[:, 0, :, y])
    links[:, 1, 0, l1 - 1] = cycles[1]
    row, bottom = links[:, 0, :, l1 - 1], links[:, 0, :, 0]
    for x in range(l0 - 1):
        side = times(times(free[:, x, l1 - 1], links[:, 1, x, l1 - 1]), bottom[:, x])
        links[:, 1, x + 1, l1 - 1] = times(dagger(row[:, x]), side)
    closing = times(
        times(row[:, l0 - 1], links[:, 1, 0, l1 - 1]),
        dagger(times(links[:, 1, l0 - 1, l1 - 1], bottom[:, l0 - 1])),
    )
    return links, closing


def _random_gauge(group: Group, links: Tensor, rng: torch.Generator) -> Tensor:
    """Apply U_mu(x) -> g(x) U_mu(x) g(x + mu)^dagger with Haar g."""
    times, dagger = group.compose, group.inverse
    rotation = group.haar((links.shape[0], *links.shape[2:4]), links.dtype, rng)
    moved = [
        times(times(rotation, links[:, mu]), dagger(torch.roll(rotation, -1, dims=1 + mu)))
        for mu in range(2)
    ]
    return group.project(torch.stack(moved, 1))
