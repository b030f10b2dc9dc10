"""Random streams that do not depend on how the work is spread over ranks.

Chains come in fixed blocks.  Each block owns one stream per purpose, derived from
``(seed, block, purpose)``, so the same chains come out whatever rank or device order runs them.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping

import numpy as np
import torch

__all__ = ["Randomness", "Streams", "own_stream", "shared_stream", "stream"]


def stream(
    seed: int, block: int, purpose: str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return the random stream of one block of chains for one purpose.

    Args:
        seed: the seed of the whole run, >= 0.
        block: index of the block of chains, >= 0.
        purpose: what the numbers are for ("start", "update", ...); distinct purposes give
            independent streams.
        device: where the numbers are drawn.

    The triple is hashed by :class:`numpy.random.SeedSequence`, whose output words are
    independent for distinct inputs (M.E. O'Neill, "Developing a seed_seq alternative", 2015).
    """
    # crc32 and not hash(): Python salts the hash of strings per process.
    sequence = np.random.SeedSequence([seed, block, zlib.crc32(purpose.encode())])
    generator = torch.Generator(device=device)
    # torch takes a 64-bit signed seed; 63 bits of the sequence keep it positive.
    generator.manual_seed(int(sequence.generate_state(1, np.uint64)[0] >> np.uint64(1)))
    return generator


class Streams:
    """The random numbers of one block of chains during one update of a run.

    Every replica has a stream of its own, on the rank where it lives.  What several ranks must
    know, such as the threshold of an exchange, comes from *shared* streams, which any rank makes
    by itself: they are derived from (seed, block, purpose, update, how often it was asked for).

    Args:
        seed: of the run.
        block: index of the block of chains.
        update: number of the update, counted from 1.
        own: the streams of the replicas that live on this rank, by replica.
        replica: whose stream :func:`own_stream` returns.
    """

    def __init__(
        self,
        seed: int,
        block: int,
        update: int,
        own: Mapping[int, torch.Generator],
        replica: int = 0,
    ) -> None:
        self.seed, self.block, self.update = seed, block, update
        self.own, self.replica = own, replica
        self._asked: dict[str, int] = {}

    def on(self, replica: int) -> Streams:
        """Return these streams for a kernel that acts on one replica."""
        view = Streams(self.seed, self.block, self.update, self.own, replica)
        view._asked = self._asked
        return view

    def shared(self, purpose: str) -> torch.Generator:
        """Return the next shared stream for a purpose, on the CPU."""
        count = self._asked.get(purpose, 0)
        self._asked[purpose] = count + 1
        return stream(self.seed, self.block, f"{purpose}, update {self.update}, {count}")


Randomness = torch.Generator | Streams
"""What a kernel draws from: one stream, or the streams of a block of a run."""


def own_stream(rng: Randomness) -> torch.Generator:
    """Return the stream of the chains that a kernel moves."""
    return rng if isinstance(rng, torch.Generator) else rng.own[rng.replica]


def shared_stream(rng: Randomness, purpose: str) -> torch.Generator:
    """Return a stream that is the same on all ranks among which a block is spread.

    A single generator serves for both: it is then all the randomness there is.
    """
    return rng if isinstance(rng, torch.Generator) else rng.shared(purpose)
