"""What a run says while it runs: ``log.jsonl``, and a line or a live display on stderr."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TextIO, cast

from flowmc.jobs.own_files import naming, open_own, read_text
from flowmc.messages import Unfailing, say

__all__ = ["Display", "Journal"]


class Journal:
    """``log.jsonl``: one JSON object per line, appended.

    Args:
        path: the log file; None on ranks that do not write it.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        if path is not None:
            _drop_partial_line(path)

    def write(self, event: str, update: int, **values: Any) -> None:
        """Append an event of "start", "progress", "checkpoint", "warning" or "stop"."""
        if self.path is None:
            return
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"event": event, "time": now, "update": update, **values})
        with naming(self.path):
            descriptor = open_own(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
            with os.fdopen(descriptor, "w", encoding="utf-8") as file:
                file.write(line + "\n")

    def last_timing(self, update: int) -> dict[str, Any]:
        """Return ``seconds`` and ``kernels`` of the last event at or before an update."""
        found: dict[str, Any] = {"seconds": 0.0, "kernels": {}}
        if self.path is None:
            return found
        with contextlib.suppress(FileNotFoundError):
            for line in read_text(self.path).splitlines():
                with contextlib.suppress(ValueError, RecursionError):
                    event = json.loads(line)
                    if isinstance(event, dict) and _is_timing(event, update):
                        found = event
        return found


def _is_timing(event: Mapping[str, Any], update: int) -> bool:
    """Whether an event has the times up to an update; a log may have been edited or damaged."""
    seconds, at, kernels = event.get("seconds"), event.get("update"), event.get("kernels")
    if not isinstance(seconds, int | float) or not 0 <= seconds < 1e15:
        return False
    if not isinstance(at, int) or at > update or not isinstance(kernels, dict):
        return False
    times = [own.get("seconds") for own in kernels.values() if isinstance(own, dict)]
    calls = [own.get("calls") for own in kernels.values() if isinstance(own, dict)]
    numbers = [value for value in (*times, *calls) if isinstance(value, int | float)]
    return len(numbers) == 2 * len(kernels) and all(0 <= value < 1e15 for value in numbers)


def _drop_partial_line(path: Path) -> None:
    """Remove the end of a line whose writing was cut short by a kill."""
    if not os.path.lexists(path):
        return
    with naming(path):
        descriptor = open_own(path, os.O_RDWR)
        with os.fdopen(descriptor, "r+b") as file:
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole != len(content):
                os.ftruncate(descriptor, whole)


class Display:
    """Progress on stderr: live on a terminal, else a line per minute.

    Args:
        total: number of updates of the run.
        done: updates done when this invocation began.
    """

    seconds_between_lines = 60.0

    def __init__(self, total: int, done: int) -> None:
        self.total, self.begin = total, done
        self.started = self.last = time.monotonic()
        self._live: Any = None
        if sys.stderr is not None and sys.stderr.isatty():
            from rich.console import Console
            from rich.live import Live

            console = Console(file=cast(TextIO, Unfailing(sys.stderr)))
            self._live = Live(console=console, refresh_per_second=4, transient=True)
            self._live.start()

    def is_due(self) -> bool:
        """Whether it is time to show something; asked after every update, so it must be cheap."""
        wait = 0.5 if self._live is not None else self.seconds_between_lines
        return time.monotonic() - self.last >= wait

    def show(
        self, update: int, phase: str, acceptance: Mapping[str, float], latest: Mapping[str, float]
    ) -> None:
        """Show where the run is: acceptance by kernel, the latest value of each observable."""
        self.last = time.monotonic()
        elapsed = self.last - self.started
        done = update - self.begin
        remaining = (self.total - update) * elapsed / done if done else float("nan")
        shares = [f"{name} {value:.1%}" for name, value in acceptance.items()]
        values = [f"{name} = {value:.6g}" for name, value in latest.items()]
        if self._live is None:
            parts = [f"update {update}/{self.total} ({phase})", *shares, *values]
            parts.append(f"{_clock(remaining)} left")
            self.say(", ".join(parts))
            return
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        bar = ProgressBar(total=self.total, completed=update, width=50)
        head = Text(
            f"update {update}/{self.total} ({phase}), {_clock(elapsed)} elapsed, "
            f"{_clock(remaining)} left"
        )
        # A grid, since a bar alone does not end its line.
        grid = Table.grid()
        for row in (head, bar, Text("accepted: " + ", ".join(shares)), Text(", ".join(values))):
            grid.add_row(row)
        self._live.update(grid)

    def say(self, text: str) -> None:
        """Write one line to stderr."""
        if self._live is None:
            say(text, prefix="")
        else:
            self._live.console.print(text, highlight=False, markup=False)

    def close(self) -> None:
        """End the live display."""
        if self._live is not None:
            self._live.stop()


def _clock(seconds: float) -> str:
    if not seconds >= 0 or seconds == float("inf"):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes:02d}m"
    return f"{minutes}m{rest:02d}s" if minutes else f"{rest}s"
