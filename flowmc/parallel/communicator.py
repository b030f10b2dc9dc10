"""Ranks that work together: the few operations that flowmc needs, with or without MPI.

:class:`Communicator` is one rank alone; :class:`~flowmc.parallel.mpi.MpiCommunicator` has the same
operations over MPI.  Code is written against them once.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from flowmc.launcher import SLURM_AND_MPI, has_told_mpi, launched_processes
from flowmc.messages import settle_standard_streams
from flowmc.registry import ConfigError

__all__ = ["CollectiveError", "Communicator", "Pending", "Traffic"]

T = TypeVar("T")


class CollectiveError(Exception):
    """An error that all ranks know of, raised on each of them with the same message.

    Attributes:
        kinds: names of the classes of the original error, ``"module.Name"``, most special first.
    """

    def __init__(self, message: str, kinds: tuple[str, ...]) -> None:
        super().__init__(message)
        self.kinds = kinds


@dataclass
class Traffic:
    """What one rank has sent for one purpose.

    Attributes:
        messages: messages or collective operations.
        bytes: payload of this rank.
        seconds: spent waiting, imbalance of the ranks included.
    """

    messages: int = 0
    bytes: int = 0
    seconds: float = 0.0


class Pending:
    """A message or a collective operation on its way; :meth:`wait` returns what came."""

    def __init__(
        self, finish: Callable[[], Any], advance: Callable[[], object] | None = None
    ) -> None:
        self._finish, self._advance = finish, advance

    def poke(self) -> None:
        """Let it make progress without waiting: MPI moves only while it is called."""
        if self._advance is not None:
            self._advance()

    def wait(self) -> Any:
        """Return what was received, or None where nothing is."""
        return self._finish()


class Communicator:
    """One rank alone, and the interface of several.

    All operations but :meth:`send`, :meth:`receive` and :meth:`abort` are collective: every rank
    calls them in the same order.

    Attributes:
        rank: of this process, 0 <= rank < size.
        size: number of ranks.
        node_rank: rank among the ranks of this node.
        node_size: number of ranks on this node.
        timeout: seconds after which a peer that does not come is given up.
        traffic: by purpose.
    """

    rank, size, node_rank, node_size = 0, 1, 0, 1

    def __init__(self) -> None:
        self.timeout = 1800.0
        self.traffic: dict[str, Traffic] = {}

    def broadcast(self, value: T, root: int = 0) -> T:
        """Return the value of rank ``root``; the others' is ignored."""
        return value

    def allgather(self, value: T) -> list[T]:
        """Return the values of all ranks, in their order."""
        return [value]

    def gather(self, value: T) -> list[T] | None:
        """Return the values of all ranks on rank 0, None elsewhere."""
        return [value]

    def gather_words(self, words: np.ndarray) -> list[np.ndarray] | None:
        """Return the int64 arrays of all ranks, of any lengths, on rank 0; None elsewhere.

        Unlike :meth:`gather` this costs rank 0 next to nothing per rank.
        """
        return self.start_gather_words(words).wait()

    def start_gather_words(self, words: np.ndarray) -> Pending:
        """Begin :meth:`gather_words`, whose result ``wait()`` returns.

        The next may begin only when this one is over; other operations may come between.
        """
        return Pending(lambda: [words])

    def sum(self, values: np.ndarray) -> np.ndarray:
        """Return the sum over ranks of a float64 array: the same bits on every rank."""
        return values

    def maximum(self, values: np.ndarray) -> np.ndarray:
        """Return the elementwise largest float64 over ranks."""
        return self.start_maximum(values).wait()

    def start_maximum(self, values: np.ndarray) -> Pending:
        """Begin :meth:`maximum`, whose result ``wait()`` returns."""
        return Pending(lambda: values)

    def barrier(self) -> None:
        """Return when all ranks have come here."""

    def send(self, tensor: Tensor, to: int, tag: int, purpose: str) -> Pending:
        """Send a tensor from where it lives; it must not change before ``wait()`` returns."""
        raise ValueError("one rank alone has nobody to send to")

    def receive(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        source: int,
        tag: int,
        purpose: str,
    ) -> Pending:
        """Receive a tensor of known shape."""
        raise ValueError("one rank alone has nobody to receive from")

    def arrived(self, source: int, tag: int) -> bool:
        """Whether a message can be received without waiting."""
        return False

    def wait_for_any(self, messages: Sequence[tuple[int, int]]) -> tuple[int, int]:
        """Wait until one of some messages, each (source, tag), can be received; return it."""
        raise ValueError("one rank alone has nobody to wait for")

    def free(self) -> None:
        """Give back what MPI holds for this communicator, which is of no use afterwards."""

    def abort(self, status: int) -> None:
        """End all ranks at once with this exit status."""
        settle_standard_streams()
        os._exit(status)

    def together(self, function: Callable[[], T]) -> T:
        """Call a function on every rank; if it raises anywhere, raise everywhere.

        The function must not communicate.

        Raises:
            CollectiveError: with the message of the lowest rank that failed.  One rank alone
                raises the error itself.
        """
        return function()

    def from_root(self, function: Callable[[], T]) -> T:
        """Call a function on rank 0 only and return its value, or raise its error, everywhere."""
        return function()

    def count(self, purpose: str, size: int, seconds: float = 0.0) -> None:
        """Account for one message."""
        entry = self.traffic.setdefault(purpose, Traffic())
        entry.messages += 1
        entry.bytes += size
        entry.seconds += seconds


def _world() -> Communicator:
    wanted = os.environ.get("FLOWMC_MPI")
    launched = launched_processes()
    if wanted == "0" or (wanted != "1" and launched in (None, 1)):
        return Communicator()
    if launched and wanted != "1" and not has_told_mpi():
        raise ConfigError(
            f"srun started {launched} tasks without telling MPI of each other (--mpi=none): use "
            f"{SLURM_AND_MPI}; or set FLOWMC_MPI=0, and every task is a run of its own"
        )
    try:
        from flowmc.parallel.mpi import MpiCommunicator
    except (ImportError, RuntimeError) as error:
        # An mpi4py that finds no MPI library raises the latter, over several lines.
        raise ConfigError(
            "this process was started by an MPI launcher, but mpi4py cannot be imported on "
            f"{os.uname().nodename} ({str(error).splitlines()[0]}): "
            "install flowmc-lattice[mpi] for the MPI of the launcher, or set FLOWMC_MPI=0"
        ) from error
    communicator = MpiCommunicator()
    if launched and communicator.size != launched:
        raise ConfigError(
            f"the launcher started {launched} processes, but mpi4py sees {communicator.size}: it "
            "was built for another MPI than this launcher's; every process would be a run of its "
            f"own. Use the mpirun of mpi4py's MPI, or build mpi4py with this one; under SLURM, "
            f"{SLURM_AND_MPI}"
        )
    return communicator if communicator.size > 1 else Communicator()
