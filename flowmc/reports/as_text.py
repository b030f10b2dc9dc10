"""A document as it is printed in a terminal: plain tables, numbers as ``0.31498(72)``."""

from __future__ import annotations

from collections.abc import Sequence
from typing import assert_never

from flowmc.reports import document as doc
from flowmc.reports.words import plain, rounded

__all__ = ["as_text"]

SIGNS = {"none": "", "lower": ">= ", "upper": "<= ", "unknown": "~ "}


def as_text(document: doc.Document) -> str:
    """Return what is printed, without a line end: figures, details and code are left out."""
    blocks = [[document.headline]] if document.headline else []
    blocks.append([f"! {text}" for text in document.warnings])
    for section in sorted(document.sections, key=lambda section: section.is_last):
        blocks.append(_section(section))
    return "\n\n".join("\n".join(lines) for lines in blocks if lines)


def _section(section: doc.Section) -> list[str]:
    if section.shown is doc.PAGE:
        return []
    lines = _parts(section.parts)
    if not section.is_titled or not lines:
        return lines
    indent = "" if section.is_last else "  "
    return [plain(section.title), *(f"{indent}{line}".rstrip() for line in lines)]


def _parts(parts: Sequence[doc.Part]) -> list[str]:
    lines: list[str] = []
    before: doc.Part | None = None
    for part in parts:
        added = _part(part)
        if not added:
            continue
        # Paragraphs stand with the table that they are about.
        if not isinstance(before, doc.Paragraph | None) and isinstance(
            part, doc.Table | doc.Section
        ):
            lines.append("")
        lines += added
        before = part
    return lines


def _part(part: doc.Part) -> list[str]:
    match part:
        case doc.Paragraph():
            return [] if part.shown is doc.PAGE else [_inline(part.text)]
        case doc.Listing():
            return [] if part.shown is doc.PAGE else [part.prefix + text for text in part.items]
        case doc.Table():
            return _table(part)
        case doc.Section():
            return _section(part)
        case doc.Details():
            return [] if part.shown is doc.PAGE else _parts(part.parts)
        case doc.Figure() | doc.Code():
            return []
    assert_never(part)


def _table(table: doc.Table) -> list[str]:
    """Return the lines of a table, columns aligned to the left."""
    places = [i for i, column in enumerate(table.columns) if column.shown is not doc.PAGE]
    rows = [
        [_cell(row.cells[i]) for i in places] for row in table.rows if row.shown is not doc.PAGE
    ]
    if table.shown is doc.PAGE or not rows:
        return []
    columns = [table.columns[i] for i in places]
    header = [plain(one.title if one.short is None else one.short) for one in columns]
    return _aligned([header, *rows])


def _aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]


def _cell(content: doc.Inline) -> str:
    return "-" if content is None else _inline(content)


def _inline(content: doc.Inline) -> str:
    match content:
        case None:
            return ""
        case str():
            return plain(content)
        case doc.Name():
            return content.name
        case doc.Verdict():
            return content.mark
        case tuple():
            return "".join(map(_inline, content))
        case doc.Value():
            digits = rounded(content, thousands="")
            mark = "!" if content.error_is_bound else ""
            return f"{SIGNS[content.bound]}{digits}{mark}" if digits else "-"
    assert_never(content)
