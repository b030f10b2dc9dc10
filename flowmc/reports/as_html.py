"""Pieces of pages: the frame, tables, pictures, numbers with errors, names of what is shown."""

from __future__ import annotations

import re
from collections.abc import Sequence
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, assert_never

from flowmc_adapters import atomic_write

from flowmc.jobs.own_files import naming
from flowmc.reports import document as doc
from flowmc.reports.words import capital, rounded, sentence

if TYPE_CHECKING:
    from flowmc.reports.plots.style import Drawing

__all__ = ["as_html", "write_html"]

SIGNS = {"none": "", "lower": "≥ ", "upper": "≤ ", "unknown": "≈ "}


def write_html(document: doc.Document, path: str | Path, *, follow: bool = True) -> Path:
    """Write a document as a page, replacing an older one atomically, and return its path.

    Args:
        document: what to write.
        path: where.
        follow: whether a symbolic link there is followed; not in somebody else's directory, where
            a planted one would lead elsewhere.

    Raises:
        OSError: if it cannot be written.
    """
    path = Path(path)
    text = as_html(document).encode()
    with naming(path), atomic_write(path, follow=follow) as file:
        file.write(text)
    return path


def as_html(document: doc.Document) -> str:
    """Return a document as a page: one file that loads nothing else."""
    template = (files("flowmc.reports") / "template.html").read_text(encoding="utf-8")
    return Template(template).substitute(
        title=escape(document.title),
        theory=_typeset(document.theory),
        facts="".join(
            f"<div><dt>{_typeset(name)}</dt><dd>{_inline(content)}</dd></div>"
            for name, content in document.facts
        ),
        verdict=_verdict(document.warnings),
        sections="\n".join(
            _section(one, "h2") for one in document.sections if one.shown is not doc.TEXT
        ),
    )


def _typeset(text: str) -> str:
    """Return plain words as HTML, with subscripts and signs."""
    text = escape(text).replace("&gt;= ", "≥ ").replace("&lt;= ", "≤ ").replace("-&gt; ", "→ ")
    text = re.sub(r"\btau_int\b", "τ_{int}", text)
    return re.sub(r"_\{([^{}]*)\}", r"<sub>\1</sub>", text)


def _section(section: doc.Section, heading: str) -> str:
    aside = "".join(f"<small>{_inline(content)}</small>" for content in section.aside)
    title = f"<{heading}>{_typeset(capital(section.title))}{aside}</{heading}>"
    return title + "".join(map(_part, section.parts))


def _part(part: doc.Part) -> str:
    match part:
        case doc.Figure():
            return _image(part.draw(), part.description)
        case doc.Code():
            return f"<pre>{escape(part.text)}</pre>"
        case _ if part.shown is doc.TEXT:
            return ""
        case doc.Paragraph():
            if part.is_note:
                text = part.text
                words = _typeset(sentence(text)) if isinstance(text, str) else _inline(text)
                return f'<p class="note">{words}</p>'
            words = _sentence(part.text) if isinstance(part.text, str) else _inline(part.text)
            return f"<p>{words}</p>"
        case doc.Listing():
            lead = f"<p>{_typeset(part.lead)}</p>" if part.lead else ""
            items = "".join(f"<li>{_sentence(text)}</li>" for text in part.items)
            return f"{lead}<ul>{items}</ul>"
        case doc.Table():
            return _table(part)
        case doc.Details():
            inside = "".join(map(_part, part.parts))
            return f"<details><summary>{_typeset(part.title)}</summary>{inside}</details>"
        case doc.Section():
            return _section(part, "h3")
    assert_never(part)


def _sentence(text: str) -> str:
    """Return a sentence, with a command such as ``flowmc report A B`` at its end set as code."""
    before, command, words = sentence(capital(text)).partition("flowmc ")
    if not command:
        return _typeset(before)
    return f"{_typeset(before)}<code>{escape(command + words.rstrip('.'))}</code>"


def _table(table: doc.Table) -> str:
    """Return a table; a narrow page repeats the headers in every row."""
    places = [i for i, one in enumerate(table.columns) if one.shown is not doc.TEXT]
    rows = [row for row in table.rows if row.shown is not doc.TEXT]
    if not rows:
        return ""
    columns = [table.columns[i] for i in places]
    headers = [_typeset(f"{one.title} ({one.unit})" if one.unit else one.title) for one in columns]
    attributes = [' class="number"' if one.kind == "number" else "" for one in columns]

    def data(row: doc.Row, place: int) -> str:
        content = row.cells[places[place]]
        cell = _bar(content) if columns[place].kind == "share" else _inline(content)
        if not cell:
            return '<td class="empty"></td>'
        if place == 0:
            return f"<td{attributes[place]}>{cell}</td>"
        label = re.sub(r"<[^>]*>", "", headers[place])
        return f'<td{attributes[place]} data-label="{label}"><span>{cell}</span></td>'

    head = "".join(
        f"<th{attribute}>{header}</th>"
        for attribute, header in zip(attributes, headers, strict=True)
    )
    body = "".join(
        f'<tr class="{"part" if row.is_part else ""}">'
        + "".join(data(row, place) for place in range(len(columns)))
        + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _inline(content: doc.Inline) -> str:
    match content:
        case None:
            return ""
        case str():
            return _typeset(content)
        case doc.Name():
            return _typeset(content.title)
        case doc.Verdict():
            words = _typeset(content.words)
            return words if content.passed else f'<span class="bound">{words}</span>'
        case tuple():
            return "".join(map(_inline, content))
        case doc.Value():
            text = rounded(content)
            if not text:
                return "–"
            if content.bound == "none" and not content.error_is_bound:
                return escape(text)
            mark = "!" if content.error_is_bound else ""
            return f'<span class="bound">{SIGNS[content.bound]}{escape(text)}{mark}</span>'
    assert_never(content)


def _bar(content: doc.Inline) -> str:
    """Return a part of a whole as a bar, and in per cent."""
    if not isinstance(content, doc.Value) or content.number is None:
        return ""
    return (
        f'<span class="bar"><span class="share"><i style="width:{100 * content.number:.1f}%"></i>'
        f"</span>{content.number:.0%}</span>"
    )


def _verdict(warnings: Sequence[str]) -> str:
    """Return the box at the top of a page: what to look at, or that nothing was found."""
    if not warnings:
        return (
            '<div class="verdict fine"><strong>Nothing to object to.</strong> '
            "All checks of this report passed.</div>"
        )
    items = "".join(f"<li>{_typeset(sentence(text))}</li>" for text in warnings)
    count = "One thing" if len(warnings) == 1 else f"{len(warnings)} things"
    return (
        f'<div class="verdict doubt"><strong>{count} to look at before using these numbers'
        f"</strong><ul>{items}</ul></div>"
    )


def _image(drawing: Drawing, alternative: str) -> str:
    """Return a plot as a figure, with a text for those who cannot see it.

    Both drawings are there, and the style sheet shows one of them.
    """
    return (
        f'<figure role="img" aria-label="{escape(alternative)}">'
        f'<div class="wide">{drawing.wide}</div><div class="narrow">{drawing.narrow}</div></figure>'
    )
