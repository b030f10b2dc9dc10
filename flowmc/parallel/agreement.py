"""When all ranks look up from their work: to stop, to save, to hand in their measurements.

Between two such moments ranks of a farm of chains exchange no message at all.  What is agreed on
when updates are short is what ranks had to say the time before, which has long arrived: no rank
waits for another that is less than one such interval behind, and a core that is slow for a moment
costs nobody else time.  How many updates lie between the moments is computed from numbers that all
ranks share, and never enters a result.
"""

from __future__ import annotations

import signal
import time

import numpy as np

from flowmc.parallel.communicator import Communicator, Pending

__all__ = ["Agreement"]

# A batch system that sends SIGTERM waits half a minute or more before it kills.
_SECONDS_BETWEEN, _MOST_UPDATES = 2.0, 1000
# Nearer to the time limit than so many intervals, only what has just been said counts.
_INTERVALS_BEFORE_LIMIT = 20


class Agreement:
    """What the ranks agree on between updates.

    Args:
        communicator: of all ranks.
        time_limit: seconds that the run may take, or None.
        started: ``time.monotonic()`` from which this rank counts them.

    Attributes:
        is_ahead: whether :meth:`reach` has left what ranks say now to the next time.
    """

    def __init__(
        self, communicator: Communicator, time_limit: float | None, started: float
    ) -> None:
        self._communicator = communicator
        self._time_limit, self._started = time_limit, started
        self._longest_update = self._longest_checkpoint = 0.0
        self._seconds, self._updates = 0.0, 0
        self._wait, self._count = 0, 1
        self.is_ahead = False
        self._may_be_ahead = False
        self._said: Pending | None = None
        self._has_saved = False

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
        """Return why all ranks stop here, or None, and whether they write a checkpoint; collective.

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
        self._seconds, self._updates = 0.0, 0
        before, self._said = self._said, self._communicator.start_maximum(np.array(own))
        self.is_ahead = self._may_be_ahead
        if not self.is_ahead:
            # A signal or a due checkpoint of the time before is still one now.
            if before is not None:
                before.wait()
            heard, self._said = self._said.wait(), None
            self._has_saved = False
        elif before is None:
            self._wait = self._count - 1
            return None, False
        else:
            heard = before.wait()
        number, due, elapsed, update, checkpoint, mean = heard
        saves = bool(due) and not self._has_saved
        # What is on its way was said before this checkpoint, and asks for it once more.
        self._has_saved = saves and self.is_ahead
        if number:
            return signal.Signals(int(number)).name, saves
        count = 1
        if self._communicator.size > 1 and mean > 0:
            count = max(1, min(_MOST_UPDATES, int(_SECONDS_BETWEEN / mean)))
        self._may_be_ahead = count > 1
        if self._time_limit is not None:
            # The last updates and the last checkpoint must fit in.
            left = self._time_limit - elapsed - 2 * checkpoint
            if left <= update:
                return "time limit", saves
            count = max(1, min(count, int(left / update) if update > 0 else 1))
            if left < _INTERVALS_BEFORE_LIMIT * _SECONDS_BETWEEN + 2 * update:
                self._may_be_ahead = False
        self._count, self._wait = count, count - 1
        return None, saves

    def poke(self) -> None:
        """Let messages move; called after every update."""
        if self._said is not None:
            self._said.poke()

    def finish(self) -> None:
        """Wait for what is on its way, and ignore it; collective, at the end."""
        if self._said is not None:
            self._said.wait()
            self._said = None
