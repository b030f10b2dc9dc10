"""Files of seeds for ``flowmc convert``: their configurations are made one at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowmc.chains.regeneration import Regeneration

__all__ = ["SeedsMaker"]


class SeedsMaker:
    """A :class:`flowmc_adapters.commands.made.Maker`; torch is imported where one is needed."""

    def __init__(self) -> None:
        self._opened: dict[str, tuple[Regeneration, dict[str, tuple[int, int]]]] = {}

    def configurations(self, path: Any, number: int | None) -> Sequence[str]:
        """Return the names of the configurations of a file of seeds, of one number or all.

        Raises:
            ConfigError, FormatError, OSError: as :func:`~flowmc.chains.regeneration.open_seeds`;
                or it has none of this number.
        """
        made, names = self._open(str(path))
        if number is None:
            return list(names)
        rows = made.rows_of([range(number, number + 1)])
        return [name for name, (row, chain) in names.items() if chain in rows.get(row, ())]

    @contextmanager
    def made(self, path: Any, name: str) -> Iterator[str]:
        """Make a configuration; yield its file, which is removed afterwards.

        Raises:
            ConfigError, OSError: as :meth:`~flowmc.chains.regeneration.Regeneration.make`.
        """
        made, names = self._open(str(path))
        row, chain = names[name]
        with tempfile.TemporaryDirectory(prefix="flowmc-") as folder:
            writer = made.writer(Path(folder), "hdf5", None)
            (one,) = made.make({row: [chain]})
            yield str(writer.write(chain, one.update, one.field))

    def _open(self, path: str) -> tuple[Regeneration, dict[str, tuple[int, int]]]:
        from flowmc.chains.regeneration import open_seeds

        if path not in self._opened:
            made = open_seeds(path)
            names = {name: (row, chain) for row, chain, _, name in made.configurations()}
            self._opened[path] = made, names
        return self._opened[path]
