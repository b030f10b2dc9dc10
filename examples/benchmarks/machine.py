"""What the benchmarks share: the machine's name, interleaved timing, markdown tables."""

import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from pathlib import Path


def processor() -> str:
    """Return the processor's model name and the number of cores this process may use."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}


def interleaved(
    contenders: Sequence[Callable[[], object]], rounds: int, clock: str = "wall"
) -> list[tuple[float, float]]:
    """Time the contenders in turn, A B A B ..., after one untimed call of each.

    Args:
        contenders: what to time.
        rounds: how often each is timed.
        clock: "wall", or "cpu" for the processor time of all threads of this process: on a machine
            that other programs use, with one thread, that is the fairer of the two.

    Returns:
        Per contender the median and the least time of a call in seconds.  The machine's other
        work hits neighbours in time alike, so ratios of medians are more stable than the times.
    """
    now = CLOCKS[clock]
    times: list[list[float]] = [[] for _ in contenders]
    for contender in contenders:
        contender()
    for _ in range(rounds):
        for contender, record in zip(contenders, times, strict=True):
            start = now()
            contender()
            record.append(now() - start)
    return [(statistics.median(record), min(record)) for record in times]


@contextmanager
def native(is_on: bool):
    """Switch the native kernels on or off inside a block."""
    before = os.environ.get("FLOWMC_NATIVE")
    os.environ["FLOWMC_NATIVE"] = "1" if is_on else "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ["FLOWMC_NATIVE"]
        else:
            os.environ["FLOWMC_NATIVE"] = before


def print_row(cells: Sequence[object]) -> None:
    """Print one row of a markdown table at once, so that a long run shows its progress."""
    print("| " + " | ".join(map(str, cells)) + " |", flush=True)


def print_header(cells: Sequence[str]) -> None:
    """Print the head of a markdown table."""
    print_row(cells)
    print_row(["---"] * len(cells))
