"""Tests against exact distributions, with a stated false-alarm rate.

`p_value_of_change` answers: can these two batches of independent draws come from one distribution?
It combines rank and moment tests by Bonferroni, so that a correct kernel fails a threshold of
1e-6 with probability below 1e-6 whatever the correlations between the statistics.  The whole
suite makes fewer than 100 such tests: below 1e-4 in total.
"""

from __future__ import annotations

import numpy as np
import torch
from scipy import stats
from torch import Tensor

THRESHOLD = 1e-6


def p_value_of_change(before: Tensor, after: Tensor, fresh: Tensor) -> float:
    """Return a p-value for "the kernel left the distribution as it was".

    Args:
        before: statistics of the exact draws that were the start, ``(draws, statistics)``.
        after: of the same chains after the kernel.
        fresh: of independent exact draws.

    Two tests per statistic: a Kolmogorov-Smirnov rank test of `after` against `fresh`
    (independent samples), and a z-test of the mean change `after - before` of the statistic and
    its square, which is blind to the spread common to both.
    """
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
    assert p_values, "no statistic changed at all: the kernel did nothing"
    assert np.isfinite(p_values).all()
    return float(min(1.0, len(p_values) * min(p_values)))


def assert_mean(values: Tensor, exact: float, sigmas: float = 5.5) -> None:
    """Assert that independent draws have the exact mean; 5.5 sigma is a false alarm of 4e-8."""
    error = float(values.double().std() / len(values) ** 0.5)
    deviation = abs(float(values.double().mean()) - exact)
    assert deviation < sigmas * error, f"off by {deviation / error:.1f} sigma"


def single_threaded() -> None:
    """Small tensors: threads cost more than they bring, and results stay comparable."""
    torch.set_num_threads(1)
