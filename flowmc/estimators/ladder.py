r"""How walkers move through a ladder of replicas.

A ladder helps only as far as configurations travel between its ends.  A *round trip* leads a walker
from one end to the other and back; the share of walkers at replica r that last visited replica 0
falls linearly from 1 to 0 in an ideal ladder, and drops steeply at a bottleneck (H.G. Katzgraber,
S. Trebst, D.A. Huse, M. Troyer, J. Stat. Mech. (2006) P03018).

What the rejection rates :math:`r_i` of the pairs allow is known for replicas that forget their past
from one exchange to the next (S. Syed, A. Bouchard-Cote, G. Deligiannidis, A. Doucet, J. R. Stat.
Soc. B 84 (2022) 321, arXiv:1905.02939): their sum is the communication barrier
:math:`\Lambda`, a property of the ends and the path between them that more replicas do not lower,
and it bounds the rate of round trips.  A *sweep* there tries all pairs of one parity.

Walkers are followed from one recorded row to the next: with rows far apart, trips are missed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import erfc, erfinv

__all__ = [
    "acceptance_from_work",
    "diffusivity",
    "equalised",
    "expected_round_trip_rate",
    "expected_up_fraction",
    "optimal_round_trip_rate",
    "positions",
    "relaxation_rows",
    "round_trip_rate",
    "round_trips",
    "transition_matrix",
    "up_fraction",
]

CHAINS_FOR_SPREAD = 8  # ladders from which the scatter of their round trips gives an error
MINIMUM_TRIPS = 20  # ... and round trips in all of them

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


def round_trip_rate(trips: ArrayLike, rows: int) -> tuple[float, float]:
    r"""Return the number of round trips of one ladder per row, all its walkers together.

    The error is from the scatter of the ladders, where there are at least 8 with 20 trips in all,
    and else that of a Poisson count, :math:`\sqrt{\max(n, 1)}`, the larger of the two.

    Args:
        trips: ``(chains, walkers)``, of :func:`round_trips`.
        rows: in which they were made.

    Returns:
        The rate and its standard deviation.
    """
    per_ladder = np.asarray(trips).sum(axis=1)
    chains, total = len(per_ladder), int(per_ladder.sum())
    error = math.sqrt(max(total, 1)) / (rows * chains)
    if chains >= CHAINS_FOR_SPREAD and total >= MINIMUM_TRIPS:
        error = max(error, float(per_ladder.std(ddof=1)) / (math.sqrt(chains) * rows))
    return total / (rows * chains), error


def expected_round_trip_rate(rejection: ArrayLike, schedule: str = "even_odd") -> float:
    r"""Return the round trips of a ladder per sweep if replicas forget between exchanges.

    :math:`1 / (2 + 2 \sum_i r_i / (1 - r_i))` for deterministically alternating parities, whose
    walkers keep their direction until they are rejected, and
    :math:`1 / (2n + 2 \sum_i r_i / (1 - r_i))` with n pairs for random ones, whose walkers diffuse
    (arXiv:1905.02939).  Fewer trips than that show how slowly the replicas forget.

    Args:
        rejection: ``(replicas - 1,)``, share of rejected exchanges of each neighbouring pair.
        schedule: "even_odd" or "random", as of :class:`flowmc.kernels.Exchange`.
    """
    rates = np.asarray(rejection, dtype=np.float64)
    if (rates >= 1).any():
        return 0.0
    total = _resistance(rates).sum() + _straight(rates.size, schedule).sum()
    return float(1 / (2 * total))


def expected_up_fraction(rejection: ArrayLike, schedule: str = "even_odd") -> NDArray[np.float64]:
    r"""Return the share of walkers that last were at replica 0 if replicas forget, ``(replicas,)``.

    Across pair i it falls by a share of :math:`r_i / (1 - r_i)`, plus 1/2 at both end pairs for
    alternating parities or 1 at every pair for random ones, out of the sum of these over the pairs.
    Walkers of alternating parities that are seldom rejected run from end to end, so that half of
    those inside are on their way up: only then is the fall at the ends steep without a bottleneck.

    Args:
        rejection, schedule: as for :func:`expected_round_trip_rate`.
    """
    falls = _resistance(rejection) + _straight(len(np.asarray(rejection)), schedule)
    return 1 - np.concatenate([[0.0], np.cumsum(falls) / falls.sum()])


def _resistance(rejection: ArrayLike) -> NDArray[np.float64]:
    """Return r / (1 - r) of each pair, finite for pairs that reject all."""
    rates = np.minimum(np.asarray(rejection, dtype=np.float64), 1 - 1e-9)
    return rates / (1 - rates)


def _straight(pairs: int, schedule: str) -> NDArray[np.float64]:
    """Return what each pair costs without rejections: in sum 1 for alternating parities."""
    if schedule == "random":
        return np.ones(pairs)
    ends = np.zeros(pairs)
    ends[0] += 0.5
    ends[-1] += 0.5
    return ends


def optimal_round_trip_rate(rejection: ArrayLike) -> float:
    r"""Return :math:`1 / (2 + 2\Lambda)`: round trips per sweep of many alternating replicas.

    The limit of a fine ladder between the same ends (arXiv:1905.02939).

    Args:
        rejection: as for :func:`expected_round_trip_rate`; their sum is the barrier.
    """
    return float(1 / (2 + 2 * np.asarray(rejection, dtype=np.float64).sum()))


def diffusivity(up_fraction: ArrayLike, rate: float) -> NDArray[np.float64]:
    r"""Return the local diffusivity between neighbouring replicas, ``(replicas - 1,)``.

    In equilibrium as many walkers pass each pair on their way up as make round trips, a current j,
    and :math:`D_{r+1/2} = j / (f_r - f_{r+1})` with the share f of walkers that last visited
    replica 0, in replicas squared per unit of time (J. Stat. Mech. (2006) P03018, with the index of
    the replica as coordinate, in which the density of walkers is 1).  NaN where f does not fall,
    which is noise, and without any round trip.  Walkers that run instead of diffusing, see
    :func:`expected_up_fraction`, show a large D inside and a small one at the ends.

    Args:
        up_fraction: ``(replicas,)``, of :func:`up_fraction`.
        rate: round trips of one ladder per unit of time; see :func:`round_trip_rate`.
    """
    fall = -np.diff(np.asarray(up_fraction, dtype=np.float64))
    known = (fall > 0) & (rate > 0)
    return np.where(known, rate / np.where(known, fall, 1), np.nan)


def transition_matrix(walkers: ArrayLike) -> NDArray[np.float64]:
    """Return the probability that a walker at replica r is at s in the next row, ``(r, s)``.

    Rows and columns add up to 1.

    Args:
        walkers: ``(rows, chains, replicas)``, at least two rows.
    """
    position = positions(walkers)
    replicas = position.shape[-1]
    if len(position) < 2:
        raise ValueError("transitions need at least two rows of walkers")
    moves = position[:-1] * replicas + position[1:]
    counts = np.bincount(moves.ravel(), minlength=replicas**2).reshape(replicas, replicas)
    return counts / counts.sum(axis=1, keepdims=True)


def relaxation_rows(matrix: ArrayLike) -> float:
    r"""Return :math:`-1 / \ln |\lambda_2|` of a transition matrix, in rows.

    The time in which the distribution of a walker over the replicas becomes uniform, if moves have
    no memory from one row to the next.  Walkers of alternating sweeps have one, they keep their
    direction, and for rows that are one or two sweeps apart this time is then an upper estimate.
    Infinite if the ladder falls in parts, 0 if one row is enough.

    Args:
        matrix: ``(replicas, replicas)``, of :func:`transition_matrix`.
    """
    values = np.abs(np.linalg.eigvals(np.asarray(matrix, dtype=np.float64)))
    second = float(np.sort(values)[-2])
    if second >= 1 - 1e-12:
        return math.inf
    return -1 / math.log(second) if second > 1e-300 else 0.0


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
    from scipy.interpolate import PchipInterpolator  # takes half a second to import

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
    row = np.arange(len(ends), dtype=np.int32).reshape(-1, *[1] * (ends.ndim - 1))
    latest = np.maximum.accumulate(np.where(ends >= 0, row, 0), axis=0)
    return np.take_along_axis(ends, latest, axis=0)
