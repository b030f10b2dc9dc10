"""Random streams that do not depend on how the work is spread over ranks.

Chains come in fixed blocks.  Each block owns one stream per purpose, derived from
``(seed, block, purpose)``, so the same chains come out whatever rank or device order runs them.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Mapping
from functools import cache

import numpy as np
import torch

__all__ = ["Randomness", "SingleStream", "Streams", "own_stream", "shared_stream", "stream"]

# Of the Mersenne twister, and where torch keeps them among the bytes of a generator's state:
# behind its seed (uint64) and two counters, one word in every eight bytes.
_WORDS, _FIRST_BYTE = 624, 24


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

    The triple is hashed by SHAKE-256 (FIPS 202), which gives as many bits as are asked for.  On a
    CPU they are all 19,937 of the generator's state: torch's own seeding would keep 32 of them, so
    that among 100,000 streams two would be equal.  On a GPU they are the 63 bits of the key of
    Philox, two of which coincide among 10^6 streams with a probability of 10^-7.
    """
    name = f"{seed}, {block}, {purpose}".encode()
    words = np.frombuffer(hashlib.shake_256(name).digest(4 * _WORDS), "<u4")
    # 63 bits: the seed of a generator is a positive signed integer.
    key = int(words[0]) | int(words[1] >> 1) << 32
    generator = torch.Generator(device=device)
    if generator.device.type != "cpu":
        return generator.manual_seed(key)
    state = _seeded_state().copy()
    state[:8].view(np.uint64)[0] = key
    state[_FIRST_BYTE : _FIRST_BYTE + 8 * _WORDS].view(np.uint64)[:] = words
    generator.set_state(torch.from_numpy(state))
    return generator


@cache
def _seeded_state() -> np.ndarray:
    """Return the bytes of the state of a CPU generator that has drawn nothing yet.

    Raises:
        RuntimeError: this version of torch has another generator.
    """
    seed = 5489
    state = torch.Generator().manual_seed(seed).get_state().numpy().copy()
    twister = np.random.RandomState(seed).get_state(legacy=False)["state"]["key"]
    words = state[_FIRST_BYTE : _FIRST_BYTE + 8 * _WORDS]
    if len(words) != 8 * _WORDS or not np.array_equal(words.view(np.uint64), twister):
        raise RuntimeError(
            f"torch {torch.__version__} keeps the state of its random numbers in another way than "
            "flowmc knows: install another version of one of them"
        )
    return state


class Streams:
    """The random numbers of one block of chains during one update of a run.

    Every replica has a stream of its own, on the rank where it lives.  What several ranks must
    know, such as the threshold of an exchange, comes from *shared* streams, which any rank makes
    by itself: they are derived from (seed, block, replica, purpose, update, how often it was asked
    for).  What a kernel draws for one replica is counted for that replica alone, so that ranks that
    do not have it count the same.

    Args:
        seed: of the run.
        block: index of the block of chains.
        update: number of the update, counted from 1.
        own: the streams of the replicas that live on this rank, by replica.
        replica: on which a kernel acts; None for the ladder as a whole, or where there is none.
        first_chain: number of the block's first chain.
    """

    def __init__(
        self,
        seed: int,
        block: int,
        update: int,
        own: Mapping[int, torch.Generator],
        replica: int | None = None,
        first_chain: int = 0,
    ) -> None:
        self.seed, self.block, self.update = seed, block, update
        self.own, self.replica, self.first_chain = own, replica, first_chain
        self._asked: dict[str, int] = {}

    def on(self, replica: int) -> Streams:
        """Return these streams for a kernel that acts on one replica."""
        view = copy.copy(self)
        view.replica = replica
        return view

    def shared(self, purpose: str) -> torch.Generator:
        """Return the next shared stream for a purpose, on the CPU."""
        if self.replica is not None:
            purpose = f"{purpose}, replica {self.replica}"
        count = self._asked.get(purpose, 0)
        self._asked[purpose] = count + 1
        return stream(self.seed, self.block, f"{purpose}, update {self.update}, {count}")


class SingleStream(Streams):
    """The random numbers of one update all of which come from a single stream.

    Args:
        seed: of the stream of fields.
        block: index of the block of chains.
        update: number of the update.
        stream: all the randomness there is.
    """

    def __init__(self, seed: int, block: int, update: int, stream: torch.Generator) -> None:
        super().__init__(seed, block, update, {0: stream})

    def shared(self, purpose: str) -> torch.Generator:
        return self.own[0]


Randomness = torch.Generator | Streams
"""What a kernel draws from: one stream, or the streams of a block of a run."""


def own_stream(rng: Randomness) -> torch.Generator:
    """Return the stream of the chains that a kernel moves."""
    return rng if isinstance(rng, torch.Generator) else rng.own[rng.replica or 0]


def shared_stream(rng: Randomness, purpose: str) -> torch.Generator:
    """Return a stream that is the same on all ranks among which a block is spread.

    A single generator serves for both: it is then all the randomness there is.
    """
    return rng if isinstance(rng, torch.Generator) else rng.shared(purpose)
