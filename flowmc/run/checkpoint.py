"""The checkpoint: everything the next update depends on, in one file that is replaced atomically.

``checkpoint.h5`` has the attributes ``layout``, ``update`` (number of updates done) and ``tuning``
(JSON of what kernels adapted), and

========================================= ==========================================================
blocks/NNNN/random                        state of the block's random stream, uint8
blocks/NNNN/replicas/R/field              ``(chains of the block, ...)``
blocks/NNNN/replicas/R/action             cached action, if known
blocks/NNNN/replicas/R/log_q/KEY          cached log-densities by flow
blocks/NNNN/walkers, sweep                ladders only
pending/...                               sums of the unfinished row of measurements
========================================= ==========================================================

It holds no time and no path: two runs in the same state write the same bytes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import torch
from flowmc_adapters import atomic_write
from torch import Tensor

from flowmc.kernels import LadderState, State

__all__ = ["Checkpoint", "read_checkpoint", "settled", "write_checkpoint"]

LAYOUT = 1


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``update`` updates.

    Attributes:
        update: number of updates done, thermalization included.
        states: one per block of chains.
        streams: states of the blocks' random streams, uint8.
        tuning: what kernels adapted.
        pending: sums of the unfinished row of measurements.
    """

    update: int
    states: Sequence[State | LadderState]
    streams: Sequence[Tensor]
    tuning: Mapping[str, float]
    pending: Mapping[str, np.ndarray]


def settled(state: State | LadderState) -> State | LadderState:
    """Return the state with all tensors contiguous and free of lazy conjugations.

    A run applies this after every update: sums follow the order in memory, so a resumed run, whose
    tensors come contiguous from a file, would otherwise differ in the last bits.
    """
    if isinstance(state, LadderState):
        replicas = tuple(_settled(replica) for replica in state.replicas)
        return LadderState(replicas, state.walkers.contiguous(), state.sweep)
    return _settled(state)


def _settled(state: State) -> State:
    def plain(tensor: Tensor) -> Tensor:
        return tensor.detach().resolve_conj().resolve_neg().contiguous()

    action = None if state.action is None else plain(state.action)
    return State(plain(state.field), action, {k: plain(v) for k, v in state.log_q.items()})


def write_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint) -> None:
    """Replace the checkpoint; a kill at any instant leaves the old one or the new one.

    Raises:
        OSError: disk full and the like; the old checkpoint is then untouched.
    """
    with atomic_write(path) as target, h5py.File(target, "w") as file:
        file.attrs["layout"] = LAYOUT
        file.attrs["update"] = checkpoint.update
        file.attrs["tuning"] = json.dumps(dict(sorted(checkpoint.tuning.items())))
        for index, (state, random) in enumerate(
            zip(checkpoint.states, checkpoint.streams, strict=True)
        ):
            group = file.create_group(f"blocks/{index:04d}")
            group["random"] = random.cpu().numpy()
            if isinstance(state, LadderState):
                group["walkers"] = state.walkers.cpu().numpy()
                group["sweep"] = state.sweep
                for r, replica in enumerate(state.replicas):
                    _write_state(group.create_group(f"replicas/{r}"), replica)
            else:
                _write_state(group.create_group("replicas/0"), state)
        for name, value in checkpoint.pending.items():
            file[f"pending/{name}"] = value


def _write_state(group: h5py.Group, state: State) -> None:
    group["field"] = state.field.detach().cpu().numpy()
    if state.action is not None:
        group["action"] = state.action.detach().cpu().numpy()
    for key, value in sorted(state.log_q.items()):
        group[f"log_q/{key}"] = value.detach().cpu().numpy()


def read_checkpoint(path: str | os.PathLike[str], device: torch.device) -> Checkpoint:
    """Read a checkpoint, its fields onto ``device``.

    Raises:
        ValueError: not a checkpoint of this layout, or damaged.
        OSError: the file cannot be opened.
    """
    if not Path(path).exists():
        raise FileNotFoundError(f"there is no checkpoint {path}")
    try:
        with h5py.File(path, "r") as file:
            if file.attrs["layout"] != LAYOUT:
                raise ValueError(f"{path} was written by another version of flowmc")
            groups = [group for _, group in sorted(file["blocks"].items())]
            pending: dict[str, np.ndarray] = {}

            def visit(name: str, item: Any) -> None:
                if isinstance(item, h5py.Dataset):
                    pending[name] = item[()]

            if "pending" in file:
                file["pending"].visititems(visit)
            return Checkpoint(
                int(file.attrs["update"]),
                [_read_block(group, device) for group in groups],
                [torch.from_numpy(group["random"][()]) for group in groups],
                json.loads(file.attrs["tuning"]),
                pending,
            )
    except (KeyError, OSError) as error:
        raise ValueError(f"{path} is not a sound checkpoint: {error}") from error


def _read_block(group: h5py.Group, device: torch.device) -> State | LadderState:
    def tensor(dataset: h5py.Dataset) -> Tensor:
        return torch.from_numpy(dataset[()]).to(device)

    replicas = []
    for r in range(len(group["replicas"])):
        stored = group[f"replicas/{r}"]
        action = tensor(stored["action"]) if "action" in stored else None
        caches = stored["log_q"].items() if "log_q" in stored else ()
        replicas.append(
            State(tensor(stored["field"]), action, {key: tensor(value) for key, value in caches})
        )
    if "walkers" not in group:
        return replicas[0]
    walkers = torch.from_numpy(group["walkers"][()])
    return LadderState(tuple(replicas), walkers, int(group["sweep"][()]))
