"""How the work of an evaluation is dealt to ranks, and rounds of configurations of HMC."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from flowmc.parallel import Communicator
from flowmc.training.ensemble import Ensemble

__all__ = ["dealt", "rounds_of"]

Part = TypeVar("Part")


def dealt(
    parts: Sequence[Part], compute: Callable[[int, Part], Tensor], communicator: Communicator
) -> Tensor:
    """Return what is computed of all parts one after the other, on every rank.

    Args:
        parts: dealt to the ranks in turn.
        compute: called with number and part; nothing else may decide what it returns.
        communicator: of all ranks.
    """
    own = [
        (index, compute(index, part))
        for index, part in enumerate(parts)
        if index % communicator.size == communicator.rank
    ]
    found = [one for of_rank in communicator.allgather(own) for one in of_rank]
    return torch.cat([rows for _, rows in sorted(found, key=lambda one: one[0])])


def rounds_of(
    ensemble: Ensemble, count: int, separation: int, communicator: Communicator
) -> Iterator[int]:
    """Deal the chains of an ensemble to the ranks; yield the number of every measurement of it.

    Args:
        ensemble: of HMC, equilibrated.
        count: of measurements.
        separation: trajectories between two.
        communicator: of all ranks.
    """
    ensemble.distribute(communicator)
    for number in range(count):
        if number:
            ensemble.advance(separation)
        yield number
