"""The reference of all configuration keys, as the page ``docs/configuration.md``."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from flowmc.config.kinds import KINDS, Table
from flowmc.config.schema import COMMANDS, declared_schema, keys_schema, table_summary
from flowmc.config.toml_text import toml_value
from flowmc.docstrings import summary
from flowmc.registry import BUILTIN, resolve

__all__ = ["reference"]

_INTRODUCTION = """# All configuration keys

Every table and key of every configuration file, with the keys of everything that is built in. What
they are for, with examples, is told where the commands are: [running chains](running.md),
[training flows](training.md), [correlated ensembles](correlate.md), and
[free energies](free_energies.md).

A file is TOML. `[name]` is a table, `[[name]]` one of several. Where a built-in name is asked for,
your own part is named `"package.module:Name"` ([extending](extending.md)); its keys are the
keyword-only parameters of its constructor. An unknown key is refused, with the nearest known one.

This page is made from the code by `flowmc schema --reference`; `flowmc schema run` (`train`,
`correlate`, `combine`, `free-energy`) prints the same as a JSON schema, with which editors complete
and check these files.
"""
_PARTS = {
    "actions": "Actions",
    "kernels": "Kernels",
    "observables": "Observables",
    "flows": "Flows",
    "priors": "Priors",
    "objectives": "Objectives",
    "derivatives": "Derivatives",
    "vector_fields": "Vector fields",
}
_COUPLINGS = {
    "value": "| a coupling | number | | its value in this theory |",
    "values": "| a coupling | list of numbers | | the values that it takes, in this order |",
    "either": "| a coupling | number or list of numbers | | its value in this theory, or several |",
}


def reference() -> str:
    """Return the text of the page."""
    lines = [_INTRODUCTION]
    seen: dict[Table, str] = {}
    for kind, tables in KINDS.items():
        lines += [f"## {COMMANDS[kind]}", ""]
        for table in tables:
            lines += [f"### {table.header} of {kind}", ""]
            if table in seen:
                place = f"[{table.header} of {seen[table]}]({_anchor(table, seen[table])})"
                lines += [f"As {place}.", ""]
                continue
            seen[table] = kind
            lines += _table(table)
    for name, title in _PARTS.items():
        lines += [f"## {title}", ""]
        for one in BUILTIN[name]:
            component = resolve(name, one)
            lines += [f"### {one}", "", f"{summary(component)}.", ""]
            rows = list(_rows(keys_schema(component)))
            if rows:
                lines += [*_HEADER, *rows, ""]
    return "\n".join(lines).rstrip() + "\n"


_HEADER = ("| key | type | default | meaning |", "| --- | --- | --- | --- |")


def _anchor(table: Table, kind: str) -> str:
    return f"#{table.name}-of-{kind}"


def _table(table: Table) -> Iterator[str]:
    about = table_summary(table)
    yield f"{about[:1].upper()}{about[1:]}." + (" Required." if table.required else "")
    yield ""
    yield from _HEADER
    yield from _rows(declared_schema(table))
    if table.couplings is not None:
        yield _COUPLINGS[table.couplings]
    yield ""
    if table.component is not None:
        title = _PARTS[table.component]
        yield (
            f"Beside these the keys of what `{table.key}` names: [{title.lower()}]"
            f"(#{title.lower().replace(' ', '-')})."
        )
        yield ""


def _rows(schema: Mapping[str, Any]) -> Iterator[str]:
    for key, said in schema["properties"].items():
        default = toml_value(said["default"]) if "default" in said else ""
        if key in schema["required"]:
            default = "required"
        elif default:
            default = f"`{default}`"
        meaning = said.get("description", "")
        meaning = meaning if meaning.endswith("..") else meaning.removesuffix(".")
        cells = [f"`{key}`", _type(said), default, meaning]
        yield "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _type(schema: Mapping[str, Any], *, plural: bool = False) -> str:
    """Return a type in words."""
    if "anyOf" in schema:
        return " or ".join(dict.fromkeys(_type(one, plural=plural) for one in schema["anyOf"]))
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return " or ".join(f"`{json.dumps(value)}`" for value in values)
    kind = schema.get("type")
    if kind == "array":
        many = schema.get("minItems") if schema.get("minItems") == schema.get("maxItems") else None
        inner = _type(schema.get("items", {}), plural=True)
        return f"{many} {inner}" if many else f"{'lists' if plural else 'list'} of {inner}"
    words = {
        "integer": "integer",
        "number": "number",
        "string": "text",
        "boolean": "true or false",
        "object": "table",
    }
    word = words.get(str(kind), "anything")
    return f"{word}s" if plural and word in ("integer", "number", "text", "table") else word
