r"""How walkers move through a ladder of replicas.

A ladder helps only as far as configurations travel between its ends.  A *round trip* leads a walker
from one end to the other and back; the share of walkers at replica r that last visited replica 0
falls linearly from 1 to 0 in an ideal ladder, and drops steeply at a bottleneck (H.G. Katzgraber,
S. Trebst, D.A. Huse, M. Troyer, J. Stat. Mech. (2006) P03018).

Walkers are followed from one recorded row to the next: with rows far apart, trips are missed.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erfc

__all__ = ["acceptance_from_work", "positions", "round_trips", "up_fraction"]


def positions(walkers: ArrayLike) -> NDArray[np.int64]:
    """Return at which replica each walker sits, ``(rows, chains, walkers)``.

    Args:
        walkers: ``(rows, chains, replicas)``, which walker sits at replica r.
    """
    return np.argsort(np.asarray(walkers), axis=-1, kind="stable")


def round_trips(walkers: ArrayLike) -> NDArray[np.int64]:
    """Return the number of completed round trips of each walker, ``(chains, walkers)``.

    Args:
        walkers: ``(rows, chains, replicas)``, which walker sits at replica r.
    """
    ends = _last_end(positions(walkers))
    changes = (np.diff(ends, axis=0) != 0) & (ends[:-1] >= 0)
    return changes.sum(axis=0) // 2


def up_fraction(walkers: ArrayLike) -> NDArray[np.float64]:
    """Return the share of visitors of each replica that last were at replica 0, ``(replicas,)``.

    1 at replica 0, 0 at the last; NaN where no walker with a known origin has been.

    Args:
        walkers: ``(rows, chains, replicas)``, which walker sits at replica r.
    """
    walkers = np.asarray(walkers)
    origin = np.take_along_axis(_last_end(positions(walkers)), walkers, axis=-1)
    known = (origin >= 0).sum(axis=(0, 1))
    up = (origin == 0).sum(axis=(0, 1))
    return np.where(known > 0, up / np.maximum(known, 1), np.nan)


def acceptance_from_work(mean_work: float) -> float:
    r"""Return :math:`\mathrm{erfc}(\sqrt{\langle W \rangle} / 2)`, the swap rate of Gaussian works.

    :math:`W = w_F + w_R` with :math:`\langle e^{-W} \rangle = 1` has a variance of twice its mean,
    which is the Jeffreys divergence of the mapped distributions.
    """
    return float(erfc(math.sqrt(max(mean_work, 0.0)) / 2))


def _last_end(position: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return which end each walker visited last: 0, 1 (the other), -1 (none yet)."""
    last = position.max()
    ends = np.where(position == 0, 0, np.where(position == last, 1, -1)).astype(np.int8)
    row = np.arange(len(ends)).reshape(-1, *[1] * (ends.ndim - 1))
    latest = np.maximum.accumulate(np.where(ends >= 0, row, 0), axis=0)
    return np.take_along_axis(ends, latest, axis=0)
