"""Values that a command line sets in a configuration: ``--set run.updates=100``."""

from __future__ import annotations

import copy
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any

from flowmc.registry import ConfigError

__all__ = ["as_words", "with_settings"]

_STEP = re.compile(r"(?P<key>[^\s.\[\]=]+)(?P<places>(?:\[\d+\])*)")


def with_settings(tables: Mapping[str, Any], settings: Sequence[str]) -> dict[str, Any]:
    """Return the tables of a configuration with some values replaced or added.

    Args:
        tables: as read.
        settings: ``"table.key=value"``, applied in this order.  One of several tables, or of a list
            of values, is named by its number from 1 on, ``update[1].steps`` or ``update.1.steps``.
            The value is TOML; what is no TOML is text, so that words need no quotes.

    Raises:
        ConfigError: for a setting without a key or a value, a table of several that is not there,
            and a key of what is no table.
    """
    found = copy.deepcopy(dict(tables))
    for setting in settings:
        path, equals, text = setting.partition("=")
        where = f"--set {setting}"
        steps = _steps(path.strip(), where)
        if not equals or not text.strip():
            raise ConfigError(f"{where}: should be table.key=value, e.g. run.updates=100")
        holder: Any = found
        for place, step in enumerate(steps[:-1]):
            holder = _enter(holder, step, ".".join(steps[:place]), where)
        _put(holder, steps, _value(text.strip(), where), where)
    return found


def as_words(settings: Sequence[str]) -> list[str]:
    """Return the words of a command line that say the same settings again."""
    return [word for setting in settings for word in ("--set", setting)]


def _steps(path: str, where: str) -> list[str]:
    steps: list[str] = []
    for part in path.split("."):
        match = _STEP.fullmatch(part)
        if match is None:
            raise ConfigError(f"{where}: {path!r} is no name of a key, such as update[1].steps")
        steps += [match["key"], *re.findall(r"\d+", match["places"])]
    return steps


def _value(text: str, where: str) -> Any:
    try:
        found = tomllib.loads(f"value = {text}")
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        if text[0] in "\"'[{" or not text.isprintable():
            raise ConfigError(f"{where}: {text} is no TOML value: {error}") from error
        return text
    if list(found) != ["value"]:
        raise ConfigError(f"{where}: should be one value")
    return found["value"]


def _enter(holder: Any, step: str, path: str, where: str) -> Any:
    """Return the table or list below a step, a new table if there is none."""
    if isinstance(holder, list):
        return holder[_place(holder, step, path, where)]
    if not isinstance(holder, dict):
        raise ConfigError(f"{where}: {path} is no table: it is {holder!r}")
    return holder.setdefault(step, {})


def _put(holder: Any, steps: Sequence[str], value: Any, where: str) -> None:
    path = ".".join(steps[:-1])
    if isinstance(holder, list):
        holder[_place(holder, steps[-1], path, where)] = value
    elif isinstance(holder, dict):
        holder[steps[-1]] = value
    else:
        raise ConfigError(f"{where}: {path} is no table: it is {holder!r}")


def _place(entries: Sequence[Any], step: str, path: str, where: str) -> int:
    """Return the index of an entry that is named by its number."""
    count = len(entries)
    if not step.isdecimal():
        raise ConfigError(
            f"{where}: {path} is a list of {count}: say which one, from {path}[1] to "
            f"{path}[{count}], or set the whole list"
        )
    if not 1 <= int(step) <= count:
        raise ConfigError(f"{where}: there is no {path}[{step}]: the configuration has {count}")
    return int(step) - 1
