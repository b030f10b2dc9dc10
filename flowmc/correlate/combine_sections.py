"""The results of several ensembles combined, as sections: together, one by one, at the targets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtr

from flowmc.correlate.combined import Combination
from flowmc.correlate.measurement import Entry, Section
from flowmc.correlate.quantities import component_label, components, judged
from flowmc.estimators.history import Result
from flowmc.registry import ConfigError

__all__ = ["TOGETHER", "combined_sections"]

TOGETHER = "combination"
_FALSE_ALARM = 1e-4  # of all comparisons of an ensemble with the others together
_ALLOWED = 0.01  # the chance of what is left without a suspect
_FEWEST_SHARED = 10.0  # independent configurations of the others, for a comparison


@dataclass(frozen=True)
class Comparison:
    """One quantity of one ensemble against all ensembles combined.

    Attributes:
        ensemble: number.
        quantity: name.
        own, combined, difference: the means; the difference knows their correlation.
        is_tested: whether it can tell right from wrong.
    """

    ensemble: int
    quantity: str
    own: Result
    combined: Result
    difference: Result
    is_tested: bool

    @property
    def deviation(self) -> float:
        """The difference in standard deviations."""
        return abs(self.difference.value) / self.difference.error

    @property
    def chance(self) -> float:
        """Probability of a deviation as large if nothing is wrong, by Student's distribution: from
        short ensembles the error, and above all tau_int in it, is not well known."""
        tau, tau_error = self.difference.tau_int, self.difference.tau_int_error
        relative = (tau_error / (2 * tau)) ** 2 + tau / self.difference.estimate.samples
        return 2 * float(stdtr(1 / (2 * relative), -self.deviation))


def combined_sections(combination: Combination) -> list[Section]:
    """Return all results: of the combination, of every ensemble, and at every target."""
    count = len(combination.ensembles)
    comparisons = [_comparisons(combination, k) for k in range(count)]
    contradictions = _contradictions(combination, [one for some in comparisons for one in some])
    # What follows from ensembles that contradict each other is wrong by an unknown amount.
    known = ["the ensembles contradict each other"] if contradictions else []
    return [
        _together(combination, [one for some in comparisons for one in some], contradictions),
        *(_of_ensemble(combination, k, comparisons[k]) for k in range(count)),
        *(_at_target(combination, t, known) for t in range(count, len(combination.labels))),
    ]


def _together(
    combination: Combination, comparisons: Sequence[Comparison], contradictions: Sequence[str]
) -> Section:
    multi, labels = combination.multi, combination.labels
    count = len(combination.ensembles)
    entries = []
    for k in range(1, count):
        name = f"ln Z({labels[k]}) / Z({labels[0]})"
        of_ratio, _ = multi.doubts(combination.actions[k])
        ratio = multi.log_partition_ratio(combination.actions[k])
        entries.append(Entry(name, judged(name, ratio, *of_ratio, *contradictions)))
    tested = [one for one in comparisons if one.is_tested]
    details = {
        "ensembles": labels[:count],
        "overlap": multi.overlap.tolist(),
        "links": [
            {
                "ensembles": [[labels[k] for k in group] for group in link.groups],
                "nearest": [labels[k] for k in link.nearest],
                "share": link.share,
                "shared": link.shared,
            }
            for link in multi.links
        ],
        "independent_configurations": multi.counts.tolist(),
        "deviations": [
            {
                "ensemble": labels[one.ensemble],
                "quantity": one.quantity,
                "deviation": one.deviation,
            }
            for one in tested
        ],
    }
    return Section(
        TOGETHER,
        f"{count} ensemble{'s' if count > 1 else ''} combined",
        entries,
        details=details,
        warnings=[*contradictions, *multi.warnings],
        notes=_notes(combination, tested),
    )


def _notes(combination: Combination, tested: Sequence[Comparison]) -> list[str]:
    multi, labels = combination.multi, combination.labels
    notes = [
        f"{one.label}: {len(one.series.history)} configurations, "
        + (
            f"{count:.0f} of them independent (tau_int of the action {tau.tau_int:.3g})"
            if math.isfinite(tau.tau_int)
            else "too few for the autocorrelation time of the action"
        )
        for one, count, tau in zip(
            combination.ensembles, multi.counts, combination.tau_int, strict=True
        )
    ]
    for weakest in multi.links[:1]:
        here, there = (labels[k] for k in weakest.nearest)
        notes.append(
            f"weakest link: {here} and {there}, overlap {weakest.share:.1%}, "
            f"{weakest.shared:.0f} independent configurations shared"
        )
    if tested:
        worst = max(tested, key=lambda one: one.deviation)
        notes.append(
            f"consistency: of {len(tested)} means of single ensembles, that of {worst.quantity} at "
            f"{labels[worst.ensemble]} is farthest from all combined: {worst.deviation:.1f} "
            "standard deviations"
        )
    return notes


def _of_ensemble(combination: Combination, k: int, comparisons: Sequence[Comparison]) -> Section:
    ensemble = combination.ensembles[k]
    entries = []
    for one in comparisons:
        against = {}
        if len(combination.ensembles) > 1:
            against["combined"] = one.combined
        if one.is_tested:
            against["difference"] = one.difference
        entries.append(Entry(one.quantity, one.own, against))
    return Section(
        f"ensemble {ensemble.label}",
        f"the ensemble {ensemble.label}, {ensemble.action!r}",
        entries,
        warnings=[*ensemble.doubts, *combination.frozen[k].values()],
    )


def _at_target(combination: Combination, theory: int, known: Sequence[str]) -> Section:
    multi, label = combination.multi, combination.labels[theory]
    action = combination.actions[theory]
    verdict = multi.verdict(action)
    of_ratio, of_means = multi.doubts(action)
    name = f"ln Z / Z({combination.labels[0]})"
    ratio = multi.log_partition_ratio(action)
    entries = [Entry(name, judged(name, ratio, *verdict.warnings, *of_ratio, *known))]
    means = combination.means(theory)
    for quantity, index in components(means):
        name = component_label(quantity, index)
        sentences = [*verdict.warnings, *of_means, *_frozen(combination, name), *known]
        entries.append(Entry(name, judged(name, means[quantity][index], *sentences)))
    independent = multi.independent(action)
    total = len(combination.actions[theory])
    return Section(
        label,
        f"at {label}",
        entries,
        {label: verdict},
        {"independent_configurations": independent, "log_weight_spread": verdict.spread},
        notes=[f"{independent:.0f} independent configurations, of {total} of all ensembles"],
    )


def _comparisons(combination: Combination, k: int) -> list[Comparison]:
    """Return all quantities of an ensemble: own mean, combined mean and their difference."""
    multi = combination.multi
    own, combined = combination.own_means(k), combination.means(k)
    if len(combination.ensembles) > 1:
        # What the combination itself rests on: a wrong coupling shows here, whatever is measured.
        change, name = _change_of_action(combination, k)
        history = combination.ensembles[k].series.history
        own = {name: history.observables(change[combination.places[k]]), **own}
        combined = {name: multi.mean(change, combination.actions[k]), **combined}
    of_means = multi.doubts(combination.actions[k])[1]
    is_shared = multi.counts[k] * (1 - multi.overlap[k, k]) >= _FEWEST_SHARED
    found = []
    for quantity, index in components(own):
        name = component_label(quantity, index)
        frozen = [combination.frozen[k][name]] if name in combination.frozen[k] else []
        here = judged(name, own[quantity][index], *frozen)
        sentences = [*of_means, *_frozen(combination, name)]
        there = judged(name, combined[quantity][index], *sentences)
        difference = judged(name, own[quantity][index] - combined[quantity][index])
        floor = 1e-9 * max(abs(here.value), here.error)
        is_tested = is_shared and math.isfinite(difference.error) and difference.error > floor
        found.append(Comparison(k, name, here, there, difference, is_tested))
    return found


def _change_of_action(combination: Combination, k: int) -> tuple[NDArray[np.float64], str]:
    """Return the change of the action to the ensemble that shares most with k, and its name."""
    shared = combination.multi.overlap[k].copy()
    shared[k] = -1.0
    neighbour = int(shared.argmax())
    change = combination.actions[neighbour] - combination.actions[k]
    return change, f"S({combination.labels[neighbour]}) - S"


def _frozen(combination: Combination, quantity: str) -> list[str]:
    """Return why a quantity of all ensembles cannot be trusted."""
    return [
        f"{one.label}: {frozen[quantity]}"
        for one, frozen in zip(combination.ensembles, combination.frozen, strict=True)
        if quantity in frozen
    ]


def _contradictions(combination: Combination, comparisons: Sequence[Comparison]) -> list[str]:
    """Return a sentence if ensembles contradict each other, with those that may be to blame."""
    tested = [one for one in comparisons if one.is_tested]
    worst = min(tested, key=lambda one: one.chance, default=None)
    if worst is None or _chance(tested) > _FALSE_ALARM:
        return []
    text = (
        f"the ensembles contradict each other: the mean of {worst.quantity} in "
        f"{combination.labels[worst.ensemble]} is {worst.deviation:.1f} standard deviations from "
        "that of all combined; a coupling in [[ensemble]] is wrong, or an ensemble is not in "
        "equilibrium"
    )
    suspects = _suspects(combination)
    if suspects:
        text += "; the others agree without " + ", or without ".join(suspects)
    return [text]


def _suspects(combination: Combination) -> list[str]:
    """Return the ensembles without which no contradiction is left, the likeliest culprit first."""
    count = len(combination.ensembles)
    chances: dict[str, float] = {}
    for k in range(count if count > 2 else 0):
        try:
            rest = combination.without(k)
        except ConfigError:
            continue  # nothing is left to compare
        comparisons = [one for m in range(count - 1) for one in _comparisons(rest, m)]
        chances[combination.labels[k]] = _chance([one for one in comparisons if one.is_tested])
    left = [label for label, chance in chances.items() if chance > _ALLOWED]
    return sorted(left, key=lambda label: -chances[label]) if len(left) < count else []


def _chance(tested: Sequence[Comparison]) -> float:
    """Return the probability of the least likely deviation if nothing is wrong, at most 1."""
    return min(1.0, min((one.chance for one in tested), default=1.0) * len(tested))
