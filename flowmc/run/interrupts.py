"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

__all__ = ["Interrupts"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
# Batch systems and launchers pass one request on twice, to the processes and through mpirun.
_SAME_REQUEST = 1.0


class Interrupts:
    """A context in which SIGTERM and SIGINT ask to stop; asking again ends the process at once.

    Signals within a second are one request.

    Attributes:
        number: of the signal that has come, or 0.
        at_once: if True the first signal, too, ends the process; for work of which nothing is kept.
    """

    def __init__(self) -> None:
        self.number = 0
        self.at_once = False
        self._came = 0.0

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
        if not self.number and not self.at_once:
            self.number, self._came = number, time.monotonic()
        elif self.at_once or time.monotonic() - self._came > _SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
