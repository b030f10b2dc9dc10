"""What a comparison of several runs says about costs, in sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flowmc.estimators.autocorrelation import format_value

__all__ = ["comparison_sentences"]

SIGMAS = 2.0  # by which a gain has to differ from 1


def comparison_sentences(
    paths: Sequence[str], table: Mapping[str, Sequence[Mapping[str, Any]]]
) -> list[str]:
    """Say of every run but the first whether it pays against the first, in the slowest observable.

    That is the one which costs most in any of the runs.

    Args:
        paths: of the runs.
        table: ``observables`` of the document of :func:`flowmc.commands.report.compare`.
    """
    if not table:
        return ["nothing can be said: the runs share no observable, or have no timings"]

    def cost(name: str) -> float:
        seconds = [entry["seconds_per_independent_sample"] for entry in table[name]]
        return max((one for one in seconds if math.isfinite(one)), default=-math.inf)

    slowest = max(table, key=cost)
    found = []
    for index in range(1, len(paths)):
        sentences = [_sentence(paths, slowest, table[slowest], index)]
        others = [name for name in table if name != slowest]
        worse = [name for name in others if _is_dearer(table[name], index)]
        if worse:
            sentences.append(f"dearer in {', '.join(worse)}")
        found.append("; ".join(sentences))
    return found


def _sentence(
    paths: Sequence[str], name: str, entries: Sequence[Mapping[str, Any]], index: int
) -> str:
    other = entries[index]
    gain, error, bound = other["gain"], other["gain_error"], other["gain_bound"]
    text = format_value(gain, error)
    who = f"in {name}, the slowest observable, {paths[index]} against {paths[0]}"
    if bound == "unknown":
        return f"{who}: not decided, tau_int is a lower bound in both; run both longer"
    mark = {"none": "", "lower": "at least ", "upper": "at most "}[bound]
    if bound != "upper" and gain - SIGMAS * error > 1:
        return f"{who}: it pays, {mark}{text} times cheaper{_training(other)}"
    if bound != "lower" and gain + SIGMAS * error < 1:
        return f"{who}: it does not pay, the gain is {mark}{text}"
    longer = {"none": "both", "lower": paths[0], "upper": paths[index]}[bound]
    return f"{who}: not decided, the gain is {mark}{text}; run {longer} longer"


def _training(entry: Mapping[str, Any]) -> str:
    """Return what the training changes about that."""
    samples = entry["break_even_samples"]
    if samples is None or not math.isfinite(samples) or samples <= 0:
        return ""
    mark = {"lower": "at least ", "upper": "at most "}.get(entry["break_even_bound"], "")
    return f", and the training is repaid after {mark}{samples:,.3g} independent samples"


def _is_dearer(entries: Sequence[Mapping[str, Any]], index: int) -> bool:
    other = entries[index]
    is_bounded = other["gain_bound"] in ("none", "upper")
    return is_bounded and other["gain"] + SIGMAS * other["gain_error"] < 1
