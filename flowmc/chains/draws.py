"""The draws of a flow among which the configurations of an independence chain are.

What is proposed in an update follows from the seed, the block of chains and the number of the
update, and not from the chain.  Which proposal a configuration is, its checksum tells.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from flowmc_adapters.seeds import configuration_checksum
from torch import Tensor

from flowmc.chains.assembly import Assembly
from flowmc.chains.config import RunConfig
from flowmc.chains.start import initial_states, read_start_files
from flowmc.io import configuration_array
from flowmc.kernels import Independence, Kernel, Repeat, State
from flowmc.random import Streams

__all__ = ["Draws", "Sought"]


@dataclass(frozen=True)
class Sought:
    """A configuration among draws.

    Attributes:
        checksum: of it.
        after: update behind which it was accepted; -1 if it may be the start of the chain.
        last: update until which it was.
    """

    checksum: int
    after: int
    last: int


class Draws:
    """Everything that the chains of a run may have accepted.

    Args:
        config: of a run whose updates all draw from flows, see
            :attr:`~flowmc.chains.config.RunConfig.is_drawn`.
        assembly: of it.
    """

    def __init__(self, config: RunConfig, assembly: Assembly) -> None:
        self._config, self._assembly = config, assembly
        self._kernels = [
            kernel for timed in assembly.timed.values() for kernel in _applied(timed.kernel)
        ]

    def find(self, block: int, sought: Mapping[int, Sought]) -> dict[int, Tensor]:
        """Return the draws that have some checksums, ``(...)``, by chain; without those not found.

        Args:
            block: of chains.
            sought: by chain, all of this block.
        """
        found: dict[int, Tensor] = {}
        left = dict(sought)
        while left:
            update = max(one.last for one in left.values())
            within = {chain: one for chain, one in left.items() if one.last == update}
            begin = self._started if update == 0 else self._drawn
            for chain, field in begin(block, update, within):
                if chain in left and self._checksum(field) == left[chain].checksum:
                    found[chain] = field
                    del left[chain]
            # The others were accepted earlier, or are none of these draws.
            for chain in within.keys() & left.keys():
                one = left.pop(chain)
                if one.after < update - 1:
                    left[chain] = replace(one, last=update - 1)
        return found

    def _drawn(
        self, block: int, update: int, chains: Iterable[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield what chains of a block were offered in an update, the last proposals first."""
        first, last = self._config.chains.blocks[block]
        rng = Streams(self._config.chains.seed, block, update, {}, first_chain=first)
        # All keys in the order in which the update asked for them.
        keys = [(kernel, kernel.key(rng)) for kernel in self._kernels]
        for kernel, key in reversed(keys):
            n = kernel.proposals
            wanted = {chain: (chain - first) * n for chain in chains}
            batches, start = [], 0
            for batch, size in enumerate(kernel.batches(last - first)):
                if any(start - n < begin < start + size for begin in wanted.values()):
                    fields = kernel.draw(key, batch, size, self._assembly.device).fields
                    batches.append((start, fields))
                start += size
            for chain, begin in wanted.items():
                own = [
                    fields[max(begin - start, 0) : max(begin + n - start, 0)]
                    for start, fields in batches
                ]
                yield from ((chain, field) for field in reversed(torch.cat(own).unbind()))

    def _started(
        self, block: int, update: int, chains: Iterable[int]
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield what chains of a block began with."""
        config, assembly = self._config, self._assembly
        first, last = config.chains.blocks[block]
        files = read_start_files(config, assembly, range(first, last), force=True)
        state = initial_states(config, assembly, files, {block: [0]})[block]
        assert isinstance(state, State)
        for chain in chains:
            yield chain, state.field[chain - first]

    def _checksum(self, field: Tensor) -> int:
        return configuration_checksum(configuration_array(field, self._config.action))


def _applied(kernel: Kernel) -> list[Independence]:
    """Return the kernel as often as one update applies it."""
    if isinstance(kernel, Repeat):
        return _applied(kernel.kernel) * kernel.times
    assert isinstance(kernel, Independence)
    return [kernel]
