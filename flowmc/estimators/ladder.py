r"""How walkers move through a ladder of replicas.

A ladder helps only as far as configurations travel between its ends.  A *round trip* leads a walker
from one end to the other and back; the share of walkers at replica r that last visited replica 0
falls linearly from 1 to 0 in an ideal ladder, and drops steeply at a bottleneck (H.G. Katzgraber,
S. Trebst, D.A. Huse, M. Troyer, J. Stat. Mech. (2006) P03018).

Walkers are followed from one recorded row to the next: with rows far apart, trips are missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import PchipInterpolator
from scipy.special import erfc, erfinv

__all__ = ["acceptance_from_work", "equalised", "positions", "round_trips", "up_fraction"]

# A rejection rate this close to 1 is as good as 1: a few hundred tries tell no more.
MAXIMAL_REJECTION = 1 - 1e-3
# Share of the mean distance that a pair has at least, however seldom it rejected.
DISTANCE_FLOOR = 0.05


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


def equalised(couplings: Sequence[float], rejection: Sequence[float]) -> list[float]:
    r"""Return couplings between the same ends for which all pairs reject about equally often.

    Equal rejection rates maximise the rate of round trips (S. Syed, A. Bouchard-Cote,
    G. Deligiannidis, A. Doucet, J. R. Stat. Soc. B 84 (2022) 321, arXiv:1905.02939, section 5).
    As there, a barrier that adds up along the ladder is interpolated monotonically as a function
    of the coupling and cut into equal pieces.  Rejection rates add up only while they are small;
    here a pair has the length :math:`d = \mathrm{erf}^{-1}(r)`, which agrees with
    :math:`\tfrac{\sqrt\pi}{2} r` there and stays proportional to the distance of two Gaussian
    replicas, whose rejection rate is :math:`\mathrm{erf}(d)`.  At a fixed point all rates are
    equal whatever the distributions; elsewhere a few repetitions with new rates lead to it.

    Rates may be 0 or 1: a pair counts as at least 5 per cent of the mean length, so that none grows
    beyond proportion because nothing was rejected by chance.

    Args:
        couplings: ``(replicas,)``, strictly monotone.
        rejection: ``(replicas - 1,)``, share of rejected exchanges of each neighbouring pair.

    Returns:
        ``(replicas,)``, strictly monotone in the same sense; the first and last are unchanged.

    Raises:
        ValueError: for other lengths, couplings that are not strictly monotone, or rates that are
            not between 0 and 1.
    """
    old = np.asarray(couplings, dtype=np.float64)
    rates = np.asarray(rejection, dtype=np.float64)
    if old.ndim != 1 or rates.shape != (max(old.size - 1, 0),) or old.size < 2:
        raise ValueError(
            "a ladder has at least two couplings and one rejection rate per neighbouring pair, "
            f"got the shapes {old.shape} and {rates.shape}"
        )
    steps = np.diff(old)
    if not (np.isfinite(old).all() and ((steps > 0).all() or (steps < 0).all())):
        raise ValueError(
            f"the couplings of a ladder must rise or fall from one replica to the next, "
            f"not {old.tolist()}"
        )
    if not ((rates >= 0) & (rates <= 1)).all():
        raise ValueError(f"rejection rates lie between 0 and 1, got {rates.tolist()}")
    length = erfinv(np.minimum(rates, MAXIMAL_REJECTION))
    if old.size == 2 or length.sum() == 0:
        return old.tolist()
    length = np.maximum(length, DISTANCE_FLOOR * length.mean())
    # In units of the first step the data rise whatever the direction of the ladder.
    barrier = np.concatenate([[0.0], np.cumsum(length)])
    curve = PchipInterpolator(barrier, np.abs(old - old[0]))
    new = old[0] + np.sign(steps[0]) * curve(np.linspace(0, barrier[-1], old.size))
    new[[0, -1]] = old[[0, -1]]
    return new.tolist()


def _last_end(position: NDArray[np.int64]) -> NDArray[np.int8]:
    """Return which end each walker visited last: 0, 1 (the other), -1 (none yet)."""
    last = position.max()
    ends = np.where(position == 0, 0, np.where(position == last, 1, -1)).astype(np.int8)
    row = np.arange(len(ends)).reshape(-1, *[1] * (ends.ndim - 1))
    latest = np.maximum.accumulate(np.where(ends >= 0, row, 0), axis=0)
    return np.take_along_axis(ends, latest, axis=0)
