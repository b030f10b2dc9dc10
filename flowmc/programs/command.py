"""A command line with placeholders, checked before anything runs."""

from __future__ import annotations

import os
import shutil
import string
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from flowmc.registry import ConfigError, nearest

__all__ = ["CommandLine"]


class CommandLine:
    """The words of a command, each of which may hold placeholders; no shell reads them.

    ``{name}`` is replaced by a value, ``{name:06d}`` by the value in this format, ``{{`` and ``}}``
    by braces.

    Args:
        words: the program and its arguments.
        known: names of the placeholders with values of their types, to try the words with.
        base: directory that a relative path of the program refers to.

    Raises:
        ConfigError: there are no words, a placeholder is not known or its format not usable, or the
            program is not found.
    """

    def __init__(
        self, words: Sequence[str], known: Mapping[str, str | int | float], base: str | Path
    ) -> None:
        self.words, self.base = list(words), Path(base).absolute()
        if not self.words or not self.words[0]:
            raise ConfigError("command = []: should list a program and its arguments")
        self.used: set[str] = set()
        for word in self.words:
            self.used |= _placeholders(word, known)
            try:
                word.format_map(known)
            except (ValueError, KeyError, IndexError) as error:
                raise ConfigError(f"command: the word {word!r} is not usable: {error}") from error
        program = self.words[0]
        if not _placeholders(program, known):
            self._require_program(program)

    def _require_program(self, program: str) -> None:
        path = self.base / program
        if os.sep not in program:
            if shutil.which(program) is None:
                raise ConfigError(
                    f"command: there is no program {program!r} in PATH: give its path, relative to "
                    "the folder of the configuration file"
                )
        elif not path.is_file():
            raise ConfigError(f"command: there is no program {path}")
        elif not os.access(path, os.X_OK):
            raise ConfigError(f"command: {path} cannot be executed: chmod +x it")

    def filled(self, values: Mapping[str, str | int | float]) -> list[str]:
        """Return the words with values for all placeholders."""
        return [word.format_map(values) for word in self.words]


def _placeholders(word: str, known: Collection[str]) -> set[str]:
    """Return the names in a word.

    Raises:
        ConfigError: one is not known.
    """
    try:
        fields = [name for _, name, _, _ in string.Formatter().parse(word) if name is not None]
    except ValueError as error:
        raise ConfigError(
            f"command: the word {word!r} is not usable: {error} (write {{{{ for a brace)"
        ) from error
    for name in fields:
        if name not in known:
            raise ConfigError(
                f"command: the word {word!r} has an unknown placeholder {{{name}}}"
                f"{nearest(name, known)}; write {{{{ for a brace"
            )
    return set(fields)
