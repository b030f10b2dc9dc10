"""The checkpoint: everything the next update depends on, in one file that is replaced atomically.

``checkpoint.h5`` has the attributes ``layout``, ``update`` (number of updates done), ``tuning``
(JSON of what kernels adapted), ``seed`` and ``configuration`` (which run it is of, see
:func:`~flowmc.chains.storage.directory.identity_of`), ``rows`` (CRC-32 of all rows of measurements
up to here, see :class:`~flowmc.chains.storage.measurements.MeasurementFile`), the checksums of
:mod:`~flowmc.jobs.raw_hdf5`, and

========================================== =========================================================
blocks/NNNN/replicas/R/field              ``(chains of the block, ...)``
blocks/NNNN/replicas/R/action             cached action, if known
blocks/NNNN/replicas/R/log_q/KEY          cached log-densities by flow
blocks/NNNN/replicas/R/carried/NAME       what a kernel owns, dropped when the field moves
blocks/NNNN/replicas/R/stays/NAME         what a kernel owns, and keeps then
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
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from flowmc.actions.base import Action
from flowmc.jobs.own_files import opened
from flowmc.jobs.raw_hdf5 import CheckedArrays, write_shared
from flowmc.kernels import Carried, LadderState, State
from flowmc.parallel import Communicator
from flowmc.registry import ConfigError

__all__ = [
    "Checkpoint",
    "Head",
    "check_state",
    "read_checkpoint",
    "read_head",
    "settled",
    "write_checkpoint",
]

LAYOUT = 3
# Without checksums, seed, configuration and rows.
_UNCHECKED_LAYOUT = 2
_CARRIED = {False: "carried", True: "stays"}
_REMEDY = "restore it from a copy, or start again with another --output"
# Differences of one action computed twice, per degree of freedom: far above rounding, far below
# what another theory makes.
_SAME_ACTION = {torch.float64: 1e-9, torch.float32: 1e-3}


@dataclass(frozen=True)
class Head:
    """What a checkpoint says about itself.

    Attributes:
        update: number of updates done, thermalization included.
        tuning: what kernels adapted.
        seed: of the run; None in a file of earlier versions, as the following.
        configuration: which run it is of.
        rows: checksum of the rows of measurements up to here.
    """

    update: int
    tuning: Mapping[str, float]
    seed: int | None = None
    configuration: str | None = None
    rows: int | None = None

    @property
    def is_checked(self) -> bool:
        """Whether the file has checksums, and all of it is as it was written."""
        return self.seed is not None


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after some updates, as far as this rank has it.

    Attributes:
        head: number of updates and the like; rank 0 knows ``rows``.
        states: by block.
        streams: states of the random streams, uint8, by block and replica.
        pending: sums of the unfinished row of measurements; of all ranks.
    """

    head: Head
    states: Mapping[int, State | LadderState]
    streams: Mapping[tuple[int, int], Tensor]
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
    return State(
        plain(state.field),
        action,
        {k: plain(v) for k, v in state.log_q.items()},
        {k: Carried(plain(one.value), one.stays) for k, one in state.carried.items()},
    )


def check_state(action: Action, state: State, chains: int, dtype: torch.dtype) -> None:
    """Compare stored fields and their stored action with the theory.

    Args:
        action: of the theory, as it is now.
        state: as stored.
        chains: that it should have.
        dtype: of the real components that its fields should have.

    Raises:
        ConfigError, ValueError, TypeError: a field is not of this theory, or its action is another
            one.
    """
    action.check_field(state.field)
    if state.field.shape[0] != chains or state.field.real.dtype != dtype:
        raise ConfigError("the fields are not of the shape or precision of this run")
    if state.action is None:
        return
    bound = _SAME_ACTION[dtype] * (state.action.abs() + state.field[0].numel())
    if state.action.shape != (chains,) or not bool(
        ((action(state.field) - state.action).abs() <= bound).all()
    ):
        raise ConfigError(
            "the action of the stored fields is not the one stored beside them: the theory, or "
            "what computes it, has changed since, restore it or choose another --output"
        )


def write_checkpoint(
    path: str | os.PathLike[str], checkpoint: Checkpoint, communicator: Communicator
) -> None:
    """Replace the checkpoint; a kill at any instant leaves the old one or the new one.

    Collective; the pending sums of rank 0 count.

    Raises:
        OSError, CollectiveError: disk full and the like; the old checkpoint is then untouched.
    """
    head = checkpoint.head
    attributes = {
        "layout": LAYOUT,
        "update": head.update,
        "tuning": json.dumps(dict(sorted(head.tuning.items()))),
        "seed": head.seed,
        "configuration": head.configuration,
        "rows": head.rows,
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
            for key, one in replica.carried.items():
                yield f"{where}/{_CARRIED[one.stays]}/{key}", _host(one.value)
            yield f"{where}/random", _host(checkpoint.streams[block, r])
            if isinstance(state, LadderState):
                yield f"{where}/walker", _host(state.walkers[:, r])
        if isinstance(state, LadderState) and 0 in replicas:
            yield f"{prefix}/sweep", np.array([state.sweep], np.int64)


def _host(tensor: Tensor) -> np.ndarray:
    return tensor.detach().cpu().numpy()


def read_head(path: Path) -> Head:
    """Return what a checkpoint says about itself.

    Raises:
        ConfigError: it cannot be opened, is damaged, or of another version.
    """
    with opened(path, "checkpoint", _REMEDY) as file:
        return _head(path, CheckedArrays(file))


def read_checkpoint(
    path: Path,
    device: torch.device,
    own: Mapping[int, Sequence[int]],
    replicas: int,
) -> Checkpoint:
    """Read what a rank needs of a checkpoint; all that is read is compared with its checksums.

    Args:
        path: the file.
        device: where fields live.
        own: the replicas of this rank, by block.
        replicas: of every block; 1 without a ladder.

    Raises:
        ConfigError: it cannot be opened, is damaged, or of another version or run.
    """
    with opened(path, "checkpoint", _REMEDY) as file:
        arrays = CheckedArrays(file)
        head = _head(path, arrays)
        pending = {name: arrays.read(f"pending/{name}") for name in arrays.below("pending/")}
        states: dict[int, State | LadderState] = {}
        streams = {}
        for block, here in own.items():
            prefix = f"blocks/{block:04d}"
            states[block] = _read_block(arrays, prefix, device, here, replicas)
            for r in here:
                stored = arrays.read(f"{prefix}/replicas/{r}/random")
                streams[block, r] = torch.from_numpy(stored)
        return Checkpoint(head, states, streams, pending)


def _head(path: Path, arrays: CheckedArrays) -> Head:
    found = arrays.attributes
    layout = found.get("layout")
    if layout not in (LAYOUT, _UNCHECKED_LAYOUT):
        raise ConfigError(
            f"{path} has layout {layout!r}, this flowmc reads {_UNCHECKED_LAYOUT} and {LAYOUT}: "
            "use the version of flowmc that made it"
        )
    if arrays.is_checked != (layout == LAYOUT):
        raise ValueError("it has lost its checksums")
    tuning = {str(key): float(value) for key, value in json.loads(found["tuning"]).items()}
    update = int(found["update"])
    if not arrays.is_checked:
        return Head(update, tuning)
    return Head(update, tuning, int(found["seed"]), str(found["configuration"]), int(found["rows"]))


def _read_block(
    arrays: CheckedArrays,
    prefix: str,
    device: torch.device,
    here: Sequence[int],
    replicas: int,
) -> State | LadderState:
    def tensor(name: str) -> Tensor:
        return torch.from_numpy(arrays.read(name)).to(device)

    found: list[State | None] = [None] * replicas
    walkers: Tensor | None = None
    for r in here:
        where = f"{prefix}/replicas/{r}/"
        stored = arrays.below(where)
        state = State(
            tensor(f"{where}field"),
            tensor(f"{where}action") if "action" in stored else None,
            {key: tensor(f"{where}log_q/{key}") for key in arrays.below(f"{where}log_q/")},
            {
                key: Carried(tensor(f"{where}{folder}/{key}"), stays)
                for stays, folder in _CARRIED.items()
                for key in arrays.below(f"{where}{folder}/")
            },
        )
        if replicas == 1:
            return state
        found[r] = state
        walker = torch.from_numpy(arrays.read(f"{where}walker"))
        if walkers is None:
            walkers = torch.full((len(walker), replicas), -1, dtype=torch.int64)
        walkers[:, r] = walker
    assert walkers is not None
    return LadderState(tuple(found), walkers, int(arrays.read(f"{prefix}/sweep")[0]))
