"""Where chains begin: files, cold, hot, or draws of a flow."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.flows.base import FlowModel
from flowmc.io import StoredField, load_field
from flowmc.kernels import LadderState, State
from flowmc.random import stream
from flowmc.registry import ConfigError
from flowmc.run.assembly import Assembly
from flowmc.run.config import RunConfig

__all__ = ["StartFiles", "base_name", "first_state", "initial_states", "read_start_files"]


@dataclass(frozen=True)
class StartFiles:
    """The start configurations of a run.

    Attributes:
        paths: as found on disk; one per chain, or one for all.
        stored: what they hold, by path.
    """

    paths: Sequence[str] = ()
    stored: dict[str, StoredField] = field(default_factory=dict)

    def of_chain(self, chain: int) -> tuple[str, StoredField]:
        """Return path and content of the file that a chain starts from."""
        path = self.paths[chain if len(self.paths) > 1 else 0]
        return path, self.stored[path]


def read_start_files(config: RunConfig, assembly: Assembly) -> StartFiles:
    """Read and check all start files; none if the chains do not start from files.

    Raises:
        FormatError, OSError: as :func:`flowmc.io.load_field`.
    """
    if config.chains.start != "file":
        return StartFiles()
    assert config.chains.file is not None
    written = config.chains.file
    paths = [config.path(name) for name in ([written] if isinstance(written, str) else written)]
    stored = {
        path: load_field(path, config.action, dtype=assembly.dtype, device=assembly.device)
        for path in dict.fromkeys(paths)
    }
    return StartFiles(paths, stored)


def initial_states(
    config: RunConfig, assembly: Assembly, files: StartFiles
) -> list[State | LadderState]:
    """Return the state of every block of chains before the first update.

    All replicas of a ladder start from the same file, or each from its own cold, hot or flow draw.

    Raises:
        ConfigError: naming the first chain whose start is not finite.
    """
    return [
        first_state(assembly, _fields(config, assembly, files, index, first, last), first)
        for index, (first, last) in enumerate(config.chains.blocks)
    ]


def first_state(assembly: Assembly, fields: Sequence[Tensor], first: int) -> State | LadderState:
    """Return the state of one block from the fields of its replicas.

    Raises:
        ConfigError: naming the first chain whose field or action is not finite.
    """
    replicas = []
    for action, batch in zip(assembly.actions, fields, strict=True):
        action.check_field(batch)
        value = action(batch)
        finite = torch.isfinite(value) & torch.isfinite(batch.flatten(1)).all(1)
        if not bool(finite.all()):
            chain = first + int((~finite).nonzero()[0])
            raise ConfigError(
                f"[chains]: the start configuration of chain {chain} is not finite, or its action "
                "is not: choose another start"
            )
        replicas.append(State(batch, value))
    if not assembly.is_ladder:
        return replicas[0]
    walkers = torch.arange(len(replicas)).repeat(len(fields[0]), 1)
    return LadderState(tuple(replicas), walkers)


def _fields(
    config: RunConfig, assembly: Assembly, files: StartFiles, index: int, first: int, last: int
) -> list[Tensor]:
    chains = last - first
    rng = stream(config.chains.seed, index, "start", assembly.device)
    if files.paths:
        batch = torch.cat([files.of_chain(chain)[1].field for chain in range(first, last)])
        return [batch.clone() for _ in assembly.actions]
    return [
        _draw(config.chains.start, action, assembly.start_model, chains, rng, assembly)
        for action in assembly.actions
    ]


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


def base_name(path: str) -> str:
    """Return the ensemble name in a file name: "lat" of "lat.1000" or "runs/lat-1000.lime"."""
    name = Path(path).name
    stem, dot, suffix = name.rpartition(".")
    if dot and not suffix.isdigit():
        name = stem
    return name.rstrip("0123456789").rstrip("._-") or "conf"
