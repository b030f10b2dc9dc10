"""Which rank owns which replica of which block of chains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Distribution", "shares"]


@dataclass(frozen=True)
class Distribution:
    """The map from (block, replica) to ranks.

    Blocks are dealt whole while there are at least as many as ranks: a ladder on one rank needs no
    messages.  With more ranks than blocks, every block gets a group of neighbouring ranks, which
    share its replicas evenly.  No result depends on the map.

    Attributes:
        ranks: number of ranks.
        owners: rank of every replica, ``owners[block][replica]``.
    """

    ranks: int
    owners: tuple[tuple[int, ...], ...]

    @classmethod
    def deal(
        cls,
        ranks: int,
        blocks: int,
        replicas: int = 1,
        *,
        order: str = "contiguous",
        whole_ladders: bool = False,
    ) -> Distribution:
        """Deal blocks and replicas to ranks.

        Args:
            ranks: number of ranks.
            blocks: number of blocks of chains.
            replicas: of every block.
            order: "contiguous" gives neighbouring blocks and replicas to one rank, "cyclic" deals
                them one by one.
            whole_ladders: never spread the replicas of a block.
        """
        if order == "cyclic":
            apart = ranks > blocks and not whole_ladders
            owners = tuple(
                tuple((block * replicas + r if apart else block) % ranks for r in range(replicas))
                for block in range(blocks)
            )
            return cls(ranks, owners)
        if ranks <= blocks or replicas == 1 or whole_ladders:
            owner = shares(blocks, min(ranks, blocks))
            return cls(ranks, tuple((rank,) * replicas for rank in owner))
        groups = shares(min(ranks, blocks * replicas), blocks)
        spread: list[tuple[int, ...]] = []
        for block in range(blocks):
            group = [rank for rank, own in enumerate(groups) if own == block]
            spread.append(tuple(group[share] for share in shares(replicas, len(group))))
        return cls(ranks, tuple(spread))

    def owner(self, block: int, replica: int = 0) -> int:
        """Return the rank on which a replica of a block lives."""
        return self.owners[block][replica]

    def blocks_of(self, rank: int) -> dict[int, tuple[int, ...]]:
        """Return the replicas that live on a rank, by block."""
        found = {}
        for block, owners in enumerate(self.owners):
            own = tuple(r for r, owner in enumerate(owners) if owner == rank)
            if own:
                found[block] = own
        return found

    @property
    def idle(self) -> tuple[int, ...]:
        """Ranks on which nothing lives."""
        busy = {rank for owners in self.owners for rank in owners}
        return tuple(rank for rank in range(self.ranks) if rank not in busy)


def shares(items: int, count: int) -> Sequence[int]:
    """Return the share of every item: contiguous, as even as possible, the first ones larger."""
    size, rest = divmod(items, count)
    found: list[int] = []
    for share in range(count):
        found += [share] * (size + (share < rest))
    return found
