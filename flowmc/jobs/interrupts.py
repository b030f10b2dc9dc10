"""Signals that ask a run to stop."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType

__all__ = ["Interrupts"]

# Of a person or of a batch system that wants the end.
_REQUESTS = (signal.SIGTERM, signal.SIGINT)
# A terminal that is gone, a batch system that will end the job soon, a limit of processor time
# that the kernel repeats every second: reasons to stop, never to hurry.
_WARNINGS = (signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)
# Batch systems and launchers pass one request on twice, to the processes and through mpirun.
_SAME_REQUEST = 1.0


class Interrupts:
    """A context in which SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGXCPU ask to stop.

    SIGTERM or SIGINT a second time ends the process at once; within a second they are one request.
    SIGHUP, SIGUSR1 and SIGXCPU stay ignored where they were (as under ``nohup``).

    Attributes:
        number: of the first signal that has come, or 0.
        at_once: if True the first signal, too, ends the process; for work of which nothing is kept.
    """

    def __init__(self) -> None:
        self.number = 0
        self.at_once = False
        self._requested: float | None = None

    def __enter__(self) -> Interrupts:
        self._old = {}
        # Python delivers signals to the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (*_REQUESTS, *_WARNINGS):
                if number in _REQUESTS or signal.getsignal(number) != signal.SIG_IGN:
                    self._old[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *exception: object) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)

    def _catch(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        is_request = number in _REQUESTS
        first = self._requested
        if self.at_once or (is_request and first is not None and now - first > _SAME_REQUEST):
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        self.number = self.number or number
        if is_request and first is None:
            self._requested = now
