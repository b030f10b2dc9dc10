"""Arguments that `inspect` and `convert` share."""

from __future__ import annotations

import argparse
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import Any, TypeVar, cast

_T = TypeVar("_T")


def add_reading_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare how files are read."""
    parser.add_argument(
        "--ignore-checksum",
        action="store_true",
        help="only warn if checksum, plaquette or link trace differ from those in the file",
    )
    parser.add_argument(
        "--dims",
        nargs=4,
        type=int,
        metavar=("LX", "LY", "LZ", "LT"),
        help="lattice extents, for files that do not state them",
    )
    parser.add_argument(
        "--layout", metavar="NAME", help="order of the numbers, for files that leave it open"
    )
    parser.add_argument(
        "--mpi",
        action="store_true",
        help="share the work on every file among the ranks of mpirun (needs mpi4py)",
    )


def reading_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The keyword arguments `dims` and `layout` of the reading functions."""
    dims = None if arguments.dims is None else tuple(arguments.dims)
    return {"dims": dims, "layout": arguments.layout}


def communicator(arguments: argparse.Namespace) -> Any:
    """The mpi4py communicator of all ranks if `--mpi` was given, else None.

    Raises:
        ValueError: mpi4py or an MPI library is missing.
    """
    if not arguments.mpi:
        return None
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise ValueError(f"--mpi needs mpi4py and an MPI library: {error}") from error
    return MPI.COMM_WORLD


@contextmanager
def stopped_by_signals() -> Iterator[None]:
    """Signals that would kill end the block like an exception, so that unfinished files are
    removed: SIGTERM, SIGHUP, and those that batch systems send before the time is up."""

    def stop(number: int, _: object) -> None:
        for other in ours:  # one more must not interrupt the removal
            signal.signal(other, signal.SIG_IGN)
        raise SystemExit(128 + number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    wanted = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGXCPU)
    ours = [number for number in wanted if signal.getsignal(number) is signal.SIG_DFL]
    for number in ours:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)


@contextmanager
def only_first_rank_prints(comm: Any) -> Iterator[None]:
    """Silence the other ranks, who do the same as the first one."""
    if comm is None or comm.rank == 0:
        yield
        return
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        yield


def by_first_rank(comm: Any, function: Callable[[], _T]) -> _T:
    """What a function gives on the first rank, on all of them; also its ValueError or OSError."""
    if comm is None:
        return function()
    outcome: tuple[Any, ValueError | OSError | None] = (None, None)
    if comm.rank == 0:
        try:
            outcome = function(), None
        except (ValueError, OSError) as error:
            outcome = None, error
    result, refusal = comm.bcast(outcome)
    if refusal is not None:
        raise refusal
    return cast(_T, result)


def assignments(texts: Sequence[str], option: str) -> dict[str, str]:
    """`KEY=VALUE` arguments as a dictionary.

    Raises:
        ValueError: one of them is not of that form.
    """
    pairs = [text.partition("=") for text in texts]
    for text, (key, equals, _) in zip(texts, pairs, strict=True):
        if not equals or not key.strip():
            raise ValueError(f"{option} takes KEY=VALUE, not {text!r}")
    return {key.strip(): value.strip() for key, _, value in pairs}
