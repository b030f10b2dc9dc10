"""The communicator over MPI (mpi4py).

Every operation is started without blocking and then polled: a rank that waits leaves its core to
others, reacts to signals, and gives up when a peer does not come in time, saying which.
"""

from __future__ import annotations

import ctypes
import os
import pickle
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import mpi4py
import numpy as np
import torch
from torch import Tensor

mpi4py.rc.threads = False
# An MPI that cannot start under its launcher ends the process: it is looked at before.
mpi4py.rc.initialize, mpi4py.rc.finalize = False, True
from mpi4py import MPI  # noqa: E402  (reads mpi4py.rc)

from flowmc.launcher import SLURM_AND_MPI  # noqa: E402
from flowmc.messages import say, settle_standard_streams  # noqa: E402
from flowmc.parallel.communicator import CollectiveError, Communicator, Pending  # noqa: E402
from flowmc.registry import ConfigError  # noqa: E402

__all__ = ["MpiCommunicator"]

T = TypeVar("T")

# Longer than the scheduler's time slice is never slept, or waiting ranks would answer late.
_SPIN, _LONGEST_NAP = 2e-4, 1e-3
# Tag of "I am waiting, too"; the largest tag that MPI guarantees is 32767.
_ALIVE = 32766


class MpiCommunicator(Communicator):
    """All ranks of ``MPI.COMM_WORLD``, or of a communicator of a program that runs flowmc.

    Args:
        handle: of that communicator, as ``MPI_Comm_c2f`` returns it; None for all ranks.

    Raises:
        ConfigError: the MPI of mpi4py cannot start under this launcher, or is not the one that has
            started the program.
    """

    def __init__(self, handle: int | None = None) -> None:
        super().__init__()
        if handle is None:
            _check_launcher()
            if not MPI.Is_initialized():
                MPI.Init()
        elif not MPI.Is_initialized():
            raise ConfigError(
                "the MPI of mpi4py has not been started: start MPI before, and let mpi4py use the "
                "program's own MPI"
            )
        whole = MPI.COMM_WORLD if handle is None else MPI.Intracomm(MPI.Comm.f2py(handle))
        # A copy: messages of others that use this communicator cannot be taken for ours.
        self._comm = whole.Dup()
        # Their second half begins on every rank when it learns that the first is over, which is at
        # different places among the operations on the other communicator.
        self._rows = whole.Dup()
        self.rank, self.size = self._comm.Get_rank(), self._comm.Get_size()
        node = self._comm.Split_type(MPI.COMM_TYPE_SHARED)
        self.node_rank, self.node_size = node.Get_rank(), node.Get_size()
        node.Free()
        self.is_cuda_aware = _is_cuda_aware()

    def free(self) -> None:
        self._rows.Free()
        self._comm.Free()

    def broadcast(self, value: T, root: int = 0) -> T:
        data = np.frombuffer(pickle.dumps(value) if self.rank == root else b"", np.uint8)
        size = np.array([data.size], np.int64)
        self._collective(self._comm.Ibcast(size, root), "broadcast", 0)
        buffer = data if self.rank == root else np.empty(int(size[0]), np.uint8)
        sent = buffer.size if self.rank == root else 0
        self._collective(self._comm.Ibcast(buffer, root), "broadcast", sent)
        return value if self.rank == root else pickle.loads(buffer.data)

    def allgather(self, value: T) -> list[T]:
        data = np.frombuffer(pickle.dumps(value), np.uint8)
        sizes = np.empty(self.size, np.int64)
        own = np.array([data.size], np.int64)
        self._collective(self._comm.Iallgather(own, sizes), "gather", 0)
        everything = np.empty(int(sizes.sum()), np.uint8)
        request = self._comm.Iallgatherv(data, [everything, sizes.tolist()])
        self._collective(request, "gather", data.size)
        return [pickle.loads(part.data) for part in _parts(everything, sizes)]

    def gather(self, value: T) -> list[T] | None:
        data = np.frombuffer(pickle.dumps(value), np.uint8)
        parts = self._start_gather(self._comm, data, "gather").wait()
        return None if parts is None else [pickle.loads(part.data) for part in parts]

    def start_gather_words(self, words: np.ndarray) -> Pending:
        return self._start_gather(self._rows, np.ascontiguousarray(words, np.int64), "rows")

    def _start_gather(self, comm: MPI.Intracomm, data: np.ndarray, purpose: str) -> Pending:
        """Gather the sizes first; then everything, as soon as the sizes are known."""
        sizes = np.empty(self.size, np.int64)
        own = np.array([data.size], np.int64)
        request = comm.Igather(own, sizes, 0)
        everything: np.ndarray | None = None
        is_second = False

        def is_done() -> bool:
            nonlocal request, everything, is_second
            if not request.Test():
                return False
            if is_second:
                return True
            is_second = True
            if self.rank:
                request = comm.Igatherv(data, None, 0)
            else:
                everything = np.empty(int(sizes.sum()), data.dtype)
                request = comm.Igatherv(data, [everything, sizes.tolist()], 0)
            return bool(request.Test())

        def finish() -> list[np.ndarray] | None:
            seconds = self._wait(is_done, f"in a collective operation ({purpose})")
            self.count(purpose, own.nbytes if self.rank else 0)
            self.count(purpose, data.nbytes if self.rank else 0, seconds)
            return None if everything is None else _parts(everything, sizes)

        return Pending(finish, is_done)

    def sum(self, values: np.ndarray) -> np.ndarray:
        # A reduction to all may add in another order on every rank; from rank 0 all get one sum.
        own = np.ascontiguousarray(values, np.float64)
        total = np.empty_like(own)
        self._collective(self._comm.Ireduce(own, total, MPI.SUM, 0), "sum", own.nbytes)
        self._collective(self._comm.Ibcast(total, 0), "sum", 0 if self.rank else total.nbytes)
        return total

    def start_maximum(self, values: np.ndarray) -> Pending:
        own = np.ascontiguousarray(values, np.float64)
        largest = np.empty_like(own)
        request = self._comm.Iallreduce(own, largest, MPI.MAX)

        def finish() -> np.ndarray:
            self._collective(request, "agreement", own.nbytes)
            return largest

        return Pending(finish, request.Test)

    def barrier(self) -> None:
        self._collective(self._comm.Ibarrier(), "barrier", 0)

    def send(self, tensor: Tensor, to: int, tag: int, purpose: str) -> Pending:
        tensor = tensor.detach().resolve_conj().contiguous()
        buffer = self._buffer(tensor)
        request = self._comm.Isend(buffer, to, tag)
        size = tensor.numel() * tensor.element_size()

        def finish() -> None:
            self.count(purpose, size, self._wait(request.Test, f"sending to rank {to} ({purpose})"))

        return Pending(finish)

    def receive(
        self,
        shape: tuple[int, ...],
        dtype: torch.dtype,
        device: torch.device,
        source: int,
        tag: int,
        purpose: str,
    ) -> Pending:
        staged = device.type == "cuda" and not self.is_cuda_aware
        where = torch.device("cpu") if staged else device
        tensor = torch.empty(shape, dtype=dtype, device=where, pin_memory=staged)
        request = self._comm.Irecv(_view(tensor), source, tag)

        def finish() -> Tensor:
            seconds = self._wait(request.Test, f"for rank {source} ({purpose})")
            self.count(f"{purpose}, received", 0, seconds)
            return tensor.to(device) if staged else tensor

        return Pending(finish)

    def arrived(self, source: int, tag: int) -> bool:
        return bool(self._comm.Iprobe(source, tag))

    def wait_for_any(self, messages: Sequence[tuple[int, int]]) -> tuple[int, int]:
        found: list[tuple[int, int]] = []

        def look() -> bool:
            found.extend(pair for pair in messages if self.arrived(*pair))
            return bool(found)

        sources = ", ".join(str(source) for source in sorted({source for source, _ in messages}))
        self._wait(look, f"for rank {sources}")
        return found[0]

    def abort(self, status: int) -> None:
        settle_standard_streams()
        MPI.COMM_WORLD.Abort(status)

    def together(self, function: Callable[[], T]) -> T:
        failure: tuple[str, tuple[str, ...]] | None = None
        value: Any = None
        try:
            value = function()
        except Exception as error:
            failure, original = _described(error), error
        failures = self.allgather(failure)
        first = next((text for text in failures if text is not None), None)
        if first is None:
            return value
        raise CollectiveError(*first) from (original if failure is not None else None)

    def from_root(self, function: Callable[[], T]) -> T:
        outcome: Any = None
        original: Exception | None = None
        if self.rank == 0:
            try:
                outcome = (None, function())
            except Exception as error:
                outcome, original = (_described(error), None), error
        failure, value = self.broadcast(outcome)
        if failure is not None:
            raise CollectiveError(*failure) from original
        return value

    def _buffer(self, tensor: Tensor) -> Any:
        """Return what MPI can send: the tensor's own memory, or a copy in pinned host memory."""
        if tensor.device.type == "cuda":
            # Kernels that write the tensor may still be running; MPI knows nothing of streams.
            torch.cuda.synchronize(tensor.device)
            if not self.is_cuda_aware:
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                return _view(host.copy_(tensor))
        return _view(tensor)

    def _collective(self, request: MPI.Request, purpose: str, size: int) -> None:
        self.count(
            purpose, size, self._wait(request.Test, f"in a collective operation ({purpose})")
        )

    def _wait(self, is_done: Callable[[], bool], what: str) -> float:
        """Poll until something is done; return the seconds it took."""
        begin = time.monotonic()
        while not is_done():
            waited = time.monotonic() - begin
            if waited > self.timeout:
                self._give_up(is_done, what, waited)
            if waited > _SPIN:
                time.sleep(min(_LONGEST_NAP, 0.1 * waited))
        return time.monotonic() - begin

    def _give_up(self, is_done: Callable[[], bool], what: str, waited: float) -> None:
        """End the run, unless the peer comes in the last moment; say who is not there.

        Ranks that work are waiting as well, for this operation or for one that waits for it, and
        give up at about the same time: those that do not say so are the ones that hang.
        """
        alive = {self.rank}
        empty = np.empty(0, np.uint8)
        for other in range(self.size):
            if other != self.rank:
                self._comm.Isend(empty, other, _ALIVE)
        status = MPI.Status()
        until = time.monotonic() + min(10.0, 1.0 + 0.1 * self.timeout)
        while time.monotonic() < until:
            if is_done():
                return
            while self._comm.Iprobe(MPI.ANY_SOURCE, _ALIVE, status):
                alive.add(status.Get_source())
                self._comm.Recv(np.empty(0, np.uint8), status.Get_source(), _ALIVE)
            time.sleep(0.01)
        missing = sorted(set(range(self.size)) - alive)
        who = ", ".join(map(str, missing[:20])) + (", ..." if len(missing) > 20 else "")
        if self.rank != min(alive):
            # The lowest rank speaks for all; it ends everybody.
            time.sleep(5.0)
        text = f"rank {self.rank} of {self.size} waited {waited:.0f} s {what}"
        if missing:
            text += f"; not heard from rank{'s' if len(missing) > 1 else ''} {who}"
        say(
            f"{text}: hung, or much slower than the others; the last checkpoint is intact (the "
            "time-out is [parallel] peer_timeout)",
            prefix="flowmc: error: ",
        )
        self.abort(1)


def _check_launcher() -> None:
    """Refuse to start an MPICH that was built without PMIx where a launcher offers nothing else."""
    others = ("PMI_FD", "PMI_PORT", "PMI_SIZE", "PMI_RANK", "PALS_RANKID")
    if "PMIX_RANK" not in os.environ or any(name in os.environ for name in others):
        return
    version = MPI.Get_library_version()
    if version.startswith("MPICH Version") and "pmix" not in version.lower():
        name = " ".join(version.splitlines()[0].replace("Version:", "").split())
        raise ConfigError(
            f"this process was started with PMIx (--mpi=pmix), and the MPI of mpi4py, {name}, was "
            f"built without it: use {SLURM_AND_MPI}"
        )


def _described(error: Exception) -> tuple[str, tuple[str, ...]]:
    if isinstance(error, CollectiveError):
        return str(error), error.kinds
    text = str(error)
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    kinds = tuple(f"{kind.__module__}.{kind.__qualname__}" for kind in type(error).__mro__)
    return text, kinds


def _parts(data: np.ndarray, sizes: np.ndarray) -> list[np.ndarray]:
    return np.split(data, np.cumsum(sizes)[:-1])


def _view(tensor: Tensor) -> Any:
    """Return the bytes of a contiguous tensor as MPI takes them."""
    if tensor.numel() == 0:
        return np.empty(0, np.uint8)
    flat = tensor.reshape(-1).view(torch.uint8)
    return flat.numpy() if tensor.device.type == "cpu" else flat


def _is_cuda_aware() -> bool:
    """Ask the MPI library whether it takes pointers to GPU memory."""
    if not torch.cuda.is_available():
        return False
    forced = os.environ.get("FLOWMC_CUDA_AWARE_MPI")
    if forced is not None:
        return forced == "1"
    if os.environ.get("MPICH_GPU_SUPPORT_ENABLED") == "1" or os.environ.get("MV2_USE_CUDA") == "1":
        return True
    try:
        query = ctypes.CDLL(MPI.__file__).MPIX_Query_cuda_support
    except (OSError, AttributeError):
        return False
    query.restype = ctypes.c_int
    return bool(query())
