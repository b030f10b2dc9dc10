"""Pieces of pages: the frame, tables, pictures, numbers with errors, names of what is shown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from html import escape, unescape
from importlib.resources import files
from string import Template
from typing import Any

from flowmc.chains.storage.declarations import observable_title
from flowmc.chains.storage.recorded import RecordedRun
from flowmc.estimators.autocorrelation import Estimate, format_value
from flowmc.registry import built_in_title
from flowmc.reports.plots.style import Drawing

__all__ = [
    "capital",
    "document_html",
    "html_table",
    "image",
    "independent_html",
    "list_html",
    "payoff_html",
    "replica_titles",
    "sentence",
    "tau_html",
    "theory_text",
    "title_of",
    "verdict_html",
]


def document_html(
    title: str,
    theory: str,
    facts: Sequence[tuple[str, str]],
    warnings: Sequence[str],
    sections: Sequence[str],
) -> str:
    """Return a whole page.

    Args:
        title: text of the heading.
        theory: text of the line below it.
        facts: name and text of the numbers at the top.
        warnings: sentences.
        sections: HTML.
    """
    template = (files("flowmc.reports") / "template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(title),
        theory=escape(theory),
        facts="".join(
            f"<div><dt>{escape(name)}</dt><dd>{escape(text)}</dd></div>" for name, text in facts
        ),
        verdict=verdict_html(warnings),
        sections="\n".join(sections),
    )


def verdict_html(warnings: Sequence[str]) -> str:
    """Return the box at the top of a page: what to look at, or that nothing was found."""
    if not warnings:
        return (
            '<div class="verdict fine"><strong>Nothing to object to.</strong> '
            "All checks of this report passed.</div>"
        )
    count = "One thing" if len(warnings) == 1 else f"{len(warnings)} things"
    return (
        f'<div class="verdict doubt"><strong>{count} to look at before using these numbers'
        f"</strong>{list_html(warnings)}</div>"
    )


def list_html(sentences: Sequence[str]) -> str:
    """Return sentences as a list."""
    return "<ul>" + "".join(f"<li>{escape(sentence(text))}</li>" for text in sentences) + "</ul>"


def payoff_html(answer: Sequence[str], following: Sequence[str], table: str = "") -> str:
    """Return the section that says whether it pays, and what to change next.

    Args:
        answer: sentences.
        following: sentences, what to change.
        table: of the numbers, as HTML.
    """
    text = "".join(f"<p>{code_html(sentence(capital(one)))}</p>" for one in answer)
    if following:
        items = "".join(f"<li>{code_html(sentence(capital(one)))}</li>" for one in following)
        text += f"<p>What to change next:</p><ul>{items}</ul>"
    return f"<h2>Does it pay?</h2>{text}{table}"


def code_html(text: str) -> str:
    """Return a text as HTML, with commands such as ``flowmc report A B`` at its end set as code."""
    before, command, words = text.replace(">= ", "≥ ").partition("flowmc ")
    if not command:
        return escape(text)
    return f"{escape(before)}<code>{escape(command + words.rstrip('.'))}</code>"


def theory_text(table: Mapping[str, Any], title: str = "") -> str:
    """Return a ``[theory]`` table in words.

    Args:
        table: as in a configuration.
        title: of the action, if it is not built in.
    """
    words = []
    action = str(table.get("action", ""))
    if "group" in table:
        words.append(str(table["group"]))
    if action:
        words.append(title or built_in_title("actions", action) or action)
    if isinstance(table.get("lattice"), list):
        words.append("on " + " × ".join(str(extent) for extent in table["lattice"]))
    rest = [
        f"{key} = {value}"
        for key, value in table.items()
        if key not in ("action", "group", "lattice")
    ]
    return " ".join(words) + (", " + ", ".join(rest) if rest else "")


def html_table(
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    numbers: Sequence[int] = (),
    classes: Sequence[str] = (),
) -> str:
    """Return a table of cells that are HTML already.

    Args:
        header: of the columns; a narrow page repeats it in every row.
        rows: cells.
        numbers: indices of the columns that hold numbers.
        classes: of the rows.
    """
    labels = [escape(unescape(re.sub(r"<[^>]*>", "", cell))) for cell in header]

    def data(column: int, cell: str) -> str:
        if not cell:
            return '<td class="empty"></td>'
        number = ' class="number"' if column in numbers else ""
        if column == 0:
            return f"<td{number}>{cell}</td>"
        return f'<td{number} data-label="{labels[column]}"><span>{cell}</span></td>'

    head = "".join(
        f'<th class="number">{cell}</th>' if i in numbers else f"<th>{cell}</th>"
        for i, cell in enumerate(header)
    )
    body = "".join(
        f'<tr class="{name}">' + "".join(data(i, cell) for i, cell in enumerate(row)) + "</tr>"
        for row, name in zip(rows, classes or [""] * len(rows), strict=True)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def image(drawing: Drawing, alternative: str) -> str:
    """Return a plot as a figure, with a text for those who cannot see it.

    Both drawings are there, and the style sheet shows one of them.
    """
    return (
        f'<figure role="img" aria-label="{escape(alternative)}">'
        f'<div class="wide">{drawing.wide}</div><div class="narrow">{drawing.narrow}</div></figure>'
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
    return observable_title(name, {})


def replica_titles(run: RecordedRun) -> list[str]:
    """Return the names of the replicas, the target marked."""
    names = [run.replica_name(index) for index in range(run.replicas)]
    return [f"{names[0]} (target)", *names[1:]]


def sentence(text: str) -> str:
    """Return a text that ends with a full stop."""
    return text if text.endswith(".") else f"{text}."


def capital(text: str) -> str:
    """Return a text that begins with a capital letter."""
    return text[:1].upper() + text[1:]
