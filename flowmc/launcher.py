"""What the launcher of this process (``mpirun``, ``srun``) has told it, without asking MPI."""

from __future__ import annotations

import os

__all__ = ["launched_processes"]

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "PALS_SIZE")
_RANKS = ("PMIX_RANK", "PMI_RANK", "PALS_RANKID")


def launched_processes() -> int | None:
    """Return the number of processes that the launcher has started; None without a launcher.

    0 stands for a launcher that does not tell.
    """
    for name in _SIZES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 0 if any(name in os.environ for name in _RANKS) else None
