"""Pieces of ``report.html``: tables, pictures, numbers with errors, names of observables."""

from __future__ import annotations

import base64
import math
from collections.abc import Sequence
from html import escape

from flowmc.estimators.autocorrelation import Estimate, format_value
from flowmc.run.recorded import RecordedRun

__all__ = [
    "html_table",
    "image",
    "independent_html",
    "replica_titles",
    "sentence",
    "tau_html",
    "title_of",
]

NAMES = {
    "action": "Action density S/V",
    "plaquette": "Plaquette",
    "plaquette_correlator": "Correlator of spatial plaquettes",
    "topological_charge": "Topological charge Q",
    "energy_density": "Energy density E",
    "polyakov_loop": "Polyakov loop",
    "wilson_loop": "Wilson loop",
    "magnetization": "Magnetisation m",
    "abs_magnetization": "Magnetisation |m|",
    "phi2": "⟨φ²⟩",
    "susceptibility": "Susceptibility V m²",
    "correlator": "Correlator C(t)",
}


def html_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
    classes: Sequence[str] = (),
) -> str:
    """Return a table of cells that are HTML already.

    Args:
        header: of the columns.
        rows: cells.
        numbers: indices of the columns that hold numbers.
        classes: of the rows.
    """

    def cells(tag: str, row: Sequence[str]) -> str:
        return "".join(
            f'<{tag} class="number">{cell}</{tag}>' if i in numbers else f"<{tag}>{cell}</{tag}>"
            for i, cell in enumerate(row)
        )

    body = "".join(
        f'<tr class="{name}">{cells("td", row)}</tr>'
        for row, name in zip(rows, classes or [""] * len(rows), strict=True)
    )
    return f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{body}</tbody></table>"


def image(svg: str, alternative: str) -> str:
    """Return an SVG drawing as a figure, with a text for those who cannot see it."""
    # As an image rather than inline: the identifiers inside two drawings would collide.
    data = base64.b64encode(svg.encode()).decode()
    return (
        f'<figure><img alt="{escape(alternative)}" src="data:image/svg+xml;base64,{data}"></figure>'
    )


def tau_html(estimate: Estimate) -> str:
    """Return tau_int, marked where it is a lower bound."""
    text = escape(format_value(estimate.tau_int, estimate.tau_int_error))
    return f'<span class="bound">≥ {text}</span>' if estimate.is_bound else text


def independent_html(estimate: Estimate) -> str:
    """Return the number of independent samples, marked where it is an upper bound."""
    if not math.isfinite(estimate.tau_int):
        return "–"
    number = f"{estimate.samples / (2 * estimate.tau_int):,.0f}"
    return f'<span class="bound">≤ {number}</span>' if estimate.is_bound else number


def title_of(name: str) -> str:
    """Return how an observable is called in headings."""
    stem, bracket, keys = name.partition("(")
    title = NAMES.get(stem, stem.replace("_", " "))
    return f"{title} {bracket}{keys}" if bracket else title


def replica_titles(run: RecordedRun) -> list[str]:
    """Return the names of the replicas, the target marked."""
    names = [run.replica_name(index) for index in range(run.replicas)]
    return [f"{names[0]} (target)", *names[1:]]


def sentence(text: str) -> str:
    """Return a text that begins like a sentence and ends with a full stop."""
    return text if text.endswith(".") else f"{text}."
