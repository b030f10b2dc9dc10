"""What a set of weights says about the flow that they are of, in numbers and in words."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from flowmc.estimators.reweighting import LARGEST_PARETO_K, LARGEST_SHARE, SMALLEST_EFFECTIVE
from flowmc.estimators.weights import (
    effective_sample_size,
    independence_acceptance,
    kullback_leibler,
    log_mean_exp,
    max_weight_share,
    pareto_k,
)
from flowmc.registry import ConfigError

__all__ = ["number_or_none", "weight_results", "weight_warnings"]


def weight_results(
    log_weights: Tensor, seconds: float, bins: int | None = None
) -> tuple[dict[str, Any], list[str]]:
    """Return what all flows report, and warnings.

    Args:
        log_weights: of all samples, ``(samples,)``.
        seconds: of one sample.
        bins: number of equal parts, consecutive samples each, by whose means errors are taken;
            by default every sample is independent.

    Raises:
        ConfigError: no weight is finite.
    """
    samples = len(log_weights)
    lost = int((~torch.isfinite(log_weights)).sum())
    warnings = []
    if lost:
        warnings.append(
            f"{lost} of {samples} samples have a density or action that is not finite; their "
            "weight counts as zero"
        )
        log_weights = torch.where(torch.isfinite(log_weights), log_weights, -math.inf)
    if lost == samples:
        raise ConfigError("no sample of this flow has a finite weight: the flow is broken")
    ess = effective_sample_size(log_weights, bins)
    log_z = log_mean_exp(log_weights, bins)
    share = max_weight_share(log_weights)
    tail = pareto_k(log_weights)
    result = {
        "samples": samples,
        "ess": number_or_none(ess.value),
        "ess_error": number_or_none(ess.error),
        "acceptance": number_or_none(independence_acceptance(log_weights).value),
        "log_z": number_or_none(log_z.value),
        "log_z_error": number_or_none(log_z.error),
        "kl": number_or_none(kullback_leibler(log_weights, bins).value),
        "max_weight_share": number_or_none(share),
        "pareto_k": number_or_none(tail),
        "seconds_per_sample": seconds,
    }
    warnings += weight_warnings(samples, ess.value, share, tail, log_z.error)
    return result, warnings


def weight_warnings(
    samples: int, ess: float, share: float, pareto_k: float, log_z_error: float
) -> list[str]:
    """Return what is to be said about a set of weights, from what is known of them.

    Args:
        samples: how many.
        ess: effective sample size per sample.
        share: of the largest weight in the sum of all.
        pareto_k: index of their tail; NaN if it is not known.
        log_z_error: of ln Z.
    """
    warnings = []
    if share > LARGEST_SHARE:
        warnings.append(
            f"a single sample carries {share:.0%} of the total weight: ess, acceptance and log_z "
            "are guesses, most likely too good; use more samples or a better flow"
        )
    elif pareto_k > LARGEST_PARETO_K:
        warnings.append(
            f"the weights have a heavy tail (Pareto k = {pareto_k:.2f} > {LARGEST_PARETO_K}): ess "
            "and log_z may be off by more than their errors; a chain of these proposals would stick"
        )
    if samples * ess < SMALLEST_EFFECTIVE:
        warnings.append(
            f"only {samples * ess:.1f} effective samples: ess is biased up, use more samples"
        )
    if log_z_error > 0.3:
        warnings.append(
            f"log_z is biased low by about {0.5 * log_z_error**2:.2g} at this number of samples"
        )
    return warnings


def number_or_none(value: float) -> float | None:
    """Return a number for JSON, which has no NaN and no infinity."""
    return value if math.isfinite(value) else None
