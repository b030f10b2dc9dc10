"""What native kernels run, and on which threads: as many as torch uses, one setting for both.

Kernels release the interpreter lock, and a pool of Python threads runs them on slices of the work.
Idle threads sleep between trajectories, and yield to others inside one; a process may fork.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch

__all__ = ["run_operations", "run_slices"]

# Waking a thread costs tens of microseconds: slices shorter than this are not worth one.
_SHORTEST_SLICE = 1e5  # nanoseconds

_pool: ThreadPoolExecutor | None = None
_pool_size = 0
_lock = threading.Lock()


def _forget_pool() -> None:
    global _pool, _pool_size, _lock
    _pool, _pool_size, _lock = None, 0, threading.Lock()


if hasattr(os, "register_at_fork"):
    # Threads do not survive a fork.
    os.register_at_fork(after_in_child=_forget_pool)


def _workers(nanoseconds: float) -> int:
    return max(1, min(torch.get_num_threads(), int(nanoseconds / _SHORTEST_SLICE)))


def _run_team(work: Callable[[int], None], size: int) -> None:
    """Run ``work(0)`` here and ``work(1)`` ... ``work(size - 1)`` on other threads."""
    global _pool, _pool_size
    if size == 1:
        work(0)
        return
    with _lock:
        if _pool is None or _pool_size < size - 1:
            # A pool that is being replaced finishes what it has.
            _pool, _pool_size = ThreadPoolExecutor(size - 1, "flowmc-native"), size - 1
        futures = [_pool.submit(work, worker) for worker in range(1, size)]
    try:
        work(0)
    finally:
        for future in futures:
            future.result()


class _Barrier:
    """A barrier whose waiters yield instead of sleeping.

    A phase lasts about a millisecond, and so does waking a thread that sleeps on a virtual
    machine: with :class:`threading.Barrier` two threads were slower than one.
    """

    def __init__(self, parties: int) -> None:
        self._parties, self._arrived, self._generation = parties, 0, 0
        self._broken = False
        self._lock = threading.Lock()

    def wait(self) -> None:
        """Return when all parties have called this; raise if one of them failed."""
        with self._lock:
            generation = self._generation
            self._arrived += 1
            if self._arrived == self._parties:
                self._arrived = 0
                self._generation += 1
        while self._generation == generation:
            if self._broken:
                raise threading.BrokenBarrierError
            time.sleep(0)

    def abort(self) -> None:
        """Make all waiters raise."""
        self._broken = True


def _slice(worker: int, workers: int, count: int) -> tuple[int, int]:
    return worker * count // workers, (worker + 1) * count // workers


def run_slices(work: Callable[[int, int], None], count: int, nanoseconds: float) -> None:
    """Run ``work(start, stop)`` on slices of ``range(count)`` that take ``nanoseconds`` each."""
    workers = min(count, _workers(count * nanoseconds))
    _run_team(lambda worker: work(*_slice(worker, workers, count)), workers)


def run_operations(
    whole: Callable[[int, int], None],
    phases: Sequence[Callable[[int, int], None]],
    groups: int,
    blocks: int,
    nanoseconds: float,
) -> None:
    """Run a trajectory over groups of chains, by groups if that keeps all threads busy.

    Args:
        whole: ``whole(start, stop)`` runs all phases for a range of groups.
        phases: ``phase(start, stop)`` runs one phase for a range of blocks of all groups; a phase
            starts when the one before is complete.
        groups: number of groups.
        blocks: number of blocks of sites per group.
        nanoseconds: about what one block takes in one phase.
    """
    by_groups = min(groups, _workers(groups * blocks * len(phases) * nanoseconds))
    by_blocks = min(blocks, _workers(groups * blocks * nanoseconds))
    # The busiest thread of a split by groups has ceil(groups / workers) of them.
    if -(-groups // by_groups) * by_blocks <= 1.2 * groups:
        _run_team(lambda worker: whole(*_slice(worker, by_groups, groups)), by_groups)
        return
    barrier = _Barrier(by_blocks)

    def work(worker: int) -> None:
        try:
            for phase in phases:
                phase(*_slice(worker, by_blocks, blocks))
                barrier.wait()
        except BaseException:
            barrier.abort()
            raise

    _run_team(work, by_blocks)
