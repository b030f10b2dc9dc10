"""Configurations to train on that have been made before: files, read as they are needed."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.parallel import Communicator
from flowmc.random import stream

__all__ = ["StoredConfigurations"]

# Bytes of configurations that one rank keeps in memory; what is beyond is read again.
_KEPT_BYTES = 2**30


class StoredConfigurations:
    """A fixed ensemble in random order: every configuration once, then all in another order.

    Every rank reads its share of a batch.  What has been read stays in memory, up to 1 GB.

    Args:
        action: the theory.
        count: number of configurations.
        read: returns those at some places, ``(n, ...)``, in the precision and on the device of
            the training.
        purpose: distinguishes the random streams of several ensembles.
        seed: of the whole training.

    Raises:
        ValueError: if there is none.
    """

    def __init__(
        self,
        action: Action,
        count: int,
        read: Callable[[Sequence[int]], Tensor],
        purpose: str,
        seed: int,
    ) -> None:
        if count < 1:
            raise ValueError("an ensemble needs at least one configuration")
        self.action, self.count, self.drawn = action, count, 0
        self._read, self._purpose, self._seed = read, f"stored {purpose}", seed
        self._kept: dict[int, Tensor] = {}
        self._kept_bytes = 0
        self.communicator = Communicator()

    def distribute(self, communicator: Communicator) -> None:
        """Return only this rank's share of the batches from now on."""
        self.communicator = communicator

    def draw_share(self, n: int) -> tuple[Tensor, Tensor]:
        """Return this rank's configurations of a batch of ``n``, and their places in it."""
        numbers = torch.arange(self.drawn, self.drawn + n)
        self.drawn += n
        rounds = torch.div(numbers, self.count, rounding_mode="floor")
        places = torch.cat(
            [
                self._order(int(index))[numbers[rounds == index] % self.count]
                for index in rounds.unique()
            ]
        )
        rank, size = self.communicator.rank, self.communicator.size
        rows = torch.arange(n * rank // size, n * (rank + 1) // size)
        return self._fields(places[rows].tolist()), rows

    def state_dict(self) -> dict[str, Tensor]:
        """Return how many have been drawn."""
        return {"drawn": torch.tensor([self.drawn])} if self.communicator.rank == 0 else {}

    def load_state_dict(self, tensors: dict[str, Tensor]) -> None:
        """Continue from :meth:`state_dict`."""
        self.drawn = int(tensors["drawn"][0])

    def _order(self, index: int) -> Tensor:
        rng = stream(self._seed, index, self._purpose)
        return torch.randperm(self.count, generator=rng)

    def _fields(self, places: list[int]) -> Tensor:
        missing = sorted({place for place in places if place not in self._kept})
        fresh = dict(zip(missing, self._read(missing), strict=True)) if missing else {}
        found = {**self._kept, **fresh}
        batch = [found[place] for place in places]
        for place, field in fresh.items():
            size = field.numel() * field.element_size()
            if self._kept_bytes + size <= _KEPT_BYTES:
                self._kept[place] = field.clone()
                self._kept_bytes += size
        return torch.stack(batch) if batch else self._read([])
