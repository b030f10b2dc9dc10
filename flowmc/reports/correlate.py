"""What ``flowmc correlate`` says about one ensemble, as a document."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from flowmc.actions.base import Action
from flowmc.correlate.config import CorrelateConfig
from flowmc.correlate.measurement import Entry, Section, Series
from flowmc.estimators.history import Result, fluctuations_of
from flowmc.estimators.reweighting import WeightVerdict
from flowmc.registry import title_of
from flowmc.reports import document as doc
from flowmc.reports import plots
from flowmc.reports.analysis.correlate_payoff import payoff_of_sections
from flowmc.reports.analysis.correlate_warnings import warnings_of
from flowmc.reports.pieces import ERROR_NOTE, note, payoff_section, table, tau_int_of
from flowmc.reports.words import quantity_text, theory_text

__all__ = ["correlate_document", "document_of", "section_of"]

# Columns of the table: key of Entry.against, heading.
AGAINST = {
    "rho": "rho",
    "gain_independent": "gain vs two ensembles",
    "gain_reweighting": "gain vs reweighting",
    "combined": "all combined",
    "difference": "own - combined",
}
_SOUND = doc.Verdict(True, "sound", "sound")
_UNSOUND = doc.Verdict(False, "not to be trusted", "do not trust them")
_CHANGES = 3  # of a target that are drawn
_COEFFICIENTS = 12  # of vector fields that are listed


def correlate_document(
    name: str, config: CorrelateConfig, series: Series, sections: Sequence[Section]
) -> doc.Document:
    """Return the document of one ensemble.

    Args:
        name: of the directory.
        config: what was asked.
        series: what was measured.
        sections: the results.
    """
    history = series.history
    facts: list[tuple[str, doc.Inline]] = [
        ("ensemble", history.ensemble),
        ("configurations", doc.Value(len(history))),
        ("replicas", doc.Value(len(history.numbers))),
        ("distance of numbers", doc.Value(history.spacing)),
    ]
    parts = [
        section_of(
            section,
            *_coefficients(section.details.get("coefficients") or {}),
            *_figures(series, section),
        )
        for section in sections
    ]
    return document_of(name, config.resolved["theory"], config.action, facts, sections, parts)


def document_of(
    name: str,
    theory: Mapping[str, Any],
    action: Action,
    facts: Sequence[tuple[str, doc.Inline]],
    sections: Sequence[Section],
    parts: Sequence[doc.Section],
) -> doc.Document:
    """Return a document from its head and its sections.

    Args:
        name: of the directory.
        theory: ``[theory]``.
        action: that of the table.
        facts: for the head.
        sections: the results, for warnings and gains.
        parts: what the document says about each.
    """
    pays = payoff_of_sections(sections)
    return doc.Document(
        name,
        theory_text(theory, title_of(type(action))),
        tuple(facts),
        (payoff_section(pays["answer"], pays["next"]), *parts),
        warnings=tuple(warnings_of(sections)),
    )


def section_of(section: Section, *more: doc.Part) -> doc.Section:
    """Return title, notes, weights and results of a section, and what else there is."""
    notes = (note(text, doc.EVERYWHERE) for text in section.notes)
    parts = (*notes, *_weights(section.weights), *_results(section.entries), *more)
    return doc.Section(section.title, parts, is_titled=True)


def _weights(weights: Mapping[str, WeightVerdict]) -> list[doc.Part]:
    header = (
        "weights at",
        "ESS",
        "effective configurations",
        "largest share",
        "Pareto k",
        "spread of ln W",
        doc.Column("verdict", short="", kind="words"),
    )
    rows = (
        (
            name,
            doc.Value(one.ess, one.ess_error),
            (doc.Value(round(one.samples * one.ess)), " of ", doc.Value(one.samples)),
            doc.Value(one.max_share, form=".2%"),
            doc.Value(one.pareto_k, form=".2f"),
            doc.Value(one.spread),
            _UNSOUND if one.warnings else _SOUND,
        )
        for name, one in weights.items()
    )
    return [table(header, rows)]


def _results(entries: Sequence[Entry]) -> list[doc.Part]:
    against = {key: text for key, text in AGAINST.items() if any(key in e.against for e in entries)}
    rows: list[Sequence[doc.Inline]] = [
        [
            quantity_text(one.observable),
            _value(one.result),
            tau_int_of(one.result.estimate),
            *(_value(one.against.get(key)) for key in against),
        ]
        for one in entries
    ]
    tau_int = doc.Column("tau_int", unit="configurations")
    found: list[doc.Part] = [table(("quantity", "value", tau_int, *against.values()), rows)]
    return [*found, ERROR_NOTE] if any(one.result.is_bound for one in entries) else found


def _value(result: Result | None) -> doc.Value:
    if result is None:
        return doc.Value(None)
    return doc.Value(result.value, result.error, error_is_bound=result.is_bound)


def _coefficients(coefficients: Mapping[str, float]) -> list[doc.Part]:
    """Return a table of the first vector fields and their coefficients."""
    chosen = list(coefficients.items())[:_COEFFICIENTS]
    rows: list[tuple[doc.Inline, ...]] = [
        (name, doc.Value(value, form=".4g")) for name, value in chosen
    ]
    left_out = len(coefficients) - len(chosen)
    if left_out:
        rows.append((f"and {left_out} more in summary.json", None))
    return [table(("vector field", "coefficient"), rows, doc.PAGE)]


def _figures(series: Series, section: Section) -> list[doc.Figure]:
    """Return whatever pictures a section has the material for."""
    found = []
    own = series.under(section.label)
    logs = {
        _weights_title(section, path.removesuffix("log_weight").rstrip("/")): values
        for path, values in own.items()
        if path.endswith("log_weight")
    }
    if logs:
        description = f"Histogram of ln W, {section.label}"
        found.append(doc.Figure(lambda: plots.correlate.weights_plot(logs), description))
    if "bracket" in own and section.details.get("coefficients"):
        description = f"Histograms of the bracket, {section.label}"
        found.append(
            doc.Figure(
                lambda: plots.correlate.bracket_plot(own["insertion"], own["bracket"]), description
            )
        )
    by_step = section.details.get("by_step")
    if by_step:
        results = {one.observable: one.result for one in section.entries}
        found.append(
            doc.Figure(
                lambda: plots.correlate.steps_plot(by_step, results), "Derivatives against the step"
            )
        )
    vectors = {
        name: results
        for name, results in _vectors(section.entries).items()
        if name.startswith(("effective_mass", "connected", "change of effective_mass"))
    }
    if vectors:
        found.append(doc.Figure(lambda: plots.correlate.vectors_plot(vectors), ", ".join(vectors)))
    changes = [
        one
        for one in section.entries
        if one.observable.startswith("change of ") and not one.observable.endswith("]")
    ]
    return [*found, *(figure for one in changes[:_CHANGES] for figure in _change(series, one))]


def _change(series: Series, entry: Entry) -> list[doc.Figure]:
    """Return what every configuration contributes to a difference."""
    result, history = entry.result, series.history
    if result.observable is None or not result.error > 0:
        return []
    contributions = result.value + fluctuations_of(result.observable, history)
    return [
        doc.Figure(
            lambda: plots.correlate.change_plot(
                entry.observable, history, contributions, result.value
            ),
            entry.observable,
        )
    ]


def _weights_title(section: Section, place: str) -> str:
    """Return what weights are called in the section's table, from where they are stored."""
    match = re.fullmatch(r"step(\d+)/(plus|minus)", place)
    if match is None:
        return place or section.label
    # The table has them in the same order.
    index = 2 * int(match[1]) + (match[2] == "minus")
    return list(section.weights)[index]


def _vectors(entries: Sequence[Entry]) -> dict[str, dict[int, Result]]:
    """Return the components of vectors by name and place."""
    vectors: dict[str, dict[int, Result]] = {}
    for entry in entries:
        match = re.fullmatch(r"(.*)\[(\d+)\]", entry.observable)
        if match:
            vectors.setdefault(match[1], {})[int(match[2])] = entry.result
    return vectors
