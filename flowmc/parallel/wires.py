"""Messages between the ranks among which the replicas of a block are spread."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from flowmc.parallel.communicator import Communicator
from flowmc.parallel.distribution import Distribution

__all__ = ["BlockWire"]

# Tags: those of exchanges lie below those of proposals; MPI guarantees tags up to 32767.
_TAGS = 16384


class BlockWire:
    """The :class:`~flowmc.kernels.exchange.Wire` of one block.

    Args:
        communicator: of all ranks.
        distribution: where the replicas live.
        block: the block.

    Messages between two ranks are matched by their order; the tag, made of block and receiving
    replica, only finds out mistakes.
    """

    def __init__(self, communicator: Communicator, distribution: Distribution, block: int) -> None:
        self._communicator, self._distribution, self._block = communicator, distribution, block
        self._replicas = len(distribution.owners[block])

    def swap(self, mine: int, other: int, tensor: Tensor) -> Callable[[], Tensor]:
        """Send a tensor of replica ``mine`` to ``other``; the result waits for its counterpart."""
        peer = self._distribution.owner(self._block, other)
        shape, dtype, device = tuple(tensor.shape), tensor.dtype, tensor.device
        coming = self._communicator.receive(shape, dtype, device, peer, self._tag(mine), "exchange")
        going = self._communicator.send(tensor, peer, self._tag(other), "exchange")

        def finish() -> Tensor:
            received = coming.wait()
            going.wait()
            return received

        return finish

    def _tag(self, replica: int) -> int:
        return (self._block * self._replicas + replica) % _TAGS
