"""Misspelt keys of a configuration, found before torch is imported.

Loading a configuration takes the classes that its keys are parameters of, and with them torch:
seconds, for a word with one letter too many.  Here the parameters of the built-in components are
read from their source instead.  Only what is certainly misspelt is refused; whatever cannot be told
in this way is left to the loading itself.
"""

from __future__ import annotations

import ast
import functools
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import flowmc
from flowmc.config.kinds import KINDS, Table
from flowmc.config.settings import with_settings
from flowmc.registry import BUILTIN, ConfigError, check_known, nearest, written_key

__all__ = ["check_keys", "kind_for", "written_parameters"]

_PACKAGE = Path(flowmc.__file__).parent


def kind_for(command: str, tables: Mapping[str, Any]) -> str | None:
    """Return the kind of configuration that a command takes these tables for; None for another."""
    if command == "correlate":
        return "combine" if isinstance(tables.get("ensemble"), list) else "correlate"
    command = {"step": "run", "pack": "train"}.get(command, command)
    return command if command in KINDS else None


def check_keys(command: str, path: str, settings: Sequence[str] = ()) -> None:
    """Refuse a configuration file with a misspelt key; a file that cannot be read passes.

    Args:
        command: which ``flowmc`` command it is for.
        path: the file.
        settings: of the command line, see :func:`~flowmc.config.settings.with_settings`.

    Raises:
        ConfigError: naming table and key, and the nearest known one.
    """
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except (OSError, ValueError, RecursionError):
        return
    tables = with_settings(tables, settings)
    kind = kind_for(command, tables)
    if kind is None:
        return
    known = {one.name: one for one in KINDS[kind]}
    for name, value in tables.items():
        if name not in known:
            # What a combination does not have may be said in other words.
            if kind != "combine":
                raise ConfigError(f"unknown table [{name}]{nearest(name, known)}")
            continue
        table = known[name]
        entries = value if isinstance(value, list) else [value]
        for number, entry in enumerate(entries, start=1):
            if isinstance(entry, Mapping):
                _check(table, entry, f"{table.header} {number}" if table.several else table.header)


def _check(table: Table, entry: Mapping[str, Any], where: str) -> None:
    """Check one table against all that is known of its keys."""
    if table.couplings is not None:
        # Which couplings there are is known when the action is.
        return
    targets = list(table.declared)
    if table.component is not None and table.key is not None:
        name = entry.get(table.key)
        if not isinstance(name, str) or name not in BUILTIN[table.component]:
            return
        targets.append(BUILTIN[table.component][name])
        if table.several:
            where = f"{where} ({name})"
    found = [written_parameters(target) for target in targets]
    if all(one is not None for one in found):
        check_known(entry, [key for one in found if one is not None for key in one], where)


def written_parameters(target: str) -> frozenset[str] | None:
    """Return the configuration keys of a component of this package without importing it.

    Args:
        target: ``"module:Name"``.

    Returns:
        the keyword-only parameters of a function or class, or the fields of a dataclass, as they
        are written in a configuration; None if the source does not tell.
    """
    module, _, name = target.partition(":")
    found = _definition(module, name)
    if found is None:
        return None
    home, node = found
    if isinstance(node, ast.FunctionDef):
        return _keyword_only(node)
    for statement in node.body:
        if isinstance(statement, ast.FunctionDef) and statement.name == "__init__":
            return _keyword_only(statement)
    base = node.bases[0] if node.bases else None
    inherited = written_parameters(f"{home}:{base.id}") if isinstance(base, ast.Name) else None
    if any("dataclass" in ast.dump(decorator) for decorator in node.decorator_list):
        fields = (line.target for line in node.body if isinstance(line, ast.AnnAssign))
        own = frozenset(written_key(field.id) for field in fields if isinstance(field, ast.Name))
        if base is None:
            return own
        return None if inherited is None else own | inherited
    return inherited


def _keyword_only(function: ast.FunctionDef) -> frozenset[str] | None:
    if function.args.kwarg is not None:
        return None
    return frozenset(written_key(argument.arg) for argument in function.args.kwonlyargs)


def _definition(module: str, name: str) -> tuple[str, ast.FunctionDef | ast.ClassDef] | None:
    """Return where a name of a module of this package is defined, imports followed."""
    tree = _tree(module)
    for node in () if tree is None else tree.body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name == name:
            return module, node
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _definition(node.module, alias.name)
    return None


@functools.cache
def _tree(module: str) -> ast.Module | None:
    package, *rest = module.split(".")
    if package != "flowmc":
        return None
    path = _PACKAGE.joinpath(*rest)
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    except (OSError, SyntaxError):
        return None
