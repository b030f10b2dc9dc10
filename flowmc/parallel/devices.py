"""Which device and how many threads a rank works with."""

from __future__ import annotations

import os

import torch

from flowmc.parallel.communicator import Communicator
from flowmc.registry import ConfigError

__all__ = ["check_device", "choose_device", "choose_threads", "describe"]


def choose_device(written: str, communicator: Communicator) -> torch.device:
    """Return the device of a rank: its node's GPUs are dealt to the node's ranks in turn.

    Args:
        written: "auto", "cpu", "cuda" or "cuda:N"; the last is taken literally on every rank.
        communicator: of all ranks.

    Raises:
        ConfigError: for a GPU that is not there.
    """
    if written == "cpu":
        return torch.device("cpu")
    present = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if written == "auto" and not present:
        return torch.device("cpu")
    if written in ("auto", "cuda"):
        index = communicator.node_rank % max(present, 1)
    else:
        index = int(written.partition(":")[2])
    if index >= present:
        raise ConfigError(
            f"[chains]: device = {written!r}: this machine has {present} usable GPUs; use 'cpu' "
            "or 'auto'"
        )
    return torch.device("cuda", index)


def choose_threads(communicator: Communicator) -> int:
    """Set and return the number of threads of torch: this rank's share of the cores it may use.

    ``OMP_NUM_THREADS``, if set, decides instead.  Collective.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        cores = os.sched_getaffinity(0)
        node = os.uname().nodename
        # Launchers bind ranks to cores of their own, or leave all cores to all ranks of a node.
        masks = [mask for name, mask in communicator.allgather((node, cores)) if name == node]
        share = sum(1 / sum(core in mask for mask in masks) for core in cores)
        torch.set_num_threads(max(1, int(share + 1e-9)))
    return torch.get_num_threads()


def describe(communicator: Communicator, device: torch.device) -> str:
    """Return what the ranks work with in one sentence, on rank 0; collective."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else ""
    own = (os.uname().nodename, str(device), name, torch.get_num_threads())
    ranks = communicator.allgather(own)
    nodes = {node for node, *_ in ranks}
    threads = sorted({count for *_, count in ranks})
    text = f"{communicator.size} ranks on {len(nodes)} node{'s' if len(nodes) > 1 else ''}"
    text += f", {threads[0]}" if len(threads) == 1 else f", {threads[0]} to {threads[-1]}"
    text += f" thread{'s' if threads[-1] > 1 else ''} each"
    gpus = {(node, gpu): model for node, gpu, model, _ in ranks if model}
    if gpus:
        using = sum(bool(model) for *_, model, _ in ranks)
        text += f", {len(gpus)} GPU{'s' if len(gpus) > 1 else ''} ({', '.join(set(gpus.values()))})"
        if using > len(gpus):
            text += f" shared by {using} ranks"
    return text


def check_device(name: str) -> str:
    """Return the name of a torch device that exists.

    Raises:
        ConfigError: if it does not.
    """
    try:
        torch.empty(0, device=name)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"--device {name}: {reason}") from error
    return name
