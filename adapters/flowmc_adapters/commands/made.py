"""Where `convert` reads from: files that are there, and configurations that are made for it.

Who can make configurations from a file of seeds is no business of this package: a `Maker` is given
to the command by the program that mounts it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from ..configuration import PathLike
from ..seeds import is_seeds, refusal_of_seeds
from ..selection import split_selection


class Maker(Protocol):
    """Makes configurations from files of seeds."""

    def configurations(self, path: PathLike, number: int | None) -> Sequence[str]:
        """Their names below a directory, in the order in which they are best made.

        Args:
            path: the file of seeds.
            number: only configurations of this number; None for all.

        Raises:
            ValueError, OSError: it cannot be used, or has none of this number.
        """

    def made(self, path: PathLike, name: str) -> AbstractContextManager[str]:
        """A file with one of them, which is removed afterwards; errors as `configurations`."""


class Source(Protocol):
    """Something to convert.

    Attributes:
        label: what it is called in messages.
        name: of the file, below a directory.
    """

    @property
    def label(self) -> str: ...

    @property
    def name(self) -> str: ...

    def opened(self) -> AbstractContextManager[str]:
        """The path of a file to read."""


@dataclass(frozen=True)
class FromFile:
    """A file that is there."""

    label: str

    @property
    def name(self) -> str:
        return self.label

    @contextmanager
    def opened(self) -> Iterator[str]:
        yield self.label


@dataclass(frozen=True)
class FromSeeds:
    """A configuration that is made when it is read."""

    maker: Maker
    path: PathLike
    name: str

    @property
    def label(self) -> str:
        return f"{os.fspath(self.path)}/{self.name}"

    def opened(self) -> AbstractContextManager[str]:
        return self.maker.made(self.path, self.name)


def sources_of(path: str, maker: Maker | None) -> list[Source]:
    """What a file, or FILE#N, gives: itself, or all configurations of a file of seeds.

    Raises:
        FormatError: a file of seeds, and nobody to make its configurations.
        ValueError, OSError: as of `Maker.configurations`.
    """
    file, selection = split_selection(path)
    if not is_seeds(file):
        return [FromFile(path)]
    if maker is None:
        raise refusal_of_seeds(file)
    number = int(selection) if selection is not None and selection.isdecimal() else None
    if selection is not None and number is None:
        raise ValueError(f"{path}: #{selection} is no configuration number")
    return [FromSeeds(maker, file, name) for name in maker.configurations(file, number)]
