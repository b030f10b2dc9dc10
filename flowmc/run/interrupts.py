"""Reasons to stop early: a signal, or the end of the time that was given."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

__all__ = ["Interrupts"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupts:
    """A context in which SIGTERM and SIGINT ask to stop; a second one ends the process at once.

    Args:
        time_limit: seconds that this process may take, or None.
        started: ``time.monotonic()`` from which they count.
    """

    def __init__(self, time_limit: float | None, started: float) -> None:
        self.time_limit = time_limit
        self._signal: str | None = None
        self._started = started
        self._longest_update = 0.0
        self._longest_checkpoint = 0.0

    def __enter__(self) -> Interrupts:
        self._old = {}
        # Python delivers signals to the main thread only.
        if threading.current_thread() is threading.main_thread():
            self._old = {number: signal.signal(number, self._catch) for number in _SIGNALS}
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        if self._signal is not None:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = signal.Signals(number).name

    def took(self, *, update: float = 0.0, checkpoint: float = 0.0) -> None:
        """Tell how long an update or a checkpoint took, so that the last ones fit in the limit."""
        self._longest_update = max(self._longest_update, update)
        self._longest_checkpoint = max(self._longest_checkpoint, checkpoint)

    def reason(self) -> str | None:
        """Return why the run should stop before another update, or None."""
        if self._signal is not None:
            return self._signal
        if self.time_limit is not None:
            needed = self._longest_update + 2 * self._longest_checkpoint
            if time.monotonic() - self._started + needed >= self.time_limit:
                return "time limit"
        return None
