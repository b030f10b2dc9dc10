"""Commands that run at the same time, each with a supervisor that ends it when this process ends.

A supervisor (:mod:`flowmc.programs.supervisor`) holds the other end of a pipe.  Whatever ends this
process, SIGKILL included, closes the pipe, and the command ends with all that it has started.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Ended", "Job", "run_jobs"]

_SUPERVISOR = Path(__file__).with_name("supervisor.py")
# What a launcher has told this rank is not meant for programs that it starts: an MPI program would
# take itself for a rank of this job.
_OF_LAUNCHERS = ("PMI", "OMPI_", "PRTE_", "HYDRA_", "MPI_LOCAL", "MV2_COMM_", "PALS_")
# Of the end of what a command has printed.
_BYTES_SHOWN, _CHARACTERS_SHOWN = 4096, 300


@dataclass(frozen=True)
class Job:
    """A command to be run.

    Attributes:
        words: the program and its arguments.
        folder: where it runs.
        out, err: files that take its standard output and error.
    """

    words: Sequence[str]
    folder: Path
    out: Path
    err: Path


@dataclass(frozen=True)
class Ended:
    """How a command has ended.

    Attributes:
        job: the command.
        status: its exit status, or minus the number of the signal that ended it; None if it was not
            started, or ended because it took too long.
        reason: what happened, in words.
    """

    job: Job
    status: int | None
    reason: str

    def sentence(self, what: str) -> str:
        """Return a failure in words: the command line, what happened, what it printed last.

        Args:
            what: happened, such as ``"ended with exit status 3"``.
        """
        text = f"the command {shlex.join(self.job.words)} {what}"
        for name, path in (("standard error", self.job.err), ("standard output", self.job.out)):
            text += f"; {name} {_tail(path)}"
        return text


def run_jobs(
    count: int,
    prepare: Callable[[int], Job],
    finish: Callable[[int, Ended], None],
    *,
    parallel: int,
    timeout: float | None,
) -> None:
    """Run commands, at most ``parallel`` at the same time, each once.

    Args:
        count: how many.
        prepare: returns the command of a number; called just before it starts.
        finish: called when a command has ended; what it raises ends all others.
        parallel: how many at the same time.
        timeout: seconds after which a command is ended.
    """
    waiting = iter(range(count))
    running: dict[int, _Supervised] = {}
    selector = selectors.DefaultSelector()
    try:
        while True:
            while len(running) < parallel and (number := next(waiting, None)) is not None:
                running[number] = _Supervised(prepare(number), timeout)
                selector.register(running[number].pipe, selectors.EVENT_READ, number)
            if not running:
                return
            remaining = [one.remaining() for one in running.values()]
            due = min((left for left in remaining if left is not None), default=None)
            ready = [key.data for key, _ in selector.select(due)]
            late = [number for number, one in running.items() if one.remaining() == 0]
            for number in dict.fromkeys([*ready, *late]):
                one = running.pop(number)
                selector.unregister(one.pipe)
                finish(number, one.ended(is_late=number not in ready))
    finally:
        selector.close()
        # All at once, so that their times of grace pass together.
        for one in running.values():
            one.end()
        for one in running.values():
            one.close()


class _Supervised:
    """A command that runs."""

    def __init__(self, job: Job, timeout: float | None) -> None:
        self.job, self.timeout = job, timeout
        self._until = None if timeout is None else time.monotonic() + timeout
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith(_OF_LAUNCHERS)
        }
        words = [sys.executable, "-I", "-S", str(_SUPERVISOR)]
        words += [str(job.folder), str(job.out), str(job.err), *job.words]
        self._process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self.pipe = self._process.stdout

    def remaining(self) -> float | None:
        """Return the seconds that the command still has; None without a limit."""
        return None if self._until is None else max(0.0, self._until - time.monotonic())

    def end(self) -> None:
        """Have the command ended."""
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.close()

    def close(self) -> str:
        """Wait for the supervisor; return what it says."""
        said = self.pipe.read().decode(errors="replace").strip()
        self.end()
        self.pipe.close()
        self._process.wait()
        return said

    def ended(self, *, is_late: bool) -> Ended:
        """Return how the command has ended; one that is late is ended first."""
        if is_late:
            self.end()
        said = self.close()
        if is_late:
            return Ended(self.job, None, f"did not end within {self.timeout:g} s")
        try:
            status = int(said)
        except ValueError:
            reason = said.partition(": ")[2] or "its supervisor was killed"
            return Ended(self.job, None, f"could not be run ({reason})")
        if status < 0:
            name = signal.Signals(-status).name if -status in _SIGNALS else f"signal {-status}"
            return Ended(self.job, status, f"was ended by {name}")
        return Ended(self.job, status, f"ended with exit status {status}")


_SIGNALS = {int(one) for one in signal.Signals}


def _tail(path: Path) -> str:
    """Return how a file ends, for a message."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - _BYTES_SHOWN))
            text = " ".join(file.read().decode(errors="replace").split())
    except OSError:
        text = ""
    if not text:
        return "is empty"
    if len(text) > _CHARACTERS_SHOWN:
        text = f"...{text[-_CHARACTERS_SHOWN:]}"
    return f"ends with {text!r}"
