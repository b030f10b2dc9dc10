"""Resolved configurations as TOML text (the standard library only reads TOML)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

__all__ = ["toml_text", "toml_value"]


# Column of the remarks, where lines are not longer than that, and the width of a page.
_REMARK_COLUMN = 30
_WIDTH = 100


def toml_text(table: Mapping[str, Any], remarks: Mapping[str, str] | None = None) -> str:
    """Return TOML that :mod:`tomllib` reads back as an equal table; entries that are None are left
    out.

    Args:
        table: strings, booleans, integers, floats, lists and tables of these.  Tables at
            the top level become ``[name]``, lists of tables ``[[name]]``, deeper ones inline.
        remarks: one-line comments of tables and their keys by name: ``run``, ``run.updates``,
            ``update[1]`` and ``update[1].steps`` for the first ``[[update]]``.

    Raises:
        TypeError: for a value that TOML has no form for.
    """
    said = remarks or {}
    lines: list[str] = []
    sections: list[tuple[str, str, Mapping[str, Any]]] = []
    for key, value in table.items():
        if isinstance(value, Mapping):
            sections.append((key, f"[{_key(key)}]", value))
        elif isinstance(value, list) and value and all(isinstance(v, Mapping) for v in value):
            header = f"[[{_key(key)}]]"
            sections += [(f"{key}[{i}]", header, one) for i, one in enumerate(value, start=1)]
        elif value is not None:
            lines.append(_remarked(f"{_key(key)} = {toml_value(value)}", said.get(key)))
    for name, header, section in sections:
        lines += [""] if lines else []
        lines.append(_remarked(header, said.get(name)))
        lines += [
            _remarked(f"{_key(k)} = {toml_value(v)}", said.get(f"{name}.{k}"))
            for k, v in section.items()
            if v is not None
        ]
    return "\n".join(lines) + "\n"


def _remarked(line: str, remark: str | None) -> str:
    if remark is None:
        return line
    beside = f"{line.ljust(_REMARK_COLUMN - 1)} # {remark}"
    return beside if len(beside) <= _WIDTH else f"# {remark[:1].upper()}{remark[1:]}:\n{line}"


def _key(key: str) -> str:
    bare = key and all(c.isascii() and (c.isalnum() or c in "_-") for c in key)
    return key if bare else json.dumps(key)


def toml_value(value: Any) -> str:
    """Return a value as TOML; see :func:`toml_text`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        # The shortest text that reads back as the same number; TOML spells inf and nan likewise.
        return repr(value)
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml_value(v) for v in value) + "]"
    if isinstance(value, Mapping):
        inner = ", ".join(f"{_key(k)} = {toml_value(v)}" for k, v in value.items() if v is not None)
        return "{" + inner + "}"
    raise TypeError(f"{type(value).__name__} has no form in TOML")
