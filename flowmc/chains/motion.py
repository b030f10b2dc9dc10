"""Chains in motion: their states and random streams, and one update of all of them.

Both who runs a chain and who makes a part of it again move chains by this, so that the same
configuration comes out, byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from flowmc.chains.assembly import Assembly, assemble
from flowmc.chains.config import RunConfig
from flowmc.chains.ladder_tuning import LadderTuner
from flowmc.chains.start import first_state
from flowmc.chains.storage.checkpoint import Checkpoint, settled
from flowmc.kernels import Info, LadderState, NonFiniteStateError, State
from flowmc.kernels.base import apply, kernels_in
from flowmc.lattice import sum_over_sites
from flowmc.parallel import Communicator
from flowmc.parallel.distribution import Distribution
from flowmc.parallel.proposals import SharedProposals
from flowmc.parallel.wires import BlockWire
from flowmc.random import Streams

__all__ = ["ChainsInMotion"]


class ChainsInMotion:
    """The chains of a run, as far as they live on this rank, after some updates.

    Args:
        config: of the run.
        assembly: of it.
        communicator: of all ranks.
        distribution: which rank owns what.
        checkpoint: where the chains stand, as far as this rank has it.

    Attributes:
        scratch: where kernels may keep files, see :meth:`keep_files_in`.
        update: updates done, thermalization included.
        states: by block.
        streams: by block and replica.
    """

    def __init__(
        self,
        config: RunConfig,
        assembly: Assembly,
        communicator: Communicator,
        distribution: Distribution,
        checkpoint: Checkpoint,
    ) -> None:
        self.config, self.assembly = config, assembly
        self.scratch: Path | None = None
        self.communicator, self.distribution = communicator, distribution
        self.own = distribution.blocks_of(communicator.rank)
        head = checkpoint.head
        self.update = head.update
        self.states = {
            block: self._wired(block, settled(state)) for block, state in checkpoint.states.items()
        }
        self.tuner: LadderTuner | None = None
        if config.ladder is not None and config.ladder.tune:
            self.tuner = LadderTuner(config, self.own)
            self.tuner.set_tuning(head.tuning)
            self._set_ladder(head.tuning)
        elif head.tuning:
            assembly.kernel.set_tuning(head.tuning)
        self.proposals = self._share_proposals()
        self.streams: dict[tuple[int, int], torch.Generator] = {}
        for cell, state in checkpoint.streams.items():
            self.streams[cell] = torch.Generator(device=assembly.device)
            self.streams[cell].set_state(state)

    def keep_files_in(self, scratch: Path | None) -> None:
        """Tell all kernels where they may keep files."""
        self.scratch = scratch
        for kernel in kernels_in(self.assembly.kernel):
            kernel.scratch = scratch

    def init_kernels(self) -> None:
        """Let the kernels see the fields that they will move, as a new run does; no state changes.

        Raises:
            ConfigError: a kernel is not right for the theory or these fields.
        """
        for block, state in self.states.items():
            self._fresh_state(block, state)

    def move(self) -> dict[int, Info]:
        """Do one update of all chains; return what the kernels report, by block of this rank.

        It is done when the caller, who may find what is reported unusable, has counted it.

        Raises:
            NonFiniteStateError: naming update and chain.
            ConfigError, UpdateFailedError: from a kernel.
        """
        update, infos = self.update + 1, {}
        if self.proposals is not None and self.proposals.is_helper:
            self.proposals.serve(update)
        for block, replicas in self.own.items():
            first, last = self.config.chains.blocks[block]
            own = {r: self.streams[block, r] for r in replicas}
            rng = Streams(self.config.chains.seed, block, update, own, first_chain=first)
            try:
                state, info = apply(self.assembly.kernel, self.states[block], rng)
            except NonFiniteStateError as error:
                if error.chain is None:
                    text = f"update {update}, chains {first} to {last - 1}: {error}"
                    raise NonFiniteStateError(text) from error
                raise _not_finite(update, first + error.chain) from error
            state = settled(state)
            self._check_finite(state, update, first)
            self.states[block], infos[block] = state, info
        return infos

    def replicas(self) -> list[tuple[int, int, int, State]]:
        """Return first and last chain, replica and state of everything on this rank."""
        return [
            (*self.config.chains.blocks[block], r, replica)
            for block, state in self.states.items()
            for r, replica in (state.here if isinstance(state, LadderState) else {0: state}).items()
        ]

    def _share_proposals(self) -> SharedProposals | None:
        """Let ranks that own nothing draw flow proposals."""
        if self.config.parallel.proposals == "owner" or not self.distribution.idle:
            return None
        return SharedProposals(
            self.communicator,
            self.distribution,
            self.assembly.kernel,
            [last - first for first, last in self.config.chains.blocks],
            self.config.chains.seed,
            self.assembly.device,
        )

    def _set_ladder(self, tuning: Mapping[str, float]) -> None:
        """Build the kernels again, for the couplings at which the tuner has the ladder."""
        assert self.tuner is not None
        clocks = {name: (part.seconds, part.calls) for name, part in self.assembly.timed.items()}
        self.config = self.tuner.configured()
        self.assembly = assemble(self.config, self.communicator)
        self.assembly.kernel.set_tuning(tuning)
        for name, (seconds, calls) in clocks.items():
            self.assembly.timed[name].seconds, self.assembly.timed[name].calls = seconds, calls
        self.keep_files_in(self.scratch)

    def _fresh_state(self, block: int, state: State | LadderState) -> State | LadderState:
        replicas = state.here if isinstance(state, LadderState) else {0: state}
        fields = {r: replica.field for r, replica in replicas.items()}
        first = self.config.chains.blocks[block][0]
        return first_state(self.assembly.kernel, self.assembly.actions, fields, first)

    def _wired(self, block: int, state: State | LadderState) -> State | LadderState:
        """Connect a ladder with its replicas on other ranks."""
        if not isinstance(state, LadderState) or len(state.here) == len(state.replicas):
            return state
        return replace(state, wire=BlockWire(self.communicator, self.distribution, block))

    def _check_finite(self, state: State | LadderState, update: int, first: int) -> None:
        """Raise NonFiniteStateError with the chain's number in the run if a field is not finite."""
        replicas = state.here if isinstance(state, LadderState) else {0: state}
        for r, replica in replicas.items():
            field = replica.field
            finite = torch.ones(field.shape[0], dtype=torch.bool, device=field.device)
            if replica.action is not None:
                finite = torch.isfinite(replica.action)
            # A sum is finite only if all terms are, and takes a fraction of the time.
            if not bool(torch.isfinite(sum_over_sites(field)).all()):
                finite = finite & torch.isfinite(field.reshape(field.shape[0], -1)).all(1)
            if bool(finite.all()):
                continue
            chain = first + int((~finite).nonzero()[0])
            raise _not_finite(update, chain, f", replica {r}" if self.assembly.is_ladder else "")


def _not_finite(update: int, chain: int, replica: str = "") -> NonFiniteStateError:
    return NonFiniteStateError(
        f"update {update}: the field of chain {chain}{replica} is not finite, or its action is not"
    )
