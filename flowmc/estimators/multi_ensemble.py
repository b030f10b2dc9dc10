r"""Several ensembles at different couplings combined: the multistate Bennett acceptance ratio.

With all configurations :math:`x_n` of K ensembles of actions :math:`S_k` and :math:`N_k`
configurations (M. R. Shirts and J. D. Chodera, arXiv:0801.1426, equations 11 and 13)

.. math:: \frac{Z_k}{Z} = e^{-f_k} = \sum_n \frac{e^{-S_k(x_n)}}{D_n}, \qquad
          D_n = \sum_l N_l\, e^{f_l - S_l(x_n)}, \qquad
          \langle O \rangle = \frac{\sum_n O(x_n)\, e^{-S(x_n)} / D_n}{\sum_n e^{-S(x_n)} / D_n}

for any action S.  In place of :math:`N_l` stand the numbers of *independent* configurations
:math:`N_l / 2 \tau_l`, and every configuration of l counts :math:`1 / 2 \tau_l`: with slow
ensembles among them this is the better combination.

Errors: the fluctuations of the equations are propagated linearly to whatever is computed, in each
ensemble with its own autocorrelation by the Gamma method, so that no subsampling is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from flowmc.estimators.history import History
from flowmc.estimators.overlap import SMALLEST_SHARE, Link, links_of
from flowmc.estimators.reweighting import WeightVerdict, judge_weights

if TYPE_CHECKING:
    from pyerrors import Obs

__all__ = ["MultiEnsemble"]

_ITERATIONS, _TOLERANCE = 1000, 1e-11
_NO_OVERLAP = 1e-12
_FEWEST_INDEPENDENT = 10  # configurations at a target, below which its error is a guess
_NEGLIGIBLE = 0.01  # part of the weight that a group of ensembles may have without any harm


class MultiEnsemble:
    """Configurations of several ensembles, with the free energies that join them.

    Args:
        histories: of the ensembles, with different names.
        actions: :math:`S_k(x_n)`, ``(K, configurations)``: every action on the configurations of
            all ensembles, one ensemble after the other.
        tau_int: integrated autocorrelation time of every ensemble, of its action for instance; by
            default 0.5 for all.

    Attributes:
        free_energies: :math:`f_k - f_0`, ``(K,)``.
        places: of the configurations of every ensemble among all.

    Raises:
        ValueError: for other shapes, values that are not finite, or ensembles between which there
            is no overlap at all.
    """

    def __init__(
        self,
        histories: Sequence[History],
        actions: ArrayLike,
        tau_int: ArrayLike | None = None,
    ) -> None:
        self.histories = list(histories)
        self.energies = np.asarray(actions, dtype=np.float64)
        lengths = np.array([len(history) for history in self.histories])
        if self.energies.shape != (len(lengths), lengths.sum()):
            raise ValueError(
                f"{len(lengths)} ensembles of together {lengths.sum()} configurations need actions "
                f"of the shape ({len(lengths)}, {lengths.sum()}), not {self.energies.shape}"
            )
        if not np.isfinite(self.energies).all():
            raise ValueError("an action is not finite on a configuration")
        if len({history.ensemble for history in self.histories}) < len(lengths):
            raise ValueError("ensembles need different names")
        times = np.full(len(lengths), 0.5) if tau_int is None else np.asarray(tau_int, float)
        if times.shape != lengths.shape or not np.isfinite(times).all():
            raise ValueError(f"{len(lengths)} ensembles need as many finite tau_int, not {times}")
        factor = 2 * np.maximum(0.5, times)
        self.counts = lengths / factor
        self.places = np.split(np.arange(lengths.sum()), np.cumsum(lengths)[:-1])
        # What one configuration of each ensemble counts.
        self._share = np.repeat(1 / factor, lengths)
        self.free_energies = self._solve()
        self._log_d = self._log_denominators(self.free_energies)
        # W_nk = e^{f_k - S_k(x_n)} / D_n.
        self._weights = np.exp(self.free_energies[:, None] - self.energies - self._log_d)
        self._check_overlap()

    @cached_property
    def overlap(self) -> NDArray[np.float64]:
        r"""The matrix :math:`O_{kl} = \sum_n W_{nk} N_l W_{nl}` whose rows add up to 1, ``(K, K)``:
        how likely a configuration of k could be one of l."""
        return (self._weights * self._share) @ self._weights.T * self.counts

    @cached_property
    def links(self) -> list[Link]:
        """What holds the ensembles together, the weakest link first; none for one ensemble."""
        return links_of(self.overlap, self.counts)

    def log_weights(self, action: ArrayLike) -> NDArray[np.float64]:
        """Return the log-weights of all configurations in another theory, ``(configurations,)``.

        Args:
            action: S of that theory on all configurations.
        """
        energies = np.asarray(action, dtype=np.float64)
        return np.log(self._share) - energies - self._log_d

    def verdict(self, action: ArrayLike) -> WeightVerdict:
        """Return what the weights in another theory are good for.

        The number of *independent* configurations that they amount to, with the autocorrelation of
        every ensemble, is tested as well.
        """
        logs = self.log_weights(action)
        verdict = judge_weights(logs, tail_of=logs - np.log(self._share))
        count = self.independent(action)
        if verdict.warnings or count >= _FEWEST_INDEPENDENT:
            return verdict
        text = (
            f"the weights amount to {count:.1f} independent configurations only, fewer than "
            f"{_FEWEST_INDEPENDENT}: use longer ensembles or a nearer target"
        )
        return replace(verdict, warnings=(text,), is_bound=True)

    def independent(self, action: ArrayLike) -> float:
        r"""Return how many independent configurations the weights in another theory amount to:
        :math:`(\sum_n w_n / 2\tau_n)^2 / \sum_n w_n^2 / 2\tau_n` with :math:`w = e^{-S} / D`."""
        logs = self.log_weights(action)
        weights = np.exp(logs - logs.max())
        return float(weights.sum() ** 2 / (weights**2 / self._share).sum())

    def doubts(self, action: ArrayLike) -> tuple[list[str], list[str]]:
        r"""Return what to say about weak links that a theory depends on.

        Args:
            action: S of the theory on all configurations.

        Returns:
            Sentences about :math:`\ln (Z / Z_0)`, and about means: a mean does not depend on a
            link if all the weight is on one side of it, ln Z does unless this is the side of the
            first ensemble.
        """
        logs = self.log_weights(action)
        shares = np.exp(logs - logsumexp(logs))
        parts = np.array([shares[place].sum() for place in self.places])
        of_ratio, of_means = [], []
        for link, text in self._weak_links():
            first, second = (parts[list(group)].sum() for group in link.groups)
            # The first group has the first ensemble.
            if second > _NEGLIGIBLE:
                of_ratio.append(text)
            if min(first, second) > _NEGLIGIBLE:
                of_means.append(text)
        return of_ratio, of_means

    def tension(self, values: ArrayLike, k: int) -> NDArray[Any]:
        """Return the mean in ensemble k less that of all ensembles combined at its action.

        Zero within its error, unless the action of an ensemble is not the one that it was made
        with, or an ensemble is not in equilibrium.

        Args:
            values: O on all configurations, ``(configurations, ...)``.
            k: number of the ensemble.
        """
        series = np.asarray(values, dtype=np.float64)
        own = self.histories[k].observables(series[self.places[k]])
        result = np.empty_like(own)
        # A difference of arrays without axes is no array any more.
        result[...] = own - self.mean(series, self.energies[k])
        return result

    def log_partition_ratio(self, action: ArrayLike) -> Obs:
        r"""Return :math:`\ln (Z / Z_0)` of a theory against the first ensemble, an observable.

        Args:
            action: S of the theory on all configurations; ``energies[k]`` for ensemble k.
        """
        logs = self.log_weights(action)
        total = logsumexp(logs)
        shares = np.exp(logs - total)
        return self._observable(float(total), shares, shares)

    def mean(self, values: ArrayLike, action: ArrayLike) -> NDArray[Any]:
        """Return means in a theory as an object array of observables.

        Args:
            values: O on all configurations, ``(configurations, ...)``.
            action: S of the theory on all configurations.
        """
        logs = self.log_weights(action)
        shares = np.exp(logs - logsumexp(logs))
        series = np.asarray(values, dtype=np.float64)
        result = np.empty(series.shape[1:], dtype=object)
        for index in np.ndindex(*series.shape[1:]):
            component = series[(slice(None), *index)]
            mean = float(shares @ component)
            terms = shares * (component - mean)
            result[index] = self._observable(mean, terms, terms)
        return result

    def _observable(self, value: float, direct: NDArray, through: NDArray) -> Obs:
        r"""Return an observable from its dependence on the configurations.

        Args:
            value: of the observable.
            direct: contribution of each configuration at fixed free energies.
            through: a with dF/df_l = - sum_n a_n N_l W_nl, through the denominators.
        """
        slope = -(self._weights @ through) * self.counts
        terms = direct + slope @ self._response
        total: Any = None
        for history, place in zip(self.histories, self.places, strict=True):
            own = terms[place]
            part = history.from_fluctuations(0.0, len(own) * (own - own.mean()))
            total = part if total is None else total + part
        return total + value

    @cached_property
    def _response(self) -> NDArray[np.float64]:
        """Return df_k per configuration, ``(K, configurations)``; f_0 is fixed."""
        matrix = np.eye(len(self.counts)) - self.overlap
        response = np.zeros_like(self._weights)
        # The equations and the free energies have one member too many.
        solved = np.linalg.solve(matrix[1:, 1:], (self._weights * self._share)[1:])
        response[1:] = -solved
        return response

    def _log_denominators(self, f: NDArray[np.float64]) -> NDArray[np.float64]:
        exponents = f[:, None] - self.energies + np.log(self.counts)[:, None]
        return logsumexp(exponents, axis=0)

    def _solve(self) -> NDArray[np.float64]:
        """Return the free energies: the minimum of a convex function, by Newton's method."""
        f = self._first_guess()
        for _ in range(_ITERATIONS):
            logs = -self.energies - self._log_denominators(f)
            weights = np.exp(f[:, None] + logs)
            sums = weights @ self._share
            if np.abs(sums - 1).max() < _TOLERANCE:
                return f
            matrix = np.diag(sums) - (weights * self._share) @ weights.T * self.counts
            step = np.zeros_like(f)
            try:
                step[1:] = np.linalg.solve(matrix[1:, 1:], (1 - sums)[1:])
            except np.linalg.LinAlgError:
                step[:] = math.inf
            if not np.abs(step).max() < 1.0:
                # Far from the solution: the self-consistent iteration, which always descends.
                step = -logsumexp(f[:, None] + logs + np.log(self._share), axis=1)
                step -= step[0]
            if np.abs(step).max() < 1e-14 * max(1.0, np.abs(f).max()):
                return f
            f = f + step
        raise ValueError(
            "the free energies do not converge: the ensembles do not overlap; add one between"
        )

    def _first_guess(self) -> NDArray[np.float64]:
        """Chain the neighbours by the mean of both exponential averages."""
        f = np.zeros(len(self.histories))
        for k in range(1, len(f)):
            before, here = self.places[k - 1], self.places[k]
            change = self.energies[k] - self.energies[k - 1]
            forward = -logsumexp(-change[before]) + math.log(len(before))
            backward = logsumexp(change[here]) - math.log(len(here))
            f[k] = f[k - 1] + 0.5 * (forward + backward)
        return f

    def _check_overlap(self) -> None:
        for link in self.links:
            if not link.share > _NO_OVERLAP:
                group = min(link.groups, key=len)
                raise ValueError(
                    f"there is no overlap of {self._names(group)} with any other ensemble: the "
                    "free energy is unknown; add an ensemble between"
                )

    @property
    def warnings(self) -> list[str]:
        """Sentences about ensembles that hardly overlap with the others."""
        return [text for _, text in self._weak_links()]

    def _weak_links(self) -> list[tuple[Link, str]]:
        return [(link, self._weakness(link)) for link in self.links if link.is_weak]

    def _weakness(self, link: Link) -> str:
        group = self._names(min(link.groups, key=len))
        nearest = " and ".join(repr(self.histories[k].ensemble) for k in link.nearest)
        if link.share < SMALLEST_SHARE:
            cause, cure = f"overlap by {link.share:.1%} only", "add an ensemble"
        else:
            cause = f"share {link.shared:.2g} independent configurations only"
            cure = "use longer ensembles, or one more"
        return (
            f"{group} and the others {cause}: what depends on both is a guess; {cure} between "
            f"{nearest}"
        )

    def _names(self, group: Sequence[int]) -> str:
        names = ", ".join(repr(self.histories[k].ensemble) for k in group)
        return f"the ensemble{'s' if len(group) > 1 else ''} {names}"
