"""The checkpoint: everything the next update depends on, in one file that is replaced atomically.

``checkpoint.h5`` has the attributes ``layout``, ``update`` (number of updates done) and ``tuning``
(JSON of what kernels adapted), and

========================================== =========================================================
blocks/NNNN/replicas/R/field              ``(chains of the block, ...)``
blocks/NNNN/replicas/R/action             cached action, if known
blocks/NNNN/replicas/R/log_q/KEY          cached log-densities by flow
blocks/NNNN/replicas/R/random             state of the replica's random stream, uint8
blocks/NNNN/replicas/R/walker             ladders only: which walker sits here, ``(chains,)``
blocks/NNNN/sweep                          ladders only: number of exchange steps done, ``(1,)``
pending/...                                sums of the unfinished row of measurements
========================================== =========================================================

It holds no time, no path and no rank: two runs in the same state write the same bytes, on any
number of ranks.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import h5py
import numpy as np
import torch
from torch import Tensor

from flowmc.kernels import LadderState, State
from flowmc.parallel import Communicator
from flowmc.registry import ConfigError
from flowmc.run.raw_hdf5 import write_shared

__all__ = ["Checkpoint", "read_checkpoint", "settled", "write_checkpoint"]

LAYOUT = 2


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``update`` updates, as far as this rank has it.

    Attributes:
        update: number of updates done, thermalization included.
        states: by block.
        streams: states of the random streams, uint8, by block and replica.
        tuning: what kernels adapted.
        pending: sums of the unfinished row of measurements; of all ranks.
    """

    update: int
    states: Mapping[int, State | LadderState]
    streams: Mapping[tuple[int, int], Tensor]
    tuning: Mapping[str, float]
    pending: Mapping[str, np.ndarray]


def settled(state: State | LadderState) -> State | LadderState:
    """Return the state with all tensors contiguous and free of lazy conjugations.

    A run applies this after every update: sums follow the order in memory, so a resumed run, whose
    tensors come contiguous from a file, would otherwise differ in the last bits.
    """
    if isinstance(state, LadderState):
        replicas = tuple(None if one is None else _settled(one) for one in state.replicas)
        return replace(state, replicas=replicas, walkers=state.walkers.contiguous())
    return _settled(state)


def _settled(state: State) -> State:
    def plain(tensor: Tensor) -> Tensor:
        return tensor.detach().resolve_conj().resolve_neg().contiguous()

    action = None if state.action is None else plain(state.action)
    return State(plain(state.field), action, {k: plain(v) for k, v in state.log_q.items()})


def write_checkpoint(
    path: str | os.PathLike[str], checkpoint: Checkpoint, communicator: Communicator
) -> None:
    """Replace the checkpoint; a kill at any instant leaves the old one or the new one.

    Collective; the pending sums of rank 0 count.

    Raises:
        OSError, CollectiveError: disk full and the like; the old checkpoint is then untouched.
    """
    attributes = {
        "layout": LAYOUT,
        "update": checkpoint.update,
        "tuning": json.dumps(dict(sorted(checkpoint.tuning.items()))),
    }
    arrays = dict(_arrays(checkpoint))
    if communicator.rank == 0:
        arrays |= {f"pending/{name}": value for name, value in checkpoint.pending.items()}
    write_shared(communicator, path, attributes, arrays)


def _arrays(checkpoint: Checkpoint) -> Iterator[tuple[str, np.ndarray]]:
    for block, state in checkpoint.states.items():
        prefix = f"blocks/{block:04d}"
        replicas = state.here if isinstance(state, LadderState) else {0: state}
        for r, replica in replicas.items():
            where = f"{prefix}/replicas/{r}"
            yield f"{where}/field", _host(replica.field)
            if replica.action is not None:
                yield f"{where}/action", _host(replica.action)
            for key, value in replica.log_q.items():
                yield f"{where}/log_q/{key}", _host(value)
            yield f"{where}/random", _host(checkpoint.streams[block, r])
            if isinstance(state, LadderState):
                yield f"{where}/walker", _host(state.walkers[:, r])
        if isinstance(state, LadderState) and 0 in replicas:
            yield f"{prefix}/sweep", np.array([state.sweep], np.int64)


def _host(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def read_checkpoint(
    path: str | os.PathLike[str],
    device: torch.device,
    own: Mapping[int, Sequence[int]],
    replicas: int,
) -> Checkpoint:
    """Read what a rank needs of a checkpoint.

    Args:
        path: the file.
        device: where fields live.
        own: the replicas of this rank, by block.
        replicas: of every block; 1 without a ladder.

    Raises:
        ConfigError: it cannot be opened, is damaged, or of another version or run.
    """
    try:
        with h5py.File(path, "r", locking=False) as file:
            if int(file.attrs["layout"]) != LAYOUT:
                raise ConfigError(f"{path} was written by another version of flowmc")
            pending: dict[str, np.ndarray] = {}

            def visit(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset):
                    pending[name] = item[()]

            if "pending" in file:
                file["pending"].visititems(visit)
            states: dict[int, State | LadderState] = {}
            streams = {}
            for block, here in own.items():
                group = file[f"blocks/{block:04d}"]
                states[block] = _read_block(group, device, here, replicas)
                for r in here:
                    stored = group[f"replicas/{r}/random"]
                    streams[block, r] = torch.from_numpy(stored[()])
            return Checkpoint(
                int(file.attrs["update"]),
                states,
                streams,
                json.loads(file.attrs["tuning"]),
                pending,
            )
    except (KeyError, OSError) as error:
        raise ConfigError(
            f"{path} is not a sound checkpoint ({error}): restore it from a copy, or start again "
            "with another --output"
        ) from error


def _read_block(
    group: h5py.Group, device: torch.device, here: Sequence[int], replicas: int
) -> State | LadderState:
    def tensor(dataset: h5py.Dataset) -> Tensor:
        return torch.from_numpy(dataset[()]).to(device)

    found: list[State | None] = [None] * replicas
    walkers: Tensor | None = None
    for r in here:
        stored = group[f"replicas/{r}"]
        action = tensor(stored["action"]) if "action" in stored else None
        caches = stored["log_q"].items() if "log_q" in stored else ()
        state = State(
            tensor(stored["field"]), action, {key: tensor(value) for key, value in caches}
        )
        if replicas == 1:
            return state
        found[r] = state
        walker = torch.from_numpy(stored["walker"][()])
        if walkers is None:
            walkers = torch.full((len(walker), replicas), -1, dtype=torch.int64)
        walkers[:, r] = walker
    assert walkers is not None
    return LadderState(tuple(found), walkers, int(group["sweep"][0]))
