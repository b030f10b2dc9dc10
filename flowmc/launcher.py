"""What the launcher of this process (``mpirun``, ``srun``) has told it, without asking MPI."""

from __future__ import annotations

import os
import time

__all__ = ["SLURM_AND_MPI", "first_speaks", "has_told_mpi", "launched_processes"]

_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "PALS_SIZE")
_RANKS = ("PMIX_RANK", "PMI_RANK", "PALS_RANKID")
# Those of an mpirun first: in a job of SLURM its processes have the numbers of its helpers as well.
_NUMBERS = (*_RANKS, "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK", "SLURM_PROCID")
_NUMBERS_HERE = (
    *("MPI_LOCALRANKID", "OMPI_COMM_WORLD_LOCAL_RANK", "MV2_COMM_WORLD_LOCAL_RANK"),
    *("PALS_LOCAL_RANKID", "SLURM_LOCALID"),
)
_LAST_WORDS = 5.0

SLURM_AND_MPI = (
    "srun --mpi=pmi2 for MPICH, Intel MPI or MVAPICH, --mpi=cray_shasta for Cray MPICH, --mpi=pmix "
    "for Open MPI, or the mpirun of that MPI in the place of srun"
)


def launched_processes() -> int | None:
    """Return the number of processes that the launcher has started; None without a launcher.

    0 stands for a launcher that does not tell.
    """
    for name in _SIZES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    # A step of SLURM: one that srun has started.  A batch script has SLURM_NTASKS and SLURM_PROCID
    # of its allocation as well, but runs once, in no numbered step.
    if "SLURM_PROCID" in os.environ and os.environ.get("SLURM_STEP_ID", "").isdigit():
        tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "")
        if tasks.isdigit() and int(tasks) > 1:
            return int(tasks)
    return 0 if any(name in os.environ for name in _RANKS) else None


def has_told_mpi() -> bool:
    """Whether the launcher has told the processes of each other: plain ``srun`` does not."""
    return any(name in os.environ for name in (*_SIZES, *_RANKS))


def first_speaks() -> bool:
    """Whether another process says what all have to say: one message, not one of each.

    The launcher ends the others when the first, rank 0, has said it and left; meanwhile they wait.
    If only another machine has it to say, the first is waiting in MPI: then one of that machine
    speaks.
    """
    if _is_zero(_NUMBERS):
        return False
    time.sleep(_LAST_WORDS)
    return not _is_zero(_NUMBERS_HERE)


def _is_zero(names: tuple[str, ...]) -> bool:
    return next((os.environ[name] for name in names if name in os.environ), "0") == "0"
