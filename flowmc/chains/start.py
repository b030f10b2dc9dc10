"""Where chains begin: files, cold, hot, or draws of a flow."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from flowmc_adapters.selection import file_of
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.chains.assembly import Assembly
from flowmc.chains.config import RunConfig
from flowmc.ensembles.claims import check_theory, seeds_of
from flowmc.flows.models import FlowModel
from flowmc.io import StoredField, load_field
from flowmc.kernels import Kernel, LadderState, State
from flowmc.kernels.base import begin, value_in_torch
from flowmc.random import stream
from flowmc.registry import ConfigError

__all__ = [
    "StartFiles",
    "first_state",
    "initial_states",
    "one_chain",
    "purpose_of",
    "read_start_files",
]


@dataclass(frozen=True)
class StartFiles:
    """The start configurations of a run.

    Attributes:
        paths: as found on disk; one per chain, or one for all.
        stored: what those of this rank's chains hold, by path.
        digests: SHA-256 of these, by path.
        remarks: what users should know of them before the run.
    """

    paths: Sequence[str] = ()
    stored: dict[str, StoredField] = field(default_factory=dict)
    digests: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def path_of(self, chain: int) -> str:
        """Return the file that a chain starts from."""
        return self.paths[chain if len(self.paths) > 1 else 0]

    def of_chain(self, chain: int) -> tuple[str, StoredField]:
        """Return path and content of the file that a chain starts from."""
        path = self.path_of(chain)
        return path, self.stored[path]


def read_start_files(
    config: RunConfig, assembly: Assembly, chains: Iterable[int], *, force: bool = False
) -> StartFiles:
    """Read and check the start files of some chains; none if chains do not start from files.

    Args:
        config: what to run.
        assembly: of it.
        chains: whose files to read.
        force: take files whose metadata name another theory.

    Raises:
        ConfigError: a file was made with this seed, so that the run would repeat the random numbers
            of the one that made it and end in the same chain; or in another theory.
        FormatError, OSError: as :func:`flowmc.io.load_field`.
    """
    if config.chains.start != "file":
        return StartFiles()
    assert config.chains.file is not None
    written = config.chains.file
    paths = [config.path(name) for name in ([written] if isinstance(written, str) else written)]
    files = StartFiles(paths)
    for path in dict.fromkeys(files.path_of(chain) for chain in chains):
        stored = load_field(path, config.action, dtype=assembly.dtype, device=assembly.device)
        seed = config.chains.seed
        if seed in seeds_of(path, stored.metadata):
            raise ConfigError(
                f"[chains]: seed = {seed} is one that {path} was made with: the run would draw the "
                "same random numbers again, and its chain would become that of the earlier run; "
                "choose another seed"
            )
        remarks = check_theory(path, stored.metadata, config.action, force=force)
        files.remarks.extend(remarks)
        files.stored[path] = replace(stored, notes=(*stored.notes, *remarks))
        with open(file_of(path), "rb") as file:
            files.digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return files


def initial_states(
    config: RunConfig, assembly: Assembly, files: StartFiles, own: Mapping[int, Sequence[int]]
) -> dict[int, State | LadderState]:
    """Return the states of some blocks of chains before the first update, by block.

    All replicas of a ladder start from the same file, or each from its own cold, hot or flow draw.

    Args:
        config: what to run.
        assembly: of it.
        files: those of the chains of these blocks.
        own: the wanted replicas, by block.

    Raises:
        ConfigError: naming the first chain whose start is not finite.
    """
    states = {}
    for block, replicas in own.items():
        first, last = config.chains.blocks[block]
        fields = {
            r: _field(config, assembly, files, block, first, last, replica=r) for r in replicas
        }
        states[block] = first_state(assembly.kernel, assembly.actions, fields, first)
    return states


def one_chain(config: RunConfig, assembly: Assembly, files: StartFiles) -> Any:
    """Return a start of chain 0 alone, with all its replicas."""
    fields = {
        r: _field(config, assembly, files, 0, 0, 1, replica=r) for r in range(len(assembly.actions))
    }
    return first_state(assembly.kernel, assembly.actions, fields, 0)


def first_state(
    kernel: Kernel,
    actions: Sequence[Action | None],
    fields: Mapping[int, Tensor],
    first: int,
    *,
    where: str = "[chains]: ",
) -> State | LadderState:
    """Return the state of one block from the fields of its replicas on this rank.

    It is that of all kernels' :meth:`~flowmc.kernels.base.Kernel.init`: the only way to a state.

    Args:
        kernel: of all updates.
        actions: one per replica; None for a target that only the kernels know.
        fields: of the replicas that live here.
        first: number of the block's first chain.
        where: to look for a start that is not finite: begins the message.

    Raises:
        ConfigError: naming the first chain whose field or action is not finite, or from a kernel
            that is not right for this theory or these fields.
    """
    for r, batch in fields.items():
        action = actions[r]
        if action is not None:
            action.check_field(batch)
        _require_finite(torch.isfinite(batch.flatten(1)).all(1), first, where)
    given = [fields.get(r) for r in range(len(actions))]
    is_ladder = len(actions) > 1
    state = begin(kernel, given if is_ladder else given[0])
    wanted = LadderState if is_ladder else State
    if not isinstance(state, wanted):
        raise ConfigError(
            f"[[update]]: the init of a kernel should return a {wanted.__name__}, not a "
            f"{type(state).__name__}"
        )
    if isinstance(state, State):
        return _with_action(state, actions[0], first, where)
    for r, replica in state.here.items():
        state = state.with_replica(r, _with_action(replica, actions[r], first, where))
    return state


def _with_action(state: State, action: Action | None, first: int, where: str) -> State:
    value = state.action
    if value is None:
        if action is None or not action.is_known:
            return state
        value = value_in_torch(action, state.field)
    _require_finite(torch.isfinite(value), first, where)
    return replace(state, action=value)


def _require_finite(finite: Tensor, first: int, where: str) -> None:
    if not bool(finite.all()):
        chain = first + int((~finite).nonzero()[0])
        raise ConfigError(
            f"{where}the start configuration of chain {chain} is not finite, or its action "
            "is not: choose another start"
        )


def purpose_of(purpose: str, replica: int) -> str:
    """Return the purpose under which a replica has its own random stream."""
    return purpose if replica == 0 else f"{purpose}, replica {replica}"


def _field(
    config: RunConfig,
    assembly: Assembly,
    files: StartFiles,
    block: int,
    first: int,
    last: int,
    *,
    replica: int,
) -> Tensor:
    if files.paths:
        return torch.cat([files.of_chain(chain)[1].field for chain in range(first, last)])
    rng = stream(config.chains.seed, block, purpose_of("start", replica), assembly.device)
    action = assembly.actions[replica]
    return _draw(config.chains.start, action, assembly.start_model, last - first, rng, assembly)


def _draw(
    start: str | None,
    action: Action,
    model: FlowModel | None,
    chains: int,
    rng: torch.Generator,
    assembly: Assembly,
) -> Tensor:
    if start == "cold":
        return action.cold(chains, assembly.dtype, assembly.device)
    if start == "hot":
        return action.hot(chains, rng, assembly.dtype)
    assert model is not None
    with torch.no_grad():
        return model.sample(chains, rng)[0]
