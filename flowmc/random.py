"""Random streams that do not depend on how the work is spread over ranks.

Chains come in fixed blocks.  Each block owns one stream per purpose, derived from
``(seed, block, purpose)``, so the same chains come out whatever rank or device order runs them.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch

__all__ = ["stream"]


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
