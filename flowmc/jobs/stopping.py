"""When work that is done in steps must stop for its time limit."""

from __future__ import annotations

import time

__all__ = ["OUT_OF_TIME", "Deadline"]

# Exit status of a command that its time limit has stopped, as of timeout(1); above it are those of
# signals.  Unlike a run, whose measurements are there after any update, these have no result yet.
OUT_OF_TIME = 124


class Deadline:
    """Asked after every step: whether the limit leaves no time for another and a checkpoint.

    Args:
        limit: seconds, or None for ever.
        started: ``time.monotonic()`` from which they count.
    """

    def __init__(self, limit: float | None, started: float) -> None:
        self.limit, self.started = limit, started
        self._longest = 0.0
        self._last: float | None = None

    def __call__(self) -> bool:
        now = time.monotonic()
        if self._last is not None:
            # With the checkpoint that was written in it, if one was.
            self._longest = max(self._longest, now - self._last)
        self._last = now
        return self.limit is not None and now - self.started + 2 * self._longest >= self.limit
