r"""``[[derivative]] method = "linear"``: derivatives at zero step, with vector fields.

.. math:: \frac{d\langle O\rangle}{d\lambda} = \langle \partial_\lambda O \rangle
          + \langle v \cdot \partial O \rangle + \mathrm{cov}(O, B)

(:mod:`flowmc.estimators.linear_response`; the first term for observables that depend on the
coupling themselves).  Of an observable that jumps, such as a rounded charge, the second term is
zero almost everywhere and lacks the boundaries: without it and without vector fields, as plain
reweighting, the formula holds for any observable.

A first pass over the ensemble measures what B is made of; the coefficients of the vector fields are
fitted to it, and the second pass needs derivatives along a single field.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from flowmc.actions.base import Action, at_couplings
from flowmc.actions.theory import check_couplings
from flowmc.chains.measuring import measure_field
from flowmc.config.entries import ObservableEntry
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
from flowmc.estimators.linear_response import (
    advection,
    bracket,
    bracket_terms,
    cross_fit,
    linear_derivative,
)
from flowmc.random import stream
from flowmc.registry import ConfigError, build, positional_of, resolve, split_name
from flowmc.vector_fields import VectorFields

__all__ = ["Linear"]


class Linear(Measurement):
    r"""The derivative of every observable by a coupling, exact at zero step.

    Args:
        label: of the derivative.
        context: the theory of the ensemble and the observables.
        coupling: :math:`\lambda`.
        fields: families of vector fields by name, or as tables with their keys: "kernels" (scalar
            fields), "loops" (gauge fields), "krylov", or "package.module:Name", in Python also the
            families themselves; by default the first that fits the theory.  An empty list is plain
            reweighting.
        folds: parts of the ensemble for the fits of coefficients, >= 2.
        step: for comparison, the step h of a central difference of two independent ensembles.
        seed: of stochastic divergences.

    Raises:
        ConfigError: naming the key that is unusable.
    """

    has_survey = True

    def __init__(
        self,
        label: str,
        context: Context,
        *,
        coupling: str,
        fields: list[Any] | None = None,
        folds: int = 2,
        step: float | None = None,
        seed: int = 0,
    ) -> None:
        where = f"[[derivative]] {label}"
        if coupling not in context.action.parameters:
            check_couplings(context.action, {coupling: 0.0}, where)
        if folds < 2 or (step is not None and not step > 0) or seed < 0:
            raise ConfigError(
                f"{where}: folds = {folds}, step = {step}, seed = {seed}: should be at least 2, "
                "positive, and at least 0"
            )
        self.label, self.context, self.coupling = label, context, coupling
        self.folds, self.step, self.seed = folds, step, seed
        self.value = context.action.parameters[coupling]
        default = ["loops"] if context.action.is_gauge else ["kernels"]
        self.families = [
            self._family(entry, where) for entry in (default if fields is None else fields)
        ]
        self.names = [name for family in self.families for name in family.names]
        self._settled: dict[tuple[str, int], tuple[NDArray, float, float]] = {}
        self._explicit: list[ObservableEntry] | None = None

    def _family(self, entry: Any, where: str) -> VectorFields:
        if isinstance(entry, VectorFields):
            return entry
        name, keys = split_name(entry, f"{where}: fields", '{name = "loops"}')
        component = resolve("vector_fields", name, f"{where}: fields")
        positional: list[Any] = [self.context.action]
        if "coupling" in positional_of(component):
            positional.append(self.coupling)
        try:
            family = build(component, keys, f"{where}: fields: {name}", *positional)
        except ConfigError:
            raise
        except ValueError as error:
            raise ConfigError(f"{where}: fields: {name}: {error}") from error
        if not isinstance(family, VectorFields):
            raise ConfigError(
                f"{where}: fields: {name} is no family of vector fields "
                "(flowmc.vector_fields.VectorFields)"
            )
        return family

    @torch.no_grad()
    def survey(self, sample: Sample) -> Columns:
        field = _double(sample.field)
        exact = all(family.divergence_is_exact for family in self.families)
        # Stochastic divergences draw from streams of their configurations: no result depends on
        # which others are in the batch.
        parts = [field] if exact else field.split(1)
        found = []
        for part, member in zip(parts, sample.members, strict=False):
            purpose = f"divergence, {member.replica}, {member.number}"
            rng = stream(self.seed, 0, purpose, field.device)
            found.append(
                bracket_terms(self.context.action, self.coupling, self.families, part, rng)
            )
        return {
            "insertion": torch.cat([one for one, _ in found]).cpu().numpy(),
            "terms": torch.cat([terms for _, terms in found]).cpu().numpy(),
        }

    def settle(self, survey: Series) -> None:
        columns = survey.under(self.label)
        insertion, terms = columns["insertion"], columns["terms"]
        finite = np.isfinite(insertion) & np.isfinite(terms).all(1)
        if not finite.all():
            raise ConfigError(
                f"[[derivative]] {self.label}: a vector field is not finite on configuration "
                f"{int(np.flatnonzero(~finite)[0])} of the ensemble"
            )
        try:
            coefficients = cross_fit(survey.history, insertion, terms, self.folds)
        except ValueError as error:
            raise ConfigError(f"[[derivative]] {self.label}: {error}") from error
        brackets = bracket(insertion, terms, coefficients)
        keys = [
            (replica, int(number))
            for replica, numbers in survey.history.numbers.items()
            for number in numbers
        ]
        self._settled = {
            key: (coefficients[i], float(insertion[i]), float(brackets[i]))
            for i, key in enumerate(keys)
        }

    @torch.no_grad()
    def measure(self, sample: Sample) -> Columns:
        rows = [self._settled[one.replica, one.number] for one in sample.members]
        coefficients = np.stack([row[0] for row in rows])
        field, action = _double(sample.field), self.context.action
        entries = self.context.observables
        shapes = {entry.label: sample.observables[entry.label].shape[1:] for entry in entries}

        def observables(moved: Tensor) -> Tensor:
            values = [measure_field(entry, action, moved) for entry in entries]
            flat = np.concatenate([one.reshape(len(moved), -1) for one in values], 1)
            return torch.from_numpy(flat).to(moved.device)

        advected = advection(
            action, self.families, torch.from_numpy(coefficients), field, observables
        ).cpu()
        columns: Columns = {
            # Those that were used, on which the ensemble may have grown since.
            "coefficients": coefficients,
            "insertion": np.array([row[1] for row in rows]),
            "bracket": np.array([row[2] for row in rows]),
        }
        sizes = [int(np.prod(shapes[entry.label], dtype=int)) for entry in entries]
        for entry, part in zip(entries, advected.split(sizes, 1), strict=True):
            shape = (len(field), *shapes[entry.label])
            columns[f"advected/{entry.label}"] = part.reshape(shape).numpy()
        for entry in self._explicit_in_coupling(sample):
            columns[f"explicit/{entry.label}"] = self._slope(entry, field)
        return columns

    def analyse(self, series: Series) -> Section:
        columns, history = series.under(self.label), series.history
        plain_means = series.means()
        means = {**plain_means, **self.context.derived.values(plain_means)}
        slopes, plain = {}, {}
        jumping: list[str] = []
        for label, values in series.under("observables").items():
            explicit = columns.get(f"explicit/{label}", np.zeros_like(values))
            slopes[label] = linear_derivative(
                history, values, columns[f"advected/{label}"] + explicit, columns["bracket"]
            )
            plain[label] = linear_derivative(history, values, explicit, columns["insertion"])
            if self.names and _jumps(values, columns[f"advected/{label}"]):
                jumping.append(label)
                slopes[label] = plain[label]
        for found in (slopes, plain):
            found |= self.context.derived.slopes(plain_means, found)
        factor = None if self.step is None else 2 / (2 * self.step) ** 2
        entries = []
        for label, index in components(slopes):
            if plain[label][index] is None or means[label][index] is None:
                continue
            result = judged(component_label(label, index), slopes[label][index])
            compared = against(
                history,
                result,
                independent=None if factor is None else (means[label][index], factor),
                reweighting=plain[label][index] if self.names else None,
            )
            entries.append(Entry(result.name, result, compared))
        return Section(
            self.label,
            f"derivatives d/d {self.coupling} at {self.coupling} = {self.value:g}, linear response"
            + (f" with {len(self.names)} vector fields" if self.names else ", plain reweighting"),
            entries,
            details=self._details(columns),
            warnings=[
                *(
                    f"{label} jumps between configurations where the vector fields do not move it: "
                    "its derivative along them lacks what comes from the boundaries, so that of "
                    "plain reweighting is given"
                    for label in jumping
                ),
                *self._warnings(columns),
            ],
        )

    def _details(self, columns: Columns) -> dict[str, Any]:
        mean = columns["coefficients"].mean(0)
        return {
            "coefficients": dict(zip(self.names, mean.tolist(), strict=True)),
            "variance_of_insertion": float(np.var(columns["insertion"])),
            "variance_of_bracket": float(np.var(columns["bracket"])),
            "two_ensembles_at_step": self.step,
        }

    def _warnings(self, columns: Columns) -> list[str]:
        before, after = np.var(columns["insertion"]), np.var(columns["bracket"])
        if self.names and not after < before:
            return [
                f"the {len(self.names)} vector fields make the bracket noisier than it is without "
                "(too few configurations for so many coefficients, or fields that do not suit the "
                "theory): use fewer, or fields = [] for plain reweighting"
            ]
        return []

    def _explicit_in_coupling(self, sample: Sample) -> Sequence[ObservableEntry]:
        """Return the observables that depend on the coupling at fixed field."""
        if self._explicit is None:
            one, action = _double(sample.field[:1]), self.context.action
            elsewhere = _nearby(action, self.coupling)
            self._explicit = [
                entry
                for entry in self.context.observables
                if not np.array_equal(
                    measure_field(entry, action, one), measure_field(entry, elsewhere, one)
                )
            ]
        return self._explicit

    def _slope(self, entry: ObservableEntry, field: Tensor) -> NDArray[np.float64]:
        return self.context.action.differentiate(
            self.coupling, lambda action: torch.from_numpy(measure_field(entry, action, field))
        ).numpy()


def _jumps(values: NDArray[np.float64], advected: NDArray[np.float64]) -> bool:
    """Return whether a component is piecewise constant: it varies, but hardly ever by a bit."""
    varies = np.ptp(values, axis=0) > 0
    return bool((varies & (np.mean(advected == 0, axis=0) > 0.5)).any())


def _nearby(action: Action, coupling: str) -> Action:
    """Return the theory at another value of the coupling."""
    value = action.parameters[coupling]
    step = 0.01 * (abs(value) or 1.0)
    try:
        return at_couplings(action, {coupling: value + step})
    except ValueError:
        return at_couplings(action, {coupling: value - step})


def _double(field: Tensor) -> Tensor:
    return field.to(torch.complex128 if field.is_complex() else torch.float64)
