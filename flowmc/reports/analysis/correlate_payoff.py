"""Does it pay?  What correlated differences and combined ensembles are worth, in configurations.

A gain is a ratio of variances on the same configurations: how many times more of them the other way
would need, and so how much longer the HMC that makes them would run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from flowmc.correlate.measurement import Section
from flowmc.estimators.autocorrelation import format_value
from flowmc.estimators.history import Result
from flowmc.reports.words import quantity_text

__all__ = ["payoff_of_sections"]

SIGMAS = 2.0  # by which a gain has to differ from 1
FEW = 0.1  # ESS below which a nearer target or a better flow is worth a word
# Key of Entry.against: what the gain is against, and what is judged by it.
REFERENCES = {
    "gain_independent": ("two independent ensembles", "the correlated difference"),
    "gain_reweighting": ("plain reweighting", "the flow, or the vector fields,"),
}


def payoff_of_sections(sections: Sequence[Section]) -> dict[str, Any]:
    """Return the entry ``pays`` of the JSON document: ``verdict``, ``answer`` and ``next``."""
    answer: list[str] = []
    verdicts: list[str] = []
    for section in sections:
        for key, (reference, subject) in REFERENCES.items():
            gains = {
                entry.observable: entry.against[key]
                for entry in section.entries
                if key in entry.against and math.isfinite(entry.against[key].value)
            }
            if gains:
                verdict, text = _judged(gains, reference, subject)
                verdicts.append(verdict)
                answer.append(f"{section.title}: {text}")
    combined = _combined(sections)
    if combined:
        answer.append(combined)
    if not answer:
        answer.append(
            "nothing here is measured in two ways; a [[target]] or a [[derivative]] shows what "
            "correlated ensembles save"
        )
    answer.append(
        "gains count configurations, and so the HMC that makes them; the training of a flow is "
        "not in them"
    )
    known = set(verdicts)
    verdict = known.pop() if len(known) == 1 else "undecided"
    return {"verdict": verdict, "answer": answer, "next": _next(sections)}


def _judged(gains: Mapping[str, Result], reference: str, subject: str) -> tuple[str, str]:
    """Return what to think of the gains of one section."""
    pays = [name for name, one in gains.items() if one.value - SIGMAS * _error(one) > 1]
    costs = [name for name, one in gains.items() if one.value + SIGMAS * _error(one) < 1]
    verdict = "pays" if len(pays) == len(gains) else "does not pay" if costs else "undecided"
    words = {
        "pays": f"{subject} pays",
        "does not pay": f"{subject} does not pay in {', '.join(map(quantity_text, costs))}",
        "undecided": f"whether {subject} pays is not decided in all quantities",
    }[verdict]
    low = min(gains, key=lambda name: gains[name].value)
    high = max(gains, key=lambda name: gains[name].value)
    text = f"{words}; against {reference} it is worth {_times(gains[low])} the configurations in "
    text += quantity_text(low)
    if high != low:
        text += f", {_times(gains[high])} in {quantity_text(high)}"
    return verdict, text


def _times(gain: Result) -> str:
    text = format_value(gain.value, gain.error)
    return f"about {text} times (its error is a bound)" if gain.is_bound else f"{text} times"


def _error(gain: Result) -> float:
    return gain.error if math.isfinite(gain.error) and not gain.is_bound else math.inf


def _combined(sections: Sequence[Section]) -> str:
    """Return what combining ensembles is worth, in the quantity that profits most."""
    found = [
        ((entry.result.error / entry.against["combined"].error) ** 2, entry.observable, section)
        for section in sections
        for entry in section.entries
        if "combined" in entry.against and entry.against["combined"].error > 0
    ]
    found = [one for one in found if math.isfinite(one[0])]
    if not found:
        return ""
    gain, name, section = max(found, key=lambda one: one[0])
    return (
        f"all ensembles combined are worth {gain:.2g} times the configurations of "
        f"{section.label} alone in {quantity_text(name)}, where they help most"
    )


def _next(sections: Sequence[Section]) -> list[str]:
    found = []
    for section in sections:
        poor = {name: one.ess for name, one in section.weights.items() if one.ess < FEW}
        if poor:
            worst = min(poor, key=lambda name: poor[name])
            found.append(
                f"{section.title}: the weights at {worst} leave an ESS of {poor[worst]:.2g}; take "
                "a nearer target, or train a flow for it"
            )
    return found
