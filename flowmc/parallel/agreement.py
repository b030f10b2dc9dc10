"""When all ranks look up from their work: to stop, to save, to hand in their measurements.

Between two such moments ranks of a farm of chains exchange no message at all, so that none waits
for the slowest of every update.  How many updates lie between them is computed from numbers that
all ranks share, and never enters a result.
"""

from __future__ import annotations

import signal
import time

import numpy as np

from flowmc.parallel.communicator import Communicator

__all__ = ["Agreement"]

# A batch system that sends SIGTERM waits half a minute or more before it kills.
_SECONDS_BETWEEN, _MOST_UPDATES = 2.0, 1000


class Agreement:
    """What the ranks agree on between updates.

    Args:
        communicator: of all ranks.
        time_limit: seconds that the run may take, or None.
        started: ``time.monotonic()`` from which this rank counts them.
    """

    def __init__(
        self, communicator: Communicator, time_limit: float | None, started: float
    ) -> None:
        self._communicator = communicator
        self._time_limit, self._started = time_limit, started
        self._longest_update = self._longest_checkpoint = 0.0
        self._seconds, self._updates = 0.0, 0
        self._wait = 0

    def took(self, *, update: float = 0.0, checkpoint: float = 0.0) -> None:
        """Tell how long an update or a checkpoint took on this rank."""
        self._longest_checkpoint = max(self._longest_checkpoint, checkpoint)
        if update:
            self._longest_update = max(self._longest_update, update)
            self._seconds += update
            self._updates += 1

    @property
    def is_due(self) -> bool:
        """Whether it is time for :meth:`reach`; asked once before every update."""
        self._wait -= 1
        return self._wait < 0

    def reach(self, signal_number: int, checkpoint_is_due: bool) -> tuple[str | None, bool]:
        """Return why all ranks stop here, or None, and whether they write a checkpoint.

        Args:
            signal_number: of the signal that this rank has got, or 0.
            checkpoint_is_due: by the clock of this rank; that of rank 0 counts.
        """
        mean = self._seconds / self._updates if self._updates else 0.0
        own = [
            float(signal_number),
            float(checkpoint_is_due and self._communicator.rank == 0),
            time.monotonic() - self._started,
            self._longest_update,
            self._longest_checkpoint,
            mean,
        ]
        number, due, elapsed, update, checkpoint, mean = self._communicator.maximum(np.array(own))
        self._seconds, self._updates = 0.0, 0
        if number:
            return signal.Signals(int(number)).name, bool(due)
        count = 1
        if self._communicator.size > 1 and mean > 0:
            count = max(1, min(_MOST_UPDATES, int(_SECONDS_BETWEEN / mean)))
        if self._time_limit is not None:
            # The last updates and the last checkpoint must fit in.
            left = self._time_limit - elapsed - 2 * checkpoint
            if left <= update:
                return "time limit", bool(due)
            count = max(1, min(count, int(left / update) if update > 0 else 1))
        self._wait = count - 1
        return None, bool(due)
