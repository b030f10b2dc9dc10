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
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import flowmc
from flowmc.registry import BUILTIN, ConfigError, nearest, written_key

__all__ = ["TABLES", "check_keys", "written_parameters"]

_PACKAGE = Path(flowmc.__file__).parent
# Tables of `flowmc run` and `flowmc step` whose keys are the fields of a dataclass.
_PLAIN = {
    "chains": "Chains",
    "run": "RunTable",
    "ensemble": "EnsembleTable",
    "parallel": "Parallel",
}
TABLES = ("theory", "chains", "update", "ladder", "run", "measure", "ensemble", "parallel")


def check_keys(command: str, path: str) -> None:
    """Refuse a configuration file with a misspelt key; a file that cannot be read passes.

    Args:
        command: which ``flowmc`` command it is for.
        path: the file.

    Raises:
        ConfigError: naming table and key, and the nearest known one.
    """
    try:
        with open(path, "rb") as file:
            tables = tomllib.load(file)
    except (OSError, ValueError, RecursionError):
        return
    if command in ("run", "step"):
        for name, table in tables.items():
            if name not in TABLES:
                raise ConfigError(f"unknown table [{name}]{nearest(name, TABLES)}")
            if name in _PLAIN:
                _check(table, f"[{name}]", f"flowmc.config.tables:{_PLAIN[name]}", ())
    theory = tables.get("theory")
    _check_component("actions", "action", theory, "[theory]", ("lattice", "group"))
    updates = tables.get("update")
    for number, table in enumerate(updates if isinstance(updates, list) else (), start=1):
        _check_component(
            "kernels", "kernel", table, f"[[update]] {number}", ("repeat", "weight", "flow")
        )


def _check_component(kind: str, key: str, table: Any, where: str, more: Collection[str]) -> None:
    """Check a table whose ``key`` names a component of a kind."""
    name = table.get(key) if isinstance(table, Mapping) else None
    if isinstance(name, str) and name in BUILTIN[kind]:
        where = where if kind == "actions" else f"{where} ({name})"
        _check(table, where, BUILTIN[kind][name], (key, *more))


def _check(table: Any, where: str, target: str, more: Collection[str]) -> None:
    known = written_parameters(target)
    if known is None or not isinstance(table, Mapping):
        return
    known = known | set(more)
    for key in table:
        if key not in known:
            raise ConfigError(f"{where}: unknown key {key!r}{nearest(key, known)}")


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
    if any("dataclass" in ast.dump(decorator) for decorator in node.decorator_list):
        fields = (line.target for line in node.body if isinstance(line, ast.AnnAssign))
        own = frozenset(field.id for field in fields if isinstance(field, ast.Name))
        return None if node.bases else own
    base = node.bases[0] if node.bases else None
    return written_parameters(f"{home}:{base.id}") if isinstance(base, ast.Name) else None


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
