"""What has been measured of a free energy so far, row by row, and where its chains stand.

What is measured comes in rows: the works of a batch of processes, the log-weights of a batch of
draws, what one configuration of all chains says.  A measurement asks for the rows that are there
and makes the others, so that one that was stopped between two rows, or between two updates of its
chains, goes on with the same numbers as if it had not been.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmc.chains.storage.checkpoint import check_state, settled
from flowmc.kernels import State
from flowmc.nonequilibrium import MarkovStart
from flowmc.registry import ConfigError

__all__ = ["ChainsOnTheirWay", "Row", "Rows"]

# What one row has measured, by name: each with the samples or chains in front.
Row = Mapping[str, Tensor]


@dataclass
class ChainsOnTheirWay:
    """Chains that have not all their rows yet.

    Attributes:
        updates: done.
        state: after them.
        random: state of the random stream, uint8.
        tuning: of each kernel.
    """

    updates: int
    state: State
    random: Tensor
    tuning: list[dict[str, float]]


class Rows:
    """The rows by name, in memory.

    Attributes:
        seconds_before: seconds of work that were done elsewhere.
    """

    # What a sentence about stored chains begins with.
    _where = ""

    def __init__(self) -> None:
        self._rows: dict[str, list[Row]] = {}
        self._chains: dict[str, ChainsOnTheirWay] = {}
        self.seconds_before = 0.0
        self._begin = time.monotonic()

    @property
    def seconds(self) -> float:
        """Seconds of work."""
        return self.seconds_before + time.monotonic() - self._begin

    def rows(self, name: str) -> list[Row]:
        """Return the rows of a name, in their order."""
        return self._rows.setdefault(name, [])

    def add(self, name: str, row: Row) -> None:
        """Append a row."""
        self.rows(name).append({key: value.detach() for key, value in row.items()})
        self.look()

    def look(self) -> None:
        """Be told that a row, or an update of chains, is done; here nothing follows from it."""

    def configurations(
        self, name: str, chains: MarkovStart, count: int, rng: torch.Generator
    ) -> Iterator[Tensor]:
        """Yield the configurations that the rows of a name do not have yet, ``(chains, ...)``.

        Whoever takes one adds its row before the next.

        Raises:
            ConfigError: a kernel refuses the theory or the fields, those of a checkpoint as those
                of a start, or what is stored is of another theory.
        """
        rows = self.rows(name)
        here = self._chains.get(name)
        if here is None:
            # Chains that have all their rows are not kept.
            if len(rows) < count:
                here = ChainsOnTheirWay(0, chains.begin(rng), rng.get_state(), [])
        else:
            self._check(name, chains, here.state)
            rng.set_state(here.random)
            for kernel, values in zip(chains.kernels, here.tuning, strict=True):
                kernel.set_tuning(values)
        while here is not None and len(rows) < count:
            while here.updates < chains.updates_before(len(rows)):
                state = settled(chains.advance(here.state, here.updates, rng))
                assert isinstance(state, State)
                tuning = [dict(kernel.tuning()) for kernel in chains.kernels]
                here = ChainsOnTheirWay(here.updates + 1, state, rng.get_state(), tuning)
                self._chains[name] = here
                self.look()
            yield here.state.field
        self._chains.pop(name, None)

    def _check(self, name: str, chains: MarkovStart, stored: State) -> None:
        try:
            check_state(chains.action, stored, chains.chains, stored.field.real.dtype)
        except (ConfigError, ValueError, TypeError) as error:
            raise ConfigError(f"{self._where}chains of {name!r}: {error}") from error
        chains.begin_again(stored)
