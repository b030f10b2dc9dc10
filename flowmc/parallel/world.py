"""All ranks of the program."""

from __future__ import annotations

import functools

from flowmc.launcher import first_speaks
from flowmc.parallel.communicator import Communicator, _world
from flowmc.registry import ConfigError

__all__ = ["world"]


@functools.cache
def world() -> Communicator:
    """Return the communicator of all ranks of this run.

    Without a launcher MPI is not even imported.  ``FLOWMC_MPI=0`` makes every process a run of its
    own, ``FLOWMC_MPI=1`` asks MPI where a launcher is not recognised.

    Raises:
        ConfigError: several processes were started but mpi4py is missing or sees only one.
        SystemExit: the same, on those that leave the message to the first.
    """
    try:
        return _world()
    except ConfigError:
        if first_speaks():
            raise SystemExit(2) from None
        raise
