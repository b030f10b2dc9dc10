"""Infos of all blocks and replicas in one, for adaptation: the same on every rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch

from flowmc.kernels import Info
from flowmc.kernels.composition import concatenate
from flowmc.parallel import Communicator

__all__ = ["of_all_ranks"]


def of_all_ranks(infos: Mapping[int, Info], communicator: Communicator) -> Info:
    """Join the infos of all blocks, whose parts may be spread over ranks; collective.

    Args:
        infos: of this rank, by block.
        communicator: of all ranks.
    """
    if communicator.size == 1:
        return concatenate([infos[block] for block in sorted(infos)], axis=0)
    packed = {block: _packed(info) for block, info in infos.items()}
    by_block: dict[int, list[Info]] = {}
    for part in communicator.allgather(packed):
        for block, info in part.items():
            by_block.setdefault(block, []).append(_unpacked(info))
    return concatenate([_united(by_block[block]) for block in sorted(by_block)], axis=0)


def _united(infos: list[Info]) -> Info:
    """Unite the infos of one block from several ranks, each with other replicas."""
    parts: dict[str, list[Info]] = {}
    for info in infos:
        for name, part in info.parts.items():
            parts.setdefault(name, []).append(part)
    return Info(
        infos[0].is_accepted,
        infos[0].values,
        {name: _united(found) for name, found in parts.items()},
    )


def _packed(info: Info) -> tuple[Any, ...]:
    values = {key: value.cpu().numpy() for key, value in info.values.items()}
    parts = {name: _packed(part) for name, part in info.parts.items()}
    return info.is_accepted.cpu().numpy(), values, parts


def _unpacked(packed: Iterable[Any]) -> Info:
    is_accepted, values, parts = packed
    return Info(
        torch.from_numpy(is_accepted),
        {key: torch.from_numpy(value) for key, value in values.items()},
        {name: _unpacked(part) for name, part in parts.items()},
    )
