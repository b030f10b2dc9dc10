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
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import logsumexp

from flowmc.estimators.history import History
from flowmc.estimators.reweighting import Verdict, judge_weights

if TYPE_CHECKING:
    from pyerrors import Obs

__all__ = ["MultiEnsemble"]

_ITERATIONS, _TOLERANCE = 1000, 1e-11
_SMALLEST_OVERLAP = 0.03  # with the rest of the ensembles, below which they hardly know each other


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

    Raises:
        ValueError: for other shapes, values that are not finite, or ensembles between which there
            is no overlap at all.
    """

    def __init__(
        self,
        histories: Sequence[History],
        actions: ArrayLike,
        tau_int: Sequence[float] | None = None,
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
        factor = 2 * np.maximum(0.5, np.asarray(tau_int or [0.5] * len(lengths), dtype=float))
        self.counts = lengths / factor
        self._slices = np.split(np.arange(lengths.sum()), np.cumsum(lengths)[:-1])
        # What one configuration of each ensemble counts.
        self._share = np.repeat(1 / factor, lengths)
        self.free_energies = self._solve()
        # W_nk = e^{f_k - S_k(x_n)} / D_n.
        self._weights = np.exp(
            self.free_energies[:, None] - self.energies - self._log_denominators()
        )
        self._check_overlap()

    @property
    def overlap(self) -> NDArray[np.float64]:
        r"""The matrix :math:`O_{kl} = \sum_n W_{nk} N_l W_{nl}` whose rows add up to 1, ``(K, K)``:
        how likely a configuration of k could be one of l."""
        return (self._weights * self._share) @ self._weights.T * self.counts

    def log_weights(self, action: ArrayLike) -> NDArray[np.float64]:
        """Return the log-weights of all configurations in another theory, ``(configurations,)``.

        Args:
            action: S of that theory on all configurations.
        """
        energies = np.asarray(action, dtype=np.float64)
        return np.log(self._share) - energies - self._log_denominators()

    def verdict(self, action: ArrayLike) -> Verdict:
        """Return what the weights in another theory are good for."""
        return judge_weights(self.log_weights(action))

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
        terms = direct + self._response().T @ slope
        total: Any = None
        for history, place in zip(self.histories, self._slices, strict=True):
            own = terms[place]
            part = history.from_fluctuations(0.0, len(own) * (own - own.mean()))
            total = part if total is None else total + part
        return total + value

    def _response(self) -> NDArray[np.float64]:
        """Return df_k per configuration, ``(K, configurations)``; f_0 is fixed."""
        matrix = np.eye(len(self.counts)) - self.overlap
        response = np.zeros_like(self._weights)
        # The equations and the free energies have one member too many.
        solved = np.linalg.solve(matrix[1:, 1:], (self._weights * self._share)[1:])
        response[1:] = -solved
        return response

    def _log_denominators(self) -> NDArray[np.float64]:
        exponents = self.free_energies[:, None] - self.energies + np.log(self.counts)[:, None]
        return logsumexp(exponents, axis=0)

    def _solve(self) -> NDArray[np.float64]:
        """Return the free energies: the minimum of a convex function, by Newton's method."""
        f = self._first_guess()
        for _ in range(_ITERATIONS):
            self.free_energies = f
            logs = -self.energies - self._log_denominators()
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
            before, here = self._slices[k - 1], self._slices[k]
            change = self.energies[k] - self.energies[k - 1]
            forward = -logsumexp(-change[before]) + math.log(len(before))
            backward = logsumexp(change[here]) - math.log(len(here))
            f[k] = f[k - 1] + 0.5 * (forward + backward)
        return f

    def _check_overlap(self) -> None:
        alone = 1 - np.diag(self.overlap)
        if len(alone) > 1 and not alone.min() > 1e-12:
            name = self.histories[int(alone.argmin())].ensemble
            raise ValueError(
                f"the ensemble {name!r} does not overlap with any other: its free energy is "
                "unknown; add an ensemble between"
            )

    @property
    def warnings(self) -> list[str]:
        """Sentences about ensembles that hardly overlap with the others."""
        alone = 1 - np.diag(self.overlap)
        return [
            f"the ensemble {history.ensemble!r} overlaps with the others by {share:.1%} only: free "
            "energies across it are guesses; add an ensemble between"
            for history, share in zip(self.histories, alone, strict=True)
            if len(alone) > 1 and share < _SMALLEST_OVERLAP
        ]
