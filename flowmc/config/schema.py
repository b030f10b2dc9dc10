"""JSON schemas of configurations, made from what components and tables declare.

A schema is for editors and for programs that write configurations: types, defaults and meanings of
all keys of built-in components; keys of a user's own, ``"package.module:Name"``, are anything.
What can only be said of several keys together is left to the readers.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from importlib.metadata import entry_points
from typing import Any

from pydantic.json_schema import GenerateJsonSchema, JsonSchemaValue
from pydantic_core import core_schema

from flowmc.config.kinds import KINDS, Table
from flowmc.docstrings import summary
from flowmc.registry import BUILTIN, resolve, table_model

__all__ = ["COMMANDS", "declared_schema", "json_schema", "keys_schema", "table_summary"]

COMMANDS = {
    "run": "flowmc run and flowmc step",
    "train": "flowmc train",
    "correlate": "flowmc correlate, one ensemble",
    "combine": "flowmc correlate, several ensembles",
    "free-energy": "flowmc free-energy",
}
"""The commands that take each kind of configuration, in words."""

_NUMBER = {"type": "number"}
_COUPLINGS: Mapping[str, dict[str, Any]] = {
    "value": _NUMBER,
    "values": {"type": "array", "items": _NUMBER, "minItems": 2},
    "either": {"anyOf": [_NUMBER, {"type": "array", "items": _NUMBER}]},
}


class _Toml(GenerateJsonSchema):
    """As pydantic's, without null, which TOML does not have, and in the words of draft 7."""

    def nullable_schema(self, schema: core_schema.NullableSchema) -> JsonSchemaValue:
        return self.generate_inner(schema["schema"])

    def default_schema(self, schema: core_schema.WithDefaultSchema) -> JsonSchemaValue:
        if schema.get("default") is None:
            return self.generate_inner(schema["schema"])
        return super().default_schema(schema)

    def tuple_schema(self, schema: core_schema.TupleSchema) -> JsonSchemaValue:
        found = super().tuple_schema(schema)
        entries = found.pop("prefixItems", [])
        if entries and all(one == entries[0] for one in entries):
            found["items"] = entries[0]
        return found

    def field_title_should_be_set(self, schema: Any) -> bool:
        return False

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        # A type that only Python can give.
        return {}


def json_schema(kind: str, *, installed: bool = False) -> dict[str, Any]:
    """Return the JSON schema (draft 7) of a kind of configuration.

    Args:
        kind: a key of :data:`~flowmc.config.kinds.KINDS`.
        installed: with the components that installed packages bring as entry points.
    """
    tables = KINDS[kind]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": f"configuration of {COMMANDS[kind]}",
        "type": "object",
        "properties": {one.name: _written(one, installed) for one in tables},
        "required": [one.name for one in tables if one.required],
        "additionalProperties": False,
    }


def table_summary(table: Table) -> str:
    """Return what a table is for, in a few words."""
    about = summary(_declared(table)[0])
    return about.partition(": ")[2] or about


def declared_schema(table: Table, *components: Callable[..., Any]) -> dict[str, Any]:
    """Return the schema of the keys that a table has by itself, and of components beside them."""
    found = keys_schema(*_declared(table), *components)
    for key in table.without:
        del found["properties"][key]
    return found


def _declared(table: Table) -> list[Callable[..., Any]]:
    """Return the classes that declare the keys of a table."""
    found = []
    for target in table.declared:
        module, _, name = target.partition(":")
        found.append(getattr(importlib.import_module(module), name))
    return found


def keys_schema(*components: Callable[..., Any]) -> dict[str, Any]:
    """Return the schema of a table with the keys of several components."""
    properties: dict[str, Any] = {}
    required: list[str] = []
    for component in components:
        own = table_model(component).model_json_schema(schema_generator=_Toml)
        properties |= own.get("properties", {})
        required += own.get("required", [])
    return {
        "type": "object",
        "properties": properties,
        "required": required,
        "additionalProperties": False,
    }


def _written(table: Table, installed: bool) -> dict[str, Any]:
    """Return the schema of ``[name]``, or of all ``[[name]]``."""
    one = _one(table, installed)
    several: dict[str, Any] = {"type": "array", "items": one}
    if table.required:
        several["minItems"] = 1
    if not table.several:
        return one
    return {"anyOf": [several, one]} if table.alone else several


def _one(table: Table, installed: bool) -> dict[str, Any]:
    about = {"description": table_summary(table)}
    if table.component is None:
        found = declared_schema(table)
        if table.couplings is not None:
            found["additionalProperties"] = _COUPLINGS[table.couplings]
        return about | found
    key = str(table.key)
    variants = []
    if "" in table.by_default:
        without = declared_schema(table)
        del without["properties"][key]
        variants.append(without)
    names = list(BUILTIN[table.component])
    if installed:
        names += [entry.name for entry in entry_points(group=f"flowmc.{table.component}")]
    for name in names:
        component = resolve(table.component, name)
        variant = declared_schema(table, component)
        said = {"const": name, "description": summary(component)}
        variant["properties"][key] = said
        variant["required"] = _required(variant, key, name in table.by_default)
        variants.append(variant)
    own = declared_schema(table)
    own["properties"][key] |= {"pattern": ":"}
    own["required"] = _required(own, key, False)
    own["additionalProperties"] = True
    return about | {"anyOf": [*variants, own]}


def _required(schema: Mapping[str, Any], key: str, is_default: bool) -> list[str]:
    others = [one for one in schema["required"] if one != key]
    return others if is_default else [key, *others]
