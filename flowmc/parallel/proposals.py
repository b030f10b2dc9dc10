"""Flow proposals drawn by ranks that own no chains, for those that do.

For few chains and an expensive flow.  What is proposed follows from a key that every rank derives
by itself, so ranks without chains draw from the beginning of an update on, while the owners still
run HMC.  Log-weights travel first; of the fields only those that a chain ends on.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from flowmc.kernels import Cycle, EachReplica, Exchange, Independence, Kernel, Mixture
from flowmc.kernels.independence import DrawnHere, Proposals, Supplied, check_precision
from flowmc.parallel.communicator import Communicator, Pending
from flowmc.parallel.distribution import Distribution, shares
from flowmc.random import Randomness, Streams

__all__ = ["SharedProposals"]

# Above those of exchanges; two tags per block.
_FIRST_TAG, _TAGS = 16384, 8000


@dataclass(frozen=True)
class _Use:
    """An independence kernel of the cycle, how often an update applies it, and where."""

    kernel: Independence
    times: int
    replica: int | None


@dataclass(frozen=True)
class _Share:
    """Consecutive batches of one step that one rank draws.

    Attributes:
        rank: that draws.
        batches: index and size of each.
        start: of the first proposal among all of the step.
    """

    rank: int
    batches: Sequence[tuple[int, int]]
    start: int

    @property
    def size(self) -> int:
        """Number of proposals."""
        return sum(size for _, size in self.batches)


@dataclass(frozen=True)
class _Task:
    """One step of one block, as the rank that draws a share of it sees it."""

    kernel: Independence
    block: int
    owner: int
    key: int
    share: _Share


class SharedProposals:
    """Deals the drawing of proposals to ranks; no result depends on who draws.

    Args:
        communicator: of all ranks.
        distribution: who owns what; its idle ranks draw.
        kernel: the cycle or mixture of the run.
        chains: number of chains of every block.
        seed: of the run.
        device: of this rank.

    Attributes:
        uncounted: names of kernels that may draw keys of proposals where nobody else can count
            them; if there are any, every owner draws for itself.
    """

    def __init__(
        self,
        communicator: Communicator,
        distribution: Distribution,
        kernel: Cycle | Mixture,
        chains: Sequence[int],
        seed: int,
        device: torch.device,
    ) -> None:
        self._communicator, self._distribution = communicator, distribution
        self._top, self._chains, self._seed, self._device = kernel, chains, seed, device
        self._uses = {
            name: use for name, part in kernel.parts.items() if (use := _use(part)) is not None
        }
        self.uncounted = [name for name, part in kernel.parts.items() if not _counts(part)]
        if self.uncounted:
            self._uses = {}
        self._helpers = _helpers(distribution)
        for use in self._uses.values():
            use.kernel.supply = self.supply

    @property
    def has_work(self) -> bool:
        """Whether there is anything to draw."""
        return bool(self._uses)

    @property
    def is_helper(self) -> bool:
        """Whether this rank draws for others."""
        rank = self._communicator.rank
        return bool(self._uses) and any(rank in helpers for helpers in self._helpers)

    def supply(
        self, kernel: Independence, key: int, chains: int, like: Tensor, rng: Randomness
    ) -> Supplied:
        """Return the proposals of one step: a :class:`~flowmc.kernels.independence.Supply`."""
        assert isinstance(rng, Streams)
        if not self._helpers[rng.block]:
            return DrawnHere(kernel, key, chains, like, rng)
        found = self._shares(kernel, rng.block, rng.replica)
        return _Gathered(self._communicator, kernel, key, like, rng.block, found)

    def serve(self, update: int) -> None:
        """Draw for the owners of chains during one update, and hand out what they accept."""
        todo = deque(self._tasks(update))
        drawn: deque[tuple[_Task, Proposals, Pending]] = deque()
        ahead = 2 * sum(self._communicator.rank in helpers for helpers in self._helpers)
        while todo or drawn:
            waiting = {(task.owner, _tag(task.block)) for task, _, _ in drawn}
            come = [pair for pair in waiting if self._communicator.arrived(*pair)]
            if not come and todo and len(drawn) < ahead:
                drawn.append(self._draw(todo.popleft()))
                continue
            pair = come[0] if come else self._communicator.wait_for_any(sorted(waiting))
            first = next(entry for entry in drawn if (entry[0].owner, _tag(entry[0].block)) == pair)
            drawn.remove(first)
            self._hand_out(*first)

    def _tasks(self, update: int) -> Iterator[_Task]:
        """Yield what this rank draws in one update, in the order in which it is needed."""
        queues = []
        for block, helpers in enumerate(self._helpers):
            if self._communicator.rank in helpers:
                queues.append(list(self._tasks_of(block, update)))
        for step in range(max(map(len, queues), default=0)):
            for queue in queues:
                if step < len(queue):
                    yield queue[step]

    def _tasks_of(self, block: int, update: int) -> Iterator[_Task]:
        # The same draws from shared streams as on the rank that owns the block.
        rng = Streams(self._seed, block, update, {})
        names = [self._top.choose(rng)] if isinstance(self._top, Mixture) else [*self._top.parts]
        for name in names:
            use = self._uses.get(name)
            for _ in range(use.times if use else 0):
                assert use is not None
                key = use.kernel.key(rng if use.replica is None else rng.on(use.replica))
                for share in self._shares(use.kernel, block, use.replica):
                    if share.rank == self._communicator.rank and share.batches:
                        owner = self._distribution.owner(block, use.replica or 0)
                        yield _Task(use.kernel, block, owner, key, share)

    def _draw(self, task: _Task) -> tuple[_Task, Proposals, Pending]:
        own = _draw(task.kernel, task.key, task.share, self._device)
        weights = torch.stack([own.action, own.log_q])
        tag = _tag(task.block)
        return task, own, self._communicator.send(weights, task.owner, tag, "log-weights")

    def _hand_out(self, task: _Task, own: Proposals, sent: Pending) -> None:
        communicator, tag = self._communicator, _tag(task.block)
        shape = (task.share.size,)
        wanted = communicator.receive(
            shape, torch.bool, torch.device("cpu"), task.owner, tag, "requests"
        ).wait()
        sent.wait()
        if bool(wanted.any()):
            fields = own.fields[wanted.to(own.fields.device)]
            communicator.send(fields, task.owner, tag + 1, "accepted proposals").wait()

    def _shares(self, kernel: Independence, block: int, replica: int | None) -> list[_Share]:
        """Return who draws which batches of a step; the owner comes last."""
        sizes = kernel.batches(self._chains[block])
        ranks = [*self._helpers[block], self._distribution.owner(block, replica or 0)]
        dealt = shares(len(sizes), len(ranks))
        found, start = [], 0
        for number, rank in enumerate(ranks):
            batches = [(i, size) for i, size in enumerate(sizes) if dealt[i] == number]
            found.append(_Share(rank, batches, start))
            start += found[-1].size
        return found


class _Gathered:
    """The proposals of one step, from all ranks that draw: a ``Supplied``."""

    def __init__(
        self,
        communicator: Communicator,
        kernel: Independence,
        key: int,
        like: Tensor,
        block: int,
        found: Sequence[_Share],
    ) -> None:
        self._communicator, self._like, self._tag = communicator, like, _tag(block)
        self._remote = [share for share in found[:-1] if share.batches]
        self._own_share = found[-1]
        self._coming = [
            communicator.receive(
                (2, share.size), torch.float64, like.device, share.rank, self._tag, "log-weights"
            )
            for share in self._remote
        ]
        self._own: Proposals | None = None
        if self._own_share.batches:
            self._own = _draw(kernel, key, self._own_share, like.device)
            check_precision(self._own.fields, like)

    def weights(self) -> tuple[Tensor, Tensor]:
        """Return S and ln q of all proposals."""
        parts = [pending.wait() for pending in self._coming]
        if self._own is not None:
            parts.append(torch.stack([self._own.action, self._own.log_q]))
        action, log_q = torch.cat(parts, dim=1)
        return action, log_q

    def take(self, index: Tensor) -> Tensor:
        """Return the fields of some proposals, whose indices ascend."""
        like, host = self._like, index.cpu()
        sent, coming = [], []
        for share in self._remote:
            local = host[(host >= share.start) & (host < share.start + share.size)] - share.start
            wanted = torch.zeros(share.size, dtype=torch.bool)
            wanted[local] = True
            sent.append(self._communicator.send(wanted, share.rank, self._tag, "requests"))
            if len(local):
                shape = (len(local), *like.shape[1:])
                coming.append(
                    self._communicator.receive(
                        shape, like.dtype, like.device, share.rank, self._tag + 1, "proposals"
                    )
                )
        for pending in sent:
            pending.wait()
        parts = [pending.wait() for pending in coming]
        if self._own is not None:
            start = self._own_share.start
            parts.append(self._own.fields[index[index >= start] - start])
        return torch.cat(parts) if parts else like[:0]


def _draw(kernel: Independence, key: int, share: _Share, device: torch.device) -> Proposals:
    drawn = [kernel.draw(key, batch, size, device) for batch, size in share.batches]
    return Proposals(
        torch.cat([part.fields for part in drawn]),
        torch.cat([part.action for part in drawn]),
        torch.cat([part.log_q for part in drawn]),
    )


def _use(part: Kernel) -> _Use | None:
    """Find the independence kernel inside its wrappings (clock, repetition, replica)."""
    times: int = 1
    replica: int | None = None
    kernel = part
    while (inner := _wrapped(kernel)) is not None:
        times *= getattr(kernel, "times", 1)
        replica = getattr(kernel, "replica", replica)
        kernel = inner
    return _Use(kernel, times, replica) if type(kernel) is Independence else None


def _counts(part: Kernel) -> bool:
    """Whether all keys that a kernel draws from shared streams are those of :func:`_use`."""
    kernel = part
    while (inner := _wrapped(kernel)) is not None:
        kernel = inner
    if type(kernel) is EachReplica:
        return not any(one.takes_streams for one in kernel.kernels)
    # Others with the streams of a run may do anything with them, such as apply a sampler.
    return type(kernel) in (Independence, Exchange) or not kernel.takes_streams


def _wrapped(kernel: Kernel) -> Kernel | None:
    """Return the one kernel inside a wrapping of this package, if it is one."""
    if type(kernel).__module__.partition(".")[0] != "flowmc":
        return None
    inner = getattr(kernel, "kernel", None)
    return inner if isinstance(inner, Kernel) else None


def _helpers(distribution: Distribution) -> list[list[int]]:
    """Return the idle ranks that draw for each block."""
    blocks, idle = len(distribution.owners), distribution.idle
    if len(idle) >= blocks:
        return [list(idle[block::blocks]) for block in range(blocks)]
    return [[idle[block % len(idle)]] if idle else [] for block in range(blocks)]


def _tag(block: int) -> int:
    return _FIRST_TAG + 2 * (block % _TAGS)
