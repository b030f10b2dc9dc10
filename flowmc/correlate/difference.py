r"""``[[derivative]] method = "difference"``: central differences on the same configurations.

.. math:: D(h) = \frac{1}{2h} \left[
          \frac{\langle W_+ O(f_+ U) \rangle}{\langle W_+ \rangle}
          - \frac{\langle W_- O(f_- U) \rangle}{\langle W_- \rangle} \right]
          = \frac{d \langle O \rangle}{d \lambda} + c\,h^2 + O(h^4)

with flows :math:`f_\pm` from :math:`\lambda` to :math:`\lambda \pm h` or without any.  Several
steps are extrapolated linearly in :math:`h^2`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from flowmc.actions.theory import check_couplings
from flowmc.correlate.measurement import (
    Columns,
    Context,
    Entry,
    Measurement,
    Sample,
    Section,
    Series,
)
from flowmc.correlate.quantities import against, component_label, components, judged
from flowmc.correlate.shift import Shift
from flowmc.estimators.reweighting import WeightVerdict
from flowmc.registry import ConfigError

__all__ = ["Difference"]

_SIDES = ("plus", "minus")


class Difference(Measurement):
    r"""The derivative of every observable by a coupling, from central differences.

    Args:
        label: of the derivative.
        context: the theory of the ensemble and the observables.
        coupling: :math:`\lambda`.
        steps: values of h > 0.
        flows: for each step a flow to :math:`\lambda + h` and one to :math:`\lambda - h`, files
            in a configuration and objects in Python; by default plain reweighting.
        extrapolate: h -> 0 by a fit linear in h^2, where there are two steps or more; otherwise
            the smallest step is the result.

    Raises:
        ConfigError: naming the key that is unusable.
    """

    def __init__(
        self,
        label: str,
        context: Context,
        *,
        coupling: str,
        steps: list[float],
        flows: list[list[Any]] | None = None,
        extrapolate: bool = True,
    ) -> None:
        where = f"[[derivative]] {label}"
        if not steps or any(not step > 0 for step in steps) or len(set(steps)) < len(steps):
            raise ConfigError(f"{where}: steps = {steps!r}: should be different positive numbers")
        if flows is not None and (
            len(flows) != len(steps) or any(len(pair) != len(_SIDES) for pair in flows)
        ):
            raise ConfigError(
                f"{where}: flows should list one pair for each of {len(steps)} steps: a flow to "
                f'{coupling} + step and one to {coupling} - step; "identity" is plain reweighting'
            )
        if coupling not in context.action.parameters:
            check_couplings(context.action, {coupling: 0.0}, where)
        self.label, self.context, self.coupling = label, context, coupling
        self.steps = sorted(steps)
        self.is_extrapolated = extrapolate and len(steps) > 1
        self._place = {step: f"step{i}" for i, step in enumerate(self.steps)}
        pairs = dict(zip(steps, flows or [["identity"] * 2] * len(steps), strict=True))
        self.value = context.action.parameters[coupling]
        self.shifts = {
            (step, side): self._shift(step, side, pairs[step][i], where)
            for step in self.steps
            for i, side in enumerate(_SIDES)
        }

    def _shift(self, step: float, side: str, flow: Any, where: str) -> Shift:
        value = self.value + (step if side == "plus" else -step)
        action = check_couplings(self.context.action, {self.coupling: value}, where)
        return Shift(self.context, action, self.context.load_flow(flow, action, where))

    @torch.no_grad()
    def measure(self, sample: Sample) -> Columns:
        columns: Columns = {}
        for (step, side), shift in self.shifts.items():
            _, found = shift.apply(sample)
            place = f"{self._place[step]}/{side}"
            columns |= {f"{place}/{path}": values for path, values in found.items()}
        return columns

    def analyse(self, series: Series) -> Section:
        history, weights = series.history, {}
        source = series.means()
        source = {**source, **self.context.derived.values(source)}
        slopes: list[dict[str, Any]] = []
        plain: list[dict[str, Any]] = []
        ends: list[dict[str, dict[str, Any]]] = []
        for step in self.steps:
            own, reweighted = {}, {}
            for side in _SIDES:
                shift = self.shifts[step, side]
                columns = series.under(f"{self.label}/{self._place[step]}/{side}")
                own[side] = shift.means(columns, series)
                reweighted[side] = shift.plain_means(columns, series)
                sign = "+" if side == "plus" else "-"
                weights[f"{self.coupling} {sign} {step:g}"] = shift.verdict(columns, history)
            slopes.append(_slope(own, step))
            plain.append(_slope(reweighted, step))
            ends.append(own)
        is_plain = all(shift.is_plain for shift in self.shifts.values())
        entries, table = [], {}
        for label, index in components(slopes[0]):
            if any(slope[label][index] is None for slope in slopes):
                continue
            name = component_label(label, index)
            by_step = [slope[label][index] for slope in slopes]
            results = [
                judged(name, one, *_doubts(weights, self.steps[i])) for i, one in enumerate(by_step)
            ]
            value, comparison = results[0], plain[0][label][index]
            factor = 2 / (2 * self.steps[0]) ** 2
            if self.is_extrapolated:
                errors = [one.error for one in results]
                fit = _fit_weights(self.steps, errors)
                sentences = [text for one in results for text in one.warnings]
                value = judged(name, _linear(by_step, fit), *dict.fromkeys(sentences))
                comparison = _linear([one[label][index] for one in plain], fit)
                factor = float(np.sum((fit / np.array(self.steps)) ** 2)) / 2
            compared = against(
                history,
                value,
                ensembles=(ends[0]["plus"][label][index], ends[0]["minus"][label][index]),
                independent=(source[label][index], factor),
                reweighting=None if is_plain else comparison,
            )
            entries.append(Entry(name, value, compared))
            table[name] = {
                "steps": self.steps,
                "values": [one.value for one in results],
                "errors": [one.error for one in results],
            }
        return Section(
            self.label,
            f"derivatives d/d {self.coupling} at {self.coupling} = {self.value:g}, "
            "central differences",
            entries,
            weights,
            {"by_step": table},
        )


def _slope(ends: dict[str, dict[str, Any]], step: float) -> dict[str, Any]:
    """Return (plus - minus) / 2h of every quantity; None where one of them has no value."""
    slopes = {}
    for label, plus in ends["plus"].items():
        minus = ends["minus"][label]
        slope = np.empty(plus.shape, dtype=object)
        for index in np.ndindex(*plus.shape):
            if plus[index] is not None and minus[index] is not None:
                slope[index] = (plus[index] - minus[index]) / (2 * step)
        slopes[label] = slope
    return slopes


def _fit_weights(steps: Sequence[float], errors: Sequence[float]) -> np.ndarray:
    r"""Return the weights of a least-squares fit of D(h) = D_0 + c h^2 that give D_0.

    The fit is weighted with 1 / error^2 without correlations, which are close to one: a correlated
    fit would divide by small differences of a noisy matrix.  The error of the result is
    propagated with all correlations.
    """
    squares = np.array(steps) ** 2
    known = np.array(errors)
    inverse = np.ones(len(known)) if not (known > 0).all() else 1 / known**2
    design = np.stack([np.ones(len(squares)), squares / squares.max()], 1)
    normal = design.T @ (inverse[:, None] * design)
    return np.linalg.solve(normal, design.T * inverse)[0]


def _linear(observables: Sequence[Any], weights: np.ndarray) -> Any:
    total = observables[0] * float(weights[0])
    for one, weight in zip(observables[1:], weights[1:], strict=True):
        total = total + one * float(weight)
    return total


def _doubts(weights: dict[str, WeightVerdict], step: float) -> list[str]:
    return [
        text
        for name, verdict in weights.items()
        if name.endswith(f" {step:g}")
        for text in (f"{name}: {one}" for one in verdict.warnings)
    ]
