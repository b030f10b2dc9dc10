"""Batches of exact draws, and whether a kernel has left them distributed as they were."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.actions.exact import sample_phi4, sample_wilson_2d
from flowmc.actions.gauge import Wilson
from flowmc.actions.scalar import FreeScalar, HoppingAction
from flowmc.observables import phi2, plaquette, polyakov_loop, susceptibility

__all__ = ["exact_draws", "p_value_of_change", "statistics_of"]


def exact_draws(action: Action, chains: int, rng: torch.Generator) -> Tensor:
    """Return independent draws of a theory that can be drawn exactly.

    The free field; phi^4 and double wells on a few sites; two-dimensional gauge theories.

    Raises:
        ValueError: for others; draw from these yourself.
    """
    if isinstance(action, FreeScalar):
        return action.sample(chains, rng)
    if isinstance(action, HoppingAction):
        return sample_phi4(action, chains, rng)
    if isinstance(action, Wilson):
        return sample_wilson_2d(action, chains, rng)
    raise ValueError(f"there is no exact sampler of {action!r}: give draws of your own")


def statistics_of(action: Action, field: Tensor) -> Tensor:
    """Return numbers that tell distributions of fields apart, ``(chains, statistics)`` float64.

    S; of links the plaquette and all Polyakov loops; of scalars the second moments, the first site
    and the sum; of spins their components at the first site and the sums of these.
    """
    columns = [action(field)]
    if action.is_gauge:
        axis = 0 if action.has_open_time else -1
        columns += [plaquette(field, action), *polyakov_loop(field, action, axis=axis).T]
    elif action.is_scalar:
        flat = field.reshape(len(field), -1)
        columns += [phi2(field, action), susceptibility(field, action), flat[:, 0], flat.sum(1)]
    else:
        angles = not field.is_complex()
        parts = [field.cos(), field.sin()] if angles else [field.real, field.imag]
        spins = torch.stack(parts, -1).reshape(len(field), action.volume, -1)
        columns += [*spins[:, 0].T, *spins.sum(1).T]
    return torch.stack([column.to(torch.float64) for column in columns], 1)


def p_value_of_change(before: Tensor, after: Tensor, fresh: Tensor) -> float:
    """Return a p-value for "the kernel left the distribution as it was".

    Two tests per statistic, combined by Bonferroni: a Kolmogorov-Smirnov rank test of ``after``
    against ``fresh`` (independent samples), and a z-test of the mean change ``after - before`` of
    the statistic and its square, which is blind to the spread common to both.  A correct kernel
    fails a threshold of 1e-6 with a probability below 1e-6, whatever the correlations between the
    statistics.

    Args:
        before: statistics of the exact draws that were the start, ``(draws, statistics)``.
        after: of the same chains after the kernel.
        fresh: of independent exact draws.

    Raises:
        ValueError: no statistic changed at all, or one is not finite.
    """
    from scipy import stats

    p_values = []
    for column in range(before.shape[1]):
        x, y, z = (batch[:, column].double().numpy() for batch in (before, after, fresh))
        if z.std() < 1e-12 * (1 + abs(z.mean())):
            continue  # a constant of the theory up to rounding, such as Im tr in SU(2)
        if len(np.unique(z)) > 20:
            p_values.append(stats.ks_2samp(y, z).pvalue)
        for power in (1, 2):
            change = y**power - x**power
            spread = change.std()
            if spread == 0:
                continue
            # Over a thousand draws: the mean is normal to the tails used here.
            score = abs(change.mean()) / (spread / len(change) ** 0.5)
            p_values.append(2 * stats.norm.sf(score))
    if not p_values or not np.isfinite(p_values).all():
        raise ValueError("no statistic changed at all, or one is not finite")
    return float(min(1.0, len(p_values) * min(p_values)))
