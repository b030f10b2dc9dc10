r"""Reweighting and importance sampling: expectation values of one theory from configurations of
another, with or without a flow between them.

A flow f maps a configuration U of the theory a to f(U), whose weight in the theory b is

.. math:: \ln W = S_a(U) - S_b(f(U)) + \ln\left|\det \frac{\partial f}{\partial U}\right|, \qquad
          \langle O \rangle_b = \frac{\langle W\, O(f(U)) \rangle_a}{\langle W \rangle_a}, \qquad
          \frac{Z_b}{Z_a} = \langle W \rangle_a

(for correlated ensembles: arXiv:2401.10874).  The identity as f is reweighting in the couplings.  A
prior with a flow is the case in which a is the prior and :math:`S_a = -\ln r`.

The self-normalised ratio is biased by O(1/N); its error comes from the linearised fluctuations
:math:`w_i (O_i - \bar O) / \bar w` by the Gamma method, with the block jackknife
(:func:`block_jackknife`) as a cross-check.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.estimators.history import History
from flowmc.estimators.weights import effective_sample_size, max_weight_share, pareto_k
from flowmc.flows.base import Flow

if TYPE_CHECKING:
    from pyerrors import Obs

__all__ = [
    "WeightVerdict",
    "block_jackknife",
    "judge_weights",
    "log_partition_ratio",
    "log_weights_of",
    "reweight",
]

SMALLEST_EFFECTIVE = 10  # N * ESS below which the ESS itself cannot be believed
LARGEST_SHARE = 0.05  # of one weight in the sum of all
LARGEST_PARETO_K = 0.7  # arXiv:1507.02646: beyond it neither mean nor error converge in practice


@dataclass(frozen=True)
class WeightVerdict:
    """What a set of weights is good for.

    Attributes:
        samples: number of weights.
        ess: effective sample size per sample, in (0, 1].
        ess_error: its jackknife error over blocks.
        max_share: of the largest weight in the sum of all.
        pareto_k: index of the tail; NaN for fewer than 25 weights.
        spread: standard deviation of ln W.
        warnings: why not to trust the weights, in plain language; empty if there is no reason.
        is_bound: whether errors of what is reweighted are lower bounds only.
    """

    samples: int
    ess: float
    ess_error: float
    max_share: float
    pareto_k: float
    spread: float
    warnings: tuple[str, ...] = ()
    is_bound: bool = False

    def __str__(self) -> str:
        if self.warnings:
            return "do not trust these weights: " + "; ".join(self.warnings)
        return (
            f"the weights are sound: {self.samples * self.ess:.0f} effective of {self.samples} "
            "configurations"
        )


def log_weights_of(
    flow: Flow, field: Tensor, action_a: Action, action_b: Action
) -> tuple[Tensor, Tensor]:
    r"""Map configurations of theory a by a flow; return ``f(U)`` and ``ln W (chains,)`` float64.

    Args:
        flow: the map from a to b; :class:`~flowmc.flows.Identity` for plain reweighting.
        field: configurations of a, ``(chains, ...)``.
        action_a, action_b: the theories.
    """
    zero = torch.zeros(field.shape[0], dtype=torch.float64, device=field.device)
    mapped, minus_log_det = flow.forward(field, zero)
    return mapped, action_a(field) - action_b(mapped) - minus_log_det


def reweight(history: History, values: ArrayLike, log_weights: ArrayLike) -> NDArray[Any]:
    r"""Return :math:`\langle W O \rangle / \langle W \rangle` as ``pyerrors`` observables.

    Args:
        history: of the configurations.
        values: O on the mapped configurations, ``(configurations, ...)``.
        log_weights: ``(configurations,)``, up to a common constant.

    Returns:
        One observable per component, in an object array of the shape ``values.shape[1:]``.

    Raises:
        ValueError: for log-weights that are NaN or plus infinity, or all minus infinity.
    """
    weights = _relative(log_weights)
    series = np.asarray(values, dtype=np.float64)
    result = np.empty(series.shape[1:], dtype=object)
    for index in np.ndindex(*series.shape[1:]):
        result[index] = _ratio(history, series[(slice(None), *index)], weights)
    return result


def log_partition_ratio(history: History, log_weights: ArrayLike) -> Obs:
    r"""Return :math:`\ln (Z_b / Z_a) = \ln \langle W \rangle_a` as an observable.

    Low by about half its squared error: :math:`-\mathrm{Var}(W) / 2 N \langle W \rangle^2`.
    """
    logs = np.asarray(log_weights, dtype=np.float64)
    weights = _relative(logs)
    return history.from_fluctuations(float(logs.max()) + _log_mean(logs), weights - 1)


def judge_weights(
    log_weights: ArrayLike,
    blocks: int | None = None,
    *,
    tail_of: ArrayLike | None = None,
    tau_int: float = 0.5,
) -> WeightVerdict:
    r"""Return what a set of log-weights is good for.

    Args:
        log_weights: ``(N,)``.
        blocks: of the jackknife of the ESS; None for independent samples.
        tail_of: ``(N,)``, the log-weights without what a sample counts by its origin: samples that
            count differently make steps in the distribution, which are no tail.  By default
            ``log_weights``.
        tau_int: of the weights, where samples are correlated: they count as
            :math:`N / 2 \tau_{int}`.
    """
    logs = torch.as_tensor(np.asarray(log_weights, dtype=np.float64))
    samples = len(logs)
    ess = effective_sample_size(logs, blocks)
    single = logs if tail_of is None else torch.as_tensor(np.asarray(tail_of, dtype=np.float64))
    share, tail = max_weight_share(logs), pareto_k(single)
    finite = logs[torch.isfinite(logs)]
    spread = float(finite.std(correction=0))
    warnings = []
    if spread > 0:
        independent = samples / (2 * max(0.5, tau_int))
        if independent * ess.value < SMALLEST_EFFECTIVE:
            correlated = f" (tau_int = {tau_int:.3g})" if tau_int > 0.5 else ""
            warnings.append(
                f"{independent:.0f} {'independent ' if correlated else ''}configurations"
                f"{correlated} are fewer than 10 / ESS (ESS = {ess.value:.2g}): the "
                f"ESS is biased up and there are at most {independent * ess.value:.1f} effective "
                "configurations; use more of them, a nearer target or a better flow"
            )
        if share > LARGEST_SHARE and samples > 2 / LARGEST_SHARE:
            warnings.append(
                f"a single configuration carries {share:.0%} of the total weight: means and errors "
                "are guesses"
            )
        if tail > LARGEST_PARETO_K:
            warnings.append(
                f"the weights have a heavy tail (Pareto k = {tail:.2f} > {LARGEST_PARETO_K}): "
                "means may be off by more than their errors"
            )
    if len(finite) < samples:
        warnings.append(
            f"{samples - len(finite)} of {samples} configurations have weight zero: their action "
            "or density is not finite"
        )
    return WeightVerdict(
        samples, ess.value, ess.error, share, tail, spread, tuple(warnings), bool(warnings)
    )


def block_jackknife(
    history: History, values: ArrayLike, log_weights: ArrayLike, block: int
) -> tuple[float, float, float]:
    r"""Return value, error and bias of :math:`\langle W O \rangle / \langle W \rangle` from the
    delete-one jackknife over blocks: the cross-check of :func:`reweight`.

    Args:
        history: of the configurations; no block reaches over the end of a replica.
        values: ``(configurations,)``.
        log_weights: ``(configurations,)``.
        block: consecutive configurations per block: several autocorrelation times.

    Raises:
        ValueError: if there are fewer than two blocks.
    """
    weights = _relative(log_weights)
    product = weights * np.asarray(values, dtype=np.float64)
    sums = [
        [piece.sum(axis=0) for piece in np.array_split(part, max(1, len(part) // block))]
        for part in history.split(np.stack([product, weights], 1))
    ]
    blocks = np.array([row for replica in sums for row in replica])
    count = len(blocks)
    if count < 2:
        raise ValueError(f"{len(history)} configurations make one block of {block}: need two")
    total = blocks.sum(axis=0)
    without = (total[0] - blocks[:, 0]) / (total[1] - blocks[:, 1])
    value = float(total[0] / total[1])
    error = math.sqrt((count - 1) / count * float(np.sum((without - without.mean()) ** 2)))
    return value, error, (count - 1) * float(without.mean() - value)


def _relative(log_weights: ArrayLike) -> NDArray[np.float64]:
    """Return w / mean(w)."""
    logs = np.asarray(log_weights, dtype=np.float64)
    largest = logs.max(initial=-math.inf)
    if not math.isfinite(largest):
        raise ValueError("log-weights must be below infinity, not NaN, and not all minus infinity")
    weights = np.exp(logs - largest)
    return weights / weights.mean()


def _log_mean(logs: NDArray) -> float:
    """Return ln mean(w) - max ln w."""
    return float(np.log(np.exp(logs - logs.max()).mean()))


def _ratio(history: History, values: NDArray, weights: NDArray) -> Obs:
    mean = float(np.mean(weights * values))
    return history.from_fluctuations(mean, weights * (values - mean))
