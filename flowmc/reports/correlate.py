"""``report.html`` of ``flowmc correlate``: a single file that loads nothing else."""

from __future__ import annotations

import math
import os
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from flowmc_adapters import atomic_write

from flowmc.correlate.directory import CorrelateDirectory
from flowmc.correlate.measurement import Entry, Section, Series
from flowmc.estimators.history import Result, fluctuations_of
from flowmc.estimators.reweighting import WeightVerdict
from flowmc.reports.analysis.correlate_payoff import payoff_of_sections
from flowmc.reports.as_html import (
    document_html,
    html_table,
    image,
    payoff_html,
    sentence,
    tau_html,
    theory_text,
)
from flowmc.reports.as_text import quantity_text
from flowmc.reports.correlate_text import AGAINST, marked, warnings_of
from flowmc.reports.plots.correlate import (
    bracket_plot,
    change_plot,
    steps_plot,
    vectors_plot,
    weights_plot,
)

__all__ = ["section_html", "write_page", "write_parts"]

_CHANGES = 3  # of a target that are drawn
_COEFFICIENTS = 12  # of vector fields that are listed


def write_page(
    directory: CorrelateDirectory,
    theory: Mapping[str, Any],
    series: Series,
    sections: Sequence[Section],
) -> None:
    """Write the page, replacing an older one atomically.

    Raises:
        OSError: if the directory cannot be written.
    """
    history = series.history
    facts = [
        ("ensemble", history.ensemble),
        ("configurations", f"{len(history):,}"),
        ("replicas", str(len(history.numbers))),
        ("distance of numbers", str(history.spacing)),
    ]
    parts = [
        section_html(
            section,
            _coefficients(section.details.get("coefficients") or {}),
            *_plots(series, section),
        )
        for section in sections
    ]
    write_parts(directory, theory, facts, sections, parts)


def write_parts(
    directory: CorrelateDirectory,
    theory: Mapping[str, Any],
    facts: Sequence[tuple[str, str]],
    sections: Sequence[Section],
    parts: Sequence[str],
) -> None:
    """Write the page from what its sections look like.

    Args:
        directory: where.
        theory: ``[theory]``.
        facts: for the head, name and text.
        sections: whose warnings are shown at the top.
        parts: the sections as HTML.

    Raises:
        OSError: if the directory cannot be written.
    """
    warnings = [text for section in sections for text in warnings_of(section)]
    pays = payoff_of_sections(sections)
    text = document_html(
        os.path.basename(os.path.abspath(directory.path)) or str(directory.path),
        theory_text(theory),
        facts,
        list(dict.fromkeys(warnings)),
        [payoff_html(pays["answer"], pays["next"]), *parts],
    )
    with atomic_write(directory.report) as file:
        file.write(text.encode())


def section_html(section: Section, *more: str) -> str:
    """Return a section: title, notes, weights and results, and what else there is, as HTML."""
    return (
        f"<h2>{escape(section.title[:1].upper() + section.title[1:])}</h2>"
        + "".join(f'<p class="note">{escape(sentence(text))}</p>' for text in section.notes)
        + _weights(section.weights)
        + (_table(section.entries) if section.entries else "")
        + "".join(more)
    )


def _weights(weights: Mapping[str, WeightVerdict]) -> str:
    if not weights:
        return ""
    rows = [
        [
            escape(name),
            f"{one.ess:.3f} ± {one.ess_error:.3f}",
            f"{one.samples * one.ess:,.0f} of {one.samples:,}",
            f"{one.max_share:.2%}",
            "–" if math.isnan(one.pareto_k) else f"{one.pareto_k:.2f}",
            f"{one.spread:.3g}",
            '<span class="bound">not to be trusted</span>' if one.warnings else "sound",
        ]
        for name, one in weights.items()
    ]
    header = [
        "weights at",
        "ESS",
        "effective configurations",
        "largest share",
        "Pareto k",
        "spread of ln W",
        "verdict",
    ]
    return html_table(header, rows, numbers=range(1, 6))


def _table(entries: Sequence[Entry]) -> str:
    columns = [
        (key, heading) for key, heading in AGAINST if any(key in one.against for one in entries)
    ]
    rows = [
        [
            escape(quantity_text(one.observable)),
            _value_html(one.result),
            tau_html(one.result.estimate),
            *(
                escape(marked(one.against[key])) if key in one.against else "–"
                for key, _ in columns
            ),
        ]
        for one in entries
    ]
    header = [
        "quantity",
        "value",
        "τ<sub>int</sub> (configurations)",
        *(escape(heading) for _, heading in columns),
    ]
    return html_table(header, rows, numbers=range(1, len(header)))


def _coefficients(coefficients: Mapping[str, float]) -> str:
    """Return a table of the first vector fields and their coefficients."""
    if not coefficients:
        return ""
    chosen = list(coefficients.items())[:_COEFFICIENTS]
    left_out = len(coefficients) - len(chosen)
    rows = [[escape(name), f"{value:.4g}"] for name, value in chosen]
    if left_out:
        rows.append([f"and {left_out} more in summary.json", ""])
    return html_table(["vector field", "coefficient"], rows, numbers=range(1, 2))


def _value_html(result: Result) -> str:
    text = escape(str(result))
    return f'<span class="bound">{text} (bound)</span>' if result.is_bound else text


def _plots(series: Series, section: Section) -> list[str]:
    """Return whatever pictures a section has the material for."""
    found = []
    logs = {
        _weights_title(section, path.removesuffix("log_weight").rstrip("/")): values
        for path, values in series.under(section.label).items()
        if path.endswith("log_weight")
    }
    if logs:
        found.append(image(weights_plot(logs), f"Histogram of ln W, {section.label}"))
    own = series.under(section.label)
    if "bracket" in own and section.details.get("coefficients"):
        plot = bracket_plot(own["insertion"], own["bracket"])
        found.append(image(plot, f"Histograms of the bracket, {section.label}"))
    table = section.details.get("by_step")
    if table:
        results = {one.observable: one.result for one in section.entries}
        found.append(image(steps_plot(table, results), "Derivatives against the step"))
    vectors = {
        name: results
        for name, results in _vectors(section.entries).items()
        if name.startswith(("effective_mass", "connected", "change of effective_mass"))
    }
    if vectors:
        found.append(image(vectors_plot(vectors), ", ".join(vectors)))
    changes = [
        one
        for one in section.entries
        if one.observable.startswith("change of ") and not one.observable.endswith("]")
    ]
    for entry in changes[:_CHANGES]:
        if entry.result.observable is not None and entry.result.error > 0:
            deltas = fluctuations_of(entry.result.observable, series.history)
            value = entry.result.value
            plot = change_plot(entry.observable, series.history, value + deltas, value)
            found.append(image(plot, entry.observable))
    return found


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
