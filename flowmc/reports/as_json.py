"""A document as plain values for JSON: every number of the page, unrounded."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, assert_never

import numpy as np

from flowmc.reports import document as doc
from flowmc.reports.words import plain

__all__ = ["as_json", "strict", "strict_json"]


def as_json(document: doc.Document) -> dict[str, Any]:
    """Return what the page shows; see docs/reports.md.

    Sections hold their parts in the order of the page, each a dictionary of one key: ``text``,
    ``list``, ``table``, ``figure`` (its description), ``code``, ``details`` or ``section``.  A
    number is a number, or ``{"value": ..., "error": ..., "unit": ..., "bound": ...}`` where there
    is more to say, None where it is not known; a verdict is true or false.
    """
    return {
        "title": document.title,
        "theory": document.theory,
        "facts": {name: _inline(content) for name, content in document.facts},
        "warnings": list(document.warnings),
        "sections": [_section(section) for section in _on_page(document.sections)],
    }


def strict_json(value: Any, indent: int | None = 2) -> str:
    """Return JSON text in which NaN and infinity, which JSON does not know, are null."""
    return json.dumps(strict(value), indent=indent, allow_nan=False)


def strict(value: Any) -> Any:
    """Return a value of Python's own types, with None for every number that is not finite."""
    if isinstance(value, Mapping):
        return {str(key): strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [strict(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _on_page(parts: tuple[Any, ...]) -> list[Any]:
    shown = (part for part in parts if getattr(part, "shown", None) is not doc.TEXT)
    return [part for part in shown if not isinstance(part, doc.Table) or part.rows]


def _section(section: doc.Section) -> dict[str, Any]:
    found: dict[str, Any] = {"title": section.title}
    if section.aside:
        found["aside"] = [_inline(content) for content in section.aside]
    return {**found, "parts": [_part(part) for part in _on_page(section.parts)]}


def _part(part: doc.Part) -> dict[str, Any]:
    match part:
        case doc.Paragraph():
            return {"text": _inline(part.text)}
        case doc.Listing():
            return {"list": list(part.items)}
        case doc.Table():
            return {"table": _table(part)}
        case doc.Figure():
            return {"figure": part.description}
        case doc.Code():
            return {"code": part.text}
        case doc.Details():
            parts = [_part(one) for one in _on_page(part.parts)]
            return {"details": {"title": part.title, "parts": parts}}
        case doc.Section():
            return {"section": _section(part)}
    assert_never(part)


def _table(table: doc.Table) -> dict[str, Any]:
    places = [i for i, one in enumerate(table.columns) if one.shown is not doc.TEXT]
    columns = [table.columns[i] for i in places]
    return {
        "columns": [
            {"title": plain(one.title), **({"unit": one.unit} if one.unit else {})}
            for one in columns
        ],
        "rows": [[_inline(row.cells[i]) for i in places] for row in _on_page(table.rows)],
    }


def _inline(content: doc.Inline) -> Any:
    match content:
        case None:
            return None
        case str():
            return plain(content)
        case doc.Name():
            if content.name == content.title:
                return content.name
            return {"name": content.name, "title": plain(content.title)}
        case doc.Verdict():
            return content.passed
        case tuple():
            return [_inline(one) for one in content]
        case doc.Value():
            return _value(content)
    assert_never(content)


def _value(value: doc.Value) -> Any:
    number = strict(value.number)
    more: dict[str, Any] = {}
    if value.error is not None:
        more["error"] = strict(value.error)
    if value.unit:
        more["unit"] = value.unit
    if value.bound != "none":
        more["bound"] = value.bound
    if value.error_is_bound:
        more["error_is_bound"] = True
    return {"value": number, **more} if more else number
